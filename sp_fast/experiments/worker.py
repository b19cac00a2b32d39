"""One run of an experiment, in a separate process: `python -m sp_fast.experiments.worker FOLDER`.

FOLDER/run.json says what to do. `result.json` is written last and is the same for each run of one spec;
`times.json` holds what varies. To train or propose in several processes, it starts itself with `--make-only`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import sp_fast
from sp_fast.experiments.plan import RESULT, Run
from sp_fast.experiments.store import Source
from sp_fast.files import sha256, write_json

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

PROGRESS = "progress.json"
TIMES = "times.json"
MASKS = "masks.json"
PREDICTIONS = "predictions"
PREDICTED = f"{PREDICTIONS}.segm.json"
LENGTH = "length.json"
CURVE_POINTS = 40
MAKE_ONLY = "--make-only"


def main(folder: Path) -> int:
    """Executes the run in a folder; returns the exit status."""
    started = time.time()
    run = json.loads((folder / "run.json").read_text())
    spec, seed = run["spec"], run["seed"]
    near, places = _near(folder, run)
    if run["kind"] == "data":
        prepare = Source(**run["source"]).load().prepare
        assert prepare is not None
        prepare(folder, seed)
        result: dict[str, Any] = {}
    elif run["kind"] == "analysis":
        module, _, name = spec["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        result = function(folder, near.get("trained"), **filled(spec["options"], places))
    else:
        processes = 1 if spec.get("kind") == "random_boxes" else run.get("processes", 1)
        status = make(folder) if processes == 1 else launch(folder, processes)
        if status:
            return status
        finished = _proposed if run["kind"] == "proposals" else _trained
        result = finished(folder, filled(spec, places))
    _add_times(folder, time.time() - started)
    write_json(result, folder / RESULT)
    return 0


def launch(folder: Path, processes: int) -> int:
    """Makes the run in a folder with several processes, as torchrun does; returns the exit status.

    A signal to stop reaches all processes.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(os.getpid())}
    config = LaunchConfig(1, 1, processes, max_restarts=0, **place)
    module = ["-W", "ignore", "-m", "sp_fast.experiments.worker", str(folder), MAKE_ONLY]
    try:
        elastic_launch(config, sys.executable)(*module)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def make(folder: Path) -> int:
    """Trains or proposes, alone or as one of several processes; returns the exit status."""
    run = json.loads((folder / "run.json").read_text())
    near, places = _near(folder, run)
    spec, seed, status = filled(run["spec"], places), run["seed"], 0
    if run["kind"] == "proposals":
        _propose(folder / MASKS, spec, seed)
    else:
        status = _train(train_arguments(spec, folder, seed, near), spec["options"])
    if not status and int(os.environ.get("RANK", 0)) == 0:
        _add_times(folder, 0.0)  # with the memory of this process
    return status


def _near(folder: Path, run: dict[str, Any]) -> tuple[dict[str, Path], dict[str, str]]:
    """Folders of the runs that a run needs, and what `{data}` and `{seed}` stand for in it."""
    near = {name: folder.parent / key for name, key in run["needs"].items()}
    return near, {"data": str(near.get("data", "")), "seed": str(run["seed"])}


def _add_times(folder: Path, seconds: float) -> None:
    """Adds to the time that the run took, and updates its peak memory and where it runs."""
    before = json.loads((folder / TIMES).read_text()) if (folder / TIMES).is_file() else {}
    peaks = {name: max(peak, before.get(name, 0)) for name, peak in _peak_memory().items()}
    write_json(
        {**before, "seconds": before.get("seconds", 0.0) + seconds, **peaks, **_environment()}, folder / TIMES
    )


def seconds_taken(run: Run) -> float | None:
    """Seconds that a finished run took; None if it does not say."""
    path = run.folder / TIMES
    return json.loads(path.read_text()).get("seconds") if path.is_file() else None


def train_arguments(training: dict[str, Any], folder: Path, seed: int, near: dict[str, Path]) -> list[str]:
    """The arguments of `sp-fast train`, without `--cfg-options`, for the fields of a `Training`.

    `near` are folders of the runs that this one needs, by `proposals` and `pretrain`.
    """
    options = {
        "--work-dir": folder,
        "--seed": seed,
        "--images": training["images"],
        "--annotations": near["proposals"] / MASKS if "proposals" in near else training["annotations"],
        "--val-images": training["val_images"],
        "--val-annotations": training["val_annotations"],
        "--steps": training["steps"],
        "--epochs": training["epochs"],
        "--load-from": near["pretrain"] / "pretrained.pth" if "pretrain" in near else None,
    }
    words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return [training["config"], *words, "--resume", *training["arguments"]]


def _train(arguments: list[str], options: dict[str, Any]) -> int:
    from sp_fast import train
    from sp_fast.experiments.length import LengthHook

    parsed = train.parse_arguments(arguments)
    parsed.cfg_options = {**options, **parsed.cfg_options}
    if parsed.val_images:
        folder = Path(parsed.work_dir)
        parsed.cfg_options.setdefault("val_evaluator.0.outfile_prefix", str(folder / PREDICTIONS))
    return train.run(parsed, hooks=[LengthHook(Path(parsed.work_dir) / LENGTH)])


def _propose(out: Path, spec: dict[str, Any], seed: int) -> None:
    if spec["kind"] == "random_boxes":
        from sp_fast.proposals.random_boxes import write_random_boxes

        write_random_boxes(spec["images"], out, overwrite=True, **{"seed": seed, **spec["options"]})
    else:
        _propose_masks(spec, out, seed)


