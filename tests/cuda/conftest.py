"""The CUDA ops for CPU tensors: `make cpp-test` builds them, and their kernels run thread by thread."""

import os
from pathlib import Path

import pytest
import torch

from tests.ops.op_cases import poisoned_memory

# CMake builds each CUDA source with its op as one library here.
BUILT = Path(os.environ.get("SP_FAST_ON_CPU", Path(__file__).parents[2] / "build" / "cpp"))

_loaded: set[str] = set()


@pytest.fixture(autouse=True)
def poisoned():
    """Fill new memory with NaN or the largest integer, so that elements an op leaves unwritten show."""
    with poisoned_memory():
        yield


def _define(name: str) -> None:
    schema = str(getattr(torch.ops.sp_fast, name).default._schema)
    torch.library.define("sp_fast_on_cpu::" + name, schema.removeprefix(f"sp_fast::{name}"))


@pytest.fixture(scope="session")
def on_cpu():
    """A function that loads csrc/cuda/`source`.cu and returns its ops, `torch.ops.sp_fast_on_cpu`."""

    def load(source: str):
        import sp_fast.ops  # noqa: F401  (the schemas)

        if not hasattr(torch.ops.sp_fast, "mask_nms"):
            pytest.skip("needs the compiled extension, for the schemas")
        library = BUILT / f"libon_cpu_{source}.so"
        if not library.exists():
            pytest.skip(f"needs {library.name}; make cpp-test builds it where CUDA's headers are")
        if not _loaded:
            for name in {op._qualified_op_name for op in _schemas()}:
                _define(name.removeprefix("sp_fast::"))
        if source not in _loaded:
            torch.ops.load_library(str(library))
            _loaded.add(source)
        return torch.ops.sp_fast_on_cpu

    return load


def _schemas():
    names = [s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("sp_fast::")]
    return [getattr(torch.ops.sp_fast, name.removeprefix("sp_fast::")) for name in names]
