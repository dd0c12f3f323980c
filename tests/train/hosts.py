"""Two hosts on one machine: network namespaces with a cable between them, each with a name of its own.

Everything is made inside a new user namespace, and is gone with the processes that hold it.
"""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAMES, ADDRESSES = ("node-a", "node-b"), ("10.77.0.1", "10.77.0.2")
APART = ["--net", "--mount", "--uts"]
WAIT = 10.0


class NotAllowed(Exception):
    """This machine makes no such namespaces, or has no program for it."""


@dataclass(frozen=True)
class Host:
    """One of the two, held by a sleeping process."""

    name: str
    address: str
    pid: int

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs a program on this host."""
        return [*_entering(self.pid), "--net", "--mount", "--uts", *argv]

    def run(self, *argv: str) -> None:
        """Run a program on this host. Raises NotAllowed where it fails."""
        done = subprocess.run(self.command(*argv), capture_output=True, text=True)
        if done.returncode:
            raise NotAllowed(f"{' '.join(argv)}: {done.stderr.strip()}")


def _entering(pid: int) -> list[str]:
    return ["nsenter", "--target", str(pid), "--user", "--preserve-credentials"]


@contextlib.contextmanager
def two(folder: Path) -> Iterator[list[Host]]:
    """Yield two hosts that reach each other by name over eth0. Raises NotAllowed."""
    if missing := [name for name in ("unshare", "nsenter", "ip", "mount", "hostname") if not shutil.which(name)]:
        raise NotAllowed(f"{', '.join(missing)} not found")
    with contextlib.ExitStack() as held:
        first = _held(held, ["unshare", "--user", "--map-root-user", *APART])
        second = _held(held, [*_entering(first), "unshare", *APART])
        hosts = [Host(*words) for words in zip(NAMES, ADDRESSES, (first, second), strict=True)]
        hosts[0].run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(second))
        (folder / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in hosts)
        )
        for host in hosts:
            _set_up(host, folder / "hosts")
        yield hosts


def _set_up(host: Host, names: Path) -> None:
    host.run("hostname", host.name)
    host.run("mount", "--bind", str(names), "/etc/hosts")
    host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        host.run("ip", "link", "set", device, "up")


def _held(held: contextlib.ExitStack, argv: list[str]) -> int:
    """Return the process that holds new namespaces open until `held` closes."""
    process = subprocess.Popen([*argv, "sleep", "infinity"], stderr=subprocess.PIPE, text=True)

    def end() -> None:
        process.kill()
        process.communicate()

    held.callback(end)
    ours, until = Path("/proc/self/ns/uts").readlink(), time.monotonic() + WAIT
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process.pid}/ns/uts").readlink() != ours and _sleeps(process.pid):
                return process.pid
        time.sleep(0.02)
    end()
    raise NotAllowed(f"{' '.join(argv)} did not work here")


def _sleeps(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"
