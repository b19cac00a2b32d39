"""The demo: saliency-prompt pre-training, fine-tuning and its two baselines on a synthetic low-data set."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from sp_fast.data.synthetic import SPLITS, SetOptions, make_set
from sp_fast.files import write_json
from sp_fast.jobs import Job, available_cores, run_jobs
from sp_fast.progress import RunProgress
from sp_fast.proposals import SaliencyProposer, build_backbone
from sp_fast.proposals.run import propose_folder
from sp_fast.proposals.scores import score_proposals
from sp_fast.report.demo_figure import write_figure
from sp_fast.report.demo_results import ARMS, SHORT, collect, curve, print_results
from sp_fast.report.progress import JobsView

CONFIGS = Path(__file__).resolve().parent / "configs" / "demo"
PRETRAIN_CONFIGS = {"pseudo_labels": "pretrain_without_prompts.py", "prompts": "pretrain.py"}


@dataclass(frozen=True)
class DemoOptions:
    """The size of the demo. `threshold` and `grid` are the proposer's, see `ProposalOptions`."""

    data: SetOptions = field(default_factory=SetOptions)
    pretrain_steps: int = 800
    finetune_steps: int = 300
    evaluate_every: int = 75
    threshold: float = 0.7
    grid: tuple[int, int] = (16, 16)


QUICK = DemoOptions(
    data=SetOptions(size=64, unlabelled=16, labelled=8, validation=8),
    pretrain_steps=3,
    finetune_steps=4,
    evaluate_every=2,
)


def run_demo(
    out: Path, seeds: Sequence[int], options: DemoOptions, console: Console, *, fresh: bool = False
) -> dict[str, Any]:
    """Everything that `sp-fast demo` does.

    Args:
        out: the folder written to.
        seeds: each makes a set, proposals and runs of its own.
        options: sizes and lengths.
        console: where progress and the table go.
        fresh: remove what earlier runs left in `out`.

    Returns:
        The results, as in results.json.

    Raises:
        JobFailedError: a training run failed.
    """
    seeds = list(dict.fromkeys(seeds))
    if fresh:
        for seed in seeds:
            shutil.rmtree(out / f"seed{seed}", ignore_errors=True)
    jobs: list[Job] = []
    of_seed: dict[int, dict[str, Job]] = {}
    proposals = {}
    for seed in seeds:
        folder = out / f"seed{seed}"
        _make_data(folder, seed, options, console)
        proposals[seed] = _score_proposals(folder)
        of_seed[seed] = _finetune_jobs(folder, seed, options, many=len(seeds) > 1)
    # Longest ways first; the short one fills the gap.
    for arm in ("prompts", "pseudo_labels", "scratch"):
        for seed in seeds:
            job = of_seed[seed][arm]
            jobs += [job.after, job] if job.after else [job]
    cores = min(available_cores(), len(jobs))
    console.print(
        f"training a small K-Net in three ways: {len(jobs)} runs, {cores} at a time, one thread each",
        highlight=False,
    )
    with JobsView(console) as view:
        run_jobs(jobs, view, cores)
    curves = {seed: {arm: curve(job.work_dir) for arm, job in of_seed[seed].items()} for seed in seeds}
    results = collect(asdict(options), proposals, curves)
    write_json(results, out / "results.json")
    first = out / f"seed{seeds[0]}"
    write_figure(out / "report.png", first, {arm: of_seed[seeds[0]][arm].work_dir for arm in ARMS}, results)
    print_results(results, console)
    console.print(f"report: {out / 'report.png'}; numbers: {out / 'results.json'}", highlight=False)
    return results


