"""What a plain install leaves out: which extra brings which packages, and the sentence where one is missing.

pyproject.toml has the same table for pip; a test holds the two together. Nothing is imported here.
"""

import importlib.util
import sys

from mconv.errors import MconvError

HF = ("transformers", "sentencepiece", "google.protobuf")
EXTRAS = {
    "train": (*HF, "megatron.core", "psutil"),
    "hf": HF,
    "data": (*HF, "zstandard", "pyarrow", "datasets"),
    "dedup": ("rensa", "zstandard", "pyarrow"),
    "hub": ("huggingface_hub",),
    "log": ("tensorboard",),
    "plot": ("matplotlib",),
    "demo": (*HF, "megatron.core", "psutil", "gguf"),
}
"""Extra of mconv -> the modules that it brings; hub's is in a plain install too, in whatever version it finds."""
NAMES = {"google.protobuf": "protobuf", "megatron.core": "megatron-core"}
"""Modules of which the package has another name."""
RANGES = {"transformers": (5, 6), "huggingface_hub": (1, 3)}
"""Packages that another program may have installed in a version that mconv does not work with: from, below (major)."""


class MissingPackage(MconvError):
    """A command needs a package that is not installed, or not in a version that fits."""


def version(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    from importlib import metadata  # it costs more than the rest of `--help`'s imports of ours

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def found(module: str) -> bool:
    """Return whether a module could be imported, without importing it (of a.b, a is)."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def need(extra: str, *modules: str, to: str, without: str = "") -> None:
    """Raise MissingPackage, which names the extra, if any of `modules` (default: all of it) is not here.

    `to`: what for ("reading a.zst"); `without`: what can be done without them.
    """
    problems = [problem for module in modules or EXTRAS[extra] if (problem := _problem(module))]
    if problems:
        what = f"{to} needs {', '.join(problems[:-1])}{' and ' * (len(problems) > 1)}{problems[-1]}: {advice(extra)}"
        raise MissingPackage(f"{what}; {without}" if without else what)


def advice(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'mconv[{extra}]'"


def _problem(module: str) -> str | None:
    """Return which package is to be installed, None if what is here can be used."""
    name = NAMES.get(module, module)
    if not found(module):
        return name
    if module not in RANGES:
        return None
    (low, high), here = RANGES[module], version(name) or ""
    major = here.split(".")[0]
    if major.isdecimal() and not low <= int(major) < high:
        return f"{name}>={low},<{high} ({here} is installed)"
    return None
