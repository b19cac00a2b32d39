"""Mask NMS: 2 x 256 masks of 25 x 42, against a matmul IoU and a Python loop."""

import torch
from conftest import versions

from sp_fast.ops import PackedMasks, mask_nms


def ellipses(batch=2, number=256, height=25, width=42):
    random = torch.Generator().manual_seed(0)
    size = torch.tensor([height, width])
    centre = torch.rand(batch, number, 2, 1, 1, generator=random) * size[:, None, None]
    radius = (0.1 + 0.3 * torch.rand(batch, number, 2, 1, 1, generator=random)) * size[:, None, None]
    y = (torch.arange(height)[:, None] - centre[:, :, 0]) / radius[:, :, 0]
    x = (torch.arange(width) - centre[:, :, 1]) / radius[:, :, 1]
    return y.square() + x.square() <= 1, torch.rand(batch, number, generator=random)


def plain(masks, score, iou_threshold=0.5, min_area=2, max_masks=20):
    cells = masks.flatten(2).float()
    area = cells.sum(-1)
    intersection = cells @ cells.transpose(1, 2)
    iou = intersection / (area[:, :, None] + area[:, None, :] - intersection).clamp(min=1)
    result = torch.full((len(masks), max_masks), -1)
    for image in range(len(masks)):
        gone = area[image] < min_area
        kept = []
        for m in score[image].argsort(descending=True, stable=True).tolist():
            if len(kept) == max_masks:
                break
            if not gone[m]:
                kept.append(m)
                gone |= iou[image, m] > iou_threshold
        result[image, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
    return result


@versions(target=10)
def test_mask_nms(benchmark, version):
    masks, score = ellipses()
    packed = PackedMasks.pack(masks)
    assert torch.equal(mask_nms(packed, score), plain(masks, score))
    if version == "plain":
        benchmark(plain, masks, score)
    else:
        benchmark(mask_nms, packed, score)
