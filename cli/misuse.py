"""Messages about a command line that cannot be parsed: one line for each mistake."""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from mconv.cli import foreign

if TYPE_CHECKING:
    from cyclopts import Argument

KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
"""Type -> what to write for it."""
VERBS = {
    "convert": "hf2meg or meg2hf", "import": "hf2meg", "export": "meg2hf or lora export", "shard": "reshard",
    "hf_to_megatron": "hf2meg", "megatron_to_hf": "meg2hf", "checkpoint_util": "reshard", "split": "reshard",
    "upload": "push", "push_to_hub": "push", "download": "pull", "preprocess_data": "data tokenize",
    "preprocess": "data tokenize",
    "preprocess_instruct_data": "data instruct", "merge_datasets": "data merge", "create_data_mixture": "data mix",
    "create_data_config": "data discover", "prepare_dumps": "data dumps", "submit_tokenization": "data dumps",
    "mix": "data mix", "tokenize": "data tokenize", "instruct": "data instruct",
    "finetune": "train", "pretrain": "train", "pretrain_gpt": "train", "verify_correctness": "verify", "check": "verify",
    "compare": "verify or diff", "info": "inspect", "estimate": "plan",
    "submit": "launch slurm", "sbatch": "launch slurm", "srun": "launch slurm", "kubectl": "launch kubernetes",
    "torchrun": "launch torchrun",
    "mergekit": "blend", "average": "blend",
    "weighted_merge": "blend", "soup": "blend", "tokensurgeon": "resize", "extract_lora": "lora extract",
    "resize_token_embeddings": "resize", "prune": "layers",
}  # fmt: skip
"""Command of other programs -> mconv's."""


def lines(error: CycloptsError) -> Iterator[str]:
    """Yield a line for each mistake in a command line, with what to do."""
    command = " ".join(error.command_chain or ())
    if isinstance(error, UnknownOptionError):
        yield from _unknown_options(error, command)
    elif isinstance(error, UnknownCommandError):
        yield _unknown_command(error, command)
    elif isinstance(error, UnusedCliTokensError):
        rest = " ".join(error.unused_tokens or ())
        yield f"{command}: {rest!r} is more than it takes; {_help(command)}"
    elif isinstance(error, RepeatArgumentError):
        yield f"{command}: {_twice(error)}"
    elif isinstance(error, MissingArgumentError) and error.argument:
        yield _missing(error, error.argument, command)
    elif isinstance(error, CoercionError) and error.token and error.argument:
        yield f"{command}: {_named(error.argument)} is {error.token.value!r}; it must be {_kind(error.argument.hint)}"
    else:
        error.verbose = False
        yield f"{command}: {error}"


def _twice(error: RepeatArgumentError) -> str:
    """Return which option is given twice, under which names."""
    last = (error.token.keyword or "").replace("_", "-")
    known = error.app.assemble_argument_collection() if error.app else ()
    names = next((one.names for one in known if last in one.names), (last,))
    given = {name for word in error.root_input_tokens or () if (name := word.partition("=")[0]) in names}
    return f"{' and '.join(sorted(given))} are one option; give it once" if len(given) > 1 else f"{last} is given twice"


def _unknown_options(error: UnknownOptionError, command: str) -> Iterator[str]:
    """Yield a line for each option that the command does not have: a command line from elsewhere has many."""
    known = [name for one in error.argument_collection if one.parse for name in one.names if name.startswith("-")]
    seen = {*known, "--help", "--version"}
    words = (error.root_input_tokens or [])[len(error.command_chain or ()) :]
    for word in [error.token.keyword or error.token.value, *itertools.takewhile(lambda word: word != "--", words)]:
        name = word.partition("=")[0].replace("_", "-")
        if re.match("--?[A-Za-z]", name) and name not in seen:
            seen.add(name)
            advice = (foreign.advice(command, name, _given(words)) or _off(name, error.argument_collection)
                      or _close(name, known) or f"; {_help(command)}")  # fmt: skip
            yield f"{command} has no option {word.partition('=')[0]}{advice}"


def _given(words: Sequence[str]) -> dict[str, str]:
    """Return the value that follows each option, by the option's plain name."""
    pairs = (
        (word, rest or after) for word, after in itertools.pairwise([*words, ""]) for rest in [word.partition("=")[2]]
    )
    return {foreign.plain(word): value for word, value in pairs if word.startswith("--")}


def _off(name: str, known: "Iterable[Argument]") -> str | None:
    """Return how to turn off a switch that was typed with `--no-` before its name."""
    switch = re.sub("^--(no|disable)-", "--", name)
    kinds = [one.hint for one in known if switch != name and switch in one.names]
    return f"; to turn it off: {switch}=false" if any(bool in (kind, *get_args(kind)) for kind in kinds) else None


def _close(name: str, known: list[str]) -> str | None:
    names = {one.lstrip("-"): one for one in known}
    close = difflib.get_close_matches(name.lstrip("-"), names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else None


def _unknown_command(error: UnknownCommandError, command: str) -> str:
    word = error.unused_tokens[0] if error.unused_tokens else ""
    here = error.app or App()
    names = [name for name in here if not name.startswith("-")]
    plain = word.removesuffix(".py").replace("-", "_")
    close = difflib.get_close_matches(word, names, n=1)
    ours = f"{command} {close[0]}".strip() if close else None
    verb = VERBS.get(plain)
    ours = verb if verb and (not ours or verb.startswith(command)) else ours  # "upload" is push, though near to "plot"
    advice = f"did you mean {ours}?" if ours else f"there are {', '.join(names)}"
    return f"there is no command {f'{command} {word}'.strip()!r}; {advice}"


def _missing(error: MissingArgumentError, argument: "Argument", command: str) -> str:
    if error.keyword or argument.tokens:
        return f"{command}: {error.keyword or argument.tokens[-1].keyword} needs a value: {_kind(argument.hint)}"
    about = (argument.parameter.help or "").partition(". ")[0].rstrip(".")
    return f"{command}: {_named(argument)} is missing" + (f": {about}" if about else "") + f"; {_help(command)}"


def _named(argument: "Argument") -> str:
    """Return a parameter as it is typed: in capitals if it may be given by position."""
    positional = argument.field_info.kind is not argument.field_info.KEYWORD_ONLY
    return argument.name.lstrip("-").upper() if positional else argument.name


def _kind(hint: Any) -> str:
    """Return what a value must be, in words."""
    if choices := [word for word in get_args(hint) if isinstance(word, str)]:
        return f"one of {', '.join(choices)}"
    inner = [one for one in get_args(hint) if one is not type(None)]
    if inner:
        return _kind(inner[0])
    return KINDS.get(hint, "a value" if hint is str else "a path")


def _help(command: str) -> str:
    return f"`mconv {command} --help` shows how it is used"
