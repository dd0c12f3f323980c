"""The files written with the tensors: config, tokenizer, other sidecar files, another program's files, the manifest."""

import json
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint import bridge
from mconv.convert.checkpoint.model import SIDE_FOLDER
from mconv.convert.engine.plan import Plan
from mconv.convert.folders import manifest, sidecar, tokens
from mconv.convert.folders.digests import combined
from mconv.convert.formats.hf import read_json
from mconv.convert.spelling import dtypes
from mconv.convert.spelling.rope import OLD_KEYS
from mconv.shard.layout import Layout


def write_side_files(plan: Plan, folder: Path) -> dict[str, str]:
    """Write what travels with the model, as it was but for a config that is no longer true; return digests."""
    into = folder if plan.format == "hf" else folder / SIDE_FOLDER
    into.mkdir(exist_ok=True)
    digests = sidecar.copy(plan.side_files, into)
    config = into / "config.json"
    old = read_json(config) if config.is_file() else {}
    if not old or not _still_true(plan, old):
        config.write_text(json.dumps(_config(plan, old), indent=2) + "\n", encoding="utf-8")
    else:
        dtypes.set_in(config, plan.final_dtype.name)
        if plan.format == "hf":
            _add_old_rope(plan, config)
    return {name: digest for name, digest in digests.items() if name != config.name}


def emit(plan: Plan, folder: Path, layout: Layout) -> None:
    """Write the files of another program beside the tensors."""
    dtype, done = plan.final_dtype.name, plan.iteration or 0
    bridge.emit(folder, plan.spec, layout, dtype=dtype, step=done, files=plan.side_files)


def _still_true(plan: Plan, config: dict[str, Any]) -> bool:
    """Return whether a config describes what is written; its dtype aside, which can be set by itself."""
    family = plan.family
    same = family.read_config(config, plan.model.ignored.get("config_keys", ())) == family.expressible(plan.spec)
    named = [str(name).lower() for name in config.get("architectures") or [family.architecture]]
    whole = named == [family.architecture.lower()]  # what is written has its head, whatever the source had
    return same and whole


def _add_old_rope(plan: Plan, file: Path) -> None:
    """Add rotary settings as transformers 4 reads them, where a config.json has them for transformers 5 alone.

    Transformers 4 does not know `rope_parameters`: it would compute with base 10000 and no scaling, without a word.
    """
    family, config = plan.family, read_json(file)
    known = {key: value for key, value in config.items() if key != "rope_parameters"}
    spec, ignored = family.expressible(plan.spec), plan.model.ignored.get("config_keys", ())
    if family.read_config(known, ignored) != spec:
        written = family.write_config(spec)
        added = {key: written[key] for key in OLD_KEYS if config.get(key) is None}
        file.write_text(json.dumps({**config, **added}, indent=2) + "\n", encoding="utf-8")


def _config(plan: Plan, old: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json of the spec, for transformers 4 and 5 alike, that keeps what the old one says beyond it."""
    family = plan.family
    spec = family.expressible(plan.spec)
    name = plan.final_dtype.name
    old = old or tokens.special_ids(plan.side_files)
    new: dict[str, Any] = {**old, **family.write_config(spec), "torch_dtype": name, "dtype": name}
    if isinstance(types := old.get("layer_types"), list):  # the same for every layer, or it would have been refused
        new["layer_types"] = types[:1] * spec.num_layers
    for key, value in plan.model.ignored.get("config_keys", {}).items():  # rope_scaling.x
        where, _, inner = key.partition(".")
        if inner and isinstance(new.get(where), dict):
            new[where] = {**new[where], inner: value}
    return new


def manifest_of(plan: Plan, step: str, found: dict[str, str], read: dict[str, str]) -> dict[str, Any]:
    """Return the manifest: `found` are the digests of what was written, `read` of what the source holds."""
    before = plan.model.manifest or {}
    layout = {"tp": plan.layout.tp, "pp": plan.layout.pp, "vpp": plan.layout.vpp} if plan.layout else {}
    detail: dict[str, Any] = {"from": plan.origin, "from_format": plan.model.format, "to_format": plan.format, **layout}
    if plan.fingerprint:
        detail["fingerprint"] = plan.fingerprint
    if plan.dtype:
        detail["cast_to"] = plan.dtype.name
    if plan.model.recipe:
        detail["recipe"] = plan.model.recipe
    own = {name: read[name] for name in plan.weights.names()}
    origin = before.get("source") or {"name": plan.origin, "format": plan.model.format, "digest": combined(own)}
    kept = {key: before[key] for key in manifest.RECIPES if key in before} or plan.model.kept(own)
    made = manifest.make(
        plan.spec,
        format=plan.format,
        dialect=None if plan.format == "hf" else plan.dialect,
        layout=plan.layout,
        dtype=plan.final_dtype.name,
        source=origin,
        digests=found,
        copies=plan.model.copies,
        ignored=plan.model.ignored,
        history=[*before.get("history", []), {"step": step, "detail": detail}],
        made_from=[] if plan.model.derived else manifest.origins(plan.folder, plan.model.path, before),
        ancestors=manifest.descent(plan.folder, plan.model.path, before),
        merged_from=manifest.moved(plan.folder, plan.model.path, before.get("merged_from", {})),
    )
    return made | kept
