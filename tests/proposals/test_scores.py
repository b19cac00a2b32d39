"""Scores of proposals against annotations, on masks of known IoU."""

import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sp_fast.data.coco import save_coco
from sp_fast.proposals import SaliencyProposer, build_backbone
from sp_fast.proposals.run import propose_folder
from sp_fast.proposals.scores import border_strips, score_proposals

Box = tuple[int, int, int, int]


def coco(
    path: Path,
    boxes: dict[str, list[Box]],
    crowds: dict[str, list[Box]] | None = None,
    scores: dict[str, list[float]] | None = None,
) -> Path:
    """A file of rectangles x y w h on images of 200 x 200."""
    images, annotations = [], []
    for number, name in enumerate(boxes, start=1):
        images.append({"id": number, "file_name": name, "height": 200, "width": 200})
        both = [(b, 0) for b in boxes[name]] + [(b, 1) for b in (crowds or {}).get(name, [])]
        for k, ((x, y, w, h), crowd) in enumerate(both):
            mask = np.zeros((200, 200), dtype=np.uint8, order="F")
            mask[y : y + h, x : x + w] = 1
            rle = coco_mask.encode(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": crowd,
                    **({"score": scores[name][k]} if scores else {}),
                }
            )
    categories = [{"id": 1, "name": "object"}]
    save_coco({"images": images, "annotations": annotations, "categories": categories}, path)
    return path


def test_best_iou_by_size(tmp_path: Path) -> None:
    objects = {"a.jpg": [(0, 0, 100, 100), (150, 150, 20, 20)], "b.jpg": [(0, 0, 50, 50)], "c.jpg": []}
    proposals = {
        "c.jpg": [(0, 0, 9, 9)],
        "a.jpg": [(0, 0, 100, 50), (0, 0, 100, 80), (150, 150, 20, 10)],
        "b.jpg": [],
    }
    scores = score_proposals(
        coco(tmp_path / "p.json", proposals),
        coco(tmp_path / "o.json", objects, crowds={"b.jpg": [(60, 60, 90, 90)]}),
    )
    assert (scores.images, scores.images_annotated) == (3, 3)
    assert scores.masks_per_image == pytest.approx(4 / 3)
    by_size = scores.by_size
    assert [by_size[name].objects for name in ("all", "small", "medium", "large")] == [3, 1, 1, 1]
    assert by_size["large"].mean_best_iou == pytest.approx(0.8)
    assert by_size["small"].mean_best_iou == pytest.approx(0.5)
    assert by_size["small"].above_half == 0
    assert by_size["medium"].mean_best_iou == 0
    assert by_size["all"].mean_best_iou == pytest.approx(1.3 / 3)
    assert by_size["all"].above_half == pytest.approx(1 / 3)


def test_only_images_in_both_count(tmp_path: Path) -> None:
    proposals = coco(tmp_path / "p.json", {"a.jpg": [(0, 0, 10, 10)], "z.jpg": []})
    objects = coco(tmp_path / "o.json", {"a.jpg": [(0, 0, 10, 10)], "b.jpg": [(0, 0, 10, 10)]})
    scores = score_proposals(proposals, objects)
    assert (scores.images, scores.images_annotated) == (1, 2)
    assert scores.by_size["all"].mean_best_iou == 1
    assert math.isnan(scores.by_size["large"].mean_best_iou)


@pytest.mark.parametrize(
    ("box", "strip"),
    [
        ((0, 30, 20, 100), True),
        ((80, 30, 20, 100), True),
        ((20, 0, 60, 40), True),
        ((20, 160, 50, 40), True),
        ((0, 0, 100, 40), True),
        ((1, 30, 20, 100), False),
        ((0, 30, 21, 120), False),
        ((0, 30, 20, 99), False),
        ((20, 160, 49, 40), False),
        ((0, 0, 100, 200), False),
    ],
)
def test_border_strips(box: Box, strip: bool) -> None:
    assert border_strips(np.array([box]), height=200, width=100).tolist() == [strip]


def test_strips_of_all_masks_and_of_the_best(tmp_path: Path) -> None:
    strip, square = (0, 0, 10, 150), (0, 0, 90, 90)
    boxes = {"a.jpg": [strip, square, strip], "b.jpg": [square, strip], "c.jpg": [square], "d.jpg": []}
    objects = coco(tmp_path / "o.json", boxes)
    strips = score_proposals(coco(tmp_path / "p.json", boxes), objects).strips
    assert (strips.masks, strips.masks_share) == (3, 0.5)
    assert (strips.best, strips.best_share) == (1, pytest.approx(1 / 3))
    scores = {"a.jpg": [0.5, 0.9, 0.1], "b.jpg": [0.2, 0.3], "c.jpg": [0.1]}
    assert score_proposals(coco(tmp_path / "p.json", boxes, scores=scores), objects).strips.best == 1
    scores["b.jpg"] = [0.3, 0.2]
    assert score_proposals(coco(tmp_path / "p.json", boxes, scores=scores), objects).strips.best == 0


def test_no_masks_no_share_of_strips(tmp_path: Path) -> None:
    objects = coco(tmp_path / "o.json", {"a.jpg": [(0, 0, 9, 9)]})
    strips = score_proposals(coco(tmp_path / "p.json", {"a.jpg": []}), objects).strips
    assert (strips.masks, strips.best) == (0, 0)
    assert math.isnan(strips.masks_share)
    assert math.isnan(strips.best_share)


def test_no_common_image(tmp_path: Path) -> None:
    proposals = coco(tmp_path / "p.json", {"a.jpg": []})
    with pytest.raises(ValueError, match=r"matched by file_name, such as 'a.jpg' and 'b.jpg'"):
        score_proposals(proposals, coco(tmp_path / "o.json", {"b.jpg": []}))


def test_an_image_of_two_sizes(tmp_path: Path) -> None:
    masks = coco(tmp_path / "masks.json", {"a.jpg": [(0, 0, 9, 9)]})
    image = {"id": 1, "file_name": "a.jpg", "height": 100, "width": 200}
    other = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    save_coco(other, tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"a\.jpg: expected one size .* got \(200, 200\) .* \(100, 200\)"):
        score_proposals(masks, tmp_path / "other.json")


def test_a_replicated_border_gives_cell_images_fewer_strips(data_dir, tmp_path: Path) -> None:
    weights, folder = data_dir("weights/mobilenet_v2_imagenet.pth"), data_dir("nuclei/train")
    truth = data_dir("nuclei/instances_train.json")
    (tmp_path / "few").mkdir()
    for path in sorted(folder.iterdir())[:4]:
        (tmp_path / "few" / path.name).symlink_to(path.resolve())
    strips = {}
    for padding in ("zeros", "replicate"):
        backbone = build_backbone("mobilenet_v2", weights=weights, padding=padding)
        out = propose_folder(tmp_path / "few", tmp_path / f"{padding}.json", SaliencyProposer(backbone)).out
        strips[padding] = score_proposals(out, truth).strips
    assert strips["replicate"].best < strips["zeros"].best
    assert strips["replicate"].masks < strips["zeros"].masks
