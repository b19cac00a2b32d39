"""K-Net's losses from sums of masks upsampled on the fly, against mmdet's modules on upsampled masks."""

import pytest
import torch
import torch.nn.functional as F

from sp_fast.knet import Assignment, Targets
from sp_fast.knet.losses import are_sums, mask_losses, segmentation_loss
from sp_fast.knet.masks import HalfProducts, gather_features, upsample

# isort: split
from mmdet.models.losses import CrossEntropyLoss, DiceLoss, FocalLoss

DTYPES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class OtherDice(DiceLoss):
    """Gets upsampled masks, as every module but mmdet's own."""


class OtherFocal(FocalLoss):
    """Gets upsampled logits, as every module but mmdet's own."""


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def value_and_gradient(loss, logits):
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def assert_same(one, other, dtype):
    (value, gradient), (expected, wanted) = one, other
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=4e-6, atol=1e-7)
    torch.testing.assert_close(gradient, wanted, rtol=DTYPES[dtype], atol=DTYPES[dtype] * wanted.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [(1.0, 4.0), (0.5, 0.0), (0.0, 1.0)])
def test_mask_losses_equal_mmdets(generator, dtype, weights):
    logits = (4 * torch.randn(2, 5, 6, 9, generator=generator)).to(dtype)
    masks = torch.randint(0, 5, (2, 3, 12, 18), generator=generator) / 4
    targets = Targets(masks, torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 2]))
    rows = torch.tensor([[0, 3, 4, 6, 9]]), torch.tensor([[2, 0, 1, 4, 3]])
    assignment = Assignment(torch.zeros(1, 2, 5, dtype=torch.int64), *rows)
    entropy = CrossEntropyLoss(use_sigmoid=True, loss_weight=weights[0])
    options = dict(loss_weight=weights[1], eps=0.5)
    dice, other = DiceLoss(**options), OtherDice(**options)
    assert are_sums(entropy, dice)
    assert not are_sums(entropy, other)
    for part in (0, 1):
        mine, theirs = (
            value_and_gradient(
                lambda x, d=d, part=part: mask_losses(entropy, d, x, targets, assignment, 0)[part], logits
            )
            for d in (dice, other)
        )
        assert_same(mine, theirs, dtype)


@pytest.mark.parametrize(
    ("entropy", "dice"),
    [
        (dict(use_sigmoid=True, class_weight=2.0), {}),
        (dict(use_sigmoid=True, ignore_index=0), {}),
        (dict(use_sigmoid=True, reduction="sum"), {}),
        (dict(use_sigmoid=False), {}),
        (dict(use_sigmoid=True), dict(naive_dice=True)),
        (dict(use_sigmoid=True), dict(activate=False)),
    ],
)
def test_options_that_need_upsampled_masks(entropy, dice):
    assert not are_sums(CrossEntropyLoss(**entropy), DiceLoss(**dice))


@pytest.mark.parametrize("dtype", DTYPES)
def test_segmentation_loss_equals_mmdets(generator, dtype):
    logits = (4 * torch.randn(2, 3, 5, 7, generator=generator)).to(dtype)
    painted = torch.randint(0, 4, (2, 10, 14), generator=generator)
    options = dict(alpha=0.3, loss_weight=0.5)
    mine, theirs = (
        value_and_gradient(lambda x, loss=loss: segmentation_loss(loss, x, painted), logits)
        for loss in (FocalLoss(**options), OtherFocal(**options))
    )
    assert_same(mine, theirs, dtype)


def test_segmentation_loss_with_another_gamma(generator):
    logits = torch.randn(1, 3, 5, 7, generator=generator)
    painted = torch.randint(0, 4, (1, 10, 14), generator=generator)
    got = segmentation_loss(FocalLoss(gamma=1.0), logits, painted)
    p = upsample(logits).sigmoid()
    of = F.one_hot(painted, 4)[..., :3].permute(0, 3, 1, 2).bool()
    expected = torch.where(of, -0.25 * (1 - p) * p.log(), -0.75 * p * (1 - p).log()).sum()
    torch.testing.assert_close(got, expected / (painted < 3).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_products_keep_fp32_sums(generator, dtype, monkeypatch):
    """torch.bmm has `out_dtype` on GPUs alone, so it is computed in fp32 here."""
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b, out_dtype: bmm(a.to(out_dtype), b.to(out_dtype)))
    masks = torch.randn(2, 4, 5, 6, generator=generator)
    x = torch.randn(2, 3, 5, 6, generator=generator).to(dtype)
    grad = torch.randn(2, 4, 3, generator=generator)
    inside = (masks > 0).flatten(2).to(dtype)
    mine, theirs = (
        value_and_gradient(lambda x, of=of: (of(x) * grad).sum(), x)
        for of in (
            lambda x: HalfProducts.apply(inside, x.flatten(2).transpose(1, 2)),
            lambda x: gather_features(masks, x),
        )
    )
    assert_same(mine, theirs, dtype)
