"""Fixtures that all tests share."""

import os
import sys
from collections.abc import Iterator

# Before torch is loaded, and for every process that a test starts: models this small only lose by sharing cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SOURCE_DATE_EPOCH", "1790000000")  # manifests are compared byte for byte, their time too

import pytest
import reach
import typed
from hypothesis import settings
from world import World

typed.lighten()

settings.register_profile("mconv", deadline=None)  # a busy machine is no fault of an example's
settings.load_profile("mconv")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what touches megatron, if the marks are asked for."""
    if "megatron" in config.option.markexpr:
        for item in items:
            if reach.touches(item.path):
                item.add_marker("megatron")


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Four gloo ranks, kept for the whole session and started by the first test that needs them."""
    ranks = World(4)
    yield ranks
    ranks.stop()


@pytest.fixture(autouse=True)
def _leave_no_group() -> Iterator[None]:
    """megatron-core's process groups are the process's: a test must not find those of the one before."""
    yield
    if parallel := sys.modules.get("mconv.train.parallel"):
        parallel.shutdown()
