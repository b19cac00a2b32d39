"""Damaged files are read or refused: no crash, no hang, no memory out of proportion, nothing lost in silence.

Quick and the same each time here; `make fuzz` goes on with others for longer.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp_fast.data.check import check_coco
from sp_fast.data.coco import load_coco, read_json, save_coco
from sp_fast.data.formats import to_coco
from sp_fast.data.images import BrokenImageError, image_size, read_image
from sp_fast.data.imported import import_masks
from sp_fast.data.rle import rle_areas, to_rle
from sp_fast.weights.unpickle import load_foreign
from tests.fuzz import samples
from tests.fuzz.damage import damaged_bytes, damaged_json

resource = pytest.importorskip("resource")  # not on Windows

MEMORY = 2 * 2**30
SECONDS = 60  # of one example; a loaded machine takes less than one

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")  # set by `make fuzz`

many = settings(
    max_examples=int(EXAMPLES or 60),
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images`."""
    path = tmp_path_factory.mktemp("fuzz")
    samples.write_images(path / "images")
    return path


@contextlib.contextmanager
def limited() -> Iterator[list[warnings.WarningMessage]]:
    """Bounds memory and time of the block, and gives its warnings."""

    def late(*_: Any) -> None:
        raise AssertionError(f"not done after {SECONDS} seconds")

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield said
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def number_left_out(said: list[warnings.WarningMessage]) -> int:
    """How many objects `load_coco` says that it leaves out."""
    numbers = [re.search(r"(\d+) of \d+ objects have an empty mask", str(one.message)) for one in said]
    return sum(int(number[1]) for number in numbers if number)


def result(read: Callable[[], Any]) -> tuple[Any, str]:
    """What a reader gives, or None and the text of its error."""
    try:
        return read(), ""
    except (ValueError, OSError) as error:
        return None, str(error)


@given(content=damaged_json(samples.coco()))
@many
def test_coco(folder: Path, content: bytes) -> None:
    path = folder / "coco.json"
    path.write_bytes(content)
    with limited() as said:
        found = check_coco(path, folder / "images", pixels=False)
        loaded, refused = result(lambda: load_coco(path, folder / "images"))
    if refused:
        assert str(path) in refused
        assert found.errors or "empty mask" in refused
        return
    others = ("image size", "swapped size", "broken image", "listed twice", "xyxy")
    assert {fault.kind for fault in found.errors} <= set(others)
    assert len(loaded["annotations"]) + number_left_out(said) == len(read_json(path)["annotations"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in loaded["images"]}
    for one in loaded["annotations"]:
        assert rle_areas([to_rle(one["segmentation"], *sizes[one["image_id"]])])[0] > 0
        assert np.isfinite([*one["bbox"], one["area"]]).all()
        assert min(*one["bbox"][2:], one["area"]) > 0


@given(content=damaged_json(samples.coco()) | damaged_json(samples.results()), boxes=st.booleans())
@many
def test_imported_masks(folder: Path, content: bytes, boxes: bool) -> None:
    path = folder / "masks.json"
    path.write_bytes(content)
    with limited():
        masks, refused = result(lambda: import_masks(path, images=[folder / "images"], boxes=boxes, top=3))
        if refused:
            assert str(path) in refused or str(folder / "images") in refused
            return
        save_coco(masks.coco, folder / "imported.json")
        load_coco(folder / "imported.json", folder / "images")


SHAPES = samples.images()


@pytest.mark.parametrize("name", SHAPES)
@given(data=st.data())
@many
def test_images(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    path.write_bytes(data.draw(damaged_bytes(SHAPES[name])))
    with limited():
        sizes = []
        for read in (lambda: image_size(path), lambda: read_image(path).shape[:2]):
            with contextlib.suppress(BrokenImageError):
                sizes.append(read())
    assert len(set(sizes)) <= 1


WEIGHTS = samples.weights()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WEIGHTS)
@given(data=st.data())
@many
def test_weights(folder: Path, kind: str, data: st.DataObject) -> None:
    path = folder / "weights.pth"
    path.write_bytes(data.draw(damaged_bytes(WEIGHTS[kind])))
    with limited():
        _, refused = result(lambda: load_foreign(path))
    assert not refused or str(path) in refused


def write(folder: Path, format: str, data: st.DataObject) -> Path:
    """Writes damaged labels; returns their path."""
    labels = folder / format
    for part in ("SegmentationObject", "SegmentationClass") if format == "voc" else ("",):
        (labels / part).mkdir(parents=True, exist_ok=True)
    if format == "labelme":
        (labels / "a.json").write_bytes(data.draw(damaged_json(samples.labelme())))
    elif format == "cityscapes":
        (labels / "a_gtFine_polygons.json").write_bytes(data.draw(damaged_json(samples.cityscapes())))
    elif format == "yolo":
        (labels / "a.txt").write_bytes(data.draw(st.just(samples.YOLO) | damaged_bytes(samples.YOLO)))
        config = data.draw(st.just(samples.YOLO_CONFIG) | damaged_bytes(samples.YOLO_CONFIG))
        (labels / "data.yaml").write_bytes(config)
    else:
        for part in ("SegmentationObject", "SegmentationClass"):
            content = data.draw(st.just(samples.label_image()) | damaged_bytes(samples.label_image()))
            (labels / part / "a.png").write_bytes(content)
        (labels / "labelmap.txt").write_bytes(data.draw(damaged_bytes(b"x:0,0,1::\ny:0,0,2::\n")))
    return labels


@pytest.mark.parametrize("format", ["labelme", "cityscapes", "yolo", "voc"])
@given(data=st.data())
@many
def test_other_formats(folder: Path, format: str, data: st.DataObject) -> None:
    labels = write(folder, format, data)
    with limited():
        coco, refused = result(lambda: to_coco(labels, folder / "images", format))
        if refused:
            assert str(labels) in refused
            return
        check_coco((labels, coco), folder / "images", pixels=False)
