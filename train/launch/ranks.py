"""Start ranks on this machine, give them one payload, and return rank 0's answer or raise a rank's error."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from mconv import errors
from mconv.convert.folders.host import cores
from mconv.errors import MconvError
from mconv.train.launch import answer, stop

Work = Callable[[dict[str, Any]], dict[str, Any]]
HOW = (
    "start ranks with torchrun, or give each of srun's tasks RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS "
    "LOCAL_RANK=$SLURM_LOCALID MASTER_ADDR and MASTER_PORT; without them mconv starts its ranks itself"
)
"""Advice for an environment that has only some of a rank's variables."""
PRELOAD = "MCONV_PRELOAD"
"""Tells the agent which modules to import before it forks ranks."""


def run(
    target: str,
    payload: dict[str, Any],
    *,
    nproc: int,
    stops_well: bool = False,
    preload: tuple[str, ...] = (),
    apart: bool = False,
) -> dict[str, Any]:
    """Run `target` ("module:function", dict -> dict, both JSON) on `nproc` ranks and return rank 0's answer.

    Under torchrun (RANK and WORLD_SIZE are set) the call joins that world and each rank gets its own answer; with
    `nproc` 1 it runs in this process. Otherwise torch.distributed.run starts the ranks on loopback, on a free port.
    A rank's MconvError is raised here as what it was; anything else as an MconvError with the end of the log.
    Rank 0's standard output is this process's own; all other output is kept for the error message only.
    `stops_well`: the work looks for what `train.stop` notes; a stop signal then ends neither this process nor its ranks,
    but the second one of its kind does.
    `preload`: modules that all ranks need; without CUDA they are imported once, and the ranks are forked.
    `apart`: a single rank gets a process of its own, too, whose memory is its own.
    """
    check_environment()
    if nproc < 1:
        raise MconvError(f"{nproc} ranks were asked for; at least 1 is needed")
    if joined() or (nproc == 1 and not apart):
        first = os.environ.get("RANK", "0") == "0"
        with stop.listening(alone=not joined(), answers=first) if stops_well else contextlib.nullcontext():
            return _here(target, payload)
    with tempfile.TemporaryDirectory(prefix="mconv-ranks-") as folder:
        return _launch(target, payload, nproc, Path(folder), stops_well=stops_well, preload=preload)


def _cuda() -> bool:
    """Return whether ranks find a GPU: a forked process cannot use one that its parent has initialised."""
    import torch

    return torch.cuda.is_available()


def joined() -> bool:
    """Return whether torchrun (or the like) started this process as one rank of a world."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def check_environment() -> None:
    """Refuse an environment with only some of a rank's variables, and srun tasks that would each start a run."""
    said = os.environ
    if not joined():
        if half := [name for name in ("RANK", "WORLD_SIZE") if name in said]:
            other = "WORLD_SIZE" if half == ["RANK"] else "RANK"
            raise MconvError(f"{half[0]} is {said[half[0]]}, but {other} is not set: a rank needs both; {HOW}")
        if (tasks := said.get("SLURM_STEP_NUM_TASKS", "1")) != "1":
            raise MconvError(f"srun started {tasks} tasks, each of which would start a run of its own; {HOW}")
        return
    numbers = {name: said.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    told = ", ".join(f"{name} {value}" for name, value in numbers.items())
    if not all(value.isdecimal() for value in numbers.values()) or int(numbers["RANK"]) >= int(numbers["WORLD_SIZE"]):
        raise MconvError(f"{told}: they must be whole numbers, and RANK less than WORLD_SIZE")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in said]
    if missing and (numbers["WORLD_SIZE"] != "1" or len(missing) == 1):
        raise MconvError(f"{told}, but {' and '.join(missing)} not set: ranks could not meet; {HOW}")


def doomed_restarts() -> str | None:
    """Return a warning if torchrun is to restart ranks but could not; None where it need not, or can.

    Its agents may keep one store for all attempts, where new ranks find the addresses of dead ones: torch 2.13 does.
    """
    said = os.environ
    if said.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or said.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return (
        "warning: ranks that torchrun restarts may look for the dead ones and fail (pytorch/pytorch#135712): start it "
        "with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
    )


