"""What a run computes again instead of keeping it in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules

MODULES = ("core_attn", "mlp")


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """Activations: kept for the backward pass, or computed a second time in it."""

    recompute_granularity: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again: nothing, some parts of each layer, or whole layers from their input."""
    recompute_method: Literal["uniform", "block"] = "uniform"
    """With `full`: all layers in units of `recompute_num_layers`, or that many layers of each chunk one by one."""
    recompute_num_layers: int = 1
    """With `full`: layers in one unit (`uniform`), or layers of each chunk that are computed again (`block`)."""
    recompute_modules: list[str] | None = None
    """With `selective`: the parts, of core_attn and mlp; core_attn if not given."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
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
