"""Proposals for a folder of images."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sp_fast.data.images import (
    BrokenImageError,
    BrokenImages,
    TooManyBrokenError,
    check_exif,
    file_size,
    list_images,
    read_for_size,
)
from sp_fast.freed_memory import freed_memory_kept
from sp_fast.ops.checks import check_int
from sp_fast.proposals.extents import Size
from sp_fast.proposals.image_masks import encoded_masks
from sp_fast.proposals.presets import ProposalOptions
from sp_fast.proposals.proposer import SaliencyProposer
from sp_fast.proposals.pyramid import fitted, resized_to
from sp_fast.proposals.records import ImageRecord
from sp_fast.proposals.refinement import distinct, image_segments, refined_saliency
from sp_fast.proposals.shards import WHOLE, Shard
from sp_fast.proposals.store import ProposalStore, seeds_path

_BATCHES_OF_BLOCK = 16
_SPARES = 1.25  # masks that are refined, as a multiple of those that are wanted


@dataclass(frozen=True)
class ProposeSummary:
    """Summary of a run; of this shard only, unless `merged`.

    Attributes:
        out, seeds: files written.
        images: number of images with a record in `out`.
        resumed: how many images of this shard come from an interrupted run.
        masks: total number of masks.
        broken: images that could not be read.
        seconds: duration of this run.
        merged: whether this run has written `out`.
        missing: numbers of the shards that are still missing; none if this or another run has written `out`.
    """

    out: Path
    seeds: Path
    images: int
    resumed: int
    masks: int
    broken: BrokenImages
    seconds: float
    merged: bool
    missing: list[int]


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
    exif: str = "apply",
    shard: tuple[int, int] = WHOLE,
    restart: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ProposeSummary:
    """Propose masks for all images under a folder; write them to `out` and their seeds to a file beside it.

    `out` is COCO-format JSON with one category, `object`: masks are compressed RLE at image size, boxes are
    tight, xywh in pixels, and `seed_row` is the row of the mask's seed in the tensor `seeds`, float16
    [masks, D], of `<out without suffix>.seeds.safetensors`. Image ids are positions in the sorted list of
    files, from 1. An interrupted or killed run is resumed and ends with the same files. Images that are
    unreadable, or too thin for the backbone, are skipped and listed under `info.skipped`.

    Args:
        images: folder of images; sub-folders too.
        out: JSON file to write.
        proposer: proposer with a backbone; moved to `device`.
        size: longer side of the resized images in pixels, their aspect ratio kept; a pair: limits of the
            longer and the shorter side; None: images are not resized. Not used if the proposer's options have
            `sizes`, which say the same.
        batch_size: images per batch, all of one orientation. None: 8 on a GPU, 1 on a CPU, where the memory
            of larger batches costs more than it gains.
        device: device of the network.
        workers: number of threads that read images, and of those that encode masks.
        exif: "apply" or "ignore" the EXIF orientation of the images; `info.exif` of `out` says which.
        shard: (3, 8): make the third of eight parts of the images. Processes with the other parts may run at
            the same time, on any machine that sees `out`; the last to finish writes it, with the same bytes
            as one process with the same `batch_size` and number of threads on such a machine.
        restart: discard what an interrupted run left; not with shards.
        overwrite: replace an existing `out`.
        progress: called with (images done, total images) of the shard, at the start and after each batch.

    Raises:
        FileNotFoundError, NotADirectoryError, ValueError: bad `images`, see `list_images`.
        TooManyBrokenError: more than 5 % of the images are skipped; nothing is left on disk.
        ValueError: options or images differ from those of the interrupted run or of other shards; no such
            shard.
        BlockingIOError: another process is writing this file or shard.
        FileExistsError: `out` exists and `overwrite` is not set.
    """
    start = time.monotonic()
    if proposer.backbone is None:
        raise ValueError("proposer: needs a backbone to make proposals of images")
    if proposer.options.refine == "segments" and find_spec("skimage") is None:
        raise ValueError("refine: segments need scikit-image: pip install scikit-image")
    if batch_size is None:
        batch_size = 1 if torch.device(device).type == "cpu" else 8
    check_int("batch_size", batch_size, 1)
    check_int("workers", workers, 1)
    check_exif(exif)
    check_int("shard", shard[1], 1)
    if not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"shard: expected a number from 1 to {shard[1]}, got {shard[0]}")
    sides = _sides(size) if proposer.options.sizes is None else None
    limit = None if proposer.options.sizes is None else max(proposer.options.sizes)
    pinned = torch.device(device).type == "cuda"
    load = partial(_load, sides=sides, limit=limit, exif=exif, pinned=pinned)
    folder, out = Path(images), Path(out)
    paths = list_images(folder)
    files = [(path.relative_to(folder).as_posix(), file_size(path)) for path in paths]
    options = {"size": sides, "exif": exif, **describe(proposer)}
    channels = proposer.backbone.channels
    wanted = proposer.options
    proposer = _with_spares(proposer.to(device))
    # Batches end with the blocks that shards take, so that they do not depend on the number of shards.
    block = _BATCHES_OF_BLOCK * batch_size if batch_size > 1 else 1
    store = ProposalStore(
        out, files, options, channels, shard=Shard(*shard), block=block, restart=restart, overwrite=overwrite
    )
    broken, resumed = BrokenImages(), len(store.done)
    for index in store.part:
        if why := store.skipped.get(files[index][0]):
            broken.add(paths[index], why)

    def commit(encoding: list[Future[ImageRecord]]) -> None:
        if encoding:
            store.append([future.result() for future in encoding])
        if progress is not None:
            progress(len(store.done) + len(broken), len(store.part))

    def proposed(batch: list[_Loaded]) -> list[Future[ImageRecord]]:
        try:
            return _propose(encoders, proposer, wanted, batch, device)
        except RuntimeError as error:
            if _is_of_the_machine(error):
                raise
            if len(batch) > 1:
                return [record for image in batch for record in proposed([image])]
            height, width = batch[0].pixels.shape[-2:]
            why = f"the backbone fails on {height} x {width} pixels ({str(error).splitlines()[0]})"
            broken.add(paths[batch[0].index], why)
            broken.check(len(paths))
            return []

    readers, encoders = ThreadPoolExecutor(workers), ThreadPoolExecutor(workers)
    try:
        commit([])
        encoding: list[Future[ImageRecord]] = []
        ahead = 2 * workers
        upcoming = _batches(readers, load, paths, store.todo(), batch_size, store.block, ahead, broken)
        with freed_memory_kept() as limit_kept:
            for batch in upcoming:
                following = proposed(batch)
                commit(encoding)  # while the device may still be busy with the batch
                encoding = following
                limit_kept()
        commit(encoding)
        masks = store.finish(
            {path.relative_to(folder).as_posix(): why for path, why in broken.reasons.items()}
        )
    except TooManyBrokenError:
        store.discard()
        raise
    finally:
        for pool in (readers, encoders):
            pool.shutdown(wait=False, cancel_futures=True)
        store.close()
    if store.merged:
        for name, why in store.skipped.items():
            broken.add(folder / name, why)
    seconds = time.monotonic() - start
    return ProposeSummary(
        out, seeds_path(out), len(store.done), resumed, masks, broken, seconds, store.merged, store.missing
    )


def _with_spares(proposer: SaliencyProposer) -> SaliencyProposer:
    """The same proposer, but of more masks if they are refined: some then become like better ones."""
    options = proposer.options
    if options.refine == "none":
        return proposer
    proposer = copy(proposer)
    proposer.options = dataclasses.replace(options, max_masks=math.ceil(_SPARES * options.max_masks))
    return proposer


def describe(proposer: SaliencyProposer) -> dict[str, Any]:
    """Everything that proposals depend on except the image size, as plain values by name."""
    backbone = proposer.backbone
    assert backbone is not None
    return {
        "backbone": backbone.name,
        "style": backbone.style,
        "stage": backbone.stage,
        "padding": backbone.padding,
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


def _load(
    index: int, path: Path, *, sides: Size | None, limit: int | None, exif: str, pinned: bool
) -> _Loaded:
    """Read an image; resize it to `sides`, or, if it is larger, to a longer side of `limit`."""

    def wanted(size: Size) -> Size:
        of = (limit, limit) if limit is not None and max(size) > limit else sides
        return size if of is None else fitted(size, *of)

    pixels, size = read_for_size(path, wanted, exif=exif)
    resized = resized_to(torch.from_numpy(pixels).permute(2, 0, 1), wanted(size))
    return _Loaded(index, *size, resized.pin_memory() if pinned else resized)


def _batches(
    pool: ThreadPoolExecutor,
    load: Callable[[int, Path], _Loaded],
    paths: Sequence[Path],
    todo: Sequence[int],
    batch_size: int,
    block: int,
    ahead: int,
    broken: BrokenImages,
) -> Iterator[list[_Loaded]]:
    """Yield batches of images, wide and tall ones separately to reduce padding; none extends over two blocks.

    Images of one orientation stay in order, so a resumed run makes the same batches as an uninterrupted one.
    """
    upcoming = ((index, pool.submit(load, index, paths[index])) for index in todo)
    waiting = deque(islice(upcoming, max(ahead, batch_size)))
    collected: dict[bool, list[_Loaded]] = {True: [], False: []}
    current = None
    while waiting:
        index, future = waiting.popleft()
        if index // block != current:
            yield from _rest(collected)
            current = index // block
        waiting.extend(islice(upcoming, 1))
        try:
            image = future.result()
        except (BrokenImageError, OSError) as error:
            broken.add(paths[index], getattr(error, "reason", str(error)))
            broken.check(len(paths))
            continue
        tall = image.height > image.width
        collected[tall].append(image)
        if len(collected[tall]) == batch_size:
            yield collected[tall]
            collected[tall] = []
    yield from _rest(collected)


def _rest(collected: dict[bool, list[_Loaded]]) -> Iterator[list[_Loaded]]:
    """Yield the incomplete batches, and take them out."""
    for tall, batch in collected.items():
        if batch:
            yield batch
            collected[tall] = []


def _is_of_the_machine(error: RuntimeError) -> bool:
    """Whether other images would fail too: a full memory, or a GPU in a bad state."""
    # The second is what oneDNN says of a full memory.
    full = any(said in str(error) for said in ("allocate memory", "could not create a primitive"))
    return full or isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError)


def _propose(
    pool: ThreadPoolExecutor,
    proposer: SaliencyProposer,
    options: ProposalOptions,
    batch: list[_Loaded],
    device: str | torch.device,
) -> list[Future[ImageRecord]]:
    """Propose masks for a batch; the pool refines, resizes and encodes them, as `options` say.

    The saliency stays on the device, where it is resized too: only the run lengths of the masks leave it.
    """
    proposals, saliency, sizes = proposer.with_saliency(
        [image.pixels.to(device, non_blocking=True) for image in batch]
    )
    counts = proposals.count.tolist()
    scores, seeds = proposals.score.cpu(), proposals.seeds.cpu()
    futures = []
    for i, (image, count, (height, width)) in enumerate(zip(batch, counts, sizes, strict=True)):
        own = saliency[i, :count, :height, :width]
        futures.append(
            pool.submit(
                _record,
                image,
                own,
                scores[i, :count],
                seeds[i, :count],
                proposals.threshold[i, :count],
                options,
            )
        )
    return futures


def _record(
    image: _Loaded,
    saliency: Tensor,
    scores: Tensor,
    seeds: Tensor,
    thresholds: Tensor,
    options: ProposalOptions,
) -> ImageRecord:
    if options.refine == "segments":
        segments = image_segments(image.pixels, max(saliency.shape[-2:]))
        saliency = refined_saliency(saliency, thresholds, segments)
        rows = distinct(saliency, thresholds, options.iou_threshold, options.max_masks)
        saliency, thresholds = saliency[rows], thresholds[rows]
        scores, seeds = scores[rows.cpu()], seeds[rows.cpu()]
    masks = encoded_masks(saliency, (image.height, image.width), thresholds)
    # A mask of a few cells can vanish in an image smaller than the feature map.
    kept = [k for k, mask in enumerate(masks) if mask["area"] > 0]
    stored = seeds[kept].numpy().astype(np.float16)
    if not np.isfinite(stored).all():
        raise OverflowError(
            "seeds: the features exceed the range of float16 (65504); check that the weights fit the backbone"
        )
    described = [{**masks[k], "score": round(float(scores[k]), 6)} for k in kept]
    return ImageRecord(image.index, image.height, image.width, described, stored)
