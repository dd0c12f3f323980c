"""A world of ranks that lives as long as the test session: starting four processes with torch costs seconds, once."""

import contextlib
import gc
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class World:
    """`size` gloo ranks, started at the first call, to which `run` sends a helper module's function and its arguments."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, target: Callable[..., Any], *, timeout: float = 400, **kwargs: Any) -> list[Any]:
        """Results of all ranks, in order. A failing rank raises here with its traceback; a stuck one is killed."""
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((target, kwargs))
        answers: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + timeout
        while len(answers) < self.size and time.monotonic() < end:
            for rank, pipe in enumerate(self.pipes):
                if rank not in answers and pipe.poll(0.002):
                    answers[rank] = pipe.recv()
                    if not answers[rank][0]:  # the others may wait for it for ever: give them a moment
                        end = min(end, time.monotonic() + 3)
        return self._settle(answers, target.__qualname__)

    def _settle(self, answers: dict[int, tuple[bool, Any]], target: str) -> list[Any]:
        failed = [f"rank {rank}: {text}" for rank, (fine, text) in sorted(answers.items()) if not fine]
        if len(answers) < self.size:
            self.stop()
        if failed:
            raise AssertionError("\n".join(failed))
        if len(answers) < self.size:
            missing = sorted(set(range(self.size)) - set(answers))
            raise AssertionError(f"{target}: ranks {missing} of {self.size} did not answer in time; world killed")
        return [answers[rank][1] for rank in range(self.size)]

    def _start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="mconv-world-")
        context = multiprocessing.get_context("spawn")
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, there, self.folder.name), daemon=False)
            process.start()
            self.processes.append(process)
            self.pipes.append(here)

    def stop(self) -> None:
        """End every rank: the world starts anew at the next `run`."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # with the helpers that saving a checkpoint starts
            process.kill()
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self.processes, self.pipes = [], []
        if self.folder:
            self.folder.cleanup()
            self.folder = None


def _serve(rank: int, size: int, pipe: Connection, folder: str) -> None:
    """One rank: the same type checks as in pytest, one thread, no port."""
    os.setsid()
    os.environ.update(OMP_NUM_THREADS="1", CUDA_DEVICE_MAX_CONNECTIONS="1", GLOO_SOCKET_IFNAME="lo")
    from jaxtyping import install_import_hook

    install_import_hook("mconv", "beartype.beartype")
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # what is imported stays: collections need not look at it
    store = Path(folder) / "store"
    torch.distributed.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=size)
    while True:
        try:
            target, kwargs = pipe.recv()
            pipe.send((True, target(**kwargs)))
        except EOFError:
            return
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        gc.collect()  # models hold on to their process groups in cycles, and each idle gloo group costs CPU time
