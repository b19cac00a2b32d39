"""A device on which each wait of the host is counted: GPU code can be checked where there is no GPU.

Tensors of the device `counted` hold their values in a CPU tensor, so results are exact, yet PyTorch treats
them as those of an accelerator: every operation and every copy comes through `_run`, which knows what makes
the host wait on CUDA. Not seen: waits inside CUDA libraries and allocators.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "counted"
aten = torch.ops.aten
# Their results' sizes or values have to be known on the host.
_WAITING = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique, aten._unique2),
    *(aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive, aten.bincount, aten.equal),
}
_COPIES = {aten.copy_, aten._to_copy, aten._copy_from, aten._copy_from_and_resize}
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_recorders: list[Counter[str]] = []
_waits: Counter[str] = Counter()
_pinned: list[Tensor] = []  # kept, so that no later tensor gets their memory


class CountedTensor(Tensor):
    """A tensor of the device; `inner` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> CountedTensor:
        """Wraps a CPU tensor."""
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation; see the module."""
        return _run(func, args, kwargs or {})


class _Event:
    """An event that has come about once the host has waited for the device after it was recorded."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._waits = -1

    def record(self, *_: Any) -> None:
        self._waits = _waits.total()

    def synchronize(self) -> None:
        if self._waits == _waits.total():
            _count("event")


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, *_: Any) -> None:
        torch.set_rng_state(state)


def register() -> torch.device:
    """Makes the device known to PyTorch, once in a process."""
    global _library
    if _library is None:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        _library = torch.library.Library("_", "IMPL")
        _library.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    return torch.device(NAME, 0)


_library: torch.library.Library | None = None


def move(model: torch.nn.Module) -> None:
    """Moves a model; its parameters stay the same objects, which an optimiser may hold."""
    device = register()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(device)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


class _Spelled(TorchFunctionMode):
    """Takes apart functions that PyTorch does not offer Python backends, into the steps that CUDA takes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _named(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is Tensor.new_tensor and isinstance(args[0], CountedTensor):
            kwargs = {"dtype": args[0].dtype, **kwargs, "device": None}
            return torch.tensor(*args[1:], **kwargs).to(args[0].device)
        if func is Tensor.tolist and isinstance(args[0], CountedTensor):
            return args[0].cpu().tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], CountedTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(torch.tensor(i) if isinstance(i, list) else i for i in index), *args[2:])
        if func is Tensor.pin_memory:
            _pinned.append(args[0].clone())
            return _pinned[-1]
        return func(*args, **kwargs)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts the waits within its block by operation and place in the code."""
    found: Counter[str] = Counter()
    _recorders.append(found)
    event, torch.Event = torch.Event, _Event  # type: ignore[misc]
    try:
        with _Spelled():
            yield found
    finally:
        torch.Event = event  # type: ignore[misc]
        _recorders[:] = [one for one in _recorders if one is not found]
        _pinned.clear()


def _named(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    reason = _recorders and _why_waiting(func, args, kwargs)
    if reason:
        _count(reason)
    target = kwargs.get("device")
    if func.overloadpacket is aten._to_copy and target is not None and torch.device(target).type == "cpu":
        return func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    results = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if func._schema.is_mutable and args and isinstance(args[0], Tensor) and isinstance(results, Tensor):
        first = _inner(args[0])
        if results is first:
            return args[0]
    return tree_map(lambda one: CountedTensor(one) if type(one) is Tensor else one, results)


def _count(reason: str) -> None:
    for one in (*_recorders, _waits):
        one[f"{reason} at {_place()}"] += 1


def _inner(value: Any) -> Any:
    if isinstance(value, CountedTensor):
        return value.inner
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value


def _why_waiting(func: Any, args: Any, kwargs: Any) -> str:
    packet = func.overloadpacket
    name = packet.__name__
    if packet in _WAITING:
        return name
    if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
        return name
    if packet in _INDEXING:
        return _why_indexing(name, args)
    if packet in _COPIES:
        return _why_copying(packet, args, kwargs)
    return ""


def _why_indexing(name: str, args: Any) -> str:
    indices = [one for one in args[1] if one is not None]
    if any(not isinstance(one, CountedTensor) for one in indices):
        return f"{name} by a tensor on the host"
    boolean = [one for one in indices if one.dtype in (torch.bool, torch.uint8)]
    # PyTorch turns the assignment of one value into masked_fill, which does not wait.
    filled = name != "index" and len(indices) == 1 and args[2].numel() == 1
    return f"{name} by a boolean tensor" if boolean and not filled else ""


def _why_copying(packet: Any, args: Any, kwargs: Any) -> str:
    if packet is aten._to_copy:
        source, there = args[0], _named(kwargs.get("device") or args[0].device)
    elif packet is aten.copy_:
        source, there = args[1], isinstance(args[0], CountedTensor)
    else:
        source, there = args[0], isinstance(args[1], CountedTensor)
    here = isinstance(source, CountedTensor)
    if here == there or source.numel() == 0:
        return ""
    at_once = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    if here:  # PyTorch's own result of such a copy is in pinned memory
        return "" if at_once and packet is aten._to_copy else "copy to the host"
    pinned = source.untyped_storage().data_ptr() in {one.untyped_storage().data_ptr() for one in _pinned}
    return "" if at_once and pinned else "copy from the host"


def _place() -> str:
    """The innermost line of this package and that of the caller of PyTorch."""
    frames = [
        one
        for one in traceback.extract_stack(sys._getframe(1))
        if "/torch/" not in one.filename and "counted_device" not in one.filename
    ]
    if not frames:
        return "autograd"
    last = frames[-1]
    own = next((one for one in reversed(frames) if "sp_fast/" in one.filename and one is not last), None)
    names = [f"{'/'.join(one.filename.split('/')[-3:])}:{one.lineno}" for one in (last, own) if one]
    return " from ".join(names)
