"""What prompts do in the models that `sp-fast study mini-coco` has pre-trained, on val.

python benchmarks/study_prompts.py DATA runs/study --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from rich.console import Console
from torch import Tensor, nn

from sp_fast.models.hooks import EXPORTED_NAME
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
from sp_fast.study.proposals import load_proposals
from sp_fast.study.run import STUDY
from sp_fast.study.source import open_data
from sp_fast.study.variants import SALIENCY, VARIANTS

COMPARED = ("random", "sequential", "cosine", "cosine-no-kernel-loss", "cosine-p2")
COLUMNS = {
    "norm": "norm of prompt / kernel",
    "common": "of its square, common to all prompts",
    "taken": "prompts taken",
    "explained": "variance the kernel explains",
    "ar_without": "AR, no prompts",
    "ar_with": "AR, prompts",
    "ar_other": "AR, another image's",
    "iou_without": "best IoU, no prompts",
    "iou_with": "best IoU, prompts",
    "iou_other": "best IoU, another image's",
}


class Prompted(nn.Module):
    """A pre-trained K-Net whose K^0 takes the prompts of the proposals, as in pre-training.

    Args:
        model: the pre-trainer.
        batches: in the order in which they are asked for.
        normalize: of the model.
        shift: each image takes the prompts of the one so many places on in its batch.
    """

    def __init__(self, model: Any, batches: Iterator[Batch], normalize: nn.Module, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift
        self.model, self.batches, self.normalize = model, batches, normalize
        self.max_per_img, self.mask_thr = model.detector.max_per_img, model.detector.mask_thr

    def forward(self, inputs: Tensor, mode: str) -> tuple[Tensor, Tensor]:
        """The last stage's class and mask logits."""
        batch = next(self.batches)
        assert torch.equal(self.normalize(batch), inputs), "not the images whose proposals these are"
        detector = self.model.detector
        pyramid = detector.extract_feat(inputs)
        prompts = self.model.generator(pyramid, batch.boxes, batch.count, inputs.shape[-2:])
        prompts, count = prompts.roll(-self.shift, 0), batch.count.roll(-self.shift)
        first = detector.rpn_head(pyramid, lambda kernels: self.model.injector(kernels, prompts, count)[0])
        last = detector.roi_head(first)[-1]
        return last.cls_logits, last.mask_logits


def batches(images: Images, masks: Masks) -> Iterator[Batch]:
    """All images once, as `evaluate` takes them."""
    for index in in_turn(images.sizes, BATCH_SIZE):
        yield make_batch(images, masks, index, np.zeros(len(index), bool))


@torch.no_grad()
def use(model: Any, images: Images, masks: Masks, normalize: nn.Module) -> dict[str, float]:
    """How large prompts are beside kernels, how alike, how many are taken, how alike those of a kernel."""
    kernels = model.detector.rpn_head.init_kernels.weight.flatten(1)  # [N, C]
    taken, of_kernel, every = [], [], []
    for batch in batches(images, masks):
        inputs = normalize(batch)
        prompts = model.generator(model.extract_feat(inputs), batch.boxes, batch.count, inputs.shape[-2:])
        index = model.injector(kernels, prompts, batch.count)[1]  # [B, N]
        for own, chosen, count in zip(prompts, index, batch.count.tolist(), strict=True):
            if count:
                every.append(own[:count])
                taken.append(len(chosen.unique()) / count)
                of_kernel.append(own[chosen])  # [N, C]
    stacked = torch.cat(every)
    each = torch.stack(of_kernel)  # [images, N, C]
    total = (each - each.mean((0, 1))).square().sum()
    within = (each - each.mean(0)).square().sum()
    # Less what as many kernels would explain by chance.
    chance = (len(kernels) - 1) / (len(each) * len(kernels) - 1)
    return {
        "norm": (stacked.norm(dim=1).mean() / kernels.norm(dim=1).mean()).item(),
        "common": (stacked.mean(0).square().sum() / stacked.square().sum(1).mean()).item(),
        "taken": statistics.mean(taken),
        "explained": (1 - (within / total).item() - chance) / (1 - chance),
    }


def measure(
    inputs: Inputs, masks: Masks, settings: Any, out: Path, variant: str, seed: int
) -> dict[str, float]:
    """All columns of one run; the masks are the proposals of val."""
    images, coco = inputs.validation
    start = build_detector(settings, len(inputs.class_ids), seed, None)
    model = build_pretrainer(settings, VARIANTS[variant], start, seed, masks.seeds.shape[1])
    weights = torch.load(out / f"seed{seed}" / variant / "pretrain" / EXPORTED_NAME, weights_only=True)
    load_transferable(model.detector, weights["state_dict"])
    model.eval()
    torch.manual_seed(seed)
    found = use(model, images, masks, inputs.normalize)
    detectors = {"without": model.detector}
    for name, shift in (("with", 0), ("other", 1)):
        detectors[name] = Prompted(model, batches(images, masks), inputs.normalize, shift)
    # The class heads are not kept, but AR at 100 masks is that of all 40 kernels, in any order.
    for name, detector in detectors.items():
        torch.manual_seed(seed)
        values = evaluate(detector, inputs.normalize, images, coco, None)["class_agnostic"]
        found[f"ar_{name}"], found[f"iou_{name}"] = values["ar"], values["best_iou"]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table in markdown, means over seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the study")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument(
        "--variants", nargs="+", choices=COMPARED, default=COMPARED, help="all whose prompts decorate K^0"
    )
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
    print(f"| prompts | {' | '.join(COLUMNS.values())} |\n|---|{'---:|' * len(COLUMNS)}")
    for variant in given.variants:
        runs = [measure(inputs, masks, settings, given.out, variant, seed) for seed in seeds]
        means = {name: statistics.mean(run[name] for run in runs) for name in COLUMNS}
        cells = [f"{means[name]:.2f}" for name in COLUMNS]
        print(f"| {VARIANTS[variant].title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
