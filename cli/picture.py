"""`mconv inspect --plot`: a picture of which rank holds which slice of which tensor."""

import io
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from mconv import extras
from mconv.cli import figures

if TYPE_CHECKING:
    from mconv.convert.checkpoint.model import Checkpoint
    from mconv.convert.spelling.table import Logical
    from mconv.shard.axes import Axes, Box
    from mconv.shard.layout import Layout

INK, PAPER, GREY, MONO = "#222222", "#ffffff", "#d9d9d9", "DejaVu Sans Mono"
TONES = {"q": 1.0, "k": 0.66, "v": 0.38}
"""Strength of the colour of a query group's parts."""
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{margin:1.5em auto;max-width:1400px;font-family:monospace}}svg{{width:100%;height:auto}}</style>
{svg}</html>
"""


def draw(checkpoint: "Checkpoint", layout: "Layout", file: Path) -> None:
    """Write the picture of a checkpoint's layout, in the format that the file's extension names."""
    figures.check_kind(file, "--plot")
    extras.need("plot", to="--plot")
    import matplotlib
    from matplotlib.figure import Figure

    bars = _bars(checkpoint, layout)
    heights = [1.3 + 0.42 * layout.vpp, 0.52 * len(bars) + 0.5]
    with matplotlib.rc_context({"font.family": MONO, "font.size": 8, "svg.fonttype": "none", "hatch.linewidth": 0.6}):
        figure = Figure(figsize=(13, sum(heights) + 1.2), layout="constrained", facecolor=PAPER)
        upper, lower = figure.subplots(2, 1, height_ratios=heights)
        figure.suptitle(_title(checkpoint, layout), fontsize=10, x=0.01, ha="left")
        _draw_stages(upper, checkpoint, layout)
        _draw_bars(lower, bars, layout)
        _save(figure, file, checkpoint.name)


def _save(figure: Any, file: Path, title: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() != ".html":
        figure.savefig(file, dpi=150)
        return
    held = io.StringIO()
    figure.savefig(held, format="svg")
    svg = held.getvalue()
    file.write_text(PAGE.format(title=title, svg=svg[svg.index("<svg") :]), encoding="utf-8")


def _title(c: "Checkpoint", layout: "Layout") -> str:
    size = f"{c.parameters / 1e9:.2f} billion" if c.parameters >= 1e9 else f"{c.parameters:,}"
    chunks = f" x vpp {layout.vpp}" if layout.vpp > 1 else ""
    ranks = layout.tp * layout.pp
    of = f"{c.spec.family}, {c.spec.num_layers} layers, {size} parameters"
    return f"{c.name}: {of}; tp {layout.tp} x pp {layout.pp}{chunks} = {ranks} rank{'s' * (ranks > 1)}"


# ---- stages ----------------------------------------------------------------------------------------------------------
def _draw_stages(ax: Any, c: "Checkpoint", layout: "Layout") -> None:
    """Draw a column for each pipeline stage, a row for each chunk: its layers, and the bytes that a rank holds."""
    held = layout.stages(c.spec.num_layers)
    size = 8 if layout.pp <= 10 else 6
    for (stage, chunk), layers in held.items():
        _box(ax, stage + 0.03, -chunk - 0.92, 0.94, 0.84, face="#eef2f7")
        ax.text(stage + 0.5, -chunk - 0.5, _run(layers, stage, chunk, layout), ha="center", va="center", fontsize=size)
    weights = per_rank(c, layout)
    for stage in range(layout.pp):
        ax.text(stage + 0.5, 0.12, f"stage {stage}", ha="center", va="bottom", fontsize=size, weight="bold")
        text = f"tp 0..{layout.tp - 1}\n{decimal(weights[stage])} each" if layout.tp > 1 else decimal(weights[stage])
        ax.text(stage + 0.5, -layout.vpp - 0.1, text, ha="center", va="top", fontsize=size - 1, color="#555555")
    ax.set(xlim=(0, max(layout.pp, 4)), ylim=(-layout.vpp - 0.75, 0.6))
    ax.axis("off")


def _run(layers: range, stage: int, chunk: int, layout: "Layout") -> str:
    inside = f"layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}" if layers else "no layers"
    parts = ["embed"] * ((stage, chunk) == (0, 0)) + [inside]
    return "\n".join(parts + ["norm, head"] * ((stage, chunk) == (layout.pp - 1, layout.vpp - 1)))


def per_rank(c: "Checkpoint", layout: "Layout") -> list[int]:
    """Return the bytes of weights that the largest tensor-parallel rank of each stage holds, padding included."""
    from mconv.convert.dialects import DIALECTS, spell

    dialect, total = DIALECTS[c.dialect or "mcore"], [0] * layout.pp
    for place, _, logical in spell.rank_tensors(dialect, c.family, c.spec, layout):
        piece = spell.rank_piece(dialect, c.family, c.spec, layout, logical, 0)
        elements = 1
        for n in piece.shape:
            elements *= n
        total[place.stage] += elements * c.dtype.itemsize
    return total


# ---- tensors ---------------------------------------------------------------------------------------------------------
def _bars(c: "Checkpoint", layout: "Layout") -> list[tuple[str, int, list[tuple[int, int, int, str]]]]:
    """Return, for each row of the family's table, a label, the length of the cut axis, and which rank holds which run.

    A run is (start, stop, rank, kind); rank -1: every rank has all of it. Kind: `q`, `k`, `v`, `pad` or nothing.
    """
    from mconv.convert.dialects import DIALECTS

    found = []
    stored = DIALECTS[c.dialect or "mcore"].stored_spec(c.spec)
    for logical in c.family.logicals(stored):
        if logical.layer in (None, 0):
            found.append(_bar(c, layout, logical))
    return found


def _bar(c: "Checkpoint", layout: "Layout", logical: "Logical") -> tuple[str, int, list[tuple[int, int, int, str]]]:
    from mconv.shard.pattern import piece

    axes, sizes, row = c.family.axes(logical), c.spec.sizes, c.family.row(logical.row)
    shape = axes.shape({**sizes, "v": layout.padded_vocab})
    name = str(logical).replace("layer.0.", "layer.*.")
    cut = f"cut {row.cut}" if row.cut in axes.names else ""
    label = f"{name:<26} {axes!s:<9} {cut:<5} {' x '.join(map(str, shape)):>14}"
    if row.cut not in axes.names:
        return label, 1, [(0, 1, -1 if layout.tp > 1 else 0, "")]
    dimension = next(i for i, group in enumerate(axes.groups) if row.cut in group)
    runs = []
    for rank in range(layout.tp):
        padded = layout.padded_vocab if row.cut == "v" else None
        held = piece(axes, sizes, cut=row.cut, rank=rank, of=layout.tp, padded=padded)
        for block in held.blocks:
            runs += [(a, b, rank, kind) for a, b, kind in _intervals(axes, sizes, dimension, block.box)]
    if row.cut == "v":
        width = layout.padded_vocab // layout.tp
        for rank in range(layout.tp):
            start = max(c.spec.vocab_size, rank * width)
            runs += [(start, (rank + 1) * width, rank, "pad")] if start < (rank + 1) * width else []
    return label, shape[dimension], runs


def _intervals(axes: "Axes", sizes: dict[str, int], dimension: int, box: "Box") -> list[tuple[int, int, str]]:
    """Return the runs of one stored dimension that a box fills; queries, key and value of a group separately."""
    group = axes.groups[dimension]
    ranges = [r for name, r in zip(axes.names, box, strict=True) if name in group]
    if group == ("g", "s", "h") and sizes["g"] <= 16:
        (first, last), slots, (low, high) = ranges
        q, s, h = sizes["q"], sizes["s"], sizes["h"]
        parts = {"q": (0, q), "k": (q, q + 1), "v": (q + 1, s)}
        cut = {kind: (max(a, slots[0]), min(b, slots[1])) for kind, (a, b) in parts.items()}
        base = [g * s * h for g in range(first, last)]
        return [(at + a * h + low, at + (b - 1) * h + high, kind) for at in base for kind, (a, b) in cut.items() if a < b]
    outer = [[(i, i + 1) for i in range(*r)] for r in ranges[:1]] if len(ranges) > 1 else []
    inner = 1
    for name in group[1:]:
        inner *= sizes[name]
    if not outer or all(r == (0, sizes[n]) for n, r in zip(group[1:], ranges[1:], strict=True)):
        return [(ranges[0][0] * inner, ranges[0][1] * inner, "")]
    low, high = 0, 0
    for name, (a, b) in zip(group[1:], ranges[1:], strict=True):
        low, high = low * sizes[name] + a, high * sizes[name] + b - 1
    return [(i * inner + low, i * inner + high + 1, "") for ((i, _),) in product(outer[0])]


def _colour(rank: int, tp: int) -> Any:
    """Return a rank's own colour, light enough for black text."""
    from matplotlib import colormaps

    full = colormaps["tab10"](rank) if tp <= 10 else colormaps["turbo"](0.08 + 0.84 * rank / (tp - 1))
    return tuple(0.62 * part + 0.38 for part in full[:3])


