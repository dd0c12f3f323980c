"""Checkpoints of which there is nothing but what tells where they come from: a manifest and a tracker."""

import json
import os
from pathlib import Path
from typing import Any


def checkpoint(
    place: Path, name: str, *sources: Path, made: str | None = None, step: str = "reshard", kind: str = "megatron",
    iteration: int | None = None, **more: Any,
) -> Path:  # fmt: skip
    """Write one, made of `sources`, and return the folder that would hold its tensors."""
    word = "release" if iteration is None else f"iter_{iteration:07d}"
    folder = place / name if kind == "hf" else place / name / word
    folder.mkdir(parents=True, exist_ok=True)
    known: list[str] = []
    for source in sources:
        held = json.loads((source / "mconv.json").read_text()) if (source / "mconv.json").is_file() else {}
        known += [os.path.normpath(source / path) for path in held.get("ancestors", [])] + [str(source)]
    facts = {"ancestors": [os.path.relpath(path, folder) for path in known], "history": [{"step": step}], **more}
    (folder / "mconv.json").write_text(json.dumps(facts | ({"made": made} if made else {})))
    if kind == "hf":
        (folder / "config.json").write_text('{"model_type": "llama"}')
    else:
        (place / name / "latest_checkpointed_iteration.txt").write_text(str(iteration or "release"))
    return folder
