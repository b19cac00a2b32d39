"""What a data loader costs: CPU time and bytes of a sample, and the main process' time to receive a batch.

    python -m benchmarks.pipeline_input pretrain/knet_r50 ...

The images are made up: JPEG files of 640 x 384, which the paper's pipeline resizes to 1333 x 800, each with
20 masks that have the outlines of proposals. Times are CPU time of the process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from statistics import median
from typing import Any

import sp_fast.models  # noqa: F401

# isort: split
import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.numpy import save_file

from sp_fast.configs import find_config
from sp_fast.data.coco import write_masks
from sp_fast.freed_memory import keep_freed_memory
from sp_fast.mmdet_plugin.runner import Runner
from sp_fast.mmdet_plugin.transforms import pack_for
from sp_fast.proposals.store import seeds_path

HEIGHT, WIDTH, MASKS, IMAGES = 384, 640, 20, 24
CHANNELS = 2048
BATCH = 12
BATCHES = 8


def make_set(folder: Path, images: int = IMAGES) -> dict[str, str]:
    """Write images, masks and seeds; returns the data set's options."""
    rng = np.random.default_rng(0)
    entries, masks, names = [], [], folder / "images"
    names.mkdir(parents=True)
    for k in range(images):
        # Noise at several scales: its JPEG file has about the size of a photograph's.
        picture: np.ndarray = np.full((HEIGHT, WIDTH, 3), 128.0)
        for side, strength in ((4, 60), (16, 30), (64, 15), (256, 10)):
            noise = rng.normal(0, strength, (side, side, 3))
            picture += cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        name = f"{k:06d}.jpg"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(names / name, quality=90)
        entries.append({"id": k + 1, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for _ in range(MASKS):
            masks.append(_mask(rng, k + 1, len(masks)))
    seeds = rng.normal(size=(len(masks), CHANNELS)).astype(np.float16)
    annotations = folder / "masks.json"
    save_file({"seeds": seeds}, seeds_path(annotations))
    with annotations.open("wb") as file:
        write_masks(file, {}, entries, iter(masks))
    return {"ann_file": str(annotations), "images": str(names), "seeds": str(seeds_path(annotations))}


def _mask(rng: np.random.Generator, image: int, row: int) -> dict[str, Any]:
    """Smooth noise above a threshold within a window, as a proposal is."""
    height, width = (int(side * rng.uniform(0.15, 0.8)) for side in (HEIGHT, WIDTH))
    top, left = int(rng.uniform(0, HEIGHT - height)), int(rng.uniform(0, WIDTH - width))
    noise = cv2.resize(rng.normal(0.6, 1, (5, 5)), (width, height), interpolation=cv2.INTER_LINEAR)
    inside: np.ndarray = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    inside[top : top + height, left : left + width] = noise > 0
    inside[top + height // 2, left + width // 2] = 1  # not empty
    rle = coco_mask.encode(inside)
    return {
        "image_id": image,
        "size": [HEIGHT, WIDTH],
        "counts": rle["counts"].decode(),
        "bbox": coco_mask.toBbox(rle).astype(int).tolist(),
        "area": int(coco_mask.area(rle)),
        "seed_row": row,
    }


def loader_cost(config: str) -> dict[str, float]:
    """Cost of the training data of a config: a name in `sp_fast.configs`, or a file.

    Returns:
        `cpu_ms`: CPU time of a sample in a loader's process. `megabytes`: what it passes on per image.
        `receive_ms`: CPU time of the main process to receive a batch of 12 from two workers.
        `targets_ms` (K-Net): its CPU time to turn that batch into targets, on the CPU.
    """
    cfg = Config.fromfile(find_config(config))
    with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope("mmdet"):
        files = make_set(Path(folder))
        loader_config = cfg.train_dataloader
        options = loader_config.dataset
        while "dataset" in options:
            options = options.dataset
        if options.type == "InstanceDataset":
            seeded = "seeds" in options
            options.update(files)
            if not seeded:
                options.pop("seeds")
        else:
            options.images = files["images"]
        loader_config.update(num_workers=2, batch_size=BATCH, persistent_workers=True)
        loader_config.dataset = options
        logging.getLogger().setLevel(logging.ERROR)
        loader = Runner.build_dataloader(loader_config, seed=0)
        detector = cfg.model.get("detector", cfg.model)
        pack_for(MODELS.get(detector.type), loader.dataset)
        found = {**_sample_cost(loader), **_batch_cost(loader)}
        if detector.type == "KNet" and options.type == "InstanceDataset":
            found["targets_ms"] = _targets_cost(loader)
    return found


def _sample_cost(loader: Any) -> dict[str, float]:
    """Batches of 12 are made as a loader's process makes them, and pickled."""
    keep_freed_memory()
    times, sizes = [], []
    dataset, collate = loader.dataset, loader.collate_fn.collate
    for k in range(1 + 2 * BATCHES):
        indices = [(BATCH * k + i) % len(dataset) for i in range(BATCH)]
        started = time.process_time()
        batch = loader.collate_fn.shared(collate([dataset[i] for i in indices]))
        pickled = ForkingPickler.dumps(batch)
        times.append((time.process_time() - started) / BATCH)
        batch.memory[0] = 0  # as the main process does when it drops the batch
        sizes.append((len(pickled) + batch.memory.nbytes / 1.25) / BATCH)
    return {"cpu_ms": 1e3 * median(times[1:]), "megabytes": median(sizes) / 1e6}


def _batch_cost(loader: Any) -> dict[str, float]:
    batches = iter(loader)
    next(batches)
    times = []
    for _ in range(BATCHES):
        time.sleep(0.5)  # the batch is ready
        started = time.process_time()
        next(batches)
        times.append(time.process_time() - started)
    return {"receive_ms": 1e3 * median(times)}


def _targets_cost(loader: Any) -> float:
    from sp_fast.knet.targets import targets_from_samples

    samples = next(iter(loader))["data_samples"]
    height = max(sample.img_shape[0] for sample in samples)
    width = max(sample.img_shape[1] for sample in samples)
    shape = (-(-height // 32) * 32, -(-width // 32) * 32)
    times = []
    for _ in range(5):
        started = time.process_time()
        targets_from_samples(samples, shape, 80, torch.device("cpu"))
        times.append(time.process_time() - started)
    return 1e3 * median(times)


def main() -> None:
    """Prints the cost of the named configs as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    heads = ("config", "CPU a sample, ms", "MB an image", "receiving 12, ms", "targets of 12, ms")
    print(f"| {' | '.join(heads)} |\n|---|--:|--:|--:|--:|")
    for config in arguments.configs:
        with contextlib.redirect_stdout(io.StringIO()):
            cost = loader_cost(config)
        numbers = [cost.get(key) for key in ("cpu_ms", "megabytes", "receive_ms", "targets_ms")]
        print(f"| {config} | " + " | ".join("" if one is None else f"{one:.1f}" for one in numbers) + " |")


if __name__ == "__main__":
    main()
