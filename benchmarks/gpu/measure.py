"""Times on the device, and the device's ceilings.

A time "in a graph" is that of one of many calls captured in one CUDA graph. The calls rotate over several
sets of inputs, so that a call finds its inputs in the L2 cache only if all sets fit there together.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.costs import Ceilings

Call = Callable[[], Any]
REPLAYS = 25
# Shortest time of a replay, so that the resolution of the events is negligible.
REPLAY_SECONDS = 1e-3
MOST_CALLS = 200


def spread(samples: list[float]) -> dict[str, float]:
    """Median and quartiles, in microseconds."""
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
    """Device time of one call in a replayed graph that rotates over the calls."""
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
        # Results are freed at once, so the next call reuses their memory, as in a training loop.
        for call in calls * rounds:
            call()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    number = rounds * len(calls)
    samples = [_elapsed(graph.replay) / number for _ in range(REPLAYS)]
    return {**spread(samples), "calls_per_graph": number, "input_sets": len(calls)}


def eager(calls: list[Call], seconds: float = 0.3) -> dict[str, float]:
    """Time of one call from Python, including launches and synchronisation, rotating over the calls."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for call in calls:
        call()
    wait()
    begin = time.perf_counter()
    samples: list[float] = []
    while len(samples) < 3 or (len(samples) < 50 and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        for call in calls:
            call()
        wait()
        samples.append((time.perf_counter() - start) / len(calls))
    return {**spread(samples), "samples": len(samples)}


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
