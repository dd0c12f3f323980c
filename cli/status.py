"""`mconv status`: the checkpoints in a folder as a tree of what was made from what."""

import json as jsonlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mconv.cli import options as o
from mconv.convert.folders import logbook, scan
from mconv.convert.folders.host import nbytes
from mconv.convert.folders.scan import Found, Scan
from mconv.errors import MconvError


@dataclass(slots=True, kw_only=True)
class TreeNode:
    """A checkpoint in the folder, or a place elsewhere that one of them was made from."""

    name: str
    found: Found | None = None
    state: str = "here"
    """`here`; `elsewhere`: outside the folder; `another iteration`: of a run that went on; `gone`."""
    also: tuple[str, ...] = ()
    """Parents other than the one it stands under: the adapter of a merge."""
    children: "list[TreeNode]" = field(default_factory=list)


def status(folder: Path = Path(), *, json: o.Json = False) -> None:
    """List the checkpoints and runs in a folder, and which was made from which.

    Parameters
    ----------
    folder
        The folder to look in. Default: the current one.
    """
    if not folder.is_dir():
        raise MconvError(f"{folder} is not a folder")
    looked = scan.scan(folder)
    trees, unfinished = tree(looked), scan.unfinished_in(folder)
    if json:
        values = {
            "folder": str(folder.resolve()),
            "checkpoints": [_facts(node) for node in trees],
            "unfinished": [{"name": name, **asdict(one)} for name, one in unfinished.items()],
            "notes": list(looked.notes),
        }
        print(jsonlib.dumps(values, indent=1))
        return
    for note in looked.notes:
        print(f"note: {scan.shown(note)}", file=sys.stderr)
    lines = [line for node in trees for line in _lines(node)]
    lines += [f"{scan.shown(name)}: {one.text}; {one.advice}" for name, one in unfinished.items()]
    print(
        "\n".join(
            lines or [f"nothing that mconv knows is in {folder.resolve()}; `mconv hf2meg MODEL` makes a checkpoint"]
        )
    )


# ---- the tree --------------------------------------------------------------------------------------------------------
def tree(looked: Scan) -> list[TreeNode]:
    """Return the roots: checkpoints without a known source, and sources outside the folder."""
    here = {id(one): TreeNode(name=scan.shown(str(one.path)), found=one) for one in looked.found}
    outside: dict[Path, TreeNode] = {}
    roots: list[TreeNode] = []
    for one in looked.found:
        node, above = here[id(one)], [_above(looked, one, place, here, outside) for place in one.parents]
        above = [parent for parent in above if not _within(parent, node)]
        node.also = tuple(parent.name for parent in above[1:])
        (above[0].children if above else roots).append(node)
    away = [node for node in outside.values() if node.children and node.state in ("gone", "elsewhere")]
    return [*away, *roots]


def _above(looked: Scan, one: Found, place: Path, here: dict[int, TreeNode], outside: dict[Path, TreeNode]) -> TreeNode:
    """Return the node of a checkpoint's source. A source outside the folder gets its own node."""
    if (source := looked.holds(place)) and source is not one:
        return here[id(source)]
    if place not in outside:
        outside[place] = TreeNode(name=scan.shown(_place_name(looked, one, place)), state=_state(looked, place))
        if run := looked.at(place):
            here[id(run)].children.append(outside[place])
    return outside[place]


def _state(looked: Scan, place: Path) -> str:
    if looked.at(place):
        return "another iteration"
    try:
        there = place.is_dir()
    except (OSError, ValueError):
        there = False
    return "elsewhere" if there else "gone"


def _place_name(looked: Scan, one: Found, place: Path) -> str:
    """Return the repository's name for a folder in the Hub's cache, else the path relative to the folder."""
    source = (one.manifest or {}).get("source", {}).get("name")
    if isinstance(source, str) and len(one.ancestors) == 1 and f"models--{source.replace('/', '--')}" in place.parts:
        return source
    near = Path(os.path.relpath(place, looked.folder.resolve()))
    shown = place if near.parts[:2] == ("..", "..") else near
    return str(shown.parent if shown.name == "release" else shown)


def _within(node: TreeNode, root: TreeNode) -> bool:
    """Return whether a node is below another one: manifests that name each other must not make a cycle."""
    return node is root or any(_within(node, child) for child in root.children)


