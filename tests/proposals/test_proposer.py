"""Proposals from features: the recorded official run, its steps, padding, edge cases."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sp_fast.ops import PackedMasks, mask_nms, matrix_nms, seed_saliency
from sp_fast.proposals import Proposals, SaliencyProposer
from sp_fast.proposals.filters import geometry_filter
from sp_fast.proposals.seeds import resized_seeds


def blobs(*size: int, channels: int = 16, seed: int = 0) -> Tensor:
    """Smooth positive features [channels, H, W], in which masks are regions."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 4, 5, generator=generator)
    return F.interpolate(coarse, size=size, mode="bicubic").relu()[0] + 0.01


def one(proposals: Proposals, image: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks, scores, seed indices and seeds of one image, without padding."""
    n = int(proposals.count[image])
    masks = proposals.masks.unpack()[image, :n]
    return masks, proposals.score[image, :n], proposals.seed_index[image, :n], proposals.seeds[image, :n]


def test_official_preset_reproduces_the_recorded_run(data_dir) -> None:
    proposer = SaliencyProposer(preset="official")
    for recorded in torch.load(data_dir("official_golden.pt"), weights_only=True):
        masks, score, index, _ = one(proposer.from_features(recorded["features"][None]), 0)
        torch.testing.assert_close(score, recorded["score"], rtol=0, atol=1e-5)
        assert len(recorded["score"].unique()) == len(recorded["score"]), "no ties: only one order"
        assert index.tolist() == recorded["seed_index"].tolist()
        assert torch.equal(masks, recorded["masks"])


def test_official_run_before_its_filters(data_dir) -> None:
    proposer = SaliencyProposer(preset="official", min_center_height=None, max_box_width=None, min_score=None)
    for recorded in torch.load(data_dir("official_golden.pt"), weights_only=True):
        proposals = proposer.from_features(recorded["features"][None])
        assert int(proposals.count[0]) == recorded["before_filter"]


def test_seeds_are_bilinear_resizes_in_order_of_the_scales() -> None:
    features = blobs(13, 18)[None]
    seeds, index = resized_seeds(features, (1.0, 0.5, 0.25), torch.tensor([[13, 18]]))
    expected = [F.interpolate(features, scale_factor=s, mode="bilinear").flatten(2) for s in (1.0, 0.5, 0.25)]
    torch.testing.assert_close(seeds.transpose(1, 2), torch.cat(expected, 2))
    assert index[0].tolist() == list(range(13 * 18 + 6 * 9 + 3 * 4))


def test_padding_does_not_change_resized_seeds() -> None:
    features = blobs(9, 11)[None]
    padded = F.pad(features, (0, 6, 0, 3))
    scales = (1.0, 0.75, 0.5, 0.25)
    alone, _ = resized_seeds(features, scales, torch.tensor([[9, 11]]))
    seeds, index = resized_seeds(padded, scales, torch.tensor([[9, 11]]))
    real = index[0] >= 0
    torch.testing.assert_close(seeds[0, real], alone[0])
    assert index[0, real].tolist() == list(range(alone.shape[1]))
    assert not seeds[0, ~real].any()


def test_matrix_nms_step_keeps_the_best_after_decay() -> None:
    features = blobs(12, 15)[None]
    proposals = SaliencyProposer(grid=(4, 4), similarity="cosine", nms="matrix", max_masks=5).from_features(
        features
    )
    saliency = seed_saliency(features, (4, 4), similarity="cosine")
    decayed = matrix_nms(saliency.masks, saliency.score)
    best = decayed[0].sort(descending=True, stable=True)
    assert proposals.seed_index[0].tolist() == best.indices[:5].tolist()
    torch.testing.assert_close(proposals.score[0], best.values[:5])


def test_small_masks_take_no_part_in_matrix_nms() -> None:
    features = blobs(12, 15)[None]
    saliency = seed_saliency(features, (12, 15))
    bound = int(saliency.masks.area().float().median())
    large = (saliency.masks.area()[0] >= bound).nonzero()[:, 0]
    decayed = matrix_nms(saliency.masks[:, large], saliency.score[:, large])
    assert not torch.equal(decayed, matrix_nms(saliency.masks, saliency.score)[:, large])
    best = decayed[0].sort(descending=True, stable=True)
    proposals = SaliencyProposer(grid=(12, 15), nms="matrix", min_area=bound).from_features(features)
    assert proposals.seed_index[0].tolist() == large[best.indices[:20]].tolist()
    torch.testing.assert_close(proposals.score[0], best.values[:20])


def test_mask_nms_step() -> None:
    features = blobs(12, 15)[None]
    proposals = SaliencyProposer(grid=(6, 6), similarity="cosine", iou_threshold=0.3).from_features(features)
    saliency = seed_saliency(features, (6, 6), similarity="cosine")
    kept = mask_nms(saliency.masks, saliency.score, iou_threshold=0.3)
    assert torch.equal(proposals.seed_index, kept)
    assert torch.equal(proposals.masks.unpack()[0, 0], saliency.masks.unpack()[0, kept[0, 0]])
    torch.testing.assert_close(proposals.seeds[0, 0], saliency.seeds[0, kept[0, 0]])


def test_center_subtracts_the_mean_of_the_valid_part() -> None:
    features = blobs(8, 9)[None]
    padded = F.pad(features, (0, 3, 0, 2), value=7.0)
    centered = features - features.mean((2, 3), keepdim=True)
    expected = SaliencyProposer(similarity="cosine").from_features(centered)
    found = SaliencyProposer(similarity="cosine", center=True).from_features(padded, torch.tensor([[8, 9]]))
    assert torch.equal(found.seed_index, expected.seed_index)
    torch.testing.assert_close(found.seeds, expected.seeds, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.masks.unpack()[..., :8, :9], expected.masks.unpack())


def box_masks(height: int, width: int, *boxes: tuple[int, int, int, int]) -> PackedMasks:
    masks = torch.zeros(1, len(boxes), height, width, dtype=torch.bool)
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        masks[0, k, y0:y1, x0:x1] = True
    return PackedMasks.pack(masks)


def test_center_height_filter() -> None:
    # Height 20: centres (mean row index) must be above 4.
    masks = box_masks(20, 10, (0, 0, 3, 5), (0, 2, 3, 7), (0, 2, 3, 8), (0, 10, 3, 20))
    keep = geometry_filter(masks, min_center_height=0.2)
    assert keep.tolist() == [[False, False, True, True]]  # centres 2, 4, 4.5 and 14.5


def test_box_width_filter() -> None:
    # Width 20: a box must be narrower than 19 columns.
    masks = box_masks(10, 20, (0, 0, 20, 2), (0, 0, 19, 2), (1, 0, 19, 2))
    assert geometry_filter(masks, max_box_width=0.95).tolist() == [[False, False, True]]


def test_geometry_is_relative_to_the_valid_part() -> None:
    masks = box_masks(40, 40, (0, 2, 10, 7))
    valid = torch.tensor([[20, 10]])
    assert geometry_filter(masks, min_center_height=0.15).tolist() == [[False]]
    assert geometry_filter(masks, valid, min_center_height=0.15).tolist() == [[True]]
    assert geometry_filter(masks, max_box_width=0.95).tolist() == [[True]]
    assert geometry_filter(masks, valid, max_box_width=0.95).tolist() == [[False]]


def test_score_filter_compacts_the_kept_masks() -> None:
    features = blobs(12, 15)[None]
    everything = SaliencyProposer(grid=(6, 6), similarity="cosine", nms="matrix").from_features(features)
    n = int(everything.count[0])
    bound = float(everything.score[0, n // 2])
    filtered = SaliencyProposer(
        grid=(6, 6), similarity="cosine", nms="matrix", min_score=bound
    ).from_features(features)
    kept = int(filtered.count[0])
    assert kept == int((everything.score[0, :n] >= bound).sum())
    assert 0 < kept < n
    assert torch.equal(filtered.seed_index[0, :kept], everything.seed_index[0, :kept])
    assert (filtered.seed_index[0, kept:] == -1).all()
    assert not filtered.score[0, kept:].any()
    assert not filtered.masks.words[0, kept:].any()
    assert not filtered.seeds[0, kept:].any()


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_no_synchronisation_with_the_device(preset: str) -> None:
    # Fake tensors have no values: reading one back raises.
    with FakeTensorMode():
        features = torch.empty(2, 16, 12, 15, device="cuda")
        valid = torch.empty(2, 2, dtype=torch.int64, device="cuda")
        proposer = SaliencyProposer(preset=preset, center=True)
        for known in (None, valid):
            proposals = proposer.from_features(features, known)
            assert proposals.seeds.device.type == "cuda"
            assert proposer.saliency(features, proposals).shape == (2, 20, 12, 15)
        with pytest.raises(RuntimeError):
            proposals.count.tolist()


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_padding_does_not_change_proposals(preset: str) -> None:
    sizes = [(14, 20), (20, 11), (9, 9)]
    maps = [blobs(*size, seed=k) for k, size in enumerate(sizes)]
    batch = torch.full((3, 16, 20, 20), 123.0)
    for k, (height, width) in enumerate(sizes):
        batch[k, :, :height, :width] = maps[k]
    proposer = SaliencyProposer(preset=preset, min_score=0.3)
    together = proposer.from_features(batch, torch.tensor(sizes))
    for k, (height, width) in enumerate(sizes):
        alone = one(proposer.from_features(maps[k][None]), 0)
        masks, score, index, seeds = one(together, k)
        assert len(masks) > 0
        assert index.tolist() == alone[2].tolist()
        assert torch.equal(masks[:, :height, :width], alone[0])
        assert masks.sum() == alone[0].sum(), "nothing in the padding"
        torch.testing.assert_close(score, alone[1])
        torch.testing.assert_close(seeds, alone[3])


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_constant_and_nan_features_have_no_proposals(preset: str) -> None:
    features = torch.stack(
        [torch.ones(8, 6, 6), torch.full((8, 6, 6), float("nan")), blobs(6, 6, channels=8)]
    )
    proposals = SaliencyProposer(preset=preset).from_features(features)
    assert proposals.count[:2].tolist() == [0, 0]
    assert (proposals.seed_index[:2] == -1).all()
    assert torch.isfinite(proposals.seeds).all()


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_empty_batch_and_a_single_cell(preset: str) -> None:
    proposer = SaliencyProposer(preset=preset)
    assert proposer.from_features(torch.rand(0, 8, 6, 6)).masks.shape == (0, 20)
    assert proposer.from_features(torch.rand(2, 8, 1, 1)).count.tolist() == [0, 0]


def test_saliency_above_the_threshold_is_the_mask() -> None:
    features = torch.randn(2, 16, 9, 12, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[9, 12], [7, 8]])
    for options in (
        {},
        {"similarity": "cosine", "center": True, "threshold": 0.7},
        {"preset": "official", "min_center_height": None, "max_box_width": None},
    ):
        proposer = SaliencyProposer(**options)
        proposals = proposer.from_features(features, valid)
        assert (proposals.count > 0).all()
        saliency = proposer.saliency(features, proposals)
        mask, threshold = proposals.masks.unpack(), proposer.options.threshold
        assert ((saliency >= threshold) == mask)[(saliency - threshold).abs() > 1e-5].all()


def test_wrong_shapes() -> None:
    proposer = SaliencyProposer()
    with pytest.raises(ValueError, match=r"features: expected \[B, D, H, W\], got \[3, 4, 5\]"):
        proposer.from_features(torch.rand(3, 4, 5))
    with pytest.raises(ValueError, match=r"valid: expected \[2, 2\], got \[2\]"):
        proposer.from_features(torch.rand(2, 3, 4, 5), torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="backbone: needed for images"):
        proposer(torch.rand(1, 3, 32, 32))
