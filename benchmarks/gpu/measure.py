"""Times on the device, and the device's ceilings.

A time "in a graph" is that of one of many calls captured in one CUDA graph. The calls rotate over several
sets of inputs, so that a call finds its inputs in the L2 cache only if all sets fit there together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

from benchmarks.gpu.costs import Ceilings

Call = Callable[[], Any]
QUARTILES = (0.25, 0.5, 0.75)


def spread(quartiles: Any) -> dict[str, float]:
    """Median and quartiles in microseconds, from quartiles in seconds."""
    return dict(zip(("low_us", "us", "high_us"), (float(one) * 1e6 for one in quartiles), strict=True))


def usable() -> bool:
    """Whether the GPU still computes, which it does not after some errors."""
    try:
        return torch.ones(1, device="cuda").add_(1).item() == 2
    except RuntimeError:
        return False


def in_graph(calls: list[Call]) -> dict[str, float]:
    """Device time of one call in a replayed graph that rotates over the calls."""
    from triton.testing import do_bench_cudagraph

    torch.cuda.synchronize()  # do_bench_cudagraph does not wait for the inputs
    # Results are freed at once, so the next call reuses their memory, as in a training loop.
    milliseconds = do_bench_cudagraph(lambda: _each(calls), rep=2, quantiles=QUARTILES)
    return spread([one / 1e3 / len(calls) for one in milliseconds])


def eager(calls: list[Call], seconds: float) -> dict[str, float]:
    """Time of one call from Python, including launches, rotating over the calls for some seconds."""
    timer = Timer("each(calls)", globals={"each": _each, "calls": calls}, num_threads=torch.get_num_threads())
    timer.timeit(1)
    times = timer.blocked_autorange(min_run_time=seconds).times
    return spread(np.quantile(times, QUARTILES) / len(calls))


def _each(calls: list[Call]) -> None:
    for call in calls:
        call()


def kernels_of(call: Call, calls: int = 10) -> list[dict[str, Any]]:
    """Name, launches and microseconds per call of the kernels that a call launches, longest first."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    found = [
        {"kernel": e.key, "launches": e.count / calls, "us": e.self_device_time_total / calls}
        for e in record.key_averages()
        if e.self_device_time_total > 0
    ]
    if not found:
        raise RuntimeError("the profiler recorded no kernels")
    return sorted(found, key=lambda kernel: -kernel["us"])


def _seconds(call: Call) -> float:
    return in_graph([call])["us"] / 1e6


def product_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """Operations/s of a square matrix product of random numbers; fp32 uses TF32 (see bench.py)."""
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _seconds(lambda: torch.mm(a, b, out=out))


def popcount_rate(rounds: int = 256, words: int = 4096) -> float:
    """Bit counts of 32-bit words per second, which bound the overlaps of masks."""
    from benchmarks.gpu.popcount import count_bits

    programs = 16 * torch.cuda.get_device_properties().multi_processor_count
    out = torch.zeros(programs * words, dtype=torch.int32, device="cuda")
    return rounds * out.numel() / _seconds(lambda: count_bits[(programs,)](out, rounds, words, num_warps=8))


def ceilings(elements: int = 10**9) -> Ceilings:
    """Measure all ceilings; the copy reads and writes `elements` fp32 numbers."""
    tiny, source = torch.zeros(32, device="cuda"), torch.rand(elements, device="cuda")
    target = torch.empty_like(source)
    rates = {"bf16": product_rate(torch.bfloat16), "tf32": product_rate(torch.float32)}
    copy = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    return Ceilings(copy, {**rates, "popcount": popcount_rate()}, _seconds(lambda: tiny.add_(1)))