def _draw_bars(ax: Any, bars: list[tuple[str, int, list[tuple[int, int, int, str]]]], layout: "Layout") -> None:
    """Draw a bar for each tensor along its cut axis, its runs in the colours of the ranks that hold them."""
    for number, (label, length, runs) in enumerate(bars):
        ax.text(-0.01, -number - 0.5, label, ha="right", va="center", fontsize=8)
        for start, stop, rank, kind in runs:
            left, width = start / length, (stop - start) / length
            face = GREY if rank < 0 else _colour(rank, layout.tp)
            pad = {"hatch": "/////", "face": PAPER, "edge": face} if kind == "pad" else {"face": face, "edge": PAPER}
            _box(ax, left, -number - 0.88, width, 0.76, alpha=TONES.get(kind, 1.0), **pad)
        _label_runs(ax, number, length, runs, layout)
        if "(p f)" in label:
            _box(ax, 0.5, -number - 0.92, 0.0, 0.84, face=INK)
            for middle, half in ((0.25, "gate"), (0.75, "up")):
                ax.text(middle, -number - 0.94, half, ha="center", va="top", fontsize=6, color="#555555")
    ax.set(xlim=(-0.52, 1.0), ylim=(-len(bars) - 0.1, 0.35))
    ax.axis("off")
    _legend(ax, bars, layout)


