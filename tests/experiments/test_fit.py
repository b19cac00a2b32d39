"""The experiment of a fit: its rows, and the configs of its models."""

import dataclasses

import pytest

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401  # before mmdet: provides what mmcv-lite lacks

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from sp_fast.configs import find_config
from sp_fast.data.coco import save_coco
from sp_fast.experiments.fit import PRETRAINED, WITHOUT, experiment
from sp_fast.experiments.fit_data import FitData
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.settings import MODELS as KNOWN
from sp_fast.overrides import apply_overrides

MODEL_NAMES = list(dict.fromkeys(name for names in KNOWN.values() for name in names))


def define(folder, classes=("cell",), **changed):
    """The experiment with these classes and settings."""
    chosen = {
        "model": MODEL_NAMES[0],
        "size": 96,
        "kernels": 60,
        "batch_size": 3,
        "finetune_steps": 5,
        "pretrain_steps": 7,
        "amp": False,
        "pretrain_cache": "ram",
        "finetune_cache": None,
        "prompts": "none",
        "proposals": {
            "backbone": {"stage": 3, "padding": "replicate"},
            "size": 640,
            "options": {"max_masks": 9},
            "channels": 96,
        },
        **{name: changed.pop(name) for name in list(changed) if name not in ("compare", "class_agnostic")},
    }
    coco = {"images": [], "annotations": []}
    coco["categories"] = [{"id": i, "name": name} for i, name in enumerate(classes)]
    save_coco(coco, folder / "val.json")
    data = FitData(
        "all", "train.json", "photos", str(folder / "val.json"), "val", "truth.json", 9, 4, 1, True
    )
    settings = [(name, value, "because") for name, value in chosen.items()]
    return experiment(dataclasses.asdict(data), "weights.pth", "mobilenet_v2", settings, **changed)


def test_both_rows_differ_in_the_pretraining_alone(tmp_path):
    found = define(tmp_path, compare=True)
    with_it, without = found.rows
    assert (with_it.name, without.name) == (PRETRAINED, WITHOUT)
    assert with_it.finetune == without.finetune
    assert without.pretrain is without.proposals is None
    assert with_it.pretrain.images == "all"
    assert with_it.proposals.options == {"max_masks": 9}
    assert (with_it.proposals.backbone["stage"], with_it.proposals.backbone["padding"]) == (3, "replicate")
    assert [one.claim for one in found.comparisons] == ["gain from pre-training on your images"]
    assert [row.name for row in define(tmp_path).rows] == [PRETRAINED]


def test_a_comparison_added_later_keeps_the_runs(tmp_path):
    alone, both = (Plan(define(tmp_path, compare=compare), tmp_path, [0]) for compare in (False, True))
    assert len(alone.runs) == 3
    assert len(both.runs) == 4
    assert alone.runs.keys() < both.runs.keys()


def test_several_classes_are_measured_as_one_too(tmp_path):
    assert list(define(tmp_path).metrics) == ["coco/segm_mAP", "coco/segm_mAP_50"]
    assert list(define(tmp_path, ("a", "b")).metrics)[2:] == ["class_agnostic/segm_mAP"]
    merged = define(tmp_path, ("a", "b"), class_agnostic=True)
    assert list(merged.metrics) == ["class_agnostic/segm_mAP", "class_agnostic/segm_mAP_50"]
    (training,) = merged.rows[0].finetune.values()
    assert "--class-agnostic" in training.arguments


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_options_fit_the_configs(name, tmp_path):
    row = define(tmp_path, model=name, size=[1333, 800], amp=True).rows[0]
    for training in row.trainings.values():
        cfg = Config.fromfile(find_config(training.config))
        apply_overrides(cfg, training.options)
        assert cfg.train_dataloader.dataset.pipeline[2].type == "Resize"
        assert cfg.train_dataloader.dataset.pipeline[2].scale == [1333, 800]
        assert "--amp" in training.arguments
        if training.val_images:  # what is predicted with is what was measured
            assert cfg.val_dataloader.dataset.pipeline[1].scale == [1333, 800]
            assert cfg.test_dataloader.dataset.pipeline == cfg.val_dataloader.dataset.pipeline
        with DefaultScope.overwrite_default_scope("mmdet"):
            model = MODELS.build(cfg.model)
        detector = getattr(model, "detector", model)
        assert detector.rpn_head.num_proposals == 60
        assert detector.max_per_img == 100
        assert detector.rerank


def test_prompts_are_an_option(tmp_path):
    bare, prompted = (define(tmp_path, prompts=kind).rows[0].pretrain.options for kind in ("none", "cosine"))
    assert bare["model.prompts.strategy"] == "none"
    assert bare["model.supervision"] is None
    assert prompted["model.prompts.strategy"] == "cosine"
    assert prompted["model.supervision.seed_channels"] == 96
    assert "model.supervision" not in prompted
