"""What helps: rows that share what they can and differ in one thing, on synthetic scenes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torchvision.models import mobilenet_v2

import sp_fast.models  # noqa: F401  (gives mmdet the ops it imports)

# isort: split
from mmengine.config import Config

from sp_fast.configs import find_config
from sp_fast.data.synthetic import SetOptions, make_set
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.store import Source
from sp_fast.overrides import apply_overrides
from tests.studies.test_mini_coco import make

EXPERIMENT = Path(__file__).parents[2] / "studies/what_helps/experiment.py"
ROWS = [
    "none",
    "paper",
    "multiscale",
    "refined",
    "prompts",
    "folded",
    "folded-kernel",
    "centered",
    "std2",
    "std3",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 labelled, 3 validation and 2 unlabelled scenes in the layout of the nuclei, and random weights."""
    root = tmp_path_factory.mktemp("data")
    scenes = make_set(root / "set", SetOptions(size=64, unlabelled=2, labelled=12, validation=3))
    (root / "weights").mkdir()
    for split, made in (("train", "labelled"), ("val", "validation"), ("unlabeled", "unlabelled")):
        shutil.copytree(scenes / made, root / "nuclei" / split)
        if split != "unlabeled":
            shutil.copy(scenes / f"{made}.json", root / "nuclei" / f"instances_{split}.json")
    torch.manual_seed(0)
    torch.save(mobilenet_v2(weights=None).state_dict(), root / "weights/mobilenet_v2_imagenet.pth")
    return root


def source(root, **arguments):
    return Source(str(EXPERIMENT), {"data_root": str(root), "preset": "paper", **arguments})


@pytest.mark.parametrize(("name", "trainings"), [("nuclei", 2), ("demo", 1), ("mini_coco", 2)])
def test_rows_share_data_proposals_and_pretrainings(data, tmp_path, name, trainings):
    experiment = source(data, data=name).load()
    assert [row.name for row in experiment.rows] == ROWS
    plan = Plan(experiment, tmp_path, [0])
    kinds = [run.kind for run in plan.runs.values()]
    # Three rows share a pre-training with prompts; two of them, and `centered`, fold it in another way.
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "data": 1,
        "proposals": 3,
        "train": 7 + 10 * trainings,
        "analysis": 3,
    }
    shared = {plan.of(row, "pretrain", 0).key for row in ("prompts", "folded", "folded-kernel")}
    assert len(shared) == 1
    assert plan.of("paper", "proposals", 0) is not plan.of("multiscale", "proposals", 0)
    assert plan.of("refined", "proposals", 0) is not plan.of("multiscale", "proposals", 0)
    assert plan.of("centered", "proposals", 0) is plan.of("multiscale", "proposals", 0)


@pytest.mark.parametrize("name", ["nuclei", "demo", "mini_coco"])
def test_options_of_the_rows_are_known(data, name):
    for row in source(data, data=name).load().rows[1:]:
        cfg = Config.fromfile(find_config(row.pretrain.config))
        apply_overrides(cfg, json.loads(json.dumps(dict(row.pretrain.options))))
        std = {"std2": 2.0, "std3": 3.0}.get(row.name)
        assert cfg.model.detector.rpn_head.get("init_std") == std
        prompted = row.name in ("prompts", "folded", "folded-kernel", "centered")
        assert (cfg.model.prompts.get("strategy", "cosine") != "none") == prompted
        assert row.pretrain.val_images is None
        assert "--no-val" in row.pretrain.arguments
        if prompted:
            assert cfg.model.prompts.fold == "kernel"
            assert cfg.model.supervision.get("center", False) == (row.name == "centered")


def test_the_smaller_set_of_labels_differs_between_seeds(data, tmp_path):
    source(data).load().prepare(tmp_path, 0)
    draws = [json.loads((tmp_path / f"few_{seed}.json").read_text()) for seed in (0, 1)]
    names = [{image["file_name"] for image in one["images"]} for one in draws]
    assert [len(one) for one in names] == [10, 10]
    assert names[0] != names[1]
    for one in draws:
        assert {entry["image_id"] for entry in one["annotations"]} == {image["id"] for image in one["images"]}


def test_wrong_arguments_are_told(data):
    with pytest.raises(ValueError, match="data: expected one of nuclei, demo, mini_coco, got 'cats'"):
        source(data, data="cats").load()
    with pytest.raises(ValueError, match="--data-root: expected the folder that holds nuclei"):
        Source(str(EXPERIMENT)).load()


def test_fine_tuning_starts_from_folded_and_unfolded_kernels_of_one_pretraining(data, tmp_path):
    experiment = source(data, quick=True)
    plan = Plan(experiment.load(), tmp_path, [0])
    rows, shared = ("prompts", "folded", "folded-kernel"), plan.of("prompts", "pretrain", 0)
    starts = {row: plan.runs[plan.of(row, "10 labelled images", 0).needs["pretrain"]] for row in rows}
    for run in (*map(plan.runs.get, shared.needs.values()), shared):
        make(run, experiment)
    for run in starts.values():
        if run is not shared:
            make(run, experiment)
    name = "rpn_head.init_kernels.weight"
    own, mean, each = (
        torch.load(run.folder / "pretrained.pth", weights_only=True)["state_dict"][name]
        for run in starts.values()
    )
    latest = torch.load(shared.folder / "latest.pth", weights_only=True)
    assert torch.equal(own, latest["state_dict"][f"detector.{name}"])
    assert len({tuple(one.flatten().tolist()) for one in (own, mean, each)}) == 3
