"""Fixtures of the op tests."""

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ops", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("ops")


@pytest.fixture(autouse=True)
def poisoned():
    """New memory holds NaN or the largest integer, so that what an op leaves unwritten shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
