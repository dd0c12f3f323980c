"""Adapters on disk: the checkpoint of a LoRA run or a PEFT folder, the base beneath it, and both merged into one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.convert.checkpoint import open as opening
from mconv.convert.checkpoint.identify import MegatronHints, identify
from mconv.convert.checkpoint.model import Checkpoint, SourceModel
from mconv.convert.folders import manifest
from mconv.convert.folders.digests import combined
from mconv.convert.folders.ignored import NOTHING, Ignored, joined, recorded
from mconv.convert.folders.recognize import what_is
from mconv.convert.formats import torch_dist
from mconv.convert.formats.hf import read_json
from mconv.convert.peft import folder as peft
from mconv.convert.peft import lora
from mconv.convert.peft.settings import Settings
from mconv.convert.sources.merged import LoraMerged
from mconv.errors import FormatError, refuse

if TYPE_CHECKING:
    from mconv.convert.peft.adapter import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The checkpoint of a LoRA run, opened."""

    folder: Path
    adapter: "Adapter"
    base: dict[str, str]
    """`name`, `path` as seen from the run's folder, and `digest` of the model beneath."""


def open_run(path: Path, iteration: int | None = None) -> Run:
    """The adapter that a LoRA run's checkpoint holds. Raises FormatError if it is of another run, or damaged."""
    if not opening.is_lora_run(path, iteration):
        found = what_is(path)
        if found.kind == "adapter":
            raise FormatError(f"{path} is a PEFT adapter already, not a LoRA run: it needs no export")
        advice = f"; {found.advice}" if found.advice else ", with a whole model in it"
        raise FormatError(f"{path} is neither a LoRA run nor a PEFT adapter: it is {found.text}{advice}")
    folder = opening.iteration_folder(path, iteration)
    tensors, common = torch_dist.open_folder(folder)
    facts: dict[str, Any] = lora.of_args(common) or {}
    settings = Settings.from_dict(facts)
    what = identify(folder, lora.without_args(common), MegatronHints(), tensors={}, only="mcore")
    known = lora.linears(what.family, what.spec)
    keys = [lora.stacked_key(known[name], factor) for name in settings.targets for factor in lora.FACTORS]
    bad = [f"{key} is missing" for key in keys if key not in tensors]
    bad += [f"{key}: not of the adapter that its args describe" for key in tensors if key not in keys]
    refuse(bad, doing=f"{folder}", kind=FormatError)
    from mconv.convert.peft.adapter import Adapter, unstacked, whole_tensor

    stacks = {key: whole_tensor(key, tensors[key]) for key in keys}
    factors = unstacked(settings, what.family, what.spec, stacks)
    adapter = Adapter(settings=settings, family=what.family, spec=what.spec, factors=factors)
    return Run(folder=folder, adapter=adapter, base=dict(facts["base"]))


def describe(run: Run, folder: Path, *, base: str) -> None:
    """Write the manifest of an adapter that was exported from a run: what it comes from, and what it is of."""
    settings, before = run.adapter.settings, manifest.read(run.folder)
    made = manifest.make(
        run.adapter.spec, format="peft", dialect=None, layout=None,
        dtype=str(next(iter(run.adapter.factors.values())).dtype).removeprefix("torch."),
        source={"name": base, "format": "hf"}, digests={},
        history=[*(before or {}).get("history", []), {"step": "lora export", "detail": settings.to_dict()}],
        ignored=(before or {}).get("ignored"), ancestors=manifest.descent(folder, run.folder, before),
    )  # fmt: skip
    manifest.write(folder, made | {"adapter": {"rank": settings.rank, "alpha": settings.alpha}})


def with_base(
    path: Path,
    base: Path | None,
    *,
    iteration: int | None = None,
    ignore: Ignored = NOTHING,
    progress: Callable[[int], None] = lambda _: None,
) -> SourceModel:
    """Return the model that an adapter (a LoRA run's checkpoint, or a PEFT folder) makes of its base, or of `base`.

    A run's checkpoint knows its base's weights by their digest: another base is refused. Raises FormatError.
    """
    if peft.has_adapter(path):
        beneath = opening.open_checkpoint(base or _named(path), ignore=ignore)
        from mconv.convert.checkpoint import adapter_folder as peft_adapter

        adapter = peft_adapter.read(path, family=beneath.family, spec=beneath.spec, ignore=ignore.config_keys)
        return merged(beneath, adapter, lies=path)
    run = open_run(path, iteration)
    where = base or (run.folder.parent / run.base["path"])
    if not where.is_dir():
        raise FormatError(f"{where}, the base of {path}, does not exist; give its present folder with --base")
    beneath = opening.open_checkpoint(where, ignore=ignore | recorded(manifest.read(run.folder)))
    if beneath.spec != run.adapter.spec:
        raise FormatError(
            f"{where} is not the base of {path}: its architecture differs from that of {run.base['name']}, on which the "
            "adapter was trained"
        )
    from mconv.convert.sources.read import digests

    found = digests(beneath.source, allow_nonfinite=True, progress=progress).stored
    if combined(found) != run.base["digest"]:
        raise FormatError(f"{where} does not have the weights that {path} was trained on ({run.base['name']})")
    return merged(beneath, run.adapter, lies=run.folder)


def _named(folder: Path) -> Path:
    """Return the base of a PEFT folder: the model that it lies beside, or what it names if that is a folder.

    A relative name is looked for from here, from within the folder and from beside it; then what the adapter's manifest
    says the run was trained on.
    """
    if not peft.is_adapter(folder):
        return folder
    name = str(read_json(folder / peft.CONFIG).get("base_model_name_or_path"))
    places = [place / name for place in (Path(), folder, folder.parent)]
    places += [folder / path for path in (manifest.read(folder) or {}).get("ancestors", [])[-2:-1]]
    if found := next((place for place in places if place.is_dir()), None):
        return found
    raise FormatError(
        f"{folder} names {name!r} as its base, which is not a local folder; give the folder of the base with --base"
    )


def merged(base: Checkpoint, adapter: "Adapter", *, lies: Path) -> SourceModel:
    """Return the base, each of whose tensors is read as W + scale * B A; `lies`: the adapter's own folder.

    It is a model of its own: nothing vouches for it but the two that it is made of.
    """
    before = base.manifest or {}
    history = [*before.get("history", []), {"step": "lora", "detail": adapter.settings.to_dict()}]
    places = {"base": str(base.path.resolve()), "adapter": str(lies.resolve())}
    ancestors = [*before.get("ancestors", before.get("made_from", [])), places["adapter"]]
    notes = [note for note in base.notes if note not in peft.unapplied(lies)]  # that an adapter lies there: it is applied
    return SourceModel(
        source=LoraMerged(base.source, adapter), derived=True, path=base.path, format=base.format, dialect=base.dialect,
        layout=base.layout, iteration=base.iteration, common=base.common, notes=(*notes, *adapter.notes),
        manifest={"history": history, "copies": base.copies, "merged_from": places, "ancestors": ancestors},
        ignored=joined(base.ignored, {"config_keys": adapter.ignored}),
    )  # fmt: skip
