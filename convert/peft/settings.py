"""The settings of a LoRA adapter: ranks, scales, and the modules that it lies on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of an adapter: everything but its factors."""

    rank: int
    """Rank of the modules that `own` does not name."""
    alpha: float
    targets: tuple[str, ...]
    """Names of linears, as `places` has them and in its order."""
    dropout: float = 0.0
    rslora: bool = False
    """True where the scale is alpha over the root of the rank, not alpha over the rank."""
    own: Mapping[str, tuple[int, float]] = field(default_factory=dict, hash=False)
    """Rank and alpha of the modules that differ, by full name. Rank 0: this module has no adapter."""

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's adapter; 0 if it has none."""
        return self.own.get(module, (self.rank, self.alpha))[0]

    def scale_of(self, module: str) -> float:
        """Return what a module's B A is multiplied by."""
        rank, alpha = self.own.get(module, (self.rank, self.alpha))
        return alpha / (math.sqrt(rank) if self.rslora else rank) if rank else 0.0

    @property
    def width(self) -> int:
        """The largest rank. A run stacks the factors of all layers, and fills the lower ones up with zeros."""
        return max([self.rank, *(rank for rank, _ in self.own.values())])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `from_dict` reads them back."""
        plain = {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets), "dropout": self.dropout}
        more = {"rslora": True} if self.rslora else {}
        return plain | more | ({"own": {name: list(pair) for name, pair in self.own.items()}} if self.own else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Return the settings that `to_dict` made plain values of."""
        return cls(
            rank=values["rank"], alpha=values["alpha"], targets=tuple(values["targets"]), dropout=values["dropout"],
            rslora=values.get("rslora", False),
            own={name: (rank, alpha) for name, (rank, alpha) in values.get("own", {}).items()},
        )  # fmt: skip

    def __str__(self) -> str:
        ranks = {rank for rank, _ in self.own.values() if rank} | {self.rank}
        rank = f"rank {self.rank}" if len(ranks) == 1 else f"ranks {min(ranks)} to {max(ranks)}"
        none = sum(not rank for rank, _ in self.own.values())
        more = (", rank-stabilized" if self.rslora else "") + (f" ({none} of these modules have none)" if none else "")
        return f"{rank}, alpha {self.alpha:g}, on {', '.join(self.targets)}{more}"
