"""Where the study's images and labels are: the folder of real data, or a pack of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sp_fast.data.coco import load_coco
from sp_fast.data.images import list_images

# Split -> folder of its images. Pre-training reads the first three, without their labels.
FOLDERS = {
    "train": "coco_mini/train",
    "unlabeled": "coco_mini/unlabeled",
    "bsds500": "bsds500",
    "val": "coco_mini/val",
}
UNLABELLED = ("train", "unlabeled", "bsds500")
LABELLED = ("train", "val")
PACK = "pack.json"


@dataclass(frozen=True)
class StudyData:
    """The data folder, checked.

    Attributes:
        root: the folder.
        packed_size: longer side of its images in pixels where it is a pack, else None.
    """

    root: Path
    packed_size: int | None

    def images(self, split: str) -> Path:
        """The folder of a split's images."""
        return self.root / FOLDERS[split]

    def annotations(self, split: str) -> Path:
        """The annotation file of `train` or `val`."""
        return self.root / "coco_mini" / "annotations" / f"instances_{split}.json"

    def weights(self, name: str | None) -> Path | None:
        """The file of a backbone's weights, by the name that the config gives it."""
        if name is None:
            return None
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(
                f"DATA: expected the backbone's weights in {path}, which does not exist; choose another "
                "--backbone, or put the file there"
            )
        return path


def open_data(root: Path, size: int) -> StudyData:
    """Checks that the folder has what the study needs.

    Args:
        root: with coco_mini/ and bsds500/, or what `sp-fast study pack` wrote.
        size: longer side that the study works at.

    Raises:
        FileNotFoundError: a folder or file is missing; says which.
        ValueError: a pack of smaller images than `size`.
    """
    for split, folder in FOLDERS.items():
        if not (root / folder).is_dir():
            raise FileNotFoundError(
                f"DATA: expected the {split} images in {root / folder}, which is no folder; DATA has "
                "coco_mini/ (train, val, unlabeled, annotations), bsds500/ and weights/"
            )
    packed_size = None
    if (root / PACK).is_file():
        packed_size = json.loads((root / PACK).read_text())["size"]
        if packed_size < size:
            raise ValueError(
                f"--size: expected at most {packed_size}, the size of the images in the pack {root}, got "
                f"{size}; make a pack with --size {size}, or give the folder of the original images"
            )
    data = StudyData(root, packed_size)
    for split in LABELLED:
        if not data.annotations(split).is_file():
            raise FileNotFoundError(f"DATA: expected annotations in {data.annotations(split)}, none there")
    return data


def labelled_ids(coco: dict, percent: int) -> list[int]:
    """Ids of the images to fine-tune on: the first `percent` % of the sorted ids, at least one."""
    ids = sorted(image["id"] for image in coco["images"])
    return ids[: max(1, round(len(ids) * percent / 100))]


def image_paths(data: StudyData, split: str, limit: int | None = None) -> list[Path]:
    """A split's images in the order of their paths; the first `limit`."""
    return list_images(data.images(split))[:limit]


def annotated(data: StudyData, split: str, limit: int | None = None) -> dict:
    """The annotations of a split, with those of the first `limit` images by id."""
    coco = load_coco(data.annotations(split), images=data.images(split))
    if limit is not None:
        coco["images"] = sorted(coco["images"], key=lambda image: image["id"])[:limit]
        kept = {image["id"] for image in coco["images"]}
        coco["annotations"] = [one for one in coco["annotations"] if one["image_id"] in kept]
    return coco
