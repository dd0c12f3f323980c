"""Names of the tensors in a PEFT adapter's file: which module each is of, whatever was put before or between.

PEFT writes `base_model.model.MODULE.lora_A.weight`. A state dict that was saved by hand has the adapter's own name in it
(`lora_A.default.weight`), wrappers that compiled or sharded the model (`_orig_mod.`), one prefix more or one less.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mconv.convert.peft.lora import PREFIX
from mconv.errors import FormatError, refuse

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that torch's wrappers put in, before or between."""
BEFORE = ("base_model", "model")
"""Parts of names that PEFT puts before a module."""
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_EMBEDDED = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?")
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<leaf>weight|bias)")
_PLAIN = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.(?P<leaf>weight|bias)")


@dataclass(frozen=True, slots=True)
class Named:
    """The meaning of a tensor's name: a factor of a module's adapter, or a tensor of the module itself."""

    module: str
    """The module's name in the model."""
    part: str
    """`A` or `B`, `weight` or `bias`."""
    embedded: bool = False
    """True for a factor of an embedding's adapter, whose delta is the transpose of B A."""


def read_names(keys: Iterable[str], modules: Iterable[str]) -> tuple[dict[str, Named], tuple[str, ...]]:
    """Return what each tensor is, and notes on prefixes that are not PEFT's own. Raises FormatError, all at once."""
    known = _spellings(modules)
    found: dict[str, Named] = {}
    prefixes: dict[str, str] = {}
    adapters: dict[str, str] = {}
    bad: list[str] = []
    for key in keys:
        parts = key.split(".")
        bare = ".".join(part for part in parts if part not in WRAPPERS)
        match = next((m for shape in (_FACTOR, _EMBEDDED, _SAVED, _PLAIN) if (m := shape.fullmatch(bare))), None)
        placed = _placed(match["module"], known) if match else None
        if match is None or placed is None:
            bad.append(f"{key}: no module of this model has such a tensor")
            continue
        module, prefix = placed
        said = match.groupdict()
        found[key] = Named(module, said.get("factor") or said["leaf"], match.re is _EMBEDDED)
        prefixes.setdefault(prefix, key)
        if "adapter" in said:
            adapters.setdefault(said["adapter"] or "", key)
    bad += _doubles(found)
    if len(adapters) > 1:
        names = ", ".join(repr(name or "(without a name)") for name in adapters)
        bad.append(f"it holds several adapters: {names}; save one of them alone")
    if len(prefixes) > 1:
        one, other = list(prefixes.values())[:2]
        bad.append(f"{one} and {other} begin differently, so they are not of one state dict")
    refuse(bad, doing="the adapter does not fit the model", kind=FormatError)
    return found, (*_wrapped(found), *_prefixed(prefixes))


def _spellings(modules: Iterable[str]) -> dict[str, str]:
    """Return each module by its name, and by its name in a model that was saved without its head."""
    names = list(modules)
    return {name.partition(".")[2]: name for name in names if "." in name} | {name: name for name in names}


def _placed(path: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the module that a path ends in, and what PEFT, or somebody, put before it; None if there is none."""
    parts = path.split(".")
    for start in range(len(parts)):
        rest = ".".join(parts[start:])
        if rest in known and known[rest] == rest:
            return rest, ".".join(parts[:start])
        if parts[start] not in BEFORE:
            break
    rest = ".".join(parts[start:])
    return (known[rest], ".".join([*parts[:start], "?"])) if rest in known else None


def _doubles(found: Mapping[str, Named]) -> list[str]:
    """Return a problem for each tensor that stands under two names."""
    seen: dict[tuple[str, str], str] = {}
    bad = []
    for key, named in found.items():
        first = seen.setdefault((named.module, named.part), key)
        bad += [f"{first} and {key} are both {named.part} of {named.module}"] if first != key else []
    return bad


def _wrapped(found: Iterable[str]) -> list[str]:
    """Return a note if names held parts of wrappers."""
    parts = {part for key in found for part in key.split(".") if part in WRAPPERS}
    return [f"names of the adapter's tensors hold {', '.join(sorted(parts))} of a wrapper, which is left out"] * bool(
        parts
    )


def _prefixed(prefixes: Iterable[str]) -> list[str]:
    """Return a note if names begin otherwise than PEFT's, which PEFT itself would pass over without an adapter."""
    odd = [prefix for prefix in prefixes if f"{prefix}." != PREFIX]
    return [
        f"names of the adapter's tensors begin with {_shown(prefix)} where PEFT writes {PREFIX!r}; PEFT itself would "
        "load none of them"
        for prefix in odd
    ]


def _shown(prefix: str) -> str:
    start = prefix.removesuffix("?")
    return repr(f"{start.removesuffix('.')}.") if start else "the module"
