"""Verdicts in a manifest, and which of them are still valid for what is on the disk."""

import json
from typing import Any

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.folders.digests import combined
from mconv.convert.sources.read import Progress, check_copies, digests, quiet
from mconv.errors import CopiesDiffer

IDENTITY = "of"
"""Key of a recorded verdict that holds the identity of the judged checkpoint."""


def identity(checkpoint: Checkpoint, *, progress: Progress = quiet) -> str:
    """Return one digest of everything that makes the function: every tensor's bytes, read now, and the architecture."""
    source = checkpoint.source
    check_copies(source)
    found = digests(source, allow_nonfinite=True, progress=progress).stored
    return combined({**found, "architecture": json.dumps(checkpoint.spec.to_dict(), sort_keys=True)})


def valid_verdicts(checkpoint: Checkpoint, *, progress: Progress = quiet) -> list[dict[str, Any]]:
    """Return the verdicts in the manifest that are about these tensors and this architecture, the oldest first."""
    recorded = [verdict for verdict in (checkpoint.manifest or {}).get("verified", []) if IDENTITY in verdict]
    if not recorded:
        return []
    try:
        now = identity(checkpoint, progress=progress)
    except CopiesDiffer:  # its copies contradict each other: no verdict can be about it
        return []
    return [verdict for verdict in recorded if verdict[IDENTITY] == now]
