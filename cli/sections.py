"""The help of `mconv train` and `mconv plan`: an overview of sections, one section, or everything."""

import dataclasses
import difflib
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from mconv.errors import MconvError
from mconv.train.config import SECTIONS, TrainConfig, help_of, is_list

COMMON = {
    "train": (
        "load data save train_iters lr seq_length global_batch_size micro_batch_size tp pp save_interval resume finetune"
    ),
    "plan": "preset load seq_length global_batch_size micro_batch_size tp pp train_iters",
    "bench": "preset load data seq_length global_batch_size micro_batch_size tp pp",
}
"""Command -> the fields that most of its runs set."""
EXAMPLES = {
    "train": (
        "mconv train --load CHECKPOINT --data data/text --save runs/first --train-iters 500 --lr 3e-5 --seq-length 2048",
        "mconv train run.yaml --tp 2 --pp 2",
    ),
    "plan": (
        "mconv plan run.yaml --world-size 64 --tflops 400",
        "mconv plan --preset llama2-7b --bf16 --gpus 8 --gpu-memory 80 --suggest",
    ),
    "bench": (
        "mconv bench run.yaml",
        "mconv bench run.yaml --world-sizes 1 8 --micro-batches 1 2 --weak --plot bench.png",
    ),
}
ALL = "all"
ALIASES = {"save": ("out",)}
"""Other names of a field's flag."""
FLAGS = ("--help", "-h")
INDENT = 26
"""Column at which explanations begin."""
BY_NAME = {section.__name__.lower(): section for section in SECTIONS}
"""Sections by the word that `--help` takes, in the order of TrainConfig."""


def asked(argv: Sequence[str]) -> list[str] | None:
    """Return the words after `--help` of a command with a run's options; None if help for one was not asked for."""
    if not argv or argv[0] not in COMMON:
        return None
    words = [*argv[1 : argv.index("--")]] if "--" in argv else [*argv[1:]]
    at = next((number for number, word in enumerate(words) if word in FLAGS), None)
    if at is None:
        return None
    after = words[at + 1 :]
    end = next((number for number, word in enumerate(after) if word.startswith("-")), len(after))
    return after[:end]


def text(command: str, about: str, words: Sequence[str]) -> str:
    """Return the help on named sections, or the overview. Raises MconvError on a word that names nothing."""
    width = min(shutil.get_terminal_size().columns, 122)
    lines = [line for word in words for line in _one(command, word, width)] if words else _overview(command, about, width)
    return "\n".join(lines)


def _overview(command: str, about: str, width: int) -> Iterator[str]:
    yield f"Usage: mconv {command} [CONFIG] [OPTIONS]"
    for paragraph in about.split("\n\n"):
        yield from ("", *textwrap.wrap(paragraph, width))
    yield from ("", "Examples:", *(f"  {line}" for line in EXAMPLES[command]))
    if own := list(_own(command)):
        yield from ("", f"Options of {command} only:")
        yield from (line for flag, about in own for line in _row(flag, about, width))
    yield from ("", "Options that most runs need:")
    yield from (line for name in COMMON[command].split() for line in _field(name, width))
    yield from ("", *textwrap.wrap(
        f"Sections of options: `mconv {command} --help data` shows one of them, `mconv {command} --help all` all "
        f"options, `mconv {command} --help lr` one option.", width,
    ))  # fmt: skip
    for name, section in BY_NAME.items():
        yield from _row(name, _about(section), width)


def _one(command: str, word: str, width: int) -> Iterator[str]:
    """Yield the lines of one section, or of one field."""
    name = word.replace("-", "_")
    if name in BY_NAME:
        yield f"{name}: {_about(BY_NAME[name])}"
        fields = [field for field in help_of() if field in BY_NAME[name].__annotations__]
    elif name in help_of():
        fields = [name]
    else:
        close = difflib.get_close_matches(name, [*BY_NAME, *help_of(), ALL], n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise MconvError(
            f"{command} --help has no section {word!r}; {hint}sections: {', '.join(BY_NAME)}; or {ALL}, or one option"
        )
    yield from (line for field in fields for line in _field(field, width))


def _about(section: type) -> str:
    """Return a section's description, without its title."""
    return (section.__doc__ or "").splitlines()[0].partition(": ")[2]


def _field(name: str, width: int) -> list[str]:
    field = next(field for field in dataclasses.fields(TrainConfig) if field.name == name)
    default = "" if field.default in (None, False) else f" [default: {field.default}]"
    names = ", ".join(f"--{one.replace('_', '-')}" for one in (name, *ALIASES.get(name, ())))
    flag = names + _value(field.type)
    return _row(flag, help_of()[name] + default, width)


def _value(kind: Any) -> str:
    """Return what follows a flag: a placeholder or its choices; nothing for a switch."""
    if choices := get_args(kind):
        words = [choice for choice in choices if isinstance(choice, str)]
        if words:
            return " " + "|".join(words)
    if kind is bool:
        return ""
    named = str(kind).removesuffix(" | None")
    if kind is Path:
        return " PATH"
    letter = "N" if "int" in named else "X" if "float" in named else "TEXT"
    return f" {letter}{' ...' if is_list(kind) else ''}"


def _own(command: str) -> Iterator[tuple[str, str]]:
    """Yield the options of a command that are not fields of a run, with their help."""
    from mconv.cli import bench, train, train_plan

    function = {"train": train.train, "plan": train_plan.plan, "bench": bench.bench}[command]
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in help_of():
            kind, meta = get_args(parameter.annotation)[:2]
            plain = next((part for part in get_args(kind) if part is not type(None)), kind)
            names = meta.name or (f"--{parameter.name.replace('_', '-')}",)
            yield ", ".join(names) + _value(plain), meta.help


def _row(name: str, about: str, width: int) -> list[str]:
    """Return a name with its explanation beside it, or below it if the name is long."""
    lines = textwrap.wrap(about, max(width - INDENT, 30)) or [""]
    first = f"  {name}".ljust(INDENT)
    if len(name) + 3 > INDENT:
        return [f"  {name}", *(" " * INDENT + line for line in lines)]
    return [first + lines[0], *(" " * INDENT + line for line in lines[1:])]
