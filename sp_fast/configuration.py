"""Applies the training command's options to a config; an option that it cannot use is an error."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sp_fast.data.check import errors_before_training
from sp_fast.data.coco import CONVERT, load_coco
from sp_fast.data.images import set_max_megapixels
from sp_fast.data.store import open_store
from sp_fast.proposals.store import seeds_path


def apply_options(cfg: Any, args: argparse.Namespace) -> None:
    """Applies the command line's options to `cfg`, except for the length: see `scale_length`.

    Raises:
        FileNotFoundError: a file or folder that is named does not exist.
        ValueError: a number out of range, an option that the config cannot use, or data that do not fit.
    """
    _check_paths(args)
    _check_numbers(args)
    if args.max_megapixels is not None:
        set_max_megapixels(args.max_megapixels)
    if args.eval_only and not args.load_from:
        raise ValueError("--eval-only: expected the checkpoint to evaluate in --load-from, got none")
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or str(default_folder(args.config))
    if args.seed is not None:
        cfg.randomness = dict(cfg.get("randomness") or {}, seed=args.seed)
    if args.batch_size is not None:
        _section(cfg, "train_dataloader", "--batch-size").batch_size = args.batch_size
    if args.total_batch is not None:
        _set_total_batch(cfg, args.total_batch)
    _training_data(cfg, args)
    if args.no_val:
        _leave_out_validation(cfg, args)
    _validation_data(cfg, args)
    if args.class_agnostic:
        _merge_classes(cfg)
    _check_data(cfg, "val_dataloader" if args.eval_only else None)
    _match_classes(cfg, args)
    _match_seeds(cfg)
    if args.cache:
        _section(cfg, "train_dataloader", "--cache")
        for dataset in _datasets(cfg, "train_dataloader", "val_dataloader"):
            dataset.cache = "ram"
    if args.cache == "features":
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), dict(type="StoredFeaturesHook")]


def _set_total_batch(cfg: Any, total: int) -> None:
    sampler: Any = _section(cfg, "train_dataloader", "--total-batch").get("batch_sampler") or {}
    if sampler.get("type") != "StepBatchSampler":
        raise ValueError(
            "--total-batch: expected a config with train_dataloader.batch_sampler=dict(type="
            f"'StepBatchSampler') and a StepTrainLoop, got {sampler.get('type')}"
        )
    sampler.total = total


def scale_length(cfg: Any, unit: str, length: int) -> None:
    """Sets the length of training, and scales the schedules of learning rate and evaluation in proportion.

    Args:
        cfg: the config, changed in place. If it counts epochs and is given steps, it counts steps afterwards.
        unit: "epochs" or "steps". In a config of epochs, schedules in steps, such as a warm-up, stay.
        length: number of epochs or steps, at least 1.

    Raises:
        ValueError: `length` below 1, or the config's loop counts in the other unit.
    """
    loop = _section(cfg, "train_cfg", f"--{unit}")
    if length < 1:
        raise ValueError(f"--{unit}: expected at least 1, got {length}")
    by_epoch = loop.get("max_epochs") is not None
    if unit == "epochs" and not by_epoch:
        raise ValueError("--epochs: this config counts steps; use --steps N")
    if unit == "steps" and by_epoch and loop.get("type") != "StepTrainLoop":
        raise ValueError("--steps: this config counts epochs without StepTrainLoop; use --epochs N")
    factor = length / loop.pop("max_epochs" if by_epoch else "max_iters")
    loop["max_epochs" if unit == "epochs" else "max_iters"] = length
    if "val_interval" in loop:
        # Rounded up, so that no short interval is left; the margin is for products such as 4.0000001.
        loop.val_interval = max(1, min(length, math.ceil(loop.val_interval * factor - 1e-6)))
    for scheduler in cfg.get("param_scheduler") or []:
        if scheduler.get("by_epoch", True) != by_epoch:
            continue
        if unit == "steps":
            scheduler.by_epoch = False
            scheduler.pop("convert_to_iter_based", None)
        for name in {"begin", "end", "T_max"} & scheduler.keys():
            scheduler[name] = round(scheduler[name] * factor)
        scheduler.end = max(scheduler.get("end", length), scheduler.get("begin", 0) + 1)
        if "T_max" in scheduler:
            scheduler.T_max = max(1, scheduler.T_max)
        if "milestones" in scheduler:
            scheduler.milestones = [max(1, round(step * factor)) for step in scheduler.milestones]


def default_folder(config: str) -> Path:
    """The work folder of a config without one: `runs/` and its name, or the last two parts of its path."""
    parts = [part for part in Path(config).with_suffix("").parts if part not in ("/", "..")]
    return Path("runs", *parts[-2:])


def is_pretraining(cfg: Any) -> bool:
    """Whether the config pre-trains with saliency prompts."""
    return cfg.model.type == "SaliencyPromptPretrainer"


def _training_data(cfg: Any, args: argparse.Namespace) -> None:
    if not (args.images or args.annotations):
        return
    dataset = _only_dataset(cfg, "train_dataloader", "--images")
    if args.images:
        dataset.images = args.images
    source = cfg.model.get("source", "cached")
    if is_pretraining(cfg) and source in ("shared", "teacher"):
        if args.annotations:
            raise ValueError(f"--annotations: source='{source}' makes its own proposals; leave this out")
        return
    if args.annotations:
        dataset.ann_file = args.annotations
        if is_pretraining(cfg):
            dataset.seeds = _seeds_beside(args.annotations) if source == "cached" else None


def _seeds_beside(annotations: str) -> str:
    seeds = seeds_path(Path(annotations))
    if not seeds.is_file():
        raise FileNotFoundError(
            f"--annotations: expected the seeds of `sp-fast propose` beside {annotations}, in {seeds}, "
            "which does not exist; for masks from elsewhere add --cfg-options model.source=import"
        )
    return str(seeds)


def _validation_data(cfg: Any, args: argparse.Namespace) -> None:
    if not (args.val_images or args.val_annotations):
        for dataset in _datasets(cfg, "val_dataloader"):
            default = dataset.get("ann_file")
            if default and not Path(default).is_file():
                raise FileNotFoundError(
                    f"--val-annotations: expected the annotations of the validation images, got the config's "
                    f"{default}, which does not exist; --no-val trains without validation"
                )
        return
    for name in ("val", "test"):
        dataset = _only_dataset(cfg, f"{name}_dataloader", "--val-images")
        if args.val_images:
            dataset.images = args.val_images
        if args.val_annotations:
            dataset.ann_file = args.val_annotations
            for metric in _metrics(cfg, f"{name}_evaluator"):
                metric.ann_file = args.val_annotations


def _leave_out_validation(cfg: Any, args: argparse.Namespace) -> None:
    for option in ("val_images", "val_annotations", "eval_only"):
        if getattr(args, option):
            raise ValueError(f"--no-val: expected without --{option.replace('_', '-')}, got both")
    for kind in ("val", "test"):
        for part in ("cfg", "dataloader", "evaluator"):
            cfg[f"{kind}_{part}"] = None
    cfg.train_cfg.pop("val_interval", None)


def _check_data(cfg: Any, only: str | None) -> None:
    """Raises on errors in the data, which would otherwise show only after an epoch, or in a worker."""
    loaders = [only] if only else []
    sets = [one for one in _datasets(cfg, *loaders) if one.get("type") == "InstanceDataset"]
    files = {
        (one.ann_file, one.images): (one.get("tight_boxes", False), one.get("class_agnostic", False))
        for one in sets
    }
    for (ann_file, images), (tight_boxes, class_agnostic) in files.items():
        errors_before_training(ann_file, images, boxes=not tight_boxes, class_agnostic=class_agnostic)


def _merge_classes(cfg: Any) -> None:
    for dataset in _datasets(cfg):
        dataset.class_agnostic = True
    for name in ("val_evaluator", "test_evaluator"):
        cfg[name] = [one for one in _metrics(cfg, name) if one.type == "ClassAgnosticCocoMetric"] or None


def _match_classes(cfg: Any, args: argparse.Namespace) -> None:
    """Sets the classes of the class heads and of the validation set to those of the training annotations.

    An evaluation without training annotations takes those of its checkpoint.
    """
    if is_pretraining(cfg):
        return
    _section(cfg, "train_dataloader", "CONFIG")
    train = _datasets(cfg, "train_dataloader")
    if any(dataset.get("type") != "InstanceDataset" for dataset in train):
        return
    if all(dataset.get("class_agnostic") for dataset in train):
        set_num_classes(cfg.model, 1)
        return
    by_checkpoint = args.eval_only and not args.annotations
    source = args.load_from if by_checkpoint else train[0].ann_file
    sets = _datasets(cfg, "val_dataloader", "test_dataloader") if by_checkpoint else _datasets(cfg)
    # Each file once: validation and test share theirs, and a large one takes long to check.
    names_in = {path: _class_names(path) for path in dict.fromkeys(one.ann_file for one in sets)}
    names = _classes_of_checkpoint(source) if by_checkpoint else names_in[source]
    for dataset in sets:
        unknown = sorted(set(names_in[dataset.ann_file]) - set(names))
        if unknown:
            raise ValueError(
                f"{dataset.ann_file}: expected the categories of {source}, got also "
                f"{', '.join(unknown[:5])}; use --class-agnostic, or annotations of the same categories"
            )
        dataset.metainfo = dict(classes=names)
    set_num_classes(cfg.model, len(names))


def _match_seeds(cfg: Any) -> None:
    """Sets the input channels of Eq. 9's layer to those of the stored seeds, or of the last stage."""
    if not is_pretraining(cfg) or not cfg.model.get("supervision"):
        return
    if cfg.model.get("source", "cached") != "cached":
        detector = cfg.model.detector
        reader = detector.get("neck") or detector.get("panoptic_head")
        if reader:  # otherwise the config has to set it
            cfg.model.supervision.seed_channels = reader.in_channels[-1]
        return
    _section(cfg, "train_dataloader", "CONFIG")
    store = _datasets(cfg, "train_dataloader")[0].get("seeds")
    if store and Path(store).is_file():
        with safe_open(store, framework="pt") as seeds:
            cfg.model.supervision.seed_channels = seeds.get_slice("seeds").get_shape()[1]


