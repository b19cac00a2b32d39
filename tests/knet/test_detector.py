"""K-Net as an mmdet detector: losses and predictions."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.knet.model import knet_config, random_sample

# isort: split
import mmdet.models.losses.focal_loss
from mmdet.registry import METRICS, MODELS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from pycocotools import mask as rle
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import mobilenet_v2

import sp_fast
from sp_fast.knet import iter_head, matching
from sp_fast.knet.prediction import instances, masks_at_image_size, select_top, tight_boxes
from sp_fast.weights import load_backbone_weights

CONFIGS = Path(sp_fast.__file__).parent / "configs" / "_base_"
LOSSES = {"loss_rpn_mask", "loss_rpn_dice", "loss_rpn_seg"} | {
    f"s{i}_loss_{kind}" for i in range(2) for kind in ("cls", "mask", "dice")
}


def build(**widths):
    torch.manual_seed(0)
    model = MODELS.build(knet_config(**widths))
    model.init_weights()
    return model


@pytest.fixture
def model():
    return build().train()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def batch(generator, counts, **options):
    samples = [random_sample(generator, count, **options) for count in counts]
    return torch.randn(len(counts), 3, 64, 96, generator=generator), samples


def total(losses):
    return sum(losses.values())


@pytest.mark.parametrize("counts", [[2], [1, 2, 3], [4, 0]])
def test_losses_of_any_batch_train_every_parameter(model, generator, counts):
    inputs, samples = batch(generator, counts)
    losses = model(inputs, samples, mode="loss")
    assert set(losses) == LOSSES
    assert all(value.isfinite() and value > 0 for value in losses.values())
    total(losses).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_a_batch_without_objects(model, generator):
    inputs, samples = batch(generator, [0, 0])
    losses = model.loss(inputs, samples)
    assert set(losses) == LOSSES
    for name, value in losses.items():
        assert value.isfinite()
        # Only the class and segmentation losses learn from background.
        assert (value > 0) == name.endswith(("cls", "seg")), name
    total(losses).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_class_loss_without_objects_is_the_sum_over_background(model, generator):
    inputs, samples = batch(generator, [0])
    p = model.roi_head(model.rpn_head(model.extract_feat(inputs)))[0].cls_logits.sigmoid()
    expected = 2 * (-0.75 * p.square() * (1 - p).log()).sum()  # divided by at least 1
    torch.testing.assert_close(model.loss(inputs, samples)["s0_loss_cls"], expected)


def test_more_objects_than_kernels(model, generator):
    inputs, samples = batch(generator, [9, 2])
    first = model.rpn_head(model.extract_feat(inputs))
    stages = model.roi_head(first)
    losses, assigned = model.loss_from(first, stages, model.targets(samples, (64, 96)))
    assert total(losses).isfinite()
    assert assigned.shape == (2, 2, 6)
    assert (assigned[:, 0] >= 0).all()  # every kernel has a different object
    assert all(len(row.unique()) == 6 for row in assigned[:, 0])
    assert ((assigned[:, 1] >= 0).sum(-1) == 2).all()


def test_an_image_has_the_same_losses_alone_and_doubled(model, generator):
    inputs, samples = batch(generator, [3])
    alone = model.loss(inputs, samples)
    twice = model.loss(inputs.repeat(2, 1, 1, 1), [samples[0], copy.deepcopy(samples[0])])
    for name, value in alone.items():
        torch.testing.assert_close(twice[name], value, rtol=1e-4, atol=1e-5)


def test_losses_of_a_batch_are_the_mean_over_its_pairs(model, generator):
    inputs, samples = batch(generator, [3, 1])
    together = model.loss(inputs, samples)
    apart = [model.loss(inputs[i : i + 1], samples[i : i + 1]) for i in range(2)]
    for name in LOSSES - {"loss_rpn_seg"}:
        torch.testing.assert_close(
            together[name], (3 * apart[0][name] + apart[1][name]) / 4, rtol=1e-4, atol=1e-5
        )


def test_stages_are_matched_on_predictions_of_the_previous_stage(model, generator):
    inputs, samples = batch(generator, [3, 2])
    first = model.rpn_head(model.extract_feat(inputs))
    stages = model.roi_head(first)
    targets = model.targets(samples, (64, 96))
    assigned = model.loss_from(first, stages, targets)[1]
    by_masks_alone = model.assigner([(first.mask_logits, None)], targets).gt[0]
    by_stage_0 = model.assigner([(stages[0].mask_logits, stages[0].cls_logits)], targets).gt[0]
    assert torch.equal(assigned[0], by_masks_alone)
    assert torch.equal(assigned[1], by_stage_0)


def test_the_class_loss_is_averaged_over_all_ranks(model, generator, monkeypatch):
    inputs, samples = batch(generator, [3, 2])
    here = model.loss(inputs, samples)
    monkeypatch.setattr(
        iter_head, "reduce_mean", lambda count: 2 * count
    )  # as if other ranks had three times as many
    there = model.loss(inputs, samples)
    for name in LOSSES:
        factor = 0.5 if name.endswith("cls") else 1.0
        torch.testing.assert_close(there[name], factor * here[name])


class Synchronisations(TorchDispatchMode):
    """Records operators that would wait for a GPU."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.waiting or (
            name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_has_one_transfer_to_the_host(model, generator, monkeypatch):
    inputs, samples = batch(generator, [3, 0, 2])
    transfers = []

    def to_host(costs):
        transfers.append(costs.shape)
        return costs.cpu().numpy()

    def one_hot(labels, num_classes):  # on the CPU, unlike on a GPU, PyTorch's version reads the labels
        return (labels[..., None] == torch.arange(num_classes)).long()

    monkeypatch.setattr(matching, "to_host", to_host)
    monkeypatch.setattr(mmdet.models.losses.focal_loss.F, "one_hot", one_hot)
    targets = model.targets(samples, (64, 96))
    with Synchronisations() as synchronisations:
        first = model.rpn_head(model.extract_feat(inputs))
        total(model.loss_from(first, model.roi_head(first), targets)[0]).backward()
    assert transfers == [(2, 3, 6, 3)]  # stages, images, kernels, largest count
    assert synchronisations.seen == []


