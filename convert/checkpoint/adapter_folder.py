"""PEFT's adapter folders, read and written: the tensors decide what an adapter is; a config that says otherwise stops."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mconv.convert.formats.tensors import Located
from mconv.convert.peft import config_keys as peft_keys
from mconv.convert.peft.adapter import Adapter, Replaced, reordered
from mconv.convert.peft.folder import CONFIG, DTYPES, WEIGHTS, config_of, tensors
from mconv.convert.peft.lora import FACTORS, Linear, linears, modules, places
from mconv.convert.peft.modules import older_alpha, rank_and_alpha, saved, targeted
from mconv.convert.peft.names import Named, read_names
from mconv.convert.peft.settings import Settings
from mconv.convert.sources.stored import seen
from mconv.convert.spelling.table import Family, Stored
from mconv.errors import FormatError, refuse
from mconv.shard.patch import patch_of
from mconv.spec import ModelSpec

ENDS = ("embedding", "head")
"""The kinds of rows that share one tensor in a tied model."""


def read(folder: Path, *, family: Family, spec: ModelSpec, ignore: Collection[str] = ()) -> Adapter:
    """Return a PEFT adapter of a model. `ignore`: keys of its config that the user lets pass though no rule claims them.

    Raises FormatError, all problems at once, where it is more than factors and whole modules, or contradicts itself.
    """
    config, located = config_of(folder, ignore=ignore), tensors(folder)
    known, stored = places(family, spec), {one.key: one for one in family.stored(spec)}
    at = {linear.at(layer): (linear, layer) for linear in known.values() for layer in linear.layers(spec)}
    heads = [module for row in family.rows if row.kind in ENDS for module in row.modules]
    names, notes = read_names(located, {*at, *(key.rpartition(".")[0] for key in stored), *heads})
    files = {key: _floating(key, where) for key, where in located.items()}
    factors = {key: named for key, named in names.items() if named.part in FACTORS}
    wholes = {key: named for key, named in names.items() if named.part not in FACTORS}
    bad = [f"{key}: {named.module} is not a linear or an embedding that can have an adapter here"
           for key, named in factors.items() if named.module not in at and named.module not in heads]  # fmt: skip
    bad += _tied(config, names, files, heads=heads) if spec.tied_embeddings else []
    refuse(bad, doing=f"{folder}", kind=FormatError)
    made, ranks = _factors(factors, files, at, spec)
    placed = {module: linear.name in linears(family, spec) for module, (linear, _) in at.items()}
    bad = [*_contradictions(config, ranks, placed), *_unexplained(config, wholes, stored, ranks, heads=heads)]
    replaced, misfits = _replaced(wholes, files, stored, heads=heads)
    refuse([*bad, *misfits], doing=f"{folder}", kind=FormatError)
    return Adapter(
        settings=_settings(config, ranks, at), family=family, spec=spec, factors=made, replaced=replaced,
        ignored=peft_keys.passed(config, ignore), notes=notes,
    )  # fmt: skip


def _floating(key: str, where: Located) -> Tensor:
    if where.dtype not in DTYPES:
        raise FormatError(
            f"{key} is of {where.dtype}; an adapter's tensors are floating-point numbers of 16 bits or more"
        )
    return where.load()


# ---- factors ---------------------------------------------------------------------------------------------------------
Places = Mapping[str, tuple[Linear, int | None]]


def _factors(
    factors: Mapping[str, Named], files: Mapping[str, Tensor], at: Places, spec: ModelSpec
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return factors under PEFT's names, in the logical tensors' order, and the rank of each module."""
    made: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    bad: list[str] = []
    for key, named in factors.items():
        linear, layer = at[named.module]
        # An embedding's delta is the transpose of B A: its A is (rank, rows), which is our B transposed.
        factor = {"A": "B", "B": "A"}[named.part] if named.embedded else named.part
        if files[key].ndim != 2 or 0 in files[key].shape:
            bad.append(f"{key} is {tuple(files[key].shape)}; a factor has two dimensions")
            continue
        tensor = files[key].t() if named.embedded else files[key]
        if named.embedded != (linear.row.looked_up):
            bad.append(f"{key}: {named.module} is {'no' if named.embedded else 'an'} embedding")
        rank = tensor.shape[0 if factor == "A" else 1]
        if ranks.setdefault(named.module, rank) != rank:
            bad.append(f"{key} is of rank {rank}, the other factor of rank {ranks[named.module]}")
        wanted = linear.shape(factor, rank=rank, sizes=spec.sizes)
        if tuple(tensor.shape) != wanted:
            shown = tuple(files[key].shape)
            bad.append(f"{key} is {shown}; {named.module} has {wanted[1 if factor == 'A' else 0]} "
                       f"{'inputs' if factor == 'A' else 'outputs'}")  # fmt: skip
            continue
        made[linear.key(layer, factor)] = reordered(linear, factor, tensor, spec.sizes)
    refuse(bad, doing="the adapter does not fit the model", kind=FormatError)
    return made, ranks


