"""The compiled extension: its bindings, and the fallback without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sp_fast import ops
from sp_fast.ops import PackedMasks, extension
from tests.ops.op_cases import needs_extension

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@needs_extension
def test_bindings_equal_the_ops():
    from sp_fast import _C

    features = torch.randn(2, 4, 6, 7)
    saliency = ops.seed_saliency(features, [(3, 3), (1, 2)], similarity="cosine")
    assert torch.equal(_C.pool_seeds(features, [3, 3, 1, 2]), saliency.seeds)
    words, score = _C.seed_saliency(features, saliency.seeds, cosine=True)
    assert torch.equal(words, saliency.masks.words)
    assert torch.equal(score, saliency.score)
    assert torch.equal(_C.mask_nms(words, score), ops.mask_nms(saliency.masks, score))
    assert torch.equal(_C.matrix_nms(words, score), ops.matrix_nms(saliency.masks, score))
    parts, number = ops.connected_parts(saliency.masks)
    for got, expected in zip(_C.connected_parts(words, 6, 7), (parts.words, number), strict=True):
        assert torch.equal(got, expected)
    boxes = saliency.masks.boxes().float()
    pooled = ops.roi_average_pool(features, boxes)
    assert torch.equal(_C.roi_average_pool(features, boxes), pooled)
    kernels = torch.randn(5, 4, requires_grad=True)
    decorated, index = _C.match_prompts(kernels, pooled)
    assert torch.equal(index, ops.match_prompts(kernels, pooled)[1])
    loss = _C.kernel_supervision_loss(decorated[None], pooled, torch.zeros(1, 2, 11, dtype=torch.int64))
    loss.backward()
    assert kernels.grad.abs().sum() > 0


@needs_extension
def test_bindings_check_their_arguments():
    from sp_fast import _C

    with pytest.raises(ValueError, match="score: expected shape"):
        _C.mask_nms(torch.zeros(1, 2, 1, dtype=torch.int32), torch.zeros(1, 3))
    with pytest.raises(TypeError, match="words: expected dtype int32"):
        _C.matrix_nms(torch.zeros(1, 2, 1), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="boxes: expected shape"):
        _C.roi_average_pool(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 5))


@needs_extension
def test_build_info_has_the_versions_of_the_build():
    from sp_fast import _C

    info = _C.build_info()
    assert info["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert info["cpp_standard"] >= 201703
    if info["cuda"] is not None:
        assert info["cuda"]["aten_headers"]
        assert info["cuda"]["compiler"].split(".")[0] == torch.version.cuda.split(".")[0]
        assert info["cuda"]["architectures"]
        assert info["cuda"]["compiled_runtime"] // 1000 == info["cuda"]["loaded_runtime"] // 1000


# Hides the extension, as if it had never been built.
HIDE = "import sys; sys.modules['sp_fast._C'] = None; "
USE = """
import torch, warnings
from sp_fast import ops
features = torch.arange(24.0).view(1, 1, 4, 6).requires_grad_()
found = ops.seed_saliency(features, (2, 2))
assert ops.mask_nms(found.masks, found.score).tolist()[0][0] == 0
ops.roi_average_pool(features, found.masks.boxes().float()).sum().backward()
assert features.grad.sum() == 4
try:
    ops.roi_average_pool(features, torch.zeros(1, 2, 4), torch.tensor([3]))
except ValueError as error:
    assert "count" in str(error)
else:
    raise AssertionError("no error")
import sys
assert not {"mmdet", "mmcv", "mmengine", "torchvision"} & set(sys.modules)
"""


def test_without_the_extension_the_reference_runs_with_one_warning_and_only_needs_torch():
    result = run(HIDE + USE, SP_FAST_DISABLE_EXTENSION="")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("RuntimeWarning: sp_fast._C is not usable") == 1


def test_extension_can_be_switched_off_silently():
    code = USE + "import sys; assert 'sp_fast._C' not in sys.modules"
    result = run(code, SP_FAST_DISABLE_EXTENSION="1")
    assert result.returncode == 0, result.stderr
    assert "RuntimeWarning" not in result.stderr


@needs_extension
def test_compiles_without_graph_breaks():
    def step(features, kernels):
        found = ops.seed_saliency(features, (3, 3))
        kept = ops.mask_nms(found.masks, found.score, max_masks=4)
        boxes = PackedMasks(found.masks.words, 6, 7).boxes().float()
        pooled = ops.roi_average_pool(features, boxes)
        decorated, index = ops.match_prompts(kernels, pooled)
        loss = ops.kernel_supervision_loss(decorated[None], pooled, index[None, :, :9])
        return loss, kept, found.score

    features = torch.randn(2, 4, 6, 7, requires_grad=True)
    kernels = torch.randn(12, 4, requires_grad=True)
    expected = step(features, kernels)
    got = torch.compile(step, backend="aot_eager", fullgraph=True)(features, kernels)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    mine, theirs = (torch.autograd.grad(r[0], (features, kernels)) for r in (got, expected))
    torch.testing.assert_close(mine, theirs)


def test_an_extension_without_cuda_warns_once_on_a_gpu():
    extension.warn_once.cache_clear()
    op = extension._without_cuda(lambda x: x + 1)
    with pytest.warns(RuntimeWarning, match="built without CUDA.*SP_FAST_CUDA=1") as given:
        assert [op(1), op(2)] == [2, 3]
    assert len(given) == 1
