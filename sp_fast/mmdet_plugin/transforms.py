"""Steps of a data pipeline, registered with mmdet: reading, packing, and keeping seeds beside their masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, Compose
from mmdet.datasets.transforms import PackDetInputs, Rotate
from mmdet.registry import TRANSFORMS
from mmengine.logging import print_log

from sp_fast.data.images import read_image, read_labelled

_AT_ONCE = 4  # channels for which OpenCV has a fast path


@TRANSFORMS.register_module()
class ReadImage(BaseTransform):
    """Reads `img_path` as `img`, uint8 [H, W, 3] in mmdet's BGR order.

    Sets `img_shape` and `ori_shape` to (H, W). The EXIF orientation is applied or ignored so that the image
    has the size that its labels say; where both have, `results["exif"]` of the data set decides. Where this
    differs from the data set's option or is a guess, each reading process says so once.

    Raises:
        BrokenImageError: the file cannot be decoded.
        ValueError: `height` and `width` of the annotation file are not those of the image.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The results with the image added."""
        exif = results.get("exif", "auto")
        if "height" not in results or "width" not in results:
            image = read_image(results["img_path"], exif="ignore" if exif == "ignore" else "apply")
            return self._with(image, results)
        expected = results["height"], results["width"]
        image, note = read_labelled(results["img_path"], expected, exif)
        if note and note not in self._said:
            self._said.add(note)
            text = f"{results['img_path']}: {note} (each reading process says so once)"
            print_log(text, logger="current", level=30)
        if image.shape[:2] != expected:
            raise ValueError(
                f"{results['img_path']} is {image.shape[0]} x {image.shape[1]} (height x width), its "
                f"annotations say {expected[0]} x {expected[1]}: the masks would not lie on their objects"
            )
        return self._with(image, results)

    @staticmethod
    def _with(image: np.ndarray, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = np.ascontiguousarray(image[..., ::-1])
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class KeepSeedsAligned(BaseTransform):
    """Runs transforms that drop instances (crops, filters) so that `gt_seeds` stays in line with `gt_masks`.

    mmdet's transforms know nothing of seeds, but all of them keep the labels in line. So the labels carry the
    numbers of the instances through the transforms, and what comes out tells which instances are left.

    Args:
        transforms: configs of transforms of mmdet, e.g. RandomCrop, FilterAnnotations.
    """

    def __init__(self, transforms: list[dict]) -> None:
        self.transforms = Compose(transforms)

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """The results of the transforms; None when one of them gave the image up."""
        labels = results["gt_bboxes_labels"]
        results["gt_bboxes_labels"] = np.arange(len(labels))
        results = self.transforms(results)
        if results is None:
            return None
        left = results["gt_bboxes_labels"]
        results["gt_bboxes_labels"] = labels[left]
        if "gt_seeds" in results:
            results["gt_seeds"] = results["gt_seeds"][left]
        return results


@TRANSFORMS.register_module()
class RotateInstances(Rotate):
    """mmdet's Rotate for any number of masks: OpenCV 5 fails on more than 128 at once, OpenCV 4 on 512."""

    def _transform_masks(self, results: dict[str, Any], mag: float) -> None:
        masks = results["gt_masks"]
        rotated = []
        for start in range(0, max(1, len(masks)), _AT_ONCE):
            results["gt_masks"] = masks[start : start + _AT_ONCE]
            super()._transform_masks(results, mag)
            rotated.append(results["gt_masks"])
        results["gt_masks"] = type(masks).cat(rotated)


@TRANSFORMS.register_module()
class TightBoxes(BaseTransform):
    """Recomputes the boxes from the masks, and leaves out instances whose mask is empty.

    Use it after transforms that rotate boxes and so make them loose (RotateInstances), or that may leave
    nothing of a mask (RandomCrop). Labels, flags and seeds stay in line with `gt_masks`.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The results with tight boxes."""
        left = np.flatnonzero(results["gt_masks"].areas)
        for name in ("gt_masks", "gt_bboxes_labels", "gt_ignore_flags", "gt_seeds"):
            if name in results:
                results[name] = results[name][left]
        results["gt_bboxes"] = results["gt_masks"].get_bboxes(type(results["gt_bboxes"]))
        return results


@TRANSFORMS.register_module()
class PackInstances(PackDetInputs):
    """mmdet's PackDetInputs, with `gt_seeds` float32 [n, D] as `gt_instances.seeds` where there are seeds.

    Raises:
        ValueError: a transform before dropped instances and left `gt_seeds` as they were.
    """

    mapping_table = {**PackDetInputs.mapping_table, "gt_seeds": "seeds"}  # noqa: RUF012 (as in the base class)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The dict of `inputs` and `data_samples` that models take."""
        if "gt_seeds" in results and "gt_bboxes_labels" in results:
            seeds, instances = len(results["gt_seeds"]), len(results["gt_bboxes_labels"])
            if seeds != instances:
                raise ValueError(
                    f"{results.get('img_path')}: {instances} instances but {seeds} seeds: a transform "
                    "dropped instances. Put it into dict(type='KeepSeedsAligned', transforms=[...])"
                )
        elif "gt_seeds" in results:
            del results["gt_seeds"]
        return super().transform(results)
