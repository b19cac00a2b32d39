"""Masks from compressed run lengths, at chosen rows and columns only."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops import packing
from sp_fast.ops.checks import check_int, check_tensor, check_values
from sp_fast.ops.extension import register
from sp_fast.ops.packed_masks import PackedMasks
from sp_fast.ops.packing import words_for


def _fake(text: Tensor, ends: Tensor, height: int, width: int, rows: Tensor, columns: Tensor) -> Tensor:
    return ends.new_empty(len(ends), words_for(len(columns), len(rows)), dtype=torch.int32)


def _reference(text: Tensor, ends: Tensor, height: int, width: int, rows: Tensor, columns: Tensor) -> Tensor:
    sampled = torch.zeros(len(ends), len(columns), len(rows), dtype=torch.bool)
    starts = [0, *ends.tolist()][:-1]
    for k, (start, end) in enumerate(zip(starts, ends.tolist(), strict=True)):
        runs = _run_lengths(bytes(text[start:end].tolist()))
        if runs is None or sum(runs) != height * width:
            raise ValueError(
                f"text: mask {k} is damaged: expected compressed run lengths of {height} x {width} pixels"
            )
        inside = torch.arange(len(runs)) % 2 == 1
        mask = inside.repeat_interleave(torch.tensor(runs, dtype=torch.int64)).reshape(width, height)
        if height and width:
            chosen = mask[columns.clamp(min=0)][:, rows.clamp(min=0)]
            sampled[k] = chosen & (columns >= 0)[:, None] & (rows >= 0)
    return packing.pack_masks(sampled)


def _run_lengths(text: bytes) -> list[int] | None:
    """The numbers in a string of pycocotools; None if it is damaged."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = character - 48
        if not 0 <= group < 64 or shift > 55:
            return None
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        value += runs[-2] if len(runs) > 2 else 0
        if value < 0:
            return None
        runs.append(value)
        value = shift = 0
    return None if shift else runs


_op = register("sample_runs", _fake, _reference)


def sample_runs(
    text: Tensor, ends: Tensor, height: int, width: int, rows: Tensor, columns: Tensor
) -> PackedMasks:
    """Cells of masks at the given rows and columns, from COCO's compressed run lengths. On the CPU only.

    Nearest-neighbour resizing, flips, crops and padding choose rows and columns, so a mask in any of these
    forms is made in one pass, without one of full size in between. Cell (c, r) of result n is

        M_n[rows[r], columns[c]], or 0 where rows[r] or columns[c] is -1.

    Args:
        text: strings of pycocotools, one after another, uint8 [T].
        ends: end of each mask's string in `text`, int64 [n], ascending.
        height: rows of the encoded masks.
        width: columns of the encoded masks.
        rows: row of the encoded mask for each row of the result, int64 [R]; -1 for none.
        columns: the same for columns, int64 [C].

    Returns:
        PackedMasks [n] of C rows and R columns: transposed, as run lengths go down the columns.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: a wrong shape or device, a row or column outside the masks, or a damaged string.
    """
    check_int("height", height, 0)
    check_int("width", width, 0)
    check_tensor("text", text, ("T",), (torch.uint8,))
    if text.device.type != "cpu":
        raise ValueError(f"text: expected device cpu, got {text.device}; move the masks there afterwards")
    check_tensor("ends", ends, ("n",), (torch.int64,), like=text)
    for name, lines, limit in (("rows", rows, height), ("columns", columns, width)):
        check_tensor(name, lines, (name[0].upper(),), (torch.int64,), like=text)
        check_values(name, lines, -1, limit - 1)
    check_values("ends", ends, 0, len(text))
    return PackedMasks(_op(text, ends, height, width, rows, columns), len(columns), len(rows))
