"""Checkpoints that belong to another run."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("mmdet")

from mmengine.hooks import EMAHook

from sp_fast.mmdet_plugin.resuming import check_same_run


def make_run(classes=("a", "b"), width=3, groups=1, ema=False):
    model = nn.Linear(width, 2)
    parts = [{"params": [model.weight, model.bias]}]
    if groups == 2:
        parts = [{"params": [model.weight]}, {"params": [model.bias]}]
    return SimpleNamespace(
        model=model,
        train_dataloader=SimpleNamespace(dataset=SimpleNamespace(metainfo={"classes": classes})),
        optim_wrapper=SimpleNamespace(optimizer=torch.optim.AdamW(parts)),
        hooks=[EMAHook()] if ema else [],
    )


def checkpoint_of(run):
    saved = {
        "meta": {"dataset_meta": run.train_dataloader.dataset.metainfo},
        "state_dict": run.model.state_dict(),
        "optimizer": run.optim_wrapper.optimizer.state_dict(),
    }
    return {**saved, **({"ema_state_dict": {}} if run.hooks else {})}


def test_a_checkpoint_of_the_same_run():
    check_same_run(make_run(), checkpoint_of(make_run()), "latest.pth")
    check_same_run(make_run(ema=True), checkpoint_of(make_run(ema=True)), "latest.pth")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"classes": ("b", "a")}, "expected a checkpoint of the classes a, b, got one of b, a"),
        ({"width": 4}, r"1 tensors differ .* for weight, expected shape \[2, 3\], got \[2, 4\]"),
        ({"groups": 2}, "expected 2 trained tensors in 1 groups of the optimiser, got 2 in 2"),
        ({"ema": True}, "the run is without --ema, the checkpoint is from a run with averaged weights"),
    ],
)
def test_a_checkpoint_of_another_run(other, words):
    with pytest.raises(ValueError, match=f"--resume: latest.pth: {words}"):
        check_same_run(make_run(), checkpoint_of(make_run(**other)), "latest.pth")


def test_a_checkpoint_with_and_without_folded_prompts():
    run, checkpoint = make_run(), checkpoint_of(make_run())
    checkpoint["state_dict"] |= {"received.images": torch.tensor(1), "received.mean": torch.zeros(1, 2)}
    with pytest.raises(
        ValueError, match=r"expected a run that does not fold prompts .*, got one that does\."
    ):
        check_same_run(run, checkpoint, "latest.pth")
    run.model.register_module("received", nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"expected a run that folds prompts .*, got one that does not\."):
        check_same_run(run, checkpoint_of(make_run()), "latest.pth")


def test_weights_alone():
    checkpoint = checkpoint_of(make_run())
    del checkpoint["optimizer"]
    with pytest.raises(ValueError, match="expected the state of the optimiser too, got weights alone"):
        check_same_run(make_run(), checkpoint, "latest.pth")
