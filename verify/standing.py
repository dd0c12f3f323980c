"""Which of the verdicts in a manifest still speak of what is on the disk."""

import json
from typing import Any

from mconv.convert.checkpoint import Checkpoint
from mconv.convert.digests import combined
from mconv.convert.sources.read import Progress, check_copies, digests, quiet
from mconv.errors import CopiesDiffer

OF = "of"
"""In a recorded verdict: the identity of what was judged."""


def identity(checkpoint: Checkpoint, *, progress: Progress = quiet) -> str:
    """One digest of all that makes the function: every tensor's bytes, read now, and the architecture beside them."""
    source = checkpoint.source
    check_copies(source)
    found = digests(source, allow_nonfinite=True, progress=progress).stored
    return combined({**found, "architecture": json.dumps(checkpoint.spec.to_dict(), sort_keys=True)})


def standing(checkpoint: Checkpoint, *, progress: Progress = quiet) -> list[dict[str, Any]]:
    """The verdicts in its manifest that are of these tensors and this architecture, the oldest first."""
    kept = [verdict for verdict in (checkpoint.manifest or {}).get("verified", []) if OF in verdict]
    if not kept:
        return []
    try:
        now = identity(checkpoint, progress=progress)
    except CopiesDiffer:  # it is no one model: nothing that was said of one holds
        return []
    return [verdict for verdict in kept if verdict[OF] == now]
