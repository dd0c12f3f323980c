"""Stop in order: whichever process is asked to stop or save, all ranks agree on one step and do it after that."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from mconv.convert.folders.staging import write_whole
from mconv.errors import ConfigError
from mconv.train.launch import answer
from mconv.train.launch.answer import ASKED

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR2") if hasattr(signal, name))
"""Signals that ask a run to save and stop."""
SAVE = 1
WHY = {
    SAVE: "the save trigger",
    2: "the exit trigger",
    3: "exit_interval",
    4: "exit_duration_in_mins",
    5: "the end of the job's time",
    6: "SIGINT",
    7: "SIGUSR2",
    8: "SIGTERM",
}
"""Reasons to save or stop, by number: the largest of several wins. All but the first stop the run."""
NUMBERS = {text: number for number, text in WHY.items()}

_heard: list[int] = []
"""Stop signals that this process has received. Module-wide, since signals belong to the process."""


# ---- signals ---------------------------------------------------------------------------------------------------------
def _number(signum: int) -> int:
    """Return the number of WHY of a signal."""
    return NUMBERS[signal.Signals(signum).name]


@contextlib.contextmanager
def listening(*, alone: bool = False, answers: bool = False) -> Iterator[None]:
    """Record stop signals without obeying them; a second SIGINT interrupts. Does nothing outside the main thread.

    `alone`: this process is the command itself, which a second SIGTERM ends. A rank may get several from Slurm.
    `answers`: say at once what the run finishes before it stops.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    insist = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)

    def note(number: int, _: FrameType | None) -> None:
        if number in _heard and number in insist:
            obey(number)
        _heard.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    masked = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # what came while this process was starting comes now
    answer.doing("start")
    try:
        with answer.answering(_answer(insist), ends=alone) if answers else contextlib.nullcontext():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        for number, handler in before.items():
            signal.signal(number, handler)
        _heard.clear()


def _answer(insist: tuple[int, ...]) -> Callable[[int], str]:
    """Return a function that words the answer to a signal: "" for one that stops no run (SIGCHLD)."""
    return lambda number: answer.sentence(number, insist=number in insist) if number in SIGNALS else ""


def obey(number: int) -> None:
    """End at once: SIGTERM (from `timeout`, a scheduler, a service manager) as an exception, as SIGINT is."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Block stop signals within; processes that start inside ignore them for good (Slurm signals every process)."""
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


def pass_on(number: int, file: Path) -> None:
    """Write the name of a signal that a launcher or its agent received to the file that the ranks read."""
    write_whole(file, signal.Signals(number).name, durable=False, at_once=True)


# ---- what is asked for -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class StopDecision:
    """The decision of all ranks after a step."""

    number: int = 0
    iteration: int = 0

    @property
    def save(self) -> bool:
        """Return whether a checkpoint is to be saved now."""
        return self.number > 0

    @property
    def stop(self) -> bool:
        """Return whether this was the run's last step."""
        return self.number > SAVE

    @property
    def why(self) -> str | None:
        """Return the reason why the run stops; None if it does not."""
        return f"{WHY[self.number]}, at iteration {self.iteration}" if self.stop else None