def _proposed(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Which images the proposals are of, and how well they cover the objects if these are annotated."""
    if spec["truth"] is None:
        return {"data": fingerprint(spec["images"])}
    from sp_fast.proposals.scores import score_proposals

    scores = dataclasses.asdict(score_proposals(folder / MASKS, spec["truth"]))
    return {"data": fingerprint(spec["images"], spec["truth"]), "scores": _without_nan(scores)}


def _propose_masks(spec: dict[str, Any], out: Path, seed: int) -> None:
    import torch

    from sp_fast.proposals import SaliencyProposer, build_backbone
    from sp_fast.proposals.ranks import RankProgress, Ranks
    from sp_fast.proposals.run import propose_folder

    size = spec["size"]
    last = -math.inf

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 1 or done == total:
            last = time.monotonic()
            write_json({"done": done, "total": total}, out.with_name(PROGRESS))

    if out.is_file():
        return
    ranks = Ranks() if Ranks.started() else None
    card = f"cuda:{ranks.local_rank}" if ranks else "cuda"
    progress = RankProgress(ranks, report) if ranks else report
    summary = propose_folder(
        spec["images"],
        out,
        SaliencyProposer(build_backbone(**{"seed": seed, **spec["backbone"]}), **spec["options"]),
        size=tuple(size) if isinstance(size, list) else size,
        device=card if torch.cuda.is_available() else "cpu",
        shard=(ranks.rank + 1, ranks.world) if ranks else (1, 1),
        progress=progress,
    )
    if isinstance(progress, RankProgress):
        progress.finish(summary.merged)


def _trained(folder: Path, training: dict[str, Any]) -> dict[str, Any]:
    """What a training logged: the measured values by step, and the losses at some of the steps."""
    evaluations, losses = [], []
    for step, entry in sorted(read_scalars(folder).items()):
        lost = {name: value for name, value in entry.items() if name == "loss" or "loss_" in name}
        names = [name for name in entry if "/" in name and "loss" not in name]
        measured = {name: entry[name] for name in names if not name.endswith(("time", "memory"))}
        evaluations += [{"step": step, **measured}] if measured else []
        losses += [{"step": step, **lost}] if lost else []
    stride = max(1, math.ceil(len(losses) / CURVE_POINTS))
    losses = losses[stride - 1 :: stride]
    data = {"training": fingerprint(training["images"], training["annotations"])}
    if training["val_images"]:
        data["validation"] = fingerprint(training["val_images"], training["val_annotations"])
    found = {"evaluations": evaluations, "losses": losses, "data": data}
    if (folder / LENGTH).is_file():
        found["steps_per_epoch"] = json.loads((folder / LENGTH).read_text())["steps_per_epoch"]
    if (folder / PREDICTED).is_file():
        found["details"] = _details(folder, training, evaluations)
    return found


def _details(folder: Path, training: dict[str, Any], evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    from sp_fast.experiments.details import details

    # The first evaluator wrote the predictions; it is class-agnostic only if all are.
    names = {name for one in evaluations for name in one if name != "step"}
    agnostic = all(name.startswith("class_agnostic/") for name in names)
    return details(folder / PREDICTED, training["val_annotations"], class_agnostic=agnostic)


def read_scalars(folder: Path) -> dict[int, dict[str, Any]]:
    """The values that mmengine logged by step, from every start of the run; of each step the last."""
    steps: dict[int, dict[str, Any]] = {}
    for log in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in log.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break  # the last line is being written
            steps.setdefault(int(entry["step"]), {}).update(entry)
    return steps


def fingerprint(images: str, annotations: str | None = None) -> dict[str, Any]:
    """Number of images, and hashes: of their names and sizes, and of the annotation file."""
    from sp_fast.data.images import list_images

    paths = list_images(images)
    listing = "\n".join(f"{path.relative_to(images).as_posix()} {path.stat().st_size}" for path in paths)
    found = {"images": len(paths), "listing_sha256": hashlib.sha256(listing.encode()).hexdigest()}
    if annotations:
        found["annotations_sha256"] = sha256(Path(annotations))
    return found


def place(run: Run, name: str) -> Path:
    """A path of the run's spec, with `{data}` and `{seed}` filled in."""
    data = str(run.folder.parent / run.needs.get("data", ""))
    return Path(filled(run.spec[name], {"data": data, "seed": str(run.seed)}))


def filled(value: Any, places: dict[str, str]) -> Any:
    """The value with `{data}` and `{seed}` replaced in all its strings."""
    if isinstance(value, dict):
        return {key: filled(one, places) for key, one in value.items()}
    if isinstance(value, list):
        return [filled(one, places) for one in value]
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(f"{{{name}}}", place)
    return value


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _peak_memory() -> dict[str, int]:
    """Most memory of this process, and on the GPU of its tensors, in bytes; what the system tells of it."""
    import torch

    peaks = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        peaks["memory"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_available():
        peaks["gpu_memory"] = torch.cuda.max_memory_allocated()
    return peaks


def _environment() -> dict[str, Any]:
    import torch

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "host": platform.node(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mmdet": metadata.version("mmdet") if importlib.util.find_spec("mmdet") else None,
        "sp_fast": sp_fast.__version__,
        "revision": _revision(),
    }


def _revision() -> str | None:
    """The git commit of a package that is used from its repository; `-dirty` if files were changed."""
    root = Path(sp_fast.__file__).parents[1]
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit((make if MAKE_ONLY in sys.argv else main)(Path(sys.argv[1])))
