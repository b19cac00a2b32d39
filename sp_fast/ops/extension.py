"""Loads the compiled ops, and says once when there are none."""

from __future__ import annotations

import importlib
import os
import warnings


def _load() -> bool:
    if os.environ.get("SP_FAST_DISABLE_EXTENSION", "0") not in ("", "0"):
        return False
    try:
        importlib.import_module("sp_fast._C")
    except ImportError as error:
        warnings.warn(
            f"sp_fast._C is not usable ({error}); the ops run in plain PyTorch, slower. "
            "Build it with: pip install --no-build-isolation -e .",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


# Whether the ops of torch.ops.sp_fast exist. SP_FAST_DISABLE_EXTENSION=1 leaves them out, silently.
COMPILED = _load()
