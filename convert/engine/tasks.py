"""The tasks of a conversion: a logical tensor each, with every place where the target stores a piece of it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mconv.convert.engine.parts import Part
from mconv.convert.engine.plan import Plan
from mconv.convert.formats.file_layout import Extent, FileLayout
from mconv.convert.formats.tensors import Target
from mconv.convert.spelling.table import Family, Logical, Stored
from mconv.shard.cut import repeat_last
from mconv.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Destination:
    """A target of a task: the tensor to be written, what it holds of the logical tensor, and where its bytes lie."""

    target: Target
    stored: Stored
    extent: Extent


@dataclass(frozen=True, slots=True)
class CopyTask:
    """A logical tensor of a part and all that stores it in the target. Tasks can be done in any order."""

    part: Part
    logical: Logical
    destinations: tuple[Destination, ...]
    nbytes: int
    """Bytes of all its destinations."""
    digest: bool
    """True for a tensor of the architecture, False for a zero bias that some format must store."""

    @property
    def name(self) -> str:
        """The name in journal and manifest."""
        return self.part.name(self.logical)

    @property
    def files(self) -> set[str]:
        """The files that it writes to."""
        return {one.extent.file for one in self.destinations}


def tasks_of(plan: Plan, files: FileLayout) -> list[CopyTask]:
    """Return a task for each logical tensor that a part's source has or its targets want."""
    return [task for part in plan.parts for task in _tasks_of(part, files, repeat=plan.vocab_padding == "last-row")]


def _tasks_of(part: Part, files: FileLayout, *, repeat: bool) -> Iterator[CopyTask]:
    source, family = part.source, part.source.family
    found: dict[Logical, list[Destination]] = {}
    for target, stored in zip(part.targets, part.stored, strict=True):
        written = _with_last_row(family, source.spec, stored) if repeat else stored
        found.setdefault(stored.logical, []).append(Destination(target, written, files.extents[target.key]))
    inside = dict.fromkeys(family.logicals(source.spec))
    for logical in dict.fromkeys([*inside, *found, *source.tensors()]):
        to = tuple(found.get(logical, ()))
        yield CopyTask(part, logical, to, sum(one.target.nbytes for one in to), digest=logical in inside)


def _with_last_row(family: Family, spec: ModelSpec, stored: Stored) -> Stored:
    """Return a stored tensor whose rows of padding repeat the last true row, where it has a vocabulary."""
    if family.row(stored.logical.row).cut != "v":
        return stored
    return replace(stored, piece=repeat_last(stored.piece, family.axes(stored.logical), spec.sizes))
