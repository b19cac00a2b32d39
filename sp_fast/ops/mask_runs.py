"""Run lengths of masks at image size, straight from saliency at the size of the feature map."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.ops.checks import FLOATS, check_int, check_tensor
from sp_fast.ops.extension import register

_PIXELS_AT_ONCE = 2**24  # 64 MiB of float32
_MOST_PIXELS = 2**31 - 1  # a run may be as long as the image


class MaskRuns(NamedTuple):
    """Run lengths of K masks in pixels: int32 [R], one mask after another; and how many of each, int64 [K].

    As in COCO, they count down the columns of the image, the first run of a mask being outside of it.
    """

    lengths: Tensor
    number: Tensor


def image_masks(saliency: Tensor, size: tuple[int, int], threshold: float | Tensor) -> Tensor:
    """Resize saliency bilinearly to image size, then threshold it.

    Resizing the saliency rather than the mask gives smooth outlines that fit objects better.

    Args:
        saliency: floating point [K, h, w], the valid part of the map.
        size: height and width of the image in pixels.
        threshold: least saliency inside a mask, in [0, 1]; a number, or one per mask, [K].

    Returns:
        bool [K, H, W], stored column by column like COCO's run lengths.
    """
    height, width = size
    if not len(saliency):
        return torch.zeros(0, height, width, dtype=torch.bool, device=saliency.device)
    columns = saliency.float().transpose(1, 2)[None]  # [1, K, w, h]
    resized = F.interpolate(columns, size=(width, height), mode="bilinear", align_corners=False)[0]
    if isinstance(threshold, Tensor):
        threshold = threshold[:, None, None]
    return (resized >= threshold).transpose(1, 2)


def _runs_of(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Run lengths of masks, bool [K, H, W]."""
    inside = F.pad(masks.transpose(1, 2).flatten(1), (1, 0))
    ends = F.pad(inside[:, 1:] != inside[:, :-1], (0, 1), value=True)
    mask, place = ends.nonzero(as_tuple=True)
    same = F.pad(mask[1:] == mask[:-1], (1, 0)) if len(mask) else mask.bool()
    before = F.pad(place, (1, 0))[:-1]
    return (place - torch.where(same, before, 0)).int(), ends.sum(1)


def _runs_reference(saliency: Tensor, threshold: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    at_once = max(1, _PIXELS_AT_ONCE // (height * width))
    parts = zip(saliency.split(at_once), threshold.split(at_once), strict=True)
    found = [_runs_of(image_masks(part, (height, width), limit)) for part, limit in parts]
    return torch.cat([lengths for lengths, _ in found]), torch.cat([number for _, number in found])


def _runs_fake(saliency: Tensor, threshold: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    runs = torch.library.get_ctx().new_dynamic_size()
    return (
        saliency.new_empty(runs, dtype=torch.int32),
        saliency.new_empty(saliency.shape[0], dtype=torch.int64),
    )


def _compress_reference(lengths: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    texts = [_compressed(runs.tolist()) for runs in lengths.split(number.tolist())]
    text = torch.tensor([code for one in texts for code in one], dtype=torch.uint8)
    return text, torch.tensor([len(one) for one in texts], dtype=torch.int64)


def _compressed(runs: list[int]) -> list[int]:
    """Characters of pycocotools' compressed run lengths, see `sp_fast.data.rle.rle_pixels`."""
    codes = []
    for place, run in enumerate(runs):
        rest, more = run - runs[place - 2] if place > 2 else run, True
        while more:
            group, rest = rest & 0x1F, rest >> 5
            more = rest != (-1 if group & 0x10 else 0)
            codes.append(48 + (group | 0x20 if more else group))
    return codes


def _compress_fake(lengths: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    characters = torch.library.get_ctx().new_dynamic_size()
    return lengths.new_empty(characters, dtype=torch.uint8), torch.empty_like(number)


# On GPUs, too, the resized maps stay there: only the run lengths leave.
_runs_op = register("mask_runs", _runs_fake, _runs_reference, _runs_reference)
_compress_op = register("compress_runs", _compress_fake, _compress_reference)


def mask_runs(saliency: Tensor, threshold: Tensor, size: tuple[int, int]) -> MaskRuns:
    """Run lengths of `image_masks`, on a CPU without a map at image size.

    On a CPU, pixels whose saliency equals the threshold but for rounding may fall on the other side.

    Args:
        saliency: fp32, fp16 or bf16 [K, h, w], the valid part of the map.
        threshold: least saliency inside each mask, fp32 [K].
        size: height and width of the image in pixels, fewer than 2^31 in all.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape, device or value.
    """
    check_tensor("saliency", saliency, ("K", "h", "w"), FLOATS)
    check_tensor("threshold", threshold, (len(saliency),), (torch.float32,), like=saliency)
    for name, side, cells in zip(("height", "width"), size, saliency.shape[1:], strict=True):
        check_int(f"size: {name}", side, 1)
        check_int(f"saliency: {name}", cells, 1)
    if size[0] * size[1] > _MOST_PIXELS:
        raise ValueError(f"size: expected at most 2^31 - 1 pixels, got {size[0]} x {size[1]}")
    if not len(saliency):
        return MaskRuns(saliency.new_empty(0, dtype=torch.int32), saliency.new_empty(0, dtype=torch.int64))
    return MaskRuns(*_runs_op(saliency.detach(), threshold.detach(), *size))


def compress_runs(runs: MaskRuns) -> list[str]:
    """Compress run lengths as pycocotools does: one string per mask."""
    text, characters = _compress_op(runs.lengths.cpu(), runs.number.cpu())
    whole, start, found = text.numpy().tobytes().decode("ascii"), 0, []
    for length in characters.tolist():
        found.append(whole[start : start + length])
        start += length
    return found
