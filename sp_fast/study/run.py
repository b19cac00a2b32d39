"""The whole study: proposals, then for each seed and variant pre-training and two fine-tunings."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from sp_fast.files import write_json
from sp_fast.mmdet_plugin.hooks import EXPORTED_NAME, write_weights
from sp_fast.progress import RunProgress, clock
from sp_fast.study.batches import Order
from sp_fast.study.evaluation import evaluate
from sp_fast.study.inputs import Inputs
from sp_fast.study.locks import claimed, turn_in
from sp_fast.study.models import (
    Normalizer,
    build_detector,
    build_pretrainer,
    detector_losses,
    load_settings,
    load_transferable,
)
from sp_fast.study.pieces import RESULT, Piece, all_pieces, seconds_left
from sp_fast.study.proposals import make_proposals
from sp_fast.study.results import device_name
from sp_fast.study.source import StudyData
from sp_fast.study.training import CHECKPOINT, Budget, Schedule, spaced, train
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
        self.inputs = Inputs(
            data, options.size, options.limit, self.normalize, device=device, workers=workers, console=console
        )
        self._evaluation_seconds = 0.0
        self._check_same()

    def _check_same(self) -> None:
        """Writes down what the numbers in `out` depend on, or compares it with what is written there."""
        now = json.loads(json.dumps(self.all_options()))
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

    def all_options(self) -> dict[str, Any]:
        """What was asked for and what the backbone's config says of training and proposals."""
        settings = {name: dict(self.settings[name]) for name in ("pretrain", "finetune", "proposals")}
        return {**asdict(self.options), **settings}

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
        images, masks = self.inputs.pseudo_labelled(self._proposals(variant.proposals))
        channels = None if masks.seeds is None else masks.seeds.shape[1]
        model = build_pretrainer(self.settings, variant, self._start(piece.seed), piece.seed, channels)
        model = model.to(self.device).train()
        order = Order(images.sizes, batch_size, schedule.steps, piece.seed)
        batch_of = self.inputs.batches(
            images, masks, order, model.detector.backbone, "images to pre-train on"
        )

        def losses_of(step: int) -> Any:
            batch = batch_of(step)
            return model.loss(self.normalize(batch), batch)

        evaluations = {schedule.steps: lambda: self._evaluate(model.detector, None)}
        trained = self._train(piece, model, losses_of, schedule, evaluations)
        write_weights(model.export(), piece.folder / EXPORTED_NAME, iter=schedule.steps)
        seen = schedule.steps * batch_size
        return {"images": seen, "images_per_second": seen / trained["seconds"], **trained}

    def _finetune(self, piece: Piece) -> dict[str, Any]:
        images, coco, masks = self.inputs.labelled(piece.percent)
        model = self._start(piece.seed)
        if VARIANTS[piece.variant].proposals is not None:
            path = piece.folder.parent / "pretrain" / EXPORTED_NAME
            load_transferable(model, torch.load(path, weights_only=True)["state_dict"])
        model = model.to(self.device).train()
        schedule = self._schedule("finetune", self.options.finetune_steps)
        order = Order(images.sizes, schedule.batch_size, schedule.steps, piece.seed)
        batch_of = self.inputs.batches(images, masks, order, model.backbone, f"{piece.percent} % of train")

        def losses_of(step: int) -> Any:
            batch = batch_of(step)
            return detector_losses(model, self.normalize(batch), batch)

        steps = spaced(schedule.steps, self.options.evaluations)
        evaluations = dict.fromkeys(steps, lambda: self._evaluate(model, self.inputs.class_ids))
        trained = self._train(piece, model, losses_of, schedule, evaluations)
        labelled = {"images": len(coco["images"]), "objects": int(masks.starts[-1])}
        return {"labelled": labelled, **trained}

    def _start(self, seed: int) -> nn.Module:
        """The plain detector as all variants of a seed begin."""
        weights = self.data.weights(self.settings.proposals.get("weights"))
        return build_detector(self.settings, len(self.inputs.class_ids), seed, weights)

    def _evaluate(self, detector: nn.Module, class_ids: list[int] | None) -> dict[str, Any]:
        self.budget.check(1.5 * self._evaluation_seconds)
        images, coco = self.inputs.validation
        started = time.monotonic()
        values = evaluate(detector, self.normalize, images, coco, class_ids)
        self._evaluation_seconds = time.monotonic() - started
        return {**values, "seconds": self._evaluation_seconds}

    def _train(
        self,
        piece: Piece,
        model: nn.Module,
        losses_of: Callable[[int], Any],
        schedule: Schedule,
        evaluations: Mapping[int, Callable[[], Any]],
    ) -> dict[str, Any]:
        piece.folder.mkdir(parents=True, exist_ok=True)
        with RunProgress("steps", self.console) as progress:
            trained = train(
                model,
                losses_of,
                schedule,
                piece.folder,
                piece.seed,
                self.budget,
                after=evaluations,
                progress=progress,
            )
        after = trained.pop("after")
        return {"evaluations": [{"step": int(step), **one} for step, one in after.items()], **trained}
