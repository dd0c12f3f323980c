"""The checkpoint that a command takes when it is given no path: the newest of its kind, by lineage."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mconv.convert.folders.scan import Found, Scan, described, origin
from mconv.errors import MconvError


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """The checkpoint that a command without a path takes, and the reason."""

    found: Found
    why: str


KINDS: dict[str, Callable[[Found], bool]] = {
    "Megatron checkpoint": lambda found: found.kind == "megatron",
    "Hugging Face folder that mconv made": lambda found: found.kind == "hf" and found.manifest is not None,
    "checkpoint that mconv made": lambda found: found.manifest is not None and found.kind != "adapter",
    "adapter": lambda found: found.holds_adapter,
    "LoRA run": lambda found: found.holds_adapter and found.kind == "megatron",
}
"""Kind of input as messages call it -> the condition on what was found."""


def newest(scanned: Scan, what: str, *, name: str = "a path") -> Default:
    """Return the only one of its kind of which no other was made. Raises MconvError if there are several, or none.

    Lineage alone decides, never a file's time. Where what was made is older than its source as it is now, the source was
    made anew: then neither comes from the other.
    """
    fitting = [one for one in scanned.found if KINDS[what](one)]
    ends = [one for one in fitting if not any(other in fitting for other in scanned.descendants(one))]
    if len(ends) == 1:
        return Default(found=ends[0], why=_why(ends[0], len(fitting), what))
    where = "this folder" if scanned.folder == Path() else str(scanned.folder)
    if not fitting:
        raise MconvError(f"{where} holds no {what}; give {name}")
    if not ends:
        raise MconvError(f"the manifests in {where} say of each {what} that it was made from another one; give {name}")
    listed = "\n".join(f"  - {described(one)}" for one in ends)
    raise MconvError(f"{len(ends)} fit equally, and none of them was made from another; give {name}:\n{listed}")


def _why(one: Found, fitting: int, what: str) -> str:
    if fitting == 1:
        return f"the only {what} here"
    return f"the newest {what} here: {origin(one)}"
