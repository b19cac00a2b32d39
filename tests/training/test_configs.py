"""Every config: two steps on tiny images with a narrow model, forward and backward, and what comes out."""

from __future__ import annotations

import ast
import re
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.pretraining.narrow import BASELINES, HEADS, NARROW
from tests.training.runs import CONFIGS, finetune_options, pretrain_options, write_scenes

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from sp_fast.configuration import set_num_classes
from sp_fast.experiments.paper import tables
from sp_fast.proposals.random_boxes import write_random_boxes
from sp_fast.train import parse_arguments, prepare

CLASSES = 5


class Row(NamedTuple):
    """What a row of the paper's tables is pre-trained with."""

    strategy: str
    supervised: bool
    source: str = "cached"
    masks: str = "masks.json"


ROWS = {
    "table4/with": Row("cosine", True),
    "table4/without": Row("cosine", False),
    "table5/none": Row("none", False),
    "table5/random": Row("random", True),
    "table5/sequential": Row("sequential", True),
    "table5/cosine": Row("cosine", True),
    "table7/random-without": Row("none", False, "import", "random.json"),
    "table7/random": Row("cosine", True, "import", "random.json"),
    "table7/saliency-without": Row("none", False),
    "table7/saliency": Row("cosine", True),
    "table7/freesolo-without": Row("none", False, "import", "freesolo.json"),
    "table7/freesolo": Row("cosine", True, "import", "freesolo.json"),
    "table7/up_detr-without": Row("none", False, "import", "random.json"),
    "table7/up_detr": Row("cosine", True, "import", "random.json"),
    "table7/detreg-without": Row("none", False, "import", "detreg_regions.json"),
    "table7/detreg": Row("cosine", True, "import", "detreg_regions.json"),
}
TABLES = {name: getattr(tables, name)("DATA") for name in ("table4", "table5", "table7")}


def row_options(name: str) -> dict:
    """What a row of the paper's tables changes of the config, flat."""
    table, row = name.split("/")
    return next(one for one in TABLES[table].rows if one.name == row).pretrain.options


def configs(*folders: str) -> list[str]:
    """The configs in these folders, by folder and name."""
    return [f"{name}/{path.stem}" for name in folders for path in sorted((CONFIGS / name).glob("*.py"))]


def family_of(config: str) -> str:
    """Which entry of NARROW a config's model has."""
    name = config.split("/")[1]
    others = ("knet_mobilenet_v2", "queryinst", "mask2former", "mask_rcnn", "solov2")
    return next((family for family in others if name.startswith(family)), "knet")


def evaluates(config: str) -> bool:
    """Whether two steps are enough for a model that can be evaluated."""
    return not config.startswith("finetune/queryinst")


def pretraining_of(config: str) -> str:
    """The pre-training config of a fine-tuning config's model."""
    fitting = [one for one in configs("pretrain") if config.split("/")[1].startswith(one.split("/")[1])]
    return fitting[0]


def heads_of(family: str) -> set[str]:
    """The layers whose shape depends on the classes."""
    return HEADS[family.removesuffix("_mobilenet_v2")]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    made = write_scenes(tmp_path_factory.mktemp("scenes"))
    write_random_boxes(made / "labelled", made / "random.json", count=4)
    shutil.copy(made / "masks.json", made / "freesolo.json")
    return made


def options(config: str) -> list[str]:
    """--cfg-options for a narrow model on small images."""
    cfg = Config.fromfile(CONFIGS / f"{config}.py")
    detector = "model.detector" if "detector" in cfg.model else "model"
    given = [f"{detector}.{name}={value}" for name, value in NARROW[family_of(config)].items()]
    for loader in ("train_dataloader", "val_dataloader")[: 1 if not evaluates(config) else None]:
        if cfg.get(loader):
            given += [f"{loader}.num_workers=0", f"{loader}.persistent_workers=False"]
            path, dataset = f"{loader}.dataset", cfg[loader].dataset
            if "dataset" in dataset:
                path, dataset = f"{path}.dataset", dataset.dataset
                given.append(f"{loader}.dataset.times=1")
            for i, step in enumerate(dataset.pipeline):
                for size in {"scale", "crop_size"} & step.keys():
                    small = [(64, 48), (64, 64)] if isinstance(step[size], list) else (64, 64)
                    given.append(f"{path}.pipeline.{i}.{size}={small}")
    if not evaluates(config):
        # On a CPU mmdet cannot paste a mask whose box lies outside the image, as those of two steps may.
        parts = ("cfg", "dataloader", "evaluator")
        given += [f"{name}_{part}=None" for name in ("val", "test") for part in parts]
    return [text.replace(" ", "") for text in given]


