"""Verdicts in words; one of logits is kept beside a checkpoint for its model card."""

from pathlib import Path
from typing import Any

from mconv.convert import manifest
from mconv.errors import MconvError
from mconv.verify.digests import Difference, Report

KEPT = ("max_abs_error", "mean_abs_error", "relative_max", "kl", "argmax_agreement", "passed", "tp", "pp",
        "sequence_parallel", "dtype", "length")  # fmt: skip
"""What a manifest keeps of a verdict."""


def lines(report: dict[str, Any]) -> list[str]:
    """The report for people: the verdict first."""
    worst = report["worst"]
    verdict = "PASS" if report["passed"] else "FAIL"
    reference, candidate = report["reference"], report["candidate"]
    layout = f"tp {report['tp']} x pp {report['pp']}" + (" with sequence parallelism" * report["sequence_parallel"])
    out = [
        f"{verdict}: {reference['name']} ({reference['loaded_by']}) against {candidate['name']} "
        f"({candidate['loaded_by']}, {layout}) in {report['dtype']}, {report['batch']} x {report['length']} positions",
        f"  max abs error    {report['max_abs_error']:.3e}   at row {worst['row']}, position {worst['position']}, "
        f"token {worst['token']}",
        f"  mean abs error   {report['mean_abs_error']:.3e}   limit {report['limits']['mean_abs_error']:g}",
        f"  max / scale      {report['relative_max']:.3e}   limit {report['limits']['relative_max'] or 'none'}   "
        f"(scale {report['scale']:.3g})",
        f"  KL               {report['kl']:.3e}   largest {report['kl_max']:.3e}",
        f"  argmax agreement {100 * report['argmax_agreement']:.2f} %",
    ]
    if report["length"] < report["max_position_embeddings"]:
        out.append(
            f"  positions beyond {report['length']} of {report['max_position_embeddings']} were not probed (--length)"
        )
    return out + [f"  because {reason}" for reason in report["failures"]]


def record(folder: Path, report: dict[str, Any], *, against: str) -> None:
    """Add a verdict to the manifest in `folder`. Raises MconvError where there is no manifest."""
    made = manifest.read(folder)
    if made is None:
        raise MconvError(f"{folder} has no {manifest.NAME} to record the verdict in; mconv did not make this checkpoint")
    verdict = {"against": against, **{name: report[name] for name in KEPT}}
    manifest.write(folder, {**made, "verified": [*made.get("verified", []), verdict]})


# ---- digests -------------------------------------------------------------------------------------------------------
def digest_lines(report: Report, *, limit: int = 20) -> list[str]:
    """The report for people: the answer first."""
    size = f"{report.nbytes / 1e9:.3g} GB" if report.nbytes >= 1e9 else f"{report.nbytes / 1e6:.3g} MB"
    if report.same:
        out = [f"SAME: {report.a} and {report.b} hold the same {report.tensors} tensors ({size}), bit for bit"]
    else:
        count = f"{len(report.differences)} tensors and {len(report.spec)} other things"
        out = [f"DIFFERENT: {report.a} and {report.b} differ in {count} ({report.tensors} tensors, {size} compared)"]
    out += [f"  {name:<32} {a} against {b}" for name, (a, b) in report.spec.items()]
    shown = report.differences[:limit]
    out += [f"  {d.tensor:<32} {_difference(d)}" for d in shown]
    if len(report.differences) > limit:
        out.append(f"  ... and {len(report.differences) - limit} more tensors (--json lists all)")
    if report.zero_biases:
        out.append(f"  {len(report.zero_biases)} biases are stored on one side only, and zero there: no difference")
    return out


def _difference(d: Difference) -> str:
    if d.how in ("missing", "shape"):
        return f"{d.how}: {d.a} against {d.b}"
    apart = "" if d.largest is None else f", at most {d.largest:.3g} apart"
    if d.at:
        apart += " at " + ", ".join(f"{name} {i}" for name, i in d.at.items())
    if d.nonfinite:
        apart += f", {d.nonfinite} of them NaN or infinite on a side"
    if d.how == "dtype":
        same = "the same values" if not d.elements else f"{d.elements:,} of {d.of:,} values differ{apart}"
        return f"dtype: {d.a} against {d.b}, {same}"
    return f"bits: {d.elements:,} of {d.of:,} elements differ{apart} ({d.a} against {d.b})"


def digest_warnings(report: Report) -> list[str]:
    """What a manifest says and the bytes do not."""
    named = {"a": report.a, "b": report.b}
    return [
        f"{named[side]}: the digests of {len(names)} tensors ({', '.join(names[:5])}) in its mconv.json are not those of "
        "its bytes: it changed since mconv made it"
        for side, names in report.stale.items()
        if names
    ]
