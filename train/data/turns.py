"""A turn of a conversation record: its role, its content, its switches, and what else a chat template gets."""

from typing import Any

from mconv.train.data.bad_records import BadRecord, Kind
from mconv.train.data.chat import ROLES, Role, Talk, Turn
from mconv.train.data.claims import EMPTY, REASONING, TURN_CLAIMS, Use, learnt
from mconv.train.data.reading.fields import in_words

NEEDED = "needs a role and a text, under role and content, or from and value"


def turn_of(turn: Any, where: str, ignore: frozenset[str], made: Talk) -> Turn:
    """Return a turn; what is passed over in it is noted in `made`. Raises BadRecord on one that cannot be used."""
    if not isinstance(turn, dict):
        raise BadRecord(Kind.WRONG_TYPE, f"{where}: {NEEDED}; it is {in_words(turn)}")
    parts: dict[Use, dict[str, Any]] = {Use.ROLE: {}, Use.CONTENT: {}, Use.LEARNT: {}, Use.MASKED: {}}
    message: dict[str, Any] = {}
    extras = []
    for name, value in turn.items():
        use = TURN_CLAIMS.get(name)
        if name in ignore:
            made.ignored.append(name)
        elif value is None:
            continue  # not there: transformers takes it so, too
        elif use in parts:
            parts[use][name] = value
        else:
            message[name] = value
            if use is Use.NOTE:
                made.unread.append(name)
            elif value not in EMPTY:
                extras.append(name)
    word, role = _role(parts[Use.ROLE], turn, where)
    said = _content(parts[Use.CONTENT], bool(extras), turn, where)
    switches = {**parts[Use.LEARNT], **parts[Use.MASKED]}
    message = {"role": word, **said, **message, **switches}
    return Turn(role, message, _one_reasoning(extras, message, where), _switch(switches, role, where))


def _role(found: dict[str, Any], turn: dict[str, Any], where: str) -> tuple[str, Role]:
    """Return the chat templates' word for who speaks, and whose tokens these are."""
    if not found:
        kind = Kind.NULL if {"role", "from"} & turn.keys() else Kind.NO_FIELD
        raise BadRecord(kind, f"{where}: {NEEDED}")
    for value in found.values():
        if not isinstance(value, str):
            raise BadRecord(Kind.WRONG_TYPE, f"{where}: {NEEDED}; its role is {in_words(value)}")
        if value.casefold() not in ROLES:
            raise BadRecord(Kind.UNKNOWN_ROLE, f"{where}: role {value[:80]!r} is none of {', '.join(ROLES)}")
    words = {ROLES[value.casefold()] for value in found.values()}
    if len(words) > 1:
        raise BadRecord(Kind.CONTRADICTION, f"{where}: role and from are both there, and differ")
    return words.pop()


def _content(found: dict[str, Any], more: bool, turn: dict[str, Any], where: str) -> dict[str, Any]:
    """Return what is said, as `content`; empty where other fields say all (`more`), such as calls of tools."""
    if not found:
        if more:
            return {}
        kind = Kind.NULL if {"content", "value"} & turn.keys() else Kind.NO_FIELD
        raise BadRecord(kind, f"{where}: {NEEDED}" + "; its text is null" * (kind is Kind.NULL))
    content, *others = found.values()
    if any(other != content for other in others):
        raise BadRecord(Kind.CONTRADICTION, f"{where}: content and value are both there, and differ")
    if isinstance(content, list):
        for part in content:
            _check_part(part, where)
    elif not isinstance(content, str):
        raise BadRecord(Kind.WRONG_TYPE, f"{where}: {NEEDED}; its text is {in_words(content)}")
    return {"content": content}


def _check_part(part: Any, where: str) -> None:
    """Raise BadRecord unless a part of a content list is a text and nothing else."""
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = repr(part.get("type"))[:80] if isinstance(part, dict) else in_words(part)
        raise BadRecord(Kind.WRONG_TYPE, f"{where}: its content has a part of type {kind}; only text can be learnt from")
    if other := [name for name, value in part.items() if name not in ("type", "text") and value not in EMPTY]:
        raise BadRecord(Kind.UNKNOWN_FIELD, f"{where}: a part of its content has {other[0]!r}, which mconv does not know")


def _one_reasoning(extras: list[str], message: dict[str, Any], where: str) -> list[str]:
    """Return the extras with one name for the reasoning. Raises BadRecord where two names of it differ."""
    names = [name for name in REASONING if name in extras]
    for other in names[1:]:
        if message[other] != message[names[0]]:
            raise BadRecord(Kind.CONTRADICTION, f"{where}: {names[0]} and {other} are both there, and differ")
    return [name for name in extras if name not in names[1:]]


def _switch(found: dict[str, Any], role: Role, where: str) -> bool | None:
    """Return whether the loss is to count a turn. Raises BadRecord where it says yes to a turn that is no answer."""
    if not found:
        return None
    says = learnt([(name, TURN_CLAIMS[name], value) for name, value in found.items()], f"{where}: ")
    if says and role is not Role.ASSISTANT:
        raise BadRecord(
            Kind.CONTRADICTION,
            f"{where}: {next(iter(found))} has the loss count it, but only the assistant's turns are learnt from; "
            f"--ignore-field {next(iter(found))} passes over it everywhere",
        )
    return says