@dataclass(slots=True, kw_only=True)
class StopConditions:
    """Conditions that stop a run or ask it for a checkpoint. Each rank has one, rank 0's with files and clocks."""

    rank: int
    triggers: Path | None
    exit_interval: int | None
    seen: set[str] = field(default_factory=set)
    """Triggers found at the last step: one that is set while a checkpoint is being saved stays for the next step."""
    ends: dict[int, float]
    """Deadlines on the clock of `time.monotonic`, by their number in WHY."""
    deaf: set[str] = field(default_factory=set)
    """Triggers that could not be removed: they are ignored, since they would ask again at each step."""

    def ask(self, iteration: int, *, first: bool = False) -> StopDecision:
        """Return what all ranks do after `iteration` steps, agreed by one small all-reduce. Every rank calls it.

        `first`: before a run's first step there is nothing new to save, so only reasons to stop count. Raises
        ConfigError where the time that the run was given is over by then: a queue of such jobs would not get on.
        """
        from mconv.train.megatron import collectives

        asked = max([*self._local(iteration, first=first), *map(_number, _heard)], default=0)
        if asked <= SAVE:  # a signal that comes from here on is obeyed after that step
            answer.doing("step", iteration + 1)
        number = collectives.largest(asked)
        if first and number == NUMBERS["exit_duration_in_mins"]:
            raise ConfigError(
                "exit_duration_in_mins was over before the first step; give the run more than it takes to load"
            )
        return StopDecision(number=number, iteration=iteration)

    def done(self, decision: StopDecision) -> Iterator[str]:
        """Remove the triggers whose request is done; yields a line for each that cannot be removed."""
        for name in sorted(self.seen) if decision.save else ():
            try:
                self._trigger(name).unlink(missing_ok=True)
            except OSError as error:
                self.deaf.add(name)
                yield f"warning: {self._trigger(name)} cannot be removed ({error.strerror}): this run ignores it now"
        self.seen.clear()

    def _local(self, iteration: int, *, first: bool) -> Iterator[int]:
        """Yield the requests that this rank knows of, signals aside, as numbers of WHY."""
        if self.exit_interval and not first and iteration % self.exit_interval == 0:
            yield NUMBERS["exit_interval"]
        if self.rank == 0:
            yield from (number for number, end in self.ends.items() if time.monotonic() >= end)
            yield from self._files(first=first)

    def _files(self, *, first: bool) -> Iterator[int]:
        for name in ("exit",) if first else ("save", "exit"):
            if self.triggers and name not in self.deaf and os.path.lexists(self._trigger(name)):
                self.seen.add(name)
                yield NUMBERS[f"the {name} trigger"]
        asked = os.environ.get(ASKED)
        if asked and Path(asked).is_file():
            yield NUMBERS[Path(asked).read_text()]

    def _trigger(self, name: str) -> Path:
        return Path(self.triggers or "", name)


def stop_conditions(config: Any, *, rank: int, began: float) -> StopConditions:
    """Return what may stop a run of `config` that began at `began` (`time.monotonic`); makes the trigger folder.

    Every rank calls it. Raises ConfigError where that folder cannot be made.
    """
    from mconv.train.megatron.collectives import on_rank_0

    named = config.trigger_dir or (Path(config.save) / "triggers" if config.save else None)
    folder = Path(named) if named else None
    ends: dict[int, float] = {}
    if folder:
        on_rank_0(lambda: _make(folder))
    if rank == 0 and folder:
        if config.exit_duration_in_mins:
            ends[NUMBERS["exit_duration_in_mins"]] = began + 60 * config.exit_duration_in_mins
        if config.stop_before_limit and (limit := slurm_limit()):
            left = limit - time.time()  # by a clock that may be set while we run
            ends[NUMBERS["the end of the job's time"]] = time.monotonic() + max(
                left - 60 * config.stop_before_limit, left / 2
            )
    return StopConditions(rank=rank, triggers=folder, exit_interval=config.exit_interval, ends=ends)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the trigger folder {folder} cannot be made: {error.strerror}; choose another --trigger-dir"
        ) from error


# ---- Slurm -----------------------------------------------------------------------------------------------------------
def slurm_limit() -> float | None:
    """Return when Slurm will end this job, on the clock of `time.time`; None outside of a job or without a limit."""
    if said := os.environ.get("SLURM_JOB_END_TIME"):
        return float(said) if re.fullmatch(r"\d+", said) else None
    job = os.environ.get("SLURM_JOB_ID")
    if not job or not shutil.which("scontrol"):
        return None
    try:
        told = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", told)
    return datetime.fromisoformat(found[1]).timestamp() if found else None
