"""K-Net's matching and losses, and a layer of multi-scale deformable attention."""

from __future__ import annotations

import resource

import sp_fast.models  # noqa: F401

# isort: split
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from benchmarks.pipeline.clock import milliseconds
from benchmarks.pipeline.rows import Row, Task
from benchmarks.samples import sample
from sp_fast.configs import find_config
from sp_fast.knet.outputs import FirstHeadOutput, StageOutput

_DIVISOR = 32


def _peak() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _padded(task: Task) -> tuple[int, int]:
    height, width = (-(-side // _DIVISOR) * _DIVISOR for side in task.sizes.image)
    return height, width


def matching_and_losses(task: Task) -> list[Row]:
    """All that K-Net does between the outputs of its heads and their gradients."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(Config.fromfile(find_config("finetune/knet_r50")).model)
    height, width = _padded(task)
    cells, kernels, classes = (height // 8, width // 8), 100, 80
    targets = model.targets([sample(height, width, task.sizes.masks, 1)], (height, width))

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, requires_grad=True)

    unused = torch.zeros(1, kernels, 1)
    first = FirstHeadOutput(unused, unused, leaf(kernels, *cells), leaf(classes, *cells))
    stages = [StageOutput(leaf(kernels, classes), leaf(kernels, *cells), unused) for _ in range(3)]

    def both() -> None:
        losses = model.loss_from(first, stages, targets)[0]
        torch.stack(list(losses.values())).sum().backward()

    # The gradients of the leaves stay, so they are there before memory is compared.
    for one in (
        first.mask_logits,
        first.seg_logits,
        *(x for s in stages for x in (s.cls_logits, s.mask_logits)),
    ):
        one.grad = torch.zeros_like(one)
    before = _peak()
    time = milliseconds(both, task.sizes.repeats)
    group = f"K-Net's matching and losses, 1 x {height} x {width}"
    return [Row(group, "ms", time), Row(group, "peak memory, MB", _peak() - before)]


def deformable_attention(task: Task) -> list[Row]:
    """A layer of Mask2Former's encoder, forward and backward."""
    torch.manual_seed(0)
    height, width = _padded(task)
    shapes = [(height // stride, width // stride) for stride in (32, 16, 8)]
    queries = sum(h * w for h, w in shapes)
    layer = MultiScaleDeformableAttention(256, num_heads=8, num_levels=3, num_points=4, batch_first=True)
    layer.init_weights()
    x = torch.randn(1, queries, 256, requires_grad=True)
    starts = [0, shapes[0][0] * shapes[0][1]]
    options = dict(
        value=x,
        reference_points=torch.rand(1, queries, 3, 2),
        spatial_shapes=torch.tensor(shapes),
        level_start_index=torch.tensor([*starts, starts[1] + shapes[1][0] * shapes[1][1]]),
    )
    linear = [nn.Linear(256, outputs) for outputs in (256, 8 * 3 * 4 * 2, 8 * 3 * 4, 256)]
    before = _peak()
    time = milliseconds(lambda: layer(x, **options).sum().backward(), task.sizes.repeats)
    memory = _peak() - before
    alone = milliseconds(lambda: sum(one(x).sum() for one in linear).backward(), task.sizes.repeats)
    group = f"Deformable attention, a layer, 1 x {height} x {width}"
    return [
        Row(group, "ms", time, alone, "its four linear layers"),
        Row(group, "peak memory, MB", memory),
    ]


PARTS = {"losses": matching_and_losses, "deformable": deformable_attention}
