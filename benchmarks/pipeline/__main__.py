"""CPU time, bytes and counts of what a user waits for, as a table: before, after, floor.

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --only loader losses --image 400 667
    python -m benchmarks.pipeline --tree ../earlier

Each part runs several times in processes of its own on one thread; values are medians. `before` comes from a
file; with --tree, which names a built checkout of an earlier version, it is measured in turn with `after` and
written to the file. With the environment variable SP_FAST_DATA, images are those of its coco_mini/train and
backbones have its weights; else both are made up.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pipeline.rows import Row, Sizes, Task, medians
from benchmarks.pipeline.table import Run, markdown, terminal

RESULTS = Path(__file__).parents[1] / "results"
BEFORE = RESULTS / "pipeline_before.json"
PARTS = {
    "loader": "loading",
    "step_demo": "training",
    "step_mini_coco": "training",
    "step_queryinst": "training",
    "step_mask2former": "training",
    "waits_mini_coco": "waits",
    "waits_queryinst": "waits",
    "waits_mask2former": "waits",
    "propose_mobilenet_v2": "proposing",
    "propose_resnet50": "proposing",
    "losses": "layers",
    "deformable": "layers",
}


def function_of(part: str) -> Callable[[Task], list[Row]]:
    """What measures a part."""
    function: Callable[[Task], list[Row]] = importlib.import_module(
        f"benchmarks.pipeline.{PARTS[part]}"
    ).PARTS[part]
    return function


def run_part(part: str, sizes: Sizes, data: Path | None, tree: Path | None = None) -> list[Row]:
    """Measure a part in a process of its own; no rows and its last lines on stderr where it fails.

    With a `tree`, sp_fast is that of this folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rows.json"
        task = dict(
            sizes=dataclasses.asdict(sizes), data=str(data or ""), tree=str(tree or ""), result=str(result)
        )
        command = [sys.executable, "-m", "benchmarks.pipeline", "--part", part, json.dumps(task)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{part} failed:\n" + "\n".join(done.stderr.splitlines()[-15:]), file=sys.stderr)
            return []
        return [Row(**row) for row in json.loads(result.read_text())]


def run_turns(
    part: str, sizes: Sizes, data: Path | None, trees: Sequence[Path | None], turns: int
) -> list[list[Row]]:
    """Measure a part several times, the trees in turn; rows of each tree, none where the part fails."""
    found: list[list[list[Row]]] = [[] for _ in trees]
    for _ in range(turns):
        for of_tree, tree in zip(found, trees, strict=True):
            of_tree.append(run_part(part, sizes, data, tree))
    return [medians(of_tree) if all(of_tree) else [] for of_tree in found]


def measure_part(part: str, given: dict[str, Any]) -> None:
    """The work of the process of a part."""
    if given["tree"]:
        sys.path.insert(0, given["tree"])
    sizes = Sizes(**{**given["sizes"], "image": tuple(given["sizes"]["image"])})
    data = Path(given["data"]) if given["data"] else None
    with tempfile.TemporaryDirectory() as folder:
        rows = function_of(part)(Task(sizes, Path(folder), data))
    Path(given["result"]).write_text(json.dumps([dataclasses.asdict(row) for row in rows]))


def _sizes(arguments: argparse.Namespace) -> Sizes:
    return Sizes(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sizes)})


def main() -> int:
    """Measure, print and write the table; 1 where a part failed."""
    if sys.argv[1:2] == ["--part"]:
        measure_part(sys.argv[2], json.loads(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in dataclasses.fields(Sizes):
        several = dict(nargs=2, metavar=("HEIGHT", "WIDTH")) if isinstance(field.default, tuple) else {}
        parser.add_argument(f"--{field.name}", type=int, default=field.default, **several)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--before", type=Path, default=BEFORE, help="file of an earlier run")
    parser.add_argument("--tree", type=Path, help="built checkout of an earlier version, to measure before")
    parser.add_argument("--turns", type=int, default=3, help="runs of each part")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of pipeline.md")
    arguments = parser.parse_args()
    sizes = _sizes(arguments)
    sizes = dataclasses.replace(sizes, image=tuple(sizes.image))
    data = Path(os.environ["SP_FAST_DATA"]) if os.environ.get("SP_FAST_DATA") else None
    trees = [None, *([arguments.tree.resolve()] if arguments.tree else [])]
    rows: list[Row] = []
    earlier: list[Row] = []
    failed = 0
    for number, part in enumerate(arguments.only, start=1):
        print(f"\r[{number}/{len(arguments.only)}] {part:<24}", end="", file=sys.stderr, flush=True)
        found, *before_it = run_turns(part, sizes, data, trees, arguments.turns)
        failed += not found
        rows += found
        earlier += before_it[0] if before_it else []
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    pixels = "photographs" if data else "made up"
    run = Run.of(rows, sizes, pixels)
    if arguments.tree:
        Run.of(earlier, sizes, pixels).write(arguments.before)
    before = Run.read(arguments.before, pixels) if arguments.before.is_file() else None
    print(terminal(rows, run, before))
    if not failed and set(arguments.only) == set(PARTS):
        (arguments.results / "pipeline.md").write_text(markdown(rows, run, before))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
