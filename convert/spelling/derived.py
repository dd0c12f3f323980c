"""Buffers that old files hold beside the weights and that follow from the config: rotary frequencies, causal masks.

transformers computes them anew and reads none of them; mconv leaves them out, and says so where what is stored does not
follow from the config.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mconv.convert.formats import numbers
from mconv.convert.formats.tensors import Located
from mconv.spec import ModelSpec

Check = Callable[[ModelSpec, Located], bool]


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer by the end of its name; `check` says whether what is stored is what follows from the spec."""

    name: re.Pattern[str]
    what: str
    """The buffer in words, with the keys of config.json that it follows from."""
    check: Check


def rotary(base: float, n: int) -> list[float]:
    """Return the `n` rotary frequencies of a base: base ** (-i / n)."""
    return [math.exp(min(700.0, -i / n * math.log(base))) for i in range(n)]  # no base that a file names can overflow


def frequencies(spec: ModelSpec) -> list[list[float]]:
    """Return the rotary frequencies of a spec: those that are used, and those before any scaling (linear, llama3)."""
    rope = spec.rope
    plain = rotary(rope.base, spec.kv_channels // 2)
    if rope.kind == "linear":
        return [[one / rope.factor for one in plain], plain]
    if rope.kind == "llama3":
        low, high = rope.low_freq_factor, rope.high_freq_factor
        turns = [rope.original_max_position_embeddings * one / (2 * math.pi) for one in plain]
        kept = [min(1.0, max(0.0, (turn - low) / (high - low if high != low else 1.0))) for turn in turns]
        return [[one * (k + (1 - k) / rope.factor) for one, k in zip(plain, kept, strict=True)], plain]
    return [plain]


def close(found: Sequence[float], wanted: Sequence[float], *, rtol: float = 0.0, atol: float = 1e-8) -> bool:
    """Return whether numbers are the same within a tolerance; NaN is no number."""
    return all(abs(x - y) <= atol + rtol * abs(y) for x, y in zip(found, wanted, strict=True))


def _frequencies(spec: ModelSpec, where: Located) -> bool:
    n = spec.kv_channels // 2
    if math.prod(where.shape) != n:
        return False
    found = numbers.read(where, n)
    return any(close(found, wanted, rtol=1e-2) for wanted in frequencies(spec))


def _turned(function: Callable[[float], float]) -> Check:
    """Return a check of cosines or sines: (..., positions, head width), of which the row of position 1 is looked at."""

    def check(spec: ModelSpec, where: Located) -> bool:
        width = spec.kv_channels // 2 * 2
        if not math.prod(where.shape) or where.shape[-2:-1] < (2,) or where.shape[-1] != width:
            return False
        row = numbers.read(where, width, start=width)
        wanted = ([function(one) if math.isfinite(one) else math.nan for one in found] for found in frequencies(spec))
        return any(close(row, [*half, *half], rtol=1e-5, atol=1e-2) for half in wanted)

    return check


def _causal(spec: ModelSpec, where: Located) -> bool:
    """A lower triangle: its first row has one key, its last row all of them. Two rows are read, not the square."""
    n = where.shape[-1] if len(where.shape) >= 2 else 0
    if not n or math.prod(where.shape) != n**2:
        return False
    first, last = numbers.read(where, n), numbers.read(where, n, start=n * (n - 1))
    return bool(first[0]) and not any(first[1:]) and all(last)


def _single(spec: ModelSpec, where: Located) -> bool:
    """One large negative number, the score of a masked key."""
    return math.prod(where.shape) == 1 and numbers.read(where, 1)[0] <= -1e3


ROTARY = r"(^|\.)(rotary_emb|maybe_rotary|rotary)\."
ATTENTION = r"(^|\.)(attn|self_attn|attention|self_attention)\."
ROTARY_BUFFERS = (
    Buffer(re.compile(ROTARY + r"(original_)?inv_freq$"), "rotary frequencies (rope_theta, rope_scaling)", _frequencies),
    Buffer(re.compile(ROTARY + r"cos_cached$"), "cosines of positions (rope_theta, rope_scaling)", _turned(math.cos)),
    Buffer(re.compile(ROTARY + r"sin_cached$"), "sines of positions (rope_theta, rope_scaling)", _turned(math.sin)),
)
MASKS = (
    Buffer(re.compile(ATTENTION + r"bias$"), "the causal mask", _causal),
    Buffer(re.compile(ATTENTION + r"masked_bias$"), "the score of masked keys", _single),
)
"""`attention.bias` is a mask by its shape, a square: of another shape it is a tensor like any other."""


def buffer_of(name: str, where: Located, buffers: tuple[Buffer, ...]) -> Buffer | None:
    """Return the row that a stored tensor is of, or None for a weight."""
    for row in buffers:
        square = len(where.shape) >= 2 and where.shape[-1] == where.shape[-2]
        if row.name.search(name) and (row.check is not _causal or square):
            return row
    return None


def notes_on(spec: ModelSpec, found: Mapping[str, tuple[Buffer, Located]]) -> list[str]:
    """Return what the user should know: buffers that are not what follows from the config, one line for each row."""
    wrong: dict[str, list[str]] = {}
    for name, (row, where) in found.items():
        if where.dtype not in numbers.KNOWN or not row.check(spec, where):
            wrong.setdefault(row.what, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: not what follows from config.json as {what}; "
        "transformers does not read it and neither does mconv: config.json decides"
        for what, names in wrong.items()
    ]