# ---- one of it -------------------------------------------------------------------------------------------------------
def _facts(node: TreeNode) -> dict[str, Any]:
    """Return a node in JSON values."""
    facts: dict[str, Any] = {"name": node.name, "state": node.state}
    if node.found:
        facts |= {**facts_of(node.found), "also_from": list(node.also)}
    return facts | {"children": [_facts(child) for child in node.children]}


def facts_of(one: Found) -> dict[str, Any]:
    """Return what is known about a checkpoint without reading its tensors."""
    made = one.manifest or {}
    layout = made.get("layout")
    log = logbook.read(one.folder)
    recorded = [{**verdict, "same": None, "recorded": True} for verdict in made.get("verified", [])]
    return {
        "path": str(one.path),
        "kind": "run" if one.trained else one.kind,
        "holds": "a LoRA adapter" if one.holds_adapter else "a model",
        "made_by": one.step,
        "made": one.made,
        "steps": [str(step.get("step")) for step in one.steps],
        "from": [str(place) for place in one.parents],
        "format": made.get("format") or ("hf" if one.kind == "hf" else None),
        "dialect": made.get("dialect"),
        "layout": {name: layout.get(name) for name in ("tp", "pp", "vpp")} if isinstance(layout, dict) else None,
        "dtype": made.get("dtype"),
        "iteration": one.iteration,
        "iterations": list(one.iterations),
        "bytes": nbytes(one.folder),
        "verified": [*recorded, *(entry for entry in log if entry.get("what") == "verified")],
        "pushed": [entry for entry in log if entry.get("what") == "pushed"],
    }


def _lines(node: TreeNode, before: str = "", own: str = "") -> Iterator[str]:
    """Yield the lines on a node and those below it, as a drawn tree."""
    yield own + node.name + (f" ({_where(node)})" if node.found is None else "")
    rest = before + ("│ " if node.children else "  ")
    for line in _about(node.found) if node.found else ():
        yield rest + "  " + line
    for child in node.children:
        last = child is node.children[-1]
        yield from _lines(child, before + ("   " if last else "│  "), before + ("└─ " if last else "├─ "))


def _where(node: TreeNode) -> str:
    return {"gone": "no longer exists", "elsewhere": "not in this folder"}.get(
        node.state, "an iteration that the run has left behind"
    )


def _about(one: Found) -> Iterator[str]:
    """Yield lines on a checkpoint: what it is, how it was made, when it was verified and pushed."""
    from rich.filesize import decimal

    facts = facts_of(one)
    kept = f"iterations {', '.join(map(str, one.iterations))}" if len(one.iterations) > 1 else None
    what = [scan.layout_of(one), facts["dtype"], decimal(facts["bytes"]), kept]
    yield scan.shown(", ".join(str(word) for word in what if word))
    if one.step:
        by = f"made by {one.step}" + (f", {one.made}" if one.made else "")
        yield scan.shown(by + "".join(f", and from {name}" for name in _also(one)))
    else:
        yield "not made by mconv"
    for verdict in _last(facts["verified"], "against"):
        yield scan.shown(_verified(verdict))
    for entry in _last(facts["pushed"], "repo"):
        yield scan.shown(f"pushed to {entry.get('repo')}, {entry.get('when')}{_since(entry)}")


def _also(one: Found) -> list[str]:
    return [scan.called(place) for place in one.parents[1:]]


def _last(entries: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the last entry for each value of the field `name`."""
    return list({str(entry.get(name)): entry for entry in entries}.values())


def _verified(verdict: dict[str, Any]) -> str:
    passed = "verified against" if verdict.get("passed") is True else "NOT THE SAME as"
    proofs = [name for name in ("digests", "logits") if verdict.get(name) == "pass"]
    how = f" ({' and '.join(proofs)})" if proofs and verdict.get("passed") is True else ""
    when = f", {verdict['when']}" if verdict.get("when") else ""
    return f"{passed} {verdict.get('against')}{how}{when}{', recorded' * bool(verdict.get('recorded'))}{_since(verdict)}"


def _since(entry: dict[str, Any]) -> str:
    return "; its files have changed since" if entry.get("same") is False else ""
