"""Checks of a slab: copies that differ, elements that are not finite, values that the target cannot hold."""

import torch

from mconv.convert.sources.source import Slab, Source
from mconv.convert.spelling.table import Logical
from mconv.errors import CopiesDiffer, FormatError


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same bytes as integers, so that equality is of bits (NaN equals NaN, 0.0 differs from -0.0)."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors have the same dtype and the same bytes."""
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def finite(tensor: torch.Tensor) -> bool:
    """Return whether it holds neither NaN nor infinity: the extremes show either, thirty times faster than each does."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(x)) for x in torch.aminmax(tensor))


def check_copies_of(source: Source, tensor: Logical, slab: Slab) -> None:
    """Raise CopiesDiffer, with the files' and tensor's names, where copies of one slab of a tensor differ."""
    for stored, kept in source.conflicts(tensor, slab):
        way = "the checkpoint is inconsistent"
        if source.family.head_key in (stored.key, kept.key):  # a tied head: the only copy that transformers' folders hold
            way = (
                "config.json ties the two, and transformers does not tie what differs. To keep both, set "
                '"tie_word_embeddings": false there'
            )
        raise CopiesDiffer(f"{source.label}: {stored.key} and {kept.key} are copies of {tensor} but differ; {way}")


def check_zero(source: Source, tensor: Logical, slab: Slab) -> None:
    """Raise FormatError unless a tensor that the target cannot hold is zero, and so may be left out."""
    if slab.tensor.count_nonzero():
        raise FormatError(f"{source.label}: {tensor} is not zero, but the target architecture has no place for it")


def check_finite(source: Source, tensor: Logical, elements: torch.Tensor, *, cast: torch.dtype | None) -> None:
    """Raise FormatError where elements, as they were `cast`, are NaN or infinite."""
    if not finite(elements):
        raise FormatError(
            f"{source.label}: {tensor} holds NaN or infinity"
            f"{f' as {cast}' if cast else ''}; give --allow-nonfinite to convert it all the same"
        )
