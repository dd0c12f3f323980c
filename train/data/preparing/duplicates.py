"""The step of `mconv data prepare` that leaves out duplicates."""

from collections.abc import Sequence
from pathlib import Path

from mconv.train.data.dedup.decide import Tell
from mconv.train.data.dedup.run import Job, dedup
from mconv.train.data.dedup.scheme import choose
from mconv.train.data.dedup.sign import Settings
from mconv.train.data.preparing.config import Dedup


def deduplicate(
    paths: Sequence[Path], out: Path, *, key: str, how: Dedup, workers: int, on_bad_record: str, tell: Tell
) -> str:
    """Write the records of files that duplicate none before them; returns what was left out, in words."""
    settings = Settings(
        key=key, threshold=how.threshold, ngram=how.ngram, unit=how.unit, seed=how.seed,
        scheme=choose(how.threshold, num_perm=how.num_perm),
    )  # fmt: skip
    job = Job(
        sources=paths, out=out, settings=settings, verify=how.verify, workers=workers, on_bad_record=on_bad_record,
        overwrite=True,
    )  # fmt: skip
    found = dedup(job, tell=tell)
    return f"{found['kept']:,} of {found['documents']:,} documents; {found['exact']:,} equal and {found['near']:,} near"
