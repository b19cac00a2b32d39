"""Counts what the preset `multiscale` costs on a GPU, without one: `python -m benchmarks.gpu.counted`.

Runs the proposer on fake tensors and counts its operations as PyTorch dispatches them: each is a launch,
reads its inputs and writes its results once; convolutions, products and the saliency also multiply. No launch
is shorter than its bytes at the copy rate of an H200, or than its products at the rate of TF32 (convolutions
and the saliency) or fp32. An op of this package counts as three launches.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sp_fast.proposals import SaliencyProposer, build_backbone

# Bytes/s, operations/s and seconds of a launch of an H200: copies and bf16 products as measured elsewhere
# (half of the latter for TF32), the rate of fp32 from the datasheet.
COPY, TF32, FP32, LAUNCH = 4.3e12, 395e12, 67e12, 2e-6
OWN_LAUNCHES = 3


class Counting(TorchDispatchMode):
    """Sums of launches, bytes, operations and the seconds that bound them."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation, unless its result is a view."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace in ("aten", "sp_fast"):
            self._count(func, args, kwargs or {}, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        moved = sum(bytes_of(x) for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor))
        name, operations, rate, launches = func.overloadpacket, 0, FP32, 1
        if func.namespace == "sp_fast":
            launches = OWN_LAUNCHES
        if name is torch.ops.sp_fast.seed_saliency:
            (batch, depth, height, width), seeds = args[0].shape, args[1].shape[1]
            operations, rate = 2 * batch * seeds * depth * height * width, TF32
        elif name in flop_registry:
            operations = flop_registry[name](*args, **kwargs, out_val=result)
            rate = TF32 if name is torch.ops.aten.convolution else FP32
        bound = max(moved / COPY, operations / rate, launches * LAUNCH)
        self.total.update(launches=launches, bytes=moved, operations=operations)
        self.total["ns"] += round(1e9 * bound)


def bytes_of(x: Tensor) -> int:
    """Bytes of the elements that differ in place."""
    sides = (side for side, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return x.element_size() * torch.Size(sides).numel() if x.numel() else 0


def counted(name: str, images: int, size: tuple[int, int]) -> tuple[Counter[str], Counter[str]]:
    """Counts of a batch: of the networks, and of everything."""
    with FakeTensorMode(allow_non_fake_inputs=True), Counting() as all_of_it:
        backbone = build_backbone(name, folded=False)
        proposer = SaliencyProposer(backbone, preset="multiscale")
        batch = [torch.empty(3, *size, dtype=torch.uint8) for _ in range(images)]
        all_of_it.total.clear()
        with torch.no_grad(), Counting() as network:
            for level in proposer._at_sizes(batch):
                backbone.features(level)
        all_of_it.total.clear()
        proposer.with_saliency(batch)
    return network.total, all_of_it.total


def main() -> None:
    """Print the counts per image of the networks and of everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="Images of a batch; default: %(default)s")
    parser.add_argument("--image", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    print("| per image | launches | GB | GFLOP | at least, ms |\n|---|---:|---:|---:|---:|")
    for name in ("mobilenet_v2", "resnet50"):
        found = counted(name, options.images, tuple(options.image))
        for what, total in zip(("networks", "everything"), found, strict=True):
            of = {key: value / options.images for key, value in total.items()}
            numbers = f"{of['launches']:.0f} | {of['bytes'] / 1e9:.2f} | {of['operations'] / 1e9:.1f}"
            print(f"| {name}, {what} | {numbers} | {of['ns'] / 1e6:.2f} |")


if __name__ == "__main__":
    main()
