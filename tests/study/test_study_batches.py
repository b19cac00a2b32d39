"""Images and masks in memory: masks stay on their objects, and each image comes up as often as the others."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

pytest.importorskip("mmdet")

from sp_fast.study.batches import Order, flips, make_batch
from sp_fast.study.memory import canvas_size, load_images, pack_masks
from sp_fast.study.source import labelled_ids


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


@pytest.fixture
def painted(tmp_path):
    """A wide and a tall image of 64 and 32 pixels with a bright rectangle on each, on canvases of 32."""
    paths, annotations = [], []
    for name, shape, (y, x, h, w) in (("a", (48, 64), (8, 8, 16, 24)), ("b", (64, 32), (32, 0, 16, 16))):
        mask = np.zeros(shape, bool)
        mask[y : y + h, x : x + w] = True
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(np.repeat(mask[..., None] * np.uint8(200), 3, 2)).save(paths[-1])
        one = {"category_id": 5, "segmentation": encode(mask), "seed_row": len(annotations)}
        crowd = {"category_id": 5, "segmentation": encode(~mask), "iscrowd": 1, "seed_row": 0}
        annotations.append([crowd, one, {**one, "segmentation": encode(np.zeros(shape, bool))}])
    images = load_images(paths, 32, workers=1)
    seeds = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    return images, pack_masks(images, annotations, [(48, 64), (64, 32)], {5: 2}, seeds, workers=1)


def test_masks_without_crowds_and_empty_ones(painted):
    images, masks = painted
    assert images.sizes.tolist() == [[24, 32], [32, 16]]
    assert masks.starts.tolist() == [0, 1, 2]
    assert masks.boxes.tolist() == [[4, 4, 16, 12], [0, 16, 8, 24]]
    assert masks.labels.tolist() == [2, 2]
    assert masks.seeds.tolist() == [[1, 2], [3, 4]]
    assert masks.cells[0].nonzero().tolist() == [[y, x] for y in (1, 2) for x in (1, 2, 3)]
    assert set(masks.cells.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("flip", [(False, False), (True, False), (True, True)])
def test_flipped_or_not_the_masks_lie_on_their_objects(painted, flip):
    images, masks = painted
    batch = make_batch(images, masks, np.array([0, 1]), np.array(flip))
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.count.tolist() == [1, 1]
    for i in range(2):
        height, width = images.sizes[i]
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[:height, :width] = True
        assert torch.equal(batch.inside[i, 0], inside)
        bright = batch.images[i, 0] > 100
        assert bright.sum() == (masks.cells[i] > 0).sum() * 16
        cells = batch.masks[i, 0].repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert torch.equal(cells > 0.5, bright)
        y, x = bright.nonzero().T
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert batch.boxes[i, 0].tolist() == [float(side) for side in expected]
    turned = batch.boxes[0, 0, 0] == 16
    assert turned == flip[0]


def test_padding_of_fewer_masks_is_empty(painted):
    images, masks = painted
    masks.starts[2] = 1  # the second image has none now
    batch = make_batch(images, masks, np.array([1, 0]), np.array([False, False]))
    assert batch.count.tolist() == [0, 1]
    assert not batch.masks[0].any()
    assert not batch.boxes[0].any()
    assert not batch.seeds[0].any()
    alone = make_batch(images, masks, np.array([1]), np.array([True]))
    assert alone.masks.shape == (1, 0, 8, 8)
    assert alone.seeds.shape == (1, 0, 2)
    assert make_batch(images, None, np.array([0]), np.array([False])).seeds is None


def test_sides_are_multiples_of_four():
    assert canvas_size(480, 640, 384) == (288, 384)
    assert canvas_size(640, 427, 384) == (384, 256)
    assert canvas_size(321, 481, 384) == (256, 384)
    assert canvas_size(3, 900, 64) == (4, 64)


def test_every_image_comes_up_equally_often_in_batches_of_one_orientation():
    sizes = np.array([[24, 32]] * 7 + [[32, 24]] * 3)
    order = Order(sizes, 4, 500, seed=1)
    seen = Counter()
    for step in range(500):
        index = order(step)
        assert len({bool(sizes[i, 0] > sizes[i, 1]) for i in index}) == 1
        seen.update(index.tolist())
    assert sum(seen.values()) == 2000
    assert all(abs(count - 200) < 40 for count in seen.values())
    wide = [seen[i] for i in range(7)]
    assert max(wide) - min(wide) <= 1
    # A step's images do not depend on what was asked for before.
    again = Order(sizes, 4, 500, seed=1)
    assert again(321).tolist() == order(321).tolist()
    assert any(Order(sizes, 4, 500, seed=2)(k).tolist() != order(k).tolist() for k in range(5))


def test_flips_follow_from_seed_and_step():
    assert flips(1, 2, 8).tolist() == flips(1, 2, 8).tolist()
    drawn = np.stack([flips(1, step, 8) for step in range(200)])
    assert 0.4 < drawn.mean() < 0.6
    assert len(np.unique(drawn, axis=0)) > 100


def test_ten_per_cent_are_the_first_of_the_sorted_ids():
    coco = {"images": [{"id": identity} for identity in (30, 7, 500, 2, 41, 9, 8, 100, 3, 77, 60, 25)]}
    assert labelled_ids(coco, 10) == [2]
    assert labelled_ids(coco, 25) == [2, 3, 7]
    assert labelled_ids(coco, 100) == sorted(image["id"] for image in coco["images"])
