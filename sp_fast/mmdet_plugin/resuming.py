"""Resuming: checks that a checkpoint belongs to this run, and follows schedules of another length."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import EMAHook

from sp_fast.mmdet_plugin.class_rows import named_classes

_COUNTERS = ("last_step", "_global_step", "_last_value", "verbose", "base_values")


def check_same_run(runner: Any, checkpoint: Mapping[str, Any], path: str) -> None:
    """Checks that a checkpoint belongs to the run that is to resume from it, before anything is loaded.

    Fused optimisers do not check the shapes of their state, and crash.

    Raises:
        ValueError: classes, tensors, parameter groups or averaging differ; the message says which.
    """
    problem = (
        _other_classes(runner, checkpoint)
        or _other_tensors(runner, checkpoint)
        or _other_groups(runner, checkpoint)
        or _other_average(runner, checkpoint)
    )
    if problem:
        raise ValueError(
            f"--resume: {path}: {problem}. Resume with the config, the data and the options that it was made "
            f"with; to train another model from its weights, give --load-from and another --work-dir"
        )


def _other_classes(runner: Any, checkpoint: Mapping[str, Any]) -> str:
    theirs, ours = named_classes(checkpoint), runner.train_dataloader.dataset.metainfo["classes"]
    if theirs is None or theirs == tuple(ours):
        return ""
    return f"expected a checkpoint of the classes {_listed(ours)}, got one of {_listed(theirs)}"


def _other_tensors(runner: Any, checkpoint: Mapping[str, Any]) -> str:
    model = getattr(runner.model, "module", runner.model)
    ours = {name: list(one.shape) for name, one in model.state_dict().items()}
    theirs = {name: list(one.shape) for name, one in checkpoint.get("state_dict", {}).items()}
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if not differing:
        return ""
    if all(name.startswith("received.") for name in differing):
        expected, got = ("folds", "does not") if differing[0] in ours else ("does not fold", "does")
        return f"expected a run that {expected} prompts (model.prompts.fold), got one that {got}"
    name = differing[0]
    return (
        f"{len(differing)} tensors differ from the model's: for {name}, expected shape "
        f"{ours.get(name, 'none')}, got {theirs.get(name, 'none')}"
    )


def _other_groups(runner: Any, checkpoint: Mapping[str, Any]) -> str:
    if "optimizer" not in checkpoint:
        return "expected the state of the optimiser too, got weights alone"
    ours, theirs = (
        [len(group["params"]) for group in state["param_groups"]]
        for state in (runner.optim_wrapper.optimizer.state_dict(), checkpoint["optimizer"])
    )
    if ours == theirs:
        return ""
    return (
        f"expected {sum(ours)} trained tensors in {len(ours)} groups of the optimiser, got {sum(theirs)} in "
        f"{len(theirs)}"
    )


def _other_average(runner: Any, checkpoint: Mapping[str, Any]) -> str:
    ours, theirs = any(isinstance(hook, EMAHook) for hook in runner.hooks), "ema_state_dict" in checkpoint
    if ours == theirs:
        return ""
    run, file = ("--ema", "without") if ours else ("without --ema", "with")
    return f"the run is {run}, the checkpoint is from a run {file} averaged weights"


def _listed(names: Any) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")


def schedules(runner: Any) -> list[dict[str, Any]]:
    """The settings of the learning rate schedules, without their progress."""
    states = [scheduler.state_dict() for scheduler in runner.param_schedulers or []]
    return [{name: value for name, value in one.items() if name not in _COUNTERS} for one in states]


def replay_schedules(runner: Any) -> None:
    """Sets the learning rate to what the config's schedules give at the current step.

    mmengine would go on with those of the checkpoint, which end where the shorter run ended.
    """
    for group in runner.optim_wrapper.param_groups:
        for name in [key for key in group if key.startswith("initial_")]:
            group[name.removeprefix("initial_")] = group[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*optimizer.step.*")  # its steps were taken before resuming
        runner.param_schedulers = runner.build_param_scheduler(runner.cfg.param_scheduler)
        for _ in range(runner.iter):
            for scheduler in runner.param_schedulers:
                scheduler.step()