def set_num_classes(model: Any, num_classes: int) -> None:
    """Sets every `num_classes` in a model's config, and Mask2Former's counterparts of it."""
    if isinstance(model, dict):
        if "num_things_classes" in model:
            model["num_things_classes"], model["num_stuff_classes"] = num_classes, 0
            if "loss_cls" in model:
                background = model["loss_cls"]["class_weight"][-1]
                model["loss_cls"]["class_weight"] = [1.0] * num_classes + [background]
        for key, value in model.items():
            if key == "num_classes":
                model[key] = num_classes
            else:
                set_num_classes(value, num_classes)
    elif isinstance(model, (list, tuple)):
        for value in model:
            set_num_classes(value, num_classes)


def _classes_of_checkpoint(path: str) -> tuple[str, ...]:
    from sp_fast.mmdet_plugin.class_rows import named_classes
    from sp_fast.mmdet_plugin.safe_resume import load_checkpoint_file

    names = named_classes(load_checkpoint_file(path))
    if names is None:
        raise ValueError(
            f"--annotations: expected the training annotations, got none; {path} does not name classes"
        )
    return names


def _class_names(ann_file: str) -> tuple[str, ...]:
    store = open_store(ann_file)
    categories = store.categories if store is not None else load_coco(ann_file)["categories"]
    categories = sorted(categories, key=lambda category: category["id"])
    return tuple(category["name"] for category in categories)


