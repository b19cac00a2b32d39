"""Tells the length of a training as soon as it is known."""

from __future__ import annotations

from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sp_fast.files import write_json
from sp_fast.mmdet_plugin.loops import STEPS_PER_EPOCH


class LengthHook(Hook):
    """Writes the number of steps, in all and per epoch, to a file before the first step."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @master_only
    def before_train(self, runner: Runner) -> None:
        """See the class."""
        per_epoch = runner.message_hub.get_info(STEPS_PER_EPOCH)
        write_json({STEPS_PER_EPOCH: per_epoch, "steps": runner.max_iters}, self._path)
