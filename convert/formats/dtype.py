"""Element types by torch's names. What only plans, lists or describes tensors needs these, and not torch itself.

A plan is names, shapes and byte counts: importing torch for it would cost more than the whole plan.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, repr=False)
class DType:
    """An element type: torch's name for it, and how many bytes one element takes."""

    name: str
    itemsize: int

    @property
    def is_floating_point(self) -> bool:
        """True where the elements are real numbers with an exponent, as torch defines it."""
        return self.name.startswith(("float", "bfloat"))

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"torch.{self.name}"


FLOAT64, FLOAT32, FLOAT16, BFLOAT16 = (
    DType("float64", 8), DType("float32", 4), DType("float16", 2), DType("bfloat16", 2)
)  # fmt: skip
INT64, INT32, INT16, INT8 = DType("int64", 8), DType("int32", 4), DType("int16", 2), DType("int8", 1)
UINT8, UINT16, UINT32, BOOL = DType("uint8", 1), DType("uint16", 2), DType("uint32", 4), DType("bool", 1)
FLOAT8_E4M3FN, FLOAT8_E5M2, COMPLEX64 = DType("float8_e4m3fn", 1), DType("float8_e5m2", 1), DType("complex64", 8)
BY_NAME = {
    dtype.name: dtype
    for dtype in (
        FLOAT64, FLOAT32, FLOAT16, BFLOAT16, INT64, INT32, INT16, INT8, UINT8, UINT16, UINT32, BOOL,
        FLOAT8_E4M3FN, FLOAT8_E5M2, COMPLEX64,
    )
}  # fmt: skip


def in_torch(dtype: DType) -> "torch.dtype":
    """Return torch's own dtype, to compute with."""
    import torch

    found: torch.dtype = getattr(torch, dtype.name)
    return found


def of_torch(dtype: "torch.dtype") -> DType:
    """Return the element type of a tensor in memory. Raises KeyError for one that no checkpoint stores."""
    return BY_NAME[str(dtype).removeprefix("torch.")]
