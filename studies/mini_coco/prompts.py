"""Measures what prompts and the kernel loss do in the experiment's pre-trained models, on val.

python studies/mini_coco/prompts.py runs/mini_coco --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sp_fast.models  # noqa: F401  (gives mmdet the ops it imports)

# isort: split
import torch
import torch.nn.functional as F
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from torch import Tensor

from sp_fast.data.coco import load_coco
from sp_fast.data.evaluation import evaluate_coco
from sp_fast.data.rle import run_lengths
from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.plan import Plan, Run
from sp_fast.experiments.store import recall
from sp_fast.knet import StageOutput
from sp_fast.knet.prediction import masks_at_image_size
from sp_fast.mmdet_plugin.hooks import EXPORTED_NAME
from sp_fast.pretraining.adapters import adapter_for
from sp_fast.proposals import SaliencyProposer, build_backbone
from sp_fast.proposals.run import propose_folder
from sp_fast.proposals.store import seeds_path
from sp_fast.weights import load_state, read_state

VAL_MASKS = "val_masks.json"
PROMPTS = {
    "beside_kernels": "norm of prompt / K^0",
    "beside_first": "in % of the kernels after the first head",
    "common": "of its square, common to all prompts",
    "taken": "prompts taken",
    "explained": "variance the kernel explains",
}
GIVEN = {"none": "none", "own": "own", "other": "another's", "mean": "the mean"}
SCORES = {"AR@100": "AR", "best_iou": "best IoU"}
NEEDED = {
    f"{score}_{one}": f"{title}: {name}" for score, title in SCORES.items() for one, name in GIVEN.items()
}
KERNELS = {
    "loss": "kernel loss at the end",
    "constant": "of one direction for all",
    "alike": "cosine of two kernels",
    "turned": "degrees K^0 has turned",
}


class View(NamedTuple):
    """One image as a pre-trained model sees it."""

    sample: Any  # mmdet's
    padded: tuple[int, int]  # height and width of the model's input
    pyramid: tuple[Tensor, ...]
    prompts: Tensor  # [1, L, C], one per proposal of the image


class Pretrained:
    """One pre-trained model, measured on the images of `truth`, whose proposals are in the file `masks`."""

    def __init__(self, run: Run, masks: Path, truth: dict[str, Any]) -> None:
        self.run, self.truth = run, truth
        self.ids = {image["file_name"]: image["id"] for image in truth["images"]}
        # The runner has written the whole config there.
        config = Config.fromfile(run.folder / Path(run.spec["config"]).name)
        init_default_scope("mmdet")
        self.model: Any = initial_model(config, run.seed)
        self.adapter: Any = adapter_for(self.model.detector)
        self.first_kernels = self._kernels()
        exported = str(run.folder / EXPORTED_NAME)
        load_state(self.model.detector, read_state(exported), exported, allow=self.adapter.class_heads)
        self.model.eval()
        self.kernels = self._kernels()  # [N, C]
        options = config.train_dataloader.dataset.to_dict()
        options["pipeline"] = [one for one in options["pipeline"] if one["type"] != "RandomFlip"]
        options.update(ann_file=str(masks), seeds=str(seeds_path(masks)), images=run.spec["val_images"])
        self.dataset = DATASETS.build(dict(options, test_mode=True, cache=None))

    def _kernels(self) -> Tensor:
        return self.model.detector.rpn_head.init_kernels.weight.detach().flatten(1).clone()

    def views(self) -> Iterator[View]:
        """The view of each image."""
        for i in range(len(self.dataset)):
            if Path(self.dataset.get_data_info(i)["img_path"]).name not in self.ids:
                continue
            batch = self.model.data_preprocessor(pseudo_collate([self.dataset[i]]))
            inputs, samples = batch["inputs"], batch["data_samples"]
            features, pyramid = self.adapter.features(inputs)
            proposals = self.model.source(self.adapter, inputs, features[-1], samples)
            padded = (inputs.shape[-2], inputs.shape[-1])
            prompts = self.model.generator(pyramid, proposals.boxes, proposals.count, padded)
            yield View(samples[0], padded, pyramid, prompts)

    def stages(self, view: View, prompts: Tensor) -> list[StageOutput]:
        """Every update stage, with kernels decorated where pre-training decorates them."""

        def decorate(kernels: Tensor) -> Tensor:
            return self.model.injector(kernels, prompts, _count(prompts))[0]

        return self.adapter.decorated(view.pyramid, decorate, self.model.inject)[1]

    @torch.no_grad()
    def prompts(self) -> dict[str, float | None]:
        """How large and how similar prompts are, how many are taken, how similar those of one kernel are."""
        torch.manual_seed(self.run.seed)
        of_kernel, taken, every, after = [], [], [], []
        for view in self.views():
            after.append(self.model.detector.rpn_head(view.pyramid).kernels.norm(dim=-1).flatten())
            own = view.prompts[0]
            if len(own):
                index = self.model.injector(self.kernels, view.prompts, _count(view.prompts))[1][0]  # [N]
                every.append(own)
                taken.append(len(index.unique()) / len(own))
                of_kernel.append(own[index])  # [N, C]
        stacked = torch.cat(every)  # [.., C]
        norm = stacked.norm(dim=1).mean()
        return {
            "beside_kernels": (norm / self.kernels.norm(dim=1).mean()).item(),
            "beside_first": 100 * (norm / torch.cat(after).median()).item(),
            "common": alike(stacked, unit=False),
            "taken": statistics.mean(taken),
            "explained": explained(torch.stack(of_kernel)),
        }

    @torch.no_grad()
    def needed(self) -> dict[str, float | None]:
        """AR and best IoU with an image's own prompts, none, another image's, or one mean prompt for all."""
        own = [view.prompts for view in self.views()]
        mean = torch.cat([one[0] for one in own]).mean(0).expand(1, 1, -1)
        torch.manual_seed(self.run.seed)
        found: dict[str, list[dict[str, Any]]] = {one: [] for one in GIVEN}
        for i, view in enumerate(self.views()):
            for one, prompts in zip(
                GIVEN, (own[i][:, :0], own[i], own[(i + 1) % len(own)], mean), strict=True
            ):
                found[one] += self._detections(view, self.stages(view, prompts)[-1].mask_logits[0])
        values = {one: evaluate_coco(self.truth, masks, class_agnostic=True) for one, masks in found.items()}
        return {f"{score}_{one}": 100 * values[one][score] for score in SCORES for one in GIVEN}

    def _detections(self, view: View, mask_logits: Tensor) -> list[dict[str, Any]]:
        """The masks of all kernels, with equal scores: the class heads are not kept."""
        sample = view.sample
        masks = masks_at_image_size(mask_logits, view.padded, sample.img_shape, sample.ori_shape)
        inside = (masks > self.model.detector.mask_thr).numpy()
        one = {"image_id": self.ids[Path(sample.img_path).name], "category_id": 0, "score": 1.0}
        return [{**one, "segmentation": rle} for rle in run_lengths(inside)]

    @torch.no_grad()
    def kernel_loss(self) -> dict[str, float | None]:
        """The kernel loss, and how similar the kernels are that it is computed from."""
        torch.manual_seed(self.run.seed)
        of_image = [[stage.kernels[0] for stage in self.stages(view, view.prompts)] for view in self.views()]
        by_stage = [alike(torch.cat(stage)) for stage in zip(*of_image, strict=True)]
        return {
            "loss": self.run.result()["losses"][-1].get("loss_kernel"),
            # Of unit vectors the mean direction has this cosine on average.
            "constant": sum(1 - one**0.5 for one in by_stage),
            "alike": by_stage[-1],
            "turned": degrees_between(self.first_kernels, self.kernels),
        }


def initial_model(config: Config, seed: int) -> Any:
    """The pre-trainer as at the start of training, without the backbone's published weights."""
    model = MODELS.build(config.model)
    set_random_seed(seed)
    model.init_weights()
    return model


