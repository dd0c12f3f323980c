"""Fixtures that all tests share."""

from collections.abc import Iterator

import pytest
from world import World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Four gloo ranks, kept for the whole session and started by the first test that needs them."""
    ranks = World(4)
    yield ranks
    ranks.stop()
