"""Pre-processing inside exported models, against mmdet's pipeline."""

import numpy as np
import pytest

pytest.importorskip("mmdet")

import torch

import sp_fast.models  # noqa: F401  (before mmdet)

# isort: split
from mmdet.models import DetDataPreprocessor
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from sp_fast.export.preprocessing import Preprocessing

PREPROCESSORS = {
    "rgb": dict(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True, pad_size_divisor=32),
    "bgr": dict(mean=[103.5, 116.3, 123.7], std=[1.0, 1.0, 1.0], pad_size_divisor=16, pad_value=7),
    "plain": dict(pad_size_divisor=1),
}


def by_mmdet(image, scale, preprocessor):
    with DefaultScope.overwrite_default_scope("mmdet"):
        steps = Compose(
            [dict(type="Resize", scale=scale, keep_ratio=True), dict(type="PackDetInputs", meta_keys=())]
        )
        shape = image.shape[:2]
        packed = steps(dict(img=np.ascontiguousarray(image[..., ::-1]), img_shape=shape, ori_shape=shape))
    inputs = packed["inputs"]
    data = preprocessor(dict(inputs=[inputs], data_samples=[packed["data_samples"]]))
    return data["inputs"], tuple(inputs.shape[-2:])


@pytest.mark.parametrize("kind", PREPROCESSORS)
# Down and up, by odd factors, by exactly 2 and 1 (which OpenCV treats apart), long and short sides.
@pytest.mark.parametrize("size", [(97, 61), (61, 240), (192, 256), (96, 128), (31, 45), (20, 300), (300, 7)])
def test_equal_to_the_last_bit(kind, size):
    preprocessor = DetDataPreprocessor(**PREPROCESSORS[kind])
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected, shape = by_mmdet(image, (128, 96), preprocessor)
    prepared = Preprocessing((128, 96), preprocessor)(torch.from_numpy(image)[None])
    assert (prepared.height, prepared.width) == shape
    torch.testing.assert_close(prepared.pixels, expected, rtol=0, atol=0)
