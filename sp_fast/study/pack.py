"""The study's data in one small folder, to carry to a machine that has none."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from torchvision.transforms.v2 import functional as vision

from sp_fast.data.images import list_images, read_image
from sp_fast.files import replacing, write_json
from sp_fast.progress import RunProgress
from sp_fast.study.memory import canvas_size
from sp_fast.study.models import load_settings
from sp_fast.study.source import FOLDERS, LABELLED, PACK, StudyData, open_data
from sp_fast.weights import read_state


def write_pack(
    data: Path, out: Path, size: int, quality: int, backbones: Sequence[str], console: Console
) -> int:
    """Writes images resized to `size`, the annotations as they are, and the backbones' weights as fp16.

    The study resizes the same way, so images differ from those of the original folder by JPEG alone. Masks
    and AP stay those of the originals.

    Args:
        data: the folder of the originals.
        out: the folder to write; must not hold anything.
        size: longer side of the images in pixels.
        quality: of the JPEG files, 1 to 95.
        backbones: whose weights to take along.
        console: for the progress.

    Returns:
        Bytes of all files.

    Raises:
        FileExistsError: `out` holds something.
        ValueError: a quality out of range, or weights too large for fp16.
    """
    if not 1 <= quality <= 95:
        raise ValueError(f"--quality: expected 1 to 95, got {quality}")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"--out: {out} holds something already; choose another, or remove it")
    source = open_data(data, size)
    for backbone in backbones:
        name = load_settings(backbone).proposals.get("weights")
        if name is not None:
            _write_weights(source, name, out)
    for split in LABELLED:
        target = StudyData(out, size).annotations(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.annotations(split), target)
    jobs = [
        (path, out / folder / path.relative_to(source.root / folder))
        for folder in FOLDERS.values()
        for path in list_images(source.root / folder)
    ]

    def write(job: tuple[Path, Path]) -> None:
        path, target = job
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
        height, width = canvas_size(image.shape[1], image.shape[2], size)
        image = vision.resize(image, [height, width], antialias=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(target, quality=quality)

    with RunProgress("images", console) as progress, ThreadPoolExecutor() as pool:
        for done, _ in enumerate(pool.map(write, jobs), start=1):
            progress(done, len(jobs))
    write_json({"size": size, "quality": quality}, out / PACK)  # last: the pack is whole
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _write_weights(source: StudyData, name: str, out: Path) -> None:
    path = source.weights(name)
    assert path is not None
    state = read_state(path)
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    lost = [key for key, value in halved.items() if not torch.isfinite(value).all()]
    if lost:
        raise ValueError(f"{path}: expected weights within fp16's 65504, got larger ones in {lost[0]}")
    with replacing(out / name) as file:
        torch.save(halved, file)
