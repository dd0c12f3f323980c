"""One rank: `python -m mconv.train.launch.worker MODULE:FUNCTION FOLDER`, started by `ranks.run`."""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mconv.errors import MconvError
from mconv.train.launch import stop
from mconv.train.launch.parent_death import end_with_parent
from mconv.train.launch.ranks import resolve


def main() -> None:
    """Read FOLDER/payload.json, do the work, write FOLDER/result.json (rank 0) or FOLDER/error.RANK.json."""
    target, folder, rank = sys.argv[1], Path(sys.argv[2]), os.environ["RANK"]
    end_with_parent(signal.SIGKILL)
    try:
        with stop.listening() if stop.ASKED in os.environ else contextlib.nullcontext():
            answer = resolve(target)(json.loads((folder / "payload.json").read_text()))
        if rank == "0":
            (folder / "result.json").write_text(json.dumps(answer))
    except Exception as error:
        (folder / f"error.{rank}.json").write_text(json.dumps(_report(error, rank)))
        sys.stderr.write(traceback.format_exc())
        sys.stderr.flush()
        os._exit(1)  # at once: an ordinary exit would wait for peers that wait for us
    _leave()


def _report(error: Exception, rank: str) -> dict[str, Any]:
    """Return what the parent needs in order to raise the same error."""
    tail = traceback.format_exc().strip().splitlines()[-8:]
    return {
        "rank": int(rank),
        "ours": isinstance(error, MconvError),
        "kind": type(error).__name__,
        "message": str(error),
        "tail": "\n".join(tail),
        "time": time.time(),
    }


def _leave() -> None:
    """Say goodbye to the other ranks, if the work joined them."""
    if "torch" in sys.modules:
        from mconv.train.megatron.parallel import shutdown

        shutdown()


if __name__ == "__main__":
    main()
