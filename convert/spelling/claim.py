"""A table of rows read and written as a whole, and the rule for what no row claims: it stops, or passes by its name."""

import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mconv.convert.spelling.keys import Config, Key, Left, NamedKey
from mconv.convert.spelling.values import label, shown
from mconv.errors import ConfigError, refuse

MOST = 20
"""Unclaimed keys that a message lists."""
CONFIG_KEY, ARG = "--ignore-config-key", "--ignore-arg"
"""Options that let a key pass which no row claims: of a file in JSON, of a checkpoint's args or a `run_config.yaml`."""


def claim(rows: Iterable[Key], left: Left, *, flag: str = CONFIG_KEY, ignore: Collection[str] = ()) -> Config:
    """Return the fields that rows read; what no row claims stays in `left`. Raises ConfigError with all that is wrong."""
    fields, wrong, before = Config(), [], left.keys() & set(ignore)
    for row in rows:
        try:
            fields |= row.read(left)
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        wrong[-1] += unheeded(flag, before - left.keys())
    refuse(wrong, doing=left.prefix.rstrip(": ."), kind=ConfigError)
    return fields


def written(rows: Iterable[Key], spec: Any) -> Config:
    """Return the keys that rows write, with the values that say the spec."""
    out: Config = {}
    for row in rows:
        row.write(spec, out)
    return out


def claimed(rows: Iterable[NamedKey]) -> frozenset[str]:
    """Return the keys that rows claim."""
    return frozenset(name for row in rows for name in row.names)


def accept(
    left: Left,
    *,
    of: str,
    flag: str = CONFIG_KEY,
    ignore: Collection[str] = (),
    recorded: Mapping[str, Any] | None = None,
) -> Config:
    """Return the keys that no row claims and that may pass, with their values. Raises ConfigError on any other.

    `ignore`: names that the user gives now; `recorded`: what a manifest records, which lets pass that value alone.
    """
    recorded = recorded or {}
    passed = {n: v for n, v in left.items() if n in ignore or (n in recorded and recorded[n] == v)}
    if unknown := [name for name in left if name not in passed]:
        names = unknown[:MOST]
        listed = ", ".join(f"{label(name)}={shown(name, left[name])}" for name in names)
        more = f" and {len(unknown) - MOST} more" if len(unknown) > MOST else ""
        flags = " ".join(f"{flag} {shlex.quote(label(name))}" for name in names)
        raise left.error(
            f"mconv does not know {listed}{more} of {of}, and cannot tell whether it changes what the model computes. "
            f"If it does not: {flags}"
        )
    return passed


def refuse_claimed(flag: str, names: Collection[str], *, prefix: str = "") -> None:
    """Refuse to ignore keys that rows claim."""
    refuse(
        [f"{prefix}{flag} {name}, but the table claims that key: it is read, and cannot be ignored; remove the flag"
         for name in sorted(names)], doing="names to ignore", kind=ConfigError,
    )  # fmt: skip


def unheeded(flag: str, names: Collection[str]) -> str:
    """Return what to add to a refusal where the user asked to ignore one of the names that rows claim."""
    return f"; a row claims {min(names)}, so {flag} does not let it pass" if names else ""
