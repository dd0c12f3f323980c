"""Rows that the tables of Megatron's programs share: args of Megatron-LM and Megatron-LLM, keys of Megatron-Bridge."""

import dataclasses
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mconv.convert.formats.dtype import BY_NAME
from mconv.convert.formats.unpickle import StandIn
from mconv.convert.spelling.keys import REQUIRED, Config, Field, Left, Named, take
from mconv.convert.spelling.values import shown
from mconv.shard.layout import Layout
from mconv.shard.stages import EVEN
from mconv.spec import ModelSpec, Rope

PLAIN = Rope()
BUILT_IN: dict[str, type] = {
    "low_freq_factor": float, "high_freq_factor": float, "original_max_position_embeddings": int,
}  # fmt: skip
"""Fields of llama3 scaling that megatron-core has built in (1, 4, 8192), so that its programs have no key for them."""
PARALLEL = (
    Field("tensor_model_parallel_size", "tp", int, 1),
    Field("pipeline_model_parallel_size", "pp", int, 1),
    Field("virtual_pipeline_model_parallel_size", "vpp", int, 1, blank=True),
)
"""Sizes of a layout, as every Megatron calls them."""


def is_built_in(rope: Rope) -> bool:
    """Return whether a rope's scaling is the one that megatron-core has built in, whatever its factor."""
    return rope.kind != "llama3" or all(getattr(rope, name) == getattr(PLAIN, name) for name in BUILT_IN)


def left_of(args: Namespace) -> Left:
    """Return the args of a checkpoint as keys that no row has taken yet; of an enum, the value that its stand-in kept."""
    values = {name: value.args[0] if is_enum(value) else value for name, value in vars(args).items()}
    return Left(values, prefix="the checkpoint's args: ", loose=True)


def is_enum(value: Any) -> bool:
    """Return whether a value stands in for a member of an enum."""
    return isinstance(value, StandIn) and len(getattr(value, "args", ())) == 1


def bias_spec(spec: ModelSpec) -> ModelSpec:
    """Return the spec with the biases that megatron-core can have: on QKV alone, or on every linear.

    A bias that is added here is zero in a conversion, so the function is the same.
    """
    if spec.proj_bias or spec.mlp_bias:
        return dataclasses.replace(spec, qkv_bias=True, proj_bias=True, mlp_bias=True)
    return spec


def of_dtype(dtype: str) -> Config:
    """Return the args that say in which dtype weights are."""
    return {"bf16": dtype == "bfloat16", "fp16": dtype == "float16", "params_dtype": BY_NAME[dtype]}


def chunk_layers(spec: ModelSpec, layout: Layout) -> int | None:
    """Return the layers of a virtual stage, where there are several and all have the same number."""
    return spec.num_layers // (layout.pp * layout.vpp) if layout.vpp > 1 and layout.uneven == EVEN else None


@dataclass(frozen=True, slots=True)
class LinearBiases:
    """megatron-core's two switches: every linear, or QKV alone."""

    default: Any = REQUIRED
    names: tuple[str, ...] = ("add_bias_linear", "add_qkv_bias")

    def read(self, left: Left) -> Config:
        every, qkv = (take(left, name, bool, self.default) for name in self.names)
        return {"qkv_bias": every or qkv, "proj_bias": every, "mlp_bias": every}

    def write(self, spec: ModelSpec, out: Config) -> None:
        biased = bias_spec(spec)
        out |= {"add_bias_linear": biased.mlp_bias, "add_qkv_bias": biased.qkv_bias}


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Attention and MLP on the same hidden states, behind one norm or one each."""

    names: tuple[str, ...] = ("parallel_attn", "parallel_layernorm")

    def read(self, left: Left) -> Config:
        parallel, two = (take(left, name, bool, False) for name in self.names)
        return {"parallel_attention": parallel, "shared_norm": parallel and not two}

    def write(self, spec: ModelSpec, out: Config) -> None:
        out |= {"parallel_attn": spec.parallel_attention, "parallel_layernorm": spec.two_norms}


@dataclass(frozen=True, slots=True)
class Window(Named):
    """(keys before, 0) as a tuple or a list, where the spec counts the query's own too."""

    pair: Callable[[tuple[int, int]], Any]

    def read(self, left: Left) -> Config:
        value = left.pop(self.key, None)
        if value is None or value in ([-1, 0], [-1, -1], (-1, 0), (-1, -1)):
            return {"sliding_window": None}
        match value:
            case [int(before), int(after)] if before >= 0 and after == 0 and bool not in map(type, value):
                return {"sliding_window": before + 1}
        raise left.error(f"{self.key} is {shown(self.key, value)}; (keys before, 0) was expected")

    def write(self, spec: ModelSpec, out: Config) -> None:
        out[self.key] = self.pair((spec.sliding_window - 1, 0)) if spec.sliding_window else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ropes:
    """Rotary settings: a base, and either positions that are stretched or llama3's scaling by a factor."""

    stretch: str
    """The key of the factor by which positions are stretched; null: they are not."""
    scaled: str
    """The switch of llama3's scaling."""
    unscaled: float
    """The factor of that scaling, as it is written where the switch is off."""
    number: Callable[[float], float] = float
    """The type in which a base and a factor are written."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of keys that are absent; a key that is not named here must be there."""
    built_in: Mapping[str, type] = field(default_factory=dict)
    """Fields of llama3's scaling that have a key of their own, `rope_NAME`; others are megatron-core's."""

    @property
    def names(self) -> Collection[str]:
        """Return the keys that the row claims."""
        return ("rotary_base", self.stretch, self.scaled, "rope_scaling_factor", *(f"rope_{n}" for n in self.built_in))

    def read(self, left: Left) -> Config:
        base, factor = (self._take(left, name, float) for name in ("rotary_base", "rope_scaling_factor"))
        scaled, stretch = self._take(left, self.scaled, bool), take(left, self.stretch, float, None)
        own = {n: take(left, f"rope_{n}", kind, getattr(PLAIN, n)) for n, kind in self.built_in.items()}
        if scaled and stretch not in (None, 1):
            raise left.error(f"{self.scaled} and {self.stretch} ask for two kinds of rope scaling at once")
        if scaled:
            return {"rope": Rope(kind="llama3", base=base, factor=factor, **own)}
        return {"rope": Rope(base=base) if stretch is None else Rope(kind="linear", base=base, factor=stretch)}

    def _take(self, left: Left, name: str, kind: type) -> Any:
        return take(left, name, kind, self.defaults.get(name, REQUIRED))

    def write(self, spec: ModelSpec, out: Config) -> None:
        rope, scaled = spec.rope, spec.rope.kind == "llama3"
        out |= {
            "rotary_base": self.number(rope.base),
            self.stretch: self.number(rope.factor) if rope.kind == "linear" else None,
            self.scaled: scaled,
            "rope_scaling_factor": rope.factor if scaled else self.unscaled,
            **{f"rope_{name}": getattr(rope, name) for name in self.built_in},
        }
