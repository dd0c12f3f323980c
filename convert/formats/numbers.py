"""A few stored elements as plain numbers: what is looked at before anything is converted, without torch."""

import struct

from mconv.convert.formats import dtype as d
from mconv.convert.formats.tensors import Located

CODES = {
    d.FLOAT64: "d", d.FLOAT32: "f", d.FLOAT16: "e", d.INT64: "q", d.INT32: "i", d.INT16: "h", d.INT8: "b",
    d.UINT8: "B", d.UINT16: "H", d.UINT32: "I", d.BOOL: "?",
}  # fmt: skip
KNOWN = CODES.keys() | {d.BFLOAT16}
"""Dtypes whose elements can be read here; 8-bit floats and complex numbers cannot."""


def read(where: Located, count: int, *, start: int = 0) -> list[int | float]:
    """Return `count` elements of a tensor of a `KNOWN` dtype, in the order of the file, from number `start` on."""
    with where.path.open("rb") as file:
        file.seek(where.offset + start * where.dtype.itemsize)
        data = file.read(count * where.dtype.itemsize)
    if where.dtype == d.BFLOAT16:  # the upper half of a float32
        data, code = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2)), "f"
    else:
        code = CODES[where.dtype]
    return list(struct.unpack(f"<{count}{code}", data))
