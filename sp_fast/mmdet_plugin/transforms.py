"""Steps of a data pipeline, registered with mmdet: reading, packing, and keeping seeds beside their masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.image import rescale_size
from mmcv.transforms import BaseTransform, Compose
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize, Rotate
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import BitmapMasks
from mmengine.logging import print_log
from torch import Tensor

from sp_fast.data.images import read_image, read_labelled
from sp_fast.data.rle import to_rle
from sp_fast.mmdet_plugin.run_masks import RunMasks, packed_bitmaps
from sp_fast.mmdet_plugin.wrapped import inner_datasets

_DIVISORS = (1, 2, 4, 8)  # of the sizes at which JPEG files can be decoded
_AT_ONCE = 4  # channels for which OpenCV has a fast path


@TRANSFORMS.register_module()
class ReadImage(BaseTransform):
    """Reads `img_path` as `img`, uint8 [H, W, 3] in mmdet's BGR order.

    Sets `img_shape` and `ori_shape` to (H, W). The EXIF orientation is applied or ignored so that the image
    has the size that its labels say; where both have, `results["exif"]` of the data set decides. Where this
    differs from the data set's option or is a guess, each reading process says so once.

    Args:
        reduce: decode JPEG files at 1/2, 1/4 or 1/8 of their size where they are at least so much larger than
            what Resize makes of them. `img_shape` is then the reduced size; LoadInstances reduces boxes and
            masks in the same way. For training only: results would be in pixels of the reduced image.

    Raises:
        BrokenImageError: the file cannot be decoded.
        ValueError: `height` and `width` of the annotation file are not those of the image.
    """

    def __init__(self, reduce: bool = False) -> None:
        self.reduce = reduce
        self._resize: Resize | None = None
        self._said: set[str] = set()

    def before(self, transforms: Sequence[Any]) -> None:
        """Tells which transforms follow, so that `reduce` knows what size they need.

        Raises:
            ValueError: with `reduce`, one of them reads annotations but does not reduce them.
        """
        others = [type(one).__name__ for one in transforms if _reads_for_whole_image(one)]
        if self.reduce and others:
            raise ValueError(
                f"ReadImage(reduce=True): expected LoadInstances to read the annotations, got {others[0]}, "
                "whose boxes and masks are those of the whole image: use LoadInstances, or leave reduce out"
            )
        follows = next((one for one in transforms if not isinstance(one, LoadInstances)), None)
        if self.reduce and follows is not None and type(follows) is Resize and follows.scale is not None:
            self._resize = follows

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The results with the image added."""
        exif = results.get("exif", "auto")
        if "height" not in results or "width" not in results:
            image = read_image(results["img_path"], exif="ignore" if exif == "ignore" else "apply")
            return self._with(image, results)
        expected = results["height"], results["width"]
        image, note = read_labelled(results["img_path"], expected, exif, self._at_least(*expected))
        if note and note not in self._said:
            self._said.add(note)
            text = f"{results['img_path']}: {note} (each reading process says so once)"
            print_log(text, logger="current", level=30)
        divisors = _DIVISORS if self._resize else _DIVISORS[:1]
        if image.shape[:2] not in [tuple(-(-side // by) for side in expected) for by in divisors]:
            raise ValueError(
                f"{results['img_path']} is {image.shape[0]} x {image.shape[1]} (height x width), its "
                f"annotations say {expected[0]} x {expected[1]}: the masks would not lie on their objects"
            )
        results = self._with(image, results)
        results["ori_shape"] = expected
        return results

    def _at_least(self, height: int, width: int) -> tuple[int, int] | None:
        if self._resize is None:
            return None
        scale = self._resize.scale
        scale = rescale_size((width, height), scale) if self._resize.keep_ratio else scale
        return scale[::-1]

    @staticmethod
    def _with(image: np.ndarray, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadInstances(LoadAnnotations):
    """mmdet's LoadAnnotations with boxes and masks, which stay run lengths; see `RunMasks`."""

    def __init__(self) -> None:
        super().__init__(with_bbox=True, with_mask=True)

    def _load_masks(self, results: dict[str, Any]) -> None:
        height, width = results["ori_shape"]
        rles = [to_rle(mask, height, width) for mask in self._process_masks(results)]
        counts = [rle["counts"] for rle in rles]
        as_bytes = [one.encode() if isinstance(one, str) else one for one in counts]
        results["gt_masks"] = RunMasks(as_bytes, height, width)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The results with boxes, labels and masks, in pixels of the image as it was read."""
        results = super().transform(results)
        (height, width), (rows, columns) = results["img_shape"], results["ori_shape"]
        if (height, width) != (rows, columns):
            results["gt_masks"] = results["gt_masks"].resize((height, width))
            results["gt_bboxes"].rescale_((width / columns, height / rows))
        return results


def _reads_for_whole_image(transform: Any) -> bool:
    return isinstance(transform, LoadAnnotations) and not isinstance(transform, LoadInstances)


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
        if isinstance(masks, RunMasks):
            masks = BitmapMasks(masks.masks, masks.height, masks.width)
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

    Masks become `PackedBitmaps`.

    Args:
        masks: "full" or "quarter" (only what counts at stride 4); None for what the model needs, which
            `pack_for` sets.
        options: arguments of mmdet's PackDetInputs.

    Raises:
        ValueError: a transform before dropped instances and left `gt_seeds` as they were.
    """

    def __init__(self, masks: str | None = None, **options: Any) -> None:
        if masks not in (None, "full", "quarter"):
            raise ValueError(f"masks: expected 'full', 'quarter' or None, got {masks!r}")
        super().__init__(**options)
        self.masks = masks

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
        if isinstance(results.get("gt_masks"), BitmapMasks):
            results["gt_masks"] = packed_bitmaps(results["gt_masks"], quarter=self.masks == "quarter")
        image = results.pop("img", None)
        packed = super().transform(results)
        if image is None:
            return packed
        results["img"] = image
        return {"inputs": channels_first(image), **packed}


_FLIPS = {(0,): 0, (1,): 1, (0, 1): -1}  # mirrored axes: OpenCV's code


def channels_first(image: np.ndarray) -> Tensor:
    """Copies an image `[H, W, C]`, which may be a mirrored view, to a tensor `[C, H, W]`."""
    planes: np.ndarray = np.empty((image.shape[2], *image.shape[:2]), image.dtype)
    # NumPy copies mirrored views pixel by pixel, which takes longer than reading the file.
    mirrored = tuple(axis for axis in (0, 1) if image.strides[axis] < 0)
    cv2.split(np.flip(image, mirrored), list(planes))
    if mirrored:
        for plane in planes:
            cv2.flip(plane, _FLIPS[mirrored], plane)
    return torch.from_numpy(planes)


def pack_for(model: Any, dataset: Any) -> None:
    """Sets what masks `PackInstances` passes on where the pipelines of `dataset` leave it open.

    Args:
        model: class or object of the detector; one with `quarter_masks` needs masks at stride 4 only.
        dataset: a data set of mmengine, or a wrapper of several.
    """
    wanted = "quarter" if getattr(model, "quarter_masks", False) else "full"
    for one in inner_datasets(dataset):
        for step in getattr(getattr(one, "pipeline", None), "transforms", ()):
            if isinstance(step, PackInstances) and step.masks is None:
                step.masks = wanted