def _datasets(cfg: Any, *loaders: str) -> list[Any]:
    """The data sets of the given loaders, by default of all, without the wrappers around them."""
    loaders = loaders or ("train_dataloader", "val_dataloader", "test_dataloader")
    return [one for name in loaders if cfg.get(name) for one in _unwrapped(cfg[name].dataset)]


def _unwrapped(dataset: Any) -> list[Any]:
    """The data sets in a RepeatDataset or ConcatDataset, or else the one given."""
    inside = [dataset["dataset"]] if "dataset" in dataset else dataset.get("datasets")
    return [dataset] if inside is None else [found for one in inside for found in _unwrapped(one)]


def _metrics(cfg: Any, name: str) -> list[Any]:
    """The metrics of an evaluator; a config may give one without a list."""
    metrics = cfg.get(name) or []
    return [metrics] if isinstance(metrics, dict) else list(metrics)


def _only_dataset(cfg: Any, loader: str, option: str) -> Any:
    """The data set of a loader that an option of the command line is for."""
    datasets = _unwrapped(_section(cfg, loader, option).dataset)
    if len(datasets) > 1:
        raise ValueError(
            f"{option}: expected one data set in the config's {loader}, got {len(datasets)}; name the files "
            "of each in the config"
        )
    return datasets[0]


def _section(cfg: Any, name: str, option: str) -> Any:
    if not cfg.get(name):
        raise ValueError(f"{option}: this config has no {name}")
    return cfg[name]


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("batch_size", "total_batch"):
        given = getattr(args, name)
        if given is not None and given < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {given}")
    if args.seed is not None and not 0 <= args.seed < 2**32:  # NumPy's limits
        raise ValueError(f"--seed: expected 0 to {2**32 - 1}, got {args.seed}")


def _check_paths(args: argparse.Namespace) -> None:
    for name in ("images", "val_images", "annotations", "val_annotations", "weights", "load_from"):
        given = getattr(args, name)
        if not given:
            continue
        option, path = f"--{name.replace('_', '-')}", Path(given)
        if name.endswith("images"):
            if not path.is_dir():
                raise NotADirectoryError(f"{option}: expected a folder of images, got {given}")
        elif path.is_dir():
            mend = f"; {CONVERT}" if name.endswith("annotations") else ""
            raise IsADirectoryError(f"{option}: expected a file, got the folder {given}{mend}")
        elif not path.is_file():
            raise FileNotFoundError(f"{option}: expected a file, got {given}, which does not exist")
