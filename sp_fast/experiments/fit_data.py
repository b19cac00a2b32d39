"""The data of `sp-fast fit` in one folder: links to the images to pre-train on, and annotation files."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_fast.data.check import errors_before_training
from sp_fast.data.coco import load_coco, missing_files, save_coco
from sp_fast.data.formats import detect_format, to_coco
from sp_fast.data.images import list_images
from sp_fast.files import sha256

HELD_OUT = 0.2  # share of the labelled images that are validated on where no others are given


@dataclass(frozen=True)
class FitData:
    """Where the data are.

    Attributes:
        images: folder of links to all images to pre-train on; no image to validate on is among them.
        labels, label_images: annotations to fine-tune on, and the folder of their images.
        val, val_images: the same to validate on.
        truth: `labels` with the names that their images have in `images`.
        images_count, labels_count, val_count: numbers of images.
        held_out: whether the images to validate on were taken from the labelled ones.
    """

    images: str
    labels: str
    label_images: str
    val: str
    val_images: str
    truth: str
    images_count: int
    labels_count: int
    val_count: int
    held_out: bool


def gather(
    out: Path,
    images: Sequence[Path],
    labels: Path,
    label_images: Path | None = None,
    val: Path | None = None,
    val_images: Path | None = None,
    seed: int = 0,
) -> FitData:
    """Fills the folder `out`.

    Images of `labels` without objects count as unlabelled, copies of a labelled image are left out, and no
    image to validate on is fine-tuned on, even under another name.

    Args:
        out: where to put links and annotation files.
        images: folders of images without labels; they may hold labelled ones too.
        labels: annotations to fine-tune on, in any format that `to_coco` reads.
        label_images: folder of their images; None: the one of `images` that has them all. Needed with several
            `images` if the labels are not in COCO's format.
        val: the same to validate on; None: a share HELD_OUT of the labelled images is held out.
        val_images: folder of their images; None: the folder of the labelled ones.
        seed: random seed of the choice of images to hold out.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: see `errors_before_training` and `list_images`;
            images of annotations that are nowhere, or in several folders; too few labelled images to hold
            out any; categories to validate that have no labels.
    """
    for option, folder in (("--label-images", label_images), ("--val-images", val_images)):
        if folder is not None and not folder.is_dir():
            raise NotADirectoryError(f"{option}: expected a folder of images, got {folder}")
    found = {folder: list_images(folder) for folder in dict.fromkeys(path.resolve() for path in images)}
    several = label_images is None and len(found) > 1
    if several and labels.exists() and detect_format(labels) != "coco":
        raise ValueError(
            f"--label-images: expected the folder of the labelled images, since {labels} is no COCO file and "
            f"IMAGES are {len(found)} folders"
        )
    labels = _as_coco(labels, label_images or images[0], out / "labels.coco.json")
    place = (label_images or _folder_of(load_coco(labels), labels, found)).resolve()
    errors_before_training(labels, place)
    train = _labelled(load_coco(labels, place), place)
    if not train["annotations"]:
        raise ValueError(f"--labels: expected objects to learn from, got none in {labels}")
    if val is None:
        train, held = hold_out(train, labels, seed)
        val_place = place
    else:
        val_place = place if val_images is None else val_images.resolve()
        val = _as_coco(val, val_place, out / "val.coco.json")
        if val_images is None:
            _check_val_images(load_coco(val), val, place)
        errors_before_training(val, val_place)
        held = load_coco(val, val_place)
        _check_categories(train, held, val)
    labelled = [place / one["file_name"] for one in train["images"]]
    excluded = [val_place / one["file_name"] for one in held["images"]]
    links = link_images(out / "images", {**found, place: [*found.get(place, []), *labelled]}, excluded)
    names = {one["id"]: links.get((place / one["file_name"]).resolve()) for one in train["images"]}
    train = _part(train, {key for key, name in names.items() if name}, True)
    if not train["images"]:
        raise ValueError("--labels: expected objects in images that are not validated on, got none")
    linked = [{**one, "file_name": names[one["id"]]} for one in train["images"]]
    save_coco({**train, "images": linked}, out / "truth.json")
    save_coco(train, out / "train.json")
    save_coco(held, out / "val.json")
    return FitData(
        images=str(out / "images"),
        labels=str(out / "train.json"),
        label_images=str(place),
        val=str(out / "val.json"),
        val_images=str(val_place),
        truth=str(out / "truth.json"),
        images_count=len(set(links.values())),
        labels_count=len(train["images"]),
        val_count=len(held["images"]),
        held_out=val is None,
    )


def _as_coco(labels: Path, images: Path, out: Path) -> Path:
    """The labels if they are in COCO's format, else what they are converted to, `out`."""
    if not labels.exists() or (kind := detect_format(labels)) == "coco":
        return labels
    try:
        coco = to_coco(labels, images)
    except ValueError as error:
        hint = "if their images are in another folder, give --label-images or --val-images"
        raise ValueError(f"{error}; {hint}") from None
    if kind == "yolo":  # of an image without labels it is not known whether it has objects
        coco = _part(coco, {one["image_id"] for one in coco["annotations"]}, True)
    save_coco(coco, out)
    return out


