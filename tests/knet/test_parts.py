"""Compares each part of K-Net with its formula, written out by hand, for several batch sizes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from sp_fast.knet import Assignment, BatchedMaskAssigner, KernelUpdator, StageOutput, Targets
from sp_fast.knet.losses import mask_losses, paint_segmentation
from sp_fast.knet.masks import convolve, gather_features, upsample
from sp_fast.knet.matching import focal_cost, mask_costs, solve
from sp_fast.knet.targets import quarter_size, targets_from_samples
from tests.knet.model import knet_config, random_sample

BATCHES = (1, 3)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def randn(generator, *shape):
    return torch.randn(*shape, generator=generator)


def heads(**widths):
    """The two heads of a small K-Net, initialised."""
    torch.manual_seed(0)
    config = knet_config(**widths)
    first, update = MODELS.build(config["rpn_head"]), MODELS.build(config["roi_head"])
    first.init_weights()
    update.init_weights()
    return first, update


@pytest.mark.parametrize("batch", BATCHES)
def test_gather_is_a_hard_sum(generator, batch):
    masks, x = randn(generator, batch, 4, 5, 6), randn(generator, batch, 3, 5, 6)
    gathered = gather_features(masks, x)
    for b in range(batch):
        for n in range(4):
            inside = masks[b, n].sigmoid() > 0.5
            torch.testing.assert_close(gathered[b, n], x[b][:, inside].sum(1))


def test_gather_gives_the_masks_no_gradient(generator):
    masks = randn(generator, 1, 2, 4, 4).requires_grad_()
    x = randn(generator, 1, 3, 4, 4).requires_grad_()
    gather_features(masks, x).sum().backward()
    assert masks.grad is None
    assert torch.equal(x.grad[0, 0], (masks[0] > 0).sum(0).float())


def test_convolve_applies_the_kernels_of_each_image(generator):
    kernels, x = randn(generator, 3, 4, 8), randn(generator, 3, 8, 5, 6)
    expected = torch.cat([F.conv2d(x[b : b + 1], kernels[b][..., None, None]) for b in range(3)])
    torch.testing.assert_close(convolve(kernels, x), expected)


@pytest.mark.parametrize("batch", BATCHES)
def test_kernel_updator(generator, batch):
    c = 8
    updator = KernelUpdator(c)
    for parameter in updator.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x, k = randn(generator, batch, 5, c), randn(generator, batch, 5, c)
    p = dict(updator.named_parameters())

    def linear(name, value):
        return value @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, value):
        centred = value - value.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    p_in, p_out = linear("dynamic_layer", x)[..., :c], linear("dynamic_layer", x)[..., c:]
    i_in, i_out = linear("input_layer", k)[..., :c], linear("input_layer", k)[..., c:]
    g = i_in * p_in
    input_gate = norm("input_norm_in", linear("input_gate", g)).sigmoid()
    update_gate = norm("norm_in", linear("update_gate", g)).sigmoid()
    mixed = update_gate * norm("norm_out", p_out) + input_gate * norm("input_norm_out", i_out)
    expected = norm("fc_norm", linear("fc_layer", mixed)).clamp(min=0)
    torch.testing.assert_close(updator(x, k), expected, rtol=1e-5, atol=1e-5)


def pyramid(generator, batch, channels=16, size=(64, 96)):
    return [randn(generator, batch, channels, size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]


def sine_encoding(height, width, feats):
    """Normalised sine encoding, computed cell by cell."""
    encoding = torch.zeros(2 * feats, height, width)
    for y in range(height):
        for x in range(width):
            for axis, place in enumerate(((y + 1) / (height + 1e-6), (x + 1) / (width + 1e-6))):
                for i in range(feats):
                    angle = place * 2 * math.pi / 10000 ** (2 * (i // 2) / feats)
                    encoding[axis * feats + i, y, x] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    return encoding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_updator_handles_sums_over_many_cells_under_autocast(generator, dtype):
    """Gathered features grow with the number of cells, and the updator multiplies them with each other."""
    updator = KernelUpdator(16)
    features, kernels = 3e4 * randn(generator, 2, 5, 16), 1e4 * randn(generator, 2, 5, 16)
    with torch.autocast("cpu", dtype=dtype):
        updated = updator(features, kernels)
    assert torch.equal(updated, updator(features, kernels))
    assert torch.isfinite(updated).all()


def test_semantic_fpn(generator):
    fpn = heads()[0].localization_fpn
    maps = pyramid(generator, 2)

    def conv(module, x, stride=1):
        weight = module.conv.weight
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return F.group_norm(y, 4, module.gn.weight, module.gn.bias).relu()

    def double(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    level = fpn.convs_all_levels
    top = maps[3] + sine_encoding(2, 3, 8)
    merged = conv(level[0].conv0, maps[0], stride=2)
    merged = merged + conv(level[1].conv0, maps[1])
    merged = merged + conv(level[2].conv1, double(conv(level[2].conv0, maps[2])))
    merged = merged + conv(level[3].conv2, double(conv(level[3].conv1, double(conv(level[3].conv0, top)))))
    loc, sem = fpn(maps)
    torch.testing.assert_close(loc, conv(fpn.conv_pred, merged), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sem, conv(fpn.aux_convs[0], merged), rtol=1e-4, atol=1e-5)
    assert loc.shape == (2, 16, 8, 12)


def test_semantic_fpn_requires_four_levels(generator):
    with pytest.raises(ValueError, match="expected 4 maps"):
        heads()[0].localization_fpn(pyramid(generator, 1)[:3])


@pytest.mark.parametrize("batch", BATCHES)
def test_first_head(generator, batch):
    head, _ = heads()
    maps = pyramid(generator, batch)
    out = head(maps)
    loc, sem = head.localization_fpn(maps)
    loc, sem = head.loc_convs[0](loc), head.seg_convs[0](sem)
    masks = head.init_kernels(loc)
    torch.testing.assert_close(out.mask_logits, masks)
    torch.testing.assert_close(out.x, loc + sem)
    torch.testing.assert_close(out.seg_logits, head.conv_seg(sem))
    gathered = torch.einsum("bnhw,bchw->bnc", (out.mask_logits.sigmoid() > 0.5).float(), loc + sem)
    kernels = head.init_kernels.weight[:, :, 0, 0] + gathered
    torch.testing.assert_close(out.kernels, kernels, rtol=1e-4, atol=1e-4)


def test_decorated_kernels_make_the_first_masks(generator):
    head, _ = heads()
    maps = pyramid(generator, 2)
    extra = randn(generator, 2, 6, 16)
    plain, out = head(maps), head(maps, decorate=lambda kernels: kernels + extra)
    loc = head.loc_convs[0](head.localization_fpn(maps)[0])
    torch.testing.assert_close(
        out.mask_logits, plain.mask_logits + torch.einsum("bnc,bchw->bnhw", extra, loc), rtol=1e-4, atol=1e-4
    )
    kernels = head.init_kernels.weight[:, :, 0, 0] + extra + gather_features(out.mask_logits, out.x)
    torch.testing.assert_close(out.kernels, kernels)


@pytest.mark.parametrize("batch", BATCHES)
def test_update_head(generator, batch):
    head = heads()[1].mask_head[0]
    x, kernels, masks = (
        randn(generator, batch, 16, 5, 6),
        randn(generator, batch, 6, 16),
        randn(generator, batch, 6, 5, 6),
    )
    out = head(x, kernels, masks)
    x = F.conv2d(x, head.feat_transform.conv.weight, head.feat_transform.conv.bias)
    k = head.kernel_update_conv(gather_features(masks, x), kernels)
    attn = head.attention.attn
    q, key, v = (k @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, -1)
    mixed = []
    for part in range(2):
        s = slice(8 * part, 8 * part + 8)
        mixed.append((q[..., s] @ key[..., s].transpose(1, 2) / 8**0.5).softmax(-1) @ v[..., s])
    k = head.attention_norm(k + torch.cat(mixed, -1) @ attn.out_proj.weight.T + attn.out_proj.bias)
    hidden, last = head.ffn.layers[0][0], head.ffn.layers[1]
    k = head.ffn_norm(k + last(hidden(k).relu()))
    torch.testing.assert_close(out.kernels, k, rtol=1e-4, atol=1e-5)

    def branch(layers, value):
        return layers[1](value @ layers[0].weight.T).relu()

    torch.testing.assert_close(out.cls_logits, head.fc_cls(branch(head.cls_fcs, k)), rtol=1e-4, atol=1e-5)
    dynamic = head.fc_mask(branch(head.mask_fcs, k))
    torch.testing.assert_close(
        out.mask_logits, torch.einsum("bnc,bchw->bnhw", dynamic, x), rtol=1e-4, atol=1e-4
    )


def test_masks_between_stages_are_not_detached(generator):
    first, update = heads()
    maps = [one.requires_grad_() for one in pyramid(generator, 1)]
    stages = update(first(maps))
    stages[-1].kernels.sum().backward()
    assert update.mask_head[0].kernel_update_conv.fc_layer.weight.grad.abs().sum() > 0
    # Gathering is hard: kernels gathered under a mask send no gradient to the layers that made the mask.
    assert update.mask_head[0].fc_mask.weight.grad is None


def test_initialisation():
    first, update = heads(channels=64, num_proposals=50)
    prior = -math.log((1 - 0.01) / 0.01)
    assert torch.allclose(first.conv_seg.bias, torch.tensor(prior))
    assert first.init_kernels.weight.std().item() == pytest.approx(1, rel=0.1)
    convs = first.localization_fpn.convs_all_levels
    assert convs[3].conv2.conv.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert first.loc_convs[0].conv.weight.std().item() == pytest.approx(0.01, rel=0.1)
    head = update.mask_head[1]
    assert torch.allclose(head.fc_cls.bias, torch.tensor(prior))
    bound = math.sqrt(6 / (64 + 64))
    assert head.fc_mask.weight.abs().max().item() == pytest.approx(bound, rel=0.05)
    assert not torch.equal(head.fc_mask.weight, update.mask_head[0].fc_mask.weight)


@pytest.mark.parametrize("batch", BATCHES)
def test_costs_equal_mmdets(generator, batch):
    small, masks = 3 * randn(generator, batch, 5, 3, 4), torch.rand(batch, 4, 6, 8, generator=generator)
    logits = upsample(small)
    classes, labels = randn(generator, batch, 5, 3), torch.randint(0, 3, (batch, 4), generator=generator)
    dice, mask = mask_costs(small, masks)
    focal = focal_cost(classes, labels)
    theirs_dice = TASK_UTILS.build(dict(type="DiceCost", pred_act=True, naive_dice=False))
    theirs_focal = TASK_UTILS.build(dict(type="FocalLossCost"))
    for b in range(batch):
        predicted = InstanceData(masks=logits[b], scores=classes[b])
        wanted = InstanceData(masks=masks[b], labels=labels[b])
        torch.testing.assert_close(dice[b], theirs_dice(predicted, InstanceData(masks=masks[b])))
        torch.testing.assert_close(focal[b], theirs_focal(InstanceData(scores=classes[b]), wanted))
        p = logits[b].sigmoid()
        for n in range(5):
            for g in range(4):
                agreed = (p[n] * masks[b, g] + (1 - p[n]) * (1 - masks[b, g])).sum()
                torch.testing.assert_close(mask[b, n, g], -agreed / 48)


def test_cost_weights_padding_and_non_finite_values(generator):
    logits, classes = randn(generator, 2, 4, 3, 4), randn(generator, 2, 4, 3)
    targets = make_targets(generator, count=[3, 1])
    cost = BatchedMaskAssigner().cost(logits, classes, targets)
    dice, mask = mask_costs(logits, targets.masks)
    expected = 2 * focal_cost(classes, targets.labels) + 4 * dice + mask
    torch.testing.assert_close(cost[0], expected[0])
    torch.testing.assert_close(cost[1, :, 0], expected[1, :, 0])
    assert torch.isposinf(cost[1, :, 1:]).all()
    logits[0, 0] = torch.nan
    classes[0, 1] = torch.inf
    assert BatchedMaskAssigner().cost(logits, classes, targets)[0].isfinite().all()


def test_solve_finds_the_cheapest_pairs(generator):
    costs = torch.rand(2, 3, 3, 4, generator=generator).numpy()
    costs[:, 1, :, 2:] = np.inf
    costs[:, 2] = np.inf
    assigned, kernel_row, target_row = solve(costs)
    assert kernel_row.shape == target_row.shape == (2, 3 + 2)
    for s in range(2):
        for kernel, target in zip(kernel_row[s], target_row[s], strict=True):
            assert assigned[s, kernel // 3, kernel % 3] == target % 4
            assert kernel // 3 == target // 4
        assert (assigned[s, 2] == -1).all()
    # Three kernels and two targets: try every possible matching.
    for s in range(2):
        ways = {(i, j): costs[s, 1, i, 0] + costs[s, 1, j, 1] for i in range(3) for j in range(3) if i != j}
        best = min(ways, key=ways.get)
        assert (assigned[s, 1, best[0]], assigned[s, 1, best[1]]) == (0, 1)


def make_targets(generator, batch=2, most=3, size=(6, 8), count=None):
    return Targets(
        torch.rand(batch, most, *size, generator=generator),
        torch.randint(0, 3, (batch, most), generator=generator),
        torch.tensor(count or [most] * batch),
    )


def make_assignment(pairs, batch, kernels, most):
    """Assignment of one stage from pairs (image, kernel, target)."""
    gt = torch.full((1, batch, kernels), -1)
    for image, kernel, target in pairs:
        gt[0, image, kernel] = target
    rows = [[i * kernels + k for i, k, _ in pairs], [i * most + t for i, _, t in pairs]]
    kernel_row, target_row = torch.tensor(rows, dtype=torch.int64)
    return Assignment(gt, kernel_row[None], target_row[None])


def test_mask_losses(generator):
    targets = make_targets(generator)
    logits = randn(generator, 2, 4, 3, 4).requires_grad_()
    pairs = [(0, 1, 2), (0, 3, 0), (1, 0, 1)]
    bce = MODELS.build(dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0))
    dice = MODELS.build(dict(type="DiceLoss", loss_weight=4.0))
    mask_loss, dice_loss = mask_losses(bce, dice, logits, targets, make_assignment(pairs, 2, 4, 3), 0)
    big = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False).sigmoid()
    expected_mask, expected_dice = 0, 0
    for i, k, t in pairs:
        p, g = big[i, k], targets.masks[i, t]
        expected_mask += -(g * p.log() + (1 - g) * (1 - p).log()).mean() / 3
        d = 2 * (p * g).sum() / (p.square().sum() + 1e-3 + g.square().sum() + 1e-3)
        expected_dice += 4 * (1 - d) / 3
    torch.testing.assert_close(mask_loss, expected_mask)
    torch.testing.assert_close(dice_loss, expected_dice)


def test_mask_losses_without_a_pair_are_zero_and_connected(generator):
    logits = randn(generator, 2, 4, 3, 4).requires_grad_()
    nothing = make_assignment([], 2, 4, 0)
    targets = make_targets(generator, most=0, count=[0, 0])
    bce = MODELS.build(dict(type="CrossEntropyLoss", use_sigmoid=True))
    dice = MODELS.build(dict(type="DiceLoss"))
    losses = mask_losses(bce, dice, logits, targets, nothing, 0)
    assert [one.item() for one in losses] == [0, 0]
    sum(losses).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_class_targets(generator):
    assignment = make_assignment([(0, 1, 2), (1, 0, 1)], 2, 3, 3)
    labels = torch.tensor([[5, 6, 7], [8, 9, 4]])
    assert assignment.labels(labels, 0, background=80).tolist() == [[80, 7, 80], [9, 80, 80]]


def test_class_loss_is_focal_over_all_kernels(generator):
    _, update = heads()
    head = update.mask_head[0]
    targets = make_targets(generator)
    assignment = make_assignment([(0, 1, 2), (1, 0, 1)], 2, 4, 3)
    cls, masks = randn(generator, 2, 4, 3), randn(generator, 2, 4, 3, 4)
    output = StageOutput(cls, masks, randn(generator, 2, 4, 16))
    loss = head.loss(output, targets, assignment, 0, torch.tensor(2.0))["loss_cls"]
    p, expected = cls.sigmoid(), 0.0
    for b in range(2):
        for n in range(4):
            gt = assignment.gt[0, b, n]
            for k in range(3):
                q = p[b, n, k]
                if gt >= 0 and targets.labels[b, gt] == k:
                    expected += -0.25 * (1 - q) ** 2 * q.log()
                else:
                    expected += -0.75 * q**2 * (1 - q).log()
    torch.testing.assert_close(loss, 2 * expected / 2)


def test_the_object_of_the_later_kernel_is_painted_on_top():
    masks = torch.zeros(1, 3, 2, 4)
    masks[0, 0, :, :2] = 1
    masks[0, 1, :, 1:3] = 0.25  # soft cells are painted too
    masks[0, 2] = 1
    targets = Targets(masks, torch.tensor([[4, 5, 6]]), torch.tensor([3]))
    front = paint_segmentation(targets, make_assignment([(0, 0, 0), (0, 3, 1)], 1, 4, 3), 80)
    assert front[0, 0].tolist() == [4, 5, 5, 80]
    back = paint_segmentation(targets, make_assignment([(0, 2, 1), (0, 3, 0)], 1, 4, 3), 80)
    assert back[0, 1].tolist() == [4, 4, 5, 80]


@pytest.mark.parametrize("shape", [(64, 96), (61, 90), (1, 1), (30, 95)])
def test_quarter_size_is_bilinear(shape):
    masks = np.random.default_rng(0).integers(0, 2, (3, *shape)).astype(np.uint8)
    padded = F.pad(torch.from_numpy(masks).float(), (0, 96 - shape[1], 0, 64 - shape[0]))
    expected = F.interpolate(padded[None], (16, 24), mode="bilinear", align_corners=False)[0]
    assert torch.equal(torch.from_numpy(quarter_size(masks, 64, 96)).float() / 4, expected)


def test_targets_are_padded_to_the_largest_count(generator):
    samples = [random_sample(generator, count) for count in (2, 0, 4)]
    targets = targets_from_samples(samples, (64, 96), 3, torch.device("cpu"))
    assert targets.masks.shape == (3, 4, 16, 24)
    assert targets.count.tolist() == [2, 0, 4]
    for i, sample in enumerate(samples):
        count = len(sample.gt_instances)
        assert torch.equal(targets.labels[i, :count], sample.gt_instances.labels)
        expected = torch.from_numpy(quarter_size(sample.gt_instances.masks.masks, 64, 96)).float() / 4
        assert torch.equal(targets.masks[i, :count], expected)
        assert not targets.masks[i, count:].any()


def test_errors_of_targets_name_what_is_wrong(generator):
    sample = random_sample(generator, 2)
    sample.gt_instances.labels = torch.tensor([0, 3])
    with pytest.raises(ValueError, match=r"data_samples\[0\]: expected labels in 0..2, got \[0, 3\]"):
        targets_from_samples([sample], (64, 96), 3, torch.device("cpu"))
    sample.gt_instances.masks = BitmapMasks(np.zeros((2, 70, 96), np.uint8), 70, 96)
    with pytest.raises(ValueError, match="within the batch's 64 x 96, got 70 x 96"):
        targets_from_samples([sample], (64, 96), 3, torch.device("cpu"))
