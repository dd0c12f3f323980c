"""`mconv train` on a terminal: log lines above a bar with steps, loss, time left and speed. In a pipe: plain lines."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Say = Callable[[str], None]
Show = Callable[[dict[str, Any]], None]
BAR = 8
"""Smallest width of the bar, in columns."""


@contextmanager
def view(train_iters: int) -> Iterator[tuple[Say, Show | None]]:
    """Yield a function that prints lines above the bar, and one that updates the bar (None without a bar)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(highlight=False)
    if not sys.stdout.isatty() or console.is_dumb_terminal:  # one that cannot go back on its line
        yield lambda line: print(line, flush=True), None
        return
    taken = 2 * len(str(train_iters)) + BAR + 3
    columns = (MofNCompleteColumn(), BarColumn(bar_width=None), TextColumn("{task.description}"))
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task("", total=train_iters)
        yield (
            lambda line: console.print(line, markup=False, soft_wrap=True),
            lambda record: bar.update(
                task, completed=record["iteration"], description=words(record, room=console.width - taken)
            ),
        )


def words(record: dict[str, Any], *, room: int) -> str:
    """Return the numbers beside the bar, as many as fit into `room` columns; always the loss."""
    from mconv.train.logs.meter import clock

    shown = [f"loss {record['loss']:.4f}"]
    if "seconds_left" in record:
        shown.append(f"{clock(record['seconds_left'])} left")
    shown += [f"{record['tokens_per_second']:,.0f} tokens/s", f"lr {record['lr']:.2e}"]
    if record.get("mfu"):
        shown.append(f"MFU {100 * record['mfu']:.0f} %")
    while len(shown) > 1 and len("  ".join(shown)) > room:
        shown.pop()
    return "  ".join([f"[bold]{shown[0]}[/]", *shown[1:]])
