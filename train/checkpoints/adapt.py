"""LoRA in a run: the start of its adapter, the base that it belongs to, and the content of its checkpoints.

These hold the adapter alone, and a digest of the base: not of files but of every weight, so that the same base in another
format or layout passes, and another base is refused when the run resumes.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders.digests import combined
from mconv.convert.peft.lora import Settings
from mconv.convert.sources.read import digests
from mconv.errors import ConfigError
from mconv.train.config import TrainConfig
from mconv.train.config.compute import NAMES
from mconv.train.megatron.collectives import from_all_ranks
from mconv.train.model import lora
from mconv.train.model.adapter import asked


@dataclass(frozen=True, slots=True)
class Adapted:
    """Adapter settings and base of a model with adapters, kept as `model.adapted`."""

    settings: Settings
    base: dict[str, str]
    """`name` of the base model, `path` as seen from the run's folder, `digest` of its weights."""

    def to_dict(self) -> dict[str, Any]:
        """Return the entry `lora` of a checkpoint's args."""
        return {**self.settings.to_dict(), "base": self.base}


def adapt(models: list[Any], config: TrainConfig, base: SourceModel, *, resumed: dict[str, Any] | None) -> str:
    """Give this rank's filled parts of the model their adapters; returns a line for people.

    `resumed`: what the checkpoint that the run goes on from says of its own.

    Every rank calls it. Raises ConfigError where a resumed run's adapter or base was another one.
    """
    settings, given = asked(config, base)
    adapted = Adapted(settings, _described(config, base))
    if resumed is not None:
        _check_same(config, adapted.to_dict(), resumed)

    def of_given(linear: Any, layer: int, factor: str) -> torch.Tensor:
        assert given is not None
        return given.factors[linear.key(layer, factor)]

    begin = of_given if given else lora.fresh(settings, base.spec.sizes, config.seed)
    for model in models:
        lora.attach(model, settings, family=base.family, spec=base.spec, start=begin)
        model.adapted = adapted
    return "\n".join([f"LoRA: {settings}", *(f"note: {note}" for note in (given.notes if given else ()))])


def _described(config: TrainConfig, base: SourceModel) -> dict[str, str]:
    """Return name, path and digest of the base; nothing for a run that saves no checkpoint."""
    if config.save is None:
        return {}
    path = os.path.relpath(base.path.resolve(), Path(config.save).resolve())
    return {"name": base.name, "path": path, "digest": digest_of(base)}


def digest_of(base: SourceModel) -> str:
    """Return one digest of every weight of a checkpoint: each rank reads its share, and all get the result."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    names = [str(logical) for logical in base.family.logicals(base.spec)]
    mine = digests(base.source, only=set(names[rank::world]), allow_nonfinite=True).stored
    return combined({name: digest for share in from_all_ranks(mine) for name, digest in share.items()})


def _check_same(config: TrainConfig, now: dict[str, Any], then: dict[str, Any]) -> None:
    """Raise ConfigError unless a resumed run has the adapter and the base of its checkpoint."""
    names = {"rank": "lora_rank", "alpha": "lora_alpha", "targets": "lora_targets"}
    for key, field in names.items():
        if now[key] != then.get(key):
            raise ConfigError(f"{field} is {now[key]}, but the run in {config.save} has {then.get(key)}")
    for key, what in {"rslora": "the scale by the root of the rank", "own": "ranks and alphas of single modules"}.items():
        if now.get(key) != then.get(key):
            raise ConfigError(f"lora_load and the run in {config.save} differ in {what}; give another --save")
    shared = then.get("distributed_optimizer")
    if shared not in (None, config.distributed_optimizer) and not config.eval_only:
        raise ConfigError(
            f"distributed_optimizer is {config.distributed_optimizer}, but the run in {config.save} has {shared}, and a "
            "LoRA run cannot change it; leave it as it was"
        )
    then_in = then.get("precision")
    if then_in not in (None, *(name for name in NAMES if getattr(config, name))) and not config.eval_only:
        raise ConfigError(
            f"the adapter in {config.save} was trained with {then_in}, and a LoRA run cannot change its precision: give "
            f"--{then_in}, or another --save"
        )
    if now["base"]["digest"] != (then.get("base") or {}).get("digest"):
        named = config.load or config.preset or config.model
        raise ConfigError(
            f"{named} does not have the weights that the adapter in {config.save} was trained on "
            f"({(then.get('base') or {}).get('name')}); give that base with --load, or another --save"
        )


# ---- what a checkpoint holds -----------------------------------------------------------------------------------------
def kept(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a model's state that its checkpoint holds: its adapters if it has some, else all."""
    return {key: part for key, part in state.items() if ".lora." in key} if adapted(model) else state


def adapted(model: Any) -> Adapted | None:
    """Return the adapter settings and base of a model with adapters; None for any other."""
    found: Adapted | None = getattr(model, "adapted", None)
    return found
