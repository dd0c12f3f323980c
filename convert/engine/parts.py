"""The parts of a conversion: what is written under one prefix, from one source."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mconv.convert.formats.dtype import DType
from mconv.convert.formats.tensors import Target
from mconv.convert.sources.source import Source, usual_dtype
from mconv.convert.spelling.table import Logical, Stored
from mconv.errors import FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The weights of a model, or one kind of its optimizer state."""

    prefix: str
    """The start of its tensors' names in journal and manifest, and of its targets' keys: "" for the weights."""
    source: Source
    stored: Sequence[Stored]
    """The tensors to write, each a piece of a logical tensor."""
    targets: Sequence[Target]
    """The stored tensors to write, with their shapes and dtypes."""
    dtype: DType | None
    """The dtype that they are cast to; None keeps every tensor's own."""

    @classmethod
    def of(cls, prefix: str, source: Source, stored: Sequence[Stored], dtype: DType | None = None) -> "Part":
        """Return the part that holds what `source` has of tensors spelled as `stored`. Raises FormatError."""
        keyed = [replace(one, key=f"{prefix}{one.key}") for one in stored] if prefix else stored
        targets = [Target(one.key, one.piece.shape, dtype or _kept(source, one.logical)) for one in keyed]
        return cls(prefix=prefix, source=source, stored=keyed, targets=targets, dtype=dtype)

    def name(self, tensor: Logical) -> str:
        """Return what journal and manifest call a logical tensor."""
        return f"{self.prefix}{tensor}"

    def names(self) -> list[str]:
        """Return the names of every logical tensor of the architecture, which are those with digests."""
        return [self.name(tensor) for tensor in self.source.family.logicals(self.source.spec)]


def _kept(source: Source, tensor: Logical) -> DType:
    """Return the dtype that a tensor keeps, the usual one where the source has no such tensor. Raises FormatError."""
    if tensor not in source.tensors():
        return usual_dtype(source)
    first, *others = source.dtypes(tensor)
    if others:
        raise FormatError(
            f"{source.label}: the parts of {tensor} have dtypes {sorted(map(str, (first, *others)))}; give --dtype"
        )
    return first
