"""Check that a chat template writes all of a conversation: a field that it ignores would be lost."""

import functools
import inspect
import json
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import jinja2.meta

from mconv.train.data.bad_records import BadRecord, Kind
from mconv.train.data.chat import Role, Talk, Turn
from mconv.train.data.claims import EMPTY, unknown_fields
from mconv.train.data.render import Render

MARK = "qz{}zq"
"""A mark that is appended to a text to see whether the template writes it; the number tells the texts apart."""
GENERATION = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")
"""A tag of transformers' own."""
IGNORES = "which the tokenizer's chat template does not write"


def check_variables(talk: Talk, tokenizer: Any) -> None:
    """Raise BadRecord where a record has a variable that the chat template does not read, or that is not its own."""
    if not talk.variables:
        return
    taken = {*inspect.signature(tokenizer.apply_chat_template).parameters, *tokenizer.special_tokens_map, "messages"}
    read = _variables(tokenizer.get_chat_template(None, talk.options.get("tools")))
    for name in talk.variables:
        if name in taken or name not in read:
            why = "a record may not set" if name in taken else "the tokenizer's chat template does not read"
            raise BadRecord(
                Kind.UNKNOWN_FIELD,
                f"chat_template_kwargs has {name!r}, which {why}; --ignore-field chat_template_kwargs passes over all",
            )


@functools.lru_cache(maxsize=16)
def _variables(source: str) -> frozenset[str]:
    """Return the variables that a template reads and does not set itself; none of one that does not parse."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])  # parsed, never run
    try:
        parsed = environment.parse(GENERATION.sub("", source))
    except jinja2.TemplateError:
        return frozenset()
    return frozenset(jinja2.meta.find_undeclared_variables(parsed))


def check_written(talk: Talk, whole: str, render: Render) -> None:
    """Raise BadRecord where `whole`, the template's text, lacks something that the conversation says."""
    for number, turn in enumerate(talk.turns):
        if isinstance(turn.content, list) and any(form in whole for form in _forms(turn.content)):
            raise BadRecord(
                Kind.TEMPLATE, f"the tokenizer's chat template takes texts, not lists of parts; turn {number} has one"
            )
    if not _plainly(talk, whole):
        _check_each(talk, whole, render)


def _forms(content: list[Any]) -> list[str]:
    """Return what a template writes that takes a list for a text."""
    return [str(content), json.dumps(content), json.dumps(content, ensure_ascii=False)] if content else []


def _plainly(talk: Talk, whole: str) -> bool:
    """Return whether there are but questions and answers, and their texts are found one behind the other."""
    at = 0
    for turn in talk.turns:
        if turn.message["role"] not in ("user", "assistant") or turn.extras or not isinstance(turn.content, str):
            return False
        text = turn.content.strip()
        found = whole.find(text, at)
        if found < 0:
            return False
        at = found + len(text)
    return not talk.options


def _check_each(talk: Talk, whole: str, render: Render) -> None:
    """Look for each text and each other field of a conversation in what the template writes."""
    for name in talk.options:
        if _same(whole, render, [turn.message for turn in talk.turns], without=name):
            raise unknown_fields("the record has", [name], IGNORES)
    implied = _implied(talk.turns)
    texts = [
        (number, name)
        for number, turn in enumerate(talk.turns)
        for name in ("content", *turn.extras)
        if turn.message.get(name) not in EMPTY and (number, name) not in implied
    ]
    for number, name in _unseen(talk.turns, texts, render):
        _check_one(talk.turns, number, name, whole, render)


def _unseen(turns: Sequence[Turn], texts: list[tuple[int, str]], render: Render) -> list[tuple[int, str]]:
    """Return those (turn, field) that are not shown to be written by one rendering with a mark behind each text."""
    marked = [dict(turn.message) for turn in turns]
    for count, (number, name) in enumerate(texts):
        marked[number][name] = _marked(marked[number][name], MARK.format(count))
    try:
        written = render(marked)
    except BadRecord:
        return texts
    return [text for count, text in enumerate(texts) if MARK.format(count) not in written]


def _marked(value: Any, mark: str) -> Any:
    """Return a text, or the last text of a list of parts, with a mark at its end; anything else as it is."""
    if isinstance(value, str):
        return value + mark
    if isinstance(value, list) and isinstance(value[-1], dict) and isinstance(value[-1].get("text"), str):
        return [*value[:-1], {**value[-1], "text": value[-1]["text"] + mark}]
    return value


def _check_one(turns: Sequence[Turn], number: int, name: str, whole: str, render: Render) -> None:
    """Raise BadRecord if the text is the same without a field of a turn, or with another content."""
    changed = [dict(turn.message) for turn in turns]
    if name == "content":
        changed[number][name] = _marked(changed[number][name], MARK.format(0))
    else:
        del changed[number][name]
    if not _same(whole, render, changed):
        return
    if name == "content":
        role = turns[number].message["role"]
        raise BadRecord(Kind.TEMPLATE, f"the tokenizer's chat template does not write turn {number}, of role {role!r}")
    raise unknown_fields(f"turn {number} has", [name], IGNORES)


def _same(whole: str, render: Render, messages: Sequence[dict[str, Any]], *, without: str = "") -> bool:
    """Return whether the text is the same; a template that refuses what was changed has looked at it."""
    try:
        return render(messages, without=without) == whole
    except BadRecord:
        return False


def _implied(turns: Sequence[Turn]) -> set[tuple[int, str]]:
    """Return (turn, field) of the ids and names of tools' answers that the order of the calls says already."""
    calls: list[dict[str, Any]] = []
    found = set()
    for number, turn in enumerate(turns):
        if turn.role is Role.ASSISTANT:
            calls = [call for call in turn.message.get("tool_calls") or [] if isinstance(call, dict)]
        elif turn.message["role"] == "tool" and calls:
            call = calls.pop(0)
            function = call.get("function")
            called = function.get("name") if isinstance(function, dict) else call.get("name")
            for name, value in (("tool_call_id", call.get("id")), ("name", called)):
                if turn.message.get(name) == value:
                    found.add((number, name))
    return found