def _label_runs(ax: Any, number: int, length: int, runs: list[tuple[int, int, int, str]], layout: "Layout") -> None:
    """Write the rank's number on each run that is wide enough."""
    joined: list[list[int]] = []
    for start, stop, rank, kind in sorted(runs):
        if kind == "pad":
            continue
        if joined and joined[-1][2] == rank and joined[-1][1] == start:
            joined[-1][1] = stop
        else:
            joined.append([start, stop, rank])
    for start, stop, rank in joined:
        width = (stop - start) / length
        text = "every rank" if rank < 0 else "" if layout.tp == 1 else f"tp {rank}" if width > 0.05 else str(rank)
        if width > 0.012:
            ax.text((start + stop) / 2 / length, -number - 0.5, text, ha="center", va="center", fontsize=7, color=INK)


def _legend(ax: Any, bars: list[tuple[str, int, list[tuple[int, int, int, str]]]], layout: "Layout") -> None:
    from matplotlib.patches import Patch

    kinds = {kind for _, _, runs in bars for *_, kind in runs}
    some = _colour(0, layout.tp)
    entries = [Patch(facecolor=GREY, label="replicated: every rank has all of it")] if layout.tp > 1 else []
    if "q" in kinds:
        names = {"q": "queries", "k": "key", "v": "value of a group"}
        entries += [Patch(facecolor=some, alpha=tone, label=names[kind]) for kind, tone in TONES.items()]
    if "pad" in kinds:
        entries.append(Patch(facecolor=PAPER, edgecolor=some, hatch="/////", label="padding past the true vocabulary"))
    if entries:
        ax.legend(handles=entries, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, frameon=False, fontsize=8)


def _box(ax: Any, x: float, y: float, width: float, height: float, *, face: Any, edge: Any = INK, **options: Any) -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, height, facecolor=face, edgecolor=edge, linewidth=0.6, **options))
