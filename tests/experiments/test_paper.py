"""The paper's experiments: rows, numbers, settings, files, and what Table 6 measures."""

import dataclasses
import json
from importlib.resources import files
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from sp_fast.commands.experiment import run_and_report
from sp_fast.configs import config_names, find_config
from sp_fast.experiments import Experiment, worker
from sp_fast.experiments.inputs import check_inputs
from sp_fast.experiments.paper import analyses, numbers
from sp_fast.experiments.paper.protocol import DATA, pipelines_of_size
from sp_fast.experiments.plan import PROPOSALS, Plan
from sp_fast.experiments.report import print_status
from sp_fast.experiments.store import Source
from sp_fast.files import write_json
from tests.experiments import made_up
from tests.experiments.test_table import printed

TABLES = [f"table{k}" for k in range(1, 8)]
NAMES = [*TABLES, *(f"figure{k}" for k in (1, 3, 4, 5, 6))]
# Rows and runs; in table3, the pre-trainings are two, one per model.
SIZES = {"table1": (5, 12), "table2": (7, 16), "table3": (10, 23), "table6": (4, 6), "figure1": (3, 14)}


def load(name: str, **arguments) -> Experiment:
    return Source(name, {"data_root": "/data", **arguments}).load()


def specs(experiment: Experiment, kind: str) -> list[dict]:
    plan = Plan(experiment, Path("/nowhere"), [0])
    return [dict(run.spec) for run in plan.runs.values() if run.kind == kind]


def texts(value) -> list[str]:
    """All strings in a nested dict or list."""
    if isinstance(value, str):
        return [value]
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for entry in entries for text in texts(entry)]


@pytest.mark.parametrize("name", NAMES)
def test_experiments_of_the_paper(name, tmp_path):
    experiment = load(name)
    assert experiment.name == name
    plan = Plan(experiment, tmp_path, [0])
    assert (len(experiment.rows), len(plan.runs)) == SIZES.get(name, (len(experiment.rows), len(plan.runs)))
    named = {text for run in plan.runs.values() for text in texts(run.spec) if text.startswith("/data/")}
    assert named
    assert named <= experiment.inputs.keys()
    trainings = specs(experiment, "train")
    assert all("--total-batch" in one["arguments"] for one in trainings)
    assert {one["config"] for one in trainings} <= set(config_names())


def about(name: str, one: dict) -> tuple[str, str]:
    """Label of the row and name of the training that a published row of a table belongs to."""
    if name in ("table1", "table2", "table3"):
        model = [one["model"]] if "model" in one else []
        return ", ".join([*model, one["pretrain"]]), DATA[one["data"]].title
    if name == "table6":
        return one["method"], "COCO val2017, boxes, no labels"
    labels = {
        "table4": lambda: ("" if one["kernel_loss"] else "no ") + "kernel supervision",
        "table5": lambda: {"none": "no prompts", "cosine": "prompts by cosine"}.get(
            one["strategy"], f"{one['strategy']} prompts"
        ),
        "table7": lambda: f"{one['labels']}, {'' if one['prompts'] else 'no '}prompts",
    }
    return labels[name](), "COCO 10 %"


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_the_paper_is_in_its_row(name):
    tables = json.loads((files(numbers.__package__) / "tables.json").read_text())
    experiment = load(name)
    shown = {
        (row.label, training): values
        for row in experiment.rows
        for training, values in row.expected.items()
        if values
    }
    columns = {column: metric for metric, column in experiment.metrics.items()}
    published = {
        about(name, one): {columns[column]: one[column] for column in columns if column in one}
        for one in tables[name]
    }
    assert shown == published
    assert len(shown) == len(tables[name])


@pytest.mark.parametrize("name", ["table2", "table3"])
def test_trainings_are_as_long_as_the_papers(name):
    pytest.importorskip("mmdet")
    from mmengine.config import Config

    tables = json.loads((files(numbers.__package__) / "tables.json").read_text())
    rows = {row.label: row for row in load(name).rows}
    for one in tables[name]:
        label, data = about(name, one)
        path = find_config(rows[label].finetune[data].config)
        config = Config.fromfile(path, import_custom_modules=False)
        assert config.train_cfg.max_epochs == one["epochs"], (label, data)


def test_numbers_are_those_of_the_named_row():
    found = numbers.published("table2", model="K-Net", pretrain="SP", data="cityscapes")
    assert found["coco/segm_mAP"] == 30.6
    assert found["coco/segm_mAP_75"] is None
    assert found["coco/segm_mAP_l"] == 54
    with pytest.raises(LookupError, match=r"table2: expected one row .* found 2"):
        numbers.published("table2", model="K-Net", pretrain="SP")


def test_figure_1_has_the_papers_numbers_where_its_tables_have_them():
    rows = {row.name: row.expected for row in load("figure1").rows}
    metric = "coco/segm_mAP"
    assert rows["sp"] == {
        "COCO": {},
        "COCO 10 %": {metric: 23.5},
        "Cityscapes": {metric: 30.6},
        "CTW1500": {metric: 34.6},
    }
    assert rows["mask_rcnn"]["COCO 10 %"] == {}
    assert rows["mask_rcnn"]["Cityscapes"] == {metric: 30}


