"""megatron-core's own saver: an oracle here, and no part of mconv."""

import queue
from typing import Any


def saver() -> Any:
    """Return `dist_checkpointing`, which saves from this process without a manager process of several seconds."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from mconv.train.megatron.imports import dist_checkpointing

    filesystem_async._results_queue = queue.Queue()
    return dist_checkpointing
