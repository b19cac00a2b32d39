"""`evaluate_coco` with each library on the same perturbed objects: masks, with values per class.

Real images where SP_FAST_DATA names a folder with `nuclei` or `coco_mini`, else synthetic scenes.
"""

import os
from pathlib import Path

import pytest

from sp_fast.data.coco import load_coco
from sp_fast.data.evaluation import EVALUATORS, evaluate_coco
from sp_fast.data.synthetic import SetOptions, make_set
from tests.data.perturbed import perturbed

FILES = {"coco_mini": "coco_mini/annotations/instances_val.json", "nuclei": "nuclei/instances_val.json"}


@pytest.fixture(scope="module", params=["scenes", *FILES])
def truth(request, tmp_path_factory):
    if request.param == "scenes":
        options = SetOptions(size=128, unlabelled=0, labelled=0, validation=60)
        return load_coco(make_set(tmp_path_factory.mktemp("scenes"), options) / "validation.json")
    path = Path(os.environ.get("SP_FAST_DATA", ""), FILES[request.param])
    if not path.is_file():
        pytest.skip(f"SP_FAST_DATA has no {FILES[request.param]}")
    return load_coco(path)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.benchmark(min_rounds=3, max_time=5)
def test_evaluation(benchmark, truth, iou_type, evaluator):
    found = perturbed(truth)
    benchmark.group = f"evaluation of {len(found)} detections, {iou_type}"
    benchmark(evaluate_coco, truth, found, iou_type, per_class=True, evaluator=evaluator)
