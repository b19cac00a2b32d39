"""Checkpoints of mmengine's Runner: plain, atomic, resumable."""

import json
import multiprocessing
import os
from collections import OrderedDict, namedtuple

import mmengine.runner
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from sp_fast.mmdet_plugin.safe_resume import install_safe_resume, load_checkpoint_file


class Numbers(torch.utils.data.Dataset):
    """Twelve points of a line."""

    metainfo = {"classes": ("point",), "palette": np.array([[1, 2, 3]])}  # noqa: RUF012

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.tensor([index / 12.0]), torch.tensor([2.0 * index / 12 - 1])


class Line(BaseModel):
    """A linear regression."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x, y, mode="loss"):
        return {"loss": nn.functional.mse_loss(self.linear(x), y)}


class Trace(Hook):
    """Writes each step's epoch, loss and learning rate; may end the process as a kill would."""

    def __init__(self, path, die_at=None):
        self.path = path
        self.die_at = die_at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        step = runner.epoch, runner.iter, outputs["loss"].item(), runner.optim_wrapper.get_lr()["lr"][0]
        with open(self.path, "a") as file:
            file.write(json.dumps(step) + "\n")
        if runner.iter == self.die_at:
            os._exit(9)


def make_runner(work_dir, trace, *, resume=False, die_at=None, epochs=4, **options):
    install_safe_resume()
    torch.manual_seed(0)
    return Runner(
        Line(),
        str(work_dir),
        train_dataloader={
            "dataset": Numbers(),
            "batch_size": 4,
            "collate_fn": {"type": "default_collate"},
            "sampler": {"type": "DefaultSampler", "shuffle": True},
        },
        train_cfg={"by_epoch": True, "max_epochs": epochs},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.1}},
        param_scheduler=[
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 8},
            {"type": "MultiStepLR", "milestones": [3], "by_epoch": True},
        ],
        default_hooks={
            "checkpoint": {"type": "CheckpointHook", "interval": 1, **options},
            "logger": {"type": "LoggerHook", "interval": 1},
        },
        custom_hooks=[Trace(trace, die_at)],
        resume=resume,
        randomness={"seed": 3},
        log_level="WARNING",
        experiment_name=f"{trace}_{resume}",
    )


def steps(trace):
    return [json.loads(line) for line in trace.read_text().splitlines()]


def train_and_die(work_dir, trace):
    make_runner(work_dir, trace, die_at=7).train()


def test_killed_run_resumes_as_if_nothing_happened(tmp_path):
    make_runner(tmp_path / "whole", tmp_path / "whole.txt").train()
    whole = steps(tmp_path / "whole.txt")
    assert len(whole) == 12

    # Not a fork: autograd may have threads already, which a forked process cannot use.
    process = multiprocessing.get_context("spawn").Process(
        target=train_and_die, args=(tmp_path / "killed", tmp_path / "killed.txt")
    )
    process.start()
    process.join(120)
    assert process.exitcode == 9
    assert steps(tmp_path / "killed.txt") == whole[:8]

    # The run died in its third epoch, two steps after the checkpoint of the second.
    resumed = make_runner(tmp_path / "killed", tmp_path / "resumed.txt", resume=True)
    resumed.train()
    assert steps(tmp_path / "resumed.txt") == whole[6:]
    losses, _ = resumed.message_hub.get_scalar("train/loss").data
    assert losses.tolist() == [step[2] for step in whole]


def test_checkpoint_holds_nothing_but_data(tmp_path):
    runner = make_runner(tmp_path / "run", tmp_path / "trace.txt", epochs=1)
    runner.message_hub.update_info("score", np.float32(0.5))
    runner.train()
    path = tmp_path / "run" / "epoch_1.pth"
    needed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert not needed
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["message_hub"]["runtime_info"]["score"] == 0.5
    assert checkpoint["meta"]["dataset_meta"] == {"classes": ("point",), "palette": [[1, 2, 3]]}
    scalars = load_checkpoint_file(path)["message_hub"]["log_scalars"]
    assert isinstance(scalars["train/loss"], HistoryBuffer)


def test_an_object_in_a_checkpoint_is_refused_when_saving(tmp_path):
    runner = make_runner(tmp_path / "run", tmp_path / "trace.txt", epochs=1)
    runner.message_hub.update_info("range", range(3))
    with pytest.raises(
        TypeError, match=r"checkpoint\['message_hub'\]\['runtime_info'\]\['range'\].*got a range"
    ):
        runner.train()
    assert list((tmp_path / "run").glob("*.pth")) == []


