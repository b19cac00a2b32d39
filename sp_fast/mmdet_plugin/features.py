"""Runs a frozen backbone once per image and mirror image; training steps then take its maps from memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from sp_fast.data.images import BrokenImageError
from sp_fast.mmdet_plugin.cache import CacheError, ImageCache, check_fits
from sp_fast.mmdet_plugin.hooks import unwrapped
from sp_fast.mmdet_plugin.wrapped import inner_datasets
from sp_fast.progress import RunProgress

BATCH_SIZE = 16
_NEEDS_RUNS = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class StoredFeatures:
    """The maps of a frozen backbone, which it returns in training steps instead of running.

    Each image's maps are made on its smallest canvas, as in evaluation: in a larger batch, the padding would
    reach into them.

    Args:
        backbone: the backbone, in the mode that it has in training.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._run = backbone.forward
        self._maps: dict[tuple[Any, bool], list[Tensor]] = {}
        self._next: list[tuple[Any, bool]] = []
        backbone.forward = self._forward

    def store(self, keys: Sequence[tuple[Any, bool]], images: Tensor) -> int:
        """Runs the backbone on normalised images `[B, 3, H, W]`; returns the size of all maps in bytes.

        Args:
            keys: id of each image, and whether it is mirrored.
            images: images of one canvas.
        """
        maps = self._run(images)
        for i, key in enumerate(keys):
            self._maps[key] = [one[i].clone() for one in maps]
        return sum(one.numel() * one.element_size() for one in maps)

    def take(self, data_samples: Sequence[Any]) -> None:
        """Chooses the images whose maps the backbone returns in its next calls, instead of running."""
        self._next = [(one.img_id, bool(one.get("flip", False))) for one in data_samples]

    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if not self._next:
            return self._run(images)
        # A step may take the batch in parts.
        keys, self._next = self._next[: len(images)], self._next[len(images) :]
        return tuple(_padded(stage) for stage in zip(*(self._maps[key] for key in keys), strict=True))


def _padded(maps: Sequence[Tensor]) -> Tensor:
    """One map of each image, in the upper left corner of the batch's canvas; 0 beyond."""
    rows, columns = (max(one.shape[axis] for one in maps) for axis in (1, 2))
    padded = maps[0].new_zeros(len(maps), len(maps[0]), rows, columns)
    for whole, one in zip(padded, maps, strict=True):
        whole[:, : one.shape[1], : one.shape[2]] = one
    return padded


@HOOKS.register_module()
class StoredFeaturesHook(Hook):
    """Stores the backbone's maps of all training images before the first step; `--cache features`.

    Raises:
        CacheError: the maps change from step to step (trained backbone, augmentation other than a horizontal
            flip), or too little memory is free; says which.
    """

    def __init__(self) -> None:
        self._stored: StoredFeatures | None = None

    def before_run(self, runner: Any) -> None:
        """Checks what can be checked before images are read."""
        model = unwrapped(runner.model)
        model.train()
        check_same_each_step(_backbone(model), _dataset(runner), model.data_preprocessor)

    @torch.no_grad()
    def before_train(self, runner: Any) -> None:
        """Runs the backbone on all images and their mirror images, unless no step is left."""
        if runner.iter >= runner.max_iters:
            return
        model, dataset = unwrapped(runner.model), _dataset(runner)
        model.train()
        stored = StoredFeatures(_backbone(model))
        groups = list(_by_canvas(dataset, model.data_preprocessor.pad_size_divisor))
        total = sum(len(group) for _, group in groups)
        area = sum(height * width * len(group) for (height, width), group in groups)
        done = 0
        with RunProgress("images") as progress, runner.optim_wrapper.optim_context(runner.model):
            for (height, width), group in groups:
                for mirrored in (False, True):
                    pixels = [_pixels(dataset.image_cache(i), mirrored) for i in group]
                    images = model.data_preprocessor({"inputs": pixels}, training=False)["inputs"]
                    keys = [(dataset.info_without_seeds(i)["img_id"], mirrored) for i in group]
                    size = stored.store(keys, images)
                    if not done and not mirrored and is_main_process():
                        what = f"the backbone's maps of {total} images and their mirror images"
                        need = size * 2 * area // (height * width * len(group))
                        check_fits(what, need, images.device, "resize to less, or use --cache ram")
                done += len(group)
                if is_main_process():
                    progress(done, total)
        self._stored = stored

    def before_train_iter(self, runner: Any, data_batch: Any = None, **_: Any) -> None:
        """Chooses the maps of the step's images."""
        assert self._stored is not None
        self._stored.take(data_batch["data_samples"])


def _dataset(runner: Any) -> Any:
    """The training set; the one that is repeated, if one is."""
    dataset, *others = dict.fromkeys(inner_datasets(runner.train_dataloader.dataset))
    if others:
        # Image ids may repeat across data sets.
        raise CacheError(
            f"--cache features: expected one training set, got {1 + len(others)}; use --cache ram"
        )
    return dataset


def _backbone(model: nn.Module) -> nn.Module:
    return getattr(model, "detector", model).backbone


def check_same_each_step(backbone: nn.Module, dataset: Any, data_preprocessor: Any) -> None:
    """Raises CacheError unless an image has the same maps in each step, except for being mirrored."""
    trained = [name for name, one in backbone.named_parameters() if one.requires_grad]
    if trained:
        raise CacheError(
            f"--cache features: expected a frozen backbone, got one that trains {trained[0]} and "
            f"{len(trained) - 1} other parameters; set frozen_stages to all its stages, or use --cache ram"
        )
    modules = backbone.named_modules()
    changing = [name for name, one in modules if isinstance(one, _NEEDS_RUNS) and one.training]
    if changing:
        raise CacheError(
            f"--cache features: expected a backbone in eval mode, got {changing[0]} in training mode; set "
            "norm_eval=True, or use --cache ram"
        )
    cache: ImageCache | None = getattr(dataset, "image_cache", None)
    if cache is None:
        raise CacheError("--cache features: expected train_dataloader.dataset.cache='ram', got None")
    others = [type(one).__name__ for one in cache.rest.transforms if not _keeps_maps(one)]
    if others or getattr(data_preprocessor, "batch_augments", None):
        raise CacheError(
            "--cache features: expected no augmentation but a horizontal RandomFlip, got "
            f"{', '.join(others) or 'batch_augments'}; use --cache ram"
        )


def _keeps_maps(transform: Any) -> bool:
    name = type(transform).__name__
    if name == "PackInstances":
        return {"img_id", "flip"} <= set(transform.meta_keys)
    return name == "RandomFlip" and transform.direction in ("horizontal", ["horizontal"])


def _by_canvas(dataset: Any, divisor: int) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """The images that can be read, in batches of one padded height and width."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i in range(len(dataset)):
        try:
            results = dataset.image_cache(i)
        except BrokenImageError:
            continue
        if results is not None:
            height, width = results["img"].shape[:2]
            groups.setdefault((-(-height // divisor) * divisor, -(-width // divisor) * divisor), []).append(i)
    for canvas, group in sorted(groups.items()):
        for start in range(0, len(group), BATCH_SIZE):
            yield canvas, group[start : start + BATCH_SIZE]


def _pixels(results: dict, mirrored: bool) -> Tensor:
    """An image as PackInstances gives it: uint8 `[3, H, W]`."""
    image = results["img"][:, ::-1] if mirrored else results["img"]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
