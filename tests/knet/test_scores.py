"""Scores of instances: the class's alone, or times the quality of the mask."""

import pytest
import torch

from sp_fast.knet.prediction import mask_quality, select_top


def test_quality_is_the_mean_probability_inside():
    logits = torch.tensor([[[[3.0, 1.0], [-2.0, -5.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])  # [1, 2, 2, 2]
    inside = torch.sigmoid(torch.tensor([3.0, 1.0])).mean().item()
    assert mask_quality(logits).tolist() == [[pytest.approx(inside), 0.0]]


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