def test_rows_from_saliency_prompts_share_one_pretraining_per_model():
    configs = [one["config"] for one in specs(load("table3"), "train")]
    assert configs.count("mask2former_r50/pretrain") == configs.count("queryinst_r50/pretrain") == 1
    assert configs.count("queryinst_r50/finetune_ctw1500_sp") == 1
    assert configs.count("queryinst_r50/finetune_ctw1500") == 4
    assert configs.count("mask2former_r50/finetune_cityscapes") == 5


def test_batches_and_weights():
    by_config = {
        (one["config"], one["arguments"][1]): one["arguments"] for one in specs(load("table2"), "train")
    }
    arguments = by_config["knet_r50/finetune_ctw1500", "/data/weights/swav_r50.pth"]
    assert arguments == ["--weights", "/data/weights/swav_r50.pth", "--total-batch", "32"]
    assert by_config["knet_r50/pretrain", "/data/weights/densecl_r50.pth"][2:] == ["--total-batch", "96"]
    key = "solov2_r50/finetune_cityscapes", "/data/weights/imagenet_r50.pth"
    assert by_config[key][2:] == ["--total-batch", "16"]
    # Fine-tuning after SP takes its weights from the pre-training.
    assert by_config["knet_r50/finetune_cityscapes", "96"] == ["--total-batch", "96"]


def test_smaller_lengths_images_and_models():
    small = {"model": "knet_mobilenet_v2", "initial": "imagenet", "pretrain_epochs": 3, "finetune_steps": 50}
    experiment = load("figure3", **small, total_batch=8, batch_size=4)
    assert experiment.title == "Figure 3: AP by epoch on COCO 10 %, not with the paper's settings"
    assert {one["name"]: one["value"] for one in experiment.settings} == {
        **small,
        "total_batch": 8,
    }
    assert experiment.settings[0]["reason"] == "given; the paper's: knet_r50"
    pretrain, finetune = experiment.rows[-1].pretrain, experiment.rows[0].finetune["COCO 10 %"]
    assert (pretrain.epochs, pretrain.steps, finetune.epochs, finetune.steps) == (3, None, None, 50)
    assert finetune.config == "knet_mobilenet_v2/finetune"
    assert finetune.options == {"train_cfg.val_interval": 5}
    assert finetune.arguments[1] == "/data/weights/imagenet_mobilenet_v2.pth"
    assert finetune.arguments[2:] == ["--batch-size", "4", "--total-batch", "8"]
    assert load("figure3").title == "Figure 3: AP by epoch on COCO 10 %"
    every = load("figure3").rows[0].finetune["COCO 10 %"]
    assert every.options == {"train_cfg.val_interval": 1}
    assert (every.epochs, every.steps) == (None, None)


def test_sizes_change_all_scales():
    found = pipelines_of_size("knet_mobilenet_v2/finetune", 96)
    assert found.keys() == {f"{name}_dataloader.dataset.pipeline" for name in ("train", "val")}
    resizes = [one for pipeline in found.values() for one in pipeline if one["type"] == "Resize"]
    assert resizes == 2 * [{"type": "Resize", "scale": 96, "keep_ratio": True}]
    (repeated, _) = pipelines_of_size("knet_r50/finetune_cityscapes", 96)
    assert repeated == "train_dataloader.dataset.dataset.pipeline"
    quick = load("table4", model="knet_mobilenet_v2", initial="imagenet", quick=True)
    assert quick.rows[0].pretrain.steps == 2
    assert quick.rows[0].pretrain.options.keys() == {"train_dataloader.dataset.pipeline"}
    assert quick.rows[0].proposals.size == 128
    longer = load("table4", finetune_epochs=1, quick=True).rows[0].finetune["COCO 10 %"]
    assert (longer.epochs, longer.steps) == (1, None)


