"""The pre-trainer: every term of Eq. 10, all sources, images without proposals, what it exports."""

from functools import partial

import pytest
import torch
from families import CHANNELS, KERNELS, STAGES, batch, losses_of
from families import build as build_family

from sp_fast.models.sources import mean_inside

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


def test_prompts_reach_the_kernels_and_the_pyramid():
    """With the prompts detached the kernel loss still reaches Linear, and the prompts change the masks."""
    data = batch([2, 3])
    with_prompts = losses_of(build(), data)
    without = losses_of(build(prompts=dict(strategy="none")), batch([2, 3]))
    assert with_prompts["loss_rpn_mask"] != without["loss_rpn_mask"]


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
    model = build(source="shared", proposer=dict(grid=(2, 2), similarity="cosine", center=True))
    data = batch([0, 0], seeds=False)
    losses = losses_of(model, data)
    assert losses["loss_kernel"] > 0
    assert losses["s1_loss_dice"] > 0


def test_shared_source_ignores_the_padding():
    """An image alone and padded in a batch has the same proposals."""
    model = build(source="shared", proposer=dict(grid=(2, 2), similarity="cosine")).eval()
    data = model.data_preprocessor(batch([0, 0], seeds=False), training=True)
    images, samples = data["inputs"], data["data_samples"]
    with torch.no_grad():
        features, _ = model._adapter.features(images)
        both = model.source(model._adapter, images, features[-1], samples)
        alone = model.source(model._adapter, images[1:], features[-1][1:], samples[1:])
    valid_width = -(-samples[1].img_shape[1] // 32)
    assert both.count[1] == alone.count[0] > 0
    count = int(alone.count[0])
    assert torch.equal(both.boxes[1, :count], alone.boxes[0, :count])
    assert both.boxes[1].max() <= valid_width * 32


def test_mean_inside_is_the_mean_of_the_covered_cells():
    features = torch.randn(1, 5, 4, 6)
    masks = torch.zeros(1, 3, 8, 12)
    masks[0, 0, 2:6, 4:8] = 1  # cells 1..3 x 2..4
    masks[0, 1] = 1
    seeds = mean_inside(features, masks)
    assert torch.allclose(seeds[0, 0], features[0, :, 1:3, 2:4].mean((1, 2)), atol=1e-6)
    assert torch.allclose(seeds[0, 1], features[0].mean((1, 2)), atol=1e-6)
    assert not seeds[0, 2].any()


def test_kernel_loss_pairs_each_proposal_with_the_kernel_matched_to_it():
    """Training on the kernel loss alone pulls exactly the matched kernels to Linear of their seeds."""
    model = build()
    seen = {}
    original = model.supervision.forward

    def record(kernels, seeds, index):
        seen.update(kernels=kernels, seeds=seeds, index=index)
        return original(kernels, seeds, index)

    model.supervision.forward = record
    data = batch([2, 3])
    losses_of(model, data)
    assert seen["kernels"].shape == (STAGES, 2, KERNELS, CHANNELS)
    assert seen["index"].shape == (STAGES, 2, 3)
    assert (seen["index"][:, 0, 2] == -1).all()
    assert (seen["index"][:, 0, :2] >= 0).all()
    assert torch.equal(seen["seeds"][0, :2], data["data_samples"][0].gt_instances.seeds)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(source="teachers"), "source: expected one of cached, shared, teacher, import, got 'teachers'"),
        (dict(preset="mine"), "preset: expected one of paper, official, got 'mine'"),
        (dict(prompts=dict(inject="end")), "prompts.inject: expected one of init, proposal"),
        (dict(proposer=dict(grid=(2, 2))), "proposer: has a use only with source='shared'"),
    ],
)
def test_errors_name_the_option(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)


def test_cached_source_without_seeds_says_how_to_mend_it():
    with pytest.raises(ValueError, match="or set source='import'"):
        losses_of(build(), batch([1], seeds=False))