def test_resume_never_runs_a_pickle(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    runner = make_runner(tmp_path / "run", tmp_path / "trace.txt", epochs=1)
    runner.train()
    path = tmp_path / "run" / "epoch_1.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["meta"]["extra"] = Payload()
    torch.save(checkpoint, path)
    make_runner(tmp_path / "run", tmp_path / "trace.txt", epochs=2, resume=True).train()
    assert not marker.exists()
    assert len(steps(tmp_path / "trace.txt")) == 6


def test_checkpoint_of_plain_mmengine(tmp_path, monkeypatch):
    """The file is written by mmengine's own pickling, undone here for the time of the writing."""
    install_safe_resume()
    with monkeypatch.context() as patch:
        patch.setattr(
            HistoryBuffer,
            "__getstate__",
            lambda self: self.__dict__ | {"statistics_methods": self._statistics_methods},
        )
        buffers = OrderedDict({"train/loss": HistoryBuffer([3.0, 1.0], [1, 1])})
        hub = {
            "log_scalars": buffers,
            "runtime_info": {"iter": np.int64(2)},
            "resumed_keys": {"train/loss": True},
        }
        torch.save({"state_dict": {}, "message_hub": hub, "meta": {"epoch": 1}}, tmp_path / "epoch_1.pth")
    assert "getattr" in str(torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "epoch_1.pth"))

    loaded = load_checkpoint_file(tmp_path / "epoch_1.pth")["message_hub"]
    assert loaded["log_scalars"]["train/loss"].data[0].tolist() == [3.0, 1.0]
    message_hub = MessageHub.get_instance("checkpoint_of_plain_mmengine")
    message_hub.load_state_dict(loaded)
    assert message_hub.get_scalar("train/loss").min() == 1.0
    assert message_hub.get_info("iter") == 2


def test_interrupted_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    trace = tmp_path / "trace.txt"
    runner = make_runner(tmp_path / "run", trace, epochs=2, max_keep_ckpts=1)
    written = torch.save

    def interrupt(checkpoint, file):
        if checkpoint["meta"]["epoch"] == 2:
            file.write(b"PK\x03\x04 half of it")
            raise KeyboardInterrupt
        written(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            runner.train()
    files = {path.name for path in (tmp_path / "run").iterdir() if path.is_file() and path.suffix != ".py"}
    assert files == {"epoch_1.pth", "last_checkpoint"}

    make_runner(tmp_path / "run", trace, epochs=2, resume=True, max_keep_ckpts=1).train()
    assert [step[1] for step in steps(trace)] == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert {path.name for path in (tmp_path / "run").glob("*.pth")} == {"epoch_2.pth"}
    assert (tmp_path / "run" / "last_checkpoint").read_text().endswith("epoch_2.pth")


def test_damaged_newest_checkpoint(tmp_path):
    make_runner(tmp_path / "run", tmp_path / "trace.txt", epochs=3).train()
    newest = tmp_path / "run" / "epoch_3.pth"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut off or damaged") as error:
        make_runner(tmp_path / "run", tmp_path / "trace.txt", epochs=4, resume=True).train()
    assert str(newest) in str(error.value)
    assert "newest first: epoch_2.pth, epoch_1.pth" in str(error.value)

    (tmp_path / "run" / "last_checkpoint").write_text(str(tmp_path / "run" / "epoch_2.pth"))
    runner = make_runner(tmp_path / "run", tmp_path / "again.txt", epochs=4, resume=True)
    runner.train()
    assert [step[1] for step in steps(tmp_path / "again.txt")] == [6, 7, 8, 9, 10, 11]


def test_saved_values(tmp_path):
    """Subclasses of plain types and of containers come back plain; the state dict's metadata stays."""
    install_safe_resume()
    pair = namedtuple("pair", "a b")
    weights = nn.BatchNorm1d(2).state_dict()
    checkpoint = {"pair": pair(1, np.int64(2)), "config": mmengine.ConfigDict(a=1), "state_dict": weights}
    mmengine.runner.save_checkpoint(checkpoint, str(tmp_path / "saved.pth"))
    loaded = torch.load(tmp_path / "saved.pth", weights_only=True)
    assert loaded["pair"] == (1, 2)
    assert type(loaded["config"]) is dict
    assert loaded["state_dict"]._metadata == weights._metadata
