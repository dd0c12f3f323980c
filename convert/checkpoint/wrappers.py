"""Names of a Hugging Face folder's tensors with a prefix too many or too few, brought to those of the family's table.

A program that wraps a model (torch.compile, FSDP, PEFT) and saves it as it is leaves its own names within those of the
weights. transformers then finds no weight and draws them all at random. Where every name has the wrapper that could have
it, mconv reads the names without it and says so; where only some have, it stops.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from mconv.errors import FormatError

WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_fpw_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "module": "DistributedDataParallel or DeepSpeed",
}
"""Modules that hold another one, wherever in a model, and what puts them there."""
PREFIXES = {"base_model.model": "PEFT", "model": "a module that holds the model"}
"""Prefixes of all names, and what puts them there; any other is read without, too."""
DEEPEST = 6
"""Parts of a name that are tried, at most, as a prefix of all names."""
SHOWN = 3
"""Places that a note names."""
MOST = 100
"""Places of a model, layers taken as one, that may have a wrapper; a layer has some thirty modules."""
Known = Callable[[str], str | None]
"""A function from a stored name to its name in the family's table (itself, or with the base model's prefix), or None."""


@dataclass(frozen=True, slots=True)
class Names:
    """Stored name -> the name that it is read under, and notes for the user."""

    of: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Plain:
    """A name without wrappers, and where in it which of them stood: (path of the module, wrapper)."""

    name: str
    held: list[tuple[str, str]] = field(default_factory=list)


def plain_names(stored: Collection[str], known: Known) -> Names:
    """Return what each stored name is read under. Raises FormatError where some names have a wrapper and others not."""
    if all(known(name) for name in stored):
        return Names(_distinct({name: known(name) or name for name in stored}))
    plain = {name: _without_wrappers(name) for name in stored}
    short, prefix = _without_prefix({name: one.name for name, one in plain.items()}, known)
    if not any(known(name) for name in short.values()):  # another model altogether: leave its names as they are
        return Names({name: name for name in stored})
    notes = _consistent(plain) + ([_note(prefix, [""])] if prefix is not None else [])
    return Names(_distinct({name: known(one) or one for name, one in short.items()}), tuple(notes))


def _without_wrappers(name: str) -> _Plain:
    found = _Plain("")
    parts: list[str] = []
    for part in name.split("."):
        if part in WRAPPERS:
            found.held.append((re.sub(r"(^|\.)\d+(?=\.|$)", r"\1#", ".".join(parts)), part))
        else:
            parts.append(part)
    found.name = ".".join(parts)
    return found


def _consistent(plain: Mapping[str, _Plain]) -> list[str]:
    """Return a note for each wrapper. Raises FormatError on a module that is wrapped in some names and not in others."""
    found: dict[str, list[str]] = {}
    places = dict.fromkeys(pair for one in plain.values() for pair in one.held)
    if len(places) > MOST:
        raise FormatError(
            f"its names have wrappers ({', '.join(WRAPPERS)}) at {len(places)} places: not those of one model"
        )
    bare = {name: re.sub(r"(^|\.)\d+(?=\.|$)", r"\1#", one.name) for name, one in plain.items()}
    for place, wrapper in places:
        below = [name for name in plain if not place or bare[name].startswith(f"{place}.")]
        without = [name for name in below if (place, wrapper) not in plain[name].held]
        if without:
            having = next(name for name in below if name not in without)
            raise FormatError(_some(len(below) - len(without), len(below), wrapper, having, without[0]))
        found.setdefault(wrapper, []).append(place)
    return [_note(wrapper, places) for wrapper, places in found.items()]


def _without_prefix(names: Mapping[str, str], known: Known) -> tuple[dict[str, str], str | None]:
    """Return the names without the prefix that all of them have and without which they are known, and that prefix."""
    if any(known(name) for name in names.values()):
        _check_partial(names, known)
        return dict(names), None
    first = next(iter(names.values())).split(".")
    for depth in range(1, min(DEEPEST, len(first))):
        shared = ".".join(first[:depth]) + "."
        if not all(name.startswith(shared) for name in names.values()):
            break
        short = {name: one.removeprefix(shared) for name, one in names.items()}
        if any(known(one) for one in short.values()):
            return short, shared[:-1]
    _check_partial(names, known)
    return dict(names), None


def _check_partial(names: Mapping[str, str], known: Known) -> None:
    """Refuse names of which some would be known without a prefix that others do not have."""
    unknown = [one for one in names.values() if not known(one)]
    heads: Counter[str] = Counter()
    for one in unknown:
        parts = one.split(".")
        heads.update(".".join(parts[:n]) for n in range(1, min(DEEPEST, len(parts))) if known(".".join(parts[n:])))
    if not heads:
        return
    prefix, count = heads.most_common(1)[0]
    having = next(one for one in unknown if one.startswith(f"{prefix}."))
    without = next((one for one in names.values() if not one.startswith(f"{prefix}.")), None)
    if without is not None and count > 1:
        raise FormatError(_some(count, len(names), prefix, having, without))


def _distinct(names: dict[str, str]) -> dict[str, str]:
    """Return the names. Raises FormatError where two tensors would be read under one."""
    seen: dict[str, str] = {}
    for stored, name in names.items():
        if name in seen:
            raise FormatError(f"{seen[name]!r} and {stored!r} both are {name}: remove one of them")
        seen[name] = stored
    return names


def _note(wrapper: str, places: Sequence[str]) -> str:
    """Return the note on a wrapper: the places of the model at which all names have it, and what puts it there."""
    origin = (WRAPPERS | PREFIXES).get(wrapper)
    by = f" ({origin} puts it there)" if origin else ""
    where = " and ".join(f"after {place.replace('#', 'N')!r}" if place else "at the start" for place in places[:SHOWN])
    more = f" and at {len(places) - SHOWN} more places" if len(places) > SHOWN else ""
    return f"all names have {wrapper + '.'!r} {where}{more}{by}; they are read without it"


def _some(count: int, total: int, wrapper: str, having: str, without: str) -> str:
    return (
        f"{count} of {total} names have {wrapper + '.'!r} ({having!r}) and others do not ({without!r}): in one model, "
        "all have it or none; save the state_dict of the inner model"
    )
