"""Replacements of mmcv's compiled ops, from torchvision and PyTorch, for installations without them.

mmdet 3.3.0 needs mmcv < 2.2.0, which has no wheels for current PyTorch. `mmcv-lite` has the Python part of
mmcv 2.1.0 but lacks `mmcv._ext`, the compiled module that its ops call. After `install()`, importing it gives
mmcv's compiled module if there is one, and otherwise `sp_fast.mmcv_bridge.ops`.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["install"]

_EXTENSION = "mmcv._ext"


class _BridgeLoader(importlib.abc.Loader):
    """Fills the module `mmcv._ext` with the bridge's ops."""

    def exec_module(self, module: ModuleType) -> None:
        from sp_fast.mmcv_bridge import deformable, ops

        for name in ops.__all__:
            setattr(module, name, getattr(ops, name))
        # Module-level __getattr__ (PEP 562): mmcv asserts at import that every op it may call exists.
        module.__getattr__ = ops.unavailable_op  # type: ignore[method-assign]
        module.__doc__ = ops.__doc__
        deformable.replace_in(importlib.import_module("mmcv.ops.multi_scale_deform_attn"))


class _BridgeFinder(importlib.abc.MetaPathFinder):
    """Finds `mmcv._ext` if no earlier finder has: a compiled mmcv takes precedence."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _EXTENSION:
            return None
        # mmengine looks at the loader of the spec to find out whether mmcv has ops.
        return importlib.machinery.ModuleSpec(fullname, _BridgeLoader(), origin=__name__)


def install() -> None:
    """Make `mmcv._ext` importable; needed before the first `import mmdet.models` or `import mmcv.ops`.

    If mmcv has a compiled `mmcv._ext`, that is used. Calling this again does nothing.
    """
    if not any(isinstance(finder, _BridgeFinder) for finder in sys.meta_path):
        sys.meta_path.append(_BridgeFinder())


install()
