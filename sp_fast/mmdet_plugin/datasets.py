"""Data sets for mmdet: images with instance masks (and seeds), and folders of images alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.datasets import BaseDetDataset, CocoDataset
from mmdet.registry import DATASETS
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open

from sp_fast.data.coco import check_files, load_coco
from sp_fast.data.images import EXIF, BrokenImageError, BrokenImages, check_exif, image_size, list_images
from sp_fast.data.store import MaskStore, open_store
from sp_fast.files import sha256_of_rest
from sp_fast.mmdet_plugin.cache import ImageCache, narrow_is_broken
from sp_fast.mmdet_plugin.samplers import SeededIndex, seed_everything
from sp_fast.mmdet_plugin.transforms import ReadImage
from sp_fast.proposals.store import SEEDS_HASH

OBJECT = "object"
CHECKED_BYTES = 2**30  # about a second of reading


class ImageDataset:
    """What both data sets do with images: cache them, seed their augmentation, and leave out broken ones.

    In training, each reading process names a broken image once, and mmengine draws another in its place; more
    than 5 % broken images are an error. In evaluation, a single one is an error.

    Attributes:
        image_cache: with `cache="ram"`, what the beginning of the pipeline gave.

    Args:
        cache: "ram" keeps images and masks in memory as they are before the first random transform; None
            reads them each time.
        exif: "apply" or "ignore" the EXIF orientation of images where their labels fit both ways; see
            `read_labelled`. "auto": as `info.exif` of the annotation file says, which the commands of this
            package write; without it, "apply".
        args, options: arguments of mmdet's data set.

    Raises:
        ValueError: another `cache` or `exif`.
        CacheError: see `ImageCache`.
    """

    test_mode: bool
    pipeline: Any

    def __init__(self, *args: Any, cache: str | None = None, exif: str = "auto", **options: Any) -> None:
        if cache not in (None, "ram"):
            raise ValueError(f"cache: expected None or 'ram', got {cache!r}")
        check_exif(exif, ("auto", *EXIF))
        self.cache, self.exif = cache, exif
        self.image_cache: ImageCache | None = None
        self.broken = BrokenImages()
        super().__init__(*args, **options)

    def full_init(self) -> None:
        """Reads the annotations; see mmengine."""
        super().full_init()  # type: ignore[misc]
        first, *rest = getattr(self.pipeline, "transforms", None) or [None]
        if isinstance(first, ReadImage):
            first.before(rest)
        if self.cache and self.image_cache is None:
            self.image_cache = ImageCache(self)

    def fill_cache(self) -> None:
        """Reads all images that are not in the cache yet, if there is one."""
        if self.image_cache is not None:
            self.image_cache.fill()

    def sizes(self) -> Sequence[tuple[int, int]] | np.ndarray:
        """Height and width of each image."""
        infos = (self.info_without_seeds(i) for i in range(len(self)))  # type: ignore[arg-type]
        return [(info["height"], info["width"]) for info in infos]

    def info_without_seeds(self, index: int) -> dict:
        """What is known of image `index` before reading its pixels and seeds."""
        return {**super().get_data_info(index), "exif": self.exif}  # type: ignore[misc]

    def prepare_data(self, idx: int) -> Any:
        """The pipeline's result for image `idx`; None when it is broken, and mmengine draws another.

        A `SeededIndex` seeds this process first, and so the draw of another image too.
        """
        if isinstance(idx, SeededIndex):
            seed_everything(idx.seed)
        try:
            with narrow_is_broken(lambda: self.info_without_seeds(idx)["img_path"]):
                if self.image_cache is None:
                    return super().prepare_data(idx)  # type: ignore[misc]
                results = self.image_cache(idx)
                return results and self.image_cache.rest(results)
        except BrokenImageError as error:
            if self.test_mode:
                raise
            if self.broken.add(error.path, error.reason):
                print_log(f"broken image left out: {error}", logger="current", level=30)
                self.broken.check(len(self))  # type: ignore[arg-type]
            return None


class SeedStore:
    """Rows of the tensor `seeds` [A, D] of a safetensors file, read when they are asked for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a safetensors file, or without a matrix named "seeds".
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"no such store of seeds: {self.path}")
        try:
            with safe_open(self.path, framework="pt") as store:
                shape = store.get_slice("seeds").get_shape()
                self.hash = (store.metadata() or {}).get(SEEDS_HASH)
        except SafetensorError as error:
            raise ValueError(f"{self.path}: not a store of seeds ({error})") from None
        if len(shape) != 2:
            raise ValueError(f"{self.path}: 'seeds' must be [annotations, channels], got {shape}")
        self.rows, self.channels = shape

    def check_belongs(self, masks: str, info: Any) -> None:
        """Raise ValueError if the `info` of a file of masks names other seeds; it may name none."""
        named = info.get(SEEDS_HASH) if isinstance(info, dict) else None
        if named is not None and named != self.hash:
            raise ValueError(
                f"seeds: {self.path} belongs to other masks than those of {masks}; expected seeds of SHA-256 "
                f"{named}, got {self.hash}. Make both again with sp-fast propose"
            )

    def check_whole(self) -> None:
        """Raise ValueError unless the seeds have the SHA-256 that their file names, if it names one.

        Seeds of more than CHECKED_BYTES are left unread: those of 2.4 million masks are 10 GB.
        """
        if self.hash is None or os.path.getsize(self.path) > CHECKED_BYTES:
            return
        with open(self.path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
            got = sha256_of_rest(file, 8 + header)
        if self.hash != got:
            raise ValueError(
                f"seeds: {self.path} is damaged: expected seeds of SHA-256 {self.hash}, got {got}. Copy the "
                "file again, or make it again with sp-fast propose"
            )

    def __call__(self, rows: list[int]) -> np.ndarray:
        """The given rows, [len(rows), D]: float16 if stored so, which halves their bytes; else float32."""
        if not rows:
            return np.zeros((0, self.channels), dtype=np.float16)
        first = min(rows)
        # The seeds of an image lie together: one read.
        with safe_open(self.path, framework="pt") as store:
            part = store.get_slice("seeds")[first : max(rows) + 1]
        if part.dtype != torch.float16:
            part = part.to(torch.float32)
        return part[[row - first for row in rows]].numpy()


@DATASETS.register_module()
class InstanceDataset(ImageDataset, CocoDataset):
    """Images with instance masks from a COCO-format file.

    The classes are those of the file's categories, by ascending category id, unless `metainfo` names them.
    Images without objects are kept unless `filter_cfg=dict(filter_empty_gt=True)`. Objects whose box or
    mask is empty are left out; crowds are marked to be ignored.

    Args:
        ann_file: the annotation file, checked by `load_coco`; or its memory-mapped store (`sp-fast data
            store`). A store beside the file is used in its place: masks.arrow for masks.json.
        images: the folder that its file names are relative to.
        class_agnostic: make every category the one class "object".
        tight_boxes: take boxes and areas from the masks, whatever the file says. Pseudo labels of other tools
            come with boxes that are loose, or in other conventions.
        seeds: the safetensors file that `sp-fast propose` writes beside its masks. Every instance then gets
            its row of it: results["gt_seeds"] [n, D], in line with the masks; float16 if stored so.
        cache, exif: see `ImageDataset`.
        metainfo, pipeline, test_mode, indices, filter_cfg, ...: see mmdet's CocoDataset.

    Raises:
        FileNotFoundError, ValueError: see `load_coco`; or an annotation's `seed_row` is missing or beyond the
            store; or the file names other seeds.
    """

    METAINFO: dict = {}  # noqa: RUF012 (as in the base class)

    def __init__(
        self,
        ann_file: str,
        images: str,
        class_agnostic: bool = False,
        seeds: str | None = None,
        tight_boxes: bool = False,
        **options: Any,
    ) -> None:
        self.class_agnostic = class_agnostic
        self.tight_boxes = tight_boxes
        self.seed_file = seeds
        self.seeds: SeedStore | None = None
        self.store: MaskStore | None = None
        super().__init__(ann_file=ann_file, data_prefix={"img": images}, **options)

    def load_data_list(self) -> Sequence[Any]:
        """One dict per image of the annotation file, in the file's order; of a store, its rows."""
        self.store = open_store(self.ann_file)
        if self.store is not None:
            return self._rows_of(self.store)
        coco = load_coco(
            self.ann_file,
            images=self.data_prefix["img"],
            tight_boxes=self.tight_boxes,
            class_agnostic=self.class_agnostic,
        )
        self._set_up(coco.get("info"), coco["categories"], len(coco["images"]))
        of_image: dict[Any, list[dict]] = {image["id"]: [] for image in coco["images"]}
        for annotation in coco["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        infos = [self._image_info(image, of_image[image["id"]]) for image in coco["images"]]
        self._objects = np.array([len(info["instances"]) for info in infos])
        return infos

    def _set_up(self, info: Any, categories: list[dict], count: int) -> None:
        self._set_exif(info)
        if not count:
            raise ValueError(f"{self.ann_file}: 'images' is empty, expected at least one image")
        self._set_classes(categories)
        if self.seed_file is not None:
            self.seeds = SeedStore(self.seed_file)
            self.seeds.check_belongs(self.ann_file, info)

    def _rows_of(self, store: MaskStore) -> range:
        check_files(store.path, store.file_names(), Path(self.data_prefix["img"]))
        self._set_up(store.info, store.categories, len(store))
        self.serialize_data = False  # the list has row numbers only
        rows = range(len(store))
        if self.seeds is not None and not store.seed_rows_within(self.seeds.rows):
            for row in rows:  # the error names the first bad mask
                self._image_info(*store.entry(row, tight_boxes=self.tight_boxes))
        return rows

    def _set_exif(self, info: Any) -> None:
        told = info.get("exif") if isinstance(info, dict) else None
        if self.exif == "auto" and told in EXIF:
            self.exif = told

    def _set_classes(self, categories: list[dict]) -> None:
        categories = sorted(categories, key=lambda category: category["id"])
        self.cat_ids = [category["id"] for category in categories]
        if self.class_agnostic:
            self.cat2label = dict.fromkeys(self.cat_ids, 0)
            self._metainfo["classes"] = (OBJECT,)
            return
        names = tuple(category["name"] for category in categories)
        classes = tuple(self._metainfo.get("classes") or names)
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise ValueError(
                f"{self.ann_file}: categories {unknown} are not among the classes {list(classes)} of metainfo"
            )
        self.cat2label = {category["id"]: classes.index(category["name"]) for category in categories}
        self._metainfo["classes"] = classes

    def _image_info(self, image: dict, annotations: list[dict]) -> dict:
        instances = []
        for annotation in annotations:
            x, y, w, h = annotation["bbox"]
            width = min(x + w, image["width"]) - max(x, 0)
            height = min(y + h, image["height"]) - max(y, 0)
            # No pixel of the image inside: nothing to learn from, and a degenerate box breaks transforms.
            if min(annotation["area"], width, height) <= 0:
                continue
            instance = {
                "bbox": [x, y, x + w, y + h],
                "bbox_label": self.cat2label[annotation["category_id"]],
                "ignore_flag": int(bool(annotation["iscrowd"])),
                "mask": annotation["segmentation"],
            }
            if self.seeds is not None:
                instance["seed_row"] = self._seed_row(annotation, self.seeds.rows)
            instances.append(instance)
        return {
            "img_path": os.path.join(self.data_prefix["img"], image["file_name"]),
            "img_id": image["id"],
            "seg_map_path": None,
            "height": image["height"],
            "width": image["width"],
            "instances": instances,
        }

    def _seed_row(self, annotation: dict, rows: int) -> int:
        row = annotation.get("seed_row")
        if not isinstance(row, int) or not 0 <= row < rows:
            raise ValueError(
                f"{self.ann_file}: annotation {annotation['id']} has seed_row {row!r}, expected a row of "
                f"{self.seed_file}, which has {rows}: the two files must come from one run of sp-fast propose"
            )
        return row

    def filter_data(self) -> Sequence[Any]:
        """The images that `filter_cfg` leaves: `filter_empty_gt` (default False), `min_size` pixels."""
        if self.test_mode or self.filter_cfg is None:
            return self.data_list
        keep_empty = not self.filter_cfg.get("filter_empty_gt", False)
        min_size = self.filter_cfg.get("min_size", 0)
        if self.store is not None:
            keep = self.store.sizes().min(axis=1) >= min_size
            if not keep_empty:
                keep &= self.store.objects(tight_boxes=self.tight_boxes) > 0
            return np.flatnonzero(keep).tolist()
        return [
            info
            for info in self.data_list
            if (keep_empty or info["instances"]) and min(info["width"], info["height"]) >= min_size
        ]

    def objects(self) -> np.ndarray:
        """Number of objects of each image of the annotation file."""
        return self._objects if self.store is None else self.store.objects(tight_boxes=self.tight_boxes)

    def sizes(self) -> Sequence[tuple[int, int]] | np.ndarray:
        """Height and width of each image."""
        return super().sizes() if self.store is None else self.store.sizes()[np.asarray(self.data_list)]

    def info_without_seeds(self, index: int) -> dict:
        """What the annotation file says about image `index`."""
        if not self._fully_initialized:
            self.full_init()
        if self.store is None:
            return super().info_without_seeds(index)
        info = self._image_info(*self.store.entry(self.data_list[index], tight_boxes=self.tight_boxes))
        return {**info, "sample_idx": index % len(self), "exif": self.exif}

    def get_data_info(self, idx: int) -> dict:
        """What the annotation file says about image `idx`, and its seeds."""
        info = self.info_without_seeds(idx)
        if self.seeds is not None:
            info["gt_seeds"] = self.seeds([instance["seed_row"] for instance in info["instances"]])
        return info


@DATASETS.register_module()
class ImageFolderDataset(ImageDataset, BaseDetDataset):
    """All images of a folder (`list_images`), without annotations: for making proposals while training.

    Args:
        images: the folder.
        cache: "ram" or None; see `ImageDataset`.
        exif: "apply" (the same as "auto") or "ignore" the EXIF orientation.
        pipeline, indices, ...: as mmdet's BaseDetDataset.
    """

    METAINFO = {"classes": (OBJECT,)}  # noqa: RUF012 (as in the base class)

    def __init__(self, images: str, exif: str = "auto", **options: Any) -> None:
        exif = "apply" if exif == "auto" else exif
        super().__init__(data_prefix={"img": images}, exif=exif, **options)

    def load_data_list(self) -> list[dict]:
        """One dict per image, in the order of their paths."""
        paths = list_images(self.data_prefix["img"])
        return [{"img_path": str(path), "img_id": k, "instances": []} for k, path in enumerate(paths)]

    def info_without_seeds(self, index: int) -> dict:
        """The path of an image and its size in pixels, which samplers by aspect ratio ask for."""
        info = super().info_without_seeds(index)
        try:
            info["height"], info["width"] = image_size(info["img_path"], exif=self.exif)
        except BrokenImageError:
            info["height"] = info["width"] = 1  # reading its pixels will tell
        return info

    get_data_info = info_without_seeds
