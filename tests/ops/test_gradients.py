"""The backward passes in plain PyTorch against autograd through the reference."""

import pytest
import torch

from sp_fast.ops import gradients, reference


@pytest.mark.parametrize("count", [None, torch.tensor([4, 1])])
def test_roi_average_pool(count):
    features = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    corner = torch.rand(2, 4, 2) * 8 - 1
    boxes = torch.cat([corner, corner + torch.rand(2, 4, 2) * 5], -1)
    boxes[0, 1, 2] = torch.nan
    pooled = reference.roi_average_pool(features, boxes, count)
    grad = torch.randn_like(pooled)
    (expected,) = torch.autograd.grad(pooled, features, grad)
    got = gradients.roi_average_pool_backward(grad, boxes, count, 6, 7)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_match_prompts():
    kernels = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    prompts = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    decorated, index = reference.match_prompts(kernels, prompts, torch.tensor([4, 0, 2]))
    grad = torch.randn_like(decorated)
    expected = torch.autograd.grad(decorated, (kernels, prompts), grad)
    got = gradients.match_prompts_backward(grad, index, 4, True, True)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kernel_supervision_loss(reduction):
    kernels = torch.randn(3, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    index = torch.randint(-1, 6, (3, 2, 4))
    index[..., 3] = index[..., 0]  # two proposals match one kernel
    index[0, 0] = -1
    loss = reference.kernel_supervision_loss(kernels, targets, index, reduction=reduction)
    grad = torch.tensor(1.5, dtype=torch.float64)
    expected = torch.autograd.grad(loss, (kernels, targets), grad)
    got = gradients.kernel_supervision_loss_backward(
        grad, kernels.detach(), targets.detach(), index, reduction == "mean"
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
