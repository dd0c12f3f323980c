"""Steps that are done once: each remembers its inputs, settings and outputs, and is done again when one has changed."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import mconv
from mconv.convert.folders.staging import write_whole

NAME = "prepare.json"
"""The file of the output folder that says which steps are done."""
Stamp = list[int]
"""Size of a file, and the time in nanoseconds at which it was written last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A piece of work from files to files."""

    name: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    settings: Mapping[str, Any]
    """All else that decides the outputs, as JSON has it."""
    run: Callable[[bool], str]
    """The work; returns a sentence about what was done. True if an interrupted run of the same step may be continued."""


class Ledger:
    """What is known of the steps in an output folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / NAME
        self._known: dict[str, Any] = {"steps": {}, "begun": None}
        with suppress(OSError, ValueError):
            found = json.loads(self._file.read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get("steps"), dict):
                self._known |= found

    def why(self, step: Step) -> str | None:
        """Return why a step is to be done; None if it is done already, and nothing has changed since."""
        before = self._known["steps"].get(step.name)
        if before is None:
            return "interrupted" if self._begun(step) else "new"
        return next(_changes(before, step), None)

    def do(self, step: Step) -> str:
        """Do a step and remember it. Returns what it says of itself."""
        now, goes_on = self._identity(step), self._begun(step)
        self._known["steps"].pop(step.name, None)
        self._known["begun"] = {**now, "mconv": mconv.__version__}
        self._save()
        start = perf_counter()
        said = step.run(goes_on)
        self._known["begun"] = None
        self._known["steps"][step.name] = {
            **now, "outputs": {str(path): stamp(path) for path in step.outputs}, "said": said,
            "seconds": round(perf_counter() - start, 2),
        }  # fmt: skip
        self._save()
        return said

    def _begun(self, step: Step) -> bool:
        """Return whether this very step was interrupted, under this mconv."""
        return self._known["begun"] == {**self._identity(step), "mconv": mconv.__version__}

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._file, json.dumps(self._known, indent=1))

    def _identity(self, step: Step) -> dict[str, Any]:
        """Return what a step would be done with, as JSON reads it back."""
        inputs = {str(path): stamp(path) for path in step.inputs}
        return json.loads(json.dumps({"name": step.name, "inputs": inputs, "settings": step.settings}))


def stamp(path: Path) -> Stamp | None:
    """Return size and time of a file; None if it is not there."""
    with suppress(OSError):
        found = path.stat()
        return [found.st_size, found.st_mtime_ns]
    return None


def _changes(before: Mapping[str, Any], step: Step) -> Iterator[str]:
    """Yield what has changed since a step was done."""
    settings = json.loads(json.dumps(step.settings))
    for name in {**before["settings"], **settings}:
        if (old := before["settings"].get(name)) != (new := settings.get(name)):
            yield f"{name} was {old}, now {new}"
    for kind, paths in (("inputs", step.inputs), ("outputs", step.outputs)):
        old = before[kind]
        for path in {*old, *map(str, paths)}:
            if path not in old or path not in map(str, paths):
                yield f"{path} is {'new' if path not in old else 'no longer there'} among its {kind}"
            elif old[path] != (now := stamp(Path(path))):
                yield f"{path} {'has changed' if now else 'is gone'}"


def plan(steps: Sequence[Step], ledger: Ledger) -> list[str | None]:
    """Return for each step why it is to be done, None where it is done.

    What takes a file from a step that is to be done is to be done as well.
    """
    stale: dict[Path, str] = {}
    reasons: list[str | None] = []
    for step in steps:
        reason = ledger.why(step) or next((f"after {stale[path]}" for path in step.inputs if path in stale), None)
        reasons.append(reason)
        if reason:
            stale.update(dict.fromkeys(step.outputs, step.name))
    return reasons
