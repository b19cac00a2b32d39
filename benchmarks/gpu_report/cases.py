"""The rows of the table as calls: sp_fast's op, the same in plain PyTorch, and what others offer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import test_ops_kernel_supervision_loss as loss_benchmark
import test_ops_mask_nms as nms_benchmark
import test_ops_match_prompts as matching_benchmark
import test_ops_matrix_nms as matrix_nms_benchmark
import test_ops_seed_saliency as saliency_benchmark
import torch
from torch import Tensor

from gpu_report import peers
from gpu_report.costs import Row, Sizes, rows
from gpu_report.inputs import Inputs
from sp_fast.ops import (
    kernel_supervision_loss,
    mask_nms,
    match_prompts,
    matrix_nms,
    reference,
    roi_average_pool,
    seed_saliency,
)
from sp_fast.proposals import SaliencyProposer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# All sets of inputs together are several times as large as the L2 cache of an H200, unless they are many.
ROTATED_BYTES = 256 * 2**20
MOST_SETS = 64


@dataclass(frozen=True)
class Peer:
    """Somebody else's function for the same work; `prepare` turns a case's inputs into its own, untimed."""

    call: Callable[..., Any]
    prepare: Callable[..., tuple[Any, ...]] = lambda *inputs: inputs


@dataclass
class Case:
    """One row: `call(op)(*make(i))` is a call on the i-th set of inputs.

    Attributes:
        plain: the same in plain PyTorch.
        not_compiled: why `plain` is not compiled; empty where it is.
        wanted: with a backward pass, the number of inputs that get gradients; the gradient of the result then
            comes first among the inputs. 0: the forward pass alone.
        peers: what others offer for it, by name.
    """

    row: Row
    make: Callable[[int], tuple[Any, ...]]
    op: Callable[..., Any]
    plain: Callable[..., Any] | None = None
    not_compiled: str = ""
    wanted: int = 0
    peers: dict[str, Peer] = field(default_factory=dict)

    @property
    def sets(self) -> int:
        """Number of sets of inputs that calls take in turn."""
        moved = sum(work.moved for work in self.row.work)
        return min(max(2, -(-ROTATED_BYTES // moved)), MOST_SETS)

    def call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as this row calls it: as it is, or with its backward pass."""
        return with_gradients(function, self.wanted) if self.wanted else function


def with_gradients(function: Callable[..., Any], wanted: int) -> Callable[..., Any]:
    """Forward and backward: (gradient, *inputs) -> the result, and the gradients of the first inputs."""

    def both(gradient: Tensor, *inputs: Any) -> Any:
        leaves = [x.detach().requires_grad_() for x in inputs[:wanted]]
        result = function(*leaves, *inputs[wanted:])
        result = result[0] if isinstance(result, tuple) else result
        return result, torch.autograd.grad(result, leaves, gradient)

    return both


def _plain_proposals(features: Tensor, grid: tuple[int, int]) -> Tensor:
    masks, score, _ = saliency_benchmark.plain(features, grid)
    return nms_benchmark.plain(masks, score)


HOST_LOOP = "its loop over masks runs on the host"


def cases(sizes: Sizes, device: str) -> list[Case]:
    """Every row of the table."""
    inputs = Inputs(sizes, device)
    table = {row.key: row for row in rows(sizes)}
    found: list[Case] = []

    def add(
        key: str, make: Callable[[int], tuple[Any, ...]], op: Callable[..., Any], *rest: Any, **more: Any
    ) -> None:
        found.append(Case(table[key], make, op, *rest, **more))

    for layout in ("nchw", "channels_last"):
        for number, grid in (("few", sizes.grid), ("many", sizes.dense_grid)):
            for dtype in ("bf16", "fp32") if number == "few" else ("bf16",):
                add(
                    f"saliency_{number}_{dtype}_{layout}",
                    lambda i, d=dtype, g=grid, last=layout: (inputs.c5(i, DTYPES[d], last), g),
                    seed_saliency,
                    saliency_benchmark.plain,
                )

    def masks(grid: tuple[int, int]) -> Callable[[int], tuple[Any, ...]]:
        return lambda i: inputs.masks(i, grid)

    def unpacked(plain: Callable[..., Any]) -> Callable[..., Any]:
        return lambda packed, score, cells: plain(cells, score)

    for number, grid in (("few", sizes.grid), ("many", sizes.dense_grid)):
        add(
            f"mask_nms_{number}",
            masks(grid),
            lambda packed, score, cells: mask_nms(packed, score, max_masks=sizes.kept),
            unpacked(nms_benchmark.plain),
            not_compiled=HOST_LOOP,
        )
    add(
        "matrix_nms_few",
        masks(sizes.grid),
        lambda packed, score, cells: matrix_nms(packed, score),
        unpacked(matrix_nms_benchmark.plain),
        peers={"mmdet mask_matrix_nms": Peer(unpacked(peers.mmdet_matrix_nms))},
    )
    add("shapes_few", masks(sizes.grid), lambda packed, score, cells: (packed.area(), packed.boxes()))

    proposer = SaliencyProposer(preset="paper", grid=(sizes.grid,), max_masks=sizes.kept)

    def propose(features: Tensor, grid: tuple[int, int]) -> tuple[Any, Tensor]:
        proposals = proposer.from_features(features)
        return proposals, proposals.masks.boxes()

    add(
        "proposals",
        lambda i: (inputs.c5(i, torch.bfloat16, "nchw"), sizes.grid),
        propose,
        _plain_proposals,
        not_compiled=HOST_LOOP,
        peers={"free masks, image by image": Peer(peers.free_masks)},
    )

    for layout in ("nchw", "channels_last"):
        add(
            f"roi_forward_{layout}",
            lambda i, last=layout: (inputs.p2(i, last), inputs.boxes(i)),
            roi_average_pool,
            reference.roi_average_pool,
            peers={"torchvision roi_align, fp16": Peer(peers.roi_align, peers.as_roi_align)},
        )
        add(
            f"roi_both_{layout}",
            lambda i, last=layout: (inputs.pooled_gradient(i), inputs.p2(i, last), inputs.boxes(i)),
            roi_average_pool,
            reference.roi_average_pool,
            wanted=1,
            peers={
                "torchvision roi_align, fp16": Peer(
                    with_gradients(peers.roi_align, 1),
                    lambda gradient, *rest: (gradient.flatten(0, 1).half(), *peers.as_roi_align(*rest)),
                )
            },
        )

    add("match_forward", inputs.matching, match_prompts, matching_benchmark.plain)
    add(
        "match_both",
        lambda i: (inputs.decorated_gradient(i), *inputs.matching(i)),
        match_prompts,
        matching_benchmark.plain,
        wanted=2,
    )
    add(
        "loss_both",
        lambda i: (torch.ones((), device=device), *inputs.supervision(i)),
        kernel_supervision_loss,
        loss_benchmark.plain,
        wanted=2,
    )
    return found
