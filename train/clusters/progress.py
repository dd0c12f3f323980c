"""Where a run stands, as its folder says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mconv.convert.folders.locate import tracker_word
from mconv.train.logs import record
from mconv.train.logs.log import NAME as LOG

TAIL = 1 << 14
"""Bytes at the end of a log in which its last step is looked for."""


def last_step(save: Path) -> dict[str, Any]:
    """Return the last step of a run's log; nothing without one. A line that is being written is passed over."""
    try:
        with (save / LOG).open("rb") as opened:
            opened.seek(max(0, (save / LOG).stat().st_size - TAIL))
            lines = opened.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    return next((step for line in reversed(lines) if (step := _step(line))), {})


def _step(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"iteration", "loss"} <= found.keys() else {}


def stands(save: Path) -> Iterator[str]:
    """Yield the last step and the last checkpoint of a run."""
    if step := last_step(save):
        loss = f", loss {step['loss']:.4g}" if isinstance(step["loss"], float) else ""
        yield f"iteration {step['iteration']}{loss}"
    if word := tracker_word(save):
        yield f"checkpoint {word}"


def rate(save: Path, ranks: int) -> float | None:
    """Return the tokens a second of a run's last step; None unless its last start had as many ranks."""
    try:
        before = json.loads((save / record.NAME).read_text())["starts"][-1]["ranks"]
        measured = last_step(save)["tokens_per_second"]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    return float(measured) if before == ranks and measured else None
