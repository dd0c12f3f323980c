"""A conversation: its turns, who says each, and the templates that mconv knows by name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from mconv.errors import MconvError
from mconv.train.data.bad_records import BadRecord, Kind
from mconv.train.data.claims import unknown_fields


class Role(IntEnum):
    """Who says a token, by the numbers of Megatron-LLM's role files."""

    SYSTEM = 0
    PROMPTER = 1
    ASSISTANT = 2


ROLES: dict[str, tuple[str, Role]] = {
    "system": ("system", Role.SYSTEM), "developer": ("developer", Role.SYSTEM),
    "user": ("user", Role.PROMPTER), "human": ("user", Role.PROMPTER), "prompter": ("user", Role.PROMPTER),
    "assistant": ("assistant", Role.ASSISTANT), "gpt": ("assistant", Role.ASSISTANT),
    "bot": ("assistant", Role.ASSISTANT), "model": ("assistant", Role.ASSISTANT),
    "tool": ("tool", Role.PROMPTER), "observation": ("tool", Role.PROMPTER), "ipython": ("ipython", Role.PROMPTER),
    "function": ("function", Role.PROMPTER),
}  # fmt: skip
"""Role names of data sets, in any case -> the chat templates' name of the role, and the role of the tokens."""


@dataclass(slots=True)
class Turn:
    """One turn of a conversation."""

    role: Role
    message: dict[str, Any]
    """The turn as a chat template gets it: role, content and every other field that is not null."""
    extras: Sequence[str] = ()
    """Fields of `message`, apart from role and content, that are not empty: a template must write them."""
    switch: bool | None = None
    """True or false if a switch in the record says whether the loss counts the turn; None without one."""

    @property
    def counted(self) -> Role:
        """Return the role of its tokens in the role file. An answer without loss is part of the prompt."""
        return Role.PROMPTER if self.role is Role.ASSISTANT and self.switch is False else self.role

    @property
    def content(self) -> Any:
        """Return what is said: a text, a list of parts, or None."""
        return self.message.get("content")


@dataclass(slots=True)
class Talk:
    """A conversation, and what was passed over in its record."""

    turns: list[Turn]
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments `tools` and `documents` of apply_chat_template."""
    variables: dict[str, Any] = field(default_factory=dict)
    """Other variables of the chat template."""
    ignored: list[str] = field(default_factory=list)
    """Fields that the user ignores, as often as they are there."""
    unread: list[str] = field(default_factory=list)
    """Fields that say nothing of the conversation, by the table, as often as they are there."""


Part = tuple[Role, str]
"""A part of a conversation's text, and who says it."""


@dataclass(frozen=True, slots=True)
class Template:
    """<|im_start|>WORD, a line's end, the text, <|im_end|>, a line's end: for each turn."""

    words: dict[str, str]
    """Its word for each role that it can write."""
    header_is_answer: bool
    """True if the assistant's <|im_start|>WORD counts as part of its answer. In a prompt to a model it is given."""


OWN = "tokenizer"
TEMPLATES = {
    "chatml": Template({word: word for word in ("system", "user", "assistant")}, header_is_answer=False),
    "megatron-llm": Template({"system": "system", "user": "question", "assistant": "answer"}, header_is_answer=True),
}
"""Templates by name, apart from the tokenizer's own; the second gives Megatron-LLM's files byte for byte."""


def spelled(talk: Talk, name: str) -> list[Part]:
    """Return the parts of a conversation's text by a named template, which writes roles and texts alone."""
    template = TEMPLATES[name]
    if extra := [*talk.options, *(["chat_template_kwargs"] if talk.variables else [])]:
        raise unknown_fields("the record has", extra, f"which --template {name} does not write")
    parts: list[Part] = []
    for number, turn in enumerate(talk.turns):
        text = _plain(turn, number, template, name)
        asked = turn.role is Role.ASSISTANT and not template.header_is_answer
        header = f"<|im_start|>{template.words[turn.message['role']]}\n"
        parts.append((Role.PROMPTER if asked else turn.counted, header))
        parts.append((turn.counted, f"{text}<|im_end|>\n"))
    return parts


def _plain(turn: Turn, number: int, template: Template, name: str) -> str:
    """Return a turn's text. Raises BadRecord if there is more to it than a text by a role that the template knows."""
    if turn.extras:
        raise unknown_fields(f"turn {number} has", turn.extras, f"which --template {name} does not write")
    if (role := turn.message["role"]) not in template.words:
        raise BadRecord(
            Kind.UNKNOWN_ROLE, f"turn {number}: --template {name} writes {', '.join(template.words)}, but not {role!r}"
        )
    content = turn.content
    if isinstance(content, list) and len(content) == 1:
        content = content[0]["text"]
    if not isinstance(content, str):
        raise BadRecord(Kind.WRONG_TYPE, f"turn {number}: its content is a list of parts; --template {name} takes a text")
    return content


def check_template(name: str, tokenizer: Any) -> None:
    """Refuse a template that there is not. Raises MconvError with those that there are."""
    if name == OWN and not getattr(tokenizer, "chat_template", None):
        raise MconvError(f"the tokenizer has no chat template; give --template, one of {', '.join(TEMPLATES)}")
    if name != OWN and name not in TEMPLATES:
        raise MconvError(f"--template is {name!r}; it must be {OWN} or one of {', '.join(TEMPLATES)}")
