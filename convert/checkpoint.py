"""Open any checkpoint: which format, which architecture, and where each piece of each logical tensor lies."""

import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from mconv.convert import manifest, spell
from mconv.convert.dialects import mcore
from mconv.convert.families import FAMILIES, family_of
from mconv.convert.formats import hf, mp_rank, torch_dist
from mconv.convert.formats.tensors import Located
from mconv.convert.table import Family, Logical, Stored
from mconv.errors import ConfigError, FormatError, refuse
from mconv.shard.axes import Box, intersect, volume
from mconv.shard.layout import Layout, check_tp, padded_vocab
from mconv.shard.stages import stage_layers
from mconv.spec import ModelSpec

TRACKER = "latest_checkpointed_iteration.txt"
SIDE_FOLDER = "hf"
"""Beside a Megatron checkpoint: the config and tokenizer files that an export gives back."""
SIDE_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "chat_template.json", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "USE_POLICY.md",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint. Nothing but its index and small files was read."""

    path: Path
    """The folder that holds the tensors (of a Megatron root: the iteration's)."""
    format: str
    dialect: str | None
    family: Family
    spec: ModelSpec
    layout: Layout | None
    iteration: int | None
    stored: list[Stored]
    located: dict[str, Located]
    manifest: dict[str, Any] | None
    common: dict[str, Any] = field(default_factory=dict)
    by_logical: dict[Logical, list[Stored]] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[Logical, list[Stored]] = {}
        for stored in self.stored:
            found.setdefault(stored.logical, []).append(stored)
        object.__setattr__(self, "by_logical", found)

    @property
    def name(self) -> str:
        """What to call it: the folder's name, or root/iteration."""
        return self.path.name if self.format == "hf" else f"{self.path.parent.name}/{self.path.name}"

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {self.located[s.key].dtype for s in self.stored}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of its bytes."""
        total: dict[torch.dtype, int] = {}
        for stored in self.stored:
            where = self.located[stored.key]
            total[where.dtype] = total.get(where.dtype, 0) + where.nbytes
        return max(total, key=lambda d: total[d])

    @property
    def parameters(self) -> int:
        """The model's parameters: logical elements, without padding and without copies."""
        rows = self.family.logicals(self.spec)
        return sum(volume(tuple((0, n) for n in self.family.axes(x).dims(self.spec.sizes))) for x in rows)

    @property
    def copies(self) -> list[str]:
        """Tensors that the Hugging Face folder stores twice (a tied head beside the embedding), to be given back so."""
        if self.format != "hf":
            return list((self.manifest or {}).get("copies", []))
        kept = {id(stored) for group in self.by_logical.values() for stored in primary(group)}
        return [stored.key for stored in self.stored if id(stored) not in kept]

    @property
    def side_files(self) -> list[Path]:
        """Config and tokenizer files."""
        folder = self.path if self.format == "hf" else self.path / SIDE_FOLDER
        return [folder / name for name in SIDE_FILES if (folder / name).is_file()]


def open_checkpoint(path: Path | str, *, iteration: int | None = None, vocab_size: int | None = None) -> Checkpoint:
    """Open a Hugging Face folder, a Megatron root (by its tracker, or `iteration`) or one iteration's folder.

    `vocab_size`: the true vocabulary, where the checkpoint does not know it. Raises a MconvError that names what is
    missing, unknown, damaged or unsafe. Reads indices and headers only.
    """
    path = Path(path)
    if not path.is_dir():
        raise FormatError(f"{path} is not a folder; give a Hugging Face folder or a Megatron checkpoint")
    if hf.is_hf(path):
        if iteration is not None or vocab_size is not None:
            raise FormatError(
                f"{path} is a Hugging Face folder: it has no iterations, and its config knows its vocabulary"
            )
        found = _open_hf(path)
    else:
        folder = iteration_folder(path, iteration)
        if torch_dist.is_torch_dist(folder):
            found = _open_torch_dist(folder, vocab_size)
        elif mp_rank.is_mp_rank(folder):
            found = _open_mp_rank(folder, vocab_size)
        else:
            raise FormatError(
                f"{folder} is no checkpoint that mconv knows: no config.json, no metadata.json, no mp_rank_*"
            )
    check_complete(found)
    return found


def iteration_folder(root: Path, iteration: int | None = None) -> Path:
    """The folder of one iteration of a Megatron root: the one named, else the tracker's."""
    if iteration is not None:
        folder = root / f"iter_{iteration:07d}"
        if not folder.is_dir():
            have = sorted(p.name for p in root.glob("iter_*"))
            raise FormatError(f"{folder} does not exist; {root} has {have or 'no iterations'}")
        return folder
    tracker = root / TRACKER
    if not tracker.is_file():
        if torch_dist.is_torch_dist(root) or mp_rank.is_mp_rank(root):
            return root
        raise FormatError(
            f"{root} has no config.json and no {TRACKER}: neither a Hugging Face folder nor a Megatron checkpoint"
        )
    word = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if word != "release" and not re.fullmatch(r"\d{1,12}", word):
        raise FormatError(f"{tracker} says {word[:40]!r}; it must be an iteration number or 'release'")
    folder = root / ("release" if word == "release" else f"iter_{int(word):07d}")
    if not folder.is_dir():
        raise FormatError(f"{tracker} says {word!r}, but {folder} does not exist")
    return folder


def _open_hf(path: Path) -> Checkpoint:
    config = hf.read_json(path / "config.json")
    family = family_of(config)
    spec = family.read_config(config)
    located = {k: v for k, v in hf.open_folder(path).items() if not k.endswith(family.ignored_weights)}
    _check_depth(path, spec, len(located))
    return Checkpoint(
        path=path, format="hf", dialect=None, family=family, spec=spec, layout=None, iteration=None,
        stored=spell.hf(family, spec, located), located=located, manifest=manifest.read(path),
    )  # fmt: skip


def _open_torch_dist(folder: Path, vocab_size: int | None) -> Checkpoint:
    tensors, common = torch_dist.open_folder(folder)
    made, family, spec, layout = _megatron(folder, common, vocab_size)
    _check_depth(folder, spec, sum(min((*c.shape, 1)[0], c.length) for t in tensors.values() for c in t.chunks))
    stored, located = spell.torch_dist_sources(family, spec, layout, tensors)
    return Checkpoint(
        path=folder, format="torch_dist", dialect="mcore", family=family, spec=spec, layout=layout,
        iteration=_iteration(folder), stored=stored, located=located, manifest=made, common=common,
    )  # fmt: skip


def _open_mp_rank(folder: Path, vocab_size: int | None) -> Checkpoint:
    located, ranks = mp_rank.open_folder(folder)
    first, *others = ranks
    common = ranks[first]
    made, family, spec, layout = _megatron(folder, common, vocab_size)
    mcore.check_even(common["args"])
    _check_depth(folder, spec, len(located))
    wanted = {mp_rank.rank_folder(rank, stage, pp=layout.pp) for rank, stage in layout.ranks[: len(ranks) + 1]}
    if wanted != set(ranks):
        differ = sorted(wanted ^ set(ranks))[:6]
        raise FormatError(f"{folder}: tp {layout.tp} x pp {layout.pp} by its args, but {differ} are missing or too many")
    for other in others:  # every rank was saved by its own process: one of another run must not slip in
        same = _megatron(folder, ranks[other], vocab_size)[2:] == (spec, layout)
        if not same or ranks[other].get("iteration") != common.get("iteration"):
            raise FormatError(
                f"{folder}: {first} and {other} are of different models or iterations; do not mix checkpoints"
            )
    return Checkpoint(
        path=folder, format="mp_rank", dialect="mcore", family=family, spec=spec, layout=layout,
        iteration=_iteration(folder), stored=spell.mp_rank_sources(family, spec, layout, located), located=located,
        manifest=made, common=common,
    )  # fmt: skip


def _iteration(folder: Path) -> int | None:
    found = re.fullmatch(r"iter_(\d+)", folder.name)
    return int(found[1]) if found else None


def _megatron(
    folder: Path, common: dict[str, Any], vocab_size: int | None
) -> tuple[dict[str, Any] | None, Family, ModelSpec, Layout]:
    """What a Megatron checkpoint is: from its args, and from our manifest where there is one. They must agree."""
    made, args = manifest.read(folder), common.get("args")
    if not isinstance(args, Namespace):
        raise FormatError(f"{folder}: no args in it, so its architecture is unknown")
    told = _told(folder, made) if made else None
    if told and vocab_size not in (None, told.vocab_size):
        raise ConfigError(f"{folder / manifest.NAME} says a vocabulary of {told.vocab_size}, not {vocab_size}")
    spec = mcore.spec_of(args, vocab_size=told.vocab_size if told else vocab_size)
    layout = mcore.layout_of(args)
    if told:
        _agree(folder, told, spec)
        spec = told
    if spec.family not in FAMILIES:
        raise ConfigError(f"{folder / manifest.NAME}: family {spec.family!r} is not one of {sorted(FAMILIES)}")
    if spec.vocab_size > layout.padded_vocab:
        raise ConfigError(
            f"{folder}: the true vocabulary {spec.vocab_size} is larger than the padded one, {layout.padded_vocab}"
        )
    return made, FAMILIES[spec.family], spec, layout


def _told(folder: Path, made: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.from_dict(made.get("spec", {}))
    except ConfigError as error:
        raise ConfigError(f"{folder / manifest.NAME}: {error}; remove it if it is not this checkpoint's") from error


def _check_depth(folder: Path, spec: ModelSpec, tensors: int) -> None:
    """A number of layers that the tensors at hand cannot make up would cost minutes to spell out."""
    if spec.num_layers > tensors:
        raise ConfigError(f"{folder}: num_layers is {spec.num_layers} by its config, but it has {tensors} tensors in all")


def _agree(folder: Path, told: ModelSpec, args: ModelSpec) -> None:
    """Megatron's args cannot say everything (biases by place, three of llama3's fields); the rest must be the same."""
    a, b = mcore.bias_spec(told).to_dict(), args.to_dict()
    for values in (a, b):
        values["family"] = None
        values["rope"] = {k: v for k, v in values["rope"].items() if k in ("kind", "base", "factor")}
    differ = [f"{k}: {a[k]} in {manifest.NAME}, {b[k]} in its args" for k in a if a[k] != b[k]]
    refuse(differ, doing=f"{folder}: the manifest and the checkpoint's args differ", kind=ConfigError)


def check_complete(checkpoint: Checkpoint) -> None:
    """Every tensor on disk is claimed once, every expected one is there with its shape, every element covered once."""
    c = checkpoint
    problems = []
    expected = {s.key for s in c.stored}
    problems += [
        f"{k} {c.located[k].shape}: no row of the {c.family.name} table claims it" for k in c.located if k not in expected
    ]
    for stored in c.stored:
        where = c.located.get(stored.key)
        if where is None:
            problems.append(f"{stored.key} is missing (it holds {stored.logical})")
        elif where.shape != stored.piece.shape:
            problems.append(f"{stored.key} has shape {where.shape}; the architecture says {stored.piece.shape}")
        elif not where.dtype.is_floating_point or where.dtype.itemsize == 1:
            problems.append(f"{stored.key} has dtype {where.dtype}: quantised weights are not supported")
    refuse(problems, doing=f"{c.path}: its tensors are not those of its architecture", kind=FormatError)
    problems = [p for logical, group in c.by_logical.items() for p in _covered(c, logical, group)]
    wanted = set(c.family.logicals(mcore.bias_spec(c.spec) if c.dialect else c.spec))
    problems += [f"{x} is missing" for x in sorted(wanted - c.by_logical.keys(), key=str)]
    problems += [f"{x} is not in the architecture" for x in sorted(c.by_logical.keys() - wanted, key=str)]
    refuse(problems, doing=f"{c.path}: incomplete", kind=FormatError)


def _covered(c: Checkpoint, logical: Logical, group: list[Stored]) -> list[str]:
    """Each element must be stored once. Boxes that fill the volume without overlapping do just that."""
    boxes = sorted(block.box for stored in primary(group) for block in stored.piece.blocks)
    total = volume(tuple((0, n) for n in c.family.axes(logical).dims(c.spec.sizes)))
    held = sum(volume(box) for box in boxes)
    clash = any(intersect(a, b) for i, a in enumerate(boxes) for b in _until_past(boxes[i + 1 :], a))
    if held == total and not clash:
        return []
    return [f"{logical}: the stored pieces hold {held} of its {total} elements" + (" and overlap" if clash else "")]


def _until_past(boxes: list[Box], box: Box) -> Iterator[Box]:
    """Of boxes sorted by where they start, those that start before `box` ends on the first axis."""
    return takewhile(lambda other: other[0][0] < box[0][1], boxes)


def primary(group: list[Stored]) -> list[Stored]:
    """One stored tensor for each piece; the others are copies of it (replicated norms, a tied head)."""
    return list({stored.piece.blocks: stored for stored in reversed(group)}.values())[::-1]


def target_layout(
    spec: ModelSpec, family: Family, *, tp: int, pp: int, vpp: int = 1, vocab_multiple: int = 128
) -> Layout:
    """The layout with these sizes, or a LayoutError that lists everything that does not fit."""
    from mconv.errors import LayoutError

    biased = mcore.bias_spec(spec)
    if min(tp, pp, vpp) < 1:
        raise LayoutError(f"tp {tp}, pp {pp}, vpp {vpp}: each must be at least 1")
    rows = [(f"{row.name}.{leaf}", row.axes_of(leaf), row.cut) for row in family.rows for leaf in row.leaves(biased)]
    problems = check_tp(rows, spec.sizes, tp=tp)
    try:
        stage_layers(spec.num_layers, pp=pp, vpp=vpp)
    except LayoutError as error:
        problems.append(str(error))
    refuse(problems, doing="the layout does not fit the model", kind=LayoutError)
    return Layout(tp=tp, pp=pp, vpp=vpp, padded_vocab=padded_vocab(spec.vocab_size, tp=tp, multiple=vocab_multiple))
