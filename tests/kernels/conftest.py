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
    """The package as Triton interprets it, whoever imported Triton or the package before.

    Triton decides when a function is decorated, and its own library is decorated when it is imported.
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
    """What the interpreter sets in Triton's language, and leaves set, is put back: kernels compile again."""
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
    """fp32 to bf16 as GPUs do it, to the nearest; the interpreter cuts bits off."""
    from triton import language as tl
    from triton.runtime.interpreter import TensorHandle

    if to.scalar != tl.bfloat16:
        return builder.cast_impl(source, to)
    values = torch.from_numpy(source.data.copy()).bfloat16()
    return TensorHandle(values.view(torch.int16).numpy().view("uint16"), to.scalar)


def counted(out, number):
    """A loop over a number known at run time, which old interpreters cannot do with new NumPy."""
    from triton import language as tl

    for i in range(0, number):
        tl.store(out, i)


def skip_where_the_interpreter_fails() -> None:
    """It is Triton's own, and fails on any loop: Triton 3.6 with NumPy 2.4."""
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
    """New memory holds NaN or the largest integer, so that what a kernel leaves unwritten shows."""
    with poisoned_memory():
        yield
