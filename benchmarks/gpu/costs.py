"""Bytes and operations that each op needs, and the lower bound of its time.

Bytes are those of a single pass that reads every input and writes every output once. Operations are those of
the definition; a multiplication and an addition count as two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.inputs import LAYOUTS, Sizes

BYTES = {"fp32": 4, "bf16": 2}
# Unit of the GPU that multiplies each input type.
PRODUCT_UNIT = {"fp32": "tf32", "bf16": "bf16"}


@dataclass(frozen=True)
class Work:
    """Bytes moved, operations by unit ("bf16", "tf32", "popcount"), and the minimum number of launches."""

    moved: int
    operations: dict[str, int] = field(default_factory=dict)
    launches: int = 1


@dataclass(frozen=True)
class Ceilings:
    """Rates measured on the device: bytes/s of a copy, operations/s by unit, seconds of an empty launch."""

    copy: float
    rates: dict[str, float]
    launch: float


def floor(work: Work, ceilings: Ceilings) -> float:
    """Approximate lower bound of the time in seconds: the largest term of memory, launches and operations."""
    terms = [work.moved / ceilings.copy, work.launches * ceilings.launch]
    terms += [number / ceilings.rates[unit] for unit, number in work.operations.items()]
    return max(terms)


def words(sizes: Sizes) -> int:
    """Number of 32-bit words of a packed mask of C5."""
    return (sizes.c5[1] * sizes.c5[2] + 31) // 32


def saliency(sizes: Sizes, seeds: int, dtype: str) -> Work:
    """Read features; write seeds, masks and scores; multiply every seed by every cell."""
    channels, height, width = sizes.c5
    cells = height * width
    moved = (cells + seeds) * channels * BYTES[dtype] + seeds * (4 * words(sizes) + 4)
    return Work(sizes.images * moved, {PRODUCT_UNIT[dtype]: 2 * sizes.images * seeds * cells * channels})


def overlaps(sizes: Sizes, masks: int, bytes_out: int) -> Work:
    """NMS: read masks and scores; intersect the words of every pair of masks and count their bits."""
    pairs = masks * (masks - 1) // 2
    moved = sizes.images * (masks * (4 * words(sizes) + 4) + bytes_out)
    return Work(moved, {"popcount": sizes.images * pairs * words(sizes)})


def roi(sizes: Sizes, dtype: str, backward: bool) -> Work:
    """Read the map, and write its gradient in the backward pass. Boxes and averages are small."""
    channels, height, width = sizes.p2
    features = sizes.images * channels * height * width * BYTES[dtype]
    small = sizes.images * sizes.boxes * (4 * 4 + channels * BYTES[dtype])
    passes = 2 if backward else 1
    return Work((features + small) * passes, launches=passes)


def matching(sizes: Sizes, backward: bool) -> Work:
    """Read kernels and prompts, write decorated kernels and indices; the reverse in the backward pass."""
    channels = sizes.p2[0]
    inputs = 4 * channels * (sizes.kernels + sizes.images * sizes.prompts)
    outputs = sizes.images * sizes.kernels * (4 * channels + 8)
    products = 2 * sizes.images * sizes.kernels * sizes.prompts * channels
    passes = 2 if backward else 1
    return Work((inputs + outputs) * passes, {"tf32": products}, passes)


def kernel_loss(sizes: Sizes, backward: bool) -> Work:
    """Read matched kernels, targets and indices; write both gradients in full in the backward pass."""
    channels = sizes.p2[0]
    matched = 4 * channels * sizes.stages * sizes.images * sizes.prompts
    targets = 4 * channels * sizes.images * sizes.prompts
    forward = matched + targets + 8 * sizes.stages * sizes.images * sizes.prompts
    if not backward:
        return Work(forward)
    of_kernels = 4 * channels * sizes.stages * sizes.images * sizes.kernels
    return Work(2 * forward + of_kernels + targets, launches=2)


def mask_sums(sizes: Sizes, maps: int, targets: int, backward: bool) -> Work:
    """Read maps at half the size of P2 and targets at its size, of a byte; backward, write the gradient."""
    cells = (sizes.p2[1] // 2) * (sizes.p2[2] // 2)
    forward = 4 * sizes.images * cells * (maps + targets)
    gradient = 4 * sizes.images * cells * maps
    return Work(2 * forward + gradient, launches=2) if backward else Work(forward)


def attention(sizes: Sizes, dtype: str, backward: bool) -> Work:
    """Read values, locations and weights, write the result; the gradients of all in the backward pass.

    Each cell is read by many points, which the caches serve; the gradient of the values is summed in fp32.
    """
    cells = sizes.images * sum(height * width for height, width in sizes.levels)
    channels = sizes.p2[0]
    points = 4 * cells * 8 * len(sizes.levels) * 4 * 3  # fp32: x, y and a weight for each of 8 heads
    maps = cells * channels * BYTES[dtype]
    if not backward:
        return Work(2 * maps + points)
    return Work(4 * maps + 4 * cells * channels + 3 * points, launches=2)


def rows(sizes: Sizes) -> dict[str, tuple[list[Work], float | None]]:
    """Work of each case, step by step, and its goal as a multiple of the floor."""
    few, many = (grid[0] * grid[1] for grid in (sizes.grid, sizes.dense_grid))
    indices, scores, cells = 8 * sizes.kept, 4 * few, sizes.c5[1] * sizes.c5[2]
    table: dict[str, tuple[list[Work], float | None]] = {
        "mask_nms_few": ([overlaps(sizes, few, indices)], 3.4),
        "mask_nms_many": ([overlaps(sizes, many, indices)], 1.4),
        "matrix_nms_few": ([overlaps(sizes, few, scores)], None),
        # Eight parts of each mask, and their number.
        "parts_few": ([Work(sizes.images * few * (9 * 4 * words(sizes) + 8))], None),
        # Areas and boxes of packed masks.
        "shapes_few": ([Work(sizes.images * few * (4 * words(sizes) + 4 + 16), launches=2)], None),
        # Cells of a byte to words, and back.
        "packing_few": ([Work(sizes.images * few * 2 * (4 * words(sizes) + cells), launches=2)], None),
        "proposals": ([saliency(sizes, few, "bf16"), overlaps(sizes, few, indices)], 2.9),
        "match_forward": ([matching(sizes, backward=False)], 3),
        "match_both": ([matching(sizes, backward=True)], 3.5),
        "loss_forward": ([kernel_loss(sizes, backward=False)], None),
        "mask_costs": ([mask_sums(sizes, sizes.kernels, sizes.prompts, backward=False)], None),
        "mask_losses": ([mask_sums(sizes, sizes.prompts, sizes.prompts, backward=True)], None),
        # Labels are int64: as many bytes as eight targets.
        "focal_loss": ([mask_sums(sizes, 80, 8, backward=True)], None),
        "attention_forward": ([attention(sizes, "bf16", backward=False)], None),
        "attention_both": ([attention(sizes, "bf16", backward=True)], None),
        "loss_both": ([kernel_loss(sizes, backward=True)], 3.5),
    }
    for layout in LAYOUTS:
        table |= {
            f"saliency_few_bf16_{layout}": ([saliency(sizes, few, "bf16")], 2.4),
            f"saliency_many_bf16_{layout}": ([saliency(sizes, many, "bf16")], 1.75),
            f"saliency_few_fp32_{layout}": ([saliency(sizes, few, "fp32")], 2.1),
            f"roi_forward_{layout}": ([roi(sizes, "bf16", backward=False)], 1.3),
            f"roi_both_{layout}": ([roi(sizes, "bf16", backward=True)], 1.35),
        }
    return table
