"""Rows of class layers, matched by the names of the classes."""

import pytest
import torch

pytest.importorskip("mmdet")

from sp_fast.mmdet_plugin.class_rows import match_rows, matching_classes, named_classes

THEIRS = ("cat", "dog", "bird")
OURS = ("fish", "bird", "cat")


@pytest.mark.parametrize(
    ("rows", "own_rows", "expected"),
    [
        ([1, 2, 3], [7, 8, 9], [7, 3, 1]),
        ([1, 2, 3, 4], [7, 8, 9, 6], [7, 3, 1, 4]),  # the background comes last
        ([5], [6], [5]),  # the same for all classes
        (range(6), range(20, 26), None),  # an unknown layout
    ],
)
def test_rows_follow_the_names(rows, own_rows, expected):
    def layer(values):
        return torch.tensor(list(values), dtype=torch.float32)[:, None].expand(-1, 2).clone()

    state = {"head.weight": layer(rows), "body.weight": layer([1, 2, 3])}
    own = {"head.weight": layer(own_rows), "body.weight": layer([4, 5, 6])}
    match_rows(state, own, [r"head\."], (THEIRS, OURS))
    assert torch.equal(state["body.weight"], layer([1, 2, 3]))
    if expected is None:
        assert "head.weight" not in state
    else:
        assert torch.equal(state["head.weight"], layer(expected))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(12, [-0, -1, -2, -3, 8, 9, 10, 11, 0, 1, 2, 3]), (4, [0, 1, 2, 3])],  # per class; for all at once
)
def test_boxes(rows, expected):
    state = {"head.fc_reg.bias": torch.arange(rows)}
    match_rows(state, {"head.fc_reg.bias": -torch.arange(rows)}, [r"head\."], (THEIRS, OURS))
    assert state["head.fc_reg.bias"].tolist() == expected


def test_boxes_for_all_classes_at_once_do_not_depend_on_their_number():
    state, own = {"head.fc_reg.bias": torch.arange(4)}, {"head.fc_reg.bias": torch.zeros(4)}
    match_rows(state, own, [r"head\."], (("object",), ("cat", "dog")))
    assert state["head.fc_reg.bias"].tolist() == [0, 1, 2, 3]


def test_another_number_of_classes():
    state, own = {"head.bias": torch.tensor([1.0, 2, 3])}, {"head.bias": torch.tensor([8.0, 9])}
    match_rows(state, own, [r"head\."], (THEIRS, ("dog", "fish")))
    assert state["head.bias"].tolist() == [2, 9]


def test_message_about_matched_classes():
    said = matching_classes("a.pth", THEIRS, OURS, complete=False)
    assert said == "class layers of a.pth, matched by name: bird, cat; new, and left random: fish"
    with pytest.raises(ValueError, match="got one of cat, dog, bird, which does not have fish"):
        matching_classes("a.pth", THEIRS, OURS, complete=True)


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({"dataset_meta": {"classes": ["a", "b"]}}, ("a", "b")),
        ({"CLASSES": ("a",)}, ("a",)),
        ({"dataset_meta": None}, None),
        (None, None),
    ],
)
def test_classes_that_a_checkpoint_names(meta, names):
    assert named_classes({"meta": meta}) == names
