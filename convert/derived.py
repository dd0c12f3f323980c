"""Buffers that old files hold beside the weights and that follow from the config: rotary frequencies, causal masks.

transformers computes them anew and reads none of them; mconv leaves them out, and says so where what is stored does not
follow from the config.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from mconv.convert.formats.tensors import Located
from mconv.spec import ModelSpec

Check = Callable[[ModelSpec, torch.Tensor], bool]


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer by the end of its name; `check` says whether what is stored is what follows from the spec."""

    name: re.Pattern[str]
    what: str
    """What it is, and which keys of config.json it follows from."""
    check: Check


def frequencies(spec: ModelSpec) -> list[torch.Tensor]:
    """Return the rotary frequencies of a spec: those that are used, and those before any scaling (linear, llama3)."""
    rope, n = spec.rope, spec.kv_channels // 2
    plain = rope.base ** (-torch.arange(n, dtype=torch.float64) / n)
    if rope.kind == "linear":
        return [plain / rope.factor, plain]
    if rope.kind == "llama3":
        turns = rope.original_max_position_embeddings * plain / (2 * torch.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        kept = ((turns - low) / (high - low if high != low else 1.0)).clamp(0, 1)
        return [plain * (kept + (1 - kept) / rope.factor), plain]
    return [plain]


def _frequencies(spec: ModelSpec, stored: torch.Tensor) -> bool:
    flat = stored.double().flatten()
    return any(flat.shape == want.shape and torch.allclose(flat, want, rtol=1e-2) for want in frequencies(spec))


def _turned(function: Callable[[torch.Tensor], torch.Tensor]) -> Check:
    """Return a check of cosines or sines: (..., positions, head width), of which the row of position 1 is looked at."""

    def check(spec: ModelSpec, stored: torch.Tensor) -> bool:
        if stored.ndim < 2 or stored.shape[-2] < 2:
            return False
        row = stored.reshape(-1, *stored.shape[-2:])[0, 1].double()
        wanted = [function(torch.cat((one, one))) for one in frequencies(spec)]
        return any(row.shape == want.shape and torch.allclose(row, want, atol=1e-2) for want in wanted)

    return check


def _causal(spec: ModelSpec, stored: torch.Tensor) -> bool:
    """A lower triangle: its first row has one key, its last row all of them. Two rows are read, not the square."""
    if stored.ndim < 2 or not stored.numel() or stored.numel() != stored.shape[-1] ** 2:
        return False
    square = stored.reshape(stored.shape[-2:])
    first, last = (row.double().flatten() for row in (square[0], square[-1]))
    return bool(first[0]) and not bool(first[1:].any()) and bool(last.all())


def _single(spec: ModelSpec, stored: torch.Tensor) -> bool:
    """One large negative number, the score of a masked key."""
    return stored.numel() == 1 and float(stored.double().flatten()[0]) <= -1e3


ROTARY = r"(^|\.)(rotary_emb|maybe_rotary|rotary)\."
ATTENTION = r"(^|\.)(attn|self_attn|attention|self_attention)\."
ROTARY_BUFFERS = (
    Buffer(re.compile(ROTARY + r"(original_)?inv_freq$"), "rotary frequencies (rope_theta, rope_scaling)", _frequencies),
    Buffer(re.compile(ROTARY + r"cos_cached$"), "cosines of positions (rope_theta, rope_scaling)", _turned(torch.cos)),
    Buffer(re.compile(ROTARY + r"sin_cached$"), "sines of positions (rope_theta, rope_scaling)", _turned(torch.sin)),
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
        if not row.check(spec, where.load()):
            wrong.setdefault(row.what, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: not what follows from config.json as {what}; "
        "transformers does not read it and neither does mconv: config.json is what holds"
        for what, names in wrong.items()
    ]
