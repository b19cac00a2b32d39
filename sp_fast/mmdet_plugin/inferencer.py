"""Lets mmdet's DetInferencer run this package's configs and checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmdet.apis import DetInferencer
from mmengine.dataset import Compose
from mmengine.runner import CheckpointLoader

from sp_fast.mmdet_plugin.safe_resume import load_checkpoint_file
from sp_fast.mmdet_plugin.transforms import ReadImage
from sp_fast.weights import load_state

_init_pipeline = DetInferencer._init_pipeline
_load_weights = DetInferencer._load_weights_to_model


def _pipeline_with_read_image(self: DetInferencer, cfg: Any) -> Compose:
    """The test pipeline; mmdet's accepts only those that begin with its own LoadImageFromFile."""
    if not _reads_itself(cfg):
        return _init_pipeline(self, cfg)
    return Compose([_read, *cfg.test_dataloader.dataset.pipeline[1:]])


def _reads_itself(cfg: Any) -> bool:
    """Whether images are read by this package, as in its configs."""
    return cfg.test_dataloader.dataset.pipeline[0]["type"] == "ReadImage"


def _read(given: str | np.ndarray) -> dict[str, Any]:
    """What ReadImage gives for a path; an array is BGR, as DetInferencer takes it."""
    if isinstance(given, str):
        return ReadImage().transform(dict(img_path=given, img_id=0))
    return dict(img=given, img_path="", img_id=0, img_shape=given.shape[:2], ori_shape=given.shape[:2])


def _load_weights_and_class_head(self: DetInferencer, model: Any, checkpoint: Any, cfg: Any) -> None:
    """Loads the weights, for this package's configs all or none: mmdet leaves what does not fit random."""
    if checkpoint and "class_head" in checkpoint:
        checkpoint = dict(checkpoint, state_dict={**checkpoint["state_dict"], **checkpoint["class_head"]})
    if checkpoint and _reads_itself(cfg):
        load_state(model, checkpoint["state_dict"], "weights")
    _load_weights(self, model, checkpoint, cfg)


DetInferencer._init_pipeline = _pipeline_with_read_image
DetInferencer._load_weights_to_model = _load_weights_and_class_head
# mmengine's own loader unpickles weights only, which refuses the log buffers in its checkpoints.
CheckpointLoader.register_scheme(prefixes="", loader=load_checkpoint_file, force=True)
