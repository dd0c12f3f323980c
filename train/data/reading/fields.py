"""The fields of a record, and the text under one of them."""

import json
from codecs import BOM_UTF8
from collections.abc import Sequence
from typing import Any

from mconv.train.data.bad_records import BadRecord, Kind


def decoded(line: bytes) -> str:
    """Return a line as text, without a byte order mark at its start. Raises BadRecord if it is not UTF-8."""
    return utf8(line, "utf-8-sig" if line.startswith(BOM_UTF8) else "utf-8")


def utf8(line: bytes, codec: str = "utf-8") -> str:
    """Return bytes as text. Raises BadRecord if they are not UTF-8."""
    try:
        return line.decode(codec)
    except UnicodeDecodeError as error:
        raise BadRecord(
            Kind.NOT_UTF8, f"the text is not UTF-8 (byte {error.start}: {error.reason}); convert the file first"
        ) from None


def parsed(line: bytes) -> Any:
    """Return a line's JSON. Raises BadRecord if it is none, or has a field twice."""
    text = decoded(line)
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadRecord):
            raise
        why = f"{error.msg} at letter {error.pos}" if isinstance(error, json.JSONDecodeError) else error
        raise BadRecord(Kind.NOT_JSON, f"not JSON: {why}{ARRAY * text.lstrip().startswith('[')}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object. Raises BadRecord where a name is there twice, with two values."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        for name, value in pairs:
            if fields[name] != value:
                raise BadRecord(Kind.CONTRADICTION, f"the field {name!r} is there twice, with two values")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_unique)
ARRAY = "; one object a line is read, not one array a file: `jq -c '.[]'` writes its items a line each"


def texts_of(record: Any, keys: Sequence[str]) -> tuple[str, ...] | BadRecord:
    """Return the texts of a record under `keys`, or the BadRecord that says what is wrong."""
    if isinstance(record, BadRecord):
        return record
    try:
        return tuple(_text(record, key) for key in keys)
    except BadRecord as error:
        return error


def _text(record: Any, key: str) -> str:
    """Return the text of a record under `key`, as text that can be encoded."""
    if not isinstance(record, dict):
        raise BadRecord(
            Kind.NO_OBJECT, f"no text under {key!r}: it is {in_words(record)}{ARRAY * isinstance(record, list)}"
        )
    if key not in record:
        raise BadRecord(
            Kind.NO_FIELD, f"no text under {key!r} (the record has {named(record)}); name the field with --key"
        )
    value = record[key]
    if not isinstance(value, str):
        kind = Kind.NULL if value is None else Kind.WRONG_TYPE
        raise BadRecord(kind, f"no text under {key!r}: it is {in_words(value)}")
    return unicode(value)


def unicode(text: str) -> str:
    """Return the text. Raises BadRecord if it holds half of a surrogate pair, which no encoding writes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(Kind.NOT_UNICODE, f"the text is not Unicode ({error.reason}); drop or mend that record") from None
    return text


def in_words(value: Any) -> str:
    """Return in words what a JSON value is: `null`, `the number 7`, `a list`."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {value!r:.20}"
    words: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
    return words.get(type(value), type(value).__name__)


def named(record: Any) -> str:
    """Return the first fields of a record, or its type, for an error message."""
    if not isinstance(record, dict):
        return type(record).__name__
    return f"{sorted(record)[:20]}{' and more' * (len(record) > 20)}"
