"""Run torch.distributed.run so that it ends with the process that started it, and lets ranks stop in order.

torch's agent dies of SIGUSR2, and ends its ranks within seconds of SIGTERM. For ranks that stop in order both stay
blocked, as `ranks.run` has left them, and a thread passes them on by a file that the ranks read.
"""

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
import uuid
from pathlib import Path

from mconv.errors import MconvError
from mconv.train.launch import stop, worker
from mconv.train.launch.parent_death import end_with_parent
from mconv.train.launch.ranks import PRELOAD


def main() -> None:
    """Be torch's agent, with its command line."""
    end_with_parent(signal.SIGHUP)  # torch's agent ends its ranks then
    if stop.ASKED in os.environ:
        threading.Thread(target=_pass_on, daemon=True).start()
    if preload := os.environ.pop(PRELOAD, ""):
        _forked(preload.split(","))
        return
    from torch.distributed.run import main as run

    run(sys.argv[1:])


def _forked(modules: list[str]) -> None:
    """Be torch's agent, and fork its ranks from this process once it has imported what they need."""
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    with contextlib.suppress(MconvError):  # each rank meets it again, and reports it
        for module in modules:
            importlib.import_module(module)
    said = parse_args(sys.argv[1:])
    said.rdzv_backend, said.rdzv_endpoint, said.rdzv_id = "c10d", "localhost:0", uuid.uuid4().hex  # as --standalone does
    config, _, words = config_from_args(said)
    config.start_method = "fork"
    gc.collect()
    gc.freeze()  # a collection in a rank would copy the pages that it looks at
    elastic_launch(config, _rank)(*words[-2:])


def _rank(target: str, folder: str) -> None:
    """Be one rank, with the signals that a new process has."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    sys.argv[1:] = [target, folder]
    worker.main()


def _pass_on() -> None:
    while True:
        stop.pass_on(signal.sigwait(stop.SIGNALS), Path(os.environ[stop.ASKED]))


if __name__ == "__main__":
    main()