def run(config: str, work_dir: Path, *arguments: object, more: tuple[str, ...] = ()):
    """Runs the command for two steps, with `more` --cfg-options; gives the runner and the weights before."""
    given = [str(CONFIGS / f"{config}.py"), "--work-dir", str(work_dir), "--epochs", "1", "--batch-size", "3"]
    if "--load-from" not in arguments and "--weights" not in arguments:
        given.append("--from-scratch")
    given += [*map(str, arguments), "--cfg-options", *options(config), *more]
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        # mmengine formats the config five times per run, which takes longer than the run.
        patch.setattr(Config, "pretty_text", property(lambda cfg: repr(cfg.to_dict())))
        runner = prepare(parse_arguments(given))
        before = {name: value.clone() for name, value in runner.model.state_dict().items()}
        runner.train()
    assert runner.iter == 2
    return runner, before


def data_of(config: str, scenes: Path, row: Row | None = None) -> list[str]:
    """The images and pseudo masks that a pre-training config asks for."""
    given = pretrain_options(scenes)
    if row is not None and row.source == "import":
        return [*given[:2], "--annotations", str(scenes / row.masks)]
    return given[:2] if config.endswith("_shared") else given


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, scenes):
    """Runs a pre-training config once; gives its work folder, runner and weights before."""
    done = {}

    def run_once(config: str, row: Row | None = None, more: tuple[str, ...] = ()):
        if (config, row) not in done:
            folder = tmp_path_factory.mktemp("pretrain") / "run"
            done[config, row] = folder, *run(config, folder, *data_of(config, scenes, row), more=more)
        return done[config, row]

    return run_once


def plain(config: str):
    """The plain detector that a pre-training config is for, with more classes."""
    cfg = Config(dict(model=Config.fromfile(CONFIGS / f"{config}.py").model.detector))
    cfg.merge_from_dict({f"model.{name}": value for name, value in NARROW[family_of(config)].items()})
    set_num_classes(cfg.model, CLASSES)
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize("config", configs("pretrain"))
def test_pretraining_config(config, pretrained):
    assert_pretrained(config, *pretrained(config))


# Rows that are the config itself, or another row with other masks, are not trained twice.
SAME = ("saliency-without", "up_detr-without", "up_detr", "detreg-without", "detreg")


@pytest.mark.parametrize(
    "name",
    [name for name in ROWS if row_options(name) and not name.endswith(SAME)],
)
def test_row_of_the_paper(name, pretrained):
    given = tuple(f"{key}={value}" for key, value in row_options(name).items())
    assert_pretrained("pretrain/knet_r50", *pretrained("pretrain/knet_r50", ROWS[name], given))


def test_rows_start_from_the_same_weights(pretrained):
    """With and without the layer of Eq. 9, whose weights are drawn too."""
    without = pretrained("pretrain/knet_r50", ROWS["table4/without"], ("model.supervision=None",))[2]
    whole = pretrained("pretrain/knet_r50")[2]
    assert without.keys() < whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in without.items())


def assert_pretrained(config, folder, runner, before):
    """Heads have learned, and what was exported fits the plain model but for its class heads."""
    after = runner.model.state_dict()
    learned = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("head" in name for name in learned)
    assert bool(learned & {"supervision.linear.weight"}) == (runner.model.supervision is not None)

    weights = torch.load(folder / "pretrained.pth", weights_only=True)["state_dict"]
    result = plain(config).load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    assert {name.rsplit(".", 1)[0] for name in result.missing_keys} == heads_of(family_of(config))


