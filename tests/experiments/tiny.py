"""A tiny experiment whose runs train nothing, and a call of it: `python -m tests.experiments.tiny OUT`."""

import sys
from pathlib import Path
from unittest.mock import patch

from sp_fast.experiments import Comparison, Experiment, Proposals, Row, Training, results, scheduler
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.store import Source

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def tiny(config="some/config", **length):
    length = length or {"steps": 15}
    pretrain = Training(config, "photos", **length)
    finetune = {name: Training(config, "photos", f"{name}.json", **length) for name in ("few", "many")}
    masks = Proposals("photos")
    return Experiment(
        "tiny",
        "A tiny experiment",
        rows=[
            Row("none", "no pre-training", finetune=finetune),
            Row("labels", "pseudo labels", masks, pretrain, finetune),
            Row("same", "the same again", masks, pretrain, {"few": finetune["few"]}, expected={"few": 12.5}),
        ],
        metrics={"AP": "AP"},
        seeds=(0, 1),
        comparisons=[Comparison("labels", "none", "pre-training helps")],
    )


def run(out, experiment=None, seconds=None, jobs=2, rows=None):
    """One call, as `sp-fast experiment run` makes it; gives the results."""
    plan = Plan(experiment or tiny(), out, [0, 1])
    wanted = plan.needed(rows or [row.name for row in plan.experiment.rows], plan.seeds)
    try:
        with patch.object(scheduler, "WORKER", FAKE_WORKER):
            scheduler.run_all(wanted, Source("tiny"), jobs=jobs, seconds=seconds, show=lambda *_: None)
    finally:
        found = results.write(plan)
    return found


if __name__ == "__main__":
    run(Path(sys.argv[1]), seconds=float(sys.argv[2]) if len(sys.argv) > 2 else None)
