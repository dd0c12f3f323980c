"""The fields of a conversation record and of a turn: a table of what is done with each name.

A name in neither table stops the command, unless its value is empty or the user ignores it (--ignore-field).
"""

import functools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mconv.train.data.bad_records import BadRecord, Kind


class Use(str, Enum):
    """Uses of a field."""

    TURNS = "the list of turns"
    QUESTION = "what the user says, where there is no list; beside a list it must repeat a turn of the user"
    ANSWER = "what the assistant answers; beside a list it must repeat an answer"
    INPUT = "joined to the question, on a line of its own (alpaca)"
    HISTORY = "pairs of question and answer before the question (alpaca)"
    SYSTEM = "the first system turn"
    OPTION = "handed to the tokenizer's chat template, which must write it"
    VARIABLES = "variables for the tokenizer's chat template, which must mention each"
    LEARNT = "a switch: yes if the answer counts in the loss"
    MASKED = "a switch: yes if the answer does not count in the loss"
    MASKED_ROLE = "the role whose turns do not count in the loss: the user's, never the assistant's"
    ROLE = "who speaks"
    CONTENT = "what is said"
    NOTE = "says nothing of the conversation: origin, rating, statistics"

    __str__ = str.__str__


LEARNT = (
    "train", "training", "trainable", "train_on_turn", "loss", "weight", "loss_weight", "loss_scale", "compute_loss",
    "calculate_loss", "output_with_loss",
)  # fmt: skip
MASKED = ("masked", "is_masked", "ignore_loss", "no_loss")

RECORD: dict[Use, tuple[str, ...]] = {
    Use.TURNS: ("messages", "conversations"),
    Use.QUESTION: ("question", "instruction", "prompt", "query"),
    Use.ANSWER: ("answer", "output", "response", "completion"),
    Use.INPUT: ("input",),
    Use.HISTORY: ("history",),
    Use.SYSTEM: ("system", "system_prompt", "system_message"),
    Use.OPTION: ("tools", "documents"),
    Use.VARIABLES: ("chat_template_kwargs",),
    Use.LEARNT: LEARNT,
    Use.MASKED: MASKED,
    Use.MASKED_ROLE: ("mask",),
    Use.NOTE: (
        "id", "_id", "idx", "index", "uuid", "uid", "hash", "prompt_id", "conversation_id", "row_id", "source",
        "sources", "data_source", "source_url", "url", "origin", "dataset", "dataset_name", "subset", "split", "category",
        "subcategory", "topic", "tag", "tags", "domain", "title", "language", "lang", "model", "model_name", "generator",
        "license", "version", "author", "created", "created_at", "date", "timestamp", "score", "scores", "rating",
        "quality", "difficulty", "turn", "num_turns", "num_tokens", "token_count", "views", "avatarUrl", "redacted",
        "toxic", "openai_moderation", "detoxify_moderation", "parallel_tool_calls",
    ),
}  # fmt: skip
"""Fields of a record."""

TURN: dict[Use, tuple[str, ...]] = {
    Use.ROLE: ("role", "from"),
    Use.CONTENT: ("content", "value"),
    Use.LEARNT: LEARNT,
    Use.MASKED: (*MASKED, "mask"),
    Use.NOTE: (
        "id", "uuid", "message_id", "turn_identifier", "timestamp", "created_at", "language", "model", "redacted",
        "toxic", "openai_moderation", "hashed_ip", "country", "state",
    ),
}  # fmt: skip
"""Fields of a turn. Every other one is handed to the tokenizer's chat template, which must write it."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Three names of one field of a turn; transformers (5.21, not yet 5.18) fills each from the others."""

EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values that say nothing, whatever the field is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Names that the user gives for fields of a record; None leaves those of the table."""

    messages: str | None = None
    question: str | None = None
    answer: str | None = None
    system: str | None = None
    """An additional name of the system text; the table's names stay."""
    input: str | None = None


GIVEN = {
    "messages": Use.TURNS, "question": Use.QUESTION, "answer": Use.ANSWER, "input": Use.INPUT, "system": Use.SYSTEM
}  # fmt: skip


@functools.lru_cache(maxsize=16)
def record_claims(keys: Keys) -> Mapping[str, Use]:
    """Return what is done with each field of a record: those that the user names, and the table's others."""
    given = {use: name for key, use in GIVEN.items() if (name := getattr(keys, key)) is not None}
    replaced = given.keys() - {Use.SYSTEM}
    table = {name: use for use, names in RECORD.items() if use not in replaced for name in names}
    return table | {name: use for use, name in given.items()}


TURN_CLAIMS: Mapping[str, Use] = {name: use for use, names in TURN.items() for name in names}

WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def said_yes(name: str, value: Any, where: str) -> bool:
    """Return whether a switch says yes. Raises BadRecord on a value that is neither yes nor no, such as 0.5."""
    if isinstance(value, bool):
        return value
    if name == "mask":
        wanted = "true or false (1 is no answer: some programs learn from 1, others from 0)"
    else:
        wanted = "yes or no (true, false, 1, 0)"
        if isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.strip().casefold() in WORDS:
            return WORDS[value.strip().casefold()]
    raise BadRecord(Kind.SWITCH, f"{where}{name} is {value!r:.60}; it must be {wanted}")


def learnt(switches: Iterable[tuple[str, Use, Any]], where: str) -> bool | None:
    """Return whether switches say that an answer counts in the loss; None without any.

    Raises BadRecord where two of them disagree.
    """
    found = {name: said_yes(name, value, where) is (use is Use.LEARNT) for name, use, value in switches}
    if len(set(found.values())) > 1:
        yes, no = (next(name for name, says in found.items() if says is side) for side in (True, False))
        raise BadRecord(Kind.CONTRADICTION, f"{where}{yes} has the answer count in the loss, {no} does not")
    return next(iter(found.values()), None)


def unknown_fields(where: str, names: Sequence[str], why: str) -> BadRecord:
    """Return the error about fields that would be left out, with the flags that let them pass."""
    flags = " ".join(f"--ignore-field {shlex.quote(_printable(name))}" for name in names)
    many = f"{where} {' and '.join(map(repr, names))}, {why}"
    return BadRecord(Kind.UNKNOWN_FIELD, f"{many}; {flags} passes over {'it' if len(names) == 1 else 'them'}")


def _printable(name: str) -> str:
    """Return a name that any terminal and file takes: halves of surrogate pairs are spelled out."""
    return name.encode(errors="backslashreplace").decode()
