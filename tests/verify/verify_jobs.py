"""What the ranks of `world` do for the tests of verifying."""

from mconv.verify import logits

DEFAULTS = {
    "length": 96, "batch": 2, "seed": 7, "dtype": "fp32", "tp": 1, "pp": 1, "sequence_parallel": False,
    "streamed": False, "generate": 0,
}  # fmt: skip


def verify(**payload):
    """Return the report on rank 0, {} on the others."""
    return logits.work({**DEFAULTS, **payload})


def forgetful(*, rank, **payload):
    """Return the report of ranks of which one holds other weights than it loaded."""
    import torch

    from mconv.verify import models

    fill = models.Megatron.fill

    def other(self, parameters, **options):
        fill(self, parameters, **options)
        if torch.distributed.get_rank() == rank and self.options.parallel.tp > 1:
            next(iter(parameters.values())).mul_(1.5)

    models.Megatron.fill = other
    try:
        return verify(**payload)
    finally:
        models.Megatron.fill = fill
