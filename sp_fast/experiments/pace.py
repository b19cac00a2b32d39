"""How many steps fit into a time, from a few measured ones."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.experiments.experiment import Training
from sp_fast.experiments.scheduler import WORKER, RunFailedError, worker_environment
from sp_fast.experiments.settings import GIVEN, Choice
from sp_fast.experiments.worker import read_scalars
from sp_fast.files import write_json

STEPS = 6
SHARE = 0.7  # of the time; the rest is for starting, proposals and evaluation
OF_PROPOSALS = 0.2  # of the time, at most
LEAST = 20


def seconds_per_step(training: Training) -> float:
    """Median time of a few steps of a fine-tuning on some of its images, after the first two.

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
        often = {"default_hooks.logger.interval": 1, "log_processor.window_size": 1}
        spec: dict[str, Any] = dataclasses.asdict(
            dataclasses.replace(
                training,
                **labels,
                val_images=training.images,
                steps=STEPS,
                epochs=None,
                options={**training.options, **often},
            )
        )
        write_json({"kind": "train", "spec": spec, "seed": 0, "needs": {}}, folder / "run" / "run.json")
        command = [*WORKER, str(folder / "run")]
        done = subprocess.run(command, capture_output=True, text=True, env=worker_environment())
        if done.returncode:
            end = "\n    ".join((done.stdout + done.stderr).splitlines()[-25:])
            raise RunFailedError(f"{STEPS} steps of fine-tuning to measure their time failed:\n    {end}")
        logged = read_scalars(folder / "run")
    return statistics.median(one["time"] for step, one in logged.items() if step > 2 and "time" in one)


def fit_into(choices: list[Choice], minutes: float, second: float, chains: int, jobs: int) -> list[Choice]:
    """Scales the numbers of steps to a time, except for those that the user gave.

    Args:
        choices: all choices.
        minutes: time for everything.
        second: seconds per step.
        chains: number of fine-tunings; the ones with pre-training among them take the longest.
        jobs: number of trainings at once.
    """
    steps = [one for one in choices if one.name.endswith("_steps")]
    free = [one for one in steps if one.reason != GIVEN]
    possible = minutes * 60 * SHARE / (max(1, -(-chains // jobs)) * second)
    left = possible - sum(one.value for one in steps if one not in free)
    factor = left / max(1, sum(one.value for one in free))
    why = f"--minutes {minutes:g}, {second:.2f} s per step measured, {1 - SHARE:.0%} left for the rest"
    return [
        one._replace(value=max(LEAST, round(one.value * factor)), reason=why) if one in free else one
        for one in choices
    ]