def test_losses_are_fp32_under_autocast(model, generator):
    inputs, samples = batch(generator, [3, 1])
    exact = model.loss(inputs, samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(inputs, samples)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.1), name


def test_nan_predictions_give_a_nan_loss(model, generator):
    inputs, samples = batch(generator, [3, 1])
    torch.nn.init.constant_(model.roi_head.mask_head[0].fc_mask.bias, torch.nan)
    losses = model.loss(inputs, samples)
    assert losses["s0_loss_mask"].isnan()
    assert losses["loss_rpn_mask"].isfinite()


def test_errors_name_sizes_that_do_not_fit(model, generator):
    with pytest.raises(
        ValueError, match=r"multiples of 32, got 60 x 96; set data_preprocessor.pad_size_divisor"
    ):
        model.extract_feat(torch.zeros(1, 3, 60, 96))
    first = model.rpn_head(model.extract_feat(torch.zeros(1, 3, 64, 96)))
    with pytest.raises(ValueError, match=r"targets.masks: expected 16 x 24 cells \(stride 4\), got 16 x 16"):
        model.loss_from(
            first, model.roi_head(first), model.targets([random_sample(generator, 1, (64, 64))], (64, 64))
        )
    with pytest.raises(ValueError, match="num_stages: expected as many"):
        build(num_stages=2).roi_head.__class__(mask_head=[], num_stages=2)


def test_select_top(generator):
    logits = torch.randn(2, 4, 3, generator=generator)
    scores, labels, kernels = select_top(logits, 5)
    for b in range(2):
        pairs = [(logits[b, n, k].sigmoid().item(), k, n) for n in range(4) for k in range(3)]
        best = sorted(pairs, reverse=True)[:5]
        assert scores[b].tolist() == pytest.approx([score for score, _, _ in best])
        assert labels[b].tolist() == [k for _, k, _ in best]
        assert kernels[b].tolist() == [n for _, _, n in best]
    assert select_top(logits, 100)[0].shape == (2, 12)


