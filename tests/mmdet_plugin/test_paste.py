"""Masks of boxes that lie outside their image."""

import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmdet.models.roi_heads.mask_heads import fcn_mask_head


def pasted(box):
    found = torch.zeros(1, 32, 48)
    mask, place = fcn_mask_head._do_paste_mask(torch.ones(1, 1, 28, 28), torch.tensor([box]), 32, 48)
    found[(torch.tensor([0]), *place)] = mask
    return found


@pytest.mark.parametrize("box", [(-20.0, 5, -5, 9), (60.0, 5, 70, 9), (5.0, -20, 9, -5), (5.0, 40, 9, 50)])
def test_a_box_outside_its_image_gives_an_empty_mask(box):
    assert pasted(box).sum() == 0


@pytest.mark.parametrize(
    ("box", "area"), [((10.0, 4, 30, 14), 200), ((-10.0, -10, 4, 6), 24), ((40.0, 20, 90, 90), 96)]
)
def test_other_boxes_are_filled(box, area):
    assert (pasted(box) >= 0.5).sum() == area
