"""SentencePiece's `tokenizer.model`, read without its library: how many pieces, and which are BOS and EOS.

A protocol buffer, ModelProto of sentencepiece_model.proto. Of its fields these are read:

    1   pieces, repeated     1 piece, 3 type (1 if absent)
    2   trainer_spec         46 bos_piece, 47 eos_piece
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mconv.errors import FormatError

PIECES, TRAINER, PIECE, TYPE, BOS, EOS = 1, 2, 1, 3, 46, 47
NORMAL, UNKNOWN, CONTROL = 1, 2, 3
"""Types of pieces. What begins or ends a text is a control piece."""
FIXED = {1: 8, 5: 4}
"""Bytes of the wire types for doubles and floats."""
Value = int | bytes


@dataclass(frozen=True, slots=True)
class Pieces:
    """The facts of a SentencePiece model that mconv uses."""

    count: int
    bos: int | None
    eos: int | None


def read(path: Path) -> Pieces:
    """Return what a `tokenizer.model` says. Raises FormatError if it is no SentencePiece model."""
    try:
        fields = list(_fields(path.read_bytes()))
        types = dict(_piece(value) for number, value in fields if number == PIECES)
        trainer = dict(pair for number, value in fields if number == TRAINER for pair in _fields(_bytes(value)))
        names = [_bytes(trainer.get(number, default)) for number, default in ((BOS, b"<s>"), (EOS, b"</s>"))]
    except (ValueError, IndexError) as error:
        raise _not(path) from error
    count = sum(number == PIECES for number, _ in fields)
    if len(types) != count or b"" in types or list(types.values()).count(UNKNOWN) != 1:  # what its library refuses
        raise _not(path)
    control = {piece: at for at, (piece, kind) in enumerate(types.items()) if kind == CONTROL}
    return Pieces(count, *map(control.get, names))


def _not(path: Path) -> FormatError:
    return FormatError(f"{path}: neither a SentencePiece model nor Llama 3's list of tokens")


def _piece(value: Value) -> tuple[bytes, Value]:
    """Return a piece and its type."""
    fields = dict(_fields(_bytes(value)))
    return _bytes(fields.get(PIECE, b"")), fields.get(TYPE, NORMAL)


def _bytes(value: Value) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a text or a message is wanted")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Yield the fields of a message in order: number, and value. Raises ValueError or IndexError if it is none."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in FIXED:
            size = FIXED[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number, and where it ends: seven bits a byte, the lowest first, the top bit set in all but the last."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
