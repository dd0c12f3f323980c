"""Faults that change the values of a tensor in a known way, exact to a rounding."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mconv.convert.sources.checks import bits
from mconv.verify.diagnosis.pair import Hit, TensorPair, same

FRACTION = {torch.float64: 52, torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
"""Bits of the mantissa."""
CHUNK = 1 << 20
"""Elements in memory at once, in double precision."""


@dataclass(frozen=True, slots=True, eq=False)
class Flip:
    """Flips one bit of one element."""

    at: tuple[int, ...]
    bit: int
    dtype: torch.dtype

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        out = tensor.to(self.dtype, copy=True)
        whole = bits(out)
        width = 8 * self.dtype.itemsize
        value = int(whole[self.at]) ^ (1 << self.bit if self.bit < width - 1 else -(1 << self.bit))
        whole[self.at] = value
        return whole.view(self.dtype).to(tensor.dtype)


def bit_flipped(pair: TensorPair) -> Hit | None:
    """Return the fault if one element differs in one bit."""
    if pair.difference.elements != 1 or pair.x.shape != pair.y.shape:
        return None
    at = tuple(pair.difference.at.values())
    width = 8 * pair.dtype.itemsize
    apart = (int(pair.x[at]) ^ int(pair.y[at])) & ((1 << width) - 1)
    if apart.bit_count() != 1:
        return None
    bit = apart.bit_length() - 1
    part = "sign" if bit == width - 1 else "exponent" if bit >= FRACTION[pair.dtype] else "mantissa"
    place = ", ".join(f"{name} {i}" for name, i in pair.difference.at.items())
    what = f"one {part} bit (bit {bit} of {width}) is flipped at {place}: {pair.difference.a} became {pair.difference.b}"
    return Hit("bit-flipped", what, Flip(at, bit, pair.dtype))


def zeroed(pair: TensorPair) -> Hit | None:
    """Return the fault if all of b is zero where a has values."""
    if pair.b.count_nonzero() or pair.a.shape != pair.b.shape:
        return None
    if pair.difference.tensor.endswith(".bias"):
        return Hit("bias-dropped", "the bias is zero where a has values", None)
    return Hit("zeroed", "all of it is zero where a has values", None)


def norm_dropped(pair: TensorPair) -> Hit | None:
    """Return the fault if a norm's weight is 1 throughout, as before training."""
    if not _norm_weight(pair) or not bool((pair.b == 1).all()):
        return None
    return Hit("norm-dropped", "the norm's weight is 1 throughout, as before any training", None)


def _norm_weight(pair: TensorPair) -> bool:
    return pair.kind == "norm" and pair.difference.tensor.endswith(".weight") and same_kind(pair)


def norm_off_by_one(pair: TensorPair) -> Hit | None:
    """Return the fault if a norm's weight is off by one: some programs store it less one."""
    if not _norm_weight(pair):
        return None
    one, two = pair.a.double(), pair.b.double()
    for by in (1.0, -1.0):
        largest = torch.stack([one.abs(), two.abs(), torch.ones_like(one)]).amax(0)
        if bool(((two - one - by).abs() <= torch.finfo(pair.dtype).eps * largest).all()):
            return Hit("norm-off-by-one", f"the norm's weight is a's {'plus' if by > 0 else 'minus'} one", Add(-by))
    return None


@dataclass(frozen=True, slots=True)
class Add:
    """Adds a number to each element."""

    number: float

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.double() + self.number).to(tensor.dtype)


@dataclass(frozen=True, slots=True)
class Times:
    """Multiplies each element by a number."""

    number: float

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.double() * self.number).to(tensor.dtype)


def factor(pair: TensorPair) -> Hit | None:
    """Return the fault if b is a times one number, to a rounding of the narrower dtype."""
    eps = torch.finfo(pair.dtype).eps
    if not same_kind(pair) or pair.a.numel() < 2:
        return None
    one, two = next(_chunks(pair))
    power = float((one * one).sum())
    by = float((one * two).sum()) / power if power else 0.0
    if not by or abs(by - 1) <= 4 * eps or not all(_times(x, y, by, pair.dtype) for x, y in _chunks(pair)):
        return None
    what = "it has the other sign" if abs(by + 1) <= eps else f"it is {by:.6g} times a's"
    return Hit("factor", what, Times(1 / by))


def _times(x: torch.Tensor, y: torch.Tensor, by: float, dtype: torch.dtype) -> bool:
    info = torch.finfo(dtype)
    return bool(((y - by * x).abs() <= info.eps * y.abs() + info.smallest_normal * info.eps).all())


def _chunks(pair: TensorPair) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    one, two = pair.a.flatten(), pair.b.flatten()
    for start in range(0, len(one), CHUNK):
        yield one[start : start + CHUNK].double(), two[start : start + CHUNK].double()


def same_kind(pair: TensorPair) -> bool:
    """Return whether both have one shape and are finite where they differ."""
    return pair.a.shape == pair.b.shape and not pair.difference.nonfinite


@dataclass(frozen=True, slots=True)
class Transpose:
    """Transposes the matrix that some slots (None: all) of the tensor make."""

    slots: tuple[int, int] | None

    def part(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.slots is None else tensor[:, slice(*self.slots)]

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        out, part = tensor.clone(), self.part(tensor)
        side = round(part.numel() ** 0.5)
        self.part(out).copy_(part.reshape(side, side).T.reshape(part.shape))
        return out


def transposed(pair: TensorPair) -> Hit | None:
    """Return the fault if a square matrix is transposed: a whole tensor, or a part that Hugging Face stores by itself."""
    groups = pair.axes.groups
    if not pair.permuted or len(groups) != 2:
        return None
    parts: dict[str, Transpose] = {"it": Transpose(None)}
    if groups[0] == ("g", "s", "h"):
        queries = pair.x.shape[1] - 2
        ends = {"q": (0, queries), "k": (queries, queries + 1), "v": (queries + 1, queries + 2)}
        parts |= {name: Transpose(where) for name, where in ends.items()}
    columns = pair.x.shape[len(groups[0]) :].numel()
    for name, way in parts.items():
        if way.part(pair.x).numel() == columns**2 and same(pair.a, way(pair.b)):
            return Hit("transposed", f"{name} is transposed", way)
    return None
