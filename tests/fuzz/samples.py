"""Small files of each format that is read, to be damaged."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from pycocotools import mask as coco_mask
from safetensors.torch import save

HEIGHT, WIDTH = 16, 24
NAMES = ("a.png", "b.png")
BOX = [3.0, 2.0, 12.0, 2.0, 12.0, 9.0, 3.0, 9.0]


def pixels() -> np.ndarray:
    """RGB noise."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def images() -> dict[str, bytes]:
    """An image in each format and several modes, by a name."""
    colour = Image.fromarray(pixels())
    exif = Image.Exif()
    exif[0x0112] = 6
    written = {}
    for name, image, options in (
        ("rgb.png", colour, {}),
        ("palette.png", colour.convert("P"), {}),
        ("grey16.png", Image.fromarray(pixels()[..., 0].astype(np.uint16) * 200), {}),
        ("turned.jpg", colour, {"exif": exif.tobytes()}),
        ("cmyk.jpg", colour.convert("CMYK"), {}),
        ("moving.gif", colour, {"save_all": True, "append_images": [colour]}),
        ("a.bmp", colour, {}),
        ("a.ppm", colour, {}),
        ("deflated.tif", colour, {"compression": "tiff_adobe_deflate"}),
        ("raw.tif", colour, {}),
        ("a.webp", colour, {}),
        *((("a.avif", colour, {}),) if features.check("avif") else ()),
        *((("a.jp2", colour, {}),) if features.check("jpg_2000") else ()),
    ):
        file = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(name.rsplit(".")[-1])
        image.save(file, kind or name.rsplit(".")[-1].upper(), **options)
        written[name] = file.getvalue()
    return written


def coco() -> dict[str, Any]:
    """A COCO-format value with polygons, run lengths of both kinds, and a crowd."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[4:9, 5:15] = 1
    counts = coco_mask.encode(mask)["counts"].decode()
    plain = [5 * HEIGHT + 4, *([5, 11] * 9), 5, HEIGHT * WIDTH - 5 * HEIGHT - 4 - 9 * 16 - 5]
    shapes = ([BOX], {"size": [HEIGHT, WIDTH], "counts": counts}, {"size": [HEIGHT, WIDTH], "counts": plain})
    annotations = [
        {"id": number, "image_id": 1 + number % 2, "category_id": 1 + number % 2, "segmentation": shape}
        for number, shape in enumerate((*shapes, [BOX, [15.0, 3.0, 20.0, 3.0, 20.0, 8.0]]), start=1)
    ]
    annotations[0] |= {"bbox": [3.0, 2.0, 9.0, 7.0], "area": 63.0, "iscrowd": 0, "score": 0.5}
    annotations[1] |= {"iscrowd": 1}
    return {
        "images": [
            {"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH} for k, name in enumerate(NAMES, 1)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}],
    }


def results() -> list[dict[str, Any]]:
    """A list in COCO's results format, whose images are named by file."""
    size = [HEIGHT, WIDTH]
    shape = coco()["annotations"][1]["segmentation"]
    return [
        {"image_id": name, "category_id": 1, "segmentation": {**shape, "size": size}, "score": 0.5}
        for name in NAMES
    ]


def labelme() -> dict[str, Any]:
    """A file of LabelMe with a shape of each type."""
    file = io.BytesIO()
    Image.fromarray(np.full((5, 7), 255, np.uint8)).save(file, "PNG")
    points = [[3.0, 2.0], [12.0, 2.0], [12.0, 9.0]]
    shapes = [
        {"label": "y", "points": points, "shape_type": "polygon", "group_id": 1},
        {"label": "x", "points": points[::2], "shape_type": "rectangle", "group_id": None},
        {"label": "y", "points": [[8.0, 8.0], [8.0, 12.0]], "shape_type": "circle"},
        {"label": "y", "points": [[4, 4], [11, 9]], "shape_type": "mask", "group_id": 1},
        {"label": "z", "points": [[4, 4]], "shape_type": "point"},
    ]
    shapes[3]["mask"] = base64.b64encode(file.getvalue()).decode()
    return {"shapes": shapes, "imagePath": NAMES[0], "imageHeight": HEIGHT, "imageWidth": WIDTH}


def cityscapes() -> dict[str, Any]:
    """A file of Cityscapes' polygons."""
    polygon = [[3, 2], [12, 2], [12, 9]]
    objects = [{"label": label, "polygon": polygon} for label in ("car", "cargroup", "pole")]
    return {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}


YOLO = b"0 0.1 0.1 0.9 0.1 0.9 0.8\n1 0.2 0.2 0.5 0.2 0.5 0.5 0.3 0.6\n"
YOLO_CONFIG = b"names:\n  0: x\n  1: y\n"


def weights() -> dict[str, bytes]:
    """A state dict in each format of weights, by name."""
    state = {"layer.weight": torch.arange(600.0).view(30, 20), "layer.bias": torch.ones(3, dtype=torch.half)}
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state, "meta": {"epoch": 3, "names": ["x", "y"]}}, zipped)
    torch.save({"state_dict": state}, legacy, _use_new_zipfile_serialization=False)
    return {"zip": zipped.getvalue(), "legacy": legacy.getvalue(), "safetensors": save(state)}


def label_image() -> bytes:
    """An image of object numbers."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[2:6, 3:9], values[8:12, 10:20] = 1, 2
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path) -> Path:
    """Writes the images that all samples are labels of."""
    folder.mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(pixels()).save(folder / name)
    return folder
