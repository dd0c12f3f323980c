"""A report as one self-contained HTML page: `page.html.jinja` filled in, without scripts."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mconv.verify import chart
from mconv.verify.losses import by_kind, normal_loss
from mconv.verify.places import FINAL_NORM
from mconv.verify.training_lines import lines

GENERATOR = '<meta name="generator" content="mconv verify">'
"""Tag that marks a page of `mconv verify`, which may be replaced."""
ROWS = 300
"""Largest number of tensors listed."""
PIECES = 3
"""Largest number of stored tensors named for each of them."""
SHORT = {FINAL_NORM: "norm"}
"""Short names of places."""
SENTENCES = {
    ("digests", "pass"): "The tensors are the same, bit for bit.",
    ("digests", "fail"): "The tensors differ.",
    ("logits", "pass"): "Both compute the same function.",
    ("logits", "fail"): "They do not compute the same function.",
    ("generation", "pass"): "Both write the same tokens.",
    ("generation", "fail"): "They do not write the same tokens.",
}
PROOFS = {"digests": "Tensors", "logits": "Logits", "generation": "Generation"}
QUESTIONS = {
    "digests": "the same weights, tensor by tensor",
    "logits": "the same function, within rounding",
    "generation": "the same greedy tokens",
}
LIMITED = {
    "mean_abs_error": ("mean absolute error", None),
    "relative_max": ("largest error / scale", "relative_max"),
    "relative_rms": ("rms error / scale", "relative_rms"),
}
"""Numbers that have a limit -> name shown, and the noise floor that it is compared with."""
_CONTROL = (*range(9), 11, 12, *range(14, 32), *range(127, 160))
_DIRECTION = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
UNPRINTABLE = dict.fromkeys((*_CONTROL, *_DIRECTION), "\ufffd")
"""Characters that would make a name look like another one."""


def render(report: dict[str, Any]) -> str:
    """Return the page of one report of `judge`, new or read back from JSON. The same report gives the same page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": number,
        "percent": percent,
        "loss": lambda x: f"{x:.6f}" if chart.finite(x) else number(x),
    }
    template = environment.from_string(Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8"))
    text = template.render(generator=GENERATOR, frame=chart, **values(report))
    # Names of files may hold bytes that are no text.
    return text.translate(UNPRINTABLE).encode("utf-8", "backslashreplace").decode("utf-8")


def is_ours(file: Path) -> bool:
    """Return whether a file is a page that `render` made, or is gone: another rank may just have removed it."""
    try:
        with file.open("rb") as opened:
            return GENERATOR.encode() in opened.read(1024)
    except FileNotFoundError:
        return True


def values(report: dict[str, Any]) -> dict[str, Any]:
    """Return the values that the template shows."""
    logits = report if "max_abs_error" in report else None
    tensors = report.get("digests")
    return {
        "passed": report["passed"],
        "names": [side["name"] for side in _sides(report)],
        "sentence": _sentence(report),
        "proofs": [(PROOFS[name], QUESTIONS[name], answer) for name, answer in report["verdicts"].items()],
        "failures": report["failures"],
        "training": lines(report) if report.get("training") and not report["passed"] else [],
        "diagnosis": _diagnosis(report.get("diagnosis")),
        "alone": _alone(report.get("diagnosis")),
        "sides": _sides(report),
        "terms": _terms(report) if logits else [],
        "rows": report.get("rows", []),
        "numbers": _numbers(report) if logits else [],
        "loss": report.get("loss"),
        "losses": _losses(report) if logits else [],
        "padding": report.get("padding"),
        "worst": report.get("worst"),
        "layers": _layers(report) if report.get("layers") else None,
        "positions": _positions(report) if report.get("error_by_position") else None,
        "tensors": tensors,
        "compared": size(tensors["nbytes"]) if tensors else None,
        "differences": [_difference(one) for one in tensors["differences"][:ROWS]] if tensors else [],
        "differ": len(tensors["differences"]) if tensors else 0,
        "more": max(0, len(tensors["differences"]) - ROWS) if tensors else 0,
        "generation": report.get("generation"),
        "environment": _environment(report["environment"]),
    }


def _sentence(report: dict[str, Any]) -> str:
    """Return in words what the proofs found."""
    if report.get("training") and not report["passed"]:
        return "They differ, and training lies between them."
    sentences = [SENTENCES[pair] for pair in report["verdicts"].items() if pair in SENTENCES]
    tensors = report.get("digests")
    if report.get("not_compared"):
        return "They are models of different architectures; nothing was run."
    if tensors and tensors["same"] and not tensors["exact"]:
        sentences[0] = "The tensors are the same after rounding to the narrower dtype."
    if tensors and not tensors["same"] and not tensors["differences"]:
        sentences[0] = "The tensors are the same, the architectures are not."
    return " ".join(sentences)


def _difference(found: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the table of differences, with `notes` on what the columns do not show."""
    notes = []
    if dtypes := found["dtypes"]:
        notes.append(f"{dtypes[0]} against {dtypes[1]}, compared after rounding")
    if rows := found["rows"]:
        notes.append(
            f"{abs(rows):,} rows {'more' if rows > 0 else 'fewer'}" + (", all zero" if found["rows_zero"] else "")
        )
    for side, pieces, total in (("reference", found["a_pieces"], found["of_a_pieces"]),
                                ("judged", found["pieces"], found["of_pieces"])):  # fmt: skip
        if 0 < len(pieces) < total:
            more = f" and {len(pieces) - PIECES} more" if len(pieces) > PIECES else ""
            notes.append(f"only in {', '.join(pieces[:PIECES])}{more}, of the {total} pieces on the {side} side")
    return {**found, "notes": notes}


def _sides(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return reference and candidate: as the logits name them, else as the tensors do."""
    whole = [(report.get("digests") or {}).get(side) for side in ("a", "b")]
    sides = [report.get(side) for side in ("reference", "candidate")]
    return [
        {"format": None, "loaded_by": None, "name": text, "whole": text, **(side or {})}
        for side, text in zip(sides, whole, strict=True)
    ]


def _terms(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return how the logits were compared, in words."""
    layout = f"tp {report['tp']} \u00d7 pp {report['pp']}" + ", sequence parallel" * report["sequence_parallel"]
    rounded, most = report["rounded_to"], report["max_position_embeddings"]
    short = "all of them" if report["reach"] >= most else f"{report['reach']:,} of {most:,}"
    known = report.get("layouts")
    return [
        ("layout of a Megatron side", known["line"] if known else layout),
        *([("proven at", layout)] if known else []),
        ("arithmetic", report["dtype"] + (f", weights of both rounded to {rounded}" if rounded else "")),
        ("device", report["device"]),
        ("held in memory", "one layer at a time" if report["streamed"] else "the whole model"),
        ("probe", f"{report['batch']} rows \u00d7 {report['length']:,} positions, seed {report['seed']}"),
        ("positions reached", f"{short} (the model has {most:,})"),
    ]


def _numbers(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the numbers that decide, then those that only inform."""
    limits, noise = report["limits"], report["noise"]
    judged = [
        {"name": words, "found": number(report[name]), "limit": number(limits[name]),
         "noise": number(noise[floor]) if floor else "\u2013",
         "within": _within(report[name], limits[name], strict=not floor)}
        for name, (words, floor) in LIMITED.items()
    ]  # fmt: skip
    informing = [
        ("largest absolute error", number(report["max_abs_error"]), number(noise["max_abs_error"])),
        ("scale (rms of the reference\u2019s logits)", number(report["scale"]), "\u2013"),
        ("KL divergence, mean (nats)", number(report["kl"]), "\u2013"),
        ("KL divergence, largest (nats)", number(report["kl_max"]), "\u2013"),
        ("same token ranked first", percent(report["argmax_agreement"]), "\u2013"),
    ]
    return judged + [{"name": a, "found": b, "limit": "\u2013", "noise": c, "within": None} for a, b, c in informing]


def _losses(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the loss on real text and on random ids, each with the number of tokens."""
    text, ids = by_kind(report)
    usual = normal_loss(report)
    out = [{"terms": f"on real text, {text['positions']:,} tokens", **text}] if text else []
    return out + ([{"terms": "on random token ids" + (f", where {usual}" if usual else ""), **ids}] if ids else [])


def _within(value: float | None, limit: float | None, *, strict: bool) -> str:
    if value is None or limit is None or not math.isfinite(value):
        return "not finite"
    return "within" if (value < limit if strict else value <= limit) else "above"


def _alone(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the chart of each layer's error on the reference's own input, which only layers at fault show."""
    if not found or not found.get("alone"):
        return None
    return _by_layer(found["alone"], levels={"limit": found["limit"]}, fault=found["layer"])


def _layers(report: dict[str, Any]) -> dict[str, Any]:
    """Return the chart of the error of the hidden states behind each layer."""
    levels = {"noise floor of the logits": report["noise"]["relative_rms"]}
    return _by_layer(report["layers"], levels=levels, fault=(report.get("diagnosis") or {}).get("layer"))


def _by_layer(found: list[dict[str, Any]], *, levels: dict[str, float | None], fault: int | None) -> dict[str, Any]:
    names = [one["layer"] for one in found]
    marked = names.index(str(fault)) if str(fault) in names else None
    drawn = chart.chart(
        [SHORT.get(name, name) for name in names], [one["error"] for one in found],
        levels=levels, marked=marked, first=1,
    )  # fmt: skip
    text = "; ".join(f"{name}: {number(one['error'])}" for name, one in zip(names, found, strict=True))
    return {"chart": drawn, "text": text, "axis": "layer, in the order of the forward pass"}


def _positions(report: dict[str, Any]) -> dict[str, Any]:
    """Return the chart of the largest error in each run of positions."""
    found, length = report["error_by_position"], report["length"]
    width = math.ceil(length / 16)  # as torch.chunk cuts them
    starts = [width * n for n in range(len(found))]
    levels = {"limit": _times(report["limits"]["relative_max"], report["scale"]),
              "noise floor": report["noise"]["max_abs_error"]}  # fmt: skip
    drawn = chart.chart([f"{start:,}" for start in starts], found, levels=levels)
    text = "; ".join(f"from {start:,}: {number(value)}" for start, value in zip(starts, found, strict=True))
    return {"chart": drawn, "text": text, "axis": f"position in the row, in runs of {width:,}"}


def _times(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b


def _diagnosis(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the modules of the layer that departs, with bars of logarithmic length."""
    if not found:
        return None
    modules = found.get("modules", [])
    known = [x for x in (found.get("limit"), *(one["error"] for one in modules)) if x is not None and 0 < x < math.inf]
    low, high = (math.log10(pick(known)) for pick in (min, max)) if known else (0.0, 0.0)
    share: Callable[[float], float] = lambda x: 6 + 94 * (math.log10(x) - low) / max(1e-9, high - low)  # noqa: E731
    bars = [
        {**one, "departs": one["module"] == found.get("module"),
         "width": round(100.0 if not chart.finite(one["error"]) else share(one["error"]) if one["error"] > 0 else 0.0, 1)}
        for one in modules
    ]  # fmt: skip
    return {"at": found.get("at"), "guesses": found["guesses"], "lines": found["lines"], "modules": bars}


def _environment(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return versions and machine as they are, time and memory in words."""
    words = {"seconds": duration, "peak_rss_bytes": size}
    called = {"seconds": "time", "peak_rss_bytes": "peak memory"}
    return [(called.get(name, name), words.get(name, str)(value)) for name, value in found.items() if value is not None]


def number(value: float | None) -> str:
    """Return a number with three digits. JSON writes NaN and infinity as null."""
    if value is None or math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "\u221e" if value > 0 else "\u2212\u221e"
    text = f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return text.replace("-", "\u2212", 1) if text.startswith("-") else text


def percent(value: float | None) -> str:
    """Return a share in percent; 100 % only if it is all."""
    if not chart.finite(value) or value is None:
        return "NaN"
    shown = f"{100 * value:.2f}"
    return f"{'99.99' if shown == '100.00' and value < 1 else shown} %"


def size(nbytes: int) -> str:
    """Return a number of bytes in words."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g} {unit}" if nbytes < 1000 * scale else f"{nbytes / scale:,.0f} {unit}"
    return f"{nbytes} bytes"


def duration(seconds: float) -> str:
    """Return seconds in words."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
