"""Times on the device, and what the device can do at most.

A time "in a graph" is that of one call among many captured in one CUDA graph, which take turns on several
sets of inputs, so that a call does not find its inputs in the L2 cache unless all sets fit there together.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu_report.costs import Ceilings

Call = Callable[[], Any]
REPLAYS = 25
# What one replay should last at least, so that the events' resolution does not matter.
REPLAY_SECONDS = 1e-3
MOST_CALLS = 200


def spread(samples: list[float]) -> dict[str, float]:
    """Median, and the middle half, in microseconds."""
    low, middle, high = statistics.quantiles(samples, n=4)
    return {"us": middle * 1e6, "low_us": low * 1e6, "high_us": high * 1e6}


def _elapsed(work: Call) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def in_graph(calls: list[Call]) -> dict[str, float]:
    """Device time of one call in a replayed graph, the calls in turn."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls * (1 + 3 // len(calls)):
            call()
        stream.synchronize()
        once = min(_elapsed(calls[0]) for _ in range(3))
    rounds = min(max(1, round(REPLAY_SECONDS / max(once, 1e-6) / len(calls))), MOST_CALLS // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            # A result is freed at once: the next call writes where it was, as in a training loop.
            for call in calls:
                call()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    number = rounds * len(calls)
    samples = [_elapsed(graph.replay) / number for _ in range(REPLAYS)]
    del graph
    return {**spread(samples), "calls_a_graph": number, "input_sets": len(calls)}


def eager(calls: list[Call], seconds: float = 0.3) -> dict[str, float]:
    """Time of one call as Python makes it, launches and waiting included, the calls in turn."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    samples: list[float] = []
    while len(samples) < 3 or (len(samples) < 50 and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) / len(calls))
    return {**spread(samples), "samples": len(samples)}


def on_cpu(calls: list[Call]) -> dict[str, float]:
    """Stands in for both where there is no GPU, to try the scripts; its time means nothing."""
    samples = []
    for call in [calls[0]] * 2:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return spread(samples)


def kernels_of(call: Call, calls: int = 10) -> list[dict[str, Any]]:
    """The kernels that a call launches: name, launches a call, microseconds a call; the longest first."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
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


def copy_rate(gigabytes: float = 4) -> float:
    """Bytes/s of a copy on the device, read and written."""
    elements = int(gigabytes * 1e9 / 4)
    source = torch.rand(elements, device="cuda")
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / (in_graph([lambda: target.copy_(source)])["us"] / 1e6)
    torch.testing.assert_close(target[-1], source[-1])
    return rate


def product_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """Operations/s of a square matrix product of random numbers; fp32 as TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * size**3 / (in_graph([lambda: torch.mm(a, b, out=out)])["us"] / 1e6)
    finally:
        torch.set_float32_matmul_precision(before)


def launch_seconds() -> float:
    """Seconds from one tiny kernel to the next in a graph."""
    x = torch.zeros(32, device="cuda")
    return in_graph([lambda: x.add_(1)])["us"] / 1e6


def popcount_rate() -> float:
    """Bit counts of 32-bit words a second."""
    from gpu_report.popcount import count_bits, make_words

    out = make_words()
    number = count_bits(out)
    rate = number / (in_graph([lambda: count_bits(out)])["us"] / 1e6)
    assert out.any()
    return rate


def ceilings() -> Ceilings:
    """All of them, measured now."""
    rates = {
        "bf16": product_rate(torch.bfloat16),
        "tf32": product_rate(torch.float32),
        "popcount": popcount_rate(),
    }
    torch.cuda.empty_cache()
    measured = Ceilings(copy_rate(), rates, launch_seconds())
    torch.cuda.empty_cache()
    return measured


def as_leaf(x: Tensor) -> Tensor:
    """The same memory as a leaf of a new autograd graph."""
    return x.detach().requires_grad_()