def test_rows_of_other_models_say_so():
    labels = [row.label for row in load("table2", model="queryinst_r50").rows]
    assert labels[2:] == [f"QueryInst, {one}" for one in ("Img. Sup.", "DenseCL", "SwAV", "MoCo-v2", "SP")]
    labels = [row.label for row in load("figure4", model="knet_mobilenet_v2", initial="imagenet").rows]
    assert labels == ["Mask R-CNN", "knet_mobilenet_v2", "knet_mobilenet_v2 with SP"]
    assert load("table6", model="queryinst_r50").rows[-1].label == "QueryInst with SP"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("table1", {"initial": "sp"}, "initial: expected one of imagenet, densecl, swav, moco_v2, got 'sp'"),
        ("table1", {"finetune_steps": 2, "finetune_epochs": 2}, "finetune_steps: expected steps or epochs"),
        ("table1", {"model": "knet"}, "model: expected one of .*knet_r50, .*, got 'knet'"),
        ("table5", {"finetune_steps": "x"}, "finetune_steps: expected a whole number of at least 1, got 'x'"),
        ("figure3", {"size": 0}, "size: expected a whole number of at least 1, got 0"),
        ("table3", {"model": "knet_r50"}, "model=.*: the experiment table3 takes data_root, initial, "),
    ],
)
def test_wrong_arguments_are_reported(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(name, **arguments)


def lay_out(root: Path, experiment: Experiment, without: tuple[str, ...]) -> None:
    """Makes the experiment's files, except those whose path has one of these endings."""
    for path in map(Path, experiment.inputs):
        if not str(path).endswith(without):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def test_missing_files_are_reported_before_anything_runs(tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    experiment = load("table1", data_root=str(root))
    lay_out(root, experiment, ("swav_r50.pth", "unlabeled2017"))
    with (
        patch("sp_fast.commands.experiment._need_mmdet"),
        pytest.raises(FileNotFoundError) as caught,
    ):
        run_and_report("table1", out, {"data_root": str(root)})
    assert str(caught.value).splitlines() == [
        "--data-root: expected all files that the rows imagenet, densecl, swav, moco_v2, sp need; missing:",
        f"  {root}/weights/swav_r50.pth",
        "      ResNet-50, SwAV on ImageNet, 800 epochs: "
        "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
        f"  {root}/unlabeled2017",
        "      unpack http://images.cocodataset.org/zips/unlabeled2017.zip",
        "Other rows can run without them: --rows imagenet,densecl,moco_v2",
    ]
    assert not out.exists()
    plan = Plan(experiment, out, [0])
    check_inputs(plan, ["imagenet", "moco_v2"], [0])
    assert f"Missing files: {root}/weights/swav_r50.pth, {root}/unlabeled2017" in printed(print_status, plan)
    # Finished runs need no files.
    for run in plan.needed(["swav", "sp"], [0]):
        write_json({}, run.folder / "result.json")
    check_inputs(plan, ["swav", "sp"], [0])


def test_table_7_draws_up_detrs_patches_itself(tmp_path):
    made_up.write_images(tmp_path / "unlabeled2017", count=2)
    plan = Plan(load("table7", data_root=str(tmp_path)), tmp_path / "out", [0])
    run = plan.of("up_detr", PROPOSALS, 0)
    run.folder.mkdir(parents=True)
    source = dataclasses.asdict(Source("table7"))
    write_json(
        {"kind": run.kind, "spec": run.spec, "seed": 0, "needs": run.needs, "source": source},
        run.folder / "run.json",
    )
    assert worker.main(run.folder) == 0
    coco = json.loads((run.folder / "masks.json").read_text())
    assert coco["info"]["kind"] == "up-detr"
    assert len(coco["annotations"]) == 20


def test_table_6_measures_boxes_of_masks_and_boxes_alone(tmp_path):
    images = tmp_path / "images"
    made_up.write_images(images, count=1)
    truth = images / "truth.json"
    objects = json.loads(truth.read_text())["annotations"]
    # The boxes that come with the masks are wrong; classes do not matter.
    results = [
        {"image_id": 1, "category_id": 7, "score": 0.9 - 0.1 * k, "bbox": [0, 0, 1, 1], **one}
        for k, one in enumerate({"segmentation": entry["segmentation"]} for entry in objects)
    ]
    boxes = [dict(one, bbox=box) for one, box in zip(results, ([2, 3, 20, 20], [0, 0, 1, 1]), strict=True)]
    for one in boxes:
        del one["segmentation"]
    found = {}
    for name, entries in (("masks", results), ("boxes", boxes)):
        write_json(entries, tmp_path / f"{name}.json")
        options = {"predictions": str(tmp_path / f"{name}.json"), "annotations": str(truth)}
        (found[name],) = analyses.boxes_of_results(tmp_path, None, **options)["evaluations"]
    assert found["masks"]["boxes/mAP"] == pytest.approx(1)
    assert found["masks"]["boxes/mAP_l"] is None
    assert found["boxes"]["boxes/mAP"] == pytest.approx(51 / 101)  # half of the recall, at precision 1
    assert {f"boxes/mAP{ending}" for ending in ("", "_50", "_75")} == set(load("table6").metrics)


def test_table_6_measures_a_pretrained_model(tmp_path):
    images = tmp_path / "images"
    made_up.write_images(images, count=2)

    class Model:
        classes, batch_size = ("object",), 2

        def predict(self, pixels, **_):
            mask = np.zeros((1, 40, 60), bool)
            mask[0, 3:23, 2:22] = True
            found = dataclasses.make_dataclass("Found", ["names", "scores", "masks", "boxes"])
            return [found(["object"], np.array([0.5]), mask, np.array([[0, 0, 1, 1]])) for _ in pixels]

    with patch("sp_fast.inference.load", lambda path: Model()):
        result = analyses.boxes_of_model(
            tmp_path, tmp_path, images=str(images), annotations=str(images / "truth.json")
        )
    assert result["evaluations"][0]["boxes/mAP_50"] == pytest.approx(51 / 101)
    assert len(json.loads((tmp_path / analyses.DETECTIONS).read_text())) == 2
    assert json.loads((tmp_path / "progress.json").read_text()) == {"done": 2, "total": 2}
