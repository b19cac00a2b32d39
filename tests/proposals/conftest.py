"""A folder of small images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw


def draw_scene(path: Path, width: int, height: int, seed: int) -> None:
    """A few coloured discs and boxes on a gradient."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(60, 120, width, dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy())
    draw = ImageDraw.Draw(image)
    for number in range(4):
        x, y = rng.integers(0, width - 24), rng.integers(0, height - 24)
        box = [int(x), int(y), int(x) + 22, int(y) + 22]
        color = tuple(int(c) for c in rng.integers(0, 255, 3))
        (draw.ellipse if number % 2 else draw.rectangle)(box, fill=color)
    image.save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 images, wide and tall, of several sizes."""
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    sizes = [(96, 64), (64, 96), (80, 72), (72, 88)]
    for number in range(12):
        place = root / "more" if number >= 10 else root
        draw_scene(place / f"{number:03d}.png", *sizes[number % 4], seed=number)
    return root
