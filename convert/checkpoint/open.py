"""Opening of any checkpoint: recognise its format, then read its index."""

import re
from pathlib import Path

from mconv.convert.checkpoint import hugging, meta
from mconv.convert.checkpoint.coverage import check_complete, check_depth
from mconv.convert.checkpoint.identify import MegatronHints, identify
from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.dialects import DIALECTS, mcore, spell
from mconv.convert.families import FAMILIES
from mconv.convert.folders import manifest
from mconv.convert.folders.ignored import NOTHING, Ignored, joined, recorded
from mconv.convert.folders.locate import OWN
from mconv.convert.folders.locate import iteration_folder as iteration_folder
from mconv.convert.folders.recognize import explain, what_is
from mconv.convert.formats import hf, mp_rank, torch_dist
from mconv.convert.formats import meta as meta_files
from mconv.convert.formats.jsonfile import read_json
from mconv.convert.formats.tensors import Located
from mconv.convert.peft import folder as peft
from mconv.convert.peft import lora
from mconv.convert.sources.stored import StoredSource
from mconv.convert.spelling import dtypes, params
from mconv.convert.spelling.table import Family, Stored
from mconv.errors import FormatError, refuse
from mconv.spec import ModelSpec


def open_checkpoint(
    path: Path | str,
    *,
    iteration: int | None = None,
    vocab_size: int | None = None,
    dialect: str | None = None,
    config: Path | str | None = None,
    max_position_embeddings: int | None = None,
    rope_factor: float | None = None,
    ignore: Ignored = NOTHING,
) -> Checkpoint:
    """Open a Hugging Face folder, one of Meta's, a Megatron root (by its tracker, or `iteration`) or one iteration's.

    What a checkpoint may not know of itself: `vocab_size`, the true vocabulary; `dialect`, where names leave it open;
    `config`, a Hugging Face `config.json` that settles what its args cannot be trusted for; `max_position_embeddings`
    and `rope_factor`, which Meta's `params.json` leaves open. `ignore` names args and config keys that no table claims
    and that may pass; those that its manifest records may, too. Raises a MconvError that names what is missing, unknown,
    damaged or unsafe. Reads indices and headers only.
    """
    path = Path(path)
    if not path.is_dir():
        raise FormatError(explain(path))
    what = what_is(path)
    if what.kind == "unfinished":
        raise FormatError(explain(path))
    _refuse_idle_hints(
        path,
        what.kind,
        megatron={"iteration": iteration, "vocab_size": vocab_size, "dialect": dialect},
        config=config,
        meta={"max_position_embeddings": max_position_embeddings, "rope_factor": rope_factor},
    )
    if what.kind in OWN:
        config_json = path / "config.json" if hf.is_hf(path) else None
        found = _open_meta(path, meta.MetaHints(
            max_position_embeddings=max_position_embeddings, rope_factor=rope_factor,
            config=Path(config) if config else config_json, ignore=ignore,
        ))  # fmt: skip
    elif hf.is_hf(path):
        if not what.readable and what.kind != "hf-odd":  # a config, but no weights that mconv reads
            raise FormatError(explain(path))
        found = _open_hf(path, ignore)
    else:
        folder = iteration_folder(path, iteration)
        hints = MegatronHints(
            vocab_size=vocab_size, dialect=dialect, config=Path(config) if config else None,
            ignore=ignore | Ignored(config_keys=recorded(manifest.read(folder)).config_keys),
        )  # fmt: skip
        found = (_open_torch_dist if torch_dist.is_torch_dist(folder) else _open_mp_rank)(folder, hints)
    check_complete(found)
    return found


def is_lora_run(path: Path, iteration: int | None = None) -> bool:
    """Return whether a Megatron root, or one iteration's folder, is of a run that trained an adapter."""
    if peft.has_adapter(path) or what_is(path).kind not in ("megatron", "torch_dist", "root"):
        return False
    folder = iteration_folder(path, iteration)
    return torch_dist.is_torch_dist(folder) and lora.of_args(torch_dist.open_folder(folder)[1]) is not None


def _refuse_idle_hints(
    path: Path, kind: str, *, megatron: dict[str, object], config: object, meta: dict[str, object]
) -> None:
    """Refuse hints that a checkpoint of this kind does not need, or that do not apply to it."""
    own = OWN.get(kind)
    of_hf = hf.is_hf(path) and not own
    kind = own or ("a Hugging Face folder" if of_hf else "")
    if kind and any(x is not None for x in megatron.values()):
        raise FormatError(f"{path} is {kind}: it has no iterations and no dialect, and its config states its vocabulary")
    if of_hf and config is not None:
        raise FormatError(f"{path} is a Hugging Face folder: it has a config.json of its own")
    if not own:
        options = [f"--{name.replace('_', '-')}" for name, value in meta.items() if value is not None]
        refuse(
            [
                f"{name} applies only to Meta's and Mistral's own files; {path} is not in one of these formats"
                for name in options
            ],
            doing="opening",
            kind=FormatError,
        )


