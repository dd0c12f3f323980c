"""A verdict in words, and kept beside a checkpoint for its model card."""

from pathlib import Path
from typing import Any

from mconv.convert import manifest
from mconv.errors import MconvError

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
