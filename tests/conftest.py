"""Fixtures that all tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from world import World

settings.register_profile("mconv", deadline=None)  # a busy machine is no fault of an example's
settings.load_profile("mconv")


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Four gloo ranks, kept for the whole session and started by the first test that needs them."""
    ranks = World(4)
    yield ranks
    ranks.stop()
