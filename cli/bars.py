"""Bar charts of counts and shares: as lines on a terminal, as a page, as a picture."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv import extras
from mconv.errors import MconvError

KINDS = (".png", ".svg", ".pdf", ".html")
COLOURS = ("#2459a8", "#c2571a")
"""Colours of the first and the second series; they differ in grey, too."""
WIDTH = 40
"""Columns of the longest bar on a terminal."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a chart: its label, a value for each series, and a text behind the bar."""

    label: str
    values: tuple[int | float, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars under a title; `series` names the values of each bar where there is more than one."""

    title: str
    bars: tuple[Bar, ...]
    series: tuple[str, ...] = ()

    @property
    def most(self) -> int | float:
        """The largest value, which gets the longest bar."""
        return max((value for bar in self.bars for value in bar.values), default=0) or 1


def lines(chart: Chart) -> Iterator[str]:
    """Yield the title and a line for each bar, of its last series."""
    block = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    left = max((len(bar.label) for bar in chart.bars), default=0)
    yield chart.title
    for bar in chart.bars:
        drawn = block * max(round(WIDTH * bar.values[-1] / chart.most), bar.values[-1] > 0)
        yield f"  {bar.label:>{left}}  {drawn:<{WIDTH}}  {bar.text}".rstrip()


def check(file: Path) -> None:
    """Raise MconvError where a picture cannot be made, before any work."""
    if file.suffix.lower() not in KINDS:
        raise MconvError(f"--plot {file}: give a name that ends in {', '.join(KINDS)}")
    if not file.parent.is_dir():
        raise MconvError(f"--plot {file}: {file.parent} is no folder; make it, or choose another")
    if file.suffix.lower() != ".html":
        extras.need("plot", to="a picture", without="an .html page needs nothing")


def draw(charts: Sequence[Chart], file: Path, *, title: str, about: str) -> None:
    """Write charts one below the other, in the format that the file's extension names."""
    if file.suffix.lower() == ".html":
        file.write_text(_page(charts, title, about), encoding="utf-8")
    else:
        _picture(charts, file, title)


def _page(charts: Sequence[Chart], title: str, about: str) -> str:
    """Return a self-contained page, without scripts; all that it shows is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("bars.html.jinja").read_text(encoding="utf-8"))
    text = template.render(charts=charts, title=title, about=about, colours=COLOURS)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _picture(charts: Sequence[Chart], file: Path, title: str) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    heights = [0.9 + 0.26 * len(chart.bars) * max(len(chart.series), 1) for chart in charts]
    look = {"font.size": 9, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(8, 0.5 + sum(heights)), layout="constrained")
        figure.suptitle(_plain(title), x=0.02, ha="left", fontsize=10)
        axes = figure.subplots(len(charts), 1, squeeze=False, height_ratios=heights).flat
        for ax, chart in zip(axes, charts, strict=True):
            _bars(ax, chart)
        figure.savefig(file, dpi=150)


def _bars(ax: Any, chart: Chart) -> None:
    count = max(len(chart.series), 1)
    thick = 0.8 / count
    for series in range(count):
        places = [row + (series - (count - 1) / 2) * thick for row in range(len(chart.bars))]
        named = {"label": chart.series[series]} if chart.series else {}
        ax.barh(places, [bar.values[series] for bar in chart.bars], thick * 0.9, color=COLOURS[series], **named)
    for place, bar in zip(places, chart.bars, strict=True):  # beside the last series
        ax.annotate(f" {_plain(bar.text)}", (bar.values[-1], place), va="center", fontsize=8, color="#555b63")
    ax.set_yticks(range(len(chart.bars)), [_plain(bar.label) for bar in chart.bars])
    ax.invert_yaxis()
    ax.set_xlim(0, chart.most * 1.35)
    ax.set_xticks([])
    ax.set_title(_plain(chart.title), loc="left", fontsize=10, fontweight="bold")
    if chart.series:
        ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=count, borderaxespad=0.2)


def _plain(text: str) -> str:
    """Return a text as matplotlib shows it: no formula between dollars."""
    return text.replace("$", r"\$")
