"""Every tensor on disk is claimed once, every expected one is there, and every element of it is stored once."""

from pathlib import Path

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.sources.stored import primary
from mconv.convert.spelling.table import Logical, Stored
from mconv.errors import ConfigError, FormatError, refuse
from mconv.shard.axes import overlap, volume
from mconv.spec import ModelSpec


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
    _refuse(problems, doing=f"{c.path}: its tensors are not those of its architecture")
    problems = [p for logical, group in c.by_logical.items() for p in _covered(c, logical, group)]
    wanted = set(c.family.logicals(c.stored_spec))
    problems += [f"{x} is missing" for x in sorted(wanted - c.by_logical.keys(), key=str)]
    problems += [f"{x} is not in the architecture" for x in sorted(c.by_logical.keys() - wanted, key=str)]
    _refuse(problems, doing=f"{c.path}: incomplete")


def _refuse(problems: list[str], *, doing: str) -> None:
    """A problem that stands alone still says which checkpoint it is of."""
    refuse([f"{doing}: {problems[0]}"] if len(problems) == 1 else problems, doing=doing, kind=FormatError)


def _covered(c: Checkpoint, logical: Logical, group: list[Stored]) -> list[str]:
    """Each element must be stored once. Boxes that fill the volume without overlapping do just that."""
    boxes = sorted(block.box for stored in primary(group) for block in stored.piece.blocks)
    total = volume(tuple((0, n) for n in c.family.axes(logical).dims(c.spec.sizes)))
    held = sum(volume(box) for box in boxes)
    clash = overlap(boxes) is not None
    if held == total and not clash:
        return []
    return [f"{logical}: the stored pieces hold {held} of its {total} elements" + (" and overlap" if clash else "")]


def check_depth(folder: Path, spec: ModelSpec, tensors: int) -> None:
    """Refuse a number of layers that the tensors at hand cannot make up: it could take minutes to spell out."""
    if spec.num_layers > tensors:
        raise ConfigError(f"{folder}: num_layers is {spec.num_layers} by its config, but it has {tensors} tensors in all")
