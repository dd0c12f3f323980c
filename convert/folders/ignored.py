"""Names that no table claims and that the user lets pass: which, with which values, and where that is kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Passed = dict[str, dict[str, Any]]
"""Args and keys passed over in a checkpoint, by kind (`args`, `config_keys`): name -> its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """Names that the user declares harmless. A name that a table claims stays claimed: it can't be ignored."""

    args: frozenset[str] = frozenset()
    """Args of a Megatron checkpoint, or keys of the model section of a run_config.yaml."""
    config_keys: frozenset[str] = frozenset()
    """Keys of a config.json."""

    def __or__(self, other: "Ignored") -> "Ignored":
        return Ignored(args=self.args | other.args, config_keys=self.config_keys | other.config_keys)

    def to_dict(self) -> dict[str, list[str]]:
        """Return lists of names; `ignored` reads them back."""
        return {"args": sorted(self.args), "config_keys": sorted(self.config_keys)}


NOTHING = Ignored()


def ignored(*, args: Iterable[str] = (), config_keys: Iterable[str] = ()) -> Ignored:
    """Return the names as one value; an arg may be spelled as its flag (`--moe-x` for `moe_x`)."""
    plain = (name.removeprefix("--").replace("-", "_") for name in args)
    return Ignored(args=frozenset(plain), config_keys=frozenset(config_keys))


def recorded(manifest: Mapping[str, Any] | None) -> Ignored:
    """Return the names that a manifest says were ignored when its checkpoint was made."""
    kept = (manifest or {}).get("ignored", {})
    return Ignored(**{kind: frozenset(kept.get(kind, {})) for kind in ("args", "config_keys")})


def joined(*passed: Mapping[str, Mapping[str, Any]]) -> Passed:
    """Return all that was passed over along a chain of conversions; a later value replaces an earlier one."""
    found: Passed = {}
    for one in passed:
        for kind, values in one.items():
            found.setdefault(kind, {}).update(values)
    return {kind: values for kind, values in found.items() if values}
