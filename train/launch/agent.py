"""torch.distributed.run, which ends with the process that started it, and lets ranks stop well where they can.

torch's agent dies of SIGUSR2, and answers SIGTERM by ending its ranks within seconds. For ranks that stop well both stay
blocked, as `ranks.run` has left them, and a thread leaves word of them where the ranks look.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from mconv.train.launch import stop
from mconv.train.orphan import end_with_parent


def main() -> None:
    """Be torch's agent, with its command line."""
    end_with_parent(signal.SIGHUP)  # torch's agent ends its ranks then
    if stop.ASKED in os.environ:
        threading.Thread(target=_pass_on, daemon=True).start()
    from torch.distributed.run import main as run

    run(sys.argv[1:])


def _pass_on() -> None:
    while True:
        stop.pass_on(signal.sigwait(stop.SIGNALS), Path(os.environ[stop.ASKED]))


if __name__ == "__main__":
    main()
