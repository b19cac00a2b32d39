"""Benchmarks of the ops: sp_fast, plain PyTorch and other libraries on the same inputs, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.inputs import LAYOUTS, Inputs, Sizes
from sp_fast import ops
from sp_fast.ops import mask_sums_reference, reference
from sp_fast.proposals import SaliencyProposer

Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One benchmark: `call(op)(*make(i))` is a call on the i-th set of inputs.

    Attributes:
        plain: the op in plain PyTorch.
        compiled: whether to time `plain` under torch.compile too.
        wanted: number of inputs that get gradients; the gradient of the result is then the first input.
            0: only the forward pass.
        others: functions of other libraries that do the same, by name.
    """

    key: str
    title: str
    make: Callable[[int], tuple[Any, ...]]
    op: Function
    plain: Function | None = None
    compiled: bool = True
    wanted: int = 0
    others: dict[str, Function] = field(default_factory=dict)

    def call(self, function: Function) -> Function:
        """The function itself, or with its backward pass if the case has one."""
        return with_gradients(function, self.wanted) if self.wanted else function


def with_gradients(function: Function, wanted: int) -> Function:
    """Forward and backward: (gradient, *inputs) -> the result and the gradients of the first inputs."""

    def both(gradient: Tensor, *inputs: Any) -> Any:
        leaves = [x.detach().requires_grad_() for x in inputs[:wanted]]
        result = function(*leaves, *inputs[wanted:])
        result = result[0] if isinstance(result, tuple) else result
        return result, torch.autograd.grad(result, leaves, gradient.to(result.dtype))

    return both


def mmdet_matrix_nms(masks: Tensor, score: Tensor) -> list[Tensor]:
    """Matrix NMS of mmdet, which takes one image at a time."""
    import sp_fast.models  # noqa: F401  (provides the mmcv ops that mmdet imports, if mmcv is not built)

    # isort: split
    from mmdet.models.layers import mask_matrix_nms

    labels = torch.zeros(score.shape[1], dtype=torch.int64, device=score.device)
    return [mask_matrix_nms(m, labels, s)[0] for m, s in zip(masks, score, strict=True)]


def words_of_parts(of: Any, masks: ops.PackedMasks, score: Tensor) -> tuple[Tensor, Tensor]:
    """Connected parts by `sp_fast.ops` or its reference."""
    parts, count = of.connected_parts(masks)
    return parts.words, count


