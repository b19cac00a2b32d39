"""The adapters: losses and matchings of the base models, all sources, plain checkpoints."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from sp_fast.configs import model_of_mmdet
from sp_fast.query_heads import mask2former, queryinst
from tests.pretraining.families import (
    BASES,
    CHANNELS,
    FAMILIES,
    KERNELS,
    STAGES,
    batch,
    build,
    build_plain,
    losses_of,
    prepared,
    total,
)
from tests.pretraining.narrow import HEADS

COUNTS = [[2, 3], [0, 2], [0, 0], [KERNELS + 4, 1]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_prompts_the_losses_equal_the_detectors(family, counts):
    model = build(family, prompts=dict(strategy="none"))
    losses = losses_of(model, batch(counts))
    inputs, samples = prepared(model, batch(counts))
    torch.manual_seed(0)
    expected = model.detector.loss(inputs, samples)
    assert set(losses) == {*expected, "loss_kernel"}
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(losses[name]), torch.as_tensor(value)), name


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("inject", ["init", "proposal"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_finite_for_all_counts(family, inject, counts):
    model = build(family, prompts=dict(inject=inject))
    losses = losses_of(model, batch(counts))
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert (losses["loss_kernel"] > 0) == any(counts)
    total(losses).backward()
    # Data-parallel training would wait for the gradient of an unused parameter.
    silent = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert not silent
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_stage_has_kernels_and_a_matching(family):
    model = build(family)
    kernels, assigned = results_of(model, batch([2, KERNELS + 4, 0]))
    assert kernels.shape == (STAGES, 3, KERNELS, CHANNELS)
    assert assigned.shape == (STAGES, 3, KERNELS)
    assert assigned.dtype == torch.int64
    for stage in assigned:
        assert sorted(stage[0].tolist()) == [-1] * (KERNELS - 2) + [0, 1]
        assert len(set(stage[1].tolist())) == KERNELS
        assert (stage[1] >= 0).all()
        assert (stage[2] == -1).all()
    assert not torch.equal(kernels[0], kernels[1])


def results_of(model, data):
    """Kernels and assignment of one training step."""
    seen = []
    original = model._adapter.loss

    def record(*args):
        seen.append(original(*args))
        return seen[-1]

    model._adapter.loss = record
    losses_of(model, data)
    del model._adapter.loss
    return seen[0].kernels, seen[0].assigned


@pytest.mark.parametrize("family", ["queryinst", "mask2former"])
def test_the_matching_is_that_of_the_losses(family, monkeypatch):
    module, used = {"queryinst": queryinst, "mask2former": mask2former}[family], []
    match = module.match
    monkeypatch.setattr(module, "match", lambda *args: used.append(match(*args)) or used[-1])
    _, assigned = results_of(build(family), batch([3, 4]))
    # Mask2Former's first matching is that of the initial queries.
    expected = used[0].gt[1:] if family == "mask2former" else torch.stack([one.gt for one in used])
    assert torch.equal(assigned, expected)


def test_queryinst_keeps_its_initial_boxes(monkeypatch):
    """Prompts change the proposal features of the first stage, but not its boxes."""
    original, first = queryinst.run_stage, {}
    for strategy in ("cosine", "none"):
        seen = []

        def record(head, stage, pyramid, before, targets, seen=seen):
            seen.append(before)
            return original(head, stage, pyramid, before, targets)

        monkeypatch.setattr("sp_fast.pretraining.adapters.queryinst.run_stage", record)
        losses_of(build("queryinst", prompts=dict(strategy=strategy)), batch([2, 2]))
        first[strategy] = seen[0]
    assert torch.equal(first["cosine"].boxes, first["none"].boxes)
    assert not torch.equal(first["cosine"].features, first["none"].features)


@pytest.mark.parametrize("source", ["import", "shared"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_sources(family, source):
    shared = source == "shared"
    made = dict(frozen_stages=4, proposer=dict(grid=(2, 2), similarity="cosine", center=True))
    model = build(family, source=source, **(made if shared else {}))
    losses = losses_of(model, batch([0, 0] if shared else [2, 3], seeds=False))
    assert losses["loss_kernel"] > 0
    total(losses).backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_made_in_the_step_equal_those_of_the_same_masks_on_disk(family):
    """Uses rectangles on the stride-4 grid, the resolution of masks made in the step."""
    model = build(family, prompts=dict(strategy="none"), supervision=None)
    data = batch([2, 1], narrower=0)
    for sample in data["data_samples"]:
        masks, boxes = sample.gt_instances.masks, sample.gt_instances.bboxes
        masks.masks[:] = 0
        for mask, box in zip(masks.masks, boxes, strict=True):
            x, y = (int(side) // 8 * 8 for side in box[:2])
            mask[y : y + 24, x : x + 32] = 1
            box[:] = torch.tensor([x, y, x + 32, y + 24])
    inputs, samples = prepared(model, data)
    adapter = model._adapter
    quarter = torch.zeros(2, 2, 16, 24)
    boxes, count = torch.zeros(2, 2, 4), torch.tensor([2, 1])
    for i, sample in enumerate(samples):
        whole = torch.from_numpy(sample.gt_instances.masks.masks)
        quarter[i, : count[i]] = whole[:, ::4, ::4].float()
        boxes[i, : count[i]] = sample.gt_instances.bboxes
    totals = []
    for targets in (
        adapter.targets(samples, (64, 96)),
        adapter.targets_from_masks(quarter, boxes, count, samples),
    ):
        _, pyramid = adapter.features(inputs)
        torch.manual_seed(0)
        results = adapter.loss(pyramid, targets, lambda kernels: kernels.expand(2, -1, -1), "init")
        totals.append(total(results.losses).item())
    # Mask2Former samples the masks at different resolutions, with softer edges at the lower one.
    assert totals[0] == pytest.approx(totals[1], rel=0.02 if family == "mask2former" else 1e-3)


def test_mask2former_rejects_masks_that_are_not_padded():
    model = build("mask2former")
    model.data_preprocessor.pad_mask = False
    with pytest.raises(ValueError, match=r"expected masks of the padded 64 x 96, got 64 x 72.*pad_mask"):
        losses_of(model, batch([1, 1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_weights_load_into_the_plain_detector_except_its_class_heads(family):
    model = build(family)
    plain = build_plain(family, num_classes=7, seed=1)
    result = plain.load_state_dict(model.export(), strict=False)
    assert not result.unexpected_keys
    assert {name.rsplit(".", 1)[0] for name in result.missing_keys} == HEADS[family]
    for name, value in model.detector.state_dict().items():
        if name.rsplit(".", 1)[0] not in HEADS[family]:
            assert torch.equal(plain.state_dict()[name], value), name


@pytest.mark.parametrize("inject", ["init", "proposal"])
@pytest.mark.parametrize("family", FAMILIES)
def test_learns_two_images(family, inject):
    model = build(family, prompts=dict(inject=inject))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for seed in range(20):
        losses = losses_of(model, batch([2, 3]), seed)
        optimizer.zero_grad()
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append((total(losses).item(), losses["loss_kernel"].item()))
    assert history[-1][0] < 0.75 * history[0][0]
    assert history[-1][1] < 0.75 * history[0][1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("source", ["cached", "import", "shared", "teacher"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trains_under_autocast(family, source, dtype):
    if source in ("shared", "teacher"):
        made = dict(grid=(2, 2), similarity="cosine", center=True)
        model, data = (
            build(family, source=source, frozen_stages=4, proposer=made),
            batch([0] * 3, seeds=False),
        )
    else:
        model, data = build(family, source=source), batch([2, 0, 3])
    with torch.autocast("cpu", dtype=dtype):
        losses = losses_of(model, data)
    expected = total(losses_of(model, data))
    assert total(losses).item() == pytest.approx(expected.item(), rel=0.1)
    total(losses).backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


MMDET_CONFIGS = {
    "queryinst": "queryinst/queryinst_r50_fpn_1x_coco.py",
    "mask2former": "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
}


@pytest.mark.parametrize("family", MMDET_CONFIGS)
def test_shipped_models_equal_mmdets(family):
    """Our configs and mmdet's build the same modules, but for subclasses, with the same names and shapes."""
    theirs = Config(dict(model=model_of_mmdet(MMDET_CONFIGS[family]))).model
    theirs.data_preprocessor.pop("batch_augments", None)
    ours = Config.fromfile(BASES / f"{family}_r50.py").model
    with torch.device("meta"):
        models = [MODELS.build(config) for config in (theirs, ours)]
    shapes = [{name: one.shape for name, one in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
    for first, second in zip(*(model.modules() for model in models), strict=True):
        assert isinstance(second, type(first))
        for name in ("loss_weight", "alpha", "gamma", "eps", "naive_dice", "class_weight", "sampling_ratio"):
            assert getattr(first, name, None) == getattr(second, name, None), (type(first), name)
