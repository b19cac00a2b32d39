"""Number, sizes and overlap of masks, and files of masks side by side."""

import math
from pathlib import Path

import pytest

from sp_fast.proposals.comparison import compare
from sp_fast.proposals.ranked import read_ranked
from sp_fast.proposals.summary import summarize
from tests.proposals.test_scores import coco


def test_numbers_without_annotations(tmp_path: Path) -> None:
    boxes = {
        "a.jpg": [(0, 0, 100, 100), (0, 0, 100, 50), (150, 150, 20, 20)],
        "b.jpg": [(0, 0, 10, 150)],
        "c.jpg": [],
    }
    masks = read_ranked(coco(tmp_path / "p.json", boxes))
    found = summarize(masks, masks.images)
    assert (found.images, found.masks, found.fewest, found.most, found.images_without) == (3, 4, 0, 3, 1)
    assert found.masks_per_image == pytest.approx(4 / 3)
    # Areas: 10000, 5000, 400 and 1500 of 40000 pixels.
    assert found.area_quartiles == pytest.approx((1225 / 40000, 3250 / 40000, 6250 / 40000))
    assert found.covered == pytest.approx((10400 + 1500) / 40000 / 3)
    assert found.overlap == pytest.approx((0.5 + 0.5 + 0) / 3)  # a single mask has no other
    assert (found.strips.masks, found.strips.best) == (1, 1)


def test_no_masks(tmp_path: Path) -> None:
    masks = read_ranked(coco(tmp_path / "p.json", {"a.jpg": []}))
    found = summarize(masks, ["a.jpg"])
    assert (found.masks, found.masks_per_image, found.covered) == (0, 0, 0)
    assert all(map(math.isnan, (*found.area_quartiles, found.overlap, found.strips.masks_share)))


def test_files_are_compared_on_the_images_they_share(tmp_path: Path) -> None:
    box = [(0, 0, 50, 50)]
    old = coco(tmp_path / "old.json", {"a.jpg": box, "b.jpg": box, "c.jpg": []})
    new = coco(tmp_path / "new.json", {"a.jpg": box * 3, "b.jpg": box, "d.jpg": box})
    objects = coco(tmp_path / "o.json", {"a.jpg": box, "c.jpg": box, "b.jpg": box})
    calls = []
    found = compare([old, new], objects, lambda done, total: calls.append((done, total)))
    assert found.names == ["a.jpg", "b.jpg"]
    assert [one.label for one in found.files] == ["old.json", "new.json"]
    assert [one.summary.masks for one in found.files] == [2, 4]
    assert all(one.recall.coverage["all"]["all"].objects == 2 for one in found.files if one.recall)
    assert calls == [(k, 8) for k in range(1, 9)]
    (tmp_path / "again").mkdir()
    other = coco(tmp_path / "again" / "old.json", {"a.jpg": []})
    assert [one.label for one in compare([old, other]).files] == [str(old), str(other)]
    with pytest.raises(ValueError, match="no image is in"):
        compare([old, new, coco(tmp_path / "z.json", {"z.jpg": box})])
