"""The modules that PEFT's `adapter_config.json` selects, and rank and alpha of each, by PEFT's own rules of matching.

The tensors decide what an adapter is; this says what the config claims, so that the two can be held against each other.
Patterns come from a stranger's file: one that could run for ages is refused before it is tried.
"""

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from mconv.errors import FormatError

LONGEST_PATTERN = 4000
MOST_LOOPS = 5
"""Loops of a pattern that follow one another: five take no more than a tenth of a second for a module."""
ALL = "all-linear"


def targeted(config: Mapping[str, Any], module: str, *, inner: bool) -> bool | None:
    """Return whether the config puts an adapter on a module; None if it does not say which it means.

    `inner`: whether the module is a linear of a layer, which is what "all-linear" means.
    """
    targets = config.get("target_modules")
    if targets is None:
        return None
    if _excluded(config, module):
        return False
    if isinstance(targets, str):
        return inner if targets.lower() == ALL else bool(compiled(targets).fullmatch(module))
    return _ends(module, targets) and _in_layers(config, module)


def saved(config: Mapping[str, Any], module: str) -> bool:
    """Return whether PEFT saves a copy of a whole module: it looks at the ends of names, dots or not."""
    return any(module.endswith(name) for name in config.get("modules_to_save") or [])


def _excluded(config: Mapping[str, Any], module: str) -> bool:
    """Return whether `exclude_modules` leaves a module out, or `modules_to_save` has it whole."""
    excluded = config.get("exclude_modules") or []
    if isinstance(excluded, str):
        if compiled(excluded).fullmatch(module):
            return True
    elif _ends(module, excluded):
        return True
    names = config.get("modules_to_save") or []  # no adapter lies on or in what is saved whole
    return any(compiled(rf"(^|.*\.){name}($|\..*)").match(module) for name in names)


def _ends(module: str, names: Iterable[str]) -> bool:
    """Return whether a module has one of these names, or ends in it."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def _in_layers(config: Mapping[str, Any], module: str) -> bool:
    """Return whether a module lies in `layers_to_transform`, if that says anything."""
    wanted = config.get("layers_to_transform")
    if wanted is None or wanted == []:
        return True
    lists = config.get("layers_pattern") or []
    starts = [rf"(?:^|.*?\.){name}" for name in ([lists] if isinstance(lists, str) else lists)] or [r".*?\.[^.]*"]
    found = next((match for start in starts if (match := compiled(rf"{start}\.(\d+)\.").match(module))), None)
    return found is not None and int(found[found.re.groups]) in (wanted if isinstance(wanted, list) else [wanted])


def rank_and_alpha(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Return a module's rank and alpha: the first pattern that fits the end of its name, else `r` and `lora_alpha`."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank, alpha = ranks.get(_first(ranks, module)), alphas.get(_first(alphas, module))
    return (config.get("r", 8) if rank is None else rank), float(config.get("lora_alpha", 8) if alpha is None else alpha)


def older_alpha(config: Mapping[str, Any], module: str) -> float:
    """Return a module's alpha as PEFT before 0.14 had it: the first key that fits was looked for in both."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    key = next((key for key in [*ranks, *alphas] if compiled(rf".*\.{key}$").match(module)), module)
    return float(alphas.get(key, config.get("lora_alpha", 8)))


def _first(patterns: Iterable[str], module: str) -> str | None:
    return next((key for key in patterns if compiled(rf"(.*\.)?({key})$").match(module)), None)


@lru_cache(maxsize=256)
def compiled(pattern: str) -> re.Pattern[str]:
    """Return a stranger's pattern, compiled. Raises FormatError where it is none, or could run for ages."""
    try:
        found = re.compile(pattern) if len(pattern) <= LONGEST_PATTERN else None
    except (re.error, RecursionError, OverflowError) as error:
        raise FormatError(f"adapter_config.json: {pattern[:80]!r} is not a regular expression ({error})") from error
    if found is None or _effort(pattern) > MOST_LOOPS:
        raise FormatError(
            f"adapter_config.json: the pattern {pattern[:80]!r} is too long or nests repetitions, so that matching "
            "it could take hours; name the modules in a list"
        )
    return found


_TOKEN = re.compile(r"(?P<open>\()|(?P<close>\))|(?P<choice>\|)|(?P<loop>[*+]|\{\d*,\d*\})|(?P<times>\{\d+\})|\?|.", re.S)


def _effort(pattern: str) -> float:
    """Return how many loops follow one another at most; infinity where one holds a loop or a choice.

    A name of n letters takes a pattern of k such loops some n ** k / k! steps at worst.
    """
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern, flags=re.S)
    frames = [[0, 0, 0]]  # of each open group: most loops of a choice, loops of this choice, whether there are several
    last = [0, 0]  # of what a loop would repeat: its loops, and whether it is a choice
    for token in _TOKEN.finditer(plain):
        frame = frames[-1]
        if token["open"]:
            frames.append([0, 0, 0])
        elif token["close"] and len(frames) > 1:
            most, these, choice = frames.pop()
            last = [max(most, these), choice]
            frames[-1][1] += last[0]
            frames[-1][2] |= last[1]
        elif token["choice"]:
            frame[:] = [max(frame[0], frame[1]), 0, 1]
        elif token["loop"] or token["times"]:
            if any(last):
                return math.inf
            frame[1] += token["loop"] is not None
        elif token[0] != "?":
            last = [0, 0]
    return float(max(frames[0][:2]))
