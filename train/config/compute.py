"""How a step is computed: the attention kernel, the precision, and what is recomputed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention: the kernel that computes attention."""

    attention_backend: Literal["auto", "sdpa", "cudnn", "transformer_engine"] = "auto"
    """Code that computes softmax(q k^T) v. sdpa: torch's scaled_dot_product_attention (flash attention on a GPU). cudnn:
    cuDNN's kernel within it. transformer_engine: Transformer Engine's DotProductAttention. auto: Transformer Engine where
    it is installed and fits, else sdpa."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section: none that a machine without Transformer Engine could know."""
        yield from ()


NAMES = ("fp32", "bf16", "fp16")
"""The precisions. With none of them asked for, a run takes that of the weights (`train/model/precision.py`)."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Precision: that of the weights if none is asked for, and fp16's loss scale."""

    fp32: bool | None = None
    """Train in float32, whatever the dtype of the weights. Without fp32, bf16 or fp16 a run uses the dtype of its
    weights."""
    bf16: bool | None = None
    """Train in bfloat16 with fp32 main weights and gradients. false: not in bf16, even if the weights are."""
    fp16: bool | None = None
    """Train in float16 with fp32 main weights and gradients, and a loss scale. false: not in fp16, even if the weights
    are."""
    loss_scale: float | None = None
    """Constant loss scale for fp16; adjusted during the run if not given."""
    initial_loss_scale: float = 2.0**32
    """First loss scale of fp16."""
    min_loss_scale: float = 1.0
    """Lowest loss scale of fp16."""
    loss_scale_window: int = 1000
    """Consecutive steps without overflow after which fp16's loss scale doubles."""
    hysteresis: int = 2
    """Number of overflows before fp16's loss scale is halved."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "loss_scale_window hysteresis")
        yield from rules.positive(config, "loss_scale initial_loss_scale min_loss_scale")
        asked = [name for name in NAMES if getattr(config, name)]
        if len(asked) > 1:
            yield f"{' and '.join(asked)} are two precisions; set one of them"
        if all(getattr(config, name) is False for name in NAMES):
            yield f"{', '.join(NAMES)} are all false, which leaves no precision; set one of them"
        if config.loss_scale is not None and (config.fp16 is False or asked not in ([], ["fp16"])):
            yield "loss_scale is for fp16; bf16 and fp32 need none"
        if config.min_loss_scale > config.initial_loss_scale:
            yield f"min_loss_scale {config.min_loss_scale} is more than initial_loss_scale {config.initial_loss_scale}"


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
