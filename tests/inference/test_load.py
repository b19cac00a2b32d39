"""Loading checkpoints to predict with: what is found, what they give, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast
import sp_fast.models
from sp_fast.inference.config_text import check_types, parse_config
from sp_fast.inference.load import model_file

# isort: split
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.config import Config
from PIL import Image

from tests.docs.pages import README, ROOT, block
from tests.inference.checkpoints import CLASSES, checkpoint_of, finetuning_config, in_mmdet, save
from tests.pretraining.families import CHANNELS, FAMILIES, KERNELS, build
from tests.pretraining.narrow import BASELINES


@pytest.fixture(scope="module")
def images():
    """Images of noise of different sizes; the second and the last are padded alike."""
    sizes = [(50, 90), (64, 96), (96, 64), (60, 90)]
    generator = np.random.default_rng(0)
    coarse = [generator.integers(0, 255, (h // 8, w // 8, 3), np.uint8) for h, w in sizes]
    return [
        np.asarray(Image.fromarray(small).resize((w, h))) for small, (h, w) in zip(coarse, sizes, strict=True)
    ]


@pytest.fixture(scope="module", params=[*FAMILIES, *BASELINES])
def model(request, tmp_path_factory):
    path = save(checkpoint_of(request.param), tmp_path_factory.mktemp(request.param) / "latest.pth")
    return sp_fast.load(path.parent, device="cpu")


def test_predicts_at_image_size(model, images):
    assert model.classes == CLASSES
    for image, found in zip(images, model.predict(images, threshold=0), strict=True):
        assert found.masks.shape[1:] == image.shape[:2]
        assert found.classes == CLASSES
        assert (np.diff(found.scores) <= 0).all()
        assert found.masks.any((1, 2)).all()


def test_an_image_does_not_depend_on_its_batch(model, images):
    alone = [model.predict(image, threshold=0) for image in images]
    assert any(len(one) for one in alone)
    model.batch_size = 4
    for one, together in zip(alone, model.predict(images, threshold=0), strict=True):
        # Nearly equal scores may change places, and masks of a few pixels may vanish.
        for mask, label, score in zip(one.masks[:3], one.labels, one.scores, strict=False):
            if mask.sum() > 50:
                same = together[(together.labels == label) & (abs(together.scores - score) < 1e-4)]
                assert (same.masks != mask).mean((1, 2)).min() < 0.01


def test_an_image_too_thin_to_resize_is_named(model):
    with pytest.raises(ValueError, match=r"image: .* one of 1 x 4000 pixels \(height x width\): "):
        model.predict(np.zeros((1, 4000, 3), np.uint8))


@pytest.mark.parametrize("fold", ["none", "mean", "kernel"])
def test_a_pretraining_checkpoint_predicts_with_its_binary_head(images, tmp_path, fold):
    with in_mmdet():
        pretrainer = build("knet", prompts=dict(fold=fold)).eval()
    if fold != "none":
        pretrainer.received.update(torch.randn(2, KERNELS, CHANNELS))
    cfg = finetuning_config("knet")
    detector = dict(cfg.model)
    for part in (detector["rpn_head"], detector["roi_head"]["mask_head"]):
        part["num_classes"] = 1
    cfg.model = dict(type="SaliencyPromptPretrainer", detector=detector)
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=["object"]))
    whole = save(dict(meta=meta, state_dict=pretrainer.state_dict()), tmp_path / "epoch_1.pth")
    model = sp_fast.load(whole, device="cpu")
    assert model.classes == ("object",)
    expected = {**pretrainer.export(), **pretrainer.class_head()}
    kernels = "rpn_head.init_kernels.weight"
    assert torch.equal(expected[kernels], pretrainer.detector.state_dict()[kernels]) == (fold == "none")
    assert all(torch.equal(value, expected[name]) for name, value in model.detector.state_dict().items())
    model.predict(images[1])


def test_folded_prompts_of_an_unknown_model_are_an_error(tmp_path):
    with in_mmdet():
        state = build("knet", prompts=dict(fold="mean")).state_dict()
    cfg = finetuning_config("knet")
    cfg.model = dict(type="SaliencyPromptPretrainer", detector=dict(type="Unheard"))
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=["object"]))
    with pytest.raises(ValueError, match="Unheard is not known here; import the module that registers it"):
        sp_fast.load(save(dict(meta=meta, state_dict=state), tmp_path / "latest.pth"))


def test_missing_tensors_are_an_error(tmp_path):
    content = checkpoint_of("knet")
    del content["state_dict"]["roi_head.mask_head.1.fc_cls.weight"]
    with pytest.raises(ValueError, match=r"1 missing: roi_head\.mask_head\.1\.fc_cls\.weight"):
        sp_fast.load(save(content, tmp_path / "a.pth"))


def test_what_is_no_model_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="model: expected a run's folder, a checkpoint"):
        sp_fast.load(tmp_path / "nothing.pth")
    with pytest.raises(FileNotFoundError, match="model: expected a checkpoint in the folder"):
        sp_fast.load(tmp_path)
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(ValueError, match=r"expected weights saved by torch\.save"):
        sp_fast.load(tmp_path / "text.pth")
    weights = save({"state_dict": {"a": torch.zeros(1)}, "meta": {"epoch": 1}}, tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match=r"expected a trained model, .* got weights alone, such as those of a backbone"
    ):
        sp_fast.load(weights)
    with pytest.raises(ValueError, match="expected the names of the classes"):
        sp_fast.load(save(checkpoint_of("knet", dataset_meta={}), tmp_path / "classes.pth"))
    with pytest.raises(ValueError, match="device: nowhere cannot be used here"):
        sp_fast.load(weights, device="nowhere")


def test_too_few_class_names_are_an_error(images, tmp_path):
    path = save(checkpoint_of("knet", dataset_meta=dict(classes=("disc",))), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="labels below 1, the number of the checkpoint's classes"):
        sp_fast.load(path).predict(images[0], threshold=0)


def test_a_model_of_boxes_is_an_error(images, tmp_path):
    cfg = Config(dict(model=rpn(), test_dataloader=dict(dataset=dict(pipeline=[]))))
    with in_mmdet():
        state = MODELS.build(cfg.model).state_dict()
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=("box",)))
    model = sp_fast.load(save(dict(meta=meta, state_dict=state), tmp_path / "rpn.pth"))
    with pytest.raises(
        ValueError, match="expected a model that predicts masks, got RPN, which predicts boxes"
    ):
        model.predict(images[0])


def rpn():
    return dict(
        type="RPN",
        data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32),
        backbone=dict(type="ResNet", depth=18, base_channels=4),
        neck=dict(type="FPN", in_channels=[4, 8, 16, 32], out_channels=8, num_outs=5),
        rpn_head=dict(type="RPNHead", in_channels=8, feat_channels=8),
        train_cfg=None,
        test_cfg=dict(rpn=dict(nms_pre=9, max_per_img=9, nms=dict(type="nms", iou_threshold=0.7))),
    )


def test_the_best_file_of_a_run_is_taken(tmp_path):
    order = ["pretrained.pth", "epoch_9.pth", "epoch_10.pth", "latest.pth", "best.pth", "model.pth"]
    for age, name in enumerate(order):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (age, age))
        assert model_file(tmp_path).name == name


def test_configs_are_read_without_running_them():
    cfg = finetuning_config("mask2former")
    assert Config(parse_config(cfg.pretty_text)).model == cfg.model
    check_types(parse_config(cfg.pretty_text)["model"])
    for text in ("import os", "a = print(1)", "a = dict(**b)", "a = [x for x in b]", "a = 'b'.join", "a ="):
        with pytest.raises(ValueError, match="its config"):
            parse_config(text)
    with pytest.raises(ValueError, match=r"type='os\.system'"):
        check_types(parse_config("model = dict(a=[dict(type='os.system')])"))
    with pytest.raises(ValueError, match=r"type='mmengine\.load'"):
        check_types(parse_config("model = dict(type='mmengine.load')"))


@pytest.mark.parametrize("with_config", [False, True])
def test_mmdets_inferencer_gives_the_same(with_config, images, tmp_path):
    path = save(checkpoint_of("knet"), tmp_path / "knet.pth")
    config = tmp_path / "knet.py"
    finetuning_config("knet").dump(config)
    inferencer = DetInferencer(
        model=str(config) if with_config else None, weights=str(path), device="cpu", show_progress=False
    )
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    expected = sp_fast.load(path, device="cpu").predict(images[0], threshold=0)
    bgr = np.ascontiguousarray(images[0][..., ::-1])
    for given in (str(tmp_path / "image.png"), bgr):
        found = inferencer(given, return_datasamples=True)["predictions"][0].pred_instances
        kept = found.masks.flatten(1).any(1)
        assert (found.masks[kept].numpy() == expected.masks).all()
        assert found.scores[kept].numpy() == pytest.approx(expected.scores)


@pytest.mark.parametrize(
    ("page", "part", "file"),
    [
        (README, "sp_fast.load(", "runs/fit/model.pth"),
        (ROOT / "docs" / "predict.md", "sp_fast.load(", "runs/finetune/latest.pth"),
        (ROOT / "docs" / "predict.md", "DetInferencer(", "runs/finetune/latest.pth"),
    ],
)
def test_the_code_of_the_documentation_runs(page, part, file, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(file).parent.mkdir(parents=True)
    save(checkpoint_of("knet"), Path(file))
    Image.fromarray(images[0]).save("photo.jpg")
    exec(block(page, part), {})
    drawn = Image.open("found/vis/photo.jpg" if "Inferencer" in part else "found.png")
    assert drawn.size == (90, 50)


def test_mmdets_inferencer_leaves_no_head_random(tmp_path):
    content = checkpoint_of("knet")
    heads = {key: content["state_dict"].pop(key) for key in list(content["state_dict"]) if "fc_cls" in key}
    with pytest.raises(ValueError, match="missing: roi_head"):
        DetInferencer(weights=str(save(content, tmp_path / "without.pth")), device="cpu")
    content["class_head"] = heads
    DetInferencer(weights=str(save(content, tmp_path / "with.pth")), device="cpu", show_progress=False)
