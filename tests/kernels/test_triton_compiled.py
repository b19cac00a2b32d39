"""The Triton kernels of mask costs and losses, compiled ahead of time: no spills. Needs no GPU."""

import tempfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton.backends.nvidia")

from sp_fast.kernels import focal_loss, mask_sums

from tools import ptxas


def launches(dtype: torch.dtype) -> dict:
    """Launches for 12 images of 800 x 1333 with 100 kernels, 20 targets and 80 classes."""
    with torch.device("meta"):
        logits, masks = torch.empty(12, 100, 100, 168, dtype=dtype), torch.empty(12, 20, 200, 336)
        pairs, rows = torch.empty(240, 100, 168, dtype=dtype), torch.empty(240, dtype=torch.int64)
        grads = tuple(torch.empty(240) for _ in range(3))
        classes, labels = logits[:, :80], torch.empty(12, 200, 336, dtype=torch.int64)
        targets = masks.flatten(0, 1)
        return {
            "mask_overlaps": mask_sums.plan_overlaps(logits, masks)[0],
            "mask_pair_sums": mask_sums.plan_pairs(pairs, targets, rows)[0],
            "mask_pair_sums_backward": mask_sums.plan_pairs_backward(grads, pairs, targets, rows, pairs),
            "focal_loss": focal_loss.plan_forward(classes, labels, 0.25)[0],
            "focal_loss_backward": focal_loss.plan_backward(torch.empty(()), classes, labels, 0.25, classes),
        }


@pytest.mark.parametrize(("dtype", "architecture"), [(torch.float32, "80"), (torch.bfloat16, "90")], ids=str)
def test_no_kernel_spills(dtype, architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, launch in launches(dtype).items():
        binary = ptxas.compiled(launch, int(architecture))
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(binary.asm["cubin"])
            (kernel,) = ptxas.kernels_in(Path(file.name), architecture)
        assert kernel.stack == 0, name
