"""Checks a data set before training: all its faults, and what it contains."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from sp_fast.data.coco import check_files, read_json
from sp_fast.data.counts import Counts
from sp_fast.data.faults import ERROR, KINDS, WARNING, Fault, counted, note, short
from sp_fast.data.image_faults import Progress, image_faults, unlisted
from sp_fast.data.images import BROKEN_LIMIT
from sp_fast.data.mask_faults import Drawn, draw, mask_faults, object_twice
from sp_fast.data.store import open_store
from sp_fast.data.structure import structural_faults
from sp_fast.progress import RunProgress

# A COCO-format file, or the name of other labels and what they are in COCO's format.
Source = str | os.PathLike[str] | tuple[str | os.PathLike[str], dict[str, Any]]
# Objects whose masks are drawn before training; of more, evenly spread images are taken.
_MOST_DRAWN = 20_000
_SILENT = 5.0  # seconds after which checks before training show their progress


@dataclass
class CheckedFile:
    """One annotation file and what was found in it.

    Attributes:
        path, folder: the file, and the folder of its images.
        images: entries without errors in themselves.
        annotations: those of each image, by image id, without errors.
    """

    path: Path
    folder: Path
    faults: list[Fault] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    images: list[dict] = field(default_factory=list)
    annotations: dict[Any, list[dict]] = field(default_factory=dict)
    contents: dict[Any, bytes] = field(default_factory=dict)

    def number(self, severity: str) -> int:
        """Number of faults of this severity."""
        return sum(fault.severity == severity for fault in self.faults)

    @property
    def verdict(self) -> str:
        """The numbers of errors and warnings, as text."""
        numbers = [(self.number(severity), severity) for severity in (ERROR, WARNING)]
        return ", ".join(counted(number, name) for number, name in numbers)

    def mend(self, kind: str) -> str:
        """How to mend the faults of a kind; if most images are missing, the folder is probably wrong."""
        missing = sum(fault.kind == "missing image" for fault in self.faults)
        if kind != "missing image" or missing <= len(self.images) / 2:
            return KINDS[kind].mend
        return (
            f"give the folder of these images (--images, --val-images); {self.folder} lacks {missing} of "
            f"{len(self.images)}"
        )

    def by_kind(self) -> dict[str, list[Fault]]:
        """The faults by kind, in the order of KINDS: errors, warnings, notes."""
        found: dict[str, list[Fault]] = {kind: [] for kind in KINDS}
        for fault in self.faults:
            found[fault.kind].append(fault)
        return {kind: those for kind, those in found.items() if those}


@dataclass
class Findings:
    """What `check_coco` found: the training file and, if given, the validation file."""

    files: list[CheckedFile]

    @property
    def faults(self) -> list[Fault]:
        """The faults of all files."""
        return [fault for file in self.files for fault in file.faults]

    @property
    def errors(self) -> list[Fault]:
        """The faults that are errors."""
        return [fault for fault in self.faults if fault.severity == ERROR]


def check_coco(
    annotations: Source,
    images: str | os.PathLike[str],
    *,
    val: tuple[Source, str | os.PathLike[str]] | None = None,
    pixels: bool = True,
    most_drawn: int | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Find all faults of a COCO-format data set; see `sp_fast.data.faults.KINDS`.

    Args:
        annotations: COCO-format file; or the name of other labels and their COCO-format dict.
        images: folder of its images.
        val: annotation file and folder of a validation set, checked too, also for images of both sets.
        pixels: decode every image (finds broken and duplicated ones) instead of reading only its header.
        most_drawn: draw the masks of about so many objects at most, of evenly spread images; default all.
        progress: called with (images done, number of images) for each file.

    Raises:
        FileNotFoundError, NotADirectoryError: no such file or folder.
    """
    pairs = [(annotations, images)] + ([val] if val else [])
    files = [_check_file(one, Path(folder), pixels, most_drawn, progress) for one, folder in pairs]
    if val:
        files[1].faults += [*_leaks(*files), *_other_classes(*files)]
    return Findings(files)


def errors_before_training(
    annotations: Source,
    images: str | os.PathLike[str],
    *,
    boxes: bool = True,
    class_agnostic: bool = False,
    shown: int = 5,
) -> None:
    """Raise if a data set has errors that can be found without decoding its images: headers are read.

    Broken images are no error while training would skip them; see `BrokenImages`. For a store whose
    images were checked before, only their presence is checked.

    Args:
        annotations: COCO-format file, or its store; see `open_store`. Or a name and a COCO-format dict.
        images: folder of its images.
        boxes: False if training takes boxes from the masks, so that `bbox` may be anything.
        class_agnostic: whether training takes all categories as one, so that they may have the same name.
        shown: largest number of errors in the message.

    Raises:
        FileNotFoundError, NotADirectoryError: no such file or folder.
        ValueError: names the first `shown` errors, one per line.
    """
    if not isinstance(annotations, tuple):
        store = open_store(annotations)
        if store is not None and store.images_checked:
            return check_files(store.path, store.file_names(), Path(images))
        if store is not None:
            annotations = annotations, store.coco(_MOST_DRAWN)
    console = Console(stderr=True, quiet=os.environ.get("LOCAL_RANK", "0") != "0")
    with RunProgress("images checked", console, transient=True, after=_SILENT) as progress:
        found = check_coco(annotations, images, pixels=False, most_drawn=_MOST_DRAWN, progress=progress)
    path = found.files[0].path
    errors = found.errors
    accepted = {"xyxy": not boxes, "class name": class_agnostic}
    errors = [fault for fault in errors if not accepted.get(fault.kind)]
    broken = [fault for fault in errors if fault.kind == "broken image"]
    if len(broken) <= BROKEN_LIMIT * len(found.files[0].images):
        errors = [fault for fault in errors if fault.kind != "broken image"]
    if errors:
        lines = [f"{fault}; {fault.mend}" for fault in errors[:shown]]
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        more = f"sp-fast check {path} --images {images} lists all"
        raise ValueError("\n  ".join([f"{path}: {count} in the data:", *lines, more]))


