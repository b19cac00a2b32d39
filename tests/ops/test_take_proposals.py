"""take_proposals against the reference."""

import pytest
import torch
from hypothesis import given

from sp_fast.ops import PackedMasks, reference
from sp_fast.ops.take_proposals import take_proposals
from tests.ops.op_cases import needs_extension, taken_tables


@needs_extension
@given(taken_tables())
def test_same_as_the_reference(tables):
    results = torch.ops.sp_fast.take_proposals(*tables)
    for got, expected in zip(results, reference.take_proposals(*tables), strict=True):
        assert torch.equal(got, expected)


def test_rows_without_a_choice_are_empty():
    masks = PackedMasks.pack(torch.ones(1, 2, 3, 5, dtype=torch.bool))
    score, seeds = torch.tensor([[0.25, 0.5]]), torch.tensor([[[1.0], [2.0]]])
    taken = take_proposals(masks, score, seeds, torch.tensor([[1, -1]]))
    assert taken.masks.area().tolist() == [[15, 0]]
    assert taken.score.tolist() == [[0.5, 0.0]]
    assert taken.seeds.tolist() == [[[2.0], [0.0]]]
    assert taken.count.tolist() == [1]


def test_wrong_shapes_are_named():
    masks = PackedMasks.pack(torch.ones(1, 2, 3, 5, dtype=torch.bool))
    chosen = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="score"):
        take_proposals(masks, torch.zeros(1, 3), torch.zeros(1, 2, 4), chosen)
    with pytest.raises(TypeError, match="chosen"):
        take_proposals(masks, torch.zeros(1, 2), torch.zeros(1, 2, 4), chosen.int())
