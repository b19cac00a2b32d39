"""The cases of the tests on a GPU, on the CPU: every op has one, and its reference gives the same."""

import pytest
import torch

from tests.ops.gpu_cases import CASES, NOT_IN_CASES, expected_results, results
from tests.ops.op_cases import needs_extension
from tests.ops.recorded import recorded_ops, registered_ops


@needs_extension
def test_every_op_has_a_case():
    with recorded_ops() as found:
        for case in CASES.values():
            results(case.op, case.inputs(0, torch.float32), case.wanted)
    assert found.isdisjoint(NOT_IN_CASES)
    assert found | set(NOT_IN_CASES) == registered_ops()


@pytest.mark.parametrize("name", CASES)
def test_reference_gives_the_same(name):
    case, inputs = CASES[name], CASES[name].inputs(0, torch.float32)
    got, expected = results(case.op, inputs, case.wanted), expected_results(case, inputs)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-4)
