"""Print an answer to a stop signal at once, while the step that it has to wait for is still running.

Python runs a signal's handler between two bytecodes of the main thread, and a step may spend minutes in one call. So a
thread reads signals from a pipe (`signal.set_wakeup_fd`) and says what the run finishes first.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from mconv.convert.folders.staging import write_whole

ASKED = "MCONV_ASKED"
"""Names the file in which a launcher and its agent leave the name of a signal that they got."""
DOING = "doing"
"""Name of the file, in the same folder, that says what rank 0 is doing, for the launcher's answer."""
FINISHES = {
    "start": "stopping before the first step",
    "step": "finishing step {0}, then saving",
    "evaluation": "finishing the evaluation after step {0}, then saving",
    "save": "saving iteration {0}, then stopping",
    "end": "finishing what follows the last step; the run is saved",
}
"""Answers by what the run is doing: what it finishes before it stops. {0} is the iteration."""
AGAIN = {signal.SIGINT: "Ctrl-C again stops now", signal.SIGTERM: "a second SIGTERM stops now"}
LOSES = ("step", "evaluation", "save")
"""Activities in which a second signal loses steps."""
GRACE = 10.0
"""Seconds that a second Ctrl-C waits for the main thread to come back from a call."""
CLEAR, CURSOR = "\r\x1b[2K", "\x1b[?25h"
"""Terminal codes that clear the line, and that show the cursor again, which a progress bar hides."""

_now: tuple[str, int] = ("start", 0)


def doing(what: str, iteration: int = 0) -> None:
    """Note what this process is doing, a key of FINISHES; rank 0 leaves it where its launcher looks, too."""
    global _now
    _now = (what, iteration)
    if (asked := os.environ.get(ASKED)) and os.environ.get("RANK") == "0":
        file = Path(asked).with_name(DOING)
        with contextlib.suppress(OSError):  # by a rename: the launcher would take half a file for the start
            write_whole(file, f"{what} {iteration}", durable=False)


def activity(asked: Path) -> tuple[str, int]:
    """Return what rank 0 was doing last, as the launcher reads it."""
    try:
        what, iteration = asked.with_name(DOING).read_text().split()
        return what, int(iteration)
    except OSError:  # not there yet
        return "start", 0


def sentence(number: int, now: tuple[str, int] | None = None, *, insist: bool = True) -> str:
    """Return the answer to a first signal; `insist`: a second one of its kind stops the run at once."""
    what, iteration = now or _now
    text = FINISHES[what].format(iteration)
    if number != signal.SIGINT:
        text = f"{signal.Signals(number).name}: {text}"
    if insist and number in AGAIN:
        text += f"; {AGAIN[signal.Signals(number)]}" + (" and loses it" if what in LOSES else "")
    return text


def put(line: str) -> None:
    """Write a line to standard error; where another process draws a bar on the terminal, in the bar's place."""
    alone = hasattr(sys.stderr, "rich_proxied_file") or not sys.stderr.isatty()  # a bar of our own makes room itself
    sys.stderr.write(f"{'' if alone else CLEAR}{line}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def answering(answer: Callable[[int], str], *, ends: bool = False) -> Iterator[None]:
    """Answer the first signal of each kind that Python handles with a line, at once, within this context.

    `ends`: a second SIGINT ends the process even if the main thread does not come back from a call for GRACE seconds.
    For the main thread; in others it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(ours, answer, over if ends else None), daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.write(theirs, b"\0")  # not by closing: a forked writer may hold this end, too
        thread.join()
        os.close(theirs)
        os.close(ours)


def _watch(pipe: int, answer: Callable[[int], str], over: threading.Event | None) -> None:
    seen: set[int] = set()
    while number := os.read(pipe, 1)[0]:
        if number not in seen:
            seen.add(number)
            if line := answer(number):
                put(line)
        elif number == signal.SIGINT and over is not None:
            put("stopping now")
            if not over.wait(GRACE):
                sys.stdout.write(CURSOR if sys.stdout.isatty() else "")
                sys.stdout.flush()
                os._exit(128 + number)
