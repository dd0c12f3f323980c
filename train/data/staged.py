"""Token files that are being written: hidden until they are whole, one run at a time, taken up again by --resume.

Beside PREFIX lie `.mconv-partial-NAME`, the files so far, and `.mconv-partial-NAME.journal`:

    plan.json      what the files are made of: the input's files, the options; for people, the command
    state.json     how far the input is read, and what was written by then; replaced after every part, its bytes flushed
    done-0.jsonl   the input's files that are read to their end
    publish.json   the files that get their names, once all are written
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mconv
from mconv.convert.folders.staging import PLAN, Staging, sync, write_whole
from mconv.errors import MconvError
from mconv.train.data.bad_records import POLICIES

STATE, PUBLISH, DONE = "state.json", "publish.json", "done-0.jsonl"


def made_of(sources: Sequence[Path], **options: Any) -> dict[str, Any]:
    """Return all that decides the bytes of the output. An unfinished run can only be continued by its equal."""
    files = {str(path): _fingerprint(path) for path in sources}
    return {"mconv": mconv.__version__, "options": options, "files": files}


def _fingerprint(path: Path) -> list[int] | None:
    """Return size and time of a file; None of a dataset that is fetched by its name."""
    if not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True, slots=True)
class StagedRun:
    """The hidden folders of a run."""

    staging: Staging

    @classmethod
    def of(cls, prefix: Path) -> "StagedRun":
        return cls(Staging.of(prefix))

    def path(self, output: Path) -> Path:
        """Return where an output lies until it gets its name."""
        return self.staging.partial / output.name

    def begin(self, of: dict[str, Any], command: str | None, *, resume: bool) -> dict[str, Any]:
        """Make the folders, or take up those that are there; returns the state of the run, {} at its start.

        Raises MconvError if they are of other inputs or options.
        """
        before = _read(self.staging.journal / PLAN) if resume and self.staging.partial.is_dir() else {}
        if before:
            _check_same(self.staging.folder, before.get("of", {}), json.loads(json.dumps(of)))
            return _read(self.staging.journal / STATE)
        self.staging.clear()
        self.staging.partial.mkdir(parents=True)
        self.staging.journal.mkdir()
        sizes = {file: status[0] for file, status in of["files"].items() if status}
        plan = {"of": of, "command": command, "sizes": sizes, "what": "tokenization"}
        write_whole(self.staging.journal / PLAN, json.dumps(plan, indent=1))
        return {}

    def save(self, state: Mapping[str, Any], done: Sequence[Path]) -> None:
        """Write down how far the run is; `done` are the sources that are read to their end. The files are flushed."""
        write_whole(self.staging.journal / STATE, json.dumps(state))
        lines = [json.dumps({"logical": str(path)}) + "\n" for path in done]
        write_whole(self.staging.journal / DONE, "".join(lines))

    @property
    def is_kept(self) -> bool:
        """True where --resume can go on from here."""
        return (self.staging.journal / STATE).is_file()

    @property
    def is_whole(self) -> bool:
        """True where all is written, and only the names are missing."""
        return (self.staging.journal / PUBLISH).is_file()

    def publish(self, outputs: Sequence[Path], maybe: Path) -> None:
        """Give the files their names. A kill leaves less than a whole, never old beside new; --resume completes it."""
        for path in (found for output in outputs if (found := self.path(output)).exists()):
            sync(path)
        write_whole(self.staging.journal / PUBLISH, json.dumps([str(path) for path in outputs]))
        waiting = [output for output in (maybe, *outputs) if self.path(output).exists()]
        if not self.path(maybe).exists() and len(waiting) == len(outputs):
            maybe.unlink(missing_ok=True)
        for output in reversed(waiting):
            output.unlink(missing_ok=True)
        for output in waiting:
            self.path(output).replace(output)
        sync(self.staging.folder.parent)
        self.staging.clear()


def _check_same(prefix: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise MconvError where what is to be continued had other inputs, options or another mconv."""
    if before.get("options", {}).get("on_bad_record") == next(iter(POLICIES)):  # so far there was none to skip
        before = {**before, "options": {**before["options"], "on_bad_record": now["options"].get("on_bad_record")}}
    differ = [f"mconv was {before.get('mconv')}, now {now['mconv']}"] if before.get("mconv") != now["mconv"] else []
    for kind, word in (("files", "has changed"), ("options", "was {old}, now {new}")):
        old, new = before.get(kind, {}), now[kind]
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        differ += [f"{name} {word.format(old=old.get(name), new=new.get(name))}" for name in names]
    if differ:
        raise MconvError(
            f"{prefix}: what is unfinished there is of another run and cannot be continued by this one "
            f"({'; '.join(differ[:5])}); repeat the command that was interrupted, or leave --resume out to start again"
        )


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object of the journal; {} where there is none."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}
