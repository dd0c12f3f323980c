"""Training a low-rank adapter in place of the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA: the weights of `load` stay as they are, and two small matrices beside each chosen linear are trained."""

    lora_rank: int | None = None
    """Rank of the adapters; given, nothing but adapters is trained, and checkpoints hold nothing but adapters."""
    lora_alpha: float | None = None
    """What an adapter makes is multiplied by this over its rank; the rank if not given, that is by 1."""
    lora_dropout: float = 0.0
    """Share of an adapter's inputs that are dropped in training."""
    lora_targets: list[str] | None = None
    """Linears that get one, as Hugging Face calls them (q_proj, v_proj, ...); "all-linear", those of every layer, if
    not given."""
    lora_load: str | None = None
    """A PEFT adapter to start from; rank, alpha and targets are its own."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Broken rules of this section."""
        yield from rules.at_least_1(config, "lora_rank")
        yield from rules.below_1(config, "lora_dropout")
        yield from rules.each(config, "lora_alpha", "more than 0", lambda alpha: 0 < alpha < float("inf"))
        yield from rules.each(config, "lora_targets", 'names of linears, or "all-linear"', bool)
        if config.freeze is not None and (config.lora_rank or config.lora_load):
            yield "freeze names weights of the model, and LoRA trains none of these; leave it out"
        if config.resume and (config.lora_rank or config.lora_load):
            yield "resume goes on with the optimizer of a run that trained the model; LoRA begins anew; leave it out"
        asked = {"lora_alpha": None, "lora_dropout": 0.0, "lora_targets": None}
        if config.lora_rank is None and config.lora_load is None:
            given = [name for name, without in asked.items() if getattr(config, name) != without]
            yield from (f"{name} needs lora_rank, or lora_load" for name in given)
