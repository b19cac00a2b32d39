"""The losses of a training step, which hooks see once they are on the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.hooks import Hook, LoggerHook, RuntimeInfoHook
from mmengine.registry import HOOKS
from torch import Tensor

from sp_fast.transfers import Arriving


class StepValues(Mapping[str, Tensor]):
    """Values of a step by name, copied to the host together; looking at one waits until they are there.

    Args:
        tensors: scalar tensors by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._names = list(tensors)
        self._values: dict[str, Tensor] | None = None
        scalars = [value.detach().float().reshape(()) for value in tensors.values()]
        self._arriving = Arriving(torch.stack(scalars) if scalars else torch.zeros(0))

    @property
    def ready(self) -> bool:
        """Whether looking at them cannot wait for the step."""
        return self._arriving.ready

    def __getitem__(self, name: str) -> Tensor:
        """The value of a name, on the host, as other hooks expect a loss."""
        if self._values is None:
            self._values = dict(zip(self._names, self._arriving.read().unbind(), strict=True))
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)


class LateHook(Hook):
    """Looks at the values of each step as soon as that needs no waiting: on a GPU, after the next step.

    Before a validation, a checkpoint and the end, it waits for the last step's.
    """

    _late: tuple[int, Mapping[str, Any]] | None = None

    def look(self, runner: Any, step: int, values: Mapping[str, Any]) -> None:
        """Called with the values of each step, in order; `step` counts from 1."""
        raise NotImplementedError

    def after_train_iter(self, runner: Any, outputs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Looks at the step before, or at this one too."""
        self.catch_up(runner)
        if outputs is not None:
            self._late = (runner.iter + 1, outputs)
            if getattr(outputs, "ready", True):
                self.catch_up(runner)

    def catch_up(self, runner: Any) -> None:
        """Looks at the last step, if that has not been done yet."""
        late, self._late = self._late, None
        if late is not None:
            self.look(runner, *late)

    def before_val(self, runner: Any) -> None:
        """Looks at the last step."""
        self.catch_up(runner)

    def after_train(self, runner: Any) -> None:
        """Looks at the last step."""
        self.catch_up(runner)


@HOOKS.register_module()
class StepInfoHook(LateHook, RuntimeInfoHook):
    """mmengine's `RuntimeInfoHook`, which puts the losses into the log, without waiting for each of them."""

    priority = "VERY_HIGH"

    def look(self, runner: Any, step: int, values: Mapping[str, Any]) -> None:
        """Puts the values into the log."""
        for name, value in values.items():
            runner.message_hub.update_scalar(f"train/{name}", value)

    def after_train_iter(self, runner: Any, outputs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """See `LateHook`; a line of the log has this step's values too."""
        super().after_train_iter(runner, outputs)
        logs = [one for one in runner.hooks if isinstance(one, LoggerHook)]
        if any(one.every_n_train_iters(runner, one.interval) for one in logs):
            self.catch_up(runner)

    def before_val(self, runner: Any) -> None:
        """See `LateHook` and mmengine."""
        LateHook.before_val(self, runner)
        RuntimeInfoHook.before_val(self, runner)

    def after_train(self, runner: Any) -> None:
        """See `LateHook` and mmengine."""
        LateHook.after_train(self, runner)
        RuntimeInfoHook.after_train(self, runner)
