"""Proposals for a folder of images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as vision

from sp_fast.data.images import BrokenImageError, BrokenImages, list_images, read_image
from sp_fast.proposals.image_masks import encode, image_masks
from sp_fast.proposals.proposer import SaliencyProposer
from sp_fast.proposals.store import ImageRecord, ProposalStore, seeds_path

Progress = Callable[[int, int], None]


class TooManyBrokenError(ValueError):
    """Too many images of a folder cannot be read."""


@dataclass(frozen=True)
class ProposeSummary:
    """Summary of a run.

    Attributes:
        out, seeds: files written.
        images: number of images with a record in `out`.
        resumed: how many of them come from an interrupted run.
        masks: total number of masks.
        broken: images that could not be read.
        seconds: duration of this run.
    """

    out: Path
    seeds: Path
    images: int
    resumed: int
    masks: int
    broken: BrokenImages
    seconds: float


@dataclass(frozen=True)
class _Loaded:
    index: int
    height: int
    width: int
    pixels: Tensor  # uint8 [3, h, w], RGB, resized


def propose_folder(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    proposer: SaliencyProposer,
    *,
    size: int | tuple[int, int] | None = 640,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    workers: int = 2,
    restart: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ProposeSummary:
    """Propose masks for all images under a folder; write them to `out` and their seeds to a file beside it.

    `out` is COCO-format JSON with one category, `object`: masks are compressed RLE at image size, boxes are
    tight, xywh in pixels, and `seed_row` is the row of the mask's seed in the tensor `seeds`, float16
    [masks, D], of `<out without suffix>.seeds.safetensors`. Image ids are positions in the sorted list of
    files, from 1. An interrupted or killed run is resumed and ends with the same files. Unreadable images are
    skipped and listed under `info.skipped`.

    Args:
        images: folder of images; sub-folders too.
        out: JSON file to write.
        proposer: proposer with a backbone; moved to `device`.
        size: longer side of the resized images in pixels, their aspect ratio kept; a pair: limits of the
            longer and the shorter side; None: images are not resized.
        batch_size: images per batch, all of one orientation. None: 8 on a GPU, 1 on a CPU, where the memory
            of larger batches costs more than it gains.
        device: device of the network.
        workers: number of threads that read images and encode masks.
        restart: discard what an interrupted run left.
        overwrite: replace an existing `out`.
        progress: called with (images done, total images), at the start and after each batch.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: bad `images`, see `list_images`.
        TooManyBrokenError: more than 5 % of the images cannot be read; nothing is left on disk.
        ValueError: options or images differ from those of the interrupted run.
        FileExistsError: `out` exists and `overwrite` is not set.
    """
    start = time.monotonic()
    if proposer.backbone is None:
        raise ValueError("proposer: needs a backbone to make proposals of images")
    if batch_size is None:
        batch_size = 1 if torch.device(device).type == "cpu" else 8
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    sides = _sides(size)
    folder, out = Path(images), Path(out)
    paths = list_images(folder)
    files = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]
    options = {"size": list(sides) if sides else None, **describe(proposer)}
    channels = proposer.backbone.channels
    proposer = proposer.to(device)
    store = ProposalStore(out, files, options, channels, restart=restart, overwrite=overwrite)
    broken, resumed = BrokenImages(), len(store.done)
    todo = [index for index in range(len(paths)) if index not in store.done]
    report = progress or (lambda done, total: None)
    report(resumed, len(paths))
    try:
        with ThreadPoolExecutor(workers) as pool:
            try:
                encoding: list[Future[ImageRecord]] = []
                for batch in _batches(pool, paths, todo, sides, batch_size, workers, broken):
                    following = _propose(pool, proposer, batch, device)
                    _commit(store, encoding)  # while the device may still be busy with the batch
                    encoding = following
                    report(len(store.done) + len(broken), len(paths))
                _commit(store, encoding)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        report(len(store.done) + len(broken), len(paths))
    except TooManyBrokenError:
        store.discard()
        raise
    except BaseException:
        store.close()
        raise
    done = len(store.done)
    masks = store.finish({files[paths.index(path)][0]: why for path, why in broken.reasons.items()})
    return ProposeSummary(out, seeds_path(out), done, resumed, masks, broken, time.monotonic() - start)


def describe(proposer: SaliencyProposer) -> dict[str, Any]:
    """Everything that proposals depend on except the image size, as plain values by name."""
    backbone = proposer.backbone
    assert backbone is not None
    return {
        "backbone": backbone.name,
        "style": backbone.style,
        "stage": backbone.stage,
        "weights": _fingerprint(backbone),
        "preset": proposer.preset,
        **dataclasses.asdict(proposer.options),
    }


def _fingerprint(module: nn.Module) -> str:
    """Shortened hash of all parameters, so that the same weights match whichever file they are from."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _sides(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Limits of the longer and the shorter side."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"size: expected pixels, or (longer side, shorter side) of at least 1, got {size}")
    return max(sides), min(sides)


