"""Predicting folders: the files written, other tools' formats, interruption, broken images, refusals."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from sp_fast.data.coco import load_coco
from sp_fast.data.images import TooManyBrokenError
from sp_fast.inference import folder as folder_module
from sp_fast.inference.folder import find_images, predict_folder
from sp_fast.inference.model import UnfitImageError
from sp_fast.inference.polygons import joined, polygons
from tests.inference.components import Components

KINDS = ("overlays", "png", "yolo", "labelme")


def scene(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    image = np.zeros((*size, 3), np.uint8)
    for k in range(3):
        y, x = 16 * k, int(generator.integers(0, 40))
        image[y + 2 : y + 12, x : x + 12] = (255, 200)[k % 2]
    image[4:8, :] = 0  # a gap: the first object has two parts
    return image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for k, name in enumerate(["a.png", "b.png", "deep/a.png", "deep/b.png", "deep/b.bmp"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(k)).save(root / name)
    return root


def files_in(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def test_predictions_are_a_complete_coco_file(images: Path, tmp_path: Path) -> None:
    summary = predict_folder(Components(), [images], tmp_path / "out", kinds=())
    coco = load_coco(summary.out, images)
    assert [one["file_name"] for one in coco["images"]] == [
        "a.png",
        "b.png",
        "deep/a.png",
        "deep/b.bmp",
        "deep/b.png",
    ]
    assert [one["id"] for one in coco["images"]] == [1, 2, 3, 4, 5]
    assert coco["categories"] == [{"id": 1, "name": "first"}, {"id": 2, "name": "second"}]
    assert [one["id"] for one in coco["annotations"]] == [*range(1, summary.instances + 1)]
    with redirect_stdout(io.StringIO()):
        read = COCO(str(summary.out))
    for image in coco["images"]:
        found = Components().predict(images / image["file_name"])
        own = read.loadAnns(read.getAnnIds(image["id"]))
        assert len(own) == len(found) > 2
        for one, mask, box, label, score in zip(
            own, found.masks, found.boxes, found.labels, found.scores, strict=True
        ):
            assert (read.annToMask(one) == mask).all()
            assert one["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            assert (one["area"], one["iscrowd"], one["category_id"]) == (mask.sum(), 0, label + 1)
            assert one["score"] == pytest.approx(score, abs=1e-6)


def test_supervision_reads_the_predictions(images: Path, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    out = predict_folder(Components(), [images], tmp_path / "out", kinds=()).out
    read = supervision.DetectionDataset.from_coco(str(images), str(out), force_masks=True)
    assert read.classes == ["first", "second"]
    for path, _, detections in read:
        found = Components().predict(path)
        assert (detections.mask == found.masks).all()
        assert (detections.class_id == found.labels).all()


def test_files_for_each_image(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_folder(Components(), [images], out, kinds=KINDS)
    # Two images of one folder differ in their suffix only, so theirs is kept.
    stems = ["a", "b", "deep/a", "deep/b.bmp", "deep/b.png"]
    expected = [f"overlays/{stem}.jpg" for stem in stems] + [f"masks/{stem}.png" for stem in stems]
    expected += [f"yolo/{stem}.txt" for stem in stems] + [f"labelme/{stem}.json" for stem in stems]
    assert files_in(out).keys() == {"predictions.json", "yolo/classes.txt", *expected}
    assert (out / "yolo/classes.txt").read_text() == "first\nsecond\n"

    found = Components().predict(images / "deep/a.png")
    assert Image.open(out / "overlays/deep/a.jpg").size == (64, 48)
    ids = np.asarray(Image.open(out / "masks/deep/a.png"))
    assert ids.dtype == np.uint16
    assert all((mask == (ids == k)).all() for k, mask in enumerate(found.masks, start=1))

    lines = (out / "yolo/deep/a.txt").read_text().splitlines()
    for line, label, mask in zip(lines, found.labels, found.masks, strict=True):
        number, *values = line.split()
        points = np.array(values, float).reshape(-1, 2) * (64, 48)
        assert int(number) == label
        assert (filled(points) == mask).all()

    made = json.loads((out / "labelme/deep/a.json").read_text())
    assert (out / "labelme/deep" / made["imagePath"]).resolve() == (images / "deep/a.png").resolve()
    assert (made["imageHeight"], made["imageWidth"]) == (48, 64)
    assert [shape["label"] for shape in made["shapes"]] == found.names
    assert [shape["group_id"] for shape in made["shapes"]] == [*range(1, len(found) + 1)]


def filled(points: np.ndarray, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Fills a polygon as Ultralytics does."""
    cv2 = pytest.importorskip("cv2")
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    return mask.astype(bool)


