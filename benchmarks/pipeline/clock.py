"""CPU time of this process, all its threads together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def milliseconds(call: Callable[[], Any], repeats: int, *, warm: int = 1) -> float:
    """Median CPU time of a call, after `warm` calls that do not count."""
    for _ in range(warm):
        call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)
