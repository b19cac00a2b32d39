"""The config with which the detector inside a pre-training run predicts."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from sp_fast.mmdet_plugin.datasets import OBJECT

_PACK = dict(type="PackInstances", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))


def detector_config(pretraining: Any) -> Config:
    """The config of a pre-training as one of its plain detector, with one class, "object".

    Images are resized as in training; random transforms are left out.
    """
    model = pretraining["model"]
    detector = dict(model["detector"])
    if model.get("data_preprocessor"):
        detector["data_preprocessor"] = model["data_preprocessor"]
    dataset = pretraining["train_dataloader"]["dataset"]
    while inner := dataset.get("dataset") or next(iter(dataset.get("datasets", ())), None):
        dataset = inner  # of a RepeatDataset or ConcatDataset
    steps = dataset.get("pipeline", [])
    pipeline = [dict(type="ReadImage"), *(step for step in steps if step["type"] == "Resize"), _PACK]
    dataset = dict(
        type="InstanceDataset",
        ann_file="annotations.json",
        images="images",
        test_mode=True,
        metainfo=dict(classes=(OBJECT,)),
        pipeline=pipeline,
    )
    return Config(
        dict(
            default_scope="mmdet",
            custom_imports=dict(imports=["sp_fast.models"]),
            model=detector,
            test_dataloader=dict(batch_size=1, num_workers=0, dataset=dataset),
            visualizer=dict(type="DetLocalVisualizer", name="visualizer"),
        )
    )
