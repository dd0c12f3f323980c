"""A record of a data set as a conversation."""

import json
from collections.abc import Mapping
from typing import Any

from mconv.train.data.bad_records import BadRecord, Kind
from mconv.train.data.chat import ROLES, Role, Talk, Turn
from mconv.train.data.claims import EMPTY, Keys, Use, learnt, record_claims, unknown_fields
from mconv.train.data.reading.fields import in_words, named
from mconv.train.data.turns import turn_of

Fields = dict[Use, dict[str, Any]]
"""The fields of a record by what is done with them."""


def talk_of(record: Any, keys: Keys, ignore: frozenset[str] = frozenset()) -> Talk:
    """Return the conversation of a record; without turns for an empty list. Raises BadRecord on one that has none."""
    if not isinstance(record, dict):
        raise BadRecord(Kind.NO_OBJECT, f"a record is {type(record).__name__}; it must be an object with fields")
    made = Talk([])
    fields = _claimed(record, record_claims(keys), ignore, made)
    made.turns = _turns(record, fields, keys, ignore, made)
    made.options = {name: found for name, value in fields.get(Use.OPTION, {}).items() if (found := _objects(name, value))}
    for name, value in fields.get(Use.VARIABLES, {}).items():
        made.variables |= _of_type(value, dict, name)
    _switch_off(made.turns, fields)
    return made


def _claimed(record: dict[str, Any], claims: Mapping[str, Use], ignore: frozenset[str], made: Talk) -> Fields:
    """Sort the fields of a record by their use; null is as good as not there. Raises BadRecord on unknown ones."""
    fields: Fields = {}
    unknown = []
    for name, value in record.items():
        if name in ignore:
            made.ignored.append(name)
        elif (use := claims.get(name)) is Use.NOTE:
            made.unread.append(name)
        elif use is not None and value is not None:
            fields.setdefault(use, {})[name] = value
        elif use is None and value not in EMPTY:
            unknown.append(name)
    if unknown and (Use.TURNS in fields or {Use.QUESTION, Use.ANSWER} <= fields.keys()):
        raise unknown_fields("the record has", unknown, "which mconv does not know")
    return fields  # without turns that is what is wrong with the record


def _turns(record: dict[str, Any], fields: Fields, keys: Keys, ignore: frozenset[str], made: Talk) -> list[Turn]:
    """Return the turns of a record, its system text first."""
    lists = fields.get(Use.TURNS, {})
    if lists:
        read = {
            name: _listed(value, ignore, made if n == 0 else Talk([])) for n, (name, value) in enumerate(lists.items())
        }
        turns = _same(read, "list of turns")
        _repeated(turns, fields)
    else:
        turns = _asked(record, fields, keys)
    systems = {name: _of_type(value, str, name) for name, value in fields.get(Use.SYSTEM, {}).items()}
    said = {name: text for name, text in systems.items() if text or name == keys.system}
    return _with_system(_same(said, "system text"), next(iter(said)), turns) if said else turns


def _same(found: dict[str, Any], what: str) -> Any:
    """Return the value that several fields have. Raises BadRecord where they differ."""
    (first, value), *others = found.items()
    for name, other in others:
        if other != value:
            raise BadRecord(Kind.CONTRADICTION, f"{first} and {name} are both there, and each has another {what}")
    return value


def _with_system(text: str, name: str, turns: list[Turn]) -> list[Turn]:
    """Return the turns with the record's system text as the first. Raises BadRecord if another one is there."""
    if not any(turn.role is Role.SYSTEM for turn in turns):
        return [Turn(Role.SYSTEM, {"role": "system", "content": text}), *turns]
    first, *rest = turns
    if first.content != text or any(turn.role is Role.SYSTEM for turn in rest):
        raise BadRecord(
            Kind.CONTRADICTION, f"{name} has the system's text, and the turns have another one of role system"
        )
    return turns


