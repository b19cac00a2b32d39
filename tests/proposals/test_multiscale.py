"""Masks and their parts, from feature maps and images of several sizes, ranked by objectness."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sp_fast.ops import PackedMasks
from sp_fast.proposals import ProposalOptions, SaliencyProposer, build_backbone
from sp_fast.proposals.candidates import find_candidates
from tests.proposals.test_proposer import blobs

OPTIONS = {"preset": "multiscale", "grid": [(6, 6), (3, 3)], "max_masks": 20}


def things(height: int, width: int, places: list[tuple[int, int]]) -> Tensor:
    """Features [3, h, w] of discs of one kind, radius 3, on a background."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = torch.stack([(y - a) ** 2 + (x - b) ** 2 <= 9 for a, b in places]).any(0).float()
    return torch.stack([inside, 1 - inside, torch.full_like(inside, 0.1)])


def test_things_of_one_kind_become_parts() -> None:
    features = things(24, 30, [(5, 6), (17, 8), (9, 22)])
    proposals = SaliencyProposer(**OPTIONS).from_features(features[None])
    masks = proposals.masks.unpack()[0, : int(proposals.count[0])]
    for place in [(5, 6), (17, 8), (9, 22)]:
        alone = things(24, 30, [place])[0] > 0
        assert any(torch.equal(mask, alone) for mask in masks), place
    assert any(torch.equal(mask, features[0] > 0) for mask in masks), "all together"


def test_saliency_at_the_threshold_is_the_mask() -> None:
    features = torch.stack([blobs(14, 20), blobs(14, 20, seed=1)])
    proposer = SaliencyProposer(**OPTIONS)
    proposals = proposer.from_features(features)
    assert (proposals.count > 3).all()
    assert len(proposals.threshold[0, : int(proposals.count[0])].unique()) > 1
    saliency = proposer.saliency(features, proposals)
    there = torch.arange(20) < proposals.count[:, None]
    found = (saliency >= proposals.threshold[..., None, None]) & there[..., None, None]
    assert torch.equal(found, proposals.masks.unpack())
    assert torch.equal(proposals.score, proposals.score.sort(1, descending=True).values)


def test_padding_does_not_change_proposals() -> None:
    sizes = [(14, 20), (20, 11), (9, 9)]
    maps = [blobs(*size, seed=k) for k, size in enumerate(sizes)]
    batch = torch.full((3, 16, 20, 20), 123.0)
    for k, (height, width) in enumerate(sizes):
        batch[k, :, :height, :width] = maps[k]
    proposer = SaliencyProposer(**OPTIONS)
    together = proposer.from_features(batch, torch.tensor(sizes))
    for k, (height, width) in enumerate(sizes):
        alone = proposer.from_features(maps[k][None])
        count = int(alone.count[0])
        assert count == int(together.count[k]) > 0
        torch.testing.assert_close(together.score[k, :count], alone.score[0, :count])
        mine, other = (one.masks.unpack() for one in (together, alone))
        assert torch.equal(mine[k, :count, :height, :width], other[0, :count])
        assert mine[k].sum() == other[0].sum(), "nothing in the padding"


def test_candidates_hold_each_part_alone() -> None:
    features = things(24, 30, [(5, 6), (17, 8)])[None]
    valid, options = torch.tensor([[24, 30]]), ProposalOptions(grid=((6, 6),), ranking="objectness")
    found = find_candidates(features, valid, 0.5, options)
    saliency = found.saliency(features, valid, "dot")[0]
    masks = PackedMasks(found.words, 24, 30).unpack()[0]
    first = things(24, 30, [(5, 6)])[0] > 0
    at = [k for k, mask in enumerate(masks) if torch.equal(mask, first)]
    assert len(at) == 1
    assert found.stability[0, at[0]] == 1
    torch.testing.assert_close(found.vectors[0, at[0]], torch.tensor([1, 0, 0.1]))
    empty = found.seed_index[0] < 0
    assert empty.any()
    assert not masks[empty].any()
    assert torch.equal((saliency >= 0.5)[~empty], masks[~empty])
    assert not found.stability[0, empty].any()


def test_large_maps_are_done_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.stack([blobs(14, 20), blobs(14, 20, seed=1)])
    proposer = SaliencyProposer(**OPTIONS)
    whole = proposer.from_features(features)
    monkeypatch.setattr("sp_fast.proposals.candidates._CELLS_AT_ONCE", 2 * 14 * 20 * 7)
    parts = proposer.from_features(features)
    assert torch.equal(parts.masks.words, whole.masks.words)
    torch.testing.assert_close(parts.score, whole.score)


def test_no_synchronisation_with_the_device() -> None:
    # Fake tensors have no values: reading one back raises.
    with FakeTensorMode():
        features = torch.empty(2, 16, 12, 15, device="cuda")
        valid = torch.empty(2, 2, dtype=torch.int64, device="cuda")
        proposer = SaliencyProposer(**OPTIONS, min_score=0.1, center=True)
        for known in (None, valid):
            proposals = proposer.from_features(features, known)
            assert proposer.saliency(features, proposals).shape == (2, 20, 12, 15)
        with pytest.raises(RuntimeError):
            proposals.count.tolist()


def test_constant_nan_and_tiny_features_have_no_proposals() -> None:
    proposer = SaliencyProposer(**OPTIONS)
    features = torch.stack([torch.ones(8, 6, 6), torch.full((8, 6, 6), float("nan"))])
    proposals = proposer.from_features(features)
    assert proposals.count.tolist() == [0, 0]
    assert torch.isfinite(proposals.seeds).all()
    assert proposer.from_features(torch.rand(2, 8, 1, 1)).count.tolist() == [0, 0]
    assert proposer.from_features(torch.rand(0, 8, 6, 6)).masks.shape == (0, 20)


def test_images_of_several_sizes_alone_and_together() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.nn.functional.interpolate(
            torch.rand(1, 3, 6, 7, generator=generator), size=size, mode="bicubic"
        )[0].clamp(0, 1)
        * 255
        for size in ((72, 96), (90, 60))
    ]
    proposer = SaliencyProposer(build_backbone("random"), **(OPTIONS | {"sizes": (48, 96)}))
    together, saliency, sizes = proposer.with_saliency(images)
    assert saliency.shape == (2, 20, 24, 24)
    assert sizes == [(18, 24), (24, 16)]
    assert proposer.options.sizes == (48, 96)
    levels = together.seed_index[together.seed_index >= 0] // 45
    assert set(levels.tolist()) == {0, 1}, "masks of both sizes"
    for k, image in enumerate(images):
        alone = proposer.from_images([image])
        count = int(alone.count[0])
        assert count == int(together.count[k]) > 0
        torch.testing.assert_close(together.score[k, :count], alone.score[0, :count])
        torch.testing.assert_close(together.seeds[k, :count], alone.seeds[0, :count])
