"""The training command's options that say how to run: precision, averaging, when to stop, where to log."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import torch

from sp_fast.weights.published import where_to_find
from sp_fast.work_folder import newest_checkpoint

# The average reaches over about the last tenth of the steps so far, however long the run is.
EMA = dict(type="EMAHook", ema_type="MomentumAnnealingEMA", gamma=10, update_buffers=True)


def apply_run_options(cfg: Any, args: argparse.Namespace) -> None:
    """Changes `cfg` as the command line says.

    Raises:
        ValueError: a package or a GPU is missing, or this config has no use for an option.
    """
    if args.amp or (args.amp is None and _bf16() and cfg.optim_wrapper.get("type") == "OptimWrapper"):
        _mixed_precision(cfg)
    if args.ema:
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), dict(EMA)]
    if args.early_stop is not None:
        _early_stop(cfg, args.early_stop)
    if args.tensorboard:
        _needs("tensorboard", "--tensorboard")
        cfg.visualizer.vis_backends.append(dict(type="TensorboardVisBackend"))
    if args.wandb:
        _needs("wandb", "--wandb")
        options = dict(project=args.wandb, name=Path(cfg.work_dir).name)
        cfg.visualizer.vis_backends.append(dict(type="WandbVisBackend", init_kwargs=options))


def check_start(cfg: Any, args: argparse.Namespace) -> None:
    """Sees to it that training starts from given weights, from a checkpoint, or from random ones if asked to.

    Raises:
        ValueError: nothing says where to start, two options contradict each other, or the checkpoint is lost.
    """
    if args.resume and args.overwrite:
        raise ValueError("--resume: expected without --overwrite, got both")
    if args.from_scratch and (args.weights or args.load_from):
        raise ValueError("--from-scratch: expected without --weights and --load-from, got one of them")
    folder = Path(cfg.work_dir)
    resumes = args.resume and newest_checkpoint(folder) is not None
    if args.resume and not (resumes or args.eval_only):
        _check_nothing_lost(folder)
    detector = cfg.model.get("detector", cfg.model)
    initial = (detector.get("backbone") or {}).get("init_cfg") or {}
    given = (args.weights, args.load_from, args.eval_only, resumes, cfg.get("load_from"))
    random = args.from_scratch or cfg.get("from_scratch", False)
    if not (any(given) or random or initial.get("type") == "Pretrained"):
        raise ValueError(
            "--weights: expected published weights of the backbone, or with --load-from those of the whole "
            "model (pretrained.pth), got neither; --from-scratch starts from random ones. Published weights "
            f"that fit:\n{where_to_find()}"
        )


def _check_nothing_lost(folder: Path) -> None:
    """Raises if a folder without a checkpoint has weights of a trained step, which are written after one."""
    from sp_fast.mmdet_plugin.safe_resume import load_checkpoint_file

    for name in ("best.pth", "pretrained.pth"):
        path = folder / name
        step = load_checkpoint_file(path).get("meta", {}).get("iter", 0) if path.is_file() else 0
        if step:
            raise ValueError(
                f"--resume: expected latest.pth in {folder}, got only {name} of step {step}, which lacks the "
                "optimiser's state. Put latest.pth back; or train on from it in another --work-dir with "
                f"--load-from {path}; or start anew with --overwrite instead of --resume"
            )


def _bf16() -> bool:
    """Whether there is a GPU that computes in bfloat16."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _mixed_precision(cfg: Any) -> None:
    if not torch.cuda.is_available():
        raise ValueError(
            "--amp: expected a GPU, which mixed precision is for; there is none, leave --amp out"
        )
    if _bf16():
        # bfloat16 has the range of float32: its losses need no scale.
        options = dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=dict(enabled=False))
    else:
        options = dict(type="AmpOptimWrapper", dtype="float16")
    cfg.optim_wrapper.update(options)


def _early_stop(cfg: Any, patience: int) -> None:
    if patience < 1:
        raise ValueError(f"--early-stop: expected at least 1 validation, got {patience}")
    if not cfg.get("val_evaluator"):
        raise ValueError("--early-stop: this config has no validation to judge by")
    cfg.default_hooks.best = dict(type="BestCheckpointHook", patience=patience)


def _needs(package: str, option: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{option}: expected the package {package}, which is missing: pip install {package}")
