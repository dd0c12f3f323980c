"""Profile some steps of a run: traces by torch.profiler, or what nsys captures."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from mconv.errors import ConfigError
from mconv.train.config import TrainConfig
from mconv.train.config.monitoring import profiled
from mconv.train.logs import log as logs

FOLDER = "profile"
"""Name of the folder in the save folder that traces go to."""


@runtime_checkable
class Tool(Protocol):
    """A profiler that is started once, and stopped after so many whole iterations."""

    def start(self) -> None:
        """Begin to record."""

    def stop(self, first: int, last: int) -> None:
        """End what `start` began; iterations `first` to `last` were recorded."""


@dataclass(slots=True, kw_only=True)
class Profile:
    """The iterations that this rank profiles."""

    steps: range
    """Iterations to profile; none on a rank that is not asked for."""
    tool: Tool
    taken: list[int] = field(default_factory=list)
    """Iterations recorded since the tool was started."""

    @contextlib.contextmanager
    def of(self, iteration: int) -> Iterator[None]:
        """Record the step of an iteration within this context, if it is one to profile."""
        if iteration not in self.steps:
            yield
            return
        if not self.taken:
            self.tool.start()
        self.taken.append(iteration)
        with torch.profiler.record_function(f"iteration {iteration}"):
            yield
        if iteration == self.steps[-1]:
            self.close()

    def close(self) -> None:
        """Stop the tool, if it records: a run may end before the last iteration to profile."""
        if self.taken:
            first, last = self.taken[0], self.taken[-1]
            self.taken.clear()
            self.tool.stop(first, last)


@contextlib.contextmanager
def profiling(config: TrainConfig, *, say: logs.Say) -> Iterator[Profile]:
    """Yield what profiles the steps of this rank; a run that stops early has its trace written, too.

    Raises ConfigError where nsys could not capture anything.
    """
    if config.profile and config.profile_with == "nsys" and not torch.cuda.is_available():
        raise ConfigError("profile_with is nsys, which captures CUDA, and there is no GPU; torch profiles a CPU too")
    rank = torch.distributed.get_rank()
    steps = profiled(config) if rank in (config.profile_ranks or [0]) else range(0)
    tool = Nsys() if config.profile_with == "nsys" else Torch(folder=Path(config.save or "") / FOLDER, rank=rank, say=say)
    profile = Profile(steps=steps, tool=tool)
    try:
        yield profile
    finally:
        profile.close()


@dataclass(slots=True, kw_only=True)
class Torch:
    """torch.profiler, whose traces Perfetto, chrome://tracing and TensorBoard show."""

    folder: Path
    rank: int
    say: Callable[[str], None]
    running: Any = None

    def start(self) -> None:
        """Record operations and kernels from now on."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else a line on stderr at each start and stop
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] * torch.cuda.is_available()
        self.running = torch.profiler.profile(activities=kinds, record_shapes=True)
        self.running.start()

    def stop(self, first: int, last: int) -> None:
        """Write the trace. One that cannot be written (a full disk) is said and costs no step."""
        self.running.stop()
        file = self.folder / f"iterations_{first}-{last}.rank_{self.rank}.pt.trace.json.gz"
        part = file.with_name(f".{os.getpid()}.{file.name}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.running.export_chrome_trace(str(part))
            part.replace(file)
            self.say(f"profile of iterations {first} to {last}: {file}")
        except (OSError, RuntimeError) as error:
            self.say(f"warning: {file} was not written: {error}; the run continues")
        finally:
            self.running = None
            with contextlib.suppress(OSError):
                part.unlink()


@dataclass(slots=True)
class Nsys:
    """`nsys profile --capture-range=cudaProfilerApi` around the run, with an NVTX range for each operation."""

    ranges: Any = None

    def start(self) -> None:
        """Begin the captured range."""
        torch.cuda.profiler.start()
        self.ranges = torch.autograd.profiler.emit_nvtx(record_shapes=True)
        self.ranges.__enter__()

    def stop(self, first: int, last: int) -> None:
        """End the captured range, with all kernels of these iterations in it."""
        torch.cuda.synchronize()
        self.ranges.__exit__(None, None, None)
        torch.cuda.profiler.stop()