def _count(prompts: Tensor) -> Tensor:
    return torch.tensor([prompts.shape[1]])


def degrees_between(first: Tensor, second: Tensor) -> float:
    """Mean angle between the rows of two matrices; rounding can put a cosine just outside [-1, 1]."""
    return F.cosine_similarity(first, second).clamp(-1, 1).acos().mean().rad2deg().item()


def alike(rows: Tensor, *, unit: bool = True) -> float:
    """The mean dot product of two of the vectors, relative to that of a vector with itself."""
    rows = F.normalize(rows, dim=1) if unit else rows
    own = rows.square().sum(1).mean().clamp(min=torch.finfo(rows.dtype).tiny)
    return (rows.mean(0).square().sum() / own).item()


def explained(of_kernel: Tensor) -> float | None:
    """Share of the variance of `[images, N, C]`, the prompt of each kernel, that the kernel explains.

    Corrected for chance; None without variance, or for a single image.
    """
    images, kernels = of_kernel.shape[:2]
    total = (of_kernel - of_kernel.mean((0, 1))).square().sum().item()
    if images < 2 or not total:
        return None
    within = (of_kernel - of_kernel.mean(0)).square().sum().item()
    chance = (kernels - 1) / (images * kernels - 1)
    return (1 - within / total - chance) / (1 - chance)


