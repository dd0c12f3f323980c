"""Admit only supported versions of megatron-core: the version is read without an import; others get one sentence.

The version that counts is that of the code that would be imported: a checkout on PYTHONPATH has no other, and where two
are installed the first on the path wins. Only its release counts: 0.17.0rc2 is 0.17.0, and so is 0.17.0+abc.
"""

import ast
import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mconv import extras
from mconv.errors import MconvError

OLDEST, BELOW = "0.16.1", "0.20"
"""The versions that mconv is tested with: from, below. pyproject.toml says the same; a test holds the two together."""
RANGE = f">={OLDEST},<{BELOW}"
ANY = "MCONV_ANY_CORE"
"""Set to 1 in the environment, a version newer than the range is let in, to try it."""
INSTALL = f"pip install 'megatron-core{RANGE}'"


class UnfitCore(MconvError):
    """megatron-core is installed in a version that mconv does not know, or in pieces that do not fit each other."""


@dataclass(frozen=True, slots=True)
class Core:
    """The megatron-core that an import would find."""

    version: str
    folder: Path
    """The folder of its package `megatron.core`."""


def check(to: str = "this command") -> Core:
    """Return the megatron-core that is here. `to`: what needs it ("training").

    Raises MissingPackage where there is none, UnfitCore where its version is outside the range.
    """
    core = found()
    if core is None:
        extras.need("train", "megatron.core", to=to)
        raise UnfitCore(f"{to} needs megatron-core, which the installed package `megatron` is not: {INSTALL}")
    if problem := unfit(core):
        raise UnfitCore(problem)
    return core


def found() -> Core | None:
    """Return the megatron-core that an import would find, None where there is none. It is not imported."""
    try:
        spec = importlib.util.find_spec("megatron.core")
    except (ImportError, ValueError):  # no megatron at all, or something else of that name
        return None
    roots = [Path(root) for root in (spec.submodule_search_locations if spec else None) or ()]
    for root in roots:
        if version := _of_code(root / "package_info.py") or _of_metadata():
            return Core(version, root)
    return None


def unfit(core: Core) -> str | None:
    """Return in one sentence why mconv does not run on a megatron-core, None if it does."""
    here = f"megatron-core {core.version} ({core.folder})"
    release = _release(core.version)
    if release < _release(OLDEST):
        return f"{here} is older than what mconv runs on, {RANGE}: {INSTALL}"
    if release >= _release(BELOW) and os.environ.get(ANY) != "1":
        return (
            f"{here} is newer than what mconv is tested with, {RANGE}: {INSTALL}, or set {ANY}=1 to try it all the same"
        )
    said = _of_metadata(beside=core.folder)
    if said and _release(said) != release:
        return (
            f"megatron-core in {core.folder} is a mixture: its metadata says {said}, its code {core.version}; install it "
            f"anew: pip install --force-reinstall --no-deps megatron-core=={said}"
        )
    return None


@contextlib.contextmanager
def importing(core: Core) -> Iterator[None]:
    """Turn whatever fails at an import of megatron-core into one sentence that names it. Raises UnfitCore."""
    try:
        yield
    except Exception as error:  # a half-upgraded one fails in any way
        raise UnfitCore(
            f"megatron-core {core.version} ({core.folder}) cannot be imported: {_why(error, core)}"
        ) from error


def _why(error: Exception, core: Core) -> str:
    """Return what failed, and what to do about it."""
    first = str(error).strip().partition("\n")[0]
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("megatron"):
        package = error.name.split(".")[0]
        return f"it needs the package {package}, which is not installed: pip install {package}"
    if _release(core.version) >= _release(BELOW):
        return f"{first}; it is newer than what mconv is tested with: {INSTALL}"
    again = f"pip install --force-reinstall --no-deps 'megatron-core{RANGE}'"
    return f"{type(error).__name__}: {first}; its files do not fit each other, or torch: {again}"


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version that count: those before anything like rc1, .dev0 or +local."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in numbers[0].split(".")) if numbers else (0,)


def _of_code(path: Path) -> str | None:
    """Return the version in a `package_info.py`, which is read and not run: it would ask git."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    values = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    numbers = [values.get(name) for name in ("MAJOR", "MINOR", "PATCH")]
    if any(type(number) is not int for number in numbers):
        return None
    return ".".join(map(str, numbers)) + str(values.get("PRE_RELEASE") or "")


def _of_metadata(*, beside: Path | None = None) -> str | None:
    """Return the version that the installer noted; with `beside`, only one that was installed along with that folder."""
    from importlib import metadata  # commands whose help is asked for import this module, and need no version

    try:
        noted = metadata.distribution("megatron-core")
    except metadata.PackageNotFoundError:
        return None
    if beside is not None and Path(str(noted.locate_file("megatron/core"))).resolve() != beside.resolve():
        return None
    return noted.version
