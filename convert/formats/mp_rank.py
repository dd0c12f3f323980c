"""Megatron's `torch` format: `mp_rank_TT[_PPP]/model_optim_rng.pt`, one archive a rank, layers numbered in the stage.

A folder `mp_rank_00_001` may be a pipeline stage or an expert rank: only the args inside tell.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mconv.convert.formats import archive, pack
from mconv.convert.formats.file_layout import Extent, FileLayout
from mconv.convert.formats.pack import Promise
from mconv.convert.formats.tensors import Located, Target
from mconv.errors import FormatError

FILE = "model_optim_rng.pt"
RNG_FILE, OPTIMIZER_FILE = "model_rng.pt", "optim.pt"
"""The files that older Megatrons write in place of `FILE` with a distributed optimizer."""


def rank_folder(tp_rank: int, stage: int, *, pp: int) -> str:
    """The folder of a rank: the stage is named only where there are several."""
    return f"mp_rank_{tp_rank:02d}" + (f"_{stage:03d}" if pp > 1 else "")


def key(tp_rank: int, stage: int, chunk: int, name: str, *, pp: int, vpp: int) -> str:
    """Return mconv's key of a rank's tensor: folder, model chunk, name."""
    return f"{rank_folder(tp_rank, stage, pp=pp)}/model{chunk if vpp > 1 else ''}/{name}"


def open_folder(folder: Path) -> tuple[dict[str, Located], dict[str, dict[str, Any]]]:
    """Every model tensor by key, and the common state (args, iteration, ...) of each rank's folder."""
    ranks = sorted(p for p in folder.glob("mp_rank_*") if p.is_dir())
    tensors: dict[str, Located] = {}
    common: dict[str, dict[str, Any]] = {}
    for rank in ranks:
        here = [rank / name for name in (FILE, RNG_FILE) if (rank / name).is_file()]
        if len(here) > 1:
            raise FormatError(
                f"{rank} has both {FILE} and {RNG_FILE}, two models: remove the one that you do not want to convert"
            )
        if not here:
            if (rank / OPTIMIZER_FILE).is_file():
                continue  # a data-parallel rank's part of an optimizer: its folder is named like a stage's
            raise FormatError(f"{rank / FILE} is missing; the checkpoint is incomplete")
        state = archive.read(here[0])
        if not isinstance(state, dict) or not all(isinstance(k, str) for k in state):
            raise FormatError(f"{rank / FILE} does not hold a dictionary of names; it is not a checkpoint of Megatron")
        models = {k: v for k, v in state.items() if re.fullmatch(r"model\d*", k)}
        if not models:
            raise FormatError(f"{rank / FILE} holds no 'model'; it is not a checkpoint of Megatron")
        for chunk, model in models.items():
            tensors.update(_tensors(rank, chunk, model))
        common[rank.name] = {k: v for k, v in state.items() if k not in models}
    return tensors, common


def _tensors(rank: Path, chunk: str, model: Any) -> dict[str, Located]:
    if not isinstance(model, dict):
        raise FormatError(f"{rank / FILE}: {chunk!r} is not a dictionary of tensors")
    found = {}
    for name, value in _flat(model):
        if str(name).endswith("_extra_state"):
            continue  # None, bytes, or Transformer Engine's empty uint8 tensor: never a weight
        if not isinstance(value, Located):
            raise FormatError(f"{rank / FILE}: {chunk}/{name} is {type(value).__name__}, not a tensor")
        found[f"{rank.name}/{chunk}/{name}"] = value
    return found


def _flat(model: dict[Any, Any], *, before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Names and values of a model whose parts may be dictionaries of their own, as the older Megatrons nest them."""
    for name, value in model.items():
        if isinstance(value, dict) and depth < 4:
            yield from _flat(value, before=f"{before}{name}.", depth=depth + 1)
        else:
            yield f"{before}{name}", value


def lay_out(targets: list[Target], common: dict[str, Any], nests: tuple[str, ...] = ()) -> FileLayout:
    """The files of all ranks. Each archive's headers and directory are written at the end.

    `nests`: prefixes of names that are dictionaries of their own.
    """
    by_rank: dict[str, list[Target]] = {}
    for target in targets:
        by_rank.setdefault(target.key.split("/", 1)[0], []).append(target)
    extents, archives = {}, {}
    for rank, mine in by_rank.items():
        laid = pack.lay_out(_tree(mine, common, nests), [(str(i), t.nbytes) for i, t in enumerate(mine)])
        begins = laid.begins()
        extents.update({t.key: Extent(f"{rank}/{FILE}", begins[str(i)]) for i, t in enumerate(mine)})
        archives[rank] = laid

    def finish(folder: Path, crcs: Mapping[str, int]) -> None:
        for rank, laid in archives.items():
            with (folder / rank / FILE).open("r+b") as file:
                laid.write(file, start=0, crcs={str(i): crcs[t.key] for i, t in enumerate(by_rank[rank])})

    sizes = {f"{rank}/{FILE}": laid.size for rank, laid in archives.items()}
    return FileLayout(extents=extents, sizes=sizes, checksums=True, finish=finish)


def _tree(targets: list[Target], common: dict[str, Any], nests: tuple[str, ...]) -> dict[str, Any]:
    tree: dict[str, Any] = dict(common)
    for number, target in enumerate(targets):
        _, chunk, name = target.key.split("/", 2)
        model, leaf = tree.setdefault(chunk, {}), name
        for nest in (n for n in nests if name.startswith(f"{n}.")):  # from the outermost in
            model, leaf = model.setdefault(nest.rpartition(".")[2], {}), name.removeprefix(f"{nest}.")
        model[leaf] = Promise(target.shape, target.dtype, str(number))
        module = name.rpartition(".")[0]
        if not nests and module.rpartition(".")[2] in LINEARS:
            model[f"{module}._extra_state"] = None
    return tree


LINEARS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "output_layer")
"""megatron-core's linears list an empty extra state; a strict load asks for it."""
