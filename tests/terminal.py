"""mconv on a terminal of its own, at which Ctrl-C can be typed."""

import os
import pty
import re
import subprocess
import sys

CHILD = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "mconv", *sys.argv[1:]])
"""
"""Be mconv on a terminal that sends its Ctrl-C to it."""


def on_terminal(argv, *, after):
    """(exit code, lines) of a command to which Ctrl-C is typed once it has printed `after`."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "300", "TERM": "xterm-256color"}
    process = subprocess.Popen([sys.executable, "-c", CHILD, *argv], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown, typed = b"", False
    try:
        while part := os.read(ours, 65536):
            shown += part
            if after in shown and not typed:
                typed = bool(os.write(ours, b"\x03"))
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        process.kill() if not typed else None
        code = process.wait(timeout=60)
        os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return code, [line for line in re.split(r"[\r\n]+", text) if line.strip()]
