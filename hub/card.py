"""The model card: what was converted, how to load it, how it was verified. Manifest values are treated as untrusted."""

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mconv.convert.folders.manifest import sources
from mconv.convert.folders.sidecar import judge, sha256
from mconv.convert.formats.jsonfile import read_json
from mconv.errors import ConfigError, FormatError
from mconv.hub.folder import MANIFEST

STEPS = {
    "hf2meg": "Converted from Hugging Face to Megatron",
    "reshard": "Resharded",
    "merge": "Merged to one shard",
    "blend": "Blended",
    "train": "Trained",
    "meg2hf": "Converted from Megatron to Hugging Face",
    "layers": "Layers left out, repeated or reordered",
    "resize": "Given another vocabulary",
}
_KINDS: dict[str, type] = {
    "mconv": str, "family": str, "spec": dict, "format": str, "dialect": str, "layout": dict, "vocab": dict,
    "dtype": str, "source": dict, "digests": dict, "versions": dict, "history": list, "verified": list,
    "made_from": list, "ancestors": list, "merged_from": dict, "made": str, "ignored": dict,
    "side_files": dict, "blend": dict, "surgery": dict,
}  # fmt: skip
_LOCAL = ("made_from", "ancestors", "merged_from")
"""Keys that hold paths to other checkpoints on this machine."""
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# An absolute or a relative path: only its last name is published.
_PATH = re.compile(r"(?<![\w:/.])(?:file:/+|~|\.{1,2}(?=[/\\])|/|[A-Za-z]:[/\\]|\\\\)[^\s'\",;|<>()]*")
_DEEP = re.compile(r"(?!\w+://)[^\s]+[/\\][^\s]+[/\\][^\s]*")
_HEX = re.compile(r"[0-9a-f]{64}")
_SPECIAL = re.compile(r"([\\`*_{}\[\]#!|~$:@]|(?<=www)\.)", re.IGNORECASE)
_SEAL = "<!-- mconv card {} -->"
_SEALED = re.compile(r"\n<!-- mconv card ([0-9a-f]{64}) -->\n?\Z")
_LONGEST = 200


class Plain(str):
    """Text that the template prints as it is."""

    __slots__ = ()


def render(manifest: Mapping[str, Any], *, repo: str, license: str | None = None, source: str | None = None) -> str:
    """Return the whole README.md of `repo`.

    `manifest` is the content of `mconv.json`, {} without one. `license` is an identifier of the Hub, such as `llama2`, or
    None. `source` is the file that holds the source's card. Raises FormatError if a key of the manifest has a value of
    the wrong kind.
    """
    import yaml

    facts = {key: public(value) for key, value in check_manifest(manifest).items() if value is not None}
    metadata = yaml.safe_dump(_metadata(facts, license=license), sort_keys=False, allow_unicode=False)
    return seal(f"---\n{metadata}---\n\n{_body(facts, repo=repo, source=source)}")


def check_license(text: str | None) -> None:
    """Refuse a text that cannot be a license's identifier on the Hub. Raises ConfigError."""
    if text is not None and not _LICENSE.fullmatch(text):
        raise ConfigError(f"--license {text!r} is not a license identifier of the Hub, such as llama2 or apache-2.0")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the `mconv.json` of a folder, {} if there is none. Raises FormatError if it is damaged."""
    return check_manifest(read_json(folder / MANIFEST)) if (folder / MANIFEST).is_file() else {}


def check_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Raise FormatError if a key holds another kind of value than mconv writes."""
    for key, kind in _KINDS.items():
        if manifest.get(key) is not None and not isinstance(manifest[key], kind):
            raise FormatError(f"{MANIFEST}: {key!r} must be a JSON {kind.__name__}; convert again, or remove the file")
    for key in ("history", "verified"):
        if not all(isinstance(item, dict) for item in manifest.get(key) or []):
            raise FormatError(f"{MANIFEST}: every item of {key!r} must be a JSON object")
    return dict(manifest)


