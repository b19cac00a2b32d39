"""The data loader of pretrain/knet_r50."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cv2
import numpy as np

import sp_fast.models  # noqa: F401

# isort: split
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from benchmarks.pipeline.clock import milliseconds
from benchmarks.pipeline.image_set import write_set
from benchmarks.pipeline.rows import Row, Task
from sp_fast.configs import find_config
from sp_fast.mmdet_plugin import transforms
from sp_fast.mmdet_plugin.runner import Runner
from sp_fast.proposals.store import seeds_path


class _Measuring(ForkingPickler):
    """Counts the bytes of tensors, which travel in shared memory."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.shared: dict[int, int] = {}

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            self.shared[storage._cdata] = storage.nbytes()  # its data move when it becomes shared
        return NotImplemented


def bytes_of(batch: Any) -> tuple[int, int]:
    """Bytes of a batch that a worker pickles, and those that it shares."""
    file = io.BytesIO()
    pickler = _Measuring(file)
    pickler.dump(batch)
    return len(file.getvalue()), sum(pickler.shared.values())


def _loader(task: Task, workers: int) -> Any:
    """The config's loader of the set in the task's folder."""
    sizes, whole = task.sizes, Config.fromfile(find_config("pretrain/knet_r50"))
    config = whole.train_dataloader
    config.update(batch_size=sizes.batch, num_workers=workers, persistent_workers=False)
    annotations = task.folder / "masks.json"
    config.dataset.update(
        ann_file=str(annotations), images=str(task.folder / "images"), seeds=str(seeds_path(annotations))
    )
    for step in config.dataset.pipeline:
        if "scale" in step:
            step["scale"] = (max(sizes.image), min(sizes.image))
    with DefaultScope.overwrite_default_scope("mmdet"):
        loader = Runner.build_dataloader(config, seed=0)
    if hasattr(transforms, "pack_for"):  # as a training does; earlier versions have one kind of masks
        transforms.pack_for(MODELS.get(whole.model.detector.type), loader.dataset)
    return loader


def _pass_on(loader: Any, batch: Any) -> None:
    """What a loader's process does with a batch; earlier versions pickle it as it is."""
    if not hasattr(loader.collate_fn, "shared"):
        ForkingPickler.dumps(batch)
        return
    passed = loader.collate_fn.shared(batch)
    ForkingPickler.dumps(passed)
    passed.memory[0] = 0  # as the main process does when it drops the batch


def _keep_memory() -> None:
    """Keeps freed memory, as a loader's process does; earlier versions do not."""
    with contextlib.suppress(ImportError):
        from sp_fast.freed_memory import keep_freed_memory

        keep_freed_memory()


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _decode_and_resize(task: Task) -> float:
    """CPU time of an image's decoding and resizing alone."""
    files = [np.fromfile(path, np.uint8) for path in sorted((task.folder / "images").iterdir())]

    def all_images() -> None:
        for file in files:
            image = cv2.imdecode(file, cv2.IMREAD_COLOR)
            scale = min(
                max(task.sizes.image) / max(image.shape[:2]), min(task.sizes.image) / min(image.shape[:2])
            )
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)

    return milliseconds(all_images, task.sizes.repeats) / len(files)


def measure(task: Task) -> list[Row]:
    """CPU of a worker, bytes, and CPU of the process that receives a batch."""
    cv2.setNumThreads(1)
    sizes = task.sizes
    write_set(
        task.folder,
        sizes.batch,
        photographs=task.photographs,
        channels=2048,
        masks=sizes.masks,
        size=tuple(round(0.6 * side) for side in sizes.image),
    )
    _keep_memory()
    loader = _loader(task, workers=0)
    batches = _endless(loader)
    worker = milliseconds(lambda: _pass_on(loader, next(batches)), sizes.batches) / sizes.batch
    pickled, shared = (value / sizes.batch / 1e6 for value in bytes_of(next(batches)))
    received = []
    batches = _endless(_loader(task, workers=1))
    next(batches)
    for _ in range(sizes.batches):
        start = time.process_time()
        next(batches)
        received.append(1e3 * (time.process_time() - start))
    pixels = 3 * sizes.image[0] * sizes.image[1] / 1e6
    group = "Loader of pretrain/knet_r50"
    decoding = _decode_and_resize(task)
    return [
        Row(group, "worker, ms per image", worker, decoding, "decoding and resizing with OpenCV", goal=10),
        Row(group, "pickled and shared, MB per image", pickled + shared, pixels, "pixels in uint8", goal=4),
        Row(group, "pickled, MB per image", pickled),
        Row(group, f"receiver, ms per batch of {sizes.batch}", statistics.median(received), goal=10),
    ]


PARTS = {"loader": measure}