def _open_hf(path: Path, ignore: Ignored) -> Checkpoint:
    made = manifest.read(path)
    family, spec, passed = hugging.config(
        path, ignore.config_keys, (made or {}).get("ignored", {}).get("config_keys", {})
    )
    located, notes = hugging.weights(path, family, spec)
    stored = spell.hf(family, spec, located)
    held = [located[one.key] for one in stored if one.key in located]  # what is missing is refused later
    if held:
        notes = (*notes, *dtypes.note(path / "config.json", read_json(path / "config.json"), dtypes.of(held)))
    return Checkpoint(
        path=path, format="hf", source=_source(path, family, spec, stored, located), manifest=made,
        notes=(*notes, *peft.unapplied(path)),
        ignored=joined((made or {}).get("ignored", {}), {"config_keys": passed}),
    )  # fmt: skip


def _open_meta(path: Path, hints: meta.MetaHints) -> Checkpoint:
    found, ranks = meta_files.open_folder(path)
    located = {k: v for k, v in found.items() if k.partition("/")[2] not in meta.BUFFERS}
    spec, embed_cut, notes = meta.spec_of(path, found, ranks=ranks, hints=hints)
    check_depth(path, spec, len(located))
    stored = list(meta.stored(spec, ranks=ranks, embed_cut=embed_cut))
    return Checkpoint(
        path=path, format="mistral" if spec.family == "mistral" else "meta",
        source=_source(path, FAMILIES[spec.family], spec, stored, located), notes=notes,
        ignored=joined({"config_keys": params.passed_over(path, hints.ignore.config_keys)}),
    )  # fmt: skip


def _open_torch_dist(folder: Path, hints: MegatronHints) -> Checkpoint:
    tensors, common = torch_dist.open_folder(folder)
    if adapter := lora.of_args(common):
        raise FormatError(
            f"{folder} holds the adapter of a LoRA run, not its base model ({adapter['base'].get('name')}); "
            "`mconv lora merge` merges the two into one model, `mconv lora export` makes a PEFT adapter"
        )
    what = identify(folder, common, hints, tensors={}, only="mcore")
    check_depth(folder, what.spec, sum(min((*c.shape, 1)[0], c.length) for t in tensors.values() for c in t.chunks))
    stored, located = spell.torch_dist_sources(what.family, what.spec, what.layout, tensors)
    return Checkpoint(
        path=folder, format="torch_dist", source=_source(folder, what.family, what.spec, stored, located),
        dialect="mcore", layout=what.layout, iteration=_iteration(folder), manifest=what.manifest, common=common,
        notes=what.notes, ignored=what.ignored,
    )  # fmt: skip


def _open_mp_rank(folder: Path, hints: MegatronHints) -> Checkpoint:
    located, ranks = mp_rank.open_folder(folder)
    first, *others = ranks
    common = ranks[first]
    what = identify(folder, common, hints, tensors=located)
    spec, layout = what.spec, what.layout
    mcore.check_stages(common["args"])
    check_depth(folder, spec, len(located))
    wanted = {mp_rank.rank_folder(rank, stage, pp=layout.pp) for rank, stage in layout.ranks[: len(ranks) + 1]}
    if wanted != set(ranks):
        differ = sorted(wanted ^ set(ranks))[:6]
        raise FormatError(f"{folder}: its args say tp {layout.tp} x pp {layout.pp}, but {differ} are missing or too many")
    for other in others:  # every rank was saved by its own process: one of another run must not slip in
        also = identify(folder, ranks[other], hints, tensors=located)
        if (also.spec, also.layout) != (spec, layout) or ranks[other].get("iteration") != common.get("iteration"):
            raise FormatError(
                f"{folder}: {first} and {other} are of different models or iterations; do not mix checkpoints"
            )
    stored = spell.mp_rank_sources(DIALECTS[what.dialect], what.family, spec, layout, located)
    return Checkpoint(
        path=folder, format="mp_rank", source=_source(folder, what.family, what.spec, stored, located),
        dialect=what.dialect, layout=what.layout, iteration=_iteration(folder), manifest=what.manifest, common=common,
        notes=what.notes, ignored=what.ignored,
    )  # fmt: skip


def _source(
    folder: Path, family: Family, spec: ModelSpec, stored: list[Stored], located: dict[str, Located]
) -> StoredSource:
    return StoredSource(label=str(folder), family=family, spec=spec, stored=stored, located=located)


def _iteration(folder: Path) -> int | None:
    found = re.fullmatch(r"iter_(\d+)", folder.name)
    return int(found[1]) if found else None
