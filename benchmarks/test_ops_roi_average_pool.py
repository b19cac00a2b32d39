"""RoI average, forward and backward: 2 x 256 x 200 x 334, 30 boxes an image.

Against torchvision's roi_align to 1 x 1 with one sample a cell, which is the same on whole cells.
"""

import torch
from conftest import versions
from torchvision.ops import roi_align

from sp_fast.ops import roi_average_pool


def plain(features, boxes):
    pooled = roi_align(features, list(boxes), 1, sampling_ratio=-1, aligned=True)
    return pooled.view(*boxes.shape[:2], features.shape[1])


@versions(target=10)
def test_roi_average_pool(benchmark, version):
    random = torch.Generator().manual_seed(0)
    features = torch.rand(2, 256, 200, 334, generator=random).requires_grad_()
    size = torch.tensor([334, 200])
    low = (torch.rand(2, 30, 2, generator=random) * (size - 1)).floor()
    high = low + 1 + (torch.rand(2, 30, 2, generator=random) * (size - low)).floor()
    boxes = torch.cat([low, torch.minimum(high, size)], -1)
    grad = torch.rand(2, 30, 256, generator=random)

    def step(pool):
        pooled = pool(features, boxes)
        return pooled, torch.autograd.grad(pooled, features, grad)[0]

    if version == "sp_fast":
        for got, expected in zip(step(roi_average_pool), step(plain), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    benchmark.pedantic(step, (plain if version == "plain" else roi_average_pool,), rounds=5, warmup_rounds=1)
