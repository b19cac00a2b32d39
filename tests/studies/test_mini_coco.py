"""The mini-COCO study on a few synthetic scenes in its data's layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torchvision.models import mobilenet_v2

import sp_fast.models  # noqa: F401  (gives mmdet the ops it imports)

# isort: split
from mmdet.registry import MODELS

from sp_fast import train
from sp_fast.data.coco import load_coco
from sp_fast.data.synthetic import SetOptions, make_set
from sp_fast.experiments import worker
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.store import Source, remember
from studies.mini_coco import ceiling, prompts

EXPERIMENT = Path(ceiling.__file__).with_name("experiment.py")
CONFIGS = EXPERIMENT.parent / "configs"
# What each row's pre-trainer has: strategy, place of the prompts, level, detached, drop rate; then whether
# there is a kernel loss and whether it is centered; source.
PAPER = ("cosine", "init", (-1,), False, 0.0)
ROWS = {
    "labels": (("none", *PAPER[1:]), None, "cached"),
    "random": (("random", *PAPER[1:]), False, "cached"),
    "sequential": (("sequential", *PAPER[1:]), False, "cached"),
    "cosine": (PAPER, False, "cached"),
    "cosine-no-kernel-loss": (PAPER, None, "cached"),
    "cosine-centered": (PAPER, True, "cached"),
    "cosine-after-head": (("cosine", "proposal", *PAPER[2:]), False, "cached"),
    "cosine-p2": (("cosine", "init", ("P2",), *PAPER[3:]), False, "cached"),
    "boxes": (("none", *PAPER[1:]), None, "import"),
    "boxes-cosine": (PAPER, False, "import"),
    "official": (("cosine", "proposal", (-1,), True, 0.1), False, "cached"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """12 labelled, 3 validation and 4 unlabelled scenes, and random weights."""
    root = tmp_path_factory.mktemp("data")
    scenes = make_set(root / "set", SetOptions(size=64, unlabelled=2, labelled=12, validation=3))
    annotations = root / "coco_mini/annotations"
    annotations.mkdir(parents=True)
    for split, made in (("train", "labelled"), ("val", "validation")):
        shutil.copytree(scenes / made, root / "coco_mini" / split)
        shutil.copy(scenes / f"{made}.json", annotations / f"instances_{split}.json")
    shutil.copytree(scenes / "unlabelled", root / "coco_mini/unlabeled")
    shutil.copytree(scenes / "unlabelled", root / "bsds500")
    (root / "weights").mkdir()
    torch.manual_seed(0)
    torch.save(mobilenet_v2(weights=None).state_dict(), root / "weights/mobilenet_v2_imagenet.pth")
    return root


def source(data, **arguments):
    return Source(str(EXPERIMENT), {"data_root": str(data), **arguments})


def make(run, experiment):
    """A run in this process."""
    run.folder.mkdir(parents=True, exist_ok=True)
    spec = {"kind": run.kind, "spec": run.spec, "seed": run.seed, "needs": run.needs}
    spec["source"] = {"name": experiment.name, "arguments": experiment.arguments}
    (run.folder / "run.json").write_text(json.dumps(spec))
    assert worker.main(run.folder) == 0
    assert run.finished


@pytest.mark.parametrize("backbone", ["mobilenet_v2_64", "mobilenet_v2", "resnet50"])
def test_rows_share_data_and_proposals_and_differ_in_their_pretraining(data, tmp_path, backbone):
    plan = Plan(source(data, backbone=backbone).load(), tmp_path, [0, 1])
    assert [row.name for row in plan.experiment.rows] == ["none", *ROWS]
    proposals = {name: plan.of(name, "proposals", 1) for name in ROWS}
    keys = {name: run.key for name, run in proposals.items()}
    boxes = {"boxes", "boxes-cosine"}
    assert {keys[name] for name in ROWS.keys() - boxes - {"official"}} == {keys["cosine"]}
    assert keys["boxes"] == keys["boxes-cosine"]
    assert len(set(keys.values())) == 3
    kinds = [run.kind for run in plan.runs.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "data": 1,
        "proposals": 3,
        "train": 2 * (11 + 12 * 2),
    }


def test_a_quick_study_has_three_rows(data):
    assert [row.name for row in source(data, quick=True).load().rows] == ["none", "labels", "cosine"]


def test_an_unknown_backbone_is_an_error_that_lists_the_known_ones(data):
    with pytest.raises(ValueError, match=r"expected one of mobilenet_v2_64.*got 'vgg'"):
        source(data, backbone="vgg").load()


@pytest.mark.parametrize("row", ROWS)
def test_options_of_a_row_reach_its_pretrainer(data, row):
    rows = {one.name: one for one in source(data).load().rows}
    training = rows[row].pretrain
    config = Config.fromfile(training.config)
    config.merge_from_dict(json.loads(json.dumps(training.options)))
    model = MODELS.build(config.model)
    injector, generator = model.injector, model.generator
    got = injector.strategy, model.inject, generator.levels, generator.detach, injector.drop_rate
    centered = None if model.supervision is None else model.supervision.center
    from_store = "cached" if model.source.stored_seeds else "import"
    assert (got, centered, from_store) == ROWS[row]
    assert not any(one.requires_grad for one in model.detector.backbone.parameters())
    assert rows[row].proposals.kind == ("random_boxes" if "boxes" in row else "saliency")
    if row == "official":
        assert rows[row].proposals.options["preset"] == "official"


@pytest.mark.parametrize("backbone", ["mobilenet_v2_64", "mobilenet_v2", "resnet50"])
def test_what_pretraining_exports_fits_the_model_that_is_fine_tuned(backbone):
    shapes = []
    for stage in ("pretrain", "finetune"):
        config = Config.fromfile(CONFIGS / f"{backbone}_{stage}.py")
        model = MODELS.build(config.model)
        state = model.export() if stage == "pretrain" else model.state_dict()
        shapes.append({name: value.shape for name, value in state.items()})
        assert sum(one["type"] == "MultiStepLR" for one in config.param_scheduler) == 1
    exported, plain = shapes
    assert exported.items() <= plain.items()
    heads = plain.keys() - exported.keys()
    assert all("conv_seg" in name or "fc_cls" in name for name in heads)


def test_prepare_links_the_images_and_cuts_the_annotations(data, tmp_path):
    source(data).load().prepare(tmp_path, 0)
    source(data).load().prepare(tmp_path, 0)  # killed and started again
    found = {path.relative_to(tmp_path / "unlabelled").as_posix() for path in tmp_path.rglob("*.png")}
    expected = {
        f"{split}/{path.name}"
        for split, folder in (
            ("train", "coco_mini/train"),
            ("unlabeled", "coco_mini/unlabeled"),
            ("bsds500", "bsds500"),
        )
        for path in (data / folder).glob("*.png")
    }
    assert found == expected
    assert len(found) == 16
    whole = load_coco(data / "coco_mini/annotations/instances_train.json")
    tenth, hundred, truth = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("labels_10", "labels_100", "truth")
    )
    assert [image["id"] for image in tenth["images"]] == [min(image["id"] for image in whole["images"])]
    assert {one["image_id"] for one in tenth["annotations"]} == {tenth["images"][0]["id"]}
    assert tenth["categories"] == whole["categories"]
    assert len(hundred["annotations"]) == len(whole["annotations"])
    assert {image["file_name"] for image in truth["images"]} <= found


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--data-root: expected images in .*coco_mini/train"):
        source(tmp_path).load().prepare(tmp_path / "out", 0)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The folder and plan of an experiment whose row `cosine` is pre-trained for two steps."""
    out = tmp_path_factory.mktemp("out")
    experiment = source(data, quick=True, size=64, images=32)
    plan = Plan(experiment.load(), out, remember(out, experiment, [0]))
    pretrain = plan.of("cosine", "pretrain", 0)
    for run in (*(plan.runs[key] for key in pretrain.needs.values()), pretrain):
        make(run, experiment)
    return out, plan