def _make_data(folder: Path, seed: int, options: DemoOptions, console: Console) -> None:
    """The set, and the proposals for its unlabelled scenes, unless they are there."""
    data = replace(options.data, seed=seed)
    console.print(f"seed {seed}: making the scenes", highlight=False)
    with RunProgress("scenes", console) as progress:
        make_set(folder / "set", data, progress)
    stamp = folder / "proposals.options.json"
    wanted = {"data": asdict(data), "threshold": options.threshold, "grid": list(options.grid)}
    if stamp.is_file() and json.loads(stamp.read_text()) == wanted:
        return
    stamp.unlink(missing_ok=True)
    for arm in ARMS:  # trained on what is now made anew
        shutil.rmtree(folder / arm, ignore_errors=True)
    proposer = SaliencyProposer(
        build_backbone("random", seed=seed),
        center=True,
        similarity="cosine",
        threshold=options.threshold,
        grid=options.grid,
    )
    console.print(f"seed {seed}: proposing saliency masks for the unlabelled ones", highlight=False)
    with RunProgress("images", console) as progress:
        propose_folder(
            folder / "set" / "unlabelled",
            folder / "proposals.json",
            proposer,
            size=None,
            restart=True,
            overwrite=True,
            progress=progress,
        )
    write_json(wanted, stamp)


def _score_proposals(folder: Path) -> dict[str, float]:
    """How well the proposals cover the objects, whose annotations training never reads."""
    scores = score_proposals(folder / "proposals.json", folder / "set" / SPLITS["unlabelled"])
    objects = scores.by_size["all"]
    return {
        "masks_per_image": scores.masks_per_image,
        "mean_best_iou": objects.mean_best_iou,
        "share_above_half": objects.above_half,
    }


def _finetune_jobs(folder: Path, seed: int, options: DemoOptions, *, many: bool) -> dict[str, Job]:
    """The three fine-tuning runs; those with pre-training stand after theirs."""
    data = folder / "set"
    label = f"seed {seed}, " if many else ""
    jobs = {}
    for arm in ARMS:
        work_dir = folder / arm / "finetune"
        arguments = [
            *_train("finetune.py", work_dir, seed),
            *("--images", str(data / "labelled"), "--annotations", str(data / "labelled.json")),
            *("--val-images", str(data / "validation"), "--val-annotations", str(data / "validation.json")),
            "--class-agnostic",
        ]
        before = None
        if arm in PRETRAIN_CONFIGS:
            before_dir = folder / arm / "pretrain"
            before = Job(
                f"{label}pre-train, {SHORT[arm]}",
                [
                    *_train(PRETRAIN_CONFIGS[arm], before_dir, seed),
                    *("--images", str(data / "unlabelled"), "--annotations", str(folder / "proposals.json")),
                    "--cfg-options",
                    *_schedule(options.pretrain_steps),
                ],
                before_dir,
                options.pretrain_steps,
            )
            arguments += ["--load-from", str(before.work_dir / "pretrained.pth")]
        arguments += [
            "--cfg-options",
            *_schedule(options.finetune_steps),
            f"train_cfg.val_interval={options.evaluate_every}",
            f"val_evaluator.0.outfile_prefix={work_dir / 'predictions'}",
        ]
        jobs[arm] = Job(
            f"{label}fine-tune, {SHORT[arm]}", arguments, work_dir, options.finetune_steps, before
        )
    return jobs


def _train(config: str, work_dir: Path, seed: int) -> list[str]:
    """The training command with what all runs share."""
    command = [sys.executable, "-W", "ignore", "-m", "sp_fast.train", str(CONFIGS / config)]
    return [*command, "--work-dir", str(work_dir), "--seed", str(seed)]


def _schedule(steps: int) -> list[str]:
    """The length of a run, and its learning rate's way down to the end of it."""
    warm_up = min(50, steps // 2)
    return [
        f"train_cfg.max_iters={steps}",
        f"param_scheduler.0.end={warm_up}",
        f"param_scheduler.1.begin={warm_up}",
        f"param_scheduler.1.end={steps}",
        f"param_scheduler.1.T_max={max(steps - warm_up, 1)}",
    ]
