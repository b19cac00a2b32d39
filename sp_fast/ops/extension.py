"""Loads the compiled ops, warns once if there are none, and registers their fake kernels and fallbacks."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch


def _load() -> bool:
    if os.environ.get("SP_FAST_DISABLE_EXTENSION", "0") not in ("", "0"):
        return False
    try:
        importlib.import_module("sp_fast._C")
    except ImportError as error:
        warnings.warn(
            f"sp_fast._C is not usable ({error}); the ops run in plain PyTorch, which is slower. "
            "To build it, or to see why it does not build, reinstall sp_fast from its source with: "
            "SP_FAST_EXTENSION=1 pip install --no-build-isolation --no-deps .",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


# Whether torch.ops.sp_fast has the compiled ops. SP_FAST_DISABLE_EXTENSION=1 disables them without a warning.
COMPILED = _load()

_library = torch.library.Library("sp_fast", "IMPL")


@functools.cache
def warn_once(message: str) -> None:
    """Warn (RuntimeWarning) once per message."""
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def _without_cuda(reference: Callable) -> Callable:
    def on_gpu(*args: Any) -> Any:
        warn_once(
            "sp_fast._C was built without CUDA; on the GPU its ops run in plain PyTorch, which is slower. "
            "Install a CUDA toolkit of PyTorch's CUDA version, then reinstall sp_fast from its source with: "
            "SP_FAST_CUDA=1 pip install --no-build-isolation --no-deps ."
        )
        return reference(*args)

    return on_gpu


def register(name: str, fake: Callable, reference: Callable, on_gpu: Callable | None = None) -> Callable:
    """Register the fake kernel and the fallbacks of an op, and return the function that runs the op.

    Args:
        name: name of the op in `torch.ops.sp_fast`. All functions take the arguments of its schema.
        fake: returns empty results of the right shape and dtype.
        reference: the op in plain PyTorch; also used on GPUs if the extension was built without CUDA.
        on_gpu: the op on GPUs, where it has no kernel in CUDA.
    """
    if not COMPILED:
        return reference
    qualified = f"sp_fast::{name}"
    torch.library.register_fake(qualified, fake)
    if not torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CUDA"):
        _library.impl(name, on_gpu or _without_cuda(reference), "CUDA")
    return getattr(torch.ops.sp_fast, name)