def _check_file(
    annotations: Source, folder: Path, pixels: bool, most_drawn: int | None, progress: Progress | None
) -> CheckedFile:
    path = Path(annotations[0] if isinstance(annotations, tuple) else annotations)
    if not isinstance(annotations, tuple) and not path.is_file():
        raise FileNotFoundError(f"no such annotation file: {path}")
    if not folder.is_dir():
        raise NotADirectoryError(f"images: expected a folder of images, got {folder}")
    file = CheckedFile(path, folder)
    try:
        coco = annotations[1] if isinstance(annotations, tuple) else read_json(path)
    except ValueError as error:
        file.faults.append(Fault("format", "", "", "a JSON file", str(error).removeprefix(f"{path}: ")))
        return file
    file.faults += structural_faults(coco)
    if any(fault.kind == "format" for fault in file.faults):
        return file
    good = _without_faults(coco, file.faults)
    file.images = [image for _, image in good["images"]]
    found, file.contents = image_faults(good["images"], folder, pixels=pixels, progress=progress)
    extra = unlisted(coco["images"], folder)
    file.faults += [*found, extra] if extra else found
    _check_objects(file, good, most_drawn)
    file.faults += _notes(file, [category for _, category in good["categories"]])
    return file


def _without_faults(coco: dict[str, list], faults: list[Fault]) -> dict[str, list[tuple[int, dict]]]:
    """Position and entry of each image, annotation and category without a fault."""
    bad = {(fault.part, fault.position) for fault in faults}
    return {
        part: [(k, entry) for k, entry in enumerate(coco[part]) if (part, k) not in bad]
        for part in ("images", "annotations", "categories")
    }


def _check_objects(
    file: CheckedFile, good: dict[str, list[tuple[int, dict]]], most_drawn: int | None
) -> None:
    """Draws the masks, image by image; adds their faults and the counts.

    Masks of images that have errors are not checked: of a wrong size, all may lie outside.
    """
    wrong = {fault.image for fault in file.faults if fault.part == "images" and fault.severity == ERROR}
    counts = file.counts
    names = {category["id"]: category["name"] for _, category in sorted(good["categories"], key=_id)}
    counts.classes = dict.fromkeys(names.values(), 0)
    of_image: dict[Any, list[tuple[int, dict]]] = {image["id"]: [] for image in file.images}
    for position, one in good["annotations"]:
        if one["image_id"] in of_image:
            of_image[one["image_id"]].append((position, one))
            counts.crowd += bool(one.get("iscrowd", 0))
            if one["category_id"] in names:
                counts.classes[names[one["category_id"]]] += 1
    number = sum(map(len, of_image.values()))
    every = 1 if most_drawn is None else -(-number // most_drawn) or 1
    for k, image in enumerate(file.images):
        entries = of_image[image["id"]]
        file.annotations[image["id"]] = [one for _, one in entries]
        if k % every or image["id"] in wrong:
            continue
        drawn = draw(entries, image)
        counts.areas += [one.area for one in drawn if one.area]
        file.faults += _objects_of_image(drawn, image)
    counts.images, counts.objects = len(file.images), number
    counts.objects_per_image = [len(entries) for entries in of_image.values()]


def _id(entry: tuple[int, dict]) -> tuple[bool, Any]:
    return isinstance(entry[1]["id"], str), entry[1]["id"]


def _objects_of_image(drawn: list[Drawn], image: dict) -> Iterator[Fault]:
    for one in drawn:
        yield from mask_faults(one, image)
    yield from object_twice(drawn, image)


def _notes(file: CheckedFile, categories: list[dict]) -> Iterator[Fault]:
    empty = [image["file_name"] for image in file.images if not file.annotations.get(image["id"])]
    if empty:
        yield note("no objects", f"{len(empty)} of {len(file.images)}", empty)
    unused = [name for name, number in file.counts.classes.items() if not number]
    if unused:
        yield note("unused class", f"{len(unused)} of {len(file.counts.classes)}", unused)
    ids = [category["id"] for category in categories]
    if ids and set(ids) != set(range(1, len(ids) + 1)):
        yield note("category ids", short(ids))
    kinds = Counter(
        type(one["segmentation"]) for annotations in file.annotations.values() for one in annotations
    )
    if len(kinds) > 1:
        yield note("both kinds", f"{kinds[list]} objects as polygons, {kinds[dict]} as run lengths")


def _leaks(train: CheckedFile, val: CheckedFile) -> Iterator[Fault]:
    names = {
        train.contents[image["id"]]: image["file_name"]
        for image in train.images
        if image["id"] in train.contents
    }
    for image in val.images:
        name = names.get(val.contents.get(image["id"], b""))
        if name is not None:
            where = f"image {short(image['id'])} ({image['file_name']})"
            got = f"the pixels of {name} in {train.path.name}"
            yield Fault(
                "leak", where, "", "an image that training does not see", got, "images", None, image["id"]
            )


def _other_classes(train: CheckedFile, val: CheckedFile) -> Iterator[Fault]:
    for one, other in ((train, val), (val, train)):
        only = [name for name in one.counts.classes if name not in other.counts.classes]
        if only:
            yield Fault(
                "other classes",
                "",
                "categories",
                f"those of {other.path.name}",
                f"also {short(only)} in {one.path.name}",
            )
