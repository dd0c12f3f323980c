"""Some steps of a run, to measure its speed: no log, no checkpoint, no evaluation."""

from typing import Any

import torch

from mconv.train.config import make
from mconv.train.logs.meter import memory, meter
from mconv.train.loop.feed import feed, sets
from mconv.train.loop.start import start
from mconv.train.loop.steps import step
from mconv.train.megatron import collectives
from mconv.train.megatron.imports import quiet
from mconv.train.model.engine import unwrap


@quiet()
def measure(payload: dict[str, Any]) -> dict[str, Any]:
    """Take the first `steps` of the run that `config` in the payload describes; every rank calls it.

    Returns {"seconds": of each step, "tokens": of one, "memory": bytes of the fullest rank, "flops_per_token", "peak":
    FLOP/s of a device, or None}.
    """
    run = start(make(payload["config"]), say=_silent)
    data = sets(run, _silent).train
    batches = feed(run, data, consumed=run.consumed)
    steps = [step(run, batches, again=lambda: feed(run, data, consumed=run.consumed)) for _ in range(payload["steps"])]
    world, dtype = torch.distributed.get_world_size(), unwrap(run.chunks[0]).config.params_dtype
    speed = meter(
        per_token=run.flops_per_token, train_iters=run.iterations, ranks=world, dtype=str(dtype).removeprefix("torch.")
    )
    return {
        "seconds": [one.seconds for one in steps],
        "tokens": round(steps[-1].tokens_per_second * steps[-1].seconds),
        "memory": max(collectives.from_all_ranks(memory())),
        "flops_per_token": speed.per_token,
        "peak": speed.peak,
    }


def _silent(_: str) -> None: ...
