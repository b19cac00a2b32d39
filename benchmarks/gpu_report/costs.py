"""What each op has to move and to compute, the floor that follows, and the goal.

Bytes are those of a single pass: every input read once, every output written once. Operations are those
of the definition; a multiplication and an addition count as two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BYTES = {"fp32": 4, "bf16": 2}
# Unit of the GPU that multiplies each input type.
PRODUCT_UNIT = {"fp32": "tf32", "bf16": "bf16"}


@dataclass(frozen=True)
class Sizes:
    """A batch of images: C5 and P2 as (channels, height, width), and the numbers of things in an image."""

    images: int = 12
    c5: tuple[int, int, int] = (2048, 25, 42)
    p2: tuple[int, int, int] = (256, 200, 334)
    grid: tuple[int, int] = (16, 16)
    dense_grid: tuple[int, int] = (25, 42)
    boxes: int = 30
    kernels: int = 100
    prompts: int = 20
    stages: int = 3
    kept: int = 20


# 12 images of 800 x 1333, and a batch small enough for a try on a CPU.
FULL = Sizes()
SMALL = Sizes(
    images=2, c5=(16, 5, 7), p2=(8, 20, 33), grid=(2, 3), dense_grid=(5, 7), boxes=3, kernels=10, prompts=4
)


@dataclass(frozen=True)
class Work:
    """Bytes moved, operations by unit ("bf16", "tf32", "popcount"), and kernel launches at least."""

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
    """Seconds that no version of the work falls below by much: the largest of its terms."""
    terms = [work.moved / ceilings.copy, work.launches * ceilings.launch]
    terms += [number / ceilings.rates[unit] for unit, number in work.operations.items()]
    return max(terms)


def words(cells: int) -> int:
    """32-bit words of a packed mask."""
    return (cells + 31) // 32


def saliency(sizes: Sizes, seeds: int, dtype: str) -> Work:
    """Features read, seeds written, masks and scores written; every seed times every cell."""
    channels, height, width = sizes.c5
    cells = height * width
    moved = sizes.images * (
        channels * cells * BYTES[dtype] + seeds * channels * BYTES[dtype] + seeds * (4 * words(cells) + 4)
    )
    return Work(moved, {PRODUCT_UNIT[dtype]: 2 * sizes.images * seeds * cells * channels})


def overlaps(sizes: Sizes, masks: int, moved_out: int) -> Work:
    """Masks and scores read; the words of every pair of masks intersected and their bits counted."""
    width = words(sizes.c5[1] * sizes.c5[2])
    pairs = masks * (masks - 1) // 2
    return Work(
        sizes.images * (masks * (4 * width + 4) + moved_out), {"popcount": sizes.images * pairs * width}
    )


def mask_nms(sizes: Sizes, masks: int) -> Work:
    """Mask NMS: indices of those kept come out."""
    return overlaps(sizes, masks, 8 * sizes.kept)


def matrix_nms(sizes: Sizes, masks: int) -> Work:
    """Matrix NMS: a score for every mask comes out."""
    return overlaps(sizes, masks, 4 * masks)


def shapes(sizes: Sizes, masks: int) -> Work:
    """Areas and boxes of packed masks."""
    width = words(sizes.c5[1] * sizes.c5[2])
    return Work(sizes.images * masks * (4 * width + 4 + 16), launches=2)


def roi(sizes: Sizes, dtype: str, backward: bool) -> Work:
    """The map is read; for the backward its gradient is written. Boxes and averages are small beside it."""
    channels, height, width = sizes.p2
    features = sizes.images * channels * height * width * BYTES[dtype]
    small = sizes.images * sizes.boxes * (4 * 4 + channels * BYTES[dtype])
    return Work((features + small) * (2 if backward else 1), launches=2 if backward else 1)


def matching(sizes: Sizes, backward: bool) -> Work:
    """Kernels and prompts read, decorated kernels and indices written; the backward the other way round."""
    channels = sizes.p2[0]
    inputs = 4 * channels * (sizes.kernels + sizes.images * sizes.prompts)
    outputs = sizes.images * sizes.kernels * (4 * channels + 8)
    products = 2 * sizes.images * sizes.kernels * sizes.prompts * channels
    return Work((inputs + outputs) * (2 if backward else 1), {"tf32": products}, 2 if backward else 1)


def kernel_loss(sizes: Sizes, backward: bool) -> Work:
    """The matched kernels and the targets read; for the backward both gradients are written whole."""
    channels = sizes.p2[0]
    matched = 4 * channels * sizes.stages * sizes.images * sizes.prompts
    targets = 4 * channels * sizes.images * sizes.prompts
    index = 8 * sizes.stages * sizes.images * sizes.prompts
    forward = matched + targets + index
    if not backward:
        return Work(forward)
    gradients = 4 * channels * sizes.stages * sizes.images * sizes.kernels + targets
    return Work(2 * forward + gradients, launches=2)


@dataclass(frozen=True)
class Row:
    """A row of the table: what is measured, its work, and the goal in microseconds, if there is one."""

    key: str
    title: str
    work: tuple[Work, ...]
    goal: float | None = None

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds: the sum over steps that wait for one another."""
        return sum(floor(work, ceilings) for work in self.work)


