"""The layout at which the Megatron side of a comparison runs: as asked, else as recorded if that is cheap."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.folders.host import cores
from mconv.errors import LayoutError
from mconv.shard.layout import Layout, padded_vocab
from mconv.shard.stages import EVEN, Uneven
from mconv.train.megatron.parallel import Parallel, world
from mconv.train.model.checks import problems
from mconv.verify import environment

TURNS = 4
"""Number of CPU ranks that may share one core."""
RANK_BYTES = 500_000_000
"""Memory of one more CPU rank, without its share of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A layout to run at."""

    tp: int = 1
    pp: int = 1
    uneven: Uneven = EVEN
    notes: tuple[str, ...] = ()
    """Sentences that a user should read before the work begins."""
    provable: bool = True
    """False if megatron-core cannot run the recorded layout at all."""


def choose(a: SourceModel, b: SourceModel, *, tp: int | None, pp: int | None, uneven: Uneven = EVEN) -> Choice:
    """Return the layout to run at: `tp` and `pp` where they are given, else the recorded one if its ranks are cheap."""
    own = own_layout(a, b)
    if own is None:
        return Choice(tp=tp or 1, pp=pp or 1, uneven=uneven)
    if tp or pp:  # what is not given: as rank files are cut, else 1
        ranks = next((c.layout for c in (a, b) if c.format == "mp_rank" and c.layout), Layout(tp=1, pp=1, padded_vocab=1))
        return Choice(tp=tp or ranks.tp, pp=pp or ranks.pp, uneven=own.uneven if pp == own.pp else uneven)
    found = _possible([c.spec.num_layers for c in (a, b)], own)
    if _refused(found, [c for c in (a, b) if c.format != "hf"]):
        unable = f"megatron-core cannot run the recorded layout, {layout_in_words(own)}: judged at tp 1 x pp 1"
        return Choice(notes=(unable,), provable=False)
    needed = found.tp * found.pp
    if why := _costly(needed, a, b):
        return Choice(notes=(f"{why}: judged at tp 1 x pp 1",))
    turns = needed > cores() and not _gpus() and world()[1] == 1
    note = f"{needed} ranks take turns on {_counted(cores())} here; --tp 1 --pp 1 judges the same on one rank"
    return replace(found, notes=(note,) if turns else ())


def own_layout(a: SourceModel, b: SourceModel) -> Layout | None:
    """Return the layout to prove: that of rank files, which are loaded as they are, else the candidate's."""
    return next((c.layout for c in (a, b) if c.format == "mp_rank" and c.layout), b.layout)


def layout_in_words(layout: Layout) -> str:
    """Return a layout in words: `tp 2 x pp 2`, with the model chunks of a stage if it has several."""
    chunks = f" with {layout.vpp} model chunks a stage" if layout.vpp > 1 else ""
    return f"tp {layout.tp} x pp {layout.pp}{chunks}"


def recorded(a: SourceModel, b: SourceModel, ran: Choice) -> dict[str, Any] | None:
    """Return the recorded layout of both sides and the one that was proven, for the report; None if neither has one."""
    sides = {"reference": a.layout, "candidate": b.layout}
    if not any(sides.values()):
        return None
    sizes = {n: None if x is None else {"tp": x.tp, "pp": x.pp, "vpp": x.vpp} for n, x in sides.items()}
    same_depth = a.spec.num_layers == b.spec.num_layers
    return {**sizes, "line": _line({n: x for n, x in sides.items() if x}, ran, same_depth=same_depth)}


def _line(known: dict[str, Layout], ran: Choice, *, same_depth: bool) -> str:
    """Return in words which layout was recorded and which was proven."""
    texts = {name: layout_in_words(layout) for name, layout in known.items()}
    alike = len(set(texts.values())) == 1
    sizes = " and ".join(f"{text} ({name})" for name, text in texts.items())
    sizes = texts["candidate"] if alike and "candidate" in texts else sizes
    if all((x.tp, x.pp) == (ran.tp, ran.pp) for x in known.values()):
        return f"recorded {sizes}, proven there"
    wanted = known.get("candidate") or known["reference"]
    proven = f"recorded {sizes}, proven at tp {ran.tp} x pp {ran.pp}"
    if (wanted.tp, wanted.pp) == (ran.tp, ran.pp) or not same_depth:  # stages would cut the two in different places
        return proven
    if not ran.provable:
        return f"{proven}; megatron-core cannot run it as recorded"
    flags = [f"--{name} {getattr(wanted, name)}" for name in ("tp", "pp") if getattr(wanted, name) > 1]
    return f"{proven}: {' '.join(flags or ['--tp 1 --pp 1'])} proves it there"


def _possible(layers: Sequence[int], own: Layout) -> Choice:
    """Return the recorded layout, or one stage if two models of different depth cannot be cut alike."""
    if len(set(layers)) == 1:
        return Choice(tp=own.tp, pp=own.pp, uneven=own.uneven)
    even = all(n % own.pp == 0 for n in layers) and own.uneven == EVEN
    return Choice(tp=own.tp, pp=own.pp if even else 1)


def _refused(found: Choice, sides: Sequence[SourceModel]) -> bool:
    try:
        parallel = Parallel(tp=found.tp, pp=found.pp, uneven=found.uneven)
    except LayoutError:
        return True
    return any(
        problems(c.spec, padded_vocab_size=padded_vocab(c.spec.vocab_size, tp=found.tp), parallel=parallel) for c in sides
    )


def _costly(needed: int, a: SourceModel, b: SourceModel) -> str | None:
    """Return why running so many ranks here would be slow or impossible, or None."""
    if needed == 1:
        return None
    if (size := world()[1]) > 1:
        return None if size % needed == 0 else f"its recorded layout needs {needed} ranks, and torchrun started {size}"
    if gpus := _gpus():
        return None if gpus >= needed else f"{needed} ranks need as many GPUs, and there are {gpus} here"
    if needed > TURNS * cores():
        return f"{needed} ranks on {_counted(cores())} are slow"
    wanted = needed * RANK_BYTES + 4 * max(c.parameters for c in (a, b))
    return None if wanted < environment.available() else f"{needed} ranks need more memory than is free"


def _counted(number: int) -> str:
    return "1 core" if number == 1 else f"{number} cores"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
