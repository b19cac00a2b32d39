"""Rotation of more masks than OpenCV takes at once; reading JPEG files at a reduced size."""

import contextlib
import json

import numpy as np
import pytest

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmdet.datasets.transforms import Rotate
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.mmdet_plugin.datasets import ImageFolderDataset, InstanceDataset
from sp_fast.mmdet_plugin.transforms import RotateInstances


def rotated(transform, masks):
    """The masks after a rotation by 9 degrees."""
    results = {
        "img": np.zeros((*masks.shape[1:], 3), np.uint8),
        "img_shape": masks.shape[1:],
        "gt_masks": BitmapMasks(masks, *masks.shape[1:]),
        "gt_bboxes": HorizontalBoxes(np.zeros((len(masks), 4), np.float32)),
    }
    return transform(prob=1.0, level=3, reversal_prob=0.0)(results)["gt_masks"].masks


@pytest.mark.parametrize("count", [0, 1, 6, 129, 513])
def test_any_number_of_masks(count):
    masks = np.zeros((count, 24, 32), np.uint8)
    for number, mask in enumerate(masks):
        mask[number % 12 : number % 12 + 8, number % 23 : number % 23 + 8] = 1
    found = rotated(RotateInstances, masks)
    assert found.shape == masks.shape
    assert found.dtype == masks.dtype
    alone = [rotated(Rotate, masks[number : number + 1])[0] for number in range(count)]
    # OpenCV rounds differently for other numbers of channels.
    assert all((one != other).sum() <= 6 for one, other in zip(found, alone, strict=True))


@pytest.mark.parametrize(
    ("scale", "keep_ratio", "divisor"),
    [
        ((100, 60), True, 4),
        ((100, 101), False, 2),
        ((390, 300), True, 1),
        ((49, 37), True, 8),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_files_are_decoded_at_the_size_that_is_needed(tmp_path, scale, keep_ratio, divisor, orientation):
    height, width = 301, 403
    y, x = np.mgrid[:height, :width]
    inside = ((y - 160) ** 2 + (x - 230) ** 2 < 90**2).astype(np.uint8)
    image = Image.fromarray(np.stack([y // 2, x // 2, (x + y) // 4], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image if orientation == 1 else image.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    rle = coco_mask.encode(np.asfortranarray(inside))
    x0, y0, w, h = coco_mask.toBbox(rle).tolist()
    coco = {
        "images": [{"id": 1, "file_name": "photo.jpg", "height": height, "width": width}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [x0, y0, w, h],
                "area": int(inside.sum()),
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
            }
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    (tmp_path / "masks.json").write_text(json.dumps(coco))

    def results(count, **options):
        steps = [
            dict(type="ReadImage", **options),
            dict(type="LoadInstances"),
            dict(type="Resize", scale=scale, keep_ratio=keep_ratio),
        ]
        with DefaultScope.overwrite_default_scope("mmdet"):
            whole = InstanceDataset(str(tmp_path / "masks.json"), str(tmp_path), pipeline=steps)
        found = whole.get_data_info(0)
        for step in whole.pipeline.transforms[:count]:
            found = step(found)
        return found

    assert results(1, reduce=True)["img"].shape == (-(-height // divisor), -(-width // divisor), 3)
    reduced, whole = results(3, reduce=True), results(3)
    assert np.abs(np.subtract(reduced["img"].shape, whole["img"].shape)).max() <= 1
    rows, columns = (min(sides) for sides in zip(reduced["img_shape"], whole["img_shape"], strict=True))
    difference = reduced["img"][:rows, :columns].astype(int) - whole["img"][:rows, :columns]
    assert np.abs(difference).mean() < 4
    np.testing.assert_allclose(reduced["gt_bboxes"].numpy(), whole["gt_bboxes"].numpy(), atol=1)
    masks = [one["gt_masks"].masks[0, :rows, :columns] for one in (reduced, whole)]
    assert (masks[0] != masks[1]).sum() <= 4 * (rows + columns)


@pytest.mark.parametrize("reduce", [False, True])
def test_a_reduced_image_needs_annotations_that_are_reduced_too(tmp_path, reduce):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    steps = [dict(type="ReadImage", reduce=reduce), dict(type="LoadAnnotations", with_bbox=True)]
    expected = pytest.raises(ValueError, match="expected LoadInstances to read the annotations, got LoadAnn")
    with DefaultScope.overwrite_default_scope("mmdet"), expected if reduce else contextlib.nullcontext():
        ImageFolderDataset(str(tmp_path), pipeline=steps)
