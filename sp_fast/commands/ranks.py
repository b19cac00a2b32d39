"""The processes that torchrun starts for one command."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


class Ranks:
    """The processes that torchrun has started for one command; they meet in its key-value store.

    Attributes:
        rank, world: number of this process, from 0, and of all.
        local_rank: number of this process on its machine, from 0.

    Raises:
        ValueError: the environment has RANK and WORLD_SIZE, but no address to meet at.
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
        """Add to a number that all processes share; returns the sum, from 0."""
        return self._store.add(name, number)

    def meet(self, name: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until all processes are here. There is no time limit: torchrun ends all if one fails."""
        here = self.add(name, 1)
        while here < self.world:
            time.sleep(0.2)
            meanwhile()
            here = self.add(name, 0)


class RankProgress:
    """Progress of all processes together, shown by the first of them; to call with (done, total).

    The first call waits for all processes, so that none merges before another has started.
    """

    def __init__(self, ranks: Ranks, show: Callable[[int, int], None]) -> None:
        self._ranks, self._show = ranks, show if ranks.rank == 0 else None
        self._done, self._total = 0, 0

    def __call__(self, done: int, total: int) -> None:
        """Tells that `done` of this process's `total` are done."""
        self._ranks.add("done", done - self._done)
        self._done = done
        if not self._total:
            self._ranks.add("total", total)
            self._ranks.meet("started")
            self._total = self._ranks.add("total", 0)
        self._show_all()

    def finish(self, merged: bool) -> None:
        """Waits until all processes are done.

        Raises:
            OSError: none of them has `merged`.
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
