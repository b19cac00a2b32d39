"""How many 32-bit words a GPU counts the bits of in a second: the unit that overlaps of masks need."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS_A_PROGRAM = 4096
ROUNDS = 256


@triton.jit
def _count(out, rounds, words: tl.constexpr):
    place = tl.program_id(0) * words + tl.arange(0, words)
    word = place * -1640531527
    for i in range(rounds):
        # One addition a count, so that the counting is what takes the time.
        bits = tl.inline_asm_elementwise(
            "popc.b32 $0, $1;", "=r,r", [word], dtype=tl.int32, is_pure=True, pack=1
        )
        word = word + bits + i
    tl.store(out + place, word)


def make_words() -> Tensor:
    """Room for the result: 16 programs for every multiprocessor."""
    programs = 16 * torch.cuda.get_device_properties().multi_processor_count
    return torch.zeros(programs * WORDS_A_PROGRAM, dtype=torch.int32, device="cuda")


def count_bits(out: Tensor) -> int:
    """Count the bits of every word ROUNDS times; returns the number of counts."""
    _count[(out.numel() // WORDS_A_PROGRAM,)](out, ROUNDS, WORDS_A_PROGRAM, num_warps=8)
    return out.numel() * ROUNDS
