"""Which test files touch megatron: `pytest -m megatron` selects them by what they import, so no list can grow old.

A file touches megatron if it or a helper of the tests that it imports asks for a module that runs on megatron-core, for
the tests' ranks, or for golden data, which Megatron's programs wrote. What only types commands does not count: most
commands need no megatron-core, and what those that do need is tested where it is.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
GOALS = ("megatron", "mconv.train", "mconv.verify", "world", "golden")


def touches(file: Path) -> bool:
    """Return whether megatron or golden data is reached from `file`."""
    seen: set[Path] = set()
    todo = {file}
    while todo:
        names = {name for path in todo for name in _names(path)}
        if any(name == goal or name.startswith(f"{goal}.") for name in names for goal in GOALS):
            return True
        seen |= todo
        todo = {_helpers()[name] for name in names & _helpers().keys()} - seen
    return False


@functools.cache
def _helpers() -> dict[str, Path]:
    return {path.stem: path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")}


@functools.cache
def _names(file: Path) -> frozenset[str]:
    """Return the modules that a file imports, in whatever function, and `world` or `golden` if it asks for them."""
    return frozenset(name for node in ast.walk(ast.parse(file.read_text())) for name in _of_node(node))


def _of_node(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names))
    elif isinstance(node, ast.arg) and node.arg == "world":
        yield "world"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "golden" in node.value.split("/"):
        yield "golden"
