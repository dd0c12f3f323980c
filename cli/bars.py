"""Bar charts of counts and shares: as lines on a terminal, as a page, as a picture."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv import extras
from mconv.cli import figures, pages
from mconv.cli.figures import plain

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
    figures.check_kind(file, "--plot")
    pages.check_place(file, "--plot")
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
    return pages.rendered("bars", charts=charts, title=title, about=about, colours=COLOURS)


def _picture(charts: Sequence[Chart], file: Path, title: str) -> None:
    heights = [0.9 + 0.26 * len(chart.bars) * max(len(chart.series), 1) for chart in charts]
    with figures.drawn(file, (8.0, 0.5 + sum(heights)), figures.OPEN) as figure:
        figure.suptitle(plain(title), x=0.02, ha="left", fontsize=10)
        axes = figure.subplots(len(charts), 1, squeeze=False, height_ratios=heights).flat
        for ax, chart in zip(axes, charts, strict=True):
            _bars(ax, chart)


def _bars(ax: Any, chart: Chart) -> None:
    count = max(len(chart.series), 1)
    thick = 0.8 / count
    for series in range(count):
        places = [row + (series - (count - 1) / 2) * thick for row in range(len(chart.bars))]
        named = {"label": chart.series[series]} if chart.series else {}
        ax.barh(places, [bar.values[series] for bar in chart.bars], thick * 0.9, color=COLOURS[series], **named)
    for place, bar in zip(places, chart.bars, strict=True):  # beside the last series
        ax.annotate(f" {plain(bar.text)}", (bar.values[-1], place), va="center", fontsize=8, color="#555b63")
    ax.set_yticks(range(len(chart.bars)), [plain(bar.label) for bar in chart.bars])
    ax.invert_yaxis()
    ax.set_xlim(0, chart.most * 1.35)
    ax.set_xticks([])
    ax.set_title(plain(chart.title), loc="left", fontsize=10, fontweight="bold")
    if chart.series:
        ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=count, borderaxespad=0.2)
