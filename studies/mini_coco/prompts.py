"""What prompts and the kernel loss do in the models that `sp-fast study mini-coco` has pre-trained, on val.

python benchmarks/study_prompts.py DATA runs/study --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from rich.console import Console
from sp_fast.report.study_table import value
from sp_fast.study.batches import Batch, in_turn, make_batch
from sp_fast.study.evaluation import BATCH_SIZE, evaluate
from sp_fast.study.inputs import Inputs
from sp_fast.study.memory import Images, Masks
from sp_fast.study.models import (
    Normalizer,
    build_detector,
    build_pretrainer,
    load_settings,
    load_transferable,
)
from sp_fast.study.pieces import RESULT
from sp_fast.study.proposals import load_proposals
from sp_fast.study.run import STUDY
from sp_fast.study.source import open_data
from sp_fast.study.variants import SALIENCY, VARIANTS
from torch import Tensor, nn

from sp_fast.knet import StageOutput
from sp_fast.mmdet_plugin.hooks import EXPORTED_NAME
from sp_fast.pretraining.adapters import adapter_for

PROMPTS = {
    "beside_kernels": "norm of prompt / K^0",
    "beside_first": "in % of the kernels after the first head",
    "common": "of its square, common to all prompts",
    "taken": "prompts taken",
    "explained": "variance the kernel explains",
}
NEEDED = {
    f"{metric}_{whose}": f"{title}: {name}"
    for metric, title in (("ar", "AR"), ("iou", "best IoU"))
    for whose, name in (("none", "none"), ("own", "own"), ("other", "another's"), ("mean", "the mean"))
}
KERNELS = {
    "loss": "kernel loss at the end",
    "constant": "of one direction for all",
    "alike": "cosine of two kernels",
    "turned": "degrees K^0 has turned",
}

Prompts = tuple[Tensor, Tensor]  # [B, L, C] and how many of each image
Change = Callable[[Tensor, Tensor], Prompts]


class Prompted(nn.Module):
    """A pre-trained K-Net whose kernels take the prompts of the proposals where they did in pre-training.

    Args:
        model: the pre-trainer.
        batches: in the order in which they are asked for.
        normalize: of the model.
        change: of prompts `[B, L, C]` and counts `[B]`: which prompts are taken instead.
    """

    def __init__(
        self, model: Any, batches: Iterator[Batch], normalize: nn.Module, change: Change | None = None
    ) -> None:
        super().__init__()
        self.model, self.batches, self.normalize, self.change = model, batches, normalize, change
        self.max_per_img, self.mask_thr = model.detector.max_per_img, model.detector.mask_thr

    def forward(self, inputs: Tensor, mode: str) -> tuple[Tensor, Tensor]:
        """The last stage's class and mask logits."""
        batch = next(self.batches)
        assert torch.equal(self.normalize(batch), inputs), "not the images whose proposals these are"
        pyramid = self.model.detector.extract_feat(inputs)
        prompts = prompts_of(self.model, pyramid, batch, inputs)
        if self.change is not None:
            prompts = self.change(*prompts)
        last = stages_of(self.model, pyramid, prompts)[-1]
        return last.cls_logits, last.mask_logits


def prompts_of(model: Any, pyramid: tuple[Tensor, ...], batch: Batch, inputs: Tensor) -> Prompts:
    """Eq. 5 of the batch's proposals."""
    return model.generator(pyramid, batch.boxes, batch.count, inputs.shape[-2:]), batch.count


def stages_of(model: Any, pyramid: tuple[Tensor, ...], prompts: Prompts) -> list[StageOutput]:
    """Every update stage, with kernels decorated where the model decorates them."""

    def decorate(kernels: Tensor) -> Tensor:
        return model.injector(kernels, *prompts)[0]

    return adapter_for(model.detector).decorated(pyramid, decorate, model.inject)[1]


def batches(images: Images, masks: Masks) -> Iterator[Batch]:
    """All images once, as `evaluate` takes them."""
    for index in in_turn(images.sizes, BATCH_SIZE):
        yield make_batch(images, masks, index, np.zeros(len(index), bool))


