"""The licenses that a model's files name: the metadata of its card, as the Hub reads it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
LARGEST = 1 << 16
"""Bytes of a card that are read: its metadata stand at its beginning."""
_METADATA = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)


def of_card(files: Mapping[str, Path]) -> list[str]:
    """Return the licenses that the card among a model's files names; none where it has no card, or that says nothing."""
    if CARD not in files:
        return []
    with files[CARD].open(encoding="utf-8", errors="replace") as card:
        found = _METADATA.match(card.read(LARGEST))
    try:
        metadata = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return []
    return _named(metadata) if isinstance(metadata, dict) else []


def _named(metadata: Mapping[str, Any]) -> list[str]:
    """Return the licenses of a card's metadata: one or a list, and of `other` the name that it has."""
    told = metadata.get("license")
    names = [one for one in (told if isinstance(told, list) else [told]) if isinstance(one, str) and one.strip()]
    own = metadata.get("license_name")
    return [f"other ({own})" if one == "other" and isinstance(own, str) else one for one in names]
