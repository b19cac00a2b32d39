"""Descriptors of masks that objectness is made of."""

import math

import pytest
import torch

from sp_fast.ops import PackedMasks
from sp_fast.proposals.objectness import (
    border_share,
    colour_contrast,
    contrast,
    dilated,
    means_inside,
    objectness,
    stability,
)


def block(rows: slice, columns: slice, size: tuple[int, int] = (12, 15)) -> torch.Tensor:
    """A mask that is a rectangle."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


def test_dilated_grows_in_all_directions() -> None:
    masks = torch.stack([block(slice(5, 7), slice(4, 5)), block(slice(0, 1), slice(14, 15))])
    grown = dilated(masks[None], 2)[0]
    assert torch.equal(grown[0], block(slice(3, 9), slice(2, 7)))
    assert torch.equal(grown[1], block(slice(0, 3), slice(12, 15)))


def test_stability_counts_cells_that_change_with_the_threshold() -> None:
    saliency = torch.zeros(12, 15)
    saliency[4:8, 4:8] = 0.55  # 16 cells, 8 of them above 0.6
    saliency[4:6, 4:8] = 0.9
    saliency[8, 4:8] = 0.45  # 4 more above 0.4
    saliency[0, 0] = 0.45  # far away
    higher, lower = PackedMasks.pack(saliency >= 0.6), PackedMasks.pack(saliency >= 0.4)
    found = stability(PackedMasks.pack(saliency >= 0.5), higher, lower)
    assert found.item() == pytest.approx(8 / 16 * 16 / 20)
    assert stability(PackedMasks.pack(saliency > 1), higher, lower).item() == 0


def test_a_sharp_edge_is_perfectly_stable() -> None:
    mask = PackedMasks.pack(block(slice(3, 9), slice(5, 9)))
    assert stability(mask, mask, mask).item() == 1


def test_contrast_is_of_the_mask_and_the_ring_around_it() -> None:
    mask = block(slice(4, 8), slice(4, 8))
    ring = dilated(mask, 2) & ~mask
    features = torch.zeros(1, 3, 12, 15)
    features[0, 0, mask] = 5
    features[0, 1, ring] = 2
    features[0, 2, ~mask & ~ring] = 7
    inside = means_inside(features, mask[None, None])
    assert inside.tolist() == [[[5, 0, 0]]]
    assert contrast(features, mask[None, None], inside).item() == pytest.approx(1)
    features[0, 0, ring] = 2
    assert contrast(features, mask[None, None], inside).item() == pytest.approx(1 - 1 / math.sqrt(2))


def test_padding_is_not_part_of_the_ring() -> None:
    mask = block(slice(4, 8), slice(4, 8))
    valid = block(slice(0, 9), slice(0, 15))
    features = torch.rand(1, 3, 12, 15) * valid
    colours = torch.rand(1, 3, 12, 15) * valid
    cut = (features[..., :9, :], mask[None, None, :9])
    whole = (features, mask[None, None])
    alone, padded = (contrast(f, m, means_inside(f, m)) for f, m in (cut, whole))
    assert torch.allclose(alone, padded)
    everywhere = torch.ones(1, 9, 15, dtype=torch.bool)
    alone = colour_contrast(colours[..., :9, :], mask[None, None, :9], everywhere)
    assert torch.allclose(alone, colour_contrast(colours, mask[None, None], valid[None]))


def test_masks_without_a_ring_have_no_contrast() -> None:
    masks = torch.stack([torch.ones(6, 6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.bool)])[None]
    features = torch.rand(1, 4, 6, 6)
    assert contrast(features, masks, means_inside(features, masks)).tolist() == [[0, 0]]
    valid = torch.ones(1, 6, 6, dtype=torch.bool)
    assert colour_contrast(features[:, :3], masks, valid)[0, 0].item() == 0


def test_objectness_rises_with_each_part() -> None:
    half = torch.tensor([0.5])
    base = objectness(half, half, half, half, half)
    assert 0 < base < 1
    more = torch.tensor([0.8])
    assert objectness(more, half, half, half, half) > base
    assert objectness(half, more, half, half, half) > base
    assert objectness(half, half, more, half, half) > base
    assert objectness(half, half, half, more, half) < base
    assert objectness(half, half, half, half, more) < base
    assert objectness(torch.zeros(1), half, half, half, half) == 0
    assert objectness(half, half, None, half, half) > 0


def test_border_share_counts_the_cells_along_the_border_of_the_valid_part() -> None:
    inner, frame = block(slice(1, 8), slice(1, 10)), block(slice(0, 9), slice(0, 11))
    frame &= ~inner
    top, beyond = block(slice(0, 1), slice(0, 11)), block(slice(9, 12), slice(0, 15))
    masks = PackedMasks.pack(torch.stack([inner, frame, frame | inner, top, beyond])[None])
    valid = torch.zeros(1, 12, 15, dtype=torch.bool)
    valid[:, :9, :11] = True
    assert border_share(masks, valid).tolist() == [[0, 1, 1, pytest.approx(11 / 36), 0]]
    whole = PackedMasks.pack(torch.ones(1, 1, 12, 15, dtype=torch.bool))
    assert border_share(whole, torch.ones(1, 12, 15, dtype=torch.bool)).tolist() == [[1]]
