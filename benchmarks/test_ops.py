"""Every op on the CPU against plain PyTorch: 2 images of 800 x 1333, fp32."""

import pytest

from benchmarks.cases import cases
from benchmarks.inputs import CPU

# Target speed-up over plain PyTorch.
TARGETS = {
    "saliency_few_fp32_nchw": 1.2,
    "mask_nms_few": 10,
    "parts_few": 10,
    "matrix_nms_few": 1,
    "roi_both_nchw": 10,
    "match_forward": 1,
    "match_both": 1,
    "attention_both": 5,
    "loss_forward": 1,
    "loss_both": 1,
}
TABLE = {case.key: case for case in cases(CPU, "cpu")}


@pytest.mark.benchmark(warmup=True, warmup_iterations=10, min_rounds=15, max_time=1.5)
@pytest.mark.parametrize("version", ["plain", "sp_fast"])
@pytest.mark.parametrize("key", TARGETS)
def test_op(benchmark, key, version):
    case = TABLE[key]
    benchmark.group = f"{case.title} (target {TARGETS[key]:g})"
    call, inputs = case.call(case.plain if version == "plain" else case.op), case.make(0)
    if key.startswith(("roi", "attention")):
        benchmark.pedantic(call, inputs, rounds=5, warmup_rounds=1)
    else:
        benchmark(call, *inputs)
