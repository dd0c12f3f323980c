"""`mconv plot`: the curves of runs, as a picture or a page."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mconv import extras
from mconv.cli import figures
from mconv.cli import options as o
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.train.logs.series import Series

COLOURS = ("#2459a8", "#c2571a", "#14713d", "#8a3fa0", "#a8213b", "#0b7a86", "#6b5b00", "#555b63")
"""Colours of runs, in turn; all differ in grey too, and are legible on white."""
PANELS = (("loss", "validation_loss"), ("lr",), ("grad_norm",), ("tokens_per_second",), ("samples_per_second",))
"""Curves that share axes. A panel without points is left out."""


def plot(
    runs: Annotated[list[Path], Parameter(consume_multiple=True, negative=())],
    /,
    *,
    out: Path | None = None,
    smooth: int | None = None,
    json: o.Json = False,
) -> None:
    """Draw training and validation loss, learning rate, gradient norm and throughput of one or several runs.

    Parameters
    ----------
    runs
        Runs: --save folders, train.jsonl files, or printed logs of mconv or Megatron-LM.
    out
        The file to make: .png, .svg, .pdf or .html. Default: plot.png; none with --json.
    smooth
        Number of steps that the bold line averages over. Default: a hundredth of the run.
    """
    if not runs:
        raise MconvError("give at least one run: a save folder, a train.jsonl, or a printed log")
    if smooth is not None and smooth < 1:
        raise MconvError(f"--smooth is {smooth}; it must be at least 1")
    for run in runs:
        if not run.exists():
            raise MconvError(
                f"{run} does not exist; give a run's save folder, its train.jsonl, or a log as it was printed"
            )
    if out:
        figures.check_kind(out, "--out")
    from mconv.train.logs import series

    found = series.several(runs)
    file = out or (None if json else Path("plot.png"))
    if file:
        draw(found, file, smooth=smooth)
    if json:
        print(jsonlib.dumps([{"name": one.name, **one.curves} for one in found]))
        return
    for one in found:
        print(f"{one.name}: {summary(one)}")
    print(file)


def summary(one: "Series") -> str:
    """Return a run in a line."""
    said = []
    if loss := one.curves.get("loss"):
        said.append(f"loss {loss[0][1]:.4f} at {loss[0][0]:,} to {loss[-1][1]:.4f} at {loss[-1][0]:,}")
    if validation := one.curves.get("validation_loss"):
        at, best = min(validation, key=lambda point: point[1])
        said.append(f"best validation loss {best:.4f} at {at:,}")
    return ", ".join(said) or f"{len(one.curves)} curves, no loss"


def panels(found: "list[Series]") -> list[tuple[str, ...]]:
    """Return the panels that some run has points for."""
    return [names for names in PANELS if any(name in one.curves for one in found for name in names)]


def width(name: str, curve: list[tuple[int, float]], asked: int | None) -> int:
    """Return the number of points that the bold line averages over: 1 for a curve without noise."""
    return 1 if name == "lr" else asked or max(1, len(curve) // 100)


def draw(found: "list[Series]", file: Path, *, smooth: int | None) -> None:
    """Write the picture, in the format that the file's extension names."""
    figures.check_kind(file, "--out")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".html":
        from mconv.cli.curves import page

        file.write_text(page(found, smooth=smooth), encoding="utf-8")
        return
    extras.need("plot", to="a picture", without="an .html page needs nothing")
    shown = panels(found)
    rows = (len(shown) + 1) // 2
    with figures.drawn(file, (11.0, 3.3 * rows + 0.5), figures.OPEN) as figure:
        axes = figure.subplots(rows, min(2, len(shown)), squeeze=False).flat
        for ax, names in zip(axes, shown, strict=False):
            _panel(ax, names, found, smooth)
        for ax in list(axes)[len(shown) :]:
            ax.remove()
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)), frameon=False)


def _panel(ax: Any, names: tuple[str, ...], found: "list[Series]", smooth: int | None) -> None:
    """Draw one pair of axes: each run faint, its running mean bold; validation as dots."""
    from matplotlib.ticker import MaxNLocator

    from mconv.train.logs.series import CURVES
    from mconv.train.logs.series import smooth as smoothed

    for number, one in enumerate(found):
        colour, label = COLOURS[number % len(COLOURS)], _label(one.name)
        for name in names:
            curve = one.curves.get(name, [])
            if name == "validation_loss" and curve:
                look = {"color": colour, "ms": 4, "lw": 1, "mfc": "white", "label": f"{label}, validation"}
                ax.plot(*zip(*curve, strict=True), "o--", **look)
                continue
            if (over := width(name, curve, smooth)) > 1:
                ax.plot(*zip(*curve, strict=True), color=colour, lw=0.6, alpha=0.3)
            if curve:
                ax.plot(
                    *zip(*smoothed(curve, over=over), strict=True),
                    color=colour,
                    lw=1.6,
                    label=label,
                    marker="." * (len(curve) == 1),
                )
    ax.set_title(CURVES[names[0]] if len(names) == 1 else "loss", loc="left", fontsize=10, fontweight="bold")
    ax.set_xlabel("iteration")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 5), useMathText=True)
    ax.grid(alpha=0.25, lw=0.6)
    ax.margins(x=0.02)


def _label(name: str) -> str:
    """Return a run's name so that matplotlib shows it: no formula between dollars, no leading underscore."""
    return (" " if name.startswith("_") else "") + figures.plain(name)
