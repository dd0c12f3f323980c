"""All or nothing: what was made takes its place in one rename, the tracker last."""

from collections.abc import Iterator
from contextlib import contextmanager

from mconv.convert.checkpoint import bridge
from mconv.convert.engine.plan import Plan
from mconv.convert.folders import manifest
from mconv.convert.folders.kinds import TRACKER
from mconv.convert.folders.staging import Staging, flush, remove, write_whole
from mconv.errors import MconvError


@contextmanager
def explained(what: str, state: str) -> Iterator[None]:
    """Raise MconvError for OSError, a full disk or a missing right: what failed, why, and what state that leaves."""
    try:
        yield
    except OSError as error:
        raise MconvError(f"{what}: {error.strerror or error}; {state}") from error


def publish(plan: Plan, staging: Staging) -> None:
    """Give the finished folder its place, and have the tracker point to it."""
    if not staging.published:
        with explained(f"could not write {staging.folder}", "what was there before is unchanged"):
            flush(staging.partial)
            write_whole(staging.journal / manifest.NAME, (staging.partial / manifest.NAME).read_text(encoding="utf-8"))
            staging.swap()
    if plan.format != "hf":
        state = f"{staging.folder} is whole, but nothing points to it; give --resume to try again"
        with explained(f"could not write {plan.out / TRACKER}", state):
            write_tracker(plan)
    remove(staging.old)
    remove(staging.journal)


def write_tracker(plan: Plan) -> None:
    """Write the tracker, last: before it names the iteration, nothing loads it."""
    word = "release" if plan.iteration is None else str(plan.iteration)
    if plan.emit:
        bridge.point(plan.out, plan.folder, link=word == "release")
    write_whole(plan.out / TRACKER, word)
