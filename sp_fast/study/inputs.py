"""What the study's models are given: images, masks, the maps of a frozen backbone, each read or made once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import nn

from sp_fast.progress import RunProgress
from sp_fast.study.batches import Batch, Order, flips, make_batch
from sp_fast.study.features import StoredFeatures, is_frozen, store_features
from sp_fast.study.memory import Images, Masks, load_images, pack_masks
from sp_fast.study.proposals import load_proposals
from sp_fast.study.source import UNLABELLED, StudyData, annotated, image_paths, labelled_ids


class Labelled(NamedTuple):
    """Annotated images: the images, their annotations in COCO's format and their masks."""

    images: Images
    coco: dict[str, Any]
    masks: Masks


class Inputs:
    """Images and masks on the device.

    Args:
        data: where they are.
        size: longer side in pixels.
        limit: images of each split at most, None for all.
        normalize: of the model.
        device: where they go.
        workers: threads that read.
        console: for the progress.
    """

    def __init__(
        self,
        data: StudyData,
        size: int,
        limit: int | None,
        normalize: nn.Module,
        *,
        device: torch.device,
        workers: int,
        console: Console,
    ) -> None:
        self.data, self.size, self.limit, self.normalize = data, size, limit, normalize
        self.device, self.workers, self.console = device, workers, console
        self._masks: dict[Path, Masks] = {}
        self._features: dict[tuple[str, int], StoredFeatures | None] = {}

    @functools.cached_property
    def class_ids(self) -> list[int]:
        """Category id of each label."""
        return sorted(category["id"] for category in self._all_annotations["categories"])

    def pseudo_labelled(self, proposals: Path) -> tuple[Images, Masks]:
        """The images to pre-train on and their proposals, from the folder of these."""
        images, names = self._unlabelled
        if proposals not in self._masks:
            masks = load_proposals(proposals, names, images, self.workers)
            self._masks[proposals] = masks.to(self.device)
        return images, self._masks[proposals]

    def labelled(self, percent: int) -> Labelled:
        """The images to fine-tune on."""
        images, coco = self._train
        chosen = set(labelled_ids(coco, percent))
        rows = [i for i, image in enumerate(coco["images"]) if image["id"] in chosen]
        images = replace(images, pixels=images.pixels[rows], sizes=images.sizes[rows])
        infos = [coco["images"][i] for i in rows]
        of_image: dict[Any, list[dict]] = {image["id"]: [] for image in infos}
        for one in coco["annotations"]:
            if one["image_id"] in of_image:
                of_image[one["image_id"]].append(one)
        labels = {category: label for label, category in enumerate(self.class_ids)}
        shapes = [(image["height"], image["width"]) for image in infos]
        masks = pack_masks(
            images, [of_image[image["id"]] for image in infos], shapes, labels, workers=self.workers
        )
        return Labelled(images.to(self.device), {**coco, "images": infos}, masks.to(self.device))

    @functools.cached_property
    def validation(self) -> tuple[Images, dict[str, Any]]:
        """The images to measure on and their annotations."""
        coco = annotated(self.data, "val", self.limit)
        return self._load_annotated(coco, "val").to(self.device), coco

    def batches(
        self, images: Images, masks: Masks, order: Order, backbone: nn.Module, name: str
    ) -> Callable[[int], Batch]:
        """The batch of each step; a frozen backbone then gives its maps out of memory, if they fit there.

        Args:
            images: of the batches.
            masks: theirs.
            order: which images a step sees; its seed is that of the flips too.
            backbone: of the model.
            name: of the images.
        """
        stored = self._stored(name, order.seed, backbone, images) if is_frozen(backbone) else None
        if stored is not None:
            stored.attach(backbone)

        def batch_of(step: int) -> Batch:
            index = order(step)
            flip = flips(order.seed, step, len(index))
            batch = make_batch(images, masks, index, flip)
            if stored is not None:
                stored.take(index, flip, batch)
            return batch

        return batch_of

    def _stored(self, name: str, seed: int, backbone: nn.Module, images: Images) -> StoredFeatures | None:
        # Of one seed at a time: without weights the backbone differs from seed to seed.
        if (name, seed) not in self._features:
            self._features = {key: one for key, one in self._features.items() if key[1] == seed}
            self.console.print(f"features of {name}", highlight=False)
            with RunProgress("images", self.console) as progress:
                self._features[name, seed] = store_features(backbone, self.normalize, images, progress)
        return self._features[name, seed]

    @functools.cached_property
    def _all_annotations(self) -> dict[str, Any]:
        return annotated(self.data, "train")

    @functools.cached_property
    def _unlabelled(self) -> tuple[Images, dict[str, list[str]]]:
        # With the names by split.
        paths, names, shapes = [], {}, []
        known = {
            image["file_name"]: (image["height"], image["width"]) for image in self._all_annotations["images"]
        }
        for split in UNLABELLED:
            own = image_paths(self.data, split, self.limit)
            names[split] = [path.relative_to(self.data.images(split)).as_posix() for path in own]
            shapes += [known.get(name) if split == "train" else None for name in names[split]]
            paths += own
        images = self._load(paths, "images to pre-train on", shapes)
        return images.to(self.device), names

    @functools.cached_property
    def _train(self) -> tuple[Images, dict[str, Any]]:
        coco = annotated(self.data, "train", self.limit)
        return self._load_annotated(coco, "train"), coco

    def _load_annotated(self, coco: dict[str, Any], split: str) -> Images:
        paths = [self.data.images(split) / image["file_name"] for image in coco["images"]]
        shapes = [(image["height"], image["width"]) for image in coco["images"]]
        return self._load(paths, f"{split} images", shapes)

    def _load(self, paths: Sequence[Path], what: str, shapes: Sequence[tuple[int, int] | None]) -> Images:
        self.console.print(what, highlight=False)
        with RunProgress("images", self.console) as progress:
            return load_images(paths, self.size, shapes, self.workers, progress)
