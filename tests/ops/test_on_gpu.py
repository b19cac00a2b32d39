"""Every op on a GPU: the same as on the CPU, and without waiting for the device."""

import pytest
import torch
from op_cases import generator

from sp_fast.ops import (
    PackedMasks,
    kernel_supervision_loss,
    mask_nms,
    match_prompts,
    matrix_nms,
    roi_average_pool,
    seed_saliency,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

RANDOM = generator(0)
FEATURES = torch.randn(2, 16, 9, 13, generator=RANDOM)
MASKS = PackedMasks.pack(torch.rand(2, 12, 9, 13, generator=RANDOM) < 0.4)
SCORE = torch.rand(2, 12, generator=RANDOM)
CORNERS = torch.rand(2, 5, 2, generator=RANDOM) * 6
BOXES = torch.cat([CORNERS, CORNERS + 3], dim=-1)
COUNT = torch.tensor([5, 2])
KERNELS, PROMPTS = torch.randn(2, 7, 16, generator=RANDOM), torch.randn(2, 5, 16, generator=RANDOM)
STAGES = torch.randn(3, 2, 7, 16, generator=RANDOM)
INDEX = torch.randint(-1, 7, (3, 2, 5), generator=RANDOM)


def saliency(features, valid):
    result = seed_saliency(features, (3, 4), valid=valid, similarity="cosine")
    return result.masks.words, result.score, result.seeds


CASES = {
    "seed_saliency": (saliency, (FEATURES, torch.tensor([[9, 13], [6, 8]]))),
    "mask_nms": (lambda words, score: mask_nms(PackedMasks(words, 9, 13), score), (MASKS.words, SCORE)),
    "matrix_nms": (lambda words, score: matrix_nms(PackedMasks(words, 9, 13), score), (MASKS.words, SCORE)),
    "roi_average_pool": (roi_average_pool, (FEATURES, BOXES, COUNT)),
    "match_prompts": (match_prompts, (KERNELS, PROMPTS, COUNT)),
    "kernel_supervision_loss": (kernel_supervision_loss, (STAGES, PROMPTS, INDEX)),
    "boxes and areas": (
        lambda words: (PackedMasks(words, 9, 13).boxes(), PackedMasks(words, 9, 13).area()),
        (MASKS.words,),
    ),
}


def run(op, inputs, device):
    """The results, then the gradients of the inputs that have any."""
    leaves = [x.to(device).detach().requires_grad_(x.is_floating_point()) for x in inputs]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
    try:
        results = op(*leaves)
        results = list(results) if isinstance(results, tuple) else [results]
        loss = [one.square().sum() for one in results if one.requires_grad]
        wanted = [x for x in leaves if x.requires_grad] if loss else []
        if wanted:
            results += torch.autograd.grad(sum(loss), wanted, allow_unused=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return results


@pytest.mark.parametrize("name", CASES)
def test_same_as_on_the_cpu(name):
    op, inputs = CASES[name]
    for got, expected in zip(run(op, inputs, "cuda"), run(op, inputs, "cpu"), strict=True):
        if expected is None:
            assert got is None or not got.any()
        else:
            assert got.is_cuda
            torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-5)
