"""How much memory is free, and the error of what does not fit."""

from __future__ import annotations

import os
from pathlib import Path

import torch

SHARE = 0.5  # of the free memory may be taken


class CacheError(ValueError):
    """A cache that does not fit in memory, or that this config cannot have."""


def check_fits(what: str, need: int, device: torch.device, way_out: str) -> None:
    """Prints how much memory a cache takes.

    Raises:
        CacheError: that is more than half of what is free.
    """
    free = _free_memory(device)
    where = "memory" if device.type == "cpu" else f"memory of {device}"
    if need > SHARE * free:
        raise CacheError(
            f"--cache: {what} would take {_size(need)}, expected at most half of the {_size(free)} that are "
            f"free in the {where}; {way_out}"
        )
    print(f"{what}: {_size(need)} of the {_size(free)} free in the {where}", flush=True)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
