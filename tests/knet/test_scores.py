"""Scores of instances: the class's alone, or times the quality of the kernel."""

import pytest
import torch

from sp_fast.knet.prediction import kernel_quality, select_top


def blocks(*rows: list[float]) -> torch.Tensor:
    """Mask logits [1, N, 1, w] whose cells are far apart, so that upsampling keeps their signs inside."""
    return torch.tensor(rows)[None, :, None].repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_quality_is_low_for_uncertain_empty_and_repeated_masks():
    masks = blocks([9.0, -9.0, -9.0], [9.0, -9.0, -9.0], [-9.0, 0.5, -9.0], [-9.0, -9.0, -9.0])
    classes = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
    quality = kernel_quality(classes, masks)[0].tolist()
    assert quality[0] == pytest.approx(0, abs=1e-6)  # the next kernel has the same mask and a higher score
    assert quality[1] > 0.9
    assert quality[2] == pytest.approx(torch.sigmoid(torch.tensor(0.5)).item() ** 2, abs=0.05)
    assert quality[3] == 0


def test_of_equal_kernels_the_first_is_kept():
    quality = kernel_quality(torch.zeros(1, 2, 1), blocks([9.0, -9.0], [9.0, -9.0]))[0]
    assert quality[0] > 0.9
    assert quality[1] == pytest.approx(0, abs=1e-6)


def test_a_part_of_a_better_mask_loses_its_share():
    masks = blocks([9.0, 9.0, -9.0, -9.0], [9.0, -9.0, -9.0, -9.0])
    quality = kernel_quality(torch.tensor([[[5.0], [0.0]]]), masks)[0]
    assert quality[1].item() == pytest.approx(0.5, abs=0.06)


def test_quality_orders_kernels_of_equal_class_scores():
    classes = torch.zeros(1, 3, 2)  # every score is 0.5
    classes[0, 2, 1] = 1.0
    quality = torch.tensor([[0.5, 0.9, 0.6]])
    scores, labels, kernels = select_top(classes, 4, quality)
    assert kernels.tolist() == [[1, 1, 2, 2]]
    assert scores[0, :2].tolist() == pytest.approx([0.45, 0.45])
    assert labels[0, 2] == 1
    assert scores[0, 2].item() == pytest.approx(0.6 * torch.sigmoid(torch.tensor(1.0)).item())
    assert select_top(classes, 1)[2].tolist() == [[2]]
