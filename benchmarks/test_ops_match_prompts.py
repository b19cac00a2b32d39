"""Prompt-kernel matching: 100 kernels of 256 channels, 2 images of 20 prompts."""

import torch
import torch.nn.functional as F
from conftest import versions

from sp_fast.ops import match_prompts


def plain(kernels, prompts, count):
    cosine = F.normalize(kernels, dim=-1) @ F.normalize(prompts, dim=-1).transpose(1, 2)  # [B, N, L]
    padding = torch.arange(prompts.shape[1], device=prompts.device) >= count[:, None]
    index = cosine.masked_fill(padding[:, None], -torch.inf).argmax(-1)
    chosen = prompts.gather(1, index[:, :, None].expand(-1, -1, prompts.shape[2]))
    return kernels + chosen, index


def inputs(requires_grad):
    random = torch.Generator().manual_seed(0)
    kernels = torch.randn(100, 256, generator=random, requires_grad=requires_grad)
    prompts = torch.randn(2, 20, 256, generator=random, requires_grad=requires_grad)
    count = torch.tensor([20, 12])
    assert torch.equal(match_prompts(kernels, prompts, count)[1], plain(kernels, prompts, count)[1])
    return kernels, prompts, count


@versions(target=1)
def test_match_prompts_forward(benchmark, version):
    benchmark(plain if version == "plain" else match_prompts, *inputs(requires_grad=False))


@versions(target=1)
def test_match_prompts_forward_and_backward(benchmark, version):
    kernels, prompts, count = inputs(requires_grad=True)
    grad = torch.ones(2, 100, 256)

    def step(match):
        return torch.autograd.grad(match(kernels, prompts, count)[0], (kernels, prompts), grad)

    benchmark(step, plain if version == "plain" else match_prompts)
