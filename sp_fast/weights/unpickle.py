"""Reading weights files of unknown origin without running code in them.

A pickle is a program: loading one with `weights_only=False` runs it. Published weights are pickles that
often hold more than tensors (`argparse.Namespace`, configurations, log buffers), which `weights_only=True`
refuses. `load_foreign` builds the tensors and plain containers of such a file, and an `Inert` in place of
everything else.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch


class Inert:
    """Placeholder for an object that is neither a tensor nor a plain container; it does nothing.

    origin: "module.name" as given in the file; args: arguments of the constructor; state: attributes as
    stored; items: items (list, set), or pairs of key and value (dict).
    """

    origin = "?"

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, item: Any) -> None:
        """Keep an item of a list or set."""
        self.items.append(item)

    add = append

    def extend(self, items: list[Any]) -> None:
        """Keep items of a list."""
        self.items.extend(items)

    def __repr__(self) -> str:
        return f"Inert({self.origin})"


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    # Hooks and requires_grad, which may follow, do not matter for weights.
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def _rebuild_parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    return data


def _numpy_dtype(name: str, *_: Any) -> np.dtype:
    if not (isinstance(name, str) and re.fullmatch(r"[<>|=]?([biufc]\d{1,2}|[SU]\d+|\?)", name)):
        raise pickle.UnpicklingError(f"numpy dtype {name!r} is neither of numbers nor of strings")
    # A copy, because the file sets its byte order.
    return np.dtype(name, copy=True)


def _numpy_scalar(dtype: np.dtype, data: bytes) -> Any:
    if not isinstance(dtype, np.dtype):
        raise pickle.UnpicklingError(f"numpy scalar of {dtype!r}")
    return np.frombuffer(data, dtype, count=1)[0]


def _empty_array(*_: Any) -> np.ndarray:
    return np.empty(0)


def _encode(text: str, encoding: str = "latin1", *_: Any) -> bytes:
    return text.encode(encoding)


def _plain_dict(*args: Any) -> dict:
    """A dict in place of defaultdict(factory, ...) and Counter(mapping)."""
    return next((dict(arg) for arg in args if isinstance(arg, dict)), {})


_CALLABLES: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": _plain_dict,
    "collections.Counter": _plain_dict,
    "numpy.dtype": _numpy_dtype,
    "_codecs.encode": _encode,
} | {f"builtins.{kind.__name__}": kind for kind in (dict, list, tuple, set, frozenset, complex, bytearray)}
for _numpy_module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _CALLABLES[f"{_numpy_module}._reconstruct"] = _empty_array
    _CALLABLES[f"{_numpy_module}.scalar"] = _numpy_scalar

_BOUNDED_CALLABLES = frozenset(_CALLABLES.values())


# The unpickler in Python: the one in C cannot restrict BUILD, which may set any attribute of any object.
_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _InertUnpickler(_PythonUnpickler):
    """An unpickler that calls only `_CALLABLES`, and sets state only on objects that it has made."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(_PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        origin = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if origin in _CALLABLES:
            return _CALLABLES[origin]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type("Inert", (Inert,), {"origin": origin})

    def _call(self, function: Any, args: tuple) -> Any:
        if isinstance(function, type) and issubclass(function, Inert):
            return function(*args)
        if isinstance(function, Inert):
            return Inert(function, *args)
        if function in _BOUNDED_CALLABLES:
            return function(*args)
        raise pickle.UnpicklingError(f"calls {function!r}")

    def _instantiate(self, function: Any, args: tuple) -> None:
        self.append(self._call(function, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        kwargs, args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.append(self._call(cls, (*args, kwargs) if kwargs else args))

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif type(target) is OrderedDict and type(state) is dict:
            target.__dict__.update(state)  # a state dict's _metadata
        elif type(target) is np.ndarray:
            _set_array(target, state)
        elif isinstance(target, np.dtype):
            _set_byte_order(target, state)
        else:
            raise pickle.UnpicklingError(f"sets the state of {type(target).__name__}")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build


def _set_array(array: Any, state: Any) -> None:
    _version, shape, dtype, fortran, data = state
    if not isinstance(dtype, np.dtype) or len(data) != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise pickle.UnpicklingError(f"a numpy array of shape {shape} and {dtype!r} from {len(data)} bytes")
    array.__setstate__((1, tuple(shape), dtype, bool(fortran), bytes(data)))


def _set_byte_order(dtype: Any, state: Any) -> None:
    version, order, subdtype, names, fields, *sizes = state
    if order not in ("<", ">", "|", "=") or any(part is not None for part in (subdtype, names, fields)):
        raise pickle.UnpicklingError(f"a structured numpy dtype {state!r}")
    dtype.__setstate__((version, order, None, None, None, *sizes))


class _InertPickle:
    """A `pickle_module` for `torch.load`."""

    Unpickler = _InertUnpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _InertUnpickler(file, **options).load()


def load_foreign(path: str | os.PathLike[str]) -> Any:
    """Load a weights file on the CPU: tensors and plain containers, `Inert` in place of everything else.

    Reads PyTorch's zip and legacy formats and safetensors. Tries `torch.load(weights_only=True)` first (which
    also builds the classes on PyTorch's allow-list), then an unpickler that calls only the constructors of
    tensors, numpy arrays and containers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weights file; the message says what was expected and what the file is.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected a weights file, got {str(path)!r}, which does not exist")
    refusal = _refusal(path)
    if refusal is not None:
        raise _not_weights(path, refusal)
    if _is_safetensors(path):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise _not_weights(path, f"a safetensors file that is damaged ({error})") from error
    failure: Exception | None = None
    for inert in (None, _InertPickle):
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=not inert, pickle_module=inert)
        except Exception as error:  # damaged files raise almost anything; the second attempt finds the reason
            if _of_the_disk(error):
                raise
            failure = error
            continue
        if isinstance(loaded, Inert):
            raise _not_weights(path, f"an object of {loaded.origin}: save its state_dict() instead")
        return loaded
    reason = f"{_looks_like(path)} ({type(failure).__name__}: {failure})"
    raise _not_weights(path, reason) from failure


def _of_the_disk(error: Exception) -> bool:
    """Whether the file could not be read at all; PyTorch raises EINVAL on files that are cut off."""
    return isinstance(error, OSError) and error.errno != errno.EINVAL


def _not_weights(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: expected weights saved by torch.save or safetensors, got {what}. "
        "Check that the file is the right one and was downloaded or copied whole."
    )


def _refusal(path: Path) -> str | None:
    """Description of a file of a kind that is never read; None for other files."""
    if path.is_dir():
        return "a folder"
    if path.stat().st_size == 0:
        return "an empty file"
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                damaged = archive.testzip()  # torch.load does not verify checksums
        except Exception as error:  # zipfile's are of many types, as are PyTorch's
            if _of_the_disk(error):
                raise
            return "a zip archive that is damaged"
        if damaged:
            return f"a damaged file: the checksum of {damaged} in it differs"
        if any(name.endswith("/constants.pkl") for name in names):
            return "a TorchScript archive, which holds code: save its state_dict() instead"
        if not any(name.endswith("data.pkl") for name in names):
            return "a zip archive without weights"
    elif tarfile.is_tarfile(path):
        return "a tar archive (or weights of PyTorch before 0.1.10: load and save them with a newer version)"
    return None


def _is_safetensors(path: Path) -> bool:
    """A safetensors file starts with the length of its JSON header, 8 bytes little-endian, and the header."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (
        start[8:] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27
    )


_SIGNATURES = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"GIF8": "a GIF image",
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to",
    b"PK\x03\x04": "a zip archive that is cut off or damaged",
    b"\x1f\x8b": "a gzip archive",
    b"\x80": "a pickle that is cut off, damaged, or not made by torch.save",
}


def _looks_like(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(256)
    for signature, name in _SIGNATURES.items():
        if start.startswith(signature):
            return name
    try:
        text = start.decode("utf-8").strip()
    except UnicodeDecodeError:
        return f"unknown bytes ({start[:8].hex(' ')} ...)"
    return f"text ({json.dumps(text[:40])} ...)" if text.isprintable() or "\n" in text else "unknown bytes"