def test_masks_at_image_size(generator):
    logits = torch.randn(2, 8, 12, generator=generator)

    def resize(x, size):
        return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]

    expected = resize(resize(resize(logits, (16, 24)).sigmoid(), (64, 96))[:, :50, :90], (75, 135))
    torch.testing.assert_close(masks_at_image_size(logits, (64, 96), (50, 90), (75, 135)), expected)


def test_tight_boxes():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 1, 2] = masks[0, 4, 5] = True
    masks[1] = True
    assert tight_boxes(masks).tolist() == [[2, 1, 6, 5], [0, 0, 8, 6], [0, 0, 0, 0]]


@pytest.mark.parametrize("rescale", [True, False])
def test_predictions_are_data_samples_of_mmdet(model, generator, rescale):
    inputs, samples = batch(generator, [0, 0], ori_shape=(40, 70))
    samples[1].set_metainfo(dict(img_shape=(50, 90), ori_shape=(75, 135)))
    model.eval()
    with torch.no_grad():
        results = model.predict(inputs, samples, rescale=rescale)
    for sample, shape in zip(
        results, [(40, 70), (75, 135)] if rescale else [(64, 96), (50, 90)], strict=True
    ):
        found = sample.pred_instances
        assert len(found) == 10  # test_cfg.max_per_img, of 6 kernels x 3 classes
        assert found.masks.shape == (10, *shape)
        assert found.masks.dtype == torch.bool
        assert torch.equal(found.bboxes, tight_boxes(found.masks))
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        assert set(found.labels.tolist()) <= {0, 1, 2}


def test_an_image_is_predicted_the_same_alone_and_in_a_batch(model, generator):
    inputs, samples = batch(generator, [0, 0, 0])
    model.eval()
    with torch.no_grad():
        together = model.predict(inputs, copy.deepcopy(samples))
        for i, sample in enumerate(samples):
            alone = model.predict(inputs[i : i + 1], [sample])[0].pred_instances
            torch.testing.assert_close(alone.scores, together[i].pred_instances.scores)
            assert torch.equal(alone.labels, together[i].pred_instances.labels)
            assert (alone.masks != together[i].pred_instances.masks).float().mean() < 1e-3


def test_tensor_mode_gives_the_last_stage(model, generator):
    inputs, _ = batch(generator, [0, 0])
    cls_logits, mask_logits = model.eval()(inputs, mode="tensor")
    assert cls_logits.shape == (2, 6, 3)
    assert mask_logits.shape == (2, 6, 8, 12)


def test_raw_images_of_several_sizes(model, generator):
    shapes = [(50, 90), (64, 40)]
    data = dict(
        inputs=[
            torch.randint(0, 255, (3, *shape), generator=generator, dtype=torch.uint8) for shape in shapes
        ],
        data_samples=[random_sample(generator, 2, shape) for shape in shapes],
    )
    for sample in data["data_samples"]:
        sample.set_metainfo(dict(ori_shape=(100, 120)))
    ready = model.data_preprocessor(copy.deepcopy(data), True)
    assert ready["inputs"].shape == (2, 3, 64, 96)
    assert total(model(**ready, mode="loss")).isfinite()
    for sample in model.eval().val_step(data):
        assert sample.pred_instances.masks.shape == (10, 100, 120)


