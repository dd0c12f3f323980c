"""What a plain install lacks, and what Windows lacks, for an interpreter of its own: `elsewhere.py COMMANDS FOLDER`.

The other packages and the standard library stay as they are; mconv's own modules see these stand-ins.
"""

import contextlib
import fcntl
import io
import json
import os
import signal
import sys
import types
from pathlib import Path

from mconv.extras import EXTRAS

MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog")
OS = """
    O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NOFOLLOW O_NONBLOCK O_PATH O_SYNC chown chroot confstr copy_file_range fchdir
    fchown fdatasync fork forkpty fstatvfs getegid geteuid getgid getgroups getloadavg getpgid getpgrp getuid initgroups
    killpg lchown memfd_create mkfifo mknod nice openpty posix_fadvise posix_fallocate posix_spawn pread preadv pwrite
    pwritev readv sched_getaffinity sched_setaffinity sendfile setgid setpgid setsid setuid statvfs sync sysconf uname
    wait3 wait4 waitid writev
"""
"""What `os` has on POSIX systems alone, of what a program like this one could be using."""
SIGNALS = ("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2")
TEXT = set()
"""Descriptors that were opened without O_BINARY."""


class Without(types.ModuleType):
    """A module that lacks some names and has others of its own."""

    def __init__(self, module, hidden=(), **own):
        super().__init__(module.__name__)
        vars(self).update(own, _module=module, _hidden=frozenset(hidden))

    def __getattr__(self, name):
        if name in self._hidden:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self._module, name)


class Blind:
    """A finder of modules that does not see some packages."""

    def __init__(self, finder, names):
        self._finder, self._names = finder, names

    def find_spec(self, name, path=None, target=None):
        return None if name in self._names else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def without_extras():
    """Take away all that an extra brings."""
    names = {module for extra, modules in EXTRAS.items() for module in modules if extra != "hub"}
    for module in [m for m in sys.modules if any(m == name or m.startswith(f"{name}.") for name in names)]:
        del sys.modules[module]
    sys.meta_path[:] = [Blind(finder, names) for finder in sys.meta_path]


def opened(path, flags, mode=0o777):
    """os.open, as Windows has it: no folders, and text unless O_BINARY says otherwise."""
    if os.path.isdir(path):  # noqa: PTH112
        raise PermissionError(13, "Permission denied", path)
    descriptor = os.open(path, flags & ~BINARY, mode)
    (TEXT.discard if flags & BINARY else TEXT.add)(descriptor)
    return descriptor


def written(descriptor, data):
    """os.write, with \\r\\n into a descriptor of text."""
    if descriptor not in TEXT:
        return os.write(descriptor, data)
    os.write(descriptor, bytes(data).replace(b"\n", b"\r\n"))
    return len(data)


def synced(descriptor):
    """os.fsync: not of what is open for reading alone."""
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    os.fsync(descriptor)


def locking(descriptor, mode, count):
    """msvcrt.locking of one byte, where the descriptor stands."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, os.lseek(descriptor, 0, os.SEEK_CUR))
    except BlockingIOError as error:
        raise PermissionError(13, "Permission denied") from error


BINARY = 1 << 40


def on_windows():
    """Take away what Windows lacks, and have what it has; modules of mconv are imported anew after this."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mconv"]:
        del sys.modules[name]
    sys.modules["os"] = Without(os, OS.split(), O_BINARY=BINARY, name="nt", open=opened, write=written, fsync=synced)
    sys.modules["signal"] = Without(signal, SIGNALS)
    sys.modules["sys"] = Without(sys, platform="win32")
    sys.modules["msvcrt"] = Without(types.ModuleType("msvcrt"), locking=locking, LK_NBLCK=2)
    sys.modules.update(dict.fromkeys(MODULES))


def played(commands, folder):
    """Run command lines in a folder; return for each its exit code and what it printed."""
    from mconv.cli.app import run

    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    told = []
    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = run(command)
        told.append((code, out.getvalue(), err.getvalue()))
    return told


def main():
    """Run the command lines of a JSON file, first as they are, then as on Windows; both times without any extra."""
    commands, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    without_extras()
    told = {"here": played(commands, folder / "here")}  # by this all that is not mconv's is imported
    on_windows()
    told["windows"] = played(commands, folder / "windows")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
