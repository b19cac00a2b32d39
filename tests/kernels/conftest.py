"""The Triton kernels compiled on a GPU, and in Triton's interpreter on the CPU."""

import contextlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests.ops.op_cases import poisoned_memory

triton = pytest.importorskip("triton")

FOLDER = Path(__file__).resolve().parents[2] / "kernels"


def interpreted_kernels(patch: pytest.MonkeyPatch):
    """Load the package for Triton's interpreter, even if Triton or the package was imported before.

    Triton chooses the interpreter when a function is decorated; its own library is decorated on import.
    """
    from triton import language as tl
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder
    from triton.runtime.jit import JITFunction

    patch.setenv("TRITON_INTERPRET", "1")
    for module in (tl, tl.standard, tl.math):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                patch.setattr(module, name, InterpretedFunction(value.fn))
    patch.setattr(InterpreterBuilder, "create_fp_trunc", rounded)
    name = "interpreted_sp_fast_kernels"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        del sys.modules[module]
    return package


@contextlib.contextmanager
def triton_put_back():
    """Restore what the interpreter changes in Triton's language, so that kernels compile again."""
    from triton import language as tl

    places = (tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)
    before = [dict(vars(place)) for place in places]
    yield
    for place, kept in zip(places, before, strict=True):
        for name, value in list(vars(place).items()):
            if name in kept and value is not kept[name]:
                setattr(place, name, kept[name])
            elif name not in kept and isinstance(place, type):  # a module keeps what the interpreter looks up
                delattr(place, name)


def rounded(builder, source, to):
    """Round fp32 to the nearest bf16, like GPUs; the interpreter truncates."""
    from triton import language as tl
    from triton.runtime.interpreter import TensorHandle

    if to.scalar != tl.bfloat16:
        return builder.cast_impl(source, to)
    values = torch.from_numpy(source.data.copy()).bfloat16()
    return TensorHandle(values.view(torch.int16).numpy().view("uint16"), to.scalar)


def counted(out, number):
    """Loop over a number known at run time, which old interpreters cannot do with new NumPy."""
    from triton import language as tl

    for i in range(0, number):
        tl.store(out, i)


def skip_where_the_interpreter_fails() -> None:
    """Skip if Triton's interpreter fails on any loop, as Triton 3.6 does with NumPy 2.4."""
    import numpy as np
    from triton.runtime.interpreter import InterpretedFunction

    try:
        InterpretedFunction(counted)[(1,)](torch.zeros(1, dtype=torch.int32), 2)
    except Exception as error:
        pytest.skip(f"Triton {triton.__version__}'s interpreter fails with NumPy {np.__version__}: {error}")


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return request.param


@pytest.fixture(scope="module")
def kernels(device):
    """The functions of `sp_fast.kernels` for tensors of the device."""
    if device == "cuda":
        import sp_fast.kernels

        yield sp_fast.kernels
    else:
        with triton_put_back(), pytest.MonkeyPatch.context() as patch:
            skip_where_the_interpreter_fails()
            yield interpreted_kernels(patch)


@pytest.fixture(autouse=True)
def poisoned():
    """Fill new memory with NaN or the largest integer, so that elements a kernel leaves unwritten show."""
    with poisoned_memory():
        yield