PROMPTED = ("random", "sequential", "cosine", "cosine-no-kernel-loss", "cosine-p2")
# Titles of the columns, what measures them, of which rows; None for all.
TABLES: tuple[tuple[dict[str, str], Callable[[Pretrained], dict], tuple[str, ...] | None], ...] = (
    (PROMPTS, Pretrained.prompts, PROMPTED),
    (NEEDED, Pretrained.needed, (*PROMPTED, "cosine-after-head")),
    (KERNELS, Pretrained.kernel_loss, None),
)


def propose_on_val(plan: Plan, out: Path) -> tuple[Path, dict[str, Any]]:
    """The paper's proposals of the validation images, made once, and the images' annotations."""
    row: Any = next(row for row in plan.experiment.rows if row.name == "cosine")
    proposals, pretrain = row.proposals, row.pretrain
    masks = out / VAL_MASKS
    if not masks.is_file():
        proposer = SaliencyProposer(build_backbone(**proposals.backbone), **proposals.options)
        propose_folder(pretrain.val_images, masks, proposer, size=proposals.size)
    data = next(run.folder for run in plan.runs.values() if run.kind == "data")
    return masks, load_coco(str(pretrain.val_annotations).format(data=data))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints tables in markdown, means and standard deviations over seeds, of what is finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="Folder of the experiment")
    parser.add_argument("--seeds", help="Random seeds, separated by commas; all by default")
    given = parser.parse_args(arguments)
    MMLogger.get_current_instance().setLevel("WARNING")  # three lines per parameter otherwise
    source, seeds = recall(given.out)
    if given.seeds:
        seeds = [int(seed) for seed in given.seeds.split(",")]
    plan = Plan(source.load(), given.out, seeds)
    masks, truth = propose_on_val(plan, given.out)
    for columns, measure, names in TABLES:
        print(f"| | {' | '.join(columns.values())} |\n|---|{'---:|' * len(columns)}")
        for row in plan.experiment.rows:
            runs = [plan.of(row.name, PRETRAIN, seed) for seed in seeds]
            finished = [run for run in runs if run is not None and run.finished]
            if finished and (names is None or row.name in names):
                values = [measure(Pretrained(run, masks, truth)) for run in finished]
                cells = [_cell([one[name] for one in values]) for name in columns]
                print(f"| {row.label} | {' | '.join(cells)} |", flush=True)
        print()


def _cell(values: list[float | None]) -> str:
    known = [one for one in values if one is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.2f}{spread}"


if __name__ == "__main__":
    main()
