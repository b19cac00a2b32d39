"""A training step, forward and backward, of the plain K-Net and of its pre-training with each source.

4 images of 320 x 320 with 10 proposals each; the K-Net of configs/pretrain/knet_mobilenet_v2.py.
"""

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from benchmarks.samples import sample

CONFIG = Path(__file__).parents[1] / "sp_fast" / "configs" / "pretrain" / "knet_mobilenet_v2.py"
SIZE, IMAGES, PROPOSALS = 320, 4, 10


@pytest.mark.parametrize("source", ["plain", "cached", "import", "shared"])
@pytest.mark.benchmark(group="training_step", min_rounds=5, max_time=10)
def test_training_step(benchmark, source):
    config = Config.fromfile(CONFIG).model
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(config.detector if source == "plain" else {**config, "source": source})
    model.init_weights()
    model.train()
    images = torch.randn(IMAGES, 3, SIZE, SIZE)
    samples = [sample(SIZE, SIZE, PROPOSALS, config.supervision.seed_channels) for _ in range(IMAGES)]

    def step():
        model.zero_grad(set_to_none=True)
        model.parse_losses(model.loss(images, samples))[0].backward()

    step()
    benchmark(step)
