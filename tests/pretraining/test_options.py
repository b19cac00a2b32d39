"""Every option of the pre-trainer: what it changes and what it leaves unchanged."""

import pytest
import torch

from sp_fast.pretraining.prompts import BOX_SIZE, PromptGenerator
from tests.pretraining.families import FAMILIES, batch, build, losses_of, prepared, total


def step(model, data, seed=0):
    """The losses of a step, and the kernels before and after decoration."""
    seen = {}
    original = model.injector.forward

    def record(kernels, *args):
        seen["before"] = kernels
        seen["after"], seen["index"] = original(kernels, *args)
        return seen["after"], seen["index"]

    model.injector.forward = record
    seen["losses"] = losses_of(model, data, seed)
    del model.injector.forward
    return seen


def added(seen):
    """The difference that decoration made to each kernel."""
    return seen["after"] - seen["before"]


@pytest.mark.parametrize("family", FAMILIES)
def test_strategies_choose_differently_among_the_same_prompts(family):
    """Every kernel takes one of the prompts of its image; the strategy decides which."""
    data, chosen = batch([3, 2]), {}
    for strategy in ("cosine", "random", "sequential"):
        model = build(family, prompts=dict(strategy=strategy))
        seen = step(model, data)
        chosen[strategy] = seen["index"]
        assert (seen["index"][0] < 3).all()
        assert (seen["index"][1] < 2).all()
        inputs, samples = prepared(model, data)
        maps, pyramid = model._adapter.features(inputs)
        found = model.source(model._adapter, inputs, maps[-1], samples)
        prompts = model.generator(pyramid, found.boxes, found.count, (64, 96))
        for image in range(2):
            expected = prompts[image, seen["index"][image]]
            torch.testing.assert_close(added(seen)[image], expected, rtol=1e-3, atol=1e-5)
    assert chosen["sequential"].tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 1]]
    assert not torch.equal(chosen["random"], chosen["sequential"])
    none = step(build(family, prompts=dict(strategy="none")), data)
    assert not added(none).any()
    assert (none["index"] == -1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_random_differs_between_steps(family):
    model = build(family, prompts=dict(strategy="random"))
    first, second = (step(model, batch([3, 2]), seed=seed)["index"] for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_supervision_adds_its_loss_and_changes_no_other(family):
    data = batch([2, 3])
    on, off = build(family), build(family, supervision=None)
    with_loss, without = losses_of(on, data), losses_of(off, data)
    assert set(with_loss) - set(without) == {"loss_kernel"}
    for name, value in without.items():
        assert torch.equal(torch.as_tensor(with_loss[name]), torch.as_tensor(value)), name
    assert not any(name.startswith("supervision") for name in off.state_dict())
    double = losses_of(build(family, supervision=dict(seed_channels=32, loss_weight=2.0)), data)
    assert double["loss_kernel"].item() == pytest.approx(2 * with_loss["loss_kernel"].item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_seeds_affect_only_the_kernel_loss(family):
    """Source `import` computes other seeds from the same masks: same prompts, different kernel loss."""
    data = batch([2, 3])
    cached, imported = (step(build(family, source=source), data) for source in ("cached", "import"))
    assert torch.equal(cached["after"], imported["after"])
    for name, value in cached["losses"].items():
        same = torch.equal(torch.as_tensor(imported["losses"][name]), torch.as_tensor(value))
        assert same == (name != "loss_kernel"), name


@pytest.mark.parametrize("family", FAMILIES)
def test_detaching_changes_gradients_but_no_loss(family):
    models = [build(family, prompts=dict(detach=detach)) for detach in (False, True)]
    losses = [losses_of(model, batch([2, 3])) for model in models]
    for name, value in losses[0].items():
        assert torch.equal(torch.as_tensor(losses[1][name]), torch.as_tensor(value)), name
    for one in losses:
        total(one).backward()
    first, second = (model.detector.backbone.layer4[0].downsample[0].weight.grad for model in models)
    assert not torch.allclose(first, second, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_injection_points_decorate_different_kernels(family):
    data = batch([2, 3])
    init = step(build(family, prompts=dict(inject="init")), data)
    proposal = step(build(family, prompts=dict(inject="proposal")), data)
    assert init["before"].dim() == 2 or torch.equal(init["before"][0], init["before"][1])
    assert not torch.equal(proposal["before"][0], proposal["before"][1])
    if family == "knet":  # with `proposal`, the first masks are made before prompts are added
        plain = losses_of(build(family, prompts=dict(strategy="none")), data)
        assert torch.equal(proposal["losses"]["loss_rpn_dice"], plain["loss_rpn_dice"])
        assert not torch.equal(init["losses"]["loss_rpn_dice"], plain["loss_rpn_dice"])


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_dropped_only_in_training(family):
    model = build(family, prompts=dict(strategy="sequential", drop_rate=0.5))
    data = batch([8] * 8)
    taken = torch.stack([step(model, data, seed)["index"].amax(1) + 1 for seed in range(4)])
    assert 0.4 < (taken < 6).float().mean() < 0.99  # fewer than 6 of 8 are kept with probability 0.86
    model.eval()
    assert (step(model, data)["index"].amax(1) == 5).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_pool_from_the_map_they_name(family):
    """Each level gives different prompts; name, index and, for small boxes, `box_size` agree."""
    model, data, by = build(family), batch([2, 3]), {}
    for level in ("P2", "P3", "P4", "P5", 0, 1, 2, 3, -1, BOX_SIZE):
        model.generator = PromptGenerator(level)
        by[level] = added(step(model, data))
    for index, name in enumerate(("P2", "P3", "P4", "P5")):
        assert torch.equal(by[index], by[name])
    assert torch.equal(by[-1], by["P5"])
    assert torch.equal(by[BOX_SIZE], by["P2"])  # 30 x 24 pixels
    assert not any(torch.allclose(by[i], by[i + 1]) for i in range(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_level_is_an_error(family):
    model = build(family, prompts=dict(levels="P6"))
    with pytest.raises(ValueError, match=r"levels: .* one of P2, P3, P4, P5, or 'box_size', got 'P6'"):
        losses_of(model, batch([1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_stages(family):
    """Stages up to the given one get no gradient and keep their statistics; the others are trained."""
    model = build(family, frozen_stages=2)
    model.detector.backbone.norm_eval = False
    model.train()
    before = {name: one.clone() for name, one in model.detector.backbone.named_buffers()}
    total(losses_of(model, batch([2, 3]))).backward()
    stages = {i: getattr(model.detector.backbone, f"layer{i}") for i in (1, 2, 3, 4)}
    for i, stage in stages.items():
        has_gradient = [one.grad is not None for one in stage.parameters() if one.dim() == 4]
        assert all(has_gradient) if i > 2 else not any(has_gradient)
    moved = {
        name.split(".")[0]
        for name, one in model.detector.backbone.named_buffers()
        if name.endswith("running_mean") and not torch.equal(one, before[name])
    }
    assert moved == {"layer3", "layer4"}
    free = build(family)
    total(losses_of(free, batch([2, 3]))).backward()
    assert all(one.grad is not None for one in free.detector.backbone.parameters() if one.dim() == 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_presets(family):
    official = build(family, preset="official")
    assert official.inject == "proposal"
    assert (official.generator.detach, official.generator.levels) == (True, ("P5",))
    assert (official.injector.strategy, official.injector.drop_rate) == ("cosine", 0.1)
    assert not any(one.requires_grad for one in official.detector.backbone.parameters())
    paper = build(family)
    assert paper.inject == "init"
    assert (paper.generator.detach, paper.injector.drop_rate) == (False, 0.0)
    assert all(one.requires_grad for one in paper.detector.backbone.parameters() if one.dim() == 4)
    changed = build(family, preset="official", prompts=dict(drop_rate=0.0, levels="P4"), frozen_stages=1)
    assert (changed.inject, changed.injector.drop_rate) == ("proposal", 0.0)
    assert changed.generator.levels == ("P4",)
    assert any(one.requires_grad for one in changed.detector.backbone.parameters())
    assert official.export().keys() == paper.export().keys()


@pytest.mark.parametrize("source", ["shared", "teacher"])
def test_the_preset_also_applies_to_the_proposer(source):
    for preset in ("paper", "official"):
        model = build("knet", preset=preset, source=source, frozen_stages=4, proposer=dict(max_masks=7))
        options = model.source.proposer.options
        assert (options.grid is None, options.max_masks) == (preset == "official", 7)


TEACHER = dict(source="teacher", proposer=dict(grid=(2, 2), similarity="cosine", center=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_keeps_the_initial_backbone(family):
    """The teacher's proposals do not change while the student learns; it is never in training mode."""
    model, data = build(family, **TEACHER), batch([0, 0], seeds=False)
    student, teacher = model.detector.backbone, model.source.backbone
    assert all(torch.equal(student.state_dict()[name], one) for name, one in teacher.state_dict().items())
    inputs, samples = prepared(model, data)

    def proposals():
        maps, _ = model._adapter.features(inputs)
        return model.source(model._adapter, inputs, maps[-1], samples)

    before = proposals()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total(losses_of(model, data)).backward()
    optimizer.step()
    after = proposals()
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.seeds, after.seeds)
    assert not torch.equal(student.layer4[0].downsample[0].weight, teacher.layer4[0].downsample[0].weight)
    assert not any(module.training for module in teacher.modules())
    assert not any(one.requires_grad for one in teacher.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_and_shared_agree_at_the_start(family):
    data = batch([0, 0], seeds=False)
    teacher = losses_of(build(family, **TEACHER), data)
    with pytest.warns(UserWarning, match=r"the backbone is trained.*frozen_stages.*source='teacher'"):
        drifting = build(family, **dict(TEACHER, source="shared"))
    shared = losses_of(drifting, data)
    for name, value in shared.items():
        assert torch.equal(torch.as_tensor(teacher[name]), torch.as_tensor(value)), name


def test_teacher_is_kept_for_resuming_and_not_exported():
    model = build("knet", **TEACHER)
    assert any(name.startswith("source.backbone.") for name in model.state_dict())
    assert model.export().keys() == build("knet").export().keys()


def test_weights_loaded_into_the_backbone_reach_the_teacher():
    model = build("knet", **TEACHER)
    with torch.no_grad():
        model.detector.backbone.conv1.weight.fill_(0.5)
    assert not (model.source.backbone.conv1.weight == 0.5).any()
    model.backbone_loaded()
    assert (model.source.backbone.conv1.weight == 0.5).all()