def _settings(config: Mapping[str, Any], ranks: Mapping[str, int], at: Places) -> Settings:
    """Return ranks and scales as most modules have them, and the modules that differ."""
    pairs = {module: (rank, rank_and_alpha(config, module)[1]) for module, rank in ranks.items()}
    usual = (config.get("r", 8), float(config.get("lora_alpha", 8)))
    rank, alpha = Counter(pairs.values()).most_common(1)[0][0] if pairs else usual
    targets = list(dict.fromkeys(at[module][0].name for module in at if module in ranks))
    mine = [module for module, (linear, _) in at.items() if linear.name in targets]
    own = {module: pairs.get(module, (0, alpha)) for module in mine}
    return Settings(
        rank=rank, alpha=alpha, targets=tuple(targets), dropout=float(config.get("lora_dropout") or 0.0),
        rslora=bool(config.get("use_rslora")), own={m: pair for m, pair in own.items() if pair != (rank, alpha)},
    )  # fmt: skip


def _contradictions(config: Mapping[str, Any], ranks: Mapping[str, int], at: Mapping[str, bool]) -> list[str]:
    """Return where the config and the tensors differ. `at`: modules, and whether each is a linear of a layer."""
    bad = []
    says = {module: targeted(config, module, inner=inner) for module, inner in at.items()}
    if absent := [module for module, meant in says.items() if meant and module not in ranks]:
        bad.append(f"{CONFIG} puts an adapter on {_few(absent)}, but the file has no tensors of it")
    if extra := [module for module in ranks if says[module] is False]:
        bad.append(f"the file has an adapter of {_few(extra)}, where {CONFIG} puts none (target_modules, "
                   "exclude_modules, layers_to_transform, modules_to_save)")  # fmt: skip
    stated = {module: rank_and_alpha(config, module)[0] for module in ranks}
    bad += [f"{module}: the file's factors are of rank {rank}, {CONFIG} says {stated[module]} (r, rank_pattern)"
            for module, rank in ranks.items() if rank != stated[module]]  # fmt: skip
    if "exclude_modules" not in config:  # as PEFT 0.14 and later write it
        pairs = {module: (rank_and_alpha(config, module)[1], older_alpha(config, module)) for module in ranks}
        bad += [f"{module}: its alpha is {now:g} as PEFT reads alpha_pattern since 0.14, and {then:g} as earlier ones "
                "read it, with which it may have been trained; write the alpha of each module under its full name into "
                "alpha_pattern"
                for module, (now, then) in pairs.items() if now != then]  # fmt: skip
    return bad


def _few(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:3])
    return f"{shown} and {len(names) - 3} more modules" if len(names) > 3 else shown


