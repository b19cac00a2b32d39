"""How many steps fit into a time, from a few measured ones."""

from __future__ import annotations

import dataclasses
import math
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.experiments.experiment import Training
from sp_fast.experiments.scheduler import WORKER, RunFailedError, worker_environment
from sp_fast.experiments.settings import GIVEN, Choice
from sp_fast.experiments.worker import read_scalars
from sp_fast.files import write_json
from sp_fast.progress import clock

STEPS = 6
SHARE = 0.9  # of the time left; the rest is for the report, and for what is slower than measured
OF_PROPOSALS = 0.2  # of the time, at most
LEAST = 20
EVALUATIONS = 3  # of a fine-tuning, see the configs' val_interval


class Pace(NamedTuple):
    """Seconds that the parts of a training take."""

    step: float
    evaluated: float  # image that is evaluated
    start: float  # until the first step, and after the last


class Budget(NamedTuple):
    """What `--minutes` has to cover."""

    minutes: float
    spent: float  # seconds since the command began
    proposals: float  # seconds to make the pseudo labels of all images
    evaluated: int  # images of an evaluation
    chains: int  # fine-tunings; the ones with pre-training among them take the longest
    jobs: int  # trainings at once

    @property
    def left(self) -> float:
        """Seconds left."""
        return 60 * self.minutes - self.spent

    @property
    def rounds(self) -> int:
        """How many chains run one after the other."""
        return math.ceil(self.chains / self.jobs)

    def beside_steps(self, pace: Pace) -> float:
        """Seconds from now that everything but the steps takes."""
        evaluations = EVALUATIONS * self.evaluated * pace.evaluated
        # The process that makes the pseudo labels has to start too.
        return self.proposals + pace.start + self.rounds * (2 * pace.start + evaluations)


def measure_pace(training: Training) -> Pace:
    """Times a few steps of a fine-tuning on some of its images, after the first two, and an evaluation.

    Raises:
        RunFailedError: the training failed; the message ends with the end of its output.
    """
    coco = load_coco(training.annotations or "")
    images = coco["images"][: 2 * training.options["train_dataloader.batch_size"]]
    ids = {one["id"] for one in images}
    few = {**coco, "images": images}
    few["annotations"] = [one for one in coco["annotations"] if one["image_id"] in ids]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_coco(few, folder / "few.json")
        labels: dict[str, Any] = dict(
            annotations=str(folder / "few.json"), val_annotations=str(folder / "few.json")
        )
        options = {
            "default_hooks.logger.interval": 1,
            "log_processor.window_size": 1,
            # At the end alone: an evaluation's time replaces that of its step in the log.
            "train_cfg.val_interval": STEPS,
        }
        spec: dict[str, Any] = dataclasses.asdict(
            dataclasses.replace(
                training,
                **labels,
                val_images=training.images,
                steps=STEPS,
                epochs=None,
                options={**training.options, **options},
            )
        )
        write_json({"kind": "train", "spec": spec, "seed": 0, "needs": {}}, folder / "run" / "run.json")
        command, began = [*WORKER, str(folder / "run")], time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env=worker_environment())
        took = time.monotonic() - began
        if done.returncode:
            end = "\n    ".join((done.stdout + done.stderr).splitlines()[-25:])
            raise RunFailedError(f"{STEPS} steps of fine-tuning to measure their time failed:\n    {end}")
        times = {step: one["time"] for step, one in read_scalars(folder / "run").items() if "time" in one}
    step = statistics.median(seconds for number, seconds in times.items() if 2 < number < STEPS)
    return Pace(step, times[STEPS], max(0.0, took - STEPS * step - len(images) * times[STEPS]))


def fit_into(choices: list[Choice], budget: Budget, pace: Pace) -> tuple[list[Choice], str | None]:
    """Scales the numbers of steps to a time, except for those that the user gave.

    Returns:
        All choices, and a sentence for the user if the time is too short for them.
    """
    steps = [one for one in choices if one.name.endswith("_steps")]
    free = [one for one in steps if one.reason != GIVEN]
    given = sum(one.value for one in steps if one not in free)
    beside, second = budget.beside_steps(pace), budget.rounds * pace.step
    shortest = beside + second * (given + LEAST * len(free))
    factor, why, told = 0.0, f"the fewest allowed; --minutes {budget.minutes:g} is too short", None
    if shortest <= budget.left:
        factor = ((SHARE * budget.left - beside) / second - given) / max(1, sum(one.value for one in free))
        why = (
            f"--minutes {budget.minutes:g}: {clock(budget.left)} left, {clock(beside)} of it to make pseudo "
            f"labels, start and evaluate; {pace.step:.2f} s per step"
        )
    else:
        others = "are" if len(free) == len(steps) else "beside the given ones are"
        told = (
            f"--minutes {budget.minutes:g} cannot be met: "
            f"{f'{LEAST} steps {others} the least' if free else 'the steps are given'}, "
            f"about {math.ceil((budget.spent + shortest) / 60)} minutes in all"
        )
        if any(one.name == "finetune_steps" for one in free):
            told += "; AP will be near 0. Without --minutes, the steps follow from the data"
    found = [
        one._replace(value=max(LEAST, round(one.value * factor)), reason=why) if one in free else one
        for one in choices
    ]
    return found, told