def _asked(record: dict[str, Any], fields: Fields, keys: Keys) -> list[Turn]:
    """Return the turns of a record without a list: pairs of its history, the question with its input, the answer."""
    texts = {}
    for use, given, default in ((Use.QUESTION, keys.question, "question"), (Use.ANSWER, keys.answer, "answer")):
        found = {name: _of_type(value, str, name) for name, value in fields.get(use, {}).items()}
        if not found or keys.messages:
            raise _nothing(record, fields, keys, {use: given or default})
        texts[use] = _same(found, use.name.lower())
    inputs = {name: _of_type(value, str, name) for name, value in fields.get(Use.INPUT, {}).items()}
    question = "\n".join(text for text in (texts[Use.QUESTION], *inputs.values()) if text)
    pairs = [pair for value in fields.get(Use.HISTORY, {}).values() for pair in _of_type(value, list, "history")]
    return [turn for pair in [*map(_pair, pairs), (question, texts[Use.ANSWER])] for turn in _exchange(*pair)]


def _nothing(record: dict[str, Any], fields: Fields, keys: Keys, wanted: dict[Use, str]) -> BadRecord:
    """Return the error about a record in which there is no conversation."""
    missing = [name for use, name in wanted.items() if use not in fields]
    names = [keys.messages] if keys.messages else ["messages", "conversations"]
    null = [name for name in (*names, *missing) if name in record and record[name] is None]
    texts = f", and no text under {' and '.join(missing)}" if missing and not keys.messages else ""
    seen = f"{null[0]} is null" if null else f"the record has {named(record)}"
    return BadRecord(
        Kind.NULL if null else Kind.NO_FIELD,
        f"no list of turns under {' or '.join(names)}{texts} ({seen}); name the fields with --messages-key, or "
        "--question-key and --answer-key",
    )


def _pair(pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise BadRecord(Kind.WRONG_TYPE, f"history must be a list of pairs of texts; it holds {pair!r:.60}")
    return pair[0], pair[1]


def _exchange(question: str, answer: str) -> list[Turn]:
    return [
        Turn(Role.PROMPTER, {"role": "user", "content": question}),
        Turn(Role.ASSISTANT, {"role": "assistant", "content": answer}),
    ]


def _repeated(turns: list[Turn], fields: Fields) -> None:
    """Raise BadRecord where a record with a list has a text beside it that no turn says."""
    roles = {Use.QUESTION: Role.PROMPTER, Use.ANSWER: Role.ASSISTANT, Use.INPUT: None, Use.HISTORY: None}
    for use, role in roles.items():
        said = {str(turn.content).strip() for turn in turns if turn.role is role}
        for name, value in fields.get(use, {}).items():
            if value not in EMPTY and str(value).strip() not in said:
                raise BadRecord(
                    Kind.CONTRADICTION,
                    f"{name} stands beside a list of turns, and no turn says it; --ignore-field {name} passes over it",
                )


def _of_type(value: Any, kind: type, name: str) -> Any:
    """Return a value of the wanted type. Raises BadRecord on others."""
    if not isinstance(value, kind):
        raise BadRecord(Kind.WRONG_TYPE, f"{name} holds {in_words(value)}; it must be {in_words(kind())}")
    return value


def _objects(name: str, value: Any) -> list[dict[str, Any]]:
    """Return tools or documents as a list of objects; many data sets have them as JSON inside a text."""
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value) if value.strip() else []
        except ValueError:
            found = value
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise BadRecord(Kind.WRONG_TYPE, f"{name} must be a list of objects, or a text with the JSON of one")
    return found


def _switch_off(turns: list[Turn], fields: Fields) -> None:
    """Exclude all answers of a record from the loss, if its switches say so."""
    switches = [(name, use, value) for use in (Use.LEARNT, Use.MASKED) for name, value in fields.get(use, {}).items()]
    for name, value in fields.get(Use.MASKED_ROLE, {}).items():
        if ROLES.get(str(value).casefold(), ("", None))[1] is not Role.PROMPTER:
            raise BadRecord(Kind.SWITCH, f"{name} is {value!r:.60}; beside a list of turns it must name the user's role")
    if learnt(switches, "") is not False:
        return
    for number, turn in enumerate(turns):
        if turn.role is Role.ASSISTANT and turn.switch:
            raise BadRecord(
                Kind.CONTRADICTION, f"the record is excluded from the loss ({switches[0][0]}), but not its turn {number}"
            )
        turn.switch = False


def _listed(messages: Any, ignore: frozenset[str], made: Talk) -> list[Turn]:
    if not isinstance(messages, list):
        raise BadRecord(Kind.WRONG_TYPE, f"the turns are {type(messages).__name__}; they must be a list")
    return [turn_of(turn, f"turn {number}", ignore, made) for number, turn in enumerate(messages)]
