"""The whole study: proposals, then for each seed and variant pre-training and two fine-tunings."""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from sp_fast.models.hooks import EXPORTED_NAME, write_weights
from sp_fast.proposals.progress import RunProgress, clock
from sp_fast.study.batches import Batch, Order, flips, make_batch
from sp_fast.study.evaluation import evaluate
from sp_fast.study.features import StoredFeatures, is_frozen, store_features
from sp_fast.study.locks import claimed, turn_in
from sp_fast.study.memory import Images, Masks, load_images, pack_masks
from sp_fast.study.models import (
    Normalizer,
    build_detector,
    build_pretrainer,
    detector_losses,
    load_settings,
    load_transferable,
)
from sp_fast.study.pieces import RESULT, Piece, all_pieces, seconds_left
from sp_fast.study.proposals import load_proposals, make_proposals
from sp_fast.study.results import device_name
from sp_fast.study.source import UNLABELLED, StudyData, annotated, image_paths, labelled_ids
from sp_fast.study.training import CHECKPOINT, Budget, Schedule, spaced, train, write_json
from sp_fast.study.variants import VARIANTS

STUDY = "study.json"


@dataclass(frozen=True)
class StudyOptions:
    """Everything the numbers depend on, beside data, variants and seeds.

    Attributes:
        backbone: one of `sp_fast.study.models.BACKBONES`, or a config file.
        images: images that pre-training sees, each as often as it comes up.
        size: longer side of the images in pixels, a multiple of 32.
        proposal_size: the same where proposals are made.
        finetune_steps: of both fine-tunings.
        evaluations: of each fine-tuning, at equal distances, the last at the end.
        limit: images of each split at most, None for all.
    """

    backbone: str = "mobilenet_v2"
    images: int = 50_000
    size: int = 384
    proposal_size: int = 640
    finetune_steps: int = 600
    evaluations: int = 2
    limit: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range, naming the option."""
        if self.size % 32 or self.size < 64:
            raise ValueError(f"--size: expected a multiple of 32 from 64 on, got {self.size}")
        for name in ("images", "proposal_size", "finetune_steps", "evaluations"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}: expected at least 1, got {getattr(self, name)}")


class Study:
    """One call of the command.

    Args:
        data: images and labels.
        out: folder of everything that is made.
        options: see :class:`StudyOptions`.
        variants: names.
        seeds: of weights, order and flips.
        device: where the models are.
        budget: of this call.
        console: for the progress.
        workers: threads that read images.
    """

    def __init__(
        self,
        data: StudyData,
        out: Path,
        options: StudyOptions,
        variants: Sequence[str],
        seeds: Sequence[int],
        *,
        device: torch.device,
        budget: Budget,
        console: Console,
        workers: int = 4,
    ) -> None:
        self.data, self.out, self.options = data, out, options
        self.variants, self.seeds = list(variants), list(dict.fromkeys(seeds))
        self.device, self.budget, self.console, self.workers = device, budget, console, workers
        self.settings = load_settings(options.backbone)
        self.normalize = Normalizer(self.settings.model.data_preprocessor).to(device)
        self.pieces = all_pieces(out, self.variants, self.seeds)
        self._evaluation_seconds = 0.0
        self._masks: dict[str, Masks] = {}
        self._features: dict[tuple[str, int], StoredFeatures | None] = {}
        self._check_same()

    def _check_same(self) -> None:
        """Writes down what the numbers in `out` depend on, or compares it with what is written there."""
        now = json.loads(json.dumps({**asdict(self.options), **self._settings()}))
        stamp = self.out / STUDY
        if not stamp.is_file():
            write_json(now, stamp)
            return
        before = json.loads(stamp.read_text())
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            name = changed[0]
            raise ValueError(
                f"--out: {self.out} holds a study with {name} {before.get(name)}, now it is {now[name]}; "
                "give the same options to go on with it, or another --out"
            )

    def _settings(self) -> dict[str, Any]:
        return {name: dict(self.settings[name]) for name in ("pretrain", "finetune", "proposals")}

    def run(self) -> None:
        """Makes all that is not there yet and that no other process is making.

        Raises:
            OutOfTimeError: the time is up; the same call goes on.
        """
        wanted = {VARIANTS[name].proposals for name in self.variants} - {None}
        for preset in sorted(filter(None, wanted)):
            with turn_in(self._proposals(preset)):
                make_proposals(
                    self.data,
                    dict(self.settings.proposals),
                    preset,
                    self._proposals(preset),
                    size=self.options.proposal_size,
                    device=self.device,
                    workers=self.workers,
                    budget=self.budget,
                    console=self.console,
                )
        for _, group in itertools.groupby(self.pieces, key=lambda piece: piece.folder.parent):
            pieces = list(group)
            if all(piece.finished for piece in pieces):
                continue
            with claimed(pieces[0].folder.parent) as mine:
                for piece in pieces:
                    if mine and not piece.finished:
                        self._make(piece)

    def _make(self, piece: Piece) -> None:
        self.budget.check()
        left = seconds_left(self.pieces)
        about = "" if left is None else f"; about {clock(left)} left in all"
        number = self.pieces.index(piece) + 1
        self.console.print(
            f"[{number}/{len(self.pieces)}] {piece.name}{about}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        started = time.monotonic()
        result = self._pretrain(piece) if piece.kind == "pretrain" else self._finetune(piece)
        result["wall_seconds"] = result["seconds"] + sum(
            one["seconds"] for one in result.get("evaluations", [])
        )
        write_json({**result, "device": device_name(self.device)}, piece.folder / RESULT)
        (piece.folder / CHECKPOINT).unlink(missing_ok=True)
        self.console.print(f"    done in {clock(time.monotonic() - started)}", highlight=False)

    def _proposals(self, preset: str) -> Path:
        return self.out / "proposals" / preset

    def _schedule(self, kind: str, steps: int) -> Schedule:
        return Schedule(steps=steps, **self.settings[kind])

    def _pretrain(self, piece: Piece) -> dict[str, Any]:
        variant = VARIANTS[piece.variant]
        assert variant.proposals is not None
        batch_size = self.settings.pretrain.batch_size
        schedule = self._schedule("pretrain", max(1, self.options.images // batch_size))
        images, _ = self._unlabelled
        masks = self._pseudo_labels(variant.proposals)
        start = self._start(piece.seed)
        channels = None if masks.seeds is None else masks.seeds.shape[1]
        model = build_pretrainer(self.settings, variant, start, piece.seed, channels).to(self.device).train()
        batch_of = self._batches(
            "images to pre-train on", piece, schedule, images, masks, model.detector.backbone
        )

        def losses_of(step: int) -> Any:
            batch = batch_of(step)
            return model.loss(self.normalize(batch), batch)

        val, val_coco = self._validation

        def measure() -> Any:
            return self._evaluation(lambda: evaluate(model.detector, self.normalize, val, val_coco, None))

        trained = self._train(piece, model, losses_of, schedule, {schedule.steps: measure})
        write_weights(model.export(), piece.folder / EXPORTED_NAME, iter=schedule.steps)
        seen = schedule.steps * batch_size
        evaluations = [{"step": int(step), **one} for step, one in trained.pop("after").items()]
        rate = seen / trained["seconds"]
        return {"images": seen, "images_per_second": rate, "evaluations": evaluations, **trained}

    def _finetune(self, piece: Piece) -> dict[str, Any]:
        images, coco, masks = self._labelled(piece.percent)
        val, val_coco = self._validation
        model = self._start(piece.seed)
        if VARIANTS[piece.variant].proposals is not None:
            path = piece.folder.parent / "pretrain" / EXPORTED_NAME
            load_transferable(model, torch.load(path, weights_only=True)["state_dict"])
        model = model.to(self.device).train()
        schedule = self._schedule("finetune", self.options.finetune_steps)
        batch_of = self._batches(
            f"{piece.percent} % of train", piece, schedule, images, masks, model.backbone
        )

        def losses_of(step: int) -> Any:
            batch = batch_of(step)
            return detector_losses(model, self.normalize(batch), batch)

        def measure() -> Any:
            return self._evaluation(lambda: evaluate(model, self.normalize, val, val_coco, self._class_ids))

        steps = spaced(schedule.steps, self.options.evaluations)
        trained = self._train(piece, model, losses_of, schedule, dict.fromkeys(steps, measure))
        evaluations = [{"step": int(step), **one} for step, one in trained.pop("after").items()]
        labelled = {"images": len(coco["images"]), "objects": int(masks.starts[-1])}
        return {"labelled": labelled, "evaluations": evaluations, **trained}

    def _evaluation(self, values_of: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        self.budget.check(1.5 * self._evaluation_seconds)
        started = time.monotonic()
        values = values_of()
        self._evaluation_seconds = time.monotonic() - started
        return {**values, "seconds": self._evaluation_seconds}

    def _train(
        self,
        piece: Piece,
        model: nn.Module,
        losses_of: Callable[[int], Any],
        schedule: Schedule,
        after: dict[int, Callable[[], Any]] | None = None,
    ) -> dict[str, Any]:
        piece.folder.mkdir(parents=True, exist_ok=True)
        with RunProgress("steps", self.console) as progress:
            return train(
                model,
                losses_of,
                schedule,
                piece.folder,
                piece.seed,
                self.budget,
                after=after,
                progress=progress,
            )

    def _batches(
        self,
        name: str,
        piece: Piece,
        schedule: Schedule,
        images: Images,
        masks: Masks,
        backbone: nn.Module,
    ) -> Callable[[int], Batch]:
        """The batch of each step; a frozen backbone then gives its maps out of memory, if they fit there."""
        order = Order(images.sizes, schedule.batch_size, schedule.steps, piece.seed)
        stored = self._stored(name, piece.seed, backbone, images) if is_frozen(backbone) else None
        if stored is not None:
            stored.attach(backbone)

        def batch_of(step: int) -> Batch:
            index = order(step)
            flip = flips(piece.seed, step, len(index))
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

    def _pseudo_labels(self, preset: str) -> Masks:
        if preset not in self._masks:
            images, names = self._unlabelled
            masks = load_proposals(self._proposals(preset), names, images, self.workers)
            self._masks[preset] = masks.to(self.device)
        return self._masks[preset]

    def _start(self, seed: int) -> nn.Module:
        """The plain detector as all variants of a seed begin."""
        weights = self.data.weights(self.settings.proposals.get("weights"))
        return build_detector(self.settings, len(self._class_ids), seed, weights)

    @functools.cached_property
    def _class_ids(self) -> list[int]:
        return sorted(category["id"] for category in self._train_coco["categories"])

    @functools.cached_property
    def _train_coco(self) -> dict[str, Any]:
        return annotated(self.data, "train")

    @functools.cached_property
    def _unlabelled(self) -> tuple[Images, dict[str, list[str]]]:
        """Images to pre-train on, on the device, and their names by split."""
        paths, names, shapes = [], {}, []
        known = {
            image["file_name"]: (image["height"], image["width"]) for image in self._train_coco["images"]
        }
        for split in UNLABELLED:
            own = image_paths(self.data, split, self.options.limit)
            names[split] = [path.relative_to(self.data.images(split)).as_posix() for path in own]
            shapes += [known.get(name) if split == "train" else None for name in names[split]]
            paths += own
        images = self._load(paths, "images to pre-train on", shapes)
        return images.to(self.device), names

    @functools.cached_property
    def _validation(self) -> tuple[Images, dict[str, Any]]:
        coco = annotated(self.data, "val", self.options.limit)
        return self._load_annotated(coco, "val").to(self.device), coco

    @functools.cached_property
    def _train_images(self) -> tuple[Images, dict[str, Any]]:
        coco = annotated(self.data, "train", self.options.limit)
        return self._load_annotated(coco, "train"), coco

    def _labelled(self, percent: int) -> tuple[Images, dict[str, Any], Masks]:
        images, coco = self._train_images
        chosen = set(labelled_ids(coco, percent))
        rows = [i for i, image in enumerate(coco["images"]) if image["id"] in chosen]
        images = replace(images, pixels=images.pixels[rows], sizes=images.sizes[rows])
        infos = [coco["images"][i] for i in rows]
        of_image: dict[Any, list[dict]] = {image["id"]: [] for image in infos}
        for one in coco["annotations"]:
            if one["image_id"] in of_image:
                of_image[one["image_id"]].append(one)
        labels = {category: label for label, category in enumerate(self._class_ids)}
        shapes = [(image["height"], image["width"]) for image in infos]
        masks = pack_masks(
            images, [of_image[image["id"]] for image in infos], shapes, labels, workers=self.workers
        )
        return images.to(self.device), {**coco, "images": infos}, masks.to(self.device)

    def _load_annotated(self, coco: dict[str, Any], split: str) -> Images:
        paths = [self.data.images(split) / image["file_name"] for image in coco["images"]]
        shapes = [(image["height"], image["width"]) for image in coco["images"]]
        return self._load(paths, f"{split} images", shapes)

    def _load(self, paths: Sequence[Path], what: str, shapes: Sequence[tuple[int, int] | None]) -> Images:
        with RunProgress(what, self.console) as progress:
            return load_images(paths, self.options.size, shapes, self.workers, progress)
