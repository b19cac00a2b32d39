"""Seconds and memory until pre-training can read its masks, from JSON and from the store beside it.

    python -m benchmarks.store

Writes made-up proposals (123,000 images, 20 masks each, counts of some 260 characters) to a temporary
folder. Two processes then start at once, as two ranks would: import, check the data, open the data set, ask
for the images' sizes, and take random images. JSON is read at a tenth of the size.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.numpy import save_file

HEIGHT, WIDTH, MASKS = 480, 640, 20
RANKS, TAKEN = 2, 2000


def masks_of(images: int, height: int = HEIGHT, width: int = WIDTH) -> Iterator[dict[str, Any]]:
    """Ellipses in the form that `write_masks` takes: a few hundred, repeated."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    made = []
    for _ in range(500):
        axes, centre = rng.uniform(20, 110, 2), rng.uniform(0, 1, 2) * (width, height)
        inside = ((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2 < 1
        rle = coco_mask.encode(np.asfortranarray(inside, dtype=np.uint8))
        box = coco_mask.toBbox(rle).astype(int).tolist()
        made.append({"counts": rle["counts"].decode(), "bbox": box, "area": int(coco_mask.area(rle))})
    for row in range(images * MASKS):
        yield {"image_id": row // MASKS + 1, "size": [height, width], **made[row % 500], "seed_row": row}


def entries_of(images: int, height: int = HEIGHT, width: int = WIDTH) -> list[dict[str, Any]]:
    """Entries of the images."""
    return [
        {"id": k + 1, "file_name": f"{k:012d}.jpg", "height": height, "width": width} for k in range(images)
    ]


def make(folder: Path, images: int, *, store: bool) -> Path:
    """Write images, masks.json, seeds of 8 channels and, if asked for, masks.arrow; returns the JSON file."""
    from sp_fast.data.coco import numbered, object_categories, write_masks
    from sp_fast.data.store import store_path, write_store
    from sp_fast.proposals.store import seeds_path

    (folder / "images").mkdir(parents=True)
    entries = entries_of(images)
    for k, entry in enumerate(entries):
        path = folder / "images" / entry["file_name"]
        if k % 10_000:
            os.link(folder / "images" / entries[k - k % 10_000]["file_name"], path)
        else:  # a file can have only so many links
            Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    annotations = folder / "masks.json"
    with annotations.open("wb") as file:
        write_masks(file, {}, entries, masks_of(images))
    save_file({"seeds": np.zeros((images * MASKS, 8), np.float16)}, seeds_path(annotations))
    if store:
        started = time.perf_counter()
        coco = {"categories": object_categories()}
        masks = numbered(masks_of(images))
        write_store(store_path(annotations), annotations, coco, entries, masks, images_checked=True)
        seconds = time.perf_counter() - started
        sizes = [path.stat().st_size / 1e6 for path in (annotations, store_path(annotations))]
        print(
            f"store written in {seconds:.0f} s; JSON {sizes[0]:.0f} MB, store {sizes[1]:.0f} MB", flush=True
        )
    return annotations


def memory() -> dict[str, float]:
    """Memory of this process in MB: resident (RSS), proportional share (PSS), private and peak."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    lines += [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM")]
    found = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines}
    own = found["Private_Clean"] + found["Private_Dirty"]
    return {"RSS": found["Rss"], "PSS": found["Pss"], "private": own, "peak": found["VmHWM"]}


def rank(annotations: Path, together: Any, results: Any) -> None:
    """What one process of training does before its first step."""
    started = time.perf_counter()
    from sp_fast.data.check import errors_before_training
    from sp_fast.mmdet_plugin.datasets import InstanceDataset
    from sp_fast.proposals.store import seeds_path

    imported, before = time.perf_counter(), memory()
    together.wait()
    begun = time.perf_counter(), time.process_time()
    images = str(annotations.parent / "images")
    errors_before_training(annotations, images, boxes=False)
    dataset = InstanceDataset(
        str(annotations),
        images,
        class_agnostic=True,
        seeds=str(seeds_path(annotations)),
        tight_boxes=True,
        pipeline=[],
    )
    dataset.sizes()
    ready, after = (time.perf_counter(), time.process_time()), memory()
    together.wait()
    chosen = np.random.default_rng(0).integers(len(dataset), size=TAKEN)
    taking = time.process_time()
    for k in chosen.tolist():
        dataset.get_data_info(k)
    taken = (time.process_time() - taking) / TAKEN
    times = {"import": imported - started, "start": ready[0] - begun[0], "CPU": ready[1] - begun[1]}
    extra = {f"{name} MB": after[name] - before[name] for name in after}
    results.put({**times, "image": 1e3 * taken, "imports MB": before["RSS"], **extra})
    together.wait()


def measure(annotations: Path) -> list[dict[str, float]]:
    """What `rank` measures in processes that start at once."""
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(RANKS), context.Queue()
    ranks = [context.Process(target=rank, args=(annotations, together, results)) for _ in range(RANKS)]
    for one in ranks:
        one.start()
    found = [results.get() for _ in ranks]
    for one in ranks:
        one.join()
    return found


def report(what: str, found: list[dict[str, float]]) -> None:
    """Print the measurements of one case."""
    print(f"{what}:")
    for number, one in enumerate(found):
        print(
            f"  rank {number}: imports {one['import']:.1f} s and {one['imports MB']:.0f} MB; "
            f"then start {one['start']:.1f} s ({one['CPU']:.1f} of CPU), {one['RSS MB']:.0f} MB more "
            f"(proportional share {one['PSS MB']:.0f}, private {one['private MB']:.0f}; "
            f"peak {one['peak MB']:.0f}); {one['image']:.2f} ms of CPU per image",
            flush=True,
        )


def main() -> None:
    """Make the files, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=123_000)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as temporary:
        large = make(Path(temporary) / "large", images, store=True)
        report(f"store, {images} images, {images * MASKS} masks", measure(large))
        small = make(Path(temporary) / "small", images // 10, store=False)
        report(f"JSON, {images // 10} images", measure(small))


if __name__ == "__main__":
    main()