def ring_and_dot() -> np.ndarray:
    mask = np.zeros((48, 64), bool)
    mask[5:30, 5:40] = True
    mask[10:20, 10:20] = mask[10:20, 25:33] = False
    mask[40, 60] = True
    return mask


def test_polygons_keep_holes_and_parts() -> None:
    mask = ring_and_dot()
    parts = polygons(mask)
    assert [len(part) >= 3 for part in parts] == [True, True]
    together = np.zeros_like(mask)
    for part in parts:
        together |= filled(part)
        image = Image.new("1", (64, 48))
        ImageDraw.Draw(image).polygon([tuple(point) for point in part], outline=1, fill=1)  # as LabelMe does
        assert (np.asarray(image) != filled(part)).sum() <= 20  # along the lines between hole and outline
    assert (together & ~mask).sum() == 0
    assert (together == mask).mean() > 0.99
    # As one polygon, only the line between the two parts is wrong.
    assert 0 < (filled(joined(parts)) != mask).sum() < 50


def test_an_interrupted_run_goes_on_and_ends_the_same(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    predict_folder(Components(), [images], whole, kinds=KINDS)
    out = tmp_path / "out"

    class Interrupted(Components):
        def _infer(self, batch):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super()._infer(batch)

    with pytest.raises(KeyboardInterrupt):
        predict_folder(Interrupted(), [images], out, kinds=KINDS)
    assert not (out / "predictions.json").exists()
    with pytest.raises(ValueError, match=r"differs from this one \(threshold: 0.3 before, 0.5 now\)"):
        predict_folder(Components(), [images], out, kinds=KINDS, threshold=0.5)
    model = Components()
    summary = predict_folder(model, [images], out, kinds=KINDS)
    assert summary.resumed == 5 - len(model.calls) > 0
    assert files_in(out) == files_in(whole)


def test_nothing_is_overwritten_unless_asked(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_folder(Components(), [images], out)
    before = files_in(out)
    with pytest.raises(FileExistsError, match="already exists; choose another folder, or pass --overwrite"):
        predict_folder(Components(), [images], out)
    assert files_in(out) == before
    predict_folder(Components(), [images / "a.png"], out, overwrite=True)
    assert files_in(out).keys() == {"predictions.json", "overlays/a.jpg"}

    (tmp_path / "mine" / "masks").mkdir(parents=True)
    (tmp_path / "mine" / "masks" / "a.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        predict_folder(Components(), [images], tmp_path / "mine")
    predict_folder(Components(), [images], tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "masks" / "a.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="expected a folder outside of the images"):
        predict_folder(Components(), [images], images / "out")
    with pytest.raises(NotADirectoryError, match="expected a folder to write"):
        predict_folder(Components(), [images], out / "predictions.json")


def test_images_are_not_removed_as_an_earlier_result(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    overlays = out / "overlays"
    predict_folder(Components(), [images], out)
    (tmp_path / "list.txt").write_text("out/overlays/a.jpg\n")
    for given in (overlays, overlays / "a.jpg", tmp_path / "list.txt"):
        with pytest.raises(ValueError, match=r"there are images to predict in .*overlays"):
            predict_folder(Components(), [given], out, overwrite=True)
    assert (overlays / "a.jpg").exists()


def test_no_two_files_have_the_same_name(tmp_path: Path) -> None:
    names = ["a.jpg.png", "a.jpg", "a.png", "classes.png"]
    (tmp_path / "images").mkdir()
    for name in names:
        Image.fromarray(scene(0)).save(tmp_path / "images" / name)
    predict_folder(Components(), [tmp_path / "images"], tmp_path / "out", kinds=["yolo"])
    written = {path.name for path in (tmp_path / "out" / "yolo").iterdir()}
    assert written == {"classes.txt", *(f"{name}.txt" for name in names)}


def test_broken_images_are_left_out_and_too_many_are_an_error(images: Path, tmp_path: Path) -> None:
    for k in range(15):
        Image.fromarray(scene(k)).save(images / f"more{k}.png")
    (images / "broken.jpg").symlink_to("gone.jpg")
    summary = predict_folder(Components(), [images], tmp_path / "out", kinds=())
    assert (summary.images, len(summary.broken)) == (20, 1)
    skipped = json.loads(summary.out.read_text())["info"]["skipped"]
    assert skipped == [{"file_name": "broken.jpg", "reason": "a link to a file that does not exist"}]

    (images / "broken2.jpg").write_bytes(b"")
    with pytest.raises(TooManyBrokenError):
        predict_folder(Components(), [images], tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_an_image_that_the_model_cannot_predict_is_left_out(images: Path, tmp_path: Path) -> None:
    class Picky(Components):
        def _infer(self, batch):
            if any(1 in image.shape for image in batch):
                raise UnfitImageError((1, 90), ValueError("too thin"))
            return super()._infer(batch)

    for k in range(15):
        Image.fromarray(scene(k)).save(images / f"more{k}.png")
    Image.fromarray(np.zeros((1, 90, 3), np.uint8)).save(images / "line.png")
    model = Picky()
    model.batch_size = 4
    summary = predict_folder(model, [images], tmp_path / "out", kinds=())
    assert summary.images == 20
    (skipped,) = json.loads(summary.out.read_text())["info"]["skipped"]
    assert skipped["file_name"] == "line.png"
    assert "1 x 90 pixels" in skipped["reason"]


def test_an_error_before_the_first_record_leaves_nothing(images: Path, tmp_path: Path) -> None:
    class Refuses(Components):
        def _infer(self, batch):
            raise ValueError("model: no masks")

    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(ValueError, match="no masks"):
            predict_folder(Refuses(), [images], out, kinds=KINDS)
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "empty").iterdir())


def test_images_may_be_folders_files_and_lists(images: Path, tmp_path: Path) -> None:
    assert find_images([images])[0] == images
    assert find_images([images / "a.png"]) == (images, [images / "a.png"])
    both = [images / "a.png", images / "deep" / "b.png"]
    assert find_images(both) == (images, both)
    assert find_images([images / "a.png", images])[1][0] == images / "a.png"
    assert len(find_images([images / "a.png", images])[1]) == 5
    (images / "list.txt").write_text("a.png\n\ndeep/b.png\n")
    assert find_images([images / "list.txt"]) == (images, both)
    with pytest.raises(
        FileNotFoundError, match=r"expected an image or a folder of images, got .*nothing\.png"
    ):
        find_images([images / "nothing.png"])
    (images / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="expected images, got none"):
        find_images([images / "empty.txt"])
    (images / "list.txt").write_bytes("\ufeffa.png\r\n".encode())  # as Windows' editors write it
    assert find_images([images / "list.txt"]) == (images, [images / "a.png"])
    (images / "list.txt").write_bytes("ä.png".encode("latin-1"))
    with pytest.raises(ValueError, match=r"expected a list of images in UTF-8, got .*list\.txt"):
        find_images([images / "list.txt"])


def test_batches_are_in_order_whatever_is_read_first(images: Path, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    predict_folder(Components(), [images], one)
    model = Components()
    model.batch_size = 3
    predict_folder(model, [images], many)
    assert files_in(one) == files_in(many)
    assert folder_module.PREDICTIONS in files_in(many)
