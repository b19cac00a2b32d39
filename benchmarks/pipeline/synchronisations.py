"""Counts what would make the host wait for a GPU, on the CPU."""

from __future__ import annotations

import collections
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {
    "_local_scalar_dense",  # item, bool, float, int
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by booleans: a nonzero each
_COPIES = {Tensor.cpu: "cpu", Tensor.tolist: "tolist"}


class _Dispatched(TorchDispatchMode):
    def __init__(self, found: collections.Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.overloadpacket.__name__
        if name in _WAITING:
            self.found[name] += 1
        elif name in _INDEXING:
            self.found["index by booleans"] += sum(
                one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
            )
        return op(*args, **(kwargs or {}))


class Synchronisations(TorchFunctionMode):
    """Within its block, counts by name in `found`.

    On the CPU a tensor does not show whether it would lie on a GPU, so reads of tensors that stay on the host
    are counted too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()
        self._dispatched = _Dispatched(self.found)

    def __enter__(self) -> Synchronisations:
        self._dispatched.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._dispatched.__exit__(*error)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _COPIES:
            self.found[_COPIES[function]] += 1
        return function(*args, **(kwargs or {}))
