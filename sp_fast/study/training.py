"""One run of training: a plain loop that stops when its time is up and goes on where it was."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sp_fast.files import replacing
from sp_fast.mmdet_plugin.hooks import NonFiniteLossError
from sp_fast.study.precision import mixed_precision

CHECKPOINT = "checkpoint.pt"
SAVE_SECONDS = 60.0


class OutOfTimeError(Exception):
    """The time given on the command line is over; what is done is on disk."""


class Budget:
    """How long this call may go on.

    Args:
        minutes: None for as long as it takes.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.end = math.inf if minutes is None else time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds; infinite without a limit."""
        return self.end - time.monotonic()

    def check(self, seconds: float = 0.0) -> None:
        """Raises OutOfTimeError unless `seconds` are left."""
        if self.left <= seconds:
            raise OutOfTimeError


@dataclass(frozen=True)
class Schedule:
    """Optimiser and learning rate.

    Attributes:
        steps: of training.
        batch_size: images a step.
        lr: of AdamW, after the warm-up.
        weight_decay: of AdamW.
        backbone_lr: the backbone's share of `lr`.
        warm_up: share of the steps in which the rate rises linearly from a thousandth.
        milestones: shares of the steps after which the rate is a tenth.
        max_norm: the gradient is clipped to it.
        kernel_lr: K^0's share of `lr`.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    backbone_lr: float
    warm_up: float
    milestones: tuple[float, ...]
    max_norm: float
    kernel_lr: float = 1.0

    def factor(self, step: int) -> float:
        """The learning rate of a step, counted from 0, as a share of `lr`."""
        rise = max(1, round(self.warm_up * self.steps))
        warm = min(1.0, 0.001 + 0.999 * step / rise)
        return warm * 0.1 ** sum(step >= share * self.steps for share in self.milestones)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW of the parameters that are trained."""
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        shares = {"backbone.": self.backbone_lr, "init_kernels.": self.kernel_lr}
        by_share: dict[float, list[nn.Parameter]] = {1.0: []}
        for name, one in trained.items():
            share = next((share for part, share in shares.items() if part in name), 1.0)
            by_share.setdefault(share, []).append(one)
        return torch.optim.AdamW(
            [{"params": params, "share": share} for share, params in by_share.items() if params],
            lr=self.lr,
            weight_decay=self.weight_decay,
            fused=True,
        )


def train(
    model: nn.Module,
    losses_of: Callable[[int], Mapping[str, Tensor]],
    schedule: Schedule,
    folder: Path,
    seed: int,
    budget: Budget,
    *,
    after: Mapping[int, Callable[[], Any]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Trains, from the checkpoint in `folder` on if there is one.

    All randomness of a step follows from the seed and the step alone.

    Args:
        model: with its first weights.
        losses_of: the losses of a step; their sum is minimised.
        schedule: length, optimiser, learning rate.
        folder: of the checkpoint, which is written each minute, when the time is up and at the end.
        seed: of the run.
        budget: of this call.
        after: what to do after some steps, by their number from 1; called once each, results are kept.
        progress: called with (steps done, steps in all).

    Returns:
        `log`: steps, and the mean of each loss since the one before; `after`: by step; `seconds` of training.

    Raises:
        OutOfTimeError: the checkpoint is written.
        NonFiniteLossError: a loss is not finite; the last checkpoint is from before.
    """
    optimizer = schedule.optimizer(model)
    state = _resume(folder / CHECKPOINT, model, optimizer)
    log: list[dict[str, Any]] = state["log"]
    kept: dict[str, Any] = state["after"]
    step, seconds = state["step"], state["seconds"]
    sums: dict[str, Tensor] = state["sums"]
    every = max(1, schedule.steps // 40)
    report = progress or (lambda done, total: None)
    report(step, schedule.steps)
    start = saved = time.monotonic()

    def save() -> None:
        _check_finite(sums, step)
        _save(
            folder / CHECKPOINT,
            model,
            optimizer,
            step=step,
            seconds=seconds + time.monotonic() - start,
            log=log,
            after=kept,
            sums={name: value.cpu() for name, value in sums.items()},
        )

    device = next(model.parameters()).device
    while True:
        if after and step in after and str(step) not in kept:
            paused = time.monotonic()
            if budget.left < math.inf:
                save()
            kept[str(step)] = after[step]()
            start += time.monotonic() - paused
            model.train()
        if step == schedule.steps:
            break
        if budget.left <= 0:
            save()
            raise OutOfTimeError
        torch.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * group["share"] * schedule.factor(step)
        with mixed_precision(device):
            losses = losses_of(step)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(
            [one for group in optimizer.param_groups for one in group["params"]], schedule.max_norm
        )
        optimizer.step()
        step += 1
        for name, value in {**losses, "loss": total}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float()
        if step % every == 0 or step == schedule.steps:
            _check_finite(sums, step)
            since = step - (log[-1]["step"] if log else 0)
            log.append({"step": step, **{name: value.item() / since for name, value in sums.items()}})
            sums.clear()
        report(step, schedule.steps)
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
    save()
    return {"log": log, "after": kept, "seconds": seconds + time.monotonic() - start}


def _check_finite(sums: Mapping[str, Tensor], step: int) -> None:
    values = {name: float(value) for name, value in sums.items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise NonFiniteLossError(
            f"step {step}: {', '.join(bad)} is not finite. A lower learning rate or a longer warm-up in the "
            "study's config may help; the last checkpoint is from before."
        )


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    if not path.is_file():
        return {"step": 0, "seconds": 0.0, "log": [], "after": {}, "sums": {}}
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    device = next(model.parameters()).device
    state["sums"] = {name: value.to(device) for name, value in state["sums"].items()}
    return state


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, **rest: Any) -> None:
    with replacing(path) as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), **rest}, file)


def spaced(steps: int, count: int) -> Sequence[int]:
    """`count` steps at equal distances, the last of them `steps`; each at least 1."""
    return sorted({max(1, round(steps * k / count)) for k in range(1, count + 1)})