def rows(sizes: Sizes) -> list[Row]:
    """The table, in its order."""
    few = sizes.grid[0] * sizes.grid[1]
    many = sizes.dense_grid[0] * sizes.dense_grid[1]
    table = []
    for key, layout in (("nchw", "NCHW"), ("channels_last", "channels-last")):
        table += [
            Row(
                f"saliency_few_bf16_{key}",
                f"seed saliency, {few} seeds, bf16, {layout}",
                (saliency(sizes, few, "bf16"),),
                40,
            ),
            Row(
                f"saliency_many_bf16_{key}",
                f"seed saliency, {many:,} seeds, bf16, {layout}",
                (saliency(sizes, many, "bf16"),),
                120,
            ),
            Row(
                f"saliency_few_fp32_{key}",
                f"seed saliency, {few} seeds, fp32, {layout}",
                (saliency(sizes, few, "fp32"),),
                70,
            ),
        ]
    table += [
        Row("mask_nms_few", f"mask NMS of {few} masks an image", (mask_nms(sizes, few),), 12),
        Row("mask_nms_many", f"mask NMS of {many:,} masks an image", (mask_nms(sizes, many),), 80),
        Row("matrix_nms_few", f"matrix NMS of {few} masks an image", (matrix_nms(sizes, few),)),
        Row("shapes_few", f"areas and boxes of {few} masks an image", (shapes(sizes, few),)),
        Row(
            "proposals",
            f"proposals: saliency, NMS, boxes; {few} seeds, bf16",
            (saliency(sizes, few, "bf16"), mask_nms(sizes, few)),
            60,
        ),
    ]
    for key, layout in (("nchw", "NCHW"), ("channels_last", "channels-last")):
        table += [
            Row(
                f"roi_forward_{key}",
                f"RoI average, {sizes.boxes} boxes an image, bf16, {layout}, forward",
                (roi(sizes, "bf16", False),),
                125,
            ),
            Row(
                f"roi_both_{key}",
                f"RoI average, {sizes.boxes} boxes an image, bf16, {layout}, forward + backward",
                (roi(sizes, "bf16", True),),
                260,
            ),
        ]
    matched = f"matching of {sizes.kernels} kernels with {sizes.prompts} prompts an image"
    return [
        *table,
        Row("match_forward", f"{matched}, forward", (matching(sizes, False),), 6),
        Row("match_both", f"{matched}, forward + backward", (matching(sizes, True),), 14),
        Row(
            "loss_both",
            f"kernel loss, {sizes.stages} stages, forward + backward",
            (kernel_loss(sizes, True),),
            14,
        ),
    ]
