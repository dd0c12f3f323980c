"""The heat map of `mconv diff`, as a page and as a picture."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv import extras
from mconv.cli import figures, pages

if TYPE_CHECKING:
    from mconv.verify.diff import Diff
    from mconv.verify.heatmap import Cell, Heatmap

COMMAND = "mconv diff"
PALE, DEEP = (0xE6, 0xEE, 0xF8), (0x12, 0x3A, 0x7A)
"""Colours of the least and of the most changed; the lightness alone tells them apart, too."""
GREYS = "Greys"
"""Below the colours: what has not changed is grey, what is not there white."""
ROWS = 200
"""Tensors that the page lists."""


def check_page(file: Path) -> None:
    """Refuse a page's path where it cannot be written, or where something else is. Raises MconvError."""
    pages.check(file, COMMAND, "; --plot draws pictures")


def check_picture(file: Path) -> None:
    """Refuse a picture's path where it cannot be drawn. Raises MconvError."""
    figures.check_kind(file, "--plot", page=False, otherwise="; --html writes a page")
    pages.check_place(file, "--plot")
    extras.need("plot", to="--plot", without="--html needs nothing")


def page(found: "Diff", facts: dict[str, Any]) -> str:
    """Return the page: the map, the layers, the tensors that have changed most."""
    from mconv.verify.heatmap import heatmap
    from mconv.verify.page import number, percent

    scale = [colour(n / 4) for n in range(5)]
    filters: dict[str, Callable[..., Any]] = {"number": number, "percent": percent, "colours": colours, "said": said}
    return pages.filled("heat", COMMAND, filters, facts=facts, map=heatmap(found), scale=scale, most=ROWS)


def colour(shade: float) -> str:
    """Return the colour of a shade from 0 to 1."""
    return "#" + "".join(f"{round(a + (b - a) * shade):02x}" for a, b in zip(PALE, DEEP, strict=True))


def colours(cell: "Cell") -> str:
    """Return the style of a cell that has a shade."""
    return f"background: {colour(cell.shade)}" if cell.shade is not None else ""


def said(cell: "Cell") -> str:
    """Return what a cell says when it is pointed at."""
    from mconv.verify.page import number, percent

    sums = cell.sums
    if not sums.changed:
        return f"{cell.key}: not changed"
    parts = f"relative norm {number(sums.relative_norm)}, mean {number(sums.mean_abs)}, largest {number(sums.largest)}"
    angle = "" if sums.cosine is None else f", cosine {sums.cosine:.6f}"
    return f"{cell.key}: {parts}{angle}, {percent(sums.share)} of its elements changed"


def draw(found: "Diff", file: Path, title: str) -> None:
    """Write the picture; the name's ending says in which format."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    from mconv.verify.heatmap import heatmap

    drawn = heatmap(found)
    size = (max(6.0, 3.2 + 0.3 * len(drawn.columns)), 1.6 + 0.3 * len(drawn.rows))
    ours = LinearSegmentedColormap.from_list("mconv", [colour(0.0), colour(1.0)], N=256).with_extremes(bad="none")
    with figures.drawn(file, size, {"font.size": 8}) as figure:
        ax = figure.subplots()
        low = drawn.low or 1e-12
        scale = LogNorm(low, max(drawn.high, low * 1.001))
        look: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
        ax.imshow([[cell is not None for cell in cells] for _, cells in drawn.rows], cmap=GREYS, vmin=0, vmax=6, **look)
        image = ax.imshow(_values(drawn), cmap=ours, norm=scale, **look)
        ax.set_yticks(range(len(drawn.rows)), [figures.plain(name.removesuffix(".weight")) for name, _ in drawn.rows])
        step = math.ceil(len(drawn.columns) / 40)
        ax.set_xticks(range(0, len(drawn.columns), step), [_short(name) for name in drawn.columns[::step]])
        ax.set_xlabel("layer (–: outside the layers)")
        ax.set_title(figures.plain(title), loc="left", fontsize=9)
        ax.tick_params(length=0)
        figure.colorbar(image, ax=ax, label="norm of the difference / norm of A", shrink=0.9)


def _values(drawn: "Heatmap") -> list[list[float]]:
    """Return the relative norms; NaN, which is not drawn over the grey, where nothing has changed."""
    return [[math.nan if cell is None or cell.shade is None else cell.sums.relative_norm for cell in cells]
            for _, cells in drawn.rows]  # fmt: skip


def _short(column: str) -> str:
    return column if column.isdecimal() else "–"
