"""Facts of `mconv inspect` in words: a line for each, without a programming language's notation."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.filesize import decimal

_LEFT_OUT = ("tensors", "spec", "training")
"""Facts of a checkpoint that are not shown as lines of their own."""


def words(value: Any) -> str:
    """Return a value in words: yes and no, parts with commas between them."""
    if value is True or value is False:
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(words, value))
    return str(value)


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each fact that is known."""
    for name, value in facts.items():
        if value is not None and value != []:
            yield f"{name.replace('_', ' '):<24} {words(value)}"


def of_checkpoint(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines on a checkpoint."""
    shown = {
        **facts, **facts["spec"], "rope": _rope(facts["spec"]),
        "bytes": decimal(facts["bytes"]), "parameters": f"{facts['parameters']:,}",
        "history": " -> ".join(step["step"] for step in facts["history"]) or "none recorded",
    }  # fmt: skip
    yield from lines({name: value for name, value in shown.items() if name not in _LEFT_OUT})
    yield from _of_training(facts["training"])
    for t in facts.get("tensors", []):
        yield f"{t['key']}  {' x '.join(map(str, t['shape'])) or 'one number'}  {t['dtype']}  {t['logical']}"


def _rope(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fields that a model's kind of rope computes with, or None if it has no rope."""
    from mconv.verify.specs import ROPE_FIELDS

    rope = spec["rope"]
    return {name: rope[name] for name in ("kind", *ROPE_FIELDS[rope["kind"]])} if spec["position"] == "rope" else None


def of_lora_run(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines on a LoRA run's checkpoint."""
    shown = {**facts, "parameters": f"{facts['parameters']:,}"}
    yield from lines({name: value for name, value in shown.items() if name not in _LEFT_OUT})
    yield from _of_training(facts["training"])


def _of_training(training: Mapping[str, Any] | None) -> Iterator[str]:
    if training is None:
        yield from lines({"optimizer_state": "none: a model as it is published"})
        return
    size = f", {decimal(training['optimizer_bytes'])}" if training["optimizer_bytes"] else ""
    yield from lines({"optimizer_state": training["optimizer_state_text"] + size})
    if training["iteration"] or training["optimizer_state"] != "none":
        yield from lines({
            "trained_iterations": training["iteration"], "consumed_samples": training["consumed_samples"],
            "training_settings": training["settings"] or None,
        })  # fmt: skip


def of_adapter(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines on a PEFT adapter, one for each problem."""
    shown = {**facts, "bytes": decimal(facts["bytes"]), "parameters": f"{facts['parameters']:,}"}
    for name, value in shown.items():
        for one in value if name == "problems" else [value]:
            yield from lines({name: one})


def of_data(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines on token data."""
    documents, tokens = facts["documents"], facts["tokens"]
    lengths = {name: f"{value:,.12g}" for name, value in facts["lengths"].items()}
    ids, record = facts["ids"], facts["record"] or {}
    of = f" ({facts['sequences']:,} sequences)" if facts["sequences"] != documents else ""
    shown = {
        "prefix": facts["prefix"], "what": facts["what"], "documents": f"{documents:,}{of}", "tokens": f"{tokens:,}",
        "dtype": facts["dtype"], "bytes": decimal(facts["bytes"]), "tokens_of_a_document": lengths,
        "ids": f"{ids['min']:,} to {ids['max']:,}{_looked_at(ids['looked_at'], tokens, 'tokens')}",
        "ends": _ends(facts["endings"], documents),
        "tokenizer": f"{record['tokenizer']}, {record['vocab_size']:,} ids" if record else "not recorded",
        "chat_template": record.get("template"), "roles": _roles(facts.get("roles"), tokens),
    }  # fmt: skip
    yield from lines(shown)


def _looked_at(count: int, whole: int, what: str) -> str:
    return f" (in {count:,} of {whole:,} {what}, spread over the data)" if count < whole else f" (in all {what})"


def _ends(endings: Mapping[str, Any], documents: int) -> str:
    seen = _looked_at(endings["looked_at"], documents, "documents")
    if endings["token"] is not None:
        return f"each document ends in token {endings['token']}{seen}"
    return f"documents end in {endings['distinct']} different tokens, none of which ends all{seen}"


def _roles(roles: Mapping[str, Any] | None, tokens: int) -> str | None:
    if roles is None:
        return None
    shares = ", ".join(f"{name} {100 * share:.3g} %" for name, share in roles.items() if name != "looked_at")
    return shares + _looked_at(roles["looked_at"], tokens, "tokens")
