"""The pre-trainer: every term of Eq. 10, all sources, images without proposals, errors."""

from functools import partial

import pytest
import torch

from sp_fast.knet.targets import quarter_size
from sp_fast.ops.mask_runs import image_masks
from sp_fast.pretraining.sources import mean_inside
from tests.pretraining.families import KERNELS, STAGES, batch, losses_of
from tests.pretraining.families import build as build_family

build = partial(build_family, "knet")


@pytest.mark.parametrize("inject", ["init", "proposal"])
def test_has_every_term_of_equation_10(inject):
    model = build(prompts=dict(inject=inject))
    losses = losses_of(model, batch([2, 3]))
    expected = {"loss_rpn_mask", "loss_rpn_dice", "loss_rpn_seg", "loss_kernel"}
    expected |= {f"s{i}_loss_{term}" for i in range(STAGES) for term in ("cls", "mask", "dice")}
    assert set(losses) == expected
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    model.parse_losses(losses)[0].backward()
    silent = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert not silent
    assert model.supervision.linear.weight.grad.any()


@pytest.mark.parametrize("counts", [[0], [0, 0], [2, 0, 1], [KERNELS + 4, 1]])
@pytest.mark.parametrize("source", ["cached", "import"])
def test_images_without_proposals_and_with_too_many(counts, source):
    model = build(source=source)
    losses = losses_of(model, batch(counts, seeds=source == "cached"))
    assert all(torch.isfinite(value) for value in losses.values())
    if not any(counts):
        assert losses["loss_kernel"] == 0
    total = model.parse_losses(losses)[0]
    total.backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


def test_shared_source_makes_its_own_proposals():
    made = dict(grid=(2, 2), similarity="cosine", center=True)
    model = build(source="shared", frozen_stages=4, proposer=made)
    data = batch([0, 0], seeds=False)
    losses = losses_of(model, data)
    assert losses["loss_kernel"] > 0
    assert losses["s1_loss_dice"] > 0


def test_shared_source_ignores_the_padding():
    """An image has the same proposals alone and in a batch where it is padded."""
    model = build(source="shared", frozen_stages=4, proposer=dict(grid=(2, 2), similarity="cosine")).eval()
    data = model.data_preprocessor(batch([0, 0], seeds=False), training=True)
    images, samples = data["inputs"], data["data_samples"]
    with torch.no_grad():
        features, _ = model._adapter.features(images)
        both = model.source(model._adapter, images, features[-1], samples)
        alone = model.source(model._adapter, images[1:], features[-1][1:], samples[1:])
    assert both.count[1] == alone.count[0] > 0
    count = int(alone.count[0])
    assert torch.equal(both.boxes[1, :count], alone.boxes[0, :count])
    height, width = samples[1].img_shape[:2]
    assert width < images.shape[3]
    assert (both.boxes[1].amax(0) <= torch.tensor([width, height] * 2)).all()
    assert not both.targets.masks[1, :, :, -(-width // 4) :].any()


@pytest.mark.parametrize("width", [96, 66])
def test_shared_source_makes_the_same_masks_as_the_cached_source(width):
    """Compares the target cells that are entirely inside or outside the cached mask."""
    model = build(source="shared", frozen_stages=4, proposer=dict(grid=(4, 6), min_area=1)).eval()
    data = model.data_preprocessor(batch([0], seeds=False, size=(160, width)), training=True)
    samples = data["data_samples"]
    padded = data["inputs"].shape[-2:]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 8, 5, 3, generator=generator)
    got = model.source(model._adapter, data["inputs"], features, samples)
    proposer = model.source.proposer
    found = proposer.from_features(features)
    saliency = proposer.saliency(features, found)[0, : found.count[0]]
    cached = image_masks(saliency, padded, proposer.options.threshold).numpy()
    cached[:, :, width:] = False
    cached = cached[cached.any((1, 2))]
    assert got.count.tolist() == [len(cached)]
    quarter = torch.from_numpy(quarter_size(cached, *padded))
    columns = width // 4  # without cells that the border cuts
    masks = got.targets.masks[0, : len(cached), :, :columns]
    assert (masks[quarter[:, :, :columns] == 4] == 1).all()
    assert (masks[quarter[:, :, :columns] == 0] == 0).all()
    assert 0 < masks.mean() < 1
    for mask, box in zip(cached, got.boxes[0], strict=False):
        rows, places = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        tight = torch.tensor([places[0], rows[0], places[-1] + 1, rows[-1] + 1])
        assert (box - tight).abs().max() < 4


def test_mean_inside_is_the_mean_of_the_covered_cells():
    features = torch.randn(1, 5, 4, 6)
    masks = torch.zeros(1, 3, 8, 12)
    masks[0, 0, 2:6, 4:8] = 1  # cells 1..3 x 2..4
    masks[0, 1] = 1
    seeds = mean_inside(features, masks)
    assert torch.allclose(seeds[0, 0], features[0, :, 1:3, 2:4].mean((1, 2)), atol=1e-6)
    assert torch.allclose(seeds[0, 1], features[0].mean((1, 2)), atol=1e-6)
    assert not seeds[0, 2].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(source="teachers"), "source: expected one of cached, shared, teacher, import, got 'teachers'"),
        (dict(preset="mine"), "preset: expected one of paper, official, got 'mine'"),
        (dict(prompts=dict(inject="end")), "prompts.inject: expected one of init, proposal"),
        (dict(prompts=dict(fold="all")), "prompts.fold: expected one of none, mean, kernel, got 'all'"),
        (
            dict(prompts=dict(fold="mean", inject="proposal")),
            "prompts.fold: expected 'none' with prompts.inject='proposal', got 'mean'",
        ),
        (
            dict(preset="official", prompts=dict(fold="kernel")),
            "set prompts.fold='none', or prompts.inject='init'",
        ),
        (dict(proposer=dict(grid=(2, 2))), "proposer: expected only with source='shared'"),
        (dict(source="shared", proposer=dict(refine="segments")), "proposer.refine: expected 'none'"),
    ],
)
def test_errors_name_the_option(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_cached_source_without_seeds_says_how_to_fix_it():
    with pytest.raises(ValueError, match="or set source='import'"):
        losses_of(build(), batch([1], seeds=False))
