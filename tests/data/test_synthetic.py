"""The synthetic set: reproducible from its seed, with masks that fit the objects."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sp_fast.data import list_images, load_coco, read_image
from sp_fast.data.synthetic import SHAPES, SPLITS, SetOptions, make_scene, make_set


def test_scene_depends_only_on_its_seed():
    first, again, other = (make_scene(96, (1, 0, k)) for k in (5, 5, 6))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert first.categories == again.categories
    assert (first.image != other.image).mean() > 0.5


@pytest.mark.parametrize("size", [64, 128, 160])
def test_scenes_are_crowded_and_objects_stand_out(size):
    contrasts, counts, overlaps, shapes = [], [], 0, set()
    for k in range(25):
        scene = make_scene(size, (0, 1, k))
        assert scene.image.shape == (size, size, 3)
        assert scene.masks.sum(0).max() == 1
        assert len(scene.masks) == len(scene.categories)
        counts.append(len(scene.masks))
        shapes.update(scene.categories)
        background = scene.image[~scene.masks.any(0)].mean(0)
        for mask in scene.masks:
            contrasts.append(np.abs(scene.image[mask].mean(0) - background).sum())
            # Where an object touches another, one of them is behind.
            near = np.zeros_like(mask)
            near[:, 1:] |= mask[:, :-1]
            overlaps += bool((near & ~mask & scene.masks.any(0)).any())
        areas = scene.masks.sum((1, 2))
        assert areas.min() > 0.001 * size * size
    assert min(counts) >= 3
    assert max(counts) <= 8
    assert len(set(counts)) > 3
    assert shapes == set(range(len(SHAPES)))
    assert overlaps > 10
    assert np.median(contrasts) > 100


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_set_is_complete_and_reproducible(tmp_path):
    options = SetOptions(size=64, unlabelled=3, labelled=2, validation=2, seed=4)
    seen = []
    folder = make_set(tmp_path / "a", options, lambda done, total: seen.append((done, total)))
    assert seen == [(k, 7) for k in range(1, 8)]
    assert len(list_images(folder / "unlabelled")) == 3
    for part, (split, file_name) in enumerate(SPLITS.items()):
        coco = load_coco(folder / file_name, images=folder / split)
        assert len(coco["images"]) == getattr(options, split)
        assert [category["name"] for category in coco["categories"]] == list(SHAPES)
        first = [one["segmentation"] for one in coco["annotations"] if one["image_id"] == 1]
        np.testing.assert_array_equal(
            coco_mask.decode(first).transpose(2, 0, 1), make_scene(64, (4, part, 0)).masks
        )
    assert tree(make_set(tmp_path / "b", options)) == tree(folder)
    (folder / "unlabelled.truth.json").unlink()  # like sets of earlier versions
    assert tree(make_set(folder, options)) == tree(tmp_path / "b")
    make_set(folder, options, lambda *_: pytest.fail("remade although it exists"))


def test_other_options_remake_the_set(tmp_path):
    make_set(tmp_path, SetOptions(size=64, unlabelled=3, labelled=1, validation=1))
    first = read_image(tmp_path / "unlabelled" / "000000.png")
    make_set(tmp_path, SetOptions(size=64, unlabelled=2, labelled=1, validation=1, seed=1))
    assert len(list_images(tmp_path / "unlabelled")) == 2
    assert (read_image(tmp_path / "unlabelled" / "000000.png") != first).any()


def test_interrupted_set_is_completed(tmp_path):
    options = SetOptions(size=64, unlabelled=3, labelled=1, validation=1)

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_set(tmp_path / "a", options, stop)
    assert tree(make_set(tmp_path / "a", options)) == tree(make_set(tmp_path / "b", options))
