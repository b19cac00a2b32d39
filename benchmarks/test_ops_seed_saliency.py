"""Saliency: 2 x 2048 x 25 x 42, 256 seeds, against PyTorch's pooling, matrix product and reductions."""

import torch
import torch.nn.functional as F
from conftest import versions

from sp_fast.ops import seed_saliency


def plain(features, grid, threshold=0.5):
    seeds = F.adaptive_avg_pool2d(features, grid).flatten(2).transpose(1, 2)
    y = seeds @ features.flatten(2)
    low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
    y = (y - low) / (high - low)
    masks = y >= threshold
    score = (y * masks).sum(-1) / masks.sum(-1)
    return masks.view(*masks.shape[:2], *features.shape[2:]), score, seeds


@versions(target=1.2)
def test_seed_saliency(benchmark, version):
    features = torch.randn(2, 2048, 25, 42, generator=torch.Generator().manual_seed(0)).relu()
    grid = (16, 16)
    torch.testing.assert_close(seed_saliency(features, grid).score, plain(features, grid)[1])
    benchmark(plain if version == "plain" else seed_saliency, features, grid)
