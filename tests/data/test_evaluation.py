"""COCO evaluation against direct calls of pycocotools, and against values computed by hand."""

import contextlib
import copy
import io
import math
from collections import Counter

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sp_fast.data.coco import load_coco
from sp_fast.data.evaluation import EVALUATORS, evaluate_coco
from sp_fast.data.rle import best_ious, run_lengths
from sp_fast.data.synthetic import SHAPES, SetOptions, make_set
from tests.data.perturbed import perturbed

NAMES = [
    *("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"),
    *("AR@1", "AR@10", "AR@100", "AR_s", "AR_m", "AR_l"),
]


def by_pycocotools(truth, detections, iou_type, use_categories=True, categories=()):
    """The 12 values of pycocotools' summary, from copies of the data; by default of all categories."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        metric = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), iou_type)
        metric.params.useCats = int(use_categories)
        metric.params.catIds = list(categories) or metric.params.catIds
        metric.evaluate()
        metric.accumulate()
        metric.summarize()
    return dict(zip(NAMES, metric.stats.tolist(), strict=True))


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    return load_coco(
        make_set(folder, SetOptions(size=128, unlabelled=0, labelled=0, validation=8)) / "validation.json"
    )


@pytest.fixture(scope="module")
def detections(truth):
    """Each object twice, shifted by up to 3 pixels, some with a wrong class, with random scores."""
    generator = np.random.default_rng(0)
    found = []
    for one in truth["annotations"] * 2:
        mask = np.roll(coco_mask.decode(one["segmentation"]), generator.integers(-3, 4, 2), (0, 1))
        wrong = generator.random() < 0.3
        found.append(
            {
                "image_id": one["image_id"],
                "category_id": 1 + int(generator.integers(len(SHAPES))) if wrong else one["category_id"],
                "score": float(generator.random()),
                "segmentation": run_lengths(mask[None])[0],
                "bbox": [side + float(generator.normal()) for side in one["bbox"]],
            }
        )
    return found


def only(detections, key):
    return [{k: v for k, v in one.items() if k not in {"segmentation", "bbox"} - {key}} for one in detections]


@pytest.mark.parametrize(("iou_type", "key"), [("segm", "segmentation"), ("bbox", "bbox")])
def test_values_match_pycocotools(truth, detections, iou_type, key):
    wanted = by_pycocotools(truth, only(detections, key), iou_type)
    before = copy.deepcopy((truth, detections))
    got = evaluate_coco(truth, detections, iou_type)
    assert (truth, detections) == before
    assert 0.1 < wanted["mAP"] < 0.9
    assert wanted["mAP_l"] == -1
    assert math.isnan(got.pop("mAP_l"))
    assert math.isnan(got.pop("AR_l"))
    best_iou = got.pop("best_iou")
    assert got == pytest.approx({name: wanted[name] for name in got}, abs=1e-12)
    assert got.keys() == set(NAMES) - {"mAP_l", "AR_l"}
    assert 0.3 < best_iou < 1


@pytest.fixture(scope="module", params=["synthetic", "coco_mini", "nuclei"])
def real_or_made(request, truth, data_dir):
    """Annotations and perturbed copies of them as detections."""
    files = {"coco_mini": "coco_mini/annotations/instances_val.json", "nuclei": "nuclei/instances_val.json"}
    annotated = load_coco(data_dir(files[request.param])) if request.param in files else truth
    images = annotated["images"]
    if request.param == "nuclei":
        images = images[:12]  # pycocotools is slow where images have many objects
    kept = {image["id"] for image in images}
    objects = [one for one in annotated["annotations"] if one["image_id"] in kept]
    annotated = {"info": {}, **annotated, "images": images, "annotations": objects}
    return annotated, perturbed(annotated)


def values_of(got):
    return {name: -1 if math.isnan(got[name]) else got[name] for name in NAMES}


@pytest.mark.parametrize(("iou_type", "key"), [("segm", "segmentation"), ("bbox", "bbox")])
def test_perturbed_objects_match_pycocotools(real_or_made, iou_type, key):
    truth, found = real_or_made
    direct = only(found, key)
    got = evaluate_coco(truth, found, iou_type, per_class=True)
    assert 0 < got["mAP"] < 0.9
    assert values_of(got) == pytest.approx(by_pycocotools(truth, direct, iou_type), abs=1e-6)
    counts = Counter(one["category_id"] for one in truth["annotations"])
    for category in [category for category, _ in counts.most_common(2)]:
        name = next(one["name"] for one in truth["categories"] if one["id"] == category)
        wanted = by_pycocotools(truth, direct, iou_type, categories=[category])
        assert values_of(got["per_class"][name]) == pytest.approx(wanted, abs=1e-6)
    got = evaluate_coco(truth, found, iou_type, class_agnostic="no_categories")
    wanted = by_pycocotools(truth, direct, iou_type, use_categories=False)
    assert values_of(got) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("class_agnostic", [False, "merged", "no_categories"])
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_both_evaluators_agree_in_everything(truth, iou_type, class_agnostic):
    options = dict(class_agnostic=class_agnostic, per_class=True, curves=True)
    found = perturbed(truth)
    one, other = (
        evaluate_coco(truth, found, iou_type, evaluator=evaluator, **options) for evaluator in EVALUATORS
    )
    assert one.pop("precision") == pytest.approx(other.pop("precision"), abs=1e-12, nan_ok=True)
    assert one["per_class"].keys() == other["per_class"].keys()
    for name, values in one.pop("per_class").items():
        assert values == pytest.approx(other["per_class"][name], abs=1e-12, nan_ok=True)
    del other["per_class"]
    assert one == pytest.approx(other, abs=1e-12, nan_ok=True)


def test_what_is_added_on_request(truth):
    found = perturbed(truth)
    got = evaluate_coco(truth, found, per_class=True, curves=True)
    assert {"per_class", "precision"}.isdisjoint(evaluate_coco(truth, found))
    assert list(got["per_class"]) == [one["name"] for one in truth["categories"]]
    aps = [values["mAP"] for values in got["per_class"].values()]
    assert np.nanmean(aps) == pytest.approx(got["mAP"])
    assert got["precision"].shape == (10, 101)
    assert got["precision"].mean() == pytest.approx(got["mAP"])
    agnostic = evaluate_coco(truth, found, class_agnostic="merged", per_class=True)
    assert agnostic["per_class"]["object"]["mAP"] == agnostic["mAP"]


def test_protocols_differ_by_masks_predicted_twice(truth, detections):
    twice = detections + [dict(one, score=one["score"] / 2) for one in detections]
    merged, pooled = (
        evaluate_coco(truth, twice, class_agnostic=one)["mAP"] for one in ("merged", "no_categories")
    )
    assert merged == evaluate_coco(truth, detections, class_agnostic="merged")["mAP"]
    assert pooled < merged - 1e-3


def renamed(entries, names):
    return [one | {key: name(one[key]) for key, name in names.items()} for one in entries]


@pytest.mark.parametrize("first", [0, 1])
def test_ids_of_any_kind_give_the_same_values(truth, detections, first, capsys):
    names = {"image_id": "image {}".format, "category_id": "shape {}".format}
    again = {
        "images": renamed(truth["images"], {"id": names["image_id"]})[::-1],
        "categories": renamed(truth["categories"], {"id": names["category_id"]}),
        "annotations": renamed(truth["annotations"], names | {"id": lambda number: number - 1 + first}),
    }
    got = evaluate_coco(again, renamed(detections, names))
    assert got == pytest.approx(evaluate_coco(truth, detections), abs=1e-12, nan_ok=True)
    assert capsys.readouterr().out == ""


def test_no_detections_give_zero_where_there_are_objects(truth):
    got = evaluate_coco(truth, [])
    assert {name for name, value in got.items() if math.isnan(value)} == {"mAP_l", "AR_l"}
    assert {value for value in got.values() if not math.isnan(value)} == {0.0}
    assert all(map(math.isnan, evaluate_coco(dict(truth, annotations=[]), []).values()))


def test_class_agnostic_values_match_a_single_class(truth, detections):
    def one_class(entries):
        return [dict(one, category_id=1) for one in entries]

    merged = dict(truth, categories=truth["categories"][:1], annotations=one_class(truth["annotations"]))
    wanted = by_pycocotools(merged, one_class(only(detections, "segmentation")), "segm")
    got = evaluate_coco(truth, detections, class_agnostic=True)
    assert got["mAP"] == pytest.approx(wanted["mAP"], abs=1e-12)
    assert got["AR@10"] == pytest.approx(wanted["AR@10"], abs=1e-12)
    # The same masks again under other labels and lower scores, some with their run lengths in bytes.
    copies = []
    for number, one in enumerate(detections):
        rle = one["segmentation"]
        rle = dict(rle, counts=rle["counts"].encode()) if number % 2 else rle
        label = 1 + one["category_id"] % len(SHAPES)
        copies.append(dict(one, segmentation=rle, category_id=label, score=one["score"] / 2))
    again = evaluate_coco(truth, copies + detections, class_agnostic=True)
    assert again == pytest.approx(got, abs=1e-12, nan_ok=True)
    assert evaluate_coco(truth, copies + detections)["mAP"] < evaluate_coco(truth, detections)["mAP"] - 1e-3


def rows(first, count):
    mask = np.zeros((1, 16, 16), bool)
    mask[0, first : first + count] = True
    return run_lengths(mask)[0]


def test_best_iou_by_hand():
    def entry(image, category, rle, **rest):
        return {"image_id": image, "category_id": category, "segmentation": rle, "area": 64.0, **rest}

    truth = {
        "images": [{"id": i, "height": 16, "width": 16} for i in (1, 2)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            entry(1, 1, rows(0, 4), iscrowd=0),
            entry(1, 1, rows(0, 16), iscrowd=1),
            entry(2, 2, rows(8, 4), iscrowd=0),
        ],
    }
    # IoU 1/2 and, under another category and with a low score, 3/4; nothing on image 2.
    found = [entry(1, 1, rows(0, 8), score=0.9), entry(1, 2, rows(0, 3), score=0.1)]
    assert evaluate_coco(truth, found)["best_iou"] == pytest.approx(0.75 / 2)
    assert best_ious([rows(0, 4), rows(8, 4)], [rows(0, 8), rows(0, 3)]).tolist() == pytest.approx([0.75, 0])
    assert best_ious([[0, 0, 4, 4]], [[0, 0, 4, 2]]).tolist() == pytest.approx([0.5])
    assert best_ious([rows(0, 4)], []).tolist() == [0]
    assert best_ious([], [rows(0, 4)]).tolist() == []


def test_detections_that_do_not_fit_the_annotations(truth, detections):
    with pytest.raises(ValueError, match="iou_type must be 'segm' or 'bbox', got 'mask'"):
        evaluate_coco(truth, detections, "mask")
    with pytest.raises(
        ValueError, match="class_agnostic must be False, 'merged' or 'no_categories', got 'x'"
    ):
        evaluate_coco(truth, detections, class_agnostic="x")
    with pytest.raises(ValueError, match="evaluator must be one of hotcoco, pycocotools, got 'x'"):
        evaluate_coco(truth, detections, evaluator="x")
    for key in ("image_id", "category_id"):
        with pytest.raises(ValueError, match=f"{key} 99.*8 annotated images and 8 categories"):
            evaluate_coco(truth, [dict(detections[0], **{key: 99})])


def test_run_lengths_match_pycocotools():
    masks = np.random.default_rng(0).random((6, 13, 9)) < 0.5
    masks[1], masks[2] = False, True
    masks[3, :7] = True
    wanted = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    assert [one["counts"].encode() for one in run_lengths(masks)] == [one["counts"] for one in wanted]
    assert run_lengths(np.zeros((0, 4, 4), bool)) == []
