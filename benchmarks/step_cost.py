"""Counts what a training step of a config costs: operations, and bytes kept for the backward pass.

    python -m benchmarks.step_cost knet_r50/pretrain queryinst_r50/pretrain

One random image with 20 objects on the CPU in fp32, so no time is measured. Operations are counted by
`torch.utils.flop_counter` (matrix products and convolutions, forward and backward); the bytes are those of
the tensors that autograd keeps, each storage once, without the parameters.
"""

from __future__ import annotations

import argparse

import sp_fast.models  # noqa: F401

# isort: split
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.samples import sample
from sp_fast.configs import find_config

OBJECTS = 20


def count(config: str, height: int, width: int) -> tuple[float, int]:
    """Operations of a step, and bytes kept for the backward pass."""
    model_config = Config.fromfile(find_config(config)).model
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(model_config)
    model.init_weights()
    model.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.randn(1, 3, height, width)
    channels = (model_config.get("supervision") or {}).get("seed_channels", 1)
    samples = [sample(height, width, OBJECTS, channels)]
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.parse_losses(model.loss(images, samples))[0]
        loss.backward()
    return counter.get_total_flops(), sum(kept.values())


def main() -> None:
    """Prints a line per config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", help="Names of configs")
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1344), metavar=("HEIGHT", "WIDTH"))
    arguments = parser.parse_args()
    for config in arguments.configs:
        operations, kept = count(config, *arguments.size)
        print(f"{config}: {operations / 1e12:.2f} TFLOP and {kept / 2**30:.1f} GiB per image", flush=True)


if __name__ == "__main__":
    main()
