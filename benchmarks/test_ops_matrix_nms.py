"""Matrix NMS: 2 x 256 masks of 25 x 42, against SOLOv2's formula in PyTorch."""

import torch
from conftest import versions
from test_ops_mask_nms import ellipses

from sp_fast.ops import PackedMasks, matrix_nms


def plain(masks, score, sigma=2.0):
    ranked, order = score.sort(descending=True, stable=True)
    cells = masks.flatten(2).float().gather(1, order[:, :, None].expand(-1, -1, masks[0, 0].numel()))
    area = cells.sum(-1)
    intersection = cells @ cells.transpose(1, 2)
    iou = (intersection / (area[:, :, None] + area[:, None, :] - intersection).clamp(min=1)).triu(1)
    most = iou.amax(1)[:, :, None]
    decay = (torch.exp(-sigma * iou.square()) / torch.exp(-sigma * most.square())).amin(1)
    return torch.empty_like(score).scatter_(1, order, ranked * decay)


@versions(target=1)
def test_matrix_nms(benchmark, version):
    masks, score = ellipses()
    packed = PackedMasks.pack(masks)
    torch.testing.assert_close(matrix_nms(packed, score), plain(masks, score))
    if version == "plain":
        benchmark(plain, masks, score)
    else:
        benchmark(matrix_nms, packed, score)