class Run:
    """One pre-trained model and what it is measured on.

    Args:
        inputs: of the study.
        masks: the proposals of val.
        settings: of the backbone.
        out: folder of the study.
        variant: name.
        seed: of the run.
    """

    def __init__(
        self, inputs: Inputs, masks: Masks, settings: Any, out: Path, variant: str, seed: int
    ) -> None:
        self.inputs, self.masks, self.seed = inputs, masks, seed
        self.folder = out / f"seed{seed}" / variant / "pretrain"
        start = build_detector(settings, len(inputs.class_ids), seed, None)
        self.first_kernels = _initial_kernels(start)
        self.model = build_pretrainer(settings, VARIANTS[variant], start, seed, masks.seeds.shape[1])
        state = torch.load(self.folder / EXPORTED_NAME, weights_only=True)["state_dict"]
        load_transferable(self.model.detector, state)
        self.model.eval()
        self.kernels = _initial_kernels(self.model.detector)  # [N, C]

    @torch.no_grad()
    def prompts(self) -> dict[str, float]:
        """How large prompts are, how alike, how many are taken, how alike those of a kernel."""
        images, _ = self.inputs.validation
        torch.manual_seed(self.seed)
        of_kernel, taken, every, after = [], [], [], []
        for batch in batches(images, self.masks):
            inputs = self.inputs.normalize(batch)
            pyramid = self.model.detector.extract_feat(inputs)
            prompts, _ = prompts_of(self.model, pyramid, batch, inputs)
            after.append(self.model.detector.rpn_head(pyramid).kernels.norm(dim=-1).flatten())
            index = self.model.injector(self.kernels, prompts, batch.count)[1]  # [B, N]
            for own, chosen, count in zip(prompts, index, batch.count.tolist(), strict=True):
                if count:
                    every.append(own[:count])
                    taken.append(len(chosen.unique()) / count)
                    of_kernel.append(own[chosen])  # [N, C]
        stacked, each = torch.cat(every), torch.stack(of_kernel)  # [.., C], [images, N, C]
        norm = stacked.norm(dim=1).mean()
        total = (each - each.mean((0, 1))).square().sum()
        within = (each - each.mean(0)).square().sum()
        # Less what as many kernels would explain by chance.
        chance = (len(self.kernels) - 1) / (len(each) * len(self.kernels) - 1)
        return {
            "beside_kernels": (norm / self.kernels.norm(dim=1).mean()).item(),
            "beside_first": 100 * (norm / torch.cat(after).median()).item(),
            "common": _alike(stacked, unit=False),
            "taken": statistics.mean(taken),
            "explained": (1 - (within / total).item() - chance) / (1 - chance),
        }

    @torch.no_grad()
    def needed(self) -> dict[str, float]:
        """AR and best IoU with an image's own prompts, none, another image's, or one mean prompt for all."""
        images, coco = self.inputs.validation
        every = []
        for batch in batches(images, self.masks):
            inputs = self.inputs.normalize(batch)
            prompts, _ = prompts_of(self.model, self.model.detector.extract_feat(inputs), batch, inputs)
            every += [own[:count] for own, count in zip(prompts, batch.count.tolist(), strict=True)]
        mean = torch.cat(every).mean(0)
        changes: dict[str, Change | None] = {
            "own": None,
            "other": lambda prompts, count: (prompts.roll(-1, 0), count.roll(-1)),
            "mean": lambda prompts, count: (mean.expand(len(prompts), 1, -1), torch.ones_like(count)),
        }
        found = {}
        for whose in ("none", *changes):
            torch.manual_seed(self.seed)
            detector = self.model.detector
            if whose in changes:
                own = batches(images, self.masks)
                detector = Prompted(self.model, own, self.inputs.normalize, changes[whose])
            # The class heads are not kept, but AR at 100 masks is that of all 40 kernels, in any order.
            values = evaluate(detector, self.inputs.normalize, images, coco, None)["class_agnostic"]
            found[f"ar_{whose}"], found[f"iou_{whose}"] = values["ar"], values["best_iou"]
        return found

    @torch.no_grad()
    def kernel_loss(self) -> dict[str, float]:
        """The kernel loss, and how alike the kernels are that it is made of."""
        images, _ = self.inputs.validation
        torch.manual_seed(self.seed)
        stages: list[list[Tensor]] = []
        for batch in batches(images, self.masks):
            inputs = self.inputs.normalize(batch)
            pyramid = self.model.detector.extract_feat(inputs)
            outputs = stages_of(self.model, pyramid, prompts_of(self.model, pyramid, batch, inputs))
            stages.append([stage.kernels.flatten(0, 1) for stage in outputs])
        alike = [_alike(torch.cat(stage)) for stage in zip(*stages, strict=True)]
        log = json.loads((self.folder / RESULT).read_text())["log"]
        return {
            "loss": log[-1].get("loss_kernel", float("nan")),
            # Of unit vectors the mean direction has this cosine on average.
            "constant": sum(1 - one**0.5 for one in alike),
            "alike": alike[-1],
            "turned": F.cosine_similarity(self.first_kernels, self.kernels).acos().mean().rad2deg().item(),
        }