@pytest.fixture
def annotations(tmp_path):
    """Two rectangular masks in one image, and their annotation file."""
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 16:48, 8:40] = True
    masks[1, 8:56, 56:88] = True
    entries = []
    for i, mask in enumerate(masks):
        segmentation = rle.encode(mask.numpy().astype("uint8", order="F"))
        segmentation["counts"] = segmentation["counts"].decode()
        x0, y0, x1, y1 = tight_boxes(mask[None])[0].tolist()
        entry = dict(id=i + 1, image_id=0, category_id=i + 1, iscrowd=0, segmentation=segmentation)
        entries.append(entry | dict(bbox=[x0, y0, x1 - x0, y1 - y0], area=int(mask.sum())))
    content = dict(
        images=[dict(id=0, width=96, height=64, file_name="0.jpg")],
        annotations=entries,
        categories=[dict(id=1, name="a"), dict(id=2, name="b")],
    )
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return masks, path


def evaluate(path, found, metric_type="CocoMetric"):
    metric = METRICS.build(dict(type=metric_type, ann_file=str(path), metric=["bbox", "segm"]))
    metric.dataset_meta = dict(classes=("a", "b"))
    sample = dict(img_id=0, ori_shape=(64, 96), pred_instances=found.to_dict())
    metric.process({}, [sample])
    return metric.evaluate(1)


def test_coco_metric_reads_the_predictions(annotations):
    masks, path = annotations
    # Logits that give the rectangles back after thresholding.
    logits = F.avg_pool2d(masks.float()[None], 8)[0] * 20 - 10
    meta = dict(img_shape=(64, 96), ori_shape=(64, 96))
    scores, labels, kernels = torch.tensor([0.9, 0.8]), torch.tensor([1, 0]), torch.tensor([1, 0])
    found = instances(logits, scores, labels, kernels, meta, (64, 96), 0.5, True)
    assert evaluate(path, found)["coco/segm_mAP"] > 0.85
    empty = instances(logits * 0 - 10, scores, labels, kernels, meta, (64, 96), 0.5, True)
    assert not empty.masks.any()
    assert evaluate(path, empty)["coco/segm_mAP"] == 0


def test_masks_are_resized_a_few_at_a_time(monkeypatch):
    logits = torch.randn(7, 8, 12, generator=torch.Generator().manual_seed(0))
    meta = dict(img_shape=(60, 90), ori_shape=(100, 120))
    given = (logits, torch.rand(9), torch.zeros(9, dtype=torch.int64), torch.arange(9) % 7)
    expected = instances(*given, meta, (64, 96), 0.5, True)
    monkeypatch.setattr("sp_fast.knet.prediction._PIXELS_AT_ONCE", 2 * 100 * 120)
    found = instances(*given, meta, (64, 96), 0.5, True)
    assert torch.equal(found.masks, expected.masks)
    assert torch.equal(found.bboxes, expected.bboxes)


def test_no_predictions_at_all(annotations):
    meta = dict(img_shape=(64, 96), ori_shape=(64, 96))
    nothing = torch.zeros(0, dtype=torch.int64)
    found = instances(torch.zeros(4, 8, 12), nothing.float(), nothing, nothing, meta, (64, 96), 0.5, True)
    assert found.masks.shape == (0, 64, 96)
    assert found.bboxes.shape == (0, 4)
    assert evaluate(annotations[1], found, metric_type="InstanceMetric")["coco/segm_mAP"] == 0


def test_visualizer_draws_the_predictions(model, generator):
    inputs, samples = batch(generator, [0])
    model.eval()
    with torch.no_grad():
        sample = model.predict(inputs, samples)[0]
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=("a", "b", "c"), palette=[(255, 0, 0)] * 3)
    image = torch.zeros(64, 96, 3, dtype=torch.uint8).numpy()
    visualizer.add_datasample("image", image, sample, draw_gt=False, pred_score_thr=0.0)
    drawn = visualizer.get_image()
    assert drawn.shape == (64, 96, 3)
    assert sample.pred_instances.masks.any()
    assert drawn.any()


