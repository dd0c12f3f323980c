"""All or nothing: what was made takes its place in one rename, the tracker last."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mconv.convert import bridge, manifest
from mconv.convert.checkpoint import TRACKER
from mconv.convert.place import PARTIAL, Place, remove, sync, write_whole
from mconv.convert.plan import Plan
from mconv.errors import MconvError


@contextmanager
def explained(what: str, state: str) -> Iterator[None]:
    """A full disk or a missing right is the user's to mend: what failed, why, and what state that leaves."""
    try:
        yield
    except OSError as error:
        raise MconvError(f"{what}: {error.strerror or error}; {state}") from error


def publish(plan: Plan, place: Place) -> None:
    """Give the finished folder its place, and have the tracker point to it."""
    if not place.published:
        with explained(f"could not write {place.folder}", "what was there before is unchanged"):
            flush(place.partial)
            write_whole(place.journal / manifest.NAME, (place.partial / manifest.NAME).read_text(encoding="utf-8"))
            _swap(place)
    if plan.format != "hf":
        state = f"{place.folder} is whole, but nothing points to it; give --resume to try again"
        with explained(f"could not write {plan.out / TRACKER}", state):
            write_tracker(plan)
    remove(place.old)
    remove(place.journal)


def _swap(place: Place) -> None:
    remove(place.old)
    if place.folder.exists():
        place.folder.rename(place.old)
    try:
        place.partial.rename(place.folder)
    except BaseException:
        if place.old.exists():
            place.old.rename(place.folder)
        raise
    sync(place.folder.parent)


def flush(folder: Path) -> None:
    """Have the disk hold every file of a folder."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def write_tracker(plan: Plan) -> None:
    """Last: before it names the iteration, nothing loads it."""
    word = "release" if plan.iteration is None else str(plan.iteration)
    if plan.emit:
        bridge.point(plan.out, plan.folder, link=word == "release")
    partial = plan.out / f"{PARTIAL}tracker"
    partial.write_text(word, encoding="utf-8")
    sync(partial)
    partial.replace(plan.out / TRACKER)
