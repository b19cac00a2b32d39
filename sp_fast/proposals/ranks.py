"""The processes that torchrun starts for one command."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


class Ranks:
    """The processes that torchrun has started for one command; they coordinate through its key-value store.

    Attributes:
        rank, world: index of this process, from 0, and number of processes.
        local_rank: index of this process on its machine, from 0.

    Raises:
        ValueError: the environment has RANK and WORLD_SIZE, but no MASTER_ADDR or MASTER_PORT.
    """

    def __init__(self) -> None:
        from torch.distributed import rendezvous

        self._store, self.rank, self.world = next(rendezvous("env://"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))

    @staticmethod
    def started() -> bool:
        """Whether this process is one of several that torchrun has started."""
        return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1

    def add(self, name: str, number: int) -> int:
        """Add to a number that all processes share and that starts at 0; return the sum."""
        return self._store.add(name, number)

    def meet(self, name: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until all processes have called this. Without time limit: torchrun ends all if one fails."""
        here = self.add(name, 1)
        while here < self.world:
            time.sleep(0.2)
            meanwhile()
            here = self.add(name, 0)


class RankProgress:
    """Progress of all processes together, shown by the first; called with (done, total).

    The first call waits for all processes, so that none merges before another has started.
    """

    def __init__(self, ranks: Ranks, show: Callable[[int, int], None]) -> None:
        self._ranks, self._show = ranks, show if ranks.rank == 0 else None
        self._done, self._total = 0, 0

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of this process's `total` images are done."""
        self._ranks.add("done", done - self._done)
        self._done = done
        if not self._total:
            self._ranks.add("total", total)
            self._ranks.meet("started")
            self._total = self._ranks.add("total", 0)
        self._show_all()

    def finish(self, merged: bool) -> None:
        """Wait until all processes are done.

        Raises:
            OSError: no process has merged the shards (`merged`).
        """
        self._ranks.add("merged", int(merged))
        self._ranks.meet("finished", self._show_all)
        self._show_all()
        if not self._ranks.add("merged", 0):
            raise OSError(
                "all shards are done, but none has seen all of the others' files; run the same command again"
            )

    def _show_all(self) -> None:
        if self._show is not None:
            self._show(self._ranks.add("done", 0), self._total)
