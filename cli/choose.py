"""Defaults of commands: the newest checkpoint, the name of an output, and the command that usually follows."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.convert.checkpoint.model import Checkpoint
    from mconv.convert.engine.plan import Plan
    from mconv.convert.folders.scan import Found

NEXT = {"hf2meg": "verify", "reshard": "verify", "merge": "verify", "meg2hf": "push", "lora merge": "push",
        "blend": "verify"}  # fmt: skip
"""Step -> the command that usually follows."""
NEEDED = {
    "data train_data valid_data test_data mock_data": "--data PREFIX",
    "lr eval_only": "--lr LR",
    "train_iters train_samples eval_only": "--train-iters N",
}
"""Fields of which a run needs one -> what to add to a command that has none of them."""


def newest(command: str, what: str, *, name: str = "a path") -> "Found":
    """Return the newest of a kind in the current folder, and print which it is and why. Raises MconvError if none is."""
    from mconv.convert.folders import choose, scan
    from mconv.convert.folders.kinds import TRACKER

    if Path(TRACKER).is_file():  # its iterations are not alternatives, and outputs would be written among them
        raise MconvError(f"the current folder is itself a Megatron root: go to the folder above it, or give {name}")
    looked = scan.scan(Path())
    for note in looked.notes:
        say(note)
    choice = choose.newest(looked, what, name=name)
    say(f"{command}: {choice.found.path} ({choice.why})")
    return choice.found


def megatron(given: Path | None, command: str) -> Path:
    """Return the given checkpoint, else the newest Megatron checkpoint in the current folder."""
    return given if given is not None else newest(command, "Megatron checkpoint").path


def near(path: Path) -> Path:
    """Return a path relative to the current folder if it is in it."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


def say(line: str) -> None:
    """Print a line to stderr, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def called(checkpoint: "Checkpoint") -> str:
    """Return the name of a checkpoint's folder: of its Megatron root, not of an iteration."""
    return called_path(checkpoint.path)


def called_path(path: Path) -> str:
    """Return the name of a folder, or of its root for the folder of an iteration."""
    path = path.resolve()
    return path.parent.name if re.fullmatch(r"release|iter_\d+", path.name) else path.name


def root_of(path: Path) -> Path:
    """Return the Megatron root of a folder that may be an iteration's."""
    return path.parent if re.fullmatch(r"release|iter_\d+", path.name) else path


def iteration_of(path: Path) -> int | None:
    """Return the iteration that a folder belongs to."""
    found = re.fullmatch(r"iter_(\d{1,12})", path.name)
    return int(found[1]) if found else None


def next_line(plan: "Plan", step: str) -> str | None:
    """Return the command that usually follows a conversion, or None."""
    verb = "meg2hf" if step == "lora merge" and plan.format != "hf" else NEXT.get(step)
    return f"next: mconv {verb} {shlex.quote(str(plan.out))}" if verb else None


def next_command(*words: object) -> None:
    """Print the command that usually follows, ready to paste except for words in capitals."""
    print(f"next: mconv {shlex.join(str(word) for word in words)}", flush=True)


def next_training(config: Path | None = None, **values: Any) -> None:
    """Print `mconv train` with these options, and in capitals what a run still needs."""
    from mconv.train.config import read_yaml

    known = {**(read_yaml(config) if config else {}), **values}
    missing = [words for names, words in NEEDED.items() if not any(known.get(name) for name in names.split())]
    given = [word for name, value in values.items() for word in _option(name, value)]
    next_command("train", *([config] if config else []), *given, *(word for words in missing for word in words.split()))


def _option(name: str, value: Any) -> list[str]:
    """Return an option as it is typed; [] for None."""
    if value is None:
        return []
    if value is False:
        return [f"--{name.replace('_', '-')}=false"]
    values = [] if value is True else [str(one) for one in value] if isinstance(value, list) else [str(value)]
    return [f"--{name.replace('_', '-')}", *values]
