"""Fixtures of the op tests."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.ops.op_cases import poisoned_memory

settings.register_profile(
    "ops", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("ops")


@pytest.fixture(autouse=True)
def poisoned():
    """Fill new memory with NaN or the largest integer, so that elements an op leaves unwritten show."""
    with poisoned_memory():
        yield


@pytest.fixture
def threads():
    """A function that sets the number of threads, which is restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
