"""Checkpoints of mmengine's Runner: read without running code in them, written atomically."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmengine.runner
import mmengine.runner.checkpoint
import mmengine.runner.runner
import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from sp_fast.files import replacing, write_tensors
from sp_fast.weights.unpickle import Inert, load_foreign

_LAST_CHECKPOINT = "last_checkpoint"
_HISTORY_BUFFER = f"{HistoryBuffer.__module__}.{HistoryBuffer.__name__}"


def load_checkpoint_file(path: str | os.PathLike[str], map_location: Any = None) -> dict[str, Any]:
    """The checkpoint in `path`: this package's, plain mmengine's or another's; mmengine loads with it too.

    No code in the file runs (see `load_foreign`). The log buffers of mmengine's checkpoints are restored;
    objects of other classes come as `Inert`. The tensors stay on the CPU, whatever `map_location` says:
    `load_state_dict` copies them to the model's device, and Adam's step counts on a GPU would cost a
    synchronisation per parameter and step.

    Raises:
        FileNotFoundError: no such file; in a work folder, names the other checkpoints there.
        ValueError: not a checkpoint, or a damaged one; likewise.
    """
    path = Path(path).expanduser()
    try:
        checkpoint = load_foreign(path)
        if not isinstance(checkpoint, dict):
            raise ValueError(
                f"{path}: expected a checkpoint, which is a dict, got {type(checkpoint).__name__}"
            )
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{error}{_others_beside(path)}") from error
    scalars = checkpoint.get("message_hub", {}).get("log_scalars", {})
    for name, value in scalars.items():
        if isinstance(value, Inert) and value.origin == _HISTORY_BUFFER:
            value = value.state
        if isinstance(value, dict):
            # mmengine's names of the two arrays, and those of `_history_state`.
            state = {key.removeprefix("_"): part for key, part in value.items()}
            log, count = np.asarray(state["log_history"]), np.asarray(state["count_history"])
            scalars[name] = HistoryBuffer(log, count, state["max_length"])
    return checkpoint


def _others_beside(path: Path) -> str:
    """Which other checkpoints the work folder that holds `path` has, newest first."""
    if not (path.parent / _LAST_CHECKPOINT).is_file():
        return ""
    others = sorted(path.parent.glob("*.pth"), key=lambda other: other.stat().st_mtime, reverse=True)
    names = ", ".join(other.name for other in others if other != path)
    return names and (
        f" Other checkpoints beside it, newest first: {names}. To resume from one of them, write its path "
        f"into {path.parent / _LAST_CHECKPOINT}, and resume."
    )


def install_safe_resume() -> None:
    """Make mmengine's Runner save, load and resume checkpoints that load with `weights_only=True`.

    Writes of local files are atomic; with `max_keep_ckpts`, an older checkpoint is removed only once the new
    one is complete. Files are read by `load_checkpoint_file`. A second call does nothing.
    """
    CheckpointLoader.register_scheme(prefixes="", loader=load_checkpoint_file, force=True)
    mmengine.runner.checkpoint.load_from_local = load_checkpoint_file
    mmengine.runner.runner._load_checkpoint = load_checkpoint_file  # mmengine's also prints
    for module in (mmengine.runner, mmengine.runner.checkpoint, mmengine.runner.runner):
        module.save_checkpoint = _save_checkpoint
    CheckpointHook._save_checkpoint_with_step = _save_checkpoint_with_step


def _history_state(buffer: HistoryBuffer) -> dict[str, Any]:
    log, count = buffer.data
    return {
        "max_length": int(buffer.max_length),
        "log_history": torch.from_numpy(np.asarray(log, dtype=np.float64)),
        "count_history": torch.from_numpy(np.asarray(count, dtype=np.float64)),
    }


_SAFE_LEAVES = (torch.Tensor, torch.Size, torch.dtype, torch.device, bytes)


def _plain(value: Any, place: str = "checkpoint") -> Any:
    """`value` as plain containers, numbers and strings; a TypeError names the place where that fails."""
    if value is None or isinstance(value, _SAFE_LEAVES):
        return value
    if isinstance(value, HistoryBuffer):  # torch.load reads the file without mmengine then
        return _history_state(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist(), place)
    if isinstance(value, Mapping):
        items = ((_plain(key, place), _plain(item, f"{place}[{key!r}]")) for key, item in value.items())
        if not isinstance(value, OrderedDict):
            return dict(items)
        ordered = OrderedDict(items)
        ordered.__dict__.update(value.__dict__)  # a state dict's _metadata
        return ordered
    for container in (list, tuple, set):
        if isinstance(value, container):
            return container(_plain(item, f"{place}[{index}]") for index, item in enumerate(value))
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(
        f"{place}: expected tensors, numbers, strings and containers of them, got a {type(value).__name__}, "
        "which could not be loaded again without trusting the file. Store plain values, or keep it out of "
        "the checkpoint (message_hub.update_info(..., resumed=False))."
    )


def _save_checkpoint(
    checkpoint: dict[str, Any],
    filename: str,
    file_client_args: dict | None = None,
    backend_args: dict | None = None,
) -> None:
    """Replaces mmengine's `save_checkpoint`: plain values only, atomic for local files."""
    plain = _plain(checkpoint)
    backend = get_file_backend(filename, backend_args=backend_args)
    if file_client_args is None and isinstance(backend, LocalBackend):
        write_tensors(plain, Path(filename))
    else:
        _mmengine_save_checkpoint(plain, filename, file_client_args, backend_args)


_mmengine_save_checkpoint = mmengine.runner.checkpoint.save_checkpoint


def _save_checkpoint_with_step(self: CheckpointHook, runner: Any, step: int, meta: dict[str, Any]) -> None:
    """Like mmengine's, but removes the oldest checkpoint after the new one is written, not before."""
    outdated = None
    if self.max_keep_ckpts > 0 and not (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
        if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
            outdated = self.keep_ckpt_ids.popleft()
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))

    name = self.filename_tmpl.format(step)
    self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
    runner.message_hub.update_info("last_ckpt", self.last_ckpt)
    runner.save_checkpoint(
        self.out_dir,
        name,
        self.file_client_args,
        save_optimizer=self.save_optimizer,
        save_param_scheduler=self.save_param_scheduler,
        meta=meta,
        by_epoch=self.by_epoch,
        backend_args=self.backend_args,
        **self.args,
    )
    if not is_main_process():
        return
    with replacing(Path(runner.work_dir) / _LAST_CHECKPOINT) as file:
        file.write(self.last_ckpt.encode())
    if outdated is not None:
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated))
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