def roi_align_in_fp16(features: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign of torchvision, which does not support bf16."""
    return plain.roi_average_pool(features.half(), boxes.half())


def _saliency(sizes: Sizes, inputs: Inputs) -> list[Case]:
    found = []
    for layout in LAYOUTS:
        for number, grid in (("few", sizes.grid), ("many", sizes.dense_grid)):
            for dtype in sizes.dtypes if number == "few" else sizes.dtypes[:1]:
                key = f"saliency_{number}_{dtype}_{layout}"
                title = f"seed saliency, {grid[0] * grid[1]:,} seeds, {dtype}, {layout}"
                make = partial(inputs.saliency, grid=grid, dtype=dtype, layout=layout)
                found.append(Case(key, title, make, ops.seed_saliency, plain.seed_saliency))
    return found


def _masks(sizes: Sizes, inputs: Inputs) -> list[Case]:
    def of_packed(function: Function) -> Function:
        return lambda packed, score, cells: function(packed, score)

    def of_cells(function: Function) -> Function:
        return lambda packed, score, cells: function(cells, score)

    nms = of_packed(partial(ops.mask_nms, max_masks=sizes.kept))
    plain_nms = of_cells(partial(plain.mask_nms, max_masks=sizes.kept))  # its loop runs on the host
    others = {"mmdet": of_cells(mmdet_matrix_nms)}
    matrix_nms, plain_matrix_nms = of_packed(ops.matrix_nms), of_cells(plain.matrix_nms)
    shapes = of_packed(lambda packed, score: (packed.area(), packed.boxes()))
    parts, plain_parts = (of_packed(partial(words_of_parts, of)) for of in (ops, reference))
    packing = of_cells(lambda cells, score: ops.PackedMasks.pack(cells).unpack())
    few, many = (partial(inputs.masks, grid=grid) for grid in (sizes.grid, sizes.dense_grid))
    of_few, of_many = (f"{h * w} masks per image" for h, w in (sizes.grid, sizes.dense_grid))
    return [
        Case("mask_nms_few", f"mask NMS of {of_few}", few, nms, plain_nms, compiled=False),
        Case("mask_nms_many", f"mask NMS of {of_many}", many, nms, plain_nms, compiled=False),
        Case("matrix_nms_few", f"matrix NMS of {of_few}", few, matrix_nms, plain_matrix_nms, others=others),
        Case("parts_few", f"connected parts of {of_few}", few, parts, plain_parts, compiled=False),
        Case("shapes_few", f"areas and boxes of {of_few}", few, shapes),
        Case("packing_few", f"packing and unpacking of {of_few}", few, packing),
    ]


def _proposals(sizes: Sizes, inputs: Inputs) -> list[Case]:
    proposer = SaliencyProposer(preset="paper", grid=(sizes.grid,), max_masks=sizes.kept)

    def propose(features: Tensor, grid: tuple[int, int]) -> tuple[Any, Tensor]:
        found = proposer.from_features(features)
        return found, found.masks.boxes()

    dtype = sizes.dtypes[0]
    title = f"proposals: saliency, NMS, boxes; {sizes.grid[0] * sizes.grid[1]} seeds, {dtype}"
    make = partial(inputs.saliency, grid=sizes.grid, dtype=dtype)
    return [Case("proposals", title, make, propose, plain.proposals, compiled=False)]


def _pooling(sizes: Sizes, inputs: Inputs) -> list[Case]:
    dtype, op = sizes.dtypes[0], ops.roi_average_pool
    in_pytorch = plain.roi_average_pool if dtype == "fp32" else reference.roi_average_pool
    others = {} if dtype == "fp32" else {"roi_align, fp16": roi_align_in_fp16}
    found = []
    for layout in LAYOUTS:
        for wanted, passes in enumerate(("forward", "forward + backward")):
            make = partial(inputs.pooling, dtype=dtype, layout=layout, backward=wanted)
            key = f"roi_{'both' if wanted else 'forward'}_{layout}"
            title = f"RoI average, {sizes.boxes} boxes per image, {dtype}, {layout}, {passes}"
            found.append(Case(key, title, make, op, in_pytorch, wanted=wanted, others=others))
    return found


def _prompts(sizes: Sizes, inputs: Inputs) -> list[Case]:
    match_title = f"matching of {sizes.kernels} kernels with {sizes.prompts} prompts per image"
    loss_title = f"kernel loss, {sizes.stages} stages"
    table = (
        ("match", match_title, inputs.matching, ops.match_prompts, plain.match_prompts),
        ("loss", loss_title, inputs.supervision, ops.kernel_supervision_loss, plain.kernel_supervision_loss),
    )
    found = []
    for key, title, make, op, in_pytorch in table:
        found.append(Case(f"{key}_forward", f"{title}, forward", make, op, in_pytorch))
        make_both, title = partial(make, backward=True), f"{title}, forward + backward"
        found.append(Case(f"{key}_both", title, make_both, op, in_pytorch, wanted=2))
    return found


def _mask_losses(sizes: Sizes, inputs: Inputs) -> list[Case]:
    def stacked(of: Any) -> Function:
        return lambda logits, masks, row: torch.stack(of.mask_pair_sums(logits, masks, row)[:3])

    number = f"{sizes.kernels} masks, {sizes.prompts} targets per image"
    pairs = f"{sizes.images * sizes.prompts} pairs, forward + backward"
    focal = partial(mask_sums_reference.upsampled_focal_loss, alpha=0.25)
    return [
        Case(
            "mask_costs",
            f"sums of the mask costs, {number}",
            inputs.image_masks,
            ops.mask_overlaps,
            mask_sums_reference.mask_overlaps,
        ),
        Case(
            "mask_losses",
            f"sums of the mask losses, {pairs}",
            inputs.mask_pairs,
            stacked(ops),
            stacked(mask_sums_reference),
            wanted=1,
        ),
        Case(
            "focal_loss",
            "focal loss of 80 class maps, forward + backward",
            inputs.class_maps,
            ops.upsampled_focal_loss,
            focal,
            wanted=1,
        ),
    ]


def attend(value: Tensor, locations: Tensor, weights: Tensor, sizes: Tensor) -> Tensor:
    """Deformable attention, the inputs with gradients first."""
    return ops.deformable_attention(value, sizes, locations, weights)


def _attention(sizes: Sizes, inputs: Inputs) -> list[Case]:
    dtype, found = sizes.dtypes[0], []
    for wanted, key, passes in ((0, "forward", "forward"), (3, "both", "forward + backward")):
        make = partial(inputs.attention, dtype=dtype, backward=bool(wanted))
        title = f"deformable attention, 3 levels, 8 heads, 4 points, {dtype}, {passes}"
        plain_op = plain.deformable_attention
        found.append(Case(f"attention_{key}", title, make, attend, plain_op, compiled=False, wanted=wanted))
    return found


# Ops that no benchmark here runs, and why.
NOT_TIMED = {
    "mask_runs": "waits for the size of its result; `make bench-pipeline` measures it with the proposals",
    "compress_runs": "called on the CPU only; measured with the proposals",
    "sample_runs": "called on the CPU only; measured with the loader",
}


def cases(sizes: Sizes, device: str) -> list[Case]:
    """Every benchmark at these sizes."""
    inputs = Inputs(sizes, device)
    parts = (_saliency, _masks, _proposals, _pooling, _prompts, _mask_losses, _attention)
    return [case for part in parts for case in part(sizes, inputs)]
