"""What the ranks of `world` do for the tests of verifying."""

from mconv.verify import logits

DEFAULTS = {
    "length": 96, "batch": 2, "seed": 7, "dtype": "fp32", "tp": 1, "pp": 1, "sequence_parallel": False,
    "streamed": False, "generate": 0,
}  # fmt: skip


def verify(**payload):
    """The report on rank 0, {} on the others."""
    return logits.work({**DEFAULTS, **payload})
