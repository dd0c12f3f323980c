"""What a run computes again instead of keeping it in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules

MODULES = ("core_attn", "mlp")


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """Recompute: activations that the backward pass recomputes instead of storing them."""

    recompute_granularity: Literal["none", "selective", "full"] = "none"
    """Activations to recompute in the backward pass instead of storing them: none, parts of each layer (selective), or
    whole layers from their input (full)."""
    recompute_method: Literal["uniform", "block"] = "uniform"
    """With full recompute. uniform: all layers, in groups of recompute_num_layers. block: only the first
    recompute_num_layers layers of each model chunk."""
    recompute_num_layers: int = 1
    """With full recompute: layers in one group (uniform), or recomputed layers of each model chunk (block)."""
    recompute_modules: list[str] | None = None
    """With selective recompute: the parts, of core_attn and mlp; core_attn if not given."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "recompute_num_layers")
        yield from rules.each(
            config, "recompute_modules", f"one or both of {', '.join(MODULES)}",
            lambda found: bool(found) and len(set(found)) == len(found) and set(found) <= set(MODULES),
        )  # fmt: skip
        kind = config.recompute_granularity
        if kind != "full" and (config.recompute_method, config.recompute_num_layers) != ("uniform", 1):
            yield f"recompute_method and recompute_num_layers are for recompute_granularity full; it is {kind}"
        if kind != "selective" and config.recompute_modules is not None:
            yield f"recompute_modules is for recompute_granularity selective; it is {kind}"