def test_a_teacher_beside_a_student_that_learns(scenes, tmp_path):
    """As the config for proposals made in the step says; the teacher has the weights that were loaded."""
    config, weights = "pretrain/knet_r50_shared", tmp_path / "weights.pth"
    loaded = {name: value + 0.01 for name, value in plain(config).backbone.state_dict().items()}
    torch.save(loaded, weights)
    more = ("model.source=teacher", "model.frozen_stages=1", "optim_wrapper.optimizer.lr=0.1")
    arguments = [*data_of(config, scenes), "--weights", weights]
    runner, _ = run(config, tmp_path / "run", *arguments, more=more)
    name = "layer3.0.downsample.0.weight"
    teacher, student = runner.model.source.backbone, runner.model.detector.backbone
    assert torch.equal(teacher.state_dict()[name], loaded[name])
    assert not torch.equal(student.state_dict()[name], loaded[name])
    saved = torch.load(tmp_path / "run" / "latest.pth", weights_only=True)["state_dict"]
    assert torch.equal(saved[f"source.backbone.{name}"], loaded[name])  # for resuming
    exported = torch.load(tmp_path / "run" / "pretrained.pth", weights_only=True)["state_dict"]
    assert not any(key.startswith("source") for key in exported)


@pytest.mark.parametrize("config", configs("finetune"))
def test_finetuning_config(config, pretrained, scenes, tmp_path):
    """Fine-tunes from the model's pre-training (baselines: random weights), and evaluates."""
    data = finetune_options(scenes)[: None if evaluates(config) else 4]
    start = {}
    if family_of(config) not in BASELINES:
        folder, _, _ = pretrained(pretraining_of(config))
        start = torch.load(folder / "pretrained.pth", weights_only=True)["state_dict"]
        data += ["--load-from", str(folder / "pretrained.pth")]
    runner, before = run(config, tmp_path / "run", *data)
    assert all(torch.equal(before[name], value) for name, value in start.items())
    heads = {name.rsplit(".", 1)[0] for name in before if name not in start and "num_batches" not in name}
    if start:
        assert heads == heads_of(family_of(config))
    after = runner.model.state_dict()
    for head in heads_of(family_of(config)):
        assert any(not torch.equal(after[name], before[name]) for name in after if name.startswith(head))
    if evaluates(config):
        assert 0 <= runner.message_hub.get_scalar("val/class_agnostic/segm_mAP").current() <= 1


def test_tables_have_every_row():
    assert {f"{table}/{row.name}" for table, one in TABLES.items() for row in one.rows} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_the_papers_setting_but_for_its_options(name):
    cfg = Config.fromfile(CONFIGS / "pretrain/knet_r50.py")
    expected = cfg.to_dict()
    row = ROWS[name]
    if row.strategy != "cosine":
        expected["model"]["prompts"] = {"strategy": row.strategy}
    if not row.supervised:
        expected["model"]["supervision"] = None
    if row.source == "import":
        expected["model"]["source"] = "import"
    cfg.merge_from_dict(row_options(name))
    assert cfg.to_dict() == expected
    table, own = name.split("/")
    made = next(one for one in TABLES[table].rows if one.name == own)
    if row.masks == "random.json":
        assert made.proposals.kind == "random_boxes"
    elif row.source == "import":
        assert made.proposals is None
        assert made.pretrain.annotations == f"DATA/{row.masks}"
    else:
        assert made.proposals.kind == "saliency"


def test_no_config_inherits_through_more_than_two():
    def depth(path: Path) -> int:
        found = re.search(r"^_base_ = (\[.*\])$", path.read_text(), re.MULTILINE)
        bases = ast.literal_eval(found[1]) if found else []
        return max((1 + depth(path.parent / base) for base in bases), default=0)

    for config in configs("pretrain", "finetune"):
        assert depth(CONFIGS / f"{config}.py") <= 2, config
