"""The change that training made, in words; and a hint where training is likely and nobody said so."""

from typing import Any

from mconv.verify.losses import by_kind, normal_loss

NEARLY_ALL = 0.75
"""Smallest share of the tensors that training changes, unless it trains some layers only."""
MOST = 3
"""Number of tensors, layers and modules that are named as the most changed."""
LARGE = 0.5
"""Relative change of one tensor that training hardly reaches, and a wrong conversion easily."""


def hint(report: dict[str, Any]) -> str | None:
    """Return a hint at training for two checkpoints that differ almost everywhere and in no known way; else None."""
    tensors, found = report["digests"], report["diagnosis"]
    if not tensors or not found or report["training"] or tensors["spec"]:
        return None
    differing = [d for d in tensors["differences"] if d["how"] == "bits"]
    if any(guess["name"] for guess in found["guesses"]) or len(differing) < NEARLY_ALL * max(1, tensors["tensors"]):
        return None
    return (
        "nearly all tensors differ, as those of another model do, or of this one after training: --trained measures that"
    )


def lines(report: dict[str, Any]) -> list[str]:
    """Return the report for people: how much changed, where most, KL, and the loss of both."""
    training, change = report["training"], report["training"]["change"]
    steps = ", then ".join(training["between"]) or "as --trained says"
    return [
        f"DIFFERENT: {_name(report, 'reference', 'a')} against {_name(report, 'candidate', 'b')}; training lies between "
        f"({steps})",
        *(_changed(change) if change else []),
        *(_computed(report) if "max_abs_error" in report else []),
        *(f"  besides          {line}" for line in (report.get("diagnosis") or {}).get("lines", ())),
        *(f"  assumed          {words}" for words in report.get("assumed", ())),
        *(f"  because {fault}" for fault in training["faults"]),
    ]


def _name(report: dict[str, Any], side: str, letter: str) -> str:
    return str((report.get(side) or {}).get("name") or (report.get("digests") or {}).get(letter))


def _changed(change: dict[str, Any]) -> list[str]:
    share = 100 * change["changed"] / max(1, change["elements"])
    tops = [", ".join(f"{one['name']}" for one in change[by][:MOST]) for by in ("by_layer", "by_module")]
    first = change["by_tensor"][0] if change["by_tensor"] else None
    most = f"{first['name']} by {_number(first['relative_norm'])} of its norm" if first else "nothing"
    out = [
        f"  changed          by {_number(change['relative_norm'])} of the norm; {share:.3g} % of {change['elements']:,} "
        f"elements, in {change['tensors_changed']} of {change['tensors']} tensors",
        f"  most             {most}; by place: {tops[0]}; by module: {tops[1]}",
    ]
    if first and not (first["relative_norm"] or 0) <= LARGE:
        out.append(
            f"  note: training hardly changes a tensor by more than {LARGE:g} of its norm; if a conversion followed it, "
            "judge the conversion by itself: mconv verify RUN EXPORT"
        )
    return out


def _computed(report: dict[str, Any]) -> list[str]:
    text, ids = by_kind(report)
    usual = normal_loss(report)
    kl = [f"{_number(one['kl'])} nats on {what}" for what, one in (("real text", text), ("random ids", ids)) if one]
    out = [f"  KL               {', '.join(kl)}; the same token ranked first in {100 * report['argmax_agreement']:.2f} %"]
    for one, on in ((text, "real text"), (ids, "random token ids")):
        if one:
            loss, more = one["loss"], f", where {usual}" if usual and on != "real text" else ""
            out.append(
                f"  loss             {_number(loss['reference'])} -> {_number(loss['candidate'])} on {on} "
                f"({one['positions']} tokens){more}"
            )
    return out


def _number(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.4g}"
