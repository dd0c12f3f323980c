"""`mconv train` on a terminal: a bar with the steps, the loss, the rate and the time left. In a pipe: plain lines."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Say = Callable[[str], None]
Show = Callable[[dict[str, Any]], None]


@contextmanager
def view(train_iters: int) -> Iterator[tuple[Say, Show | None]]:
    """What a run says lines with, and what it shows its steps with (None: it is to print them)."""
    if not sys.stdout.isatty():
        yield lambda line: print(line, flush=True), None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(highlight=False)
    columns = (
        TextColumn("iteration"), MofNCompleteColumn(), BarColumn(bar_width=None), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task("", total=train_iters)
        yield (
            lambda line: console.print(line, markup=False, soft_wrap=True),
            lambda record: bar.update(task, completed=record["iteration"], description=words(record)),
        )


def words(record: dict[str, Any]) -> str:
    """The numbers beside the bar."""
    from mconv.train.logs.meter import clock

    shown = [
        f"[bold]loss {record['loss']:.4f}[/]",
        f"lr {record['lr']:.2e}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
    ]
    if record.get("mfu"):
        shown.append(f"MFU {100 * record['mfu']:.0f} %")
    if "seconds_left" in record:
        shown.append(f"{clock(record['seconds_left'])} left")
    return "  ".join(shown)