# ---- whole modules ---------------------------------------------------------------------------------------------------
def _unexplained(
    config: Mapping[str, Any], wholes: Mapping[str, Named], stored: Mapping[str, Stored], ranks: Mapping[str, int], *,
    heads: Collection[str],
) -> list[str]:  # fmt: skip
    """Return whole tensors that the config does not explain, and those that it promises and that are not there.

    PEFT saves embeddings and head unasked where the vocabulary has grown or an adapter lies on them.
    """
    biases = {key for key in stored if key.endswith(".bias")}
    own = {"all": biases, "lora_only": {key for key in biases if key.rpartition(".")[0] in ranks}}
    promised = own.get(str(config.get("bias")), set())
    here = {f"{named.module}.{named.part}" for named in wholes.values()}
    bad = [
        f"{key}: bias is {config.get('bias')!r} in {CONFIG}, but the file has no such tensor" for key in promised - here
    ]
    for name in config.get("modules_to_save") or []:
        if not any(saved({"modules_to_save": [name]}, named.module) for named in wholes.values()):
            bad.append(f"modules_to_save has {name!r}, but the file has no tensor of it")
    for key, named in wholes.items():
        explained = saved(config, named.module) or f"{named.module}.{named.part}" in promised or named.module in heads
        bad += [] if explained else [f"{key}: neither modules_to_save nor bias in {CONFIG} says that it is replaced"]
    return bad


def _replaced(
    wholes: Mapping[str, Named], files: Mapping[str, Tensor], stored: Mapping[str, Stored], *, heads: Collection[str]
) -> tuple[tuple[Replaced, ...], list[str]]:
    """Return what takes the place of the base's tensors, and what does not fit there."""
    found, bad = [], []
    for key, named in wholes.items():
        mine, tensor = stored.get(f"{named.module}.{named.part}"), files[key]
        if mine is None:
            tied = named.module in heads  # _tied has seen that it is the embedding
            bad += [] if tied else [f"{key}: the base has no {named.module}.{named.part}"]
        elif tuple(tensor.shape) != mine.piece.shape:
            grown = "; a vocabulary that grew needs a base that has grown too" * (named.module in heads)
            bad.append(f"{key} is {tuple(tensor.shape)}, the base's {mine.piece.shape}{grown}")
        else:
            (block,) = mine.piece.blocks
            value = seen(tensor.reshape(-1), patch_of(mine.piece.shape, block), block.box)
            found.append(Replaced(key, mine.logical, block.box, value))
    return tuple(found), bad


def _tied(
    config: Mapping[str, Any], names: Mapping[str, Named], files: Mapping[str, Tensor], *, heads: Collection[str]
) -> list[str]:
    """Return why an adapter that changes the embedding or the head of a tied model cannot be merged: it unties them."""
    mine = {key: named for key, named in names.items() if named.module in heads}
    wholes = [files[key] for key, named in mine.items() if named.part == "weight"]
    same = len(wholes) == 2 and wholes[0].shape == wholes[1].shape and torch.equal(*wholes)
    if not mine or (same and len(mine) == 2):
        return []
    return [
        f"{next(iter(mine))}: the base has one tensor for embedding and head (tie_word_embeddings), and the adapter "
        "changes one of the two; merge it into a base that has both: lm_head.weight stored, tie_word_embeddings false"
    ]


# ---- writing ---------------------------------------------------------------------------------------------------------
def write(adapter: Adapter, folder: Path, *, base: str) -> None:
    """Write the folder that PEFT loads: `base` is what it is to call the model beneath."""
    from safetensors.torch import save_file

    settings, spec = adapter.settings, adapter.spec
    folder.mkdir(parents=True, exist_ok=True)
    mine = list(modules(settings, adapter.family, spec))
    factors = {
        linear.key(layer, factor): reordered(
            linear, factor, adapter.factors[linear.key(layer, factor)], spec.sizes, back=True
        ).contiguous()
        for linear, layer, _ in mine
        for factor in FACTORS
    }
    save_file(factors, folder / WEIGHTS, metadata={"format": "pt"})
    some = any(rank == 0 for rank, _ in settings.own.values())
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": settings.rank,
        "lora_alpha": _plain(settings.alpha), "lora_dropout": settings.dropout,
        "target_modules": [linear.at(layer) for linear, layer, _ in mine] if some else list(settings.targets),
        "rank_pattern": {name: rank for name, (rank, _) in settings.own.items() if rank not in (0, settings.rank)},
        "alpha_pattern": {name: _plain(a) for name, (rank, a) in settings.own.items() if rank and a != settings.alpha},
        "bias": "none", "fan_in_fan_out": any(linear.reordered for linear, _, _ in mine), "inference_mode": True,
        "init_lora_weights": True, "use_rslora": settings.rslora, "use_dora": False, "modules_to_save": None,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number
