"""A conversation as text, and who says each part of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from mconv.errors import FormatError, MconvError
from mconv.train.data.text import named


class Role(IntEnum):
    """Who says a token, by the numbers of the ancestor's role files."""

    SYSTEM = 0
    PROMPTER = 1
    ASSISTANT = 2


WORDS = {Role.SYSTEM: "system", Role.PROMPTER: "user", Role.ASSISTANT: "assistant"}
"""What the tokenizers' chat templates call them."""
KNOWN = {
    "system": Role.SYSTEM, "user": Role.PROMPTER, "human": Role.PROMPTER, "prompter": Role.PROMPTER,
    "assistant": Role.ASSISTANT, "gpt": Role.ASSISTANT, "bot": Role.ASSISTANT, "model": Role.ASSISTANT,
}  # fmt: skip
"""What data sets call them."""
NAMES = (("role", "content"), ("from", "value"))
"""Under which two keys a turn has its role and its text."""

UNREAD = ("tool_calls", "function_call", "weight", "train")
"""Fields of a turn, and `TOOLS` of a record, that change what is said or trained. Nothing here reads them."""
TOOLS = ("tools", "functions")
PLAIN: tuple[Any, ...] = (None, True, "", [], {}, "[]")
"""Values with which they change nothing."""

Turn = tuple[Role, str]


@dataclass(frozen=True, slots=True)
class Template:
    """<|im_start|>WORD, a line's end, the text, <|im_end|>, a line's end: for each turn."""

    words: dict[Role, str]
    header_is_answer: bool
    """Whether the assistant's <|im_start|>WORD counts as said by it. To a model that is asked, it is given."""


OWN = "tokenizer"
TEMPLATES = {
    "chatml": Template(WORDS, False),
    "megatron-llm": Template(
        {Role.SYSTEM: "system", Role.PROMPTER: "question", Role.ASSISTANT: "answer"}, header_is_answer=True
    ),
}
"""Templates by name, beside the tokenizer's own; the second gives the ancestor's files byte for byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Fields of a record: a list of turns, or one question and its answer."""

    messages: str | None = None
    """None: `messages` or `conversations`, whichever is there."""
    question: str = "question"
    answer: str = "answer"
    system: str | None = None


def turns(record: Any, keys: Keys, where: str) -> list[Turn]:
    """The turns of a record; none for an empty list. Raises FormatError, with `where`, on a record that has none."""
    if not isinstance(record, dict):
        raise FormatError(f"{where}: a record is {type(record).__name__}; it must be an object with fields")
    _check_read(record, TOOLS, where)
    names = [keys.messages] if keys.messages else ["messages", "conversations"]
    listed = [record[name] for name in names if name in record]
    if listed:
        return _listed(listed[0], where)
    wanted = {Role.SYSTEM: keys.system, Role.PROMPTER: keys.question, Role.ASSISTANT: keys.answer}
    missing = [name for name in wanted.values() if name and not isinstance(record.get(name), str)]
    if keys.messages or missing:
        raise FormatError(
            f"{where}: no list of turns under {' or '.join(names)}, and no text under {' and '.join(missing)} "
            f"(the record has {named(record)}); name the fields with --messages-key, or --question-key and --answer-key"
        )
    return [(role, _unicode(record[name], where)) for role, name in wanted.items() if name]


def _listed(messages: Any, where: str) -> list[Turn]:
    if not isinstance(messages, list):
        raise FormatError(f"{where}: the turns are {type(messages).__name__}; they must be a list")
    return [_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(messages)]


def _turn(turn: Any, where: str) -> Turn:
    for role, text in NAMES:
        if isinstance(turn, dict) and isinstance(turn.get(role), str) and isinstance(turn.get(text), str):
            if turn[role] not in KNOWN:
                raise FormatError(f"{where}: role {turn[role][:80]!r} is none of {', '.join(KNOWN)}")
            _check_read(turn, UNREAD, where)
            return KNOWN[turn[role]], _unicode(turn[text], where)
    raise FormatError(f"{where}: needs a role and a text, under role and content, or from and value")


def _check_read(fields: dict[str, Any], names: Sequence[str], where: str) -> None:
    """Refuse what would be left out in silence."""
    for name in names:
        if fields.get(name) not in PLAIN:
            raise FormatError(f"{where}: has {name}, which is not looked at; take it out, or drop that record")


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: the text is not Unicode ({error.reason}); drop or mend that record") from error
    return text


def spelled(conversation: Sequence[Turn], template: Template) -> list[Turn]:
    """The parts of the whole text, and who says each."""
    parts: list[Turn] = []
    for role, text in conversation:
        asked = role is Role.ASSISTANT and not template.header_is_answer
        parts.append((Role.PROMPTER if asked else role, f"<|im_start|>{template.words[role]}\n"))
        parts.append((role, f"{text}<|im_end|>\n"))
    return parts


def check_template(name: str, tokenizer: Any) -> None:
    """Refuse a template that there is not. Raises MconvError with those that there are."""
    if name == OWN and not getattr(tokenizer, "chat_template", None):
        raise MconvError(f"the tokenizer has no chat template; give --template, one of {', '.join(TEMPLATES)}")
    if name != OWN and name not in TEMPLATES:
        raise MconvError(f"--template is {name!r}; it must be {OWN} or one of {', '.join(TEMPLATES)}")
