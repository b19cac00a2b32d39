"""Kernel supervision loss: 3 stages, 2 images, 100 kernels of 256 channels, 20 proposals."""

import torch
import torch.nn.functional as F
from conftest import versions

from sp_fast.ops import kernel_supervision_loss


def plain(kernels, targets, index):
    matched = index >= 0
    chosen = kernels.gather(2, index.clamp(min=0)[..., None].expand(-1, -1, -1, kernels.shape[3]))
    loss = (1 - F.cosine_similarity(chosen, targets[None], dim=-1)) * matched
    return (loss.sum((1, 2)) / matched.sum((1, 2)).clamp(min=1)).sum()


def inputs(requires_grad):
    random = torch.Generator().manual_seed(0)
    kernels = torch.randn(3, 2, 100, 256, generator=random, requires_grad=requires_grad)
    targets = torch.randn(2, 20, 256, generator=random, requires_grad=requires_grad)
    index = torch.stack([torch.randperm(100, generator=random)[:20] for _ in range(6)]).view(3, 2, 20)
    index[:, 1, 12:] = -1
    torch.testing.assert_close(
        kernel_supervision_loss(kernels, targets, index), plain(kernels, targets, index)
    )
    return kernels, targets, index


@versions(target=1)
def test_kernel_supervision_loss_forward(benchmark, version):
    benchmark(plain if version == "plain" else kernel_supervision_loss, *inputs(requires_grad=False))


@versions(target=1)
def test_kernel_supervision_loss_forward_and_backward(benchmark, version):
    kernels, targets, index = inputs(requires_grad=True)

    def step(loss):
        return torch.autograd.grad(loss(kernels, targets, index), (kernels, targets))

    benchmark(step, plain if version == "plain" else kernel_supervision_loss)