def _load(index: int, path: Path, sides: tuple[int, int] | None) -> _Loaded:
    pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1)
    height, width = pixels.shape[-2:]
    if sides is not None:
        scale = min(sides[0] / max(height, width), sides[1] / min(height, width))
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        pixels = vision.resize(pixels, size, antialias=True)
    return _Loaded(index, height, width, pixels)


def _batches(
    pool: ThreadPoolExecutor,
    paths: Sequence[Path],
    todo: Sequence[int],
    sides: tuple[int, int] | None,
    batch_size: int,
    workers: int,
    broken: BrokenImages,
) -> Iterator[list[_Loaded]]:
    """Yield batches of images, wide and tall ones separately to reduce padding.

    Images of one orientation stay in order, so a resumed run makes the same batches as an uninterrupted one.
    """
    ahead = max(2 * workers, batch_size)
    waiting: deque[tuple[int, Future[_Loaded]]] = deque()
    upcoming = iter(todo)
    collected: dict[bool, list[_Loaded]] = {True: [], False: []}
    while True:
        while len(waiting) < ahead and (index := next(upcoming, None)) is not None:
            waiting.append((index, pool.submit(_load, index, paths[index], sides)))
        if not waiting:
            break
        index, future = waiting.popleft()
        try:
            image = future.result()
        except (BrokenImageError, OSError) as error:
            reason = error.reason if isinstance(error, BrokenImageError) else str(error)
            broken.add(paths[index], reason)
            try:
                broken.check(len(paths))
            except ValueError as many:
                raise TooManyBrokenError(str(many)) from error
            continue
        batch = collected[image.height > image.width]
        batch.append(image)
        if len(batch) == batch_size:
            yield batch[:]
            batch.clear()
    yield from (batch for batch in collected.values() if batch)


def _propose(
    pool: ThreadPoolExecutor, proposer: SaliencyProposer, batch: list[_Loaded], device: str | torch.device
) -> list[Future[ImageRecord]]:
    """Propose masks for a batch; the pool resizes and encodes them."""
    assert proposer.backbone is not None
    features = proposer.backbone.features([image.pixels.to(device, non_blocking=True) for image in batch])
    proposals = proposer.from_features(features.maps, features.valid)
    saliency = proposer.saliency(features.maps, proposals).cpu()
    counts = proposals.count.tolist()
    scores, seeds = proposals.score.cpu(), proposals.seeds.cpu()
    threshold = proposer.options.threshold
    futures = []
    for i, (image, count, (height, width)) in enumerate(zip(batch, counts, features.sizes, strict=True)):
        own = saliency[i, :count, :height, :width]
        futures.append(pool.submit(_record, image, own, scores[i, :count], seeds[i, :count], threshold))
    return futures


def _record(image: _Loaded, saliency: Tensor, scores: Tensor, seeds: Tensor, threshold: float) -> ImageRecord:
    masks = encode(image_masks(saliency, (image.height, image.width), threshold))
    # A mask of a few cells can vanish in an image smaller than the feature map.
    kept = [k for k, mask in enumerate(masks) if mask["area"] > 0]
    stored = seeds[kept].numpy().astype(np.float16)
    if not np.isfinite(stored).all():
        raise OverflowError(
            "seeds: the features exceed the range of float16 (65504); check that the weights fit the backbone"
        )
    described = [{**masks[k], "score": round(float(scores[k]), 6)} for k in kept]
    return ImageRecord(image.index, image.height, image.width, described, stored)


def _commit(store: ProposalStore, encoding: list[Future[ImageRecord]]) -> None:
    if encoding:
        store.append([future.result() for future in encoding])
