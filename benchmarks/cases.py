"""Benchmarks of the ops: sp_fast, plain PyTorch and other libraries on the same inputs, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.inputs import LAYOUTS, Inputs, Sizes
from sp_fast import ops
from sp_fast.ops import reference
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


def roi_align_in_fp16(features: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign of torchvision, which does not support bf16."""
    return plain.roi_average_pool(features.half(), boxes.half())


def _unpacked(function: Function) -> Function:
    return lambda packed, score, cells: function(cells, score)


def _saliency(sizes: Sizes, inputs: Inputs) -> list[Case]:
    found = []
    for layout in LAYOUTS:
        for number, grid in (("few", sizes.grid), ("many", sizes.dense_grid)):
            for dtype in sizes.dtypes if number == "few" else sizes.dtypes[:1]:

                def make(i: int, dtype: str = dtype, layout: str = layout, grid: Any = grid) -> Any:
                    return inputs.c5(i, dtype, layout), grid

                key = f"saliency_{number}_{dtype}_{layout}"
                title = f"seed saliency, {grid[0] * grid[1]:,} seeds, {dtype}, {layout}"
                found.append(Case(key, title, make, ops.seed_saliency, plain.seed_saliency))
    return found


def _masks(sizes: Sizes, inputs: Inputs) -> list[Case]:
    found = []
    for number, grid in (("few", sizes.grid), ("many", sizes.dense_grid)):
        found.append(
            Case(
                f"mask_nms_{number}",
                f"mask NMS of {grid[0] * grid[1]:,} masks per image",
                lambda i, grid=grid: inputs.masks(i, grid),
                lambda packed, score, cells: ops.mask_nms(packed, score, max_masks=sizes.kept),
                _unpacked(lambda cells, score: plain.mask_nms(cells, score, max_masks=sizes.kept)),
                compiled=False,  # its loop over masks runs on the host
            )
        )
    few = sizes.grid[0] * sizes.grid[1]
    matrix_nms = Case(
        "matrix_nms_few",
        f"matrix NMS of {few} masks per image",
        lambda i: inputs.masks(i, sizes.grid),
        lambda packed, score, cells: ops.matrix_nms(packed, score),
        _unpacked(plain.matrix_nms),
        others={"mmdet": _unpacked(mmdet_matrix_nms)},
    )
    shapes = Case(
        "shapes_few",
        f"areas and boxes of {few} masks per image",
        lambda i: inputs.masks(i, sizes.grid),
        lambda packed, score, cells: (packed.area(), packed.boxes()),
    )
    return [*found, matrix_nms, shapes]


def _proposals(sizes: Sizes, inputs: Inputs) -> list[Case]:
    proposer = SaliencyProposer(preset="paper", grid=(sizes.grid,), max_masks=sizes.kept)

    def propose(features: Tensor, grid: tuple[int, int]) -> tuple[Any, Tensor]:
        found = proposer.from_features(features)
        return found, found.masks.boxes()

    dtype, few = sizes.dtypes[0], sizes.grid[0] * sizes.grid[1]
    title = f"proposals: saliency, NMS, boxes; {few} seeds, {dtype}"

    def make(i: int) -> tuple[Tensor, tuple[int, int]]:
        return inputs.c5(i, dtype), sizes.grid

    return [Case("proposals", title, make, propose, plain.proposals, compiled=False)]


def _pooling(sizes: Sizes, inputs: Inputs) -> list[Case]:
    dtype = sizes.dtypes[0]
    in_pytorch = plain.roi_average_pool if dtype == "fp32" else reference.roi_average_pool
    found = []
    for layout in LAYOUTS:
        for wanted, passes in enumerate(("forward", "forward + backward")):

            def make(i: int, layout: str = layout, wanted: int = wanted) -> tuple[Any, ...]:
                gradient = [inputs.pooled_gradient(i, dtype)] if wanted else []
                return *gradient, inputs.p2(i, dtype, layout), inputs.boxes(i)

            key = f"roi_{'both' if wanted else 'forward'}_{layout}"
            title = f"RoI average, {sizes.boxes} boxes per image, {dtype}, {layout}, {passes}"
            others = {} if dtype == "fp32" else {"roi_align, fp16": roi_align_in_fp16}
            op = ops.roi_average_pool
            found.append(Case(key, title, make, op, in_pytorch, wanted=wanted, others=others))
    return found


def _prompts(sizes: Sizes, inputs: Inputs) -> list[Case]:
    def match_both(i: int) -> tuple[Tensor, ...]:
        return inputs.decorated_gradient(i), *inputs.matching(i)

    def loss_both(i: int) -> tuple[Tensor, ...]:
        return torch.ones((), device=inputs.device), *inputs.supervision(i)

    match, plain_match = ops.match_prompts, plain.match_prompts
    match_title = f"matching of {sizes.kernels} kernels with {sizes.prompts} prompts per image"
    loss, plain_loss = ops.kernel_supervision_loss, plain.kernel_supervision_loss
    loss_title = f"kernel loss, {sizes.stages} stages"
    return [
        Case("match_forward", f"{match_title}, forward", inputs.matching, match, plain_match),
        Case("match_both", f"{match_title}, forward + backward", match_both, match, plain_match, wanted=2),
        Case("loss_forward", f"{loss_title}, forward", inputs.supervision, loss, plain_loss),
        Case("loss_both", f"{loss_title}, forward + backward", loss_both, loss, plain_loss, wanted=2),
    ]


def cases(sizes: Sizes, device: str) -> list[Case]:
    """Every benchmark at these sizes."""
    inputs = Inputs(sizes, device)
    parts = (_saliency, _masks, _proposals, _pooling, _prompts)
    return [case for part in parts for case in part(sizes, inputs)]
