"""What a pre-training exports, folded in another way."""

import pytest
import torch

from sp_fast.experiments.folds import with_fold
from sp_fast.files import write_tensors

pytest.importorskip("mmdet")

KERNELS, OTHER = "rpn_head.init_kernels.weight", "neck.weight"


@pytest.fixture
def trained(tmp_path):
    """A folder with the files of a pre-training of two kernels; the prompts that they received; K^0."""
    kernels, received = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.5, 0.0], [1.5, -1.0]])
    plain = {KERNELS: kernels, OTHER: torch.ones(3)}
    folder = tmp_path / "trained"
    folder.mkdir()
    write_tensors(
        {"state_dict": {f"detector.{name}": one for name, one in plain.items()}}, folder / "latest.pth"
    )
    exported = {**plain, KERNELS: kernels + received}
    write_tensors({"state_dict": exported, "meta": {"iter": 7}}, folder / "pretrained.pth")
    return folder


@pytest.mark.parametrize(
    ("fold", "expected"), [("none", [[1.0, 2.0], [3.0, 4.0]]), ("mean", [[2.0, 1.5], [4.0, 3.5]])]
)
def test_only_the_kernels_differ(trained, tmp_path, fold, expected):
    assert with_fold(tmp_path, trained, fold=fold) == {}
    found = torch.load(tmp_path / "pretrained.pth", weights_only=True)
    assert found["state_dict"][KERNELS].tolist() == expected
    assert found["state_dict"][OTHER].tolist() == [1.0] * 3
    assert found["meta"] == {"iter": 7}


def test_what_cannot_be_folded_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="fold: expected one of none, mean, got 'kernel'"):
        with_fold(tmp_path, trained, fold="kernel")
    state = torch.load(trained / "latest.pth", weights_only=True)["state_dict"]
    unfolded = {"state_dict": {name.removeprefix("detector."): one for name, one in state.items()}}
    write_tensors(unfolded, trained / "pretrained.pth")
    with pytest.raises(ValueError, match=r"expected a pre-training with prompts and prompts\.fold"):
        with_fold(tmp_path, trained, fold="none")
    assert not (tmp_path / "pretrained.pth").exists()