AUTHORS_NAMES = (
    r"backbone\..*",
    r"neck\..*",
    r"rpn_head\.localization_fpn\.convs_all_levels\.[0-3]\.conv[0-2]\.(conv\.weight|gn\.(weight|bias))",
    r"rpn_head\.localization_fpn\.(conv_pred|aux_convs\.0)\.(conv\.weight|gn\.(weight|bias))",
    r"rpn_head\.init_kernels\.weight",
    r"rpn_head\.conv_seg\.(weight|bias)",
    r"rpn_head\.(loc|seg)_convs\.0\.(conv\.weight|gn\.(weight|bias))",
    r"STAGE\.attention\.attn\.(in_proj_weight|in_proj_bias|out_proj\.(weight|bias))",
    r"STAGE\.(attention_norm|feat_transform\.conv|ffn_norm|fc_cls|fc_mask)\.(weight|bias)",
    r"STAGE\.kernel_update_conv\.(dynamic_layer|input_layer|input_gate|update_gate)\.(weight|bias)",
    r"STAGE\.kernel_update_conv\.(norm_in|norm_out|input_norm_in|input_norm_out)\.(weight|bias)",
    r"STAGE\.kernel_update_conv\.(fc_layer|fc_norm)\.(weight|bias)",
    r"STAGE\.ffn\.layers\.(0\.0|1)\.(weight|bias)",
    r"STAGE\.(cls|mask)_fcs\.(0\.weight|1\.(weight|bias))",
)


def config_model(name):
    config = Config.fromfile(CONFIGS / f"{name}.py")
    assert config.custom_imports.imports == ["sp_fast.models"]
    return MODELS.build(config.model)


def test_resnet50_config_builds_the_authors_model():
    model = config_model("knet_r50")
    names = list(model.state_dict())
    patterns = [re.compile(name.replace("STAGE", r"roi_head\.mask_head\.[0-2]")) for name in AUTHORS_NAMES]
    assert [name for name in names if not any(p.fullmatch(name) for p in patterns)] == []
    assert [p.pattern for p in patterns if not any(p.fullmatch(name) for name in names)] == []
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(37e6, rel=0.02)
    assert (model.assigner.cls_weight, model.assigner.dice_weight, model.assigner.mask_weight) == (2, 4, 1)


def test_demo_config_trains_and_predicts(generator):
    model = config_model("knet_demo").train()
    samples = [random_sample(generator, 2, (64, 64), num_classes=1) for _ in range(2)]
    inputs = torch.randn(2, 3, 64, 64, generator=generator)
    losses = model.loss(inputs, samples)
    assert len(losses) == 3 + 3 * 3
    assert total(losses).isfinite()
    assert len(model.eval().predict(inputs, samples)[0].pred_instances) == 20


def test_mobilenet_config_loads_torchvision_weights(generator, tmp_path):
    model = config_model("knet_mobilenet_v2").train()
    theirs = mobilenet_v2(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "mobilenet_v2.pth")
    report = load_backbone_weights(model.backbone, tmp_path / "mobilenet_v2.pth")
    assert report.missing == report.unknown == ()
    inputs = torch.randn(1, 3, 64, 64, generator=generator)
    c2, c3, c4, c5 = model.backbone(inputs)
    assert [c.shape[1:] for c in (c2, c3, c4, c5)] == [(24, 16, 16), (32, 8, 8), (96, 4, 4), (320, 2, 2)]
    with torch.no_grad():
        torch.testing.assert_close(c5, theirs.features[:18](inputs))  # batch norm stays in eval mode
    first, second = model.backbone.features[3], model.backbone.features[4]
    assert not any(p.requires_grad for p in first.parameters())
    assert all(p.requires_grad for p in second.parameters())
    assert not first.training
    with pytest.raises(ValueError, match="frozen_stages: expected 0 to 4, got 5"):
        MODELS.build(dict(type="TorchvisionMobileNetV2", frozen_stages=5))


def test_mobilenet_loads_the_published_file(data_dir):
    backbone = MODELS.build(dict(type="TorchvisionMobileNetV2"))
    report = load_backbone_weights(backbone, data_dir("weights/mobilenet_v2_imagenet.pth"))
    assert report.missing == report.unknown == ()
