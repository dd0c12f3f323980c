"""No test of this folder leaves a process group to the next one."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _leave_no_group() -> Iterator[None]:
    yield
    from mconv.train import parallel

    parallel.shutdown()
