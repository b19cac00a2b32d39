"""Dispatch to the Triton kernels."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sp_fast import ops
from sp_fast.ops import deformable_attention, kernel_supervision_loss, match_prompts
from sp_fast.ops.extension import COMPILED, warn_once
from sp_fast.ops.triton_kernels import _kernels_for

pytestmark = pytest.mark.skipif(not COMPILED, reason="sp_fast._C is not built")


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_triton_is_imported_only_when_needed():
    result = run("import sys, sp_fast.ops; assert not {'triton', 'sp_fast.kernels'} & set(sys.modules)")
    assert result.returncode == 0, result.stderr


WITHOUT = """
import sys
sys.modules["triton"] = None
import torch
from sp_fast.ops import deformable_reference, focal_loss, mask_sums, reference
from sp_fast.ops import mask_sums_reference as definition
from sp_fast.ops.deformable_attention import _backward_on_gpu as attend_backward, _on_gpu as attend
from sp_fast.ops.kernel_supervision_loss import _backward_on_gpu as loss_backward, _on_gpu as loss_of
from sp_fast.ops.match_prompts import _backward_on_gpu as match_backward, _on_gpu as match
k, p = torch.randn(5, 4), torch.randn(2, 3, 4)
decorated, index = match(k, p, None)
assert torch.equal(index, reference.match_prompts(k, p)[1])
grad = match_backward(torch.ones(2, 5, 4), index, 3, True, True)
assert grad[0].shape == (5, 4) and grad[1].shape == (2, 3, 4)
stages = decorated[None]
matched = torch.zeros(1, 2, 3, dtype=torch.int64)
loss = loss_of(stages, p, matched, True)
assert torch.equal(loss, reference.kernel_supervision_loss(stages, p, matched))
grads = loss_backward(torch.ones(()), stages, p, matched, True)
assert [g.shape for g in grads] == [stages.shape, p.shape]
value, sizes, weights = torch.randn(2, 6, 1, 4), torch.tensor([[2, 3]]), torch.rand(2, 5, 1, 1, 2)
inputs = value, sizes, torch.rand(2, 5, 1, 1, 2, 2), weights
assert torch.equal(attend(*inputs), deformable_reference.deformable_attention(*inputs))
grads = attend_backward(torch.ones(2, 5, 4), *inputs)
assert [g.shape for g in grads] == [value.shape, inputs[2].shape, weights.shape]
maps, masks, row, ones = torch.randn(2, 3, 4), torch.rand(2, 6, 8), torch.tensor([1, 0]), torch.ones(2)
labels = torch.arange(48).view(1, 6, 8) % 4
for got, expected in (
    (mask_sums._overlaps_on_gpu(maps[None], masks[None]), definition.mask_overlaps(maps[None], masks[None])),
    (mask_sums._pairs_on_gpu(maps, masks, row), definition.mask_pair_sums(maps, masks, row)),
):
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
loss = focal_loss._on_gpu(maps[None], labels, 0.25)
assert torch.equal(loss, definition.upsampled_focal_loss(maps[None], labels, 0.25))
with torch._C._AutoDispatchBelowAutograd():  # as the dispatcher calls them
    assert mask_sums._pairs_backward_on_gpu(ones, ones, ones, maps, masks, row).shape == maps.shape
    assert focal_loss._backward_on_gpu(loss, maps[None], labels, 0.25).shape == (1, *maps.shape)
"""


def test_without_triton_the_reference_runs_with_one_warning():
    result = run(WITHOUT)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("RuntimeWarning: sp_fast.kernels is not usable") == 1


def test_an_old_gpu_gets_the_reference_with_one_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    warn_once.cache_clear()
    _kernels_for.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"Tesla T4 is below compute capability 8\.0") as given:
        assert [_kernels_for(torch.device("cuda", index)) for index in (0, 1, 0)] == [None] * 3
    assert len(given) == 1
    _kernels_for.cache_clear()


def test_mask_losses_on_a_gpu():
    """Use fake tensors, as below."""
    with FakeTensorMode():
        logits = torch.empty(2, 7, 4, 5, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        masks = torch.empty(2, 3, 8, 10, device="cuda", dtype=torch.uint8)
        row = torch.empty(14, device="cuda", dtype=torch.int64)
        costs = ops.mask_overlaps(logits, masks)
        assert [tuple(x.shape) for x in costs] == [(2, 7, 3), (2, 7), (2, 7), (2, 3), (2, 3)]
        sums = ops.mask_pair_sums(logits.flatten(0, 1), masks.flatten(0, 1), row)
        assert [tuple(x.shape) for x in sums] == [(14,)] * 4
        assert "PairSums" in sums.overlap.grad_fn.name()
        assert not sums.target_squares.requires_grad
        labels = torch.empty(2, 8, 10, device="cuda", dtype=torch.int64)
        loss = ops.upsampled_focal_loss(logits, labels)
        assert "FocalLoss" in loss.grad_fn.name()
        assert all(x.is_cuda and x.dtype == torch.float32 for x in (*costs, *sums, loss))


@pytest.mark.parametrize("shared", [True, False])
def test_autograd_and_shapes_on_a_gpu(shared):
    """Use fake tensors, which need no GPU; PyTorch cannot run a backward pass on these."""
    with FakeTensorMode():
        shape = (7, 16) if shared else (2, 7, 16)
        kernels = torch.empty(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        prompts = torch.empty(2, 5, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        index = torch.empty(3, 2, 5, device="cuda", dtype=torch.int64)
        decorated, chosen = match_prompts(kernels, prompts)
        assert "MatchPrompts" in decorated.grad_fn.name()
        assert not chosen.requires_grad
        stages = decorated.expand(3, -1, -1, -1)
        loss = kernel_supervision_loss(stages, prompts, index)
        assert "KernelSupervisionLoss" in loss.grad_fn.name()
        assert loss.dtype == torch.float32
        of_kernels, of_prompts = torch.ops.sp_fast.match_prompts_backward(decorated, chosen, 5, shared, True)
        assert of_kernels.shape == (kernels.shape if shared else (0,))
        assert of_prompts.shape == prompts.shape
        assert of_prompts.grad_fn is not None  # linear, so differentiable again
        grads = torch.ops.sp_fast.kernel_supervision_loss_backward(loss, stages, prompts, index, True)
        assert [g.shape for g in grads] == [stages.shape, prompts.shape]
        assert all(x.is_cuda for x in (decorated, chosen, loss, of_prompts, *grads))


def test_deformable_attention_on_a_gpu():
    with FakeTensorMode():
        value = torch.empty(2, 6, 4, 8, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        sizes = torch.empty(1, 2, device="cuda", dtype=torch.int64)
        locations = torch.empty(2, 5, 4, 1, 3, 2, device="cuda", requires_grad=True)
        weights = torch.empty(2, 5, 4, 1, 3, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        result = deformable_attention(value, sizes, locations, weights)
        assert "DeformableAttention" in result.grad_fn.name()
        assert (result.shape, result.dtype) == ((2, 5, 32), torch.bfloat16)
        inputs = value, sizes, locations, weights.float()
        grads = torch.ops.sp_fast.deformable_attention_backward(result, *inputs)
        assert [(g.shape, g.dtype) for g in grads] == [(x.shape, x.dtype) for x in (value, *inputs[2:])]
        assert all(x.is_cuda for x in (result, *grads))