def published(manifest: Mapping[str, Any], *, verified: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Return a manifest as it is published: without paths of this machine. `verified` replaces the verdicts in it."""
    facts = {key: value for key, value in manifest.items() if key not in _LOCAL}
    if verified is not None and (verified or "verified" in facts):
        facts["verified"] = [dict(verdict) for verdict in verified]
    sides = {
        n: v for n, v in (facts.pop("side_files", None) or {}).items() if _HEX.fullmatch(str(v)) and judge({n: None})[0]
    }
    return {key: public(value) for key, value in facts.items()} | ({"side_files": sides} if sides else {})


def is_the_sources(manifest: Mapping[str, Any], card: Path) -> bool:
    """Return whether a card was copied from the source unchanged, and so describes that model, not this one."""
    return bool(card.is_file() and (manifest.get("side_files") or {}).get(card.name) == sha256(card))


def public(value: Any) -> Any:
    """Return `value` with every path cut down to its last name, so that no local path is published."""
    if isinstance(value, dict):
        return {public(key): public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    if not isinstance(value, str):
        return value
    return _last_name(value) if _DEEP.fullmatch(value) else _PATH.sub(lambda match: _last_name(match[0]), value)


def _last_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def seal(text: str) -> str:
    """Return `text` with a digest of it at the end, by which `is_ours` finds out whether the card was edited."""
    text = text.rstrip() + "\n"
    return text + "\n" + _SEAL.format(hashlib.sha256(text.encode()).hexdigest()) + "\n"


def is_ours(text: str) -> bool:
    """Return whether mconv wrote this card and nobody has edited it since."""
    found = _SEALED.search(text.replace("\r\n", "\n"))
    if not found:
        return False
    return hashlib.sha256(text.replace("\r\n", "\n")[: found.start()].encode()).hexdigest() == found[1]


def escape(value: object) -> str:
    """Return one line of Markdown that shows `value` as plain text: no markup, no HTML, no links."""
    if isinstance(value, Plain):
        return str(value)
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    text = text[:_LONGEST] + "..." if len(text) > _LONGEST else text
    return html.escape(_SPECIAL.sub(r"\\\1", text))


def _metadata(facts: dict[str, Any], *, license: str | None) -> dict[str, Any]:
    check_license(license)
    named = [one.get("from") for one in sources(facts).values()] if facts.get("blend") else []
    base = facts.get("source", {}).get("name")
    bases = [one for one in named or [base] if isinstance(one, str) and _HUB_ID.fullmatch(one)]
    family = re.sub(r"[^a-z0-9.]+", "-", str(facts.get("family", "")).lower()).strip("-")
    known = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": license,
        "base_model": bases if named else next(iter(bases), None),
        "base_model_relation": "merge" if named else None,
        "tags": [tag for tag in ("mconv", "megatron", family[:40]) if tag],
    }
    return {key: value for key, value in known.items() if value}


def _body(facts: dict[str, Any], *, repo: str, source: str | None) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, finalize=escape, autoescape=False)
    template = environment.from_string(Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"))
    digests = facts.get("digests", {})
    body = template.render(
        name=repo.rpartition("/")[2],
        repo=Plain(json.dumps(repo)),
        summary=Plain(_summary(facts)),
        source=Plain(source or ""),
        steps=[_step(item) for item in facts.get("history", [])],
        sources=(rows := _sources(facts)),
        blended=bool(facts.get("blend")),
        made_by=_made_by(facts),
        licenses=_licenses(rows),
        facts=_facts(facts),
        ignored=_ignored(facts.get("ignored", {})),
        versions=sorted(facts.get("versions", {}).items()),
        checks=[_check(item) for item in facts.get("verified", [])],
        fingerprint=Plain(_fingerprint(digests)) if digests else "",
        tensors=len(digests),
    )
    return re.sub(r"\n{3,}", "\n\n", body)


def _summary(facts: dict[str, Any]) -> str:
    if not facts:
        return "A language model in the format of Hugging Face transformers, published with mconv."
    source = facts.get("source", {})
    parts = ["A", escape(facts["family"]) if "family" in facts else "", "model in the format of transformers"]
    name = f", made from {escape(source['name'])}" if source.get("name") else ""
    made = f" by mconv {escape(facts['mconv'])}" if "mconv" in facts else ""
    return " ".join(part for part in parts if part) + name + made + "."


def _step(item: dict[str, Any]) -> dict[str, Any]:
    detail = item.get("detail")
    shown = [(k, _short(v)) for k, v in detail.items()] if isinstance(detail, dict) else []
    name = str(item.get("step", "a step without a name"))
    return {"title": STEPS.get(name, name), "details": shown[:20]}


def _facts(facts: dict[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [(k.replace("_", " "), _short(v)) for k, v in facts.get("spec", {}).items()]
    rows += [(f"vocabulary ({k})", v) for k, v in facts.get("vocab", {}).items()]
    rows += [(k, facts[k]) for k in ("dtype", "dialect") if k in facts]
    return rows[:40]


def _sources(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each model that this one was made of: its name, origin, settings, licenses and digest."""
    own = _settings(facts.get("blend", {}).get("recipe"))
    return [
        {"name": name, "origin": _short(one.get("from", "")), "digest": _short(one.get("digest", "")),
         "settings": own.get(name, ""), "licenses": _listed(one.get("licenses"))}
        for name, one in sources(facts).items()
    ]  # fmt: skip


def _settings(recipe: object) -> dict[str, object]:
    """Return what a blend's recipe says of each model alone: its parameters, or that it is the base."""
    models = recipe.get("models") if isinstance(recipe, dict) else None
    listed = [one for one in models if isinstance(one, dict)] if isinstance(models, list) else []
    found = {str(one.get("model")): _short(one.get("parameters", {})) for one in listed}
    base = {str(recipe["base_model"]): "the base"} if isinstance(recipe, dict) and recipe.get("base_model") else {}
    return found | base


def _listed(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _licenses(rows: list[dict[str, Any]]) -> list[str]:
    """Return sentences on the licenses of the models: those that differ, and those that nothing says."""
    holders: dict[str, list[str]] = {}
    for row in rows:
        for name in row["licenses"]:
            holders.setdefault(name, []).append(row["name"])
    unknown = [row["name"] for row in rows if not row["licenses"]]
    named = "; ".join(f"{name} ({', '.join(models)})" for name, models in holders.items())
    differ = [f"Their licenses differ: {named}. Each holds for what was taken from that model; none stands for all."]
    several = len({frozenset(row["licenses"]) for row in rows if row["licenses"]}) > 1
    return differ * several + [f"No license is known of {', '.join(unknown)}."] * bool(unknown)


def _made_by(facts: dict[str, Any]) -> list[tuple[str, object]]:
    """Return the recipe of layers or of a vocabulary, but for digests and the name of the model."""
    recipe = facts.get("surgery", {}).get("recipe")
    shown = recipe.items() if isinstance(recipe, dict) else ()
    return [(str(key), _short(value)) for key, value in shown if key not in ("of", "digest", "kind")]


def _ignored(passed: dict[str, Any]) -> list[str]:
    """Return `name = value` for each arg and config key that mconv does not know and the user chose to ignore."""
    named = {"config_keys": "config.json", "args": "Megatron's args"}
    items = [(kind, name, value) for kind, v in passed.items() if isinstance(v, dict) for name, value in v.items()]
    return [f"{name} = {_short(value)} ({named.get(kind, kind)})" for kind, name, value in items]


def _check(item: dict[str, Any]) -> dict[str, Any]:
    names = ("against", "tp", "pp", "max_abs_error", "mean_abs_error", "kl", "argmax_agreement", "digests", "mconv")
    return {**{name: _short(item.get(name, "")) for name in names}, "passed": item.get("passed") is True}


def _short(value: object) -> object:
    """Return a value of JSON as one short text; numbers stay numbers."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    return ", ".join(str(_short(v)) for v in value) if isinstance(value, list) else value


def _fingerprint(digests: dict[str, Any]) -> str:
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()
