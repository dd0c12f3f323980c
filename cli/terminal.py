"""Numbers and progress on a terminal."""

import functools
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from mconv.errors import MconvError

typed: list[str] = []
"""Command line of the running command, without the program's name."""


def command() -> str | None:
    """Return the running command as a user would type it, without --resume; None outside the command line."""
    words = [word for word in typed if word != "--resume"]
    return shlex.join(["mconv", *words]) if words else None


def dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def progress(total: int | None, doing: str = "", *, passes: int = 1) -> Iterator[Callable[[int], None]]:
    """Show the work, bytes, rate and time left on a terminal; nothing in a pipe.

    `total`: None where it is not known.
    `passes`: how often each byte is counted while the work goes on, where what a person means is the byte itself.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task(doing, total=None if total is None else total / passes)
        yield lambda n: bar.advance(task, n / passes)


def before_slow(line: str) -> None:
    """Print on a terminal what is about to take seconds; nothing in a pipe."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def rank_0_prints(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command of which, under torchrun, only rank 0 prints; every rank fails if one fails."""

    @functools.wraps(command)
    def spoken(*args: Any, **options: Any) -> Any:
        rank, world = (int(os.environ.get(name, unset)) for name, unset in (("RANK", "0"), ("WORLD_SIZE", "1")))
        if world == 1:
            return command(*args, **options)
        try:
            if rank == 0:
                return command(*args, **options)
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                return command(*args, **options)
        except MconvError as error:
            from mconv.convert.engine.ranks import tell

            with suppress(MconvError):
                tell(error)
            if rank == 0:
                raise
            raise type(error)() from error

    return spoken
