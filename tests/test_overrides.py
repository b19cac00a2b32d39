"""`--cfg-options`: entries that a config has or its classes take, and misspelt ones."""

import pytest

pytest.importorskip("mmengine")

from mmengine.config import Config

from sp_fast.configs import find_config
from sp_fast.overrides import apply_overrides


@pytest.fixture
def cfg():
    return Config.fromfile(find_config("knet_r50/pretrain"))


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim_wraper.optimizer.lr", "Did you mean optim_wrapper.optimizer.lr? "),
        ("optim_wrapper.optimiser.lr", "Did you mean optim_wrapper.optimizer.lr? "),
        ("optim_wrapper.optimizer.lrr", "Did you mean optim_wrapper.optimizer.lr? "),
        ("optim_wrapper.clip_grad.maxnorm", "Did you mean optim_wrapper.clip_grad.max_norm? "),
        ("train_dataloader.batchsize", "Did you mean train_dataloader.batch_size? "),
        ("train_dataloader.dataset.pipeline.9.prob", "Did you mean train_dataloader.dataset.pipeline."),
        ("optim_wrapper.optimizer.lr.x", "in optim_wrapper.optimizer.lr. Mark a new entry"),
        ("default_hooks.checkpoints.seconds", "Did you mean default_hooks.checkpoint.seconds? "),
    ],
)
def test_a_misspelt_key(cfg, key, nearest):
    before = cfg.pretty_text
    with pytest.raises(ValueError, match="--cfg-options") as error:
        apply_overrides(cfg, {"randomness.seed": 3, key: 1})
    assert f"--cfg-options: {key}: this config has no" in str(error.value)
    assert nearest in str(error.value)
    assert cfg.pretty_text == before


def test_keys_of_the_config_or_of_a_class_are_accepted(cfg):
    options = {
        "optim_wrapper.optimizer.lr": 1.0,
        "optim_wrapper.optimizer.betas": (0.9, 0.95),
        "train_dataloader.prefetch_factor": 4,
        "train_dataloader.dataset.pipeline.3.prob": 0.2,
        "randomness.deterministic": True,
        "model.source": "import",
        "model.prompts.drop_rate": 0.1,
        "find_unused_parameters": True,
        "+model.any.thing": 5,
    }
    apply_overrides(cfg, options)
    assert cfg.optim_wrapper.optimizer.lr == 1.0
    assert cfg.optim_wrapper.optimizer.betas == (0.9, 0.95)
    assert cfg.train_dataloader.dataset.pipeline[3].prob == 0.2
    assert cfg.model.source == "import"
    assert cfg.model.any.thing == 5
    assert "+model" not in cfg
