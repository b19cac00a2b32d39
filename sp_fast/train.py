"""Pre-trains, fine-tunes or evaluates from a config, with one process or several.

    sp-fast train CONFIG [options]
    torchrun --nproc-per-node 8 -m sp_fast train CONFIG [options]

In a checkout, `python sp_fast/train.py` works too. Runs on mmengine's Runner.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    # Run as a file, this folder is on the path and would shadow packages named `data` or `models`.
    sys.path.pop(0)

from sp_fast.work_folder import LOCK, claimed, remove_results

DEBUG = "SP_FAST_DEBUG"
EXAMPLES = """\
examples:
  pre-train on the masks of `sp-fast propose`:
    sp-fast train knet_mobilenet_v2/pretrain \\
      --images photos --annotations masks.json --weights mobilenet_v2.pth \\
      --work-dir runs/pretrain
  fine-tune the result on a few labels, and evaluate:
    sp-fast train knet_mobilenet_v2/finetune \\
      --images train --annotations train.json \\
      --val-images val --val-annotations val.json \\
      --load-from runs/pretrain/pretrained.pth --work-dir runs/finetune
  resume after an interruption, with the same options as before:
    sp-fast train CONFIG --work-dir runs/finetune --resume ...
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    try:
        from mmengine.config import DictAction
    except ImportError:
        raise SystemExit("sp-fast train needs mmdet and mmengine: pip install 'sp_fast[mmdet]'") from None
    from sp_fast.configs import config_names

    parser = argparse.ArgumentParser(
        prog="sp-fast train",
        description="Pre-train, fine-tune or evaluate from a config.\n"
        "Several processes: torchrun --nproc-per-node N -m sp_fast train CONFIG ...",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", help="Name of a config, such as knet_r50/pretrain, or a config file")
    names = "\n".join(config_names())
    add("--list", action="version", version=names, help="List the names of the configs and exit")
    add("--work-dir", help="Folder of logs, checkpoints and weights (default: runs/CONFIG)")
    add("--resume", action="store_true", help="Resume from the newest checkpoint in the work folder")
    add("--overwrite", action="store_true", help="Replace the results of an earlier run in the work folder")
    add("--eval-only", action="store_true", help="Evaluate --load-from and stop")
    add = parser.add_argument_group("data").add_argument
    add("--images", metavar="DIR", help="Training images")
    add("--annotations", metavar="FILE", help="Their annotations or proposals, in COCO format")
    add("--val-images", metavar="DIR", help="Validation images")
    add("--val-annotations", metavar="FILE", help="Their annotations, in COCO format")
    add("--no-val", action="store_true", help="Train without validation")
    add("--class-agnostic", action="store_true", help="Train and evaluate with all categories as one")
    add(
        "--max-megapixels",
        type=float,
        metavar="N",
        help="Largest image to read, in megapixels (default: 179)",
    )
    add = parser.add_argument_group("where to start from").add_argument
    add("--weights", metavar="FILE", help="Published weights of the backbone")
    add("--allow-partial", action="store_true", help="Accept --weights that lack some of the backbone")
    add("--load-from", metavar="FILE", help="Weights of the whole model: pretrained.pth to fine-tune")
    add("--from-scratch", action="store_true", help="Start from random weights, of the backbone too")
    run = parser.add_argument_group("run")
    add = run.add_mutually_exclusive_group().add_argument
    add("--epochs", type=int, metavar="N", help="Train for N epochs; the schedule is scaled to them")
    add("--steps", type=int, metavar="N", help="Train for N steps; the schedule is scaled to them")
    add = run.add_argument
    add("--batch-size", type=int, metavar="N", help="Images per batch in each process")
    total = "Images per step in all processes together; gradients of several batches are added up"
    add("--total-batch", type=int, metavar="N", help=total)
    cached = "Keep decoded, resized images and masks in memory; features: a frozen backbone's maps too"
    add("--cache", choices=("ram", "features"), help=cached)
    add("--seed", type=int, metavar="N", help="Random seed of weights, order and augmentation")
    mixed = "Mixed precision, or not (default: on a GPU with bfloat16): bfloat16 if supported, else float16"
    add("--amp", action=argparse.BooleanOptionalAction, help=mixed)
    add("--ema", action="store_true", help="Evaluate and save a moving average of the weights")
    stop = "Stop after N validations in a row without a better mask AP"
    add("--early-stop", type=int, metavar="N", help=stop)
    add("--tensorboard", action="store_true", help="Write the log for TensorBoard too, in the work folder")
    add("--wandb", metavar="PROJECT", help="Send the log to a project of Weights & Biases")
    overridden = "Override any config entry, as KEY=VALUE"
    add("--cfg-options", nargs="+", action=DictAction, default={}, metavar="ENTRY", help=overridden)
    try:
        return parser.parse_args(arguments)
    except (ValueError, AssertionError) as error:  # from DictAction
        parser.error(f"--cfg-options: expected KEY=VALUE: {error}")


def load_config(args: argparse.Namespace) -> Any:
    """The config with the command line's options applied; see `sp_fast.configuration.apply_options`."""
    from mmengine.config import Config

    from sp_fast.configs import find_config
    from sp_fast.configuration import apply_options, scale_length
    from sp_fast.overrides import apply_overrides
    from sp_fast.run_options import apply_run_options

    path = find_config(args.config)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is Python code, which may raise anything
        raise ValueError(f"CONFIG: {args.config}: {type(error).__name__}: {error}") from error
    with named_as_config_error():
        for unit in ("epochs", "steps"):
            if getattr(args, unit) is not None:
                scale_length(cfg, unit, getattr(args, unit))
        apply_overrides(cfg, args.cfg_options)  # after the scaling: what is asked for by name is not scaled
        apply_options(cfg, args)
        apply_run_options(cfg, args)
    return cfg


def initialise_processes() -> str:
    """Joins torchrun's processes where there are any; returns mmengine's name of the launcher."""
    if "LOCAL_RANK" not in os.environ:
        return "none"
    import torch
    import torch.distributed as dist

    # mmengine's own initialisation calls torch.cuda.set_device, which fails without a GPU.
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    return "pytorch"


def prepare(args: argparse.Namespace) -> Any:
    """The runner with its data read and checked and its weights loaded, ready to train or to evaluate."""
    return build_runner(load_config(args), args)


def build_runner(cfg: Any, args: argparse.Namespace) -> Any:
    """The runner of a config from `load_config`; see `prepare`."""
    import sp_fast.models  # noqa: F401  (the mmcv bridge has to be imported before mmdet)
    from sp_fast.mmdet_plugin.runner import Runner
    from sp_fast.run_options import check_start

    cfg.resume = args.resume
    with removed_on_failure(Path(cfg.work_dir)), named_as_config_error():
        check_start(cfg, args)
        cfg.launcher = initialise_processes()
        runner = Runner.from_cfg(cfg)
        runner.initialise(
            weights=args.weights,
            allow_partial=args.allow_partial,
            load_from=args.load_from,
            complete=args.eval_only,
        )
        if not args.eval_only:
            runner.check_before_training(resume=args.resume)
    return runner


@contextlib.contextmanager
def named_as_config_error() -> Iterator[None]:
    """Turns mmengine's errors about misspelt config values into a ValueError of one line."""
    try:
        yield
    except (TypeError, KeyError, AttributeError, ImportError, AssertionError) as error:
        text = str(error.args[0] if error.args else error).strip().replace("\n", " ")
        text = _unknown_type(text) or text or type(error).__name__
        raise ValueError(f"CONFIG: {text} ({DEBUG}=1 shows where)") from error


def _unknown_type(text: str) -> str:
    """Mmengine's error about a name that is not registered, in short and with the nearest name."""
    from mmengine import registry

    found = re.match(r"(\S+) is not in the (?:\w+::)?(.+?) registry", text)
    if not found:
        return ""
    name, kind = found.groups()
    roots = [
        one for one in vars(registry).values() if isinstance(one, registry.Registry) and one.name == kind
    ]
    known = [key for root in roots for one in (root, *root.children.values()) for key in one.module_dict]
    nearest = "".join(
        f"did you mean {one}? " for one in difflib.get_close_matches(name, known, 1, cutoff=0.0)
    )
    return f"unknown type of {kind} {name!r}; {nearest}A class of your own needs custom_imports"


@contextlib.contextmanager
def removed_on_failure(folder: Path) -> Iterator[None]:
    """Removes a new folder when its block fails, so that a run that cannot start leaves nothing."""
    existed = folder.exists() and any(one.name != LOCK for one in folder.iterdir())
    try:
        yield
    except BaseException:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status, as `run` does."""
    return run(parse_arguments(arguments))


def run(args: argparse.Namespace, hooks: Sequence[Any] = ()) -> int:
    """Trains or evaluates, with mmengine hooks of the caller; returns the exit status.

    2 for bad input, 1 for a loss that is not finite, too little memory or a full disk, 128 plus the signal's
    number when a signal stopped it.
    """
    with contextlib.ExitStack() as held:
        try:
            cfg = load_config(args)
            if not args.eval_only:
                held.enter_context(claimed(Path(cfg.work_dir), resume=args.resume, overwrite=args.overwrite))
            runner = build_runner(cfg, args)
            for hook in hooks:
                runner.register_hook(hook)
        except (OSError, ValueError) as error:
            if os.environ.get(DEBUG):
                raise
            return _failed(error, 2)
        if args.overwrite:
            remove_results(Path(cfg.work_dir))
        return _train_or_evaluate(runner, args)


def _train_or_evaluate(runner: Any, args: argparse.Namespace) -> int:
    import torch

    from sp_fast.mmdet_plugin.batch_parts import NotEnoughMemoryError
    from sp_fast.mmdet_plugin.cache import CacheError
    from sp_fast.mmdet_plugin.hooks import NonFiniteLossError, StopRequestedError
    from sp_fast.mmdet_plugin.loops import ResumeError

    try:
        runner.test() if args.eval_only else runner.train()
    except (NonFiniteLossError, NotEnoughMemoryError, torch.OutOfMemoryError, OSError) as error:
        return _failed(error, 1)
    except (CacheError, ResumeError) as error:
        return _failed(error, 2)
    except StopRequestedError as stopped:
        return _failed(f"{stopped}; the same command with --resume goes on", 128 + stopped.signal)
    finally:
        leave_processes()
    return 0


def _failed(message: object, status: int) -> int:
    if int(os.environ.get("LOCAL_RANK", 0)) == 0 or status == 1:  # status 2 is the same in all processes
        print(f"sp-fast train: {message}", file=sys.stderr)
    return status


def leave_processes() -> None:
    """Closes the process group, if there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
