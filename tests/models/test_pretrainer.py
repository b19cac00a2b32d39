"""The pre-trainer: every term of Eq. 10, all sources, images without proposals, what it exports."""

import pytest
import torch
from mmengine.structures import InstanceData

import sp_fast.models  # noqa: F401

# isort: split
from knet_model import knet_config
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks

from sp_fast.models.sources import mean_inside

CHANNELS, KERNELS, STAGES, LAST_STAGE = 16, 6, 2, 32


def tiny_knet(num_classes=1):
    return knet_config(CHANNELS, KERNELS, num_classes, num_stages=STAGES)


def build(**options):
    torch.manual_seed(0)
    options.setdefault("supervision", dict(seed_channels=LAST_STAGE))
    model = MODELS.build(dict(type="SaliencyPromptPretrainer", detector=tiny_knet(), **options))
    model.init_weights()
    return model


def batch(counts, *, seeds=True, size=(64, 96)):
    """Images of noise, the second half narrower than the padded batch, with `counts` square proposals."""
    generator = torch.Generator().manual_seed(1)
    inputs, samples = [], []
    for position, count in enumerate(counts):
        height, width = size[0], size[1] - 24 * (position % 2)
        inputs.append(torch.randint(0, 255, (3, height, width), generator=generator, dtype=torch.uint8))
        masks = torch.zeros(count, height, width, dtype=torch.uint8)
        corners = torch.randint(0, 30, (count, 2), generator=generator).tolist()
        for mask, (y, x) in zip(masks, corners, strict=True):
            mask[y : y + 24, x : x + 30] = 1
        boxes = torch.tensor([[x, y, x + 30, y + 24] for y, x in corners], dtype=torch.float32).reshape(-1, 4)
        instances = InstanceData(
            bboxes=boxes,
            labels=torch.zeros(count, dtype=torch.int64),
            masks=BitmapMasks(masks.numpy(), height, width),
        )
        if seeds:
            instances.seeds = torch.randn(count, LAST_STAGE, generator=generator)
        sample = DetDataSample(gt_instances=instances)
        sample.set_metainfo(
            dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        )
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def losses_of(model, data):
    data = model.data_preprocessor(data, training=True)
    return model.loss(data["inputs"], data["data_samples"])


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


@pytest.mark.parametrize("inject", ["init", "proposal"])
def test_trains_under_autocast(inject):
    model = build(prompts=dict(inject=inject))
    data = batch([2, 0, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, data)
    expected = losses_of(model, batch([2, 0, 3]))
    total, reference = (model.parse_losses(parts)[0] for parts in (losses, expected))
    assert total.item() == pytest.approx(reference.item(), rel=0.1)
    total.backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


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


def test_export_loads_into_the_plain_detector_but_for_its_class_heads():
    model = build()
    plain = MODELS.build(tiny_knet(num_classes=7))
    result = plain.load_state_dict(model.export(), strict=False)
    assert not result.unexpected_keys
    assert {name.rsplit(".", 1)[0] for name in result.missing_keys} == {
        "rpn_head.conv_seg",
        *(f"roi_head.mask_head.{i}.fc_cls" for i in range(STAGES)),
    }
    assert torch.equal(plain.rpn_head.init_kernels.weight, model.detector.rpn_head.init_kernels.weight)


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
