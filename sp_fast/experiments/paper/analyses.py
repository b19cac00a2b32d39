"""What Table 6 measures: boxes of predicted masks, without classes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.evaluation import evaluate_results, predict_detections
from sp_fast.experiments.worker import PROGRESS
from sp_fast.files import write_json

DETECTIONS = "detections.json"


def boxes_of_model(folder: Path, trained: Path, *, images: str, annotations: str) -> dict[str, Any]:
    """Measures box AP of a trained model's masks on annotated images, with all categories merged.

    Writes the detections, in COCO's results format, to `detections.json` in `folder`.
    """
    from sp_fast.inference import load

    def progress(done: int, total: int) -> None:
        write_json({"done": done, "total": total}, folder / PROGRESS)

    truth = load_coco(annotations)
    model = load(trained)
    found = predict_detections(model, truth, images, ignore_classes=True, progress=progress)
    save_coco(found.entries, folder / DETECTIONS)
    return boxes_of_results(folder, None, predictions=str(folder / DETECTIONS), annotations=annotations)


def boxes_of_results(folder: Path, trained: None, *, predictions: str, annotations: str) -> dict[str, Any]:
    """Like `boxes_of_model`, for a file of results; results without masks keep their boxes."""
    values = evaluate_results(
        predictions, annotations, what="bbox", boxes_from_masks=True, class_agnostic="no_categories"
    )
    measured = {f"boxes/{name}": None if math.isnan(value) else value for name, value in values.items()}
    return {"evaluations": [{"step": 0, **measured}]}
