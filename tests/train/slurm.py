"""A Slurm of one node on this machine: munged, slurmctld and slurmd on the loopback, all in one folder."""

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun", "sinfo")
PLACES = "/usr/sbin:/usr/local/sbin:/sbin"
"""Folders of daemons, which not everybody has on the PATH."""
WAIT = 60.0
CONF = """
ClusterName=mconv
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
KillWait=120
NodeName=localhost NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""Ranks meet by the node's name."""


class NotHere(Exception):
    """Slurm is not installed, or does not start here."""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm; its clients find it by SLURM_CONF."""

    conf: Path

    def run(self, *argv: str) -> str:
        """Return what a client prints."""
        return subprocess.run(argv, env=environment(self.conf), capture_output=True, text=True, check=True).stdout

    def job(self, job: str, name: str = "JobState") -> str:
        """Return one property of a job."""
        return re.findall(rf"\b{name}=(\S+)", self.run("scontrol", "show", "job", job))[0]

    def wait(self, job: str, *states: str, seconds: float = 300) -> str:
        """Return the state of a job once it is one of these."""
        return until(lambda: state if (state := self.job(job)) in states else None, seconds, f"job {job}: {states}")


def until(found: Callable[[], str | None], seconds: float, what: str) -> str:
    """Return what a function returns once it returns something. Raises AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (value := found()) is not None:
            return value
        time.sleep(0.3)
    raise AssertionError(f"waited {seconds} s for {what}")


def environment(conf: Path) -> dict[str, str]:
    """Return the variables with which clients and daemons find this Slurm, and each other."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    return {**outside, "SLURM_CONF": str(conf), "PATH": f"{os.environ['PATH']}:{PLACES}"}


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Yield a Slurm whose node is idle. Raises NotHere."""
    path = f"{os.environ['PATH']}:{PLACES}"
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        raise NotHere(f"{', '.join(missing)} not found: apt-get install slurmctld slurmd slurm-client munge")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(user=getpass.getuser(), folder=folder, ports=_ports(2)))
    with contextlib.ExitStack() as held:
        for argv in _daemons(folder):
            held.enter_context(_daemon(argv, folder, conf))
        slurm = _ready(Slurm(conf))
        held.callback(_end_jobs, slurm)  # they would outlive their daemons
        yield slurm


def _end_jobs(slurm: Slurm) -> None:
    slurm.run("scancel", f"--user={getpass.getuser()}")
    slurm.run("scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}")
    until(lambda: None if slurm.run("squeue", "--noheader") else "", WAIT, "the end of all jobs")


def _daemons(folder: Path) -> Iterator[list[str]]:
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log",
             "seed-file": "munged.seed"}  # fmt: skip
    yield ["munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in files.items())]
    yield ["slurmctld", "-D", "-c"]
    yield ["slurmd", "-D", "-N", "localhost"]


@contextlib.contextmanager
def _daemon(argv: list[str], folder: Path, conf: Path) -> Iterator[None]:
    """Run a daemon in the foreground; it ends with this context."""
    with (folder / "daemons.log").open("a") as log:
        process = subprocess.Popen(argv, env=environment(conf), stdout=log, stderr=log)
    try:
        if argv[0] == "munged":
            until(lambda: "" if (folder / "munge.socket").exists() else None, WAIT, "munged")
        yield
    finally:
        process.terminate()
        process.wait(timeout=WAIT)


def _ready(slurm: Slurm) -> Slurm:
    """Return the Slurm once its node is idle."""

    def idle() -> str | None:
        with contextlib.suppress(subprocess.CalledProcessError):
            return "" if slurm.run("sinfo", "--noheader", "--format=%t %D").split() == ["idle", "1"] else None
        return None

    try:
        until(idle, WAIT, "an idle node")
    except AssertionError as error:
        logs = "\n".join(file.read_text()[-800:] for file in sorted(slurm.conf.parent.glob("*.log")))
        raise NotHere(f"Slurm does not start here: {error}\n{logs}") from error
    return slurm


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
