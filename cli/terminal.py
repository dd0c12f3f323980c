"""How numbers and progress look on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """Bytes, rate and time left on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda n: bar.advance(task, n)
