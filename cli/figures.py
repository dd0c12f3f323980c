"""Figures that commands draw by matplotlib: the names they may have, and how one is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mconv.errors import MconvError

PICTURES = (".png", ".svg", ".pdf")
OPEN = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
"""The look of axes without a frame."""


def check_kind(file: Path, option: str, *, page: bool = True, otherwise: str = "") -> None:
    """Raise MconvError where a file's name says no format that is drawn; with `page`, .html is one."""
    kinds = (*PICTURES, ".html") if page else PICTURES
    if file.suffix.lower() not in kinds:
        raise MconvError(f"{option} {file}: give a name that ends in {', '.join(kinds)}{otherwise}")


@contextmanager
def drawn(file: Path, size: tuple[float, float], look: dict[str, Any]) -> Iterator[Any]:
    """Yield a figure of a width and height in inches to draw on, then write it; `look` are settings of matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", **look}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(file, dpi=150)


def plain(text: str) -> str:
    """Return a text as matplotlib shows it: no formula between dollars."""
    return text.replace("$", r"\$")
