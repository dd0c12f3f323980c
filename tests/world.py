"""A world of ranks that lives as long as the test session: torch and megatron-core are imported once, and forked."""

import contextlib
import gc
import importlib
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WARM = (
    "mconv.train.megatron.imports",
    "mconv.train.loop",
    "mconv.verify.logits",
    "transformers.models.llama.modeling_llama",
)
"""What most ranks import: megatron-core first, by the module that does it quietly."""
DIED = (False, "it died")


class World:
    """`size` gloo ranks, started at the first call, to which `run` sends a helper module's function and its arguments.

    They do not check the package's annotations: the process that asks them does, by the same functions.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.mother: Any = None
        self.pipes: list[Connection] = []
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, target: Callable[..., Any], /, *, timeout: float = 400, **kwargs: Any) -> list[Any]:
        """Results of all ranks, in order. A failing rank raises here with its traceback; a stuck one is killed."""
        if self.mother is None:
            self._start()
        for pipe in self.pipes:
            pipe.send((target, kwargs))
        answers: dict[int, tuple[bool, Any]] = {}
        end = time.monotonic() + timeout
        while len(answers) < self.size and time.monotonic() < end:
            for rank, pipe in enumerate(self.pipes):
                if rank not in answers and pipe.poll(0.002):
                    answers[rank] = _answer(pipe)
                    if not answers[rank][0]:  # the others may wait for it for ever: give them a moment
                        end = min(end, time.monotonic() + 3)
        return self._settle(answers, target.__qualname__)

    def _settle(self, answers: dict[int, tuple[bool, Any]], target: str) -> list[Any]:
        failed = [f"rank {rank}: {text}" for rank, (fine, text) in sorted(answers.items()) if not fine]
        if len(answers) < self.size or DIED in answers.values():
            self.stop()
        if failed:
            raise AssertionError("\n".join(failed))
        if len(answers) < self.size:
            missing = sorted(set(range(self.size)) - set(answers))
            raise AssertionError(f"{target}: ranks {missing} of {self.size} did not answer in time; world killed")
        return [answers[rank][1] for rank in range(self.size)]

    def _start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="mconv-world-")
        here, there = zip(*(multiprocessing.Pipe() for _ in range(self.size)), strict=True)
        context = multiprocessing.get_context("spawn")
        self.mother = context.Process(target=_bear, args=(there, self.folder.name), daemon=False)
        self.mother.start()
        self.pipes = list(here)
        for pipe in there:  # a rank that dies is then heard of
            pipe.close()

    def stop(self) -> None:
        """End every rank: the world starts anew at the next `run`."""
        if self.mother is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.mother.pid, signal.SIGKILL)  # with its ranks, and the helpers that saving a checkpoint starts
        self.mother.kill()
        self.mother.join()
        for pipe in self.pipes:
            pipe.close()
        self.mother, self.pipes = None, []
        if self.folder:
            self.folder.cleanup()
            self.folder = None


def _answer(pipe: Connection) -> tuple[bool, Any]:
    try:
        return pipe.recv()
    except EOFError:
        return DIED


def _bear(pipes: Sequence[Connection], folder: str) -> None:
    """Import what ranks need, then be forked for each rank."""
    os.setsid()
    os.environ.update(OMP_NUM_THREADS="1", CUDA_DEVICE_MAX_CONNECTIONS="1", GLOO_SOCKET_IFNAME="lo")
    for module in WARM:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is imported stays: collections need not look at it
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_serve, args=(rank, pipes, folder), daemon=False) for rank in range(len(pipes))]
    for process in ranks:
        process.start()
    for pipe in pipes:
        pipe.close()
    for process in ranks:
        process.join()


def _serve(rank: int, pipes: Sequence[Connection], folder: str) -> None:
    """One rank: one thread, no port."""
    import torch

    pipe = pipes[rank]
    for other in pipes:
        if other is not pipe:
            other.close()
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    torch.distributed.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=len(pipes))
    while True:
        try:
            target, kwargs = pipe.recv()
            pipe.send((True, target(**kwargs)))
        except EOFError:
            return
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        gc.collect()  # models hold on to their process groups in cycles, and each idle gloo group costs CPU time
