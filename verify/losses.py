"""Loss and KL of a comparison, for real text and for random token ids separately: random ids have a far higher loss."""

import math
from collections.abc import Sequence
from typing import Any


def losses(report: dict[str, Any]) -> list[str]:
    """Return a line for the loss on real text, if there is a tokenizer, and one for random token ids."""
    text, ids = by_kind(report)
    both = "{reference:.6f} and {candidate:.6f}"
    out = []
    if text:
        out.append(f"loss on text     {both.format(**text['loss'])} over {text['positions']} tokens of real text")
    if ids:
        usual = normal_loss(report)
        out.append(
            f"loss on ids      {both.format(**ids['loss'])} on random token ids{f', where {usual}' if usual else ''}"
        )
    if padding := report["padding"]:
        mean = report["loss"]["candidate"]
        out.append(
            f"loss as Megatron counts {padding['loss_over_all']:.6f}: over rows of padding too, all rows of the probe; "
            f"{mean:.6f} without"
        )
    return out


def by_kind(report: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return loss and KL on real text and on random token ids; None for a kind that the probe does not have."""
    rows = report.get("by_row") or [{"row": "random ids", "positions": report["length"], "kl": report["kl"],
                                     "loss": report["loss"]}]  # fmt: skip
    kinds = [row for row in rows if row["row"].startswith("text")], [row for row in rows if row["row"][:4] != "text"]
    return _mean(kinds[0]), _mean(kinds[1])


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the mean over rows of one kind. JSON writes NaN as null."""
    if not rows:
        return None
    names = ("reference", "candidate", "difference")
    loss = {name: _average([row["loss"][name] for row in rows]) for name in names}
    kl = _average([row["kl"] for row in rows])
    return {"positions": sum(row["positions"] for row in rows), "kl": kl, "loss": loss}


def _average(values: Sequence[float | None]) -> float:
    return sum(math.nan if value is None else value for value in values) / len(values)


def normal_loss(report: dict[str, Any]) -> str | None:
    """Return in words the loss that a sound model has on random ids."""
    if not (size := report.get("vocab_size")):
        return None
    return f"about ln({size:,}) = {math.log(size):.2f}, or a few nats more, is normal"