def _labelled(coco: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The part with objects, each content of an image once."""
    ids = {one["image_id"] for one in coco["annotations"] if not one["iscrowd"]}
    paths = {one["id"]: (folder / one["file_name"]).resolve() for one in coco["images"] if one["id"] in ids}
    contents = _contents(set(paths.values()))
    first: dict[tuple[int, str], Any] = {}
    for key, path in paths.items():
        first.setdefault(contents[path], key)
    return _part(coco, set(first.values()), True)


def _folder_of(coco: dict[str, Any], labels: Path, folders: Iterable[Path]) -> Path:
    names = [one["file_name"] for one in coco["images"]]
    missing = {folder: [name for name in names if not (folder / name).is_file()] for folder in folders}
    complete = [folder for folder, lacking in missing.items() if not lacking]
    if len(complete) > 1:
        raise ValueError(
            f"--label-images: the images of {labels} are looked up by name, and "
            f"{' and '.join(map(str, complete))} have images of all these names; give the folder of the "
            "labelled ones"
        )
    if complete:
        return complete[0]
    best = min(missing, key=lambda folder: len(missing[folder]))
    raise FileNotFoundError(
        f"--label-images: expected the images of {labels} in one of the folders IMAGES; {best} lacks "
        f"{len(missing[best])} of {len(names)}, such as {missing[best][0]}; give the folder that their "
        "file_name starts from"
    )


def _check_val_images(coco: dict[str, Any], val: Path, place: Path) -> None:
    names = [one["file_name"] for one in coco["images"]]
    missing = missing_files(names, place)
    if missing:
        raise FileNotFoundError(
            f"--val-images: expected the folder of the images of {val}; the labelled images' folder, "
            f"{place}, lacks {len(missing)} of {len(names)}, such as {missing[0]}; give the folder that "
            "their file_name starts from"
        )


def _check_categories(train: dict[str, Any], held: dict[str, Any], val: Path) -> None:
    known, wanted = ({one["name"] for one in coco["categories"]} for coco in (train, held))
    if wanted - known:
        raise ValueError(
            f"--val: expected the categories of --labels, got also {', '.join(sorted(wanted - known)[:5])} "
            f"in {val}"
        )


def hold_out(coco: dict[str, Any], labels: Path, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits annotations by image: the rest, and a share HELD_OUT of the images, at least one.

    Raises:
        ValueError: fewer than two images.
    """
    images = sorted(coco["images"], key=lambda one: str(one["id"]))
    if len(images) < 2:
        raise ValueError(
            f"--labels: expected at least 2 images with objects, one of them to validate on, got "
            f"{len(images)} in {labels}; label more, or give --val"
        )
    chosen = random.Random(seed).sample(images, max(1, round(HELD_OUT * len(images))))
    ids = {one["id"] for one in chosen}
    return _part(coco, ids, False), _part(coco, ids, True)


def _part(coco: dict[str, Any], ids: set, inside: bool) -> dict[str, Any]:
    return {
        **coco,
        "images": [one for one in coco["images"] if (one["id"] in ids) == inside],
        "annotations": [one for one in coco["annotations"] if (one["image_id"] in ids) == inside],
    }


def link_images(folder: Path, found: dict[Path, list[Path]], excluded: Sequence[Path]) -> dict[Path, str]:
    """Links images into `folder`, each content once and none with the content of an excluded one.

    Args:
        folder: where to put the links, in a folder for each one of `found`.
        found: images of each folder.
        excluded: images to leave out.

    Returns:
        The name of the link in `folder` of each image that is there, by its resolved path.
    """
    of = {path: path.resolve() for paths in (*found.values(), excluded) for path in paths}
    contents = _contents(set(of.values()))
    unwanted = {contents[of[path]] for path in excluded}
    names: dict[Path, str] = {}
    linked: dict[tuple[int, str], str] = {}
    for number, (source, paths) in enumerate(found.items()):
        for path in paths:
            content = contents[of[path]]
            if content in unwanted:
                continue
            if content not in linked:
                linked[content] = f"{number}_{source.name}/{path.relative_to(source).as_posix()}"
                link = folder / linked[content]
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(of[path])
            names[of[path]] = linked[content]
    return names


def _contents(paths: set[Path]) -> dict[Path, tuple[int, str]]:
    """Size and, where several files have the same size, hash of each file."""
    sizes = {path: path.stat().st_size for path in paths}
    count = Counter(sizes.values())
    return {path: (size, sha256(path) if count[size] > 1 else "") for path, size in sizes.items()}
