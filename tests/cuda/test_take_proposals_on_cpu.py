"""The CUDA kernel of take_proposals, run on the CPU, against the reference."""

import torch
from hypothesis import HealthCheck, given, settings

from sp_fast.ops import reference
from tests.ops.op_cases import taken_tables


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=taken_tables())
def test_same_as_the_reference(on_cpu, tables):
    results = on_cpu("take_proposals").take_proposals(*tables)
    for got, expected in zip(results, reference.take_proposals(*tables), strict=True):
        assert torch.equal(got, expected)
