"""Predictions for folders of images."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.coco import write_masks
from sp_fast.data.images import (
    BrokenImageError,
    BrokenImages,
    TooManyBrokenError,
    file_size,
    list_images,
    read_image,
)
from sp_fast.data.rle import rle_areas, run_lengths
from sp_fast.files import write_text
from sp_fast.inference.instances import Instances
from sp_fast.inference.model import Model, UnfitImageError, check_options
from sp_fast.inference.outputs import KINDS, write_outputs
from sp_fast.proposals.records import ImageRecord
from sp_fast.proposals.store import RecordStore

PREDICTIONS = "predictions.json"


@dataclass(frozen=True)
class PredictSummary:
    """Summary of a run.

    Attributes:
        out: the file of predictions.
        images: number of images with a record in `out`.
        resumed: how many of them come from an interrupted run.
        instances: total number of instances.
        highest_score: of all instances in this run, those below the threshold too.
        broken: images that could not be read.
        seconds: duration of this run.
    """

    out: Path
    images: int
    resumed: int
    instances: int
    highest_score: float
    broken: BrokenImages
    seconds: float


class _PredictionStore(RecordStore):
    """The predictions of a run; see `RecordStore`."""

    def __init__(self, *args: Any, classes: Sequence[str], **options: Any) -> None:
        self._classes = classes
        super().__init__(*args, **options)

    def _write_json(self, out: BinaryIO, skipped: dict[str, str]) -> int:
        info = {
            "description": "instances predicted by sp-fast predict",
            "exif": self._options["exif"],
            "options": self._options,
            "skipped": [{"file_name": name, "reason": why} for name, why in sorted(skipped.items())],
        }
        return write_masks(out, info, self._images(), self._masks(), self._classes)


def predict_folder(
    model: Model,
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    fingerprint: str = "",
    threshold: float = 0.3,
    top_k: int = 100,
    tile: int | None = None,
    kinds: Sequence[str] = ("overlays",),
    workers: int = 2,
    restart: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PredictSummary:
    """Predicts all images; writes `out`/predictions.json, and a file of each kind for each image.

    predictions.json is COCO-format: image ids are positions in the list of images, from 1; the category ids
    are 1, 2, ... in the order of the model's classes; masks are compressed run lengths at image size, boxes
    tight xywh in pixels; every annotation has a `score`. File names are relative to the folder that all
    images have in common. An interrupted run is resumed and ends with the same files. Images that cannot be
    read, or that the model cannot predict, are skipped and listed under `info.skipped`.

    Args:
        model: model from `sp_fast.load`.
        images: folders of images (sub-folders too), images, and text files that list one image in a line,
            relative to the text file.
        out: folder to write: new, empty, or of an interrupted run.
        fingerprint: stands for the model; an interrupted run with another one is not resumed.
        threshold: see `Model.predict`.
        top_k: see `Model.predict`.
        tile: see `Model.predict`.
        kinds: kinds of files for each image, see `write_outputs`.
        workers: number of threads that read and write images.
        restart: discard what an interrupted run left.
        overwrite: replace an earlier run in `out`.
        progress: called with (images done, total images), at the start and after each batch.

    Raises:
        FileNotFoundError, ValueError: no such image or folder, or no images; an option out of range.
        TooManyBrokenError: more than 5 % of the images cannot be read; nothing is left on disk, as after any
            error before the first record.
        ValueError: options, model or images differ from those of the interrupted run.
        FileExistsError: `out` holds other files, or a finished run, and `overwrite` is not set.
    """
    start = time.monotonic()
    check_options(threshold, top_k, tile)
    out = Path(out)
    root, paths = find_images(images)
    check_out(out, images, overwrite)
    _check_apart(out, paths)
    names = [path.relative_to(root).as_posix() for path in paths]
    stems = _stems(names)
    options = dict(
        model=fingerprint, threshold=threshold, top_k=top_k, tile=tile, kinds=list(kinds), exif="apply"
    )
    ours = not out.exists() or not any(out.iterdir()) or _has_run(out)
    existed = out.exists()
    store = _PredictionStore(
        out / PREDICTIONS,
        [(name, file_size(path)) for name, path in zip(names, paths, strict=True)],
        options,
        classes=model.classes,
        restart=restart,
        overwrite=overwrite,
    )
    broken, resumed = BrokenImages(), len(store.done)
    model.highest_score = 0.0
    for name, why in store.skipped.items():
        broken.add(root / name, why)

    def finish(index: int, image: np.ndarray, found: Instances) -> ImageRecord:
        write_outputs(kinds, out, stems[index], image, paths[index], found)
        return _record(index, found)

    def predicted(batch: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray, Instances]]:
        try:
            found = model.predict([image for _, image in batch], threshold=threshold, top_k=top_k, tile=tile)
        except UnfitImageError as error:
            if len(batch) > 1:
                return [result for one in batch for result in predicted([one])]
            broken.add(paths[batch[0][0]], str(error))
            broken.check(len(paths))
            return []
        return [(*pair, one) for pair, one in zip(batch, found, strict=True)]

    def commit(writing: list[Future[ImageRecord]]) -> None:
        if writing:
            store.append([future.result() for future in writing])
        if progress is not None:
            progress(len(store.done) + len(broken), len(paths))

    with _tidied(store, out, ours, existed), ThreadPoolExecutor(workers) as pool:
        if "yolo" in kinds:
            write_text("".join(f"{name}\n" for name in model.classes), out / "yolo" / "classes.txt")
        commit([])
        writing: list[Future[ImageRecord]] = []
        for batch in _batches(pool, paths, store.todo(), model.batch_size, broken):
            found = predicted(batch)
            commit(writing)
            writing = [pool.submit(finish, *one) for one in found]
        commit(writing)
        count = store.finish({path.relative_to(root).as_posix(): why for path, why in broken.reasons.items()})
    seconds = time.monotonic() - start
    return PredictSummary(store.out, len(store.done), resumed, count, model.highest_score, broken, seconds)


@contextlib.contextmanager
def _tidied(store: RecordStore, out: Path, ours: bool, existed: bool) -> Iterator[None]:
    """Removes what an earlier run wrote, and what this one wrote if it fails before its first record."""
    if ours and not store.done:
        _remove_outputs(out)
    try:
        yield
    except Exception as error:
        if not store.done or isinstance(error, TooManyBrokenError):
            store.discard()
            if ours:
                _remove_outputs(out)
            if not existed:
                out.rmdir()
        raise
    finally:
        store.close()


def find_images(given: Sequence[str | os.PathLike[str]]) -> tuple[Path, list[Path]]:
    """The images in folders, image files and text files that list images; and their common folder."""
    roots, paths = [], []
    for one in (Path(os.path.abspath(one)) for one in given):
        if one.is_dir():
            roots.append(one)
            paths += list_images(roots[-1])
        elif one.suffix.lower() == ".txt" and one.is_file():
            lines = [line.strip() for line in _text(one).splitlines()]
            listed = [Path(os.path.abspath(one.parent / line)) for line in lines if line]
            roots += [path.parent for path in listed]
            paths += listed
        else:
            roots.append(one.parent)
            paths.append(one)
    missing = [path for path in paths if not path.is_file() and not path.is_symlink()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"images: expected an image or a folder of images, got {missing[0]}, which does not exist{more}"
        )
    if not paths:
        raise ValueError(
            f"images: expected images, got none in {', '.join(map(str, given)) or 'an empty list'}"
        )
    return Path(os.path.commonpath(roots)), list(dict.fromkeys(paths))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"images: expected a list of images in UTF-8, got {file} ({error})") from None


def check_out(out: Path, images: Sequence[str | os.PathLike[str]], overwrite: bool) -> None:
    """Raise an OSError or ValueError for a folder that `predict_folder` may not write to."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out: expected a folder to write, got the file {out}")
    for folder in map(Path, images):
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"out: expected a folder outside of the images in {folder}, got {out}")
    if overwrite or not out.is_dir():
        return
    if (out / PREDICTIONS).exists():
        raise FileExistsError(
            f"out: {out / PREDICTIONS} already exists; choose another folder, or pass --overwrite"
        )
    if any(out.iterdir()) and not _has_run(out):
        raise FileExistsError(f"out: {out} is not empty; choose another folder, or pass --overwrite")


