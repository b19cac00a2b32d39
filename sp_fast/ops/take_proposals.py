"""Selection of the masks, scores and seeds that become proposals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sp_fast.ops import reference
from sp_fast.ops.checks import FLOATS, check_tensor
from sp_fast.ops.extension import register
from sp_fast.ops.packed_masks import PackedMasks, check_masks


class TakenProposals(NamedTuple):
    """Result of `take_proposals`: masks [B, K], score fp32 [B, K], seeds [B, K, D], count int64 [B]."""

    masks: PackedMasks
    score: Tensor
    seeds: Tensor
    count: Tensor


def _fake(
    words: Tensor, score: Tensor, seeds: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, most = chosen.shape
    return (
        words.new_empty(batch, most, words.shape[2]),
        score.new_empty(batch, most),
        seeds.new_empty(batch, most, seeds.shape[2]),
        chosen.new_empty(batch),
    )


_op = register("take_proposals", _fake, reference.take_proposals)


def take_proposals(masks: PackedMasks, score: Tensor, seeds: Tensor, chosen: Tensor) -> TakenProposals:
    """Take the rows that non-maximum suppression kept, in one pass. Not differentiable.

    Args:
        masks: PackedMasks [B, M].
        score: score of each mask, fp32 [B, M].
        seeds: seed of each mask, fp32, fp16 or bf16 [B, M, D].
        chosen: index of each proposal, int64 [B, K]; -1, or any other index outside [0, M), gives an empty
            mask, score 0 and a zero vector.

    Returns:
        TakenProposals(masks: PackedMasks [B, K], score: fp32 [B, K], seeds: [B, K, D], count: int64 [B]).

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape or device.
    """
    check_masks("masks", masks, 2)
    batch, number = masks.shape
    check_tensor("score", score, (batch, number), (torch.float32,), like=masks.words)
    check_tensor("seeds", seeds, (batch, number, "D"), FLOATS, like=masks.words)
    check_tensor("chosen", chosen, (batch, "K"), (torch.int64,), like=masks.words)
    words, score, seeds, count = _op(masks.words, score.detach(), seeds.detach(), chosen)
    return TakenProposals(PackedMasks(words, masks.height, masks.width), score, seeds, count)
