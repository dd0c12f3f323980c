"""Fixtures that all tests share."""

import gc
import os
import sys
from collections.abc import Iterator

# Before torch is loaded, and for every process that a test starts: models this small only lose by sharing cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MCONV_CACHE"] = ""  # nothing of a test is kept in the user's cache
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
    if parallel := sys.modules.get("mconv.train.megatron.parallel"):
        parallel.shutdown()
        _collect_less()


def _collect_less() -> None:
    """megatron-core collects garbage at each save: what torch and transformers have built need not be looked at."""
    if len(sys.modules) > 1.2 * frozen[-1]:
        frozen.append(len(sys.modules))
        gc.collect()
        gc.freeze()


frozen = [1000]
"""How many modules were loaded, each time that what they had built was left out of collections."""