def resolve(target: str) -> Work:
    """Return the function that "module:function" names."""
    module, _, name = target.partition(":")
    function: Work = getattr(importlib.import_module(module), name)
    return function


def _here(target: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Run in this process, and leave no process group behind that was not there before."""
    import torch

    from mconv.train.megatron.parallel import shutdown

    before = torch.distributed.is_initialized()
    try:
        return resolve(target)(payload)
    finally:
        if not before:
            shutdown()


def _launch(
    target: str, payload: dict[str, Any], nproc: int, folder: Path, *, stops_well: bool, preload: tuple[str, ...]
) -> dict[str, Any]:
    (folder / "payload.json").write_text(json.dumps(payload))
    environment = _environment(nproc) | ({stop.ASKED: str(folder / "asked")} if stops_well else {})
    environment |= {PRELOAD: ",".join(preload)} if preload and not _cuda() else {}
    with (folder / "agent.log").open("w") as log, _signals(folder, passed_on=stops_well):
        with stop.held_back() if stops_well else contextlib.nullcontext():  # the agent is to find them blocked
            agent = subprocess.Popen(_command(target, nproc, folder), env=environment, stderr=log)
        try:
            code = agent.wait()
        except BaseException:  # Ctrl-C too: no rank may outlive us
            agent.send_signal(signal.SIGHUP if stops_well else signal.SIGTERM)
            agent.wait()
            raise
    if code == 0:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return result
    raise _failure(folder, nproc)


@contextlib.contextmanager
def _signals(folder: Path, *, passed_on: bool) -> Iterator[None]:
    """Handle signals while ranks are running: end them, or pass the first signal of each kind on to them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: set[int] = set()

    def heard(number: int, _: FrameType | None) -> None:
        if number in seen and number != signal.SIGUSR2:
            stop.obey(number)
        stop.pass_on(number, folder / "asked")
        if number not in seen:
            answer.put(answer.sentence(number, answer.activity(folder / "asked")))
        seen.add(number)

    wanted = dict.fromkeys(stop.SIGNALS, heard) if passed_on else {signal.SIGTERM: lambda number, _: stop.obey(number)}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _command(target: str, nproc: int, folder: Path) -> list[str]:
    # Each rank's streams go to files, but for rank 0's standard output (1: stdout, 2: stderr, 3: both).
    redirects = ",".join(f"{rank}:{3 if rank else 2}" for rank in range(nproc))
    return [
        *(sys.executable, "-m", "mconv.train.launch.agent", "--standalone", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", str(nproc), "--log-dir", str(folder / "logs"), "--redirects", redirects),
        *("-m", "mconv.train.launch.worker", target, str(folder)),
    ]


def _environment(nproc: int) -> dict[str, str]:
    """Return the environment of ranks: loopback only, no more threads than cores. What the user has set wins."""
    defaults = {"OMP_NUM_THREADS": str(max(1, cores() // nproc)), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    if sys.platform.startswith("linux"):
        defaults["GLOO_SOCKET_IFNAME"] = "lo"
    return {**defaults, **os.environ}


def _failure(folder: Path, nproc: int) -> MconvError:
    """Return the error of the rank that failed first; the others failed because they lost their peer."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("error.*.json"))]
    reports.sort(key=lambda report: (not report["ours"], report["time"]))
    if not reports:
        return MconvError(
            f"a rank died without an error message (killed, or out of memory?); its log ends:\n{_tail(folder)}"
        )
    report = reports[0]
    if report["ours"]:
        kind: type[MconvError] = getattr(errors, report["kind"], MconvError)
        return kind(report["message"])
    what = f"rank {report['rank']} of {nproc} failed: {report['kind']}: {report['message']}"
    return MconvError(f"{what}\nits log ends:\n{report['tail']}")


def _tail(folder: Path, *, lines: int = 15) -> str:
    """Return the last lines that any rank or the agent wrote to standard error."""
    logs = [*(folder / "logs").rglob("stderr.log"), folder / "agent.log"]
    texts = [path.read_text(errors="replace").strip() for path in logs]
    return "\n".join(next((text for text in texts if text), "(nothing)").splitlines()[-lines:])