def _initial_kernels(detector: Any) -> Tensor:
    return detector.rpn_head.init_kernels.weight.detach().flatten(1)


def _alike(rows: Tensor, *, unit: bool = True) -> float:
    """The mean dot product of two of the vectors, beside that of each with itself."""
    rows = F.normalize(rows, dim=1) if unit else rows
    return (rows.mean(0).square().sum() / rows.square().sum(1).mean()).item()


# Titles of the columns, what measures them, of which variants.
TABLES: tuple[tuple[dict[str, str], Callable[[Run], dict[str, float]], tuple[str, ...]], ...] = (
    (
        PROMPTS,
        Run.prompts,
        ("random", "sequential", "cosine", "cosine-no-kernel-loss", "cosine-p2"),
    ),
    (
        NEEDED,
        Run.needed,
        ("random", "sequential", "cosine", "cosine-no-kernel-loss", "cosine-p2", "cosine-after-head"),
    ),
    (
        KERNELS,
        Run.kernel_loss,
        tuple(name for name, variant in VARIANTS.items() if variant.proposals is not None),
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints tables in markdown, means and standard deviations over seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the study")
    parser.add_argument("--seeds", default="0", help="with commas")
    known = list(dict.fromkeys(name for _, _, names in TABLES for name in names))
    parser.add_argument("--variants", nargs="+", choices=known, default=known, help="default: all of these")
    given = parser.parse_args(arguments)
    MMLogger.get_current_instance().setLevel("WARNING")
    options = json.loads((given.out / STUDY).read_text())
    settings = load_settings(options["backbone"])
    inputs = Inputs(
        open_data(given.data, options["size"]),
        options["size"],
        options["limit"],
        Normalizer(settings.model.data_preprocessor),
        device=torch.device("cpu"),
        workers=2,
        console=Console(stderr=True),
    )
    images, coco = inputs.validation
    names = {"val": [image["file_name"] for image in coco["images"]]}
    masks = load_proposals(given.out / "proposals" / SALIENCY, names, images)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    for columns, measure, variants in TABLES:
        print(f"| | {' | '.join(columns.values())} |\n|---|{'---:|' * len(columns)}")
        for variant in variants:
            if variant in given.variants:
                runs = [measure(Run(inputs, masks, settings, given.out, variant, seed)) for seed in seeds]
                cells = [_cell([run[name] for run in runs]) for name in columns]
                print(f"| {VARIANTS[variant].title} | {' | '.join(cells)} |", flush=True)
        print()


def _cell(values: list[float]) -> str:
    if any(one != one for one in values):
        return "-"
    spread = statistics.stdev(values) if len(values) > 1 else None
    return value({"mean": statistics.mean(values), "spread": spread})


if __name__ == "__main__":
    main()
