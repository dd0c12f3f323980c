"""Fixtures of the tests of verifying."""

import pytest


@pytest.fixture(autouse=True)
def _leave_no_group():
    """megatron-core's process groups are the process's: a test must not find those of the one before."""
    yield
    from mconv.train.model import engine

    engine.shutdown()
