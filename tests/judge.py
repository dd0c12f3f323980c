"""Convert with mconv and judge with `mconv verify`'s own work, in this process: what the tests of verifying share."""

import verify_jobs

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite


def convert(source, out, **options):
    """One conversion, to `torch_dist` unless `options` say otherwise; returns the folder."""
    rewrite(plan.make(open_checkpoint(source), out, **{"format": "torch_dist", **options}), step="test")
    return out


def report(a, b, **payload):
    """What `mconv verify a b` finds."""
    return verify_jobs.verify(a=str(a), b=str(b), **payload)


def judged(a, b, **options):
    """The whole verdict of `mconv verify a b`, the Megatron side on this one process unless `options` say otherwise."""
    from mconv.verify.judge import Options, judge

    alone = {} if (b / "config.json").is_file() else {"tp": 1, "pp": 1}
    return judge(a, b, Options(**{**alone, **options}))