def test_pretraining_is_measured_without_labels_at_its_end(finished):
    _, plan = finished
    result = plan.of("cosine", "pretrain", 0).result()
    assert [one["step"] for one in result["evaluations"]] == [2]
    measured = plan.experiment.metrics.keys() & result["evaluations"][0].keys()
    # 64-pixel scenes have no large objects.
    assert plan.experiment.metrics.keys() - measured == {"coco/segm_mAP", "class_agnostic/segm_AR_l"}
    assert result["losses"][-1]["loss_kernel"] > 0
    scores = plan.of("cosine", "proposals", 0).result()["scores"]
    assert scores["images"] == 12


def test_prompts_and_kernels_are_measured(finished, capsys):
    out, _ = finished
    prompts.main([str(out), "--seeds", "0"])
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| prompts by cosine")]
    assert [len(row) - 1 for row in rows] == [
        len(columns) for columns in (prompts.PROMPTS, prompts.NEEDED, prompts.KERNELS)
    ]
    assert "nan" not in printed


def test_the_angle_that_kernels_turned_is_from_those_that_training_began_with(finished, tmp_path):
    _, plan = finished
    run = plan.of("cosine", "pretrain", 0)
    near = {name: plan.runs[key].folder for name, key in run.needs.items()}
    spec = worker.filled(dict(run.spec), {"data": str(near["data"])})
    arguments = train.parse_arguments(worker.train_arguments(spec, tmp_path, 0, near))
    arguments.cfg_options = spec["options"]
    runner = train.prepare(arguments)
    began = runner.model.detector.rpn_head.init_kernels.weight
    again = prompts.initial_model(runner.cfg, 0).detector.rpn_head.init_kernels.weight
    assert torch.equal(began, again)


def test_the_angle_between_equal_vectors_is_no_nan():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 64, generator=generator)  # fp32 puts the cosine of some above 1
    assert prompts.degrees_between(rows, rows) < 0.1
    assert prompts.degrees_between(rows, -rows) > 179.9


def test_the_variance_that_kernels_explain():
    own = torch.randn(1, 4, 8).expand(5, -1, -1)
    assert prompts.explained(own) == pytest.approx(1, abs=1e-5)
    assert prompts.explained(torch.ones(5, 4, 8)) is None
    assert prompts.explained(torch.randn(1, 4, 8)) is None


def test_the_ceiling_rises_with_the_size(data):
    small, large = (ceiling.ceiling(data, size) for size in (64, 256))
    assert 0 < small["best_iou"] < large["best_iou"] <= 1
    assert large["best_iou"] > 0.8
