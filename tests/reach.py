"""Which test files touch megatron: `pytest -m megatron` selects them by what they import, so no list can grow old.

A file touches megatron if megatron-core is reached from its imports, through the package and the tests' own helpers, in
whatever function the import stands. So does a file that reads golden data, which Megatron's programs wrote.
"""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("shard", "convert", "train", "verify", "hub", "cli")
GOALS = frozenset({"megatron", "golden"})
LAZY = re.compile(r"mconv(\.\w+)+(:\w+)?")
"""A module named in a text, as the command line's table does: "mconv.cli.train:train"."""


def touches(file: Path) -> bool:
    """Return whether megatron or golden data is reached from `file`."""
    seen: set[str] = set()
    todo = set(_names(file))
    while todo and not GOALS & todo:
        seen |= todo
        todo = {name for module in todo & _modules().keys() for name in _names(_modules()[module])} - seen
    return bool(todo)


@functools.cache
def _modules() -> dict[str, Path]:
    """The modules of the package and the helpers of the tests, by name."""
    package = [*ROOT.glob("*.py"), *(path for part in PARTS for path in (ROOT / part).rglob("*.py"))]
    helpers = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")]
    dotted = {".".join(("mconv", *path.relative_to(ROOT).with_suffix("").parts)): path for path in package}
    return {name.removesuffix(".__init__"): path for name, path in dotted.items()} | {path.stem: path for path in helpers}


@functools.cache
def _names(file: Path) -> frozenset[str]:
    """Return the modules that a file imports, or names in a text, and `world` if it asks for the fixture."""
    return frozenset(name for node in ast.walk(ast.parse(file.read_text())) for name in _of_node(node))


def _of_node(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (_top(alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (_top(str(node.module)), *(f"{node.module}.{alias.name}" for alias in node.names))
    elif isinstance(node, ast.arg) and node.arg == "world":
        yield "world"
    elif isinstance(node, ast.List):
        yield from ["mconv.__main__"] * ("'-m', 'mconv'" in ast.unparse(node))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from _in_text(node.value)


def _top(name: str) -> str:
    """Return "megatron" for all of its modules."""
    return "megatron" if name.split(".")[0] == "megatron" else name


def _in_text(text: str) -> Iterator[str]:
    if "golden" in text.split("/"):
        yield "golden"
    elif LAZY.fullmatch(text):
        yield text.split(":")[0]
