"""What a variant changes and what it must not; the student's ResNet against the proposals'."""

import copy

import pytest
import torch

pytest.importorskip("mmdet")

from sp_fast.proposals import build_backbone
from sp_fast.study.batches import Batch
from sp_fast.study.models import (
    BACKBONES,
    Normalizer,
    build_detector,
    build_pretrainer,
    detector_losses,
    load_settings,
    load_transferable,
    transferable_keys,
)
from sp_fast.study.variants import EXPECTED, VARIANTS, choose_variants
from tests.study.study_data import write_config

PRETRAINED = [name for name, variant in VARIANTS.items() if variant.proposals is not None]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return load_settings(str(write_config(tmp_path_factory.mktemp("models") / "narrow.py")))


@pytest.fixture(scope="module")
def start(settings):
    return build_detector(settings, 5, 1, None)


def batch(seed_channels=32):
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(2, 3, 16, 16)
    masks[0, 0, 2:8, 1:7], masks[0, 1, 9:14, 8:15], masks[1, 0, 4:12, 1:7] = 1, 1, 1
    # In cells of P5 of their own, so that the prompts differ.
    boxes = torch.tensor(
        [[[4, 8, 28, 32], [32, 36, 60, 56], [0, 0, 0, 0]], [[4, 16, 28, 48], [0] * 4, [0] * 4]]
    ).float()
    return Batch(
        images=torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8),
        inside=torch.ones(2, 1, 64, 64, dtype=torch.bool),
        masks=masks,
        labels=torch.zeros(2, 3, dtype=torch.int64),
        boxes=boxes,
        seeds=torch.randn(2, 3, seed_channels, generator=generator) if seed_channels else None,
        count=torch.tensor([2, 1]),
    )


def losses(settings, start, name, one=None):
    model = build_pretrainer(settings, VARIANTS[name], start, 1).train()
    torch.manual_seed(3)
    one = one or batch()
    return {key: value.item() for key, value in model.loss(Normalizer(PIXELS)(one), one).items()}


PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


@pytest.mark.parametrize("name", PRETRAINED)
def test_all_variants_begin_alike_with_a_frozen_backbone(settings, start, name):
    before = copy.deepcopy(settings.to_dict())
    model = build_pretrainer(settings, VARIANTS[name], start, 1).train()
    assert settings.to_dict() == before
    expected = start.state_dict()
    state = model.detector.state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in transferable_keys(start))
    assert not any(one.requires_grad for one in model.detector.backbone.parameters())
    assert all(one.requires_grad for one in model.detector.neck.parameters())
    assert (model.supervision is not None) == (VARIANTS[name].supervision is not None)
    assert model.export().keys() == transferable_keys(start)
    # What fine-tuning begins from: all trained but the stem and the first stage, or as the config says.
    assert any(one.requires_grad for one in build_detector(settings, 5, 1, None).backbone.parameters())


def test_variants_differ_in_their_options_and_in_nothing_else(settings, start):
    of = {name: losses(settings, start, name) for name in PRETRAINED}
    assert set(of["cosine"]) - set(of["labels"]) == {"loss_kernel"}
    assert set(of["cosine"]) == set(of["random"]) == set(of["official"])
    # The kernel loss adds a term and changes no other.
    without = of["cosine-no-kernel-loss"]
    assert {key: value for key, value in of["cosine"].items() if key != "loss_kernel"} == without
    # Random boxes are other data, not another model.
    assert of["boxes"] == of["labels"]
    assert of["boxes-cosine"] == of["cosine"]
    # Prompts at the start change the first masks; those after the first head do not.
    first = "loss_rpn_dice"
    assert len({of[name][first] for name in ("labels", "random", "sequential", "cosine")}) == 4
    for name in ("cosine-after-head", "official"):
        assert of[name][first] == of["labels"][first]
        assert of[name]["s0_loss_dice"] != of["labels"]["s0_loss_dice"]


def test_without_stored_seeds_the_kernel_loss_takes_the_features_inside_the_masks(settings, start):
    stored, inside = losses(settings, start, "cosine"), losses(settings, start, "cosine", batch(None))
    assert inside["loss_kernel"] != stored["loss_kernel"]
    assert inside["s2_loss_dice"] == stored["s2_loss_dice"]


@pytest.mark.parametrize("name", ["cosine", "official", "boxes-cosine"])
def test_under_bf16_autocast_losses_and_gradients_are_finite(settings, start, name):
    model = build_pretrainer(settings, VARIANTS[name], start, 1).train()
    one = batch(None if name == "boxes-cosine" else 32)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(Normalizer(PIXELS)(one), one)
    sum(terms.values()).backward()
    assert all(torch.isfinite(value) for value in terms.values())
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_official_prompts_are_detached_and_the_papers_not(settings, start):
    assert build_pretrainer(settings, VARIANTS["official"], start, 1).generator.detach
    assert build_pretrainer(settings, VARIANTS["official"], start, 1).injector.drop_rate == 0.1
    assert not build_pretrainer(settings, VARIANTS["cosine"], start, 1).generator.detach


def test_fine_tuning_takes_all_but_the_class_heads(settings, start):
    pretrained = build_pretrainer(settings, VARIANTS["cosine"], start, 1)
    with torch.no_grad():
        pretrained.detector.rpn_head.init_kernels.weight.fill_(7)
    detector = build_detector(settings, 5, 2, None)
    heads = {key: detector.state_dict()[key].clone() for key in detector.state_dict() if "fc_cls" in key}
    load_transferable(detector, pretrained.export())
    assert (detector.rpn_head.init_kernels.weight == 7).all()
    assert heads
    assert all(torch.equal(detector.state_dict()[key], value) for key, value in heads.items())
    terms = detector_losses(detector.train(), Normalizer(PIXELS)(batch()), batch())
    assert all(torch.isfinite(value) for value in terms.values())
    with pytest.raises(ValueError, match="expected weights of the same detector"):
        load_transferable(detector, {"neck.other": torch.zeros(1)})


def test_padding_is_zero_and_channels_are_as_the_config_says():
    one = batch()
    inside = one.inside.clone()
    inside[..., 40:] = False
    one = Batch(one.images, inside, one.masks, one.labels, one.boxes, one.seeds, one.count)
    rgb = Normalizer(PIXELS)(one)
    assert not rgb[..., 40:].any()
    red = (one.images[0, 0, 5, 5].item() - 123.675) / 58.395
    assert rgb[0, 0, 5, 5].item() == pytest.approx(red, abs=1e-5)
    bgr = Normalizer(dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]))(one)
    assert bgr[0, 2, 5, 5].item() == pytest.approx(one.images[0, 0, 5, 5].item() - 123.675, abs=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_configs_fit_their_proposals(backbone):
    settings = load_settings(backbone)
    with torch.device("meta"):
        proposals = build_backbone(
            settings.proposals.backbone,
            style=settings.proposals.get("style", "pytorch"),
            stage=settings.proposals.stage,
        )
    # Stored seeds and the backbone's last stage have the same channels.
    assert proposals.channels == settings.model.neck.in_channels[-1]


def test_unknown_names_are_errors_that_list_the_known():
    with pytest.raises(ValueError, match=r"--variants: expected some of none, labels, .*got cosin$"):
        choose_variants(["cosine", "cosin"])
    assert choose_variants(["cosine", "none", "cosine"]) == ["none", "cosine"]
    assert {name for pair in EXPECTED for name in pair[:2]} <= VARIANTS.keys()
    with pytest.raises(ValueError, match="--backbone: expected resnet50, mobilenet_v2"):
        load_settings("resnet51")
