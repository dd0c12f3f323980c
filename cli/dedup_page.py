"""What `mconv data dedup` writes for people and for other programs: its report as a page, and datatrove's pipeline."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.cli import pages

if TYPE_CHECKING:
    from mconv.train.data.dedup.sign import Settings

COMMAND = "mconv data dedup"
FILES = 200
"""Sources that the page lists."""
WIDTH, HEIGHT = 640, 220
"""Size of the chart."""


def page(found: dict[str, Any]) -> str:
    """Return the report as one page without scripts."""
    from mconv.verify.page import percent

    filters = {"percent": percent, "count": "{:,}".format, "place": lambda one: f"{one['file']}:{one['line']}"}
    return pages.filled("dedup", COMMAND, filters, facts=found, files=FILES, chart=_chart(found), sizes=_sizes(found))


def _chart(found: dict[str, Any]) -> dict[str, Any]:
    """Return the chance of a pair to be found, by its similarity, and how many were found, in points of the chart."""
    from mconv.train.data.dedup.scheme import Scheme

    scheme = Scheme(**found["settings"]["scheme"])
    counts = found["similarities"]
    most = max(1, *counts)
    curve = " ".join(f"{WIDTH * x / 200:.1f},{HEIGHT * (1 - scheme.recall(x / 200)):.1f}" for x in range(201))
    step = WIDTH / len(counts)
    bars = [
        {"x": step * number, "y": HEIGHT * (1 - count / most), "height": HEIGHT * count / most, "count": count,
         "low": number / len(counts), "high": (number + 1) / len(counts)}
        for number, count in enumerate(counts)
        if count
    ]  # fmt: skip
    line = WIDTH * found["settings"]["threshold"]
    return {"curve": curve, "bars": bars, "step": step - 1, "line": line, "width": WIDTH, "height": HEIGHT}


def _sizes(found: dict[str, Any]) -> list[tuple[str, int]]:
    """Return the number of clusters by their size: single sizes up to 4, then doubled ranges."""
    ranges: dict[str, int] = {}
    for name, count in found["cluster_sizes"].items():
        size = int(name)
        low = size if size < 5 else 1 << (size - 1).bit_length() - 1
        label = name if size < 5 else f"{low + 1} to {2 * low}"
        ranges[label] = ranges.get(label, 0) + count
    return list(ranges.items())


def datatrove(sources: Sequence[Path], out: Path, settings: "Settings") -> str:
    """Return a Python program that runs datatrove's MinHash pipeline with these sources and parameters."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["literal"] = repr
    template = Path(__file__).with_name("dedup_datatrove.py.jinja").read_text(encoding="utf-8")
    paths = [path.resolve() for path in sources]
    folder = os.path.commonpath([path.parent for path in paths])
    names = [str(path.relative_to(folder)) for path in paths]
    return environment.from_string(template).render(
        folder=folder, names=names, out=str(out.resolve()), settings=settings, scheme=settings.scheme
    )
