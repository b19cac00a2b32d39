"""Masks of kernels averaged over images."""

import numpy as np
import pytest

pytest.importorskip("mmdet")
import torch
from PIL import Image

import sp_fast
from sp_fast.evaluation import kernel_maps
from sp_fast.evaluation.kernel_maps import kernel_figure, mean_kernel_maps
from tests.inference import checkpoints
from tests.inference.components import Components


class Bright:
    """A model with two kernels: one's mask is the image's brightness, the other's the opposite."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = 0, fails_at

    def kernel_masks(self, image, size):
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        bright = torch.full(size, image.mean() / 255.0, dtype=torch.float32)
        return torch.stack([bright, 1 - bright])


@pytest.fixture
def images(tmp_path):
    """Grey images of 0, 51, 102 and 153."""
    paths = [tmp_path / f"{value}.png" for value in (0, 51, 102, 153)]
    for path in paths:
        Image.new("L", (20, 10), int(path.stem)).save(path)
    return paths


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads a narrow model of a family with random weights."""
    folder = tmp_path_factory.mktemp("models")

    def load(family):
        torch.manual_seed(0)
        path = checkpoints.save(checkpoints.checkpoint_of(family), folder / f"{family}.pth")
        return sp_fast.load(path, device="cpu")

    return load


# mmdet resizes the logits of Mask2Former, not the probabilities. With padding: 0.997 and 0.82.
@pytest.mark.parametrize(("family", "least"), [("knet", 0.9995), ("mask2former", 0.95)])
def test_kernels_have_the_masks_that_are_predicted(load, family, least):
    model = load(family)
    # Resized to 64 x 90, then padded to 64 x 96: the padding must not be part of the masks.
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    masks = model.kernel_masks(image, image.shape[:2])
    assert masks.dtype == torch.float32
    assert 0 <= masks.min() < masks.max() <= 1
    found = model.predict(image, threshold=0.0, top_k=1000)
    assert len(found)
    agreement = (found.masks[:, None] == (masks > 0.5).numpy()).mean((2, 3))
    assert agreement.max(1).min() > least


def test_maps_are_means_over_images(images):
    seen = []
    maps = mean_kernel_maps(Bright(), images, progress=lambda *counts: seen.append(counts))
    assert maps.shape == (2, 200, 200)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps[0], 0.3, atol=1e-6)
    np.testing.assert_allclose(maps[1], 0.7, atol=1e-6)
    assert seen == [(k, 4) for k in range(5)]


def test_an_interrupted_call_continues(images, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_maps, "SAVE_SECONDS", -1.0)
    partial = tmp_path / "partial.npz"
    with pytest.raises(KeyboardInterrupt):
        mean_kernel_maps(Bright(fails_at=3), images, partial=partial)
    again = Bright()
    maps = mean_kernel_maps(again, images, partial=partial)
    assert again.calls == 2
    np.testing.assert_array_equal(maps, mean_kernel_maps(Bright(), images))


def test_models_without_kernels_are_refused(load, images):
    with pytest.raises(ValueError, match=r"expected a K-Net or a Mask2Former.*got QueryInst"):
        mean_kernel_maps(load("queryinst"), images)
    with pytest.raises(ValueError, match=r"expected a checkpoint, got an exported model \(Components\)"):
        mean_kernel_maps(Components(), images)
    with pytest.raises(ValueError, match="images: expected at least one, got none"):
        mean_kernel_maps(Bright(), [])


def test_maps_are_drawn_in_order_with_one_colour_scale():
    maps = np.arange(5, dtype=np.float32)[:, None, None] / 10 * np.ones((1, 20, 20), np.float32)
    path = f"{'a' * 60}/latest.pth"
    figure = kernel_figure({path: maps, "one": np.full((1, 20, 20), 0.8, np.float32)})
    assert [axes.get_title() for axes in figure.axes[:2]] == [f"…{path[-51:]}", "one"]
    first, second = (axes.images[0] for axes in figure.axes[:2])
    assert first.get_clim() == second.get_clim() == (0, pytest.approx(0.8))
    drawn = np.ma.filled(first.get_array(), np.nan)
    # Three across, with a gap of one pixel.
    np.testing.assert_allclose(drawn[5, [5, 26, 47]], [0, 0.1, 0.2], rtol=1e-6)
    np.testing.assert_allclose(drawn[26, [5, 26]], [0.3, 0.4], rtol=1e-6)
    assert np.isnan(drawn[26, 47])
    assert np.isnan(drawn[20]).all()
