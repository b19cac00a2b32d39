"""A kernel that only counts bits."""

import triton
import triton.language as tl


@triton.jit
def count_bits(out, rounds, words: tl.constexpr):
    """Count the bits of every word of `out` `rounds` times, `words` words per program."""
    place = tl.program_id(0) * words + tl.arange(0, words)
    word = place * -1640531527
    for i in range(rounds):
        # Only one addition per count, so that counting dominates the time.
        bits = tl.inline_asm_elementwise(
            "popc.b32 $0, $1;", "=r,r", [word], dtype=tl.int32, is_pure=True, pack=1
        )
        word = word + bits + i
    tl.store(out + place, word)