def _check_apart(out: Path, paths: Sequence[Path]) -> None:
    """Raise ValueError for images in a folder that an earlier run's files are removed from."""
    folders = [(out / folder).resolve() for folder, _ in KINDS.values()]
    for parent in sorted({path.parent for path in paths}):
        if any(parent.resolve().is_relative_to(folder) for folder in folders):
            raise ValueError(
                f"out: expected another folder than {out}: there are images to predict in {parent}"
            )


def _has_run(out: Path) -> bool:
    """Whether a folder holds a run of `predict_folder`, finished or interrupted."""
    return (out / PREDICTIONS).exists() or (out / f"{PREDICTIONS}.partial").exists()


def _remove_outputs(out: Path) -> None:
    """Removes the files of an earlier run, whose images may have been others."""
    for folder, _ in KINDS.values():
        shutil.rmtree(out / folder, ignore_errors=True)


def _stems(names: Sequence[str]) -> list[str]:
    """Names without suffix, or with it where a file of another image, or classes.txt, has the same."""
    stems = [os.path.splitext(name)[0] for name in names]
    times = Counter([*stems, *names, "classes"])
    return [stem if times[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]


def _batches(
    pool: ThreadPoolExecutor,
    paths: Sequence[Path],
    todo: Sequence[int],
    batch_size: int,
    broken: BrokenImages,
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Yield batches of positions and images, in order; the next batch is read meanwhile."""
    upcoming = ((index, pool.submit(read_image, paths[index])) for index in todo)
    waiting = deque(islice(upcoming, 2 * batch_size))
    batch: list[tuple[int, np.ndarray]] = []
    while waiting:
        index, future = waiting.popleft()
        waiting.extend(islice(upcoming, 1))
        try:
            batch.append((index, future.result()))
        except (BrokenImageError, OSError) as error:
            broken.add(paths[index], getattr(error, "reason", str(error)))
            broken.check(len(paths))
        if len(batch) == batch_size or (batch and not waiting):
            yield batch
            batch = []


def _record(index: int, found: Instances) -> ImageRecord:
    rles = run_lengths(found.masks)
    boxes = coco_mask.toBbox(rles) if rles else []
    masks = [
        {
            "category_id": int(label) + 1,
            "counts": rle["counts"],
            "area": int(area),
            "bbox": [int(side) for side in box],
            "score": round(float(score), 6),
        }
        for label, rle, area, box, score in zip(
            found.labels, rles, rle_areas(rles), boxes, found.scores, strict=True
        )
    ]
    height, width = found.masks.shape[1:]
    return ImageRecord(index, height, width, masks)
