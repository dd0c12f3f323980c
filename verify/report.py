"""Reports in words, and the verdict that a manifest keeps for the model card."""

from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.checkpoint.open import iteration_folder, open_checkpoint
from mconv.convert.folders import manifest
from mconv.errors import CopiesDiffer, MconvError
from mconv.verify import training_lines
from mconv.verify.digests import Difference, Report
from mconv.verify.losses import losses
from mconv.verify.recorded_verdicts import IDENTITY, identity
from mconv.verify.specs import plain

KEPT = ("max_abs_error", "mean_abs_error", "relative_max", "kl", "argmax_agreement", "passed", "tp", "pp",
        "sequence_parallel", "dtype", "length")  # fmt: skip
"""Fields of a report on logits that a manifest keeps."""


NO_LOGITS = "the logits could not be compared"
"""Beginning of the failure that says why logits were not compared."""


def as_json(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report for programs. If only tensors were compared, their fields are at the top level too."""
    return report if "max_abs_error" in report else {**(report["digests"] or {}), **report}


def lines(report: dict[str, Any]) -> list[str]:
    """Return the report for people: the verdict, each proof's own answer, where the fault is, and why."""
    tensors = (report.get("digests") or {}).get("lines", [])
    if report.get("training") and not report["passed"]:
        return training_lines.lines(report)
    if "max_abs_error" not in report:
        return _unlike(report, tensors) if report.get("not_compared") else [*tensors, *_besides(report)]
    reference, candidate = report["reference"], report["candidate"]
    layout = f"tp {report['tp']} x pp {report['pp']}" + (" with sequence parallelism" * report["sequence_parallel"])
    out = [
        f"{'PASS' if report['passed'] else 'FAIL'}: {_ran(reference, layout)} against {_ran(candidate, layout)} in "
        f"{report['dtype']}, {report['batch']} x {report['length']} positions",
        *([f"  layout           {layouts['line']}"] if (layouts := report.get("layouts")) else []),
        *(f"  {line}" if n else f"  tensors          {line}" for n, line in enumerate(tensors)),
        *_numbers(report),
    ]
    if spoken := report["generation"]:
        out.append(
            f"  generation       {'pass' if spoken['passed'] else 'fail'}: {100 * spoken['agreement']:.2f} % of "
            f"{spoken['prompts']} x {spoken['tokens']} greedy tokens are the same"
        )
    out += [f"  {line}" for line in (report.get("diagnosis") or {}).get("lines", ())]
    out += [f"  assumed          {words}" for words in report.get("assumed", ())]
    return out + [f"  because {reason}" for reason in report["failures"]]


def _ran(side: dict[str, Any], layout: str) -> str:
    """Return the program that ran a side, and the layout of a Megatron."""
    return f"{side['name']} ({side['loaded_by']}{'' if side['format'] == 'hf' else f', {layout}'})"


def _unlike(report: dict[str, Any], tensors: list[str]) -> list[str]:
    """Return the lines about two models of different architectures, which were not run."""
    return [f"FAIL: {report['not_compared']}", *(f"  {line}" for line in tensors[1:])]


def _besides(report: dict[str, Any]) -> list[str]:
    """Return the known faults, and why no logits were compared, after a comparison of tensors alone."""
    found = report.get("diagnosis") or {}
    unknown = {guess["text"] for guess in found.get("guesses", ()) if not guess["name"]}
    words = [line for line in found.get("lines", ()) if line not in unknown]
    missing = [f"because {reason}" for reason in report.get("failures", ()) if reason.startswith(NO_LOGITS)]
    return [f"  {line}" for line in (*words, *missing)]


def _numbers(report: dict[str, Any]) -> list[str]:
    worst, limits, noise = report["worst"], report["limits"], report["noise"]
    rounded = report["rounded_to"]
    out = [
        f"  max abs error    {report['max_abs_error']:.3e}   at row {worst['row']}, position {worst['position']}, "
        f"token {worst['token']}",
        f"  mean abs error   {report['mean_abs_error']:.3e}   limit {limits['mean_abs_error']:g}",
        f"  max / scale      {report['relative_max']:.3e}   limit {limits['relative_max']:.3g}, noise "
        f"{noise['relative_max']:.3g}   (scale {report['scale']:.3g})",
        f"  rms / scale      {report['relative_rms']:.3e}   limit {limits['relative_rms']:.3g}, noise "
        f"{noise['relative_rms']:.3g}",
        f"  KL               {report['kl']:.3e}   largest {report['kl_max']:.3e}",
        f"  argmax agreement {100 * report['argmax_agreement']:.2f} %",
        *(f"  {text}" for text in losses(report)),
    ]
    if rounded:
        out.append(f"  weights          rounded to {rounded} on both sides, as one of them is")
    if report["reach"] < report["max_position_embeddings"]:
        out.append(
            f"  positions beyond {report['reach']} of {report['max_position_embeddings']} were not probed (--length)"
        )
    return out


def check_recordable(folder: Path, iteration: int | None) -> Path:
    """Return the folder whose manifest can hold a verdict. Raises MconvError if there is none."""
    where = folder if (folder / "config.json").is_file() else iteration_folder(folder, iteration)
    if manifest.read(where) is None:
        raise MconvError(f"{where} has no {manifest.NAME} to record the verdict in; mconv did not make this checkpoint")
    return where


def verdict_of(report: dict[str, Any], checkpoint: Checkpoint, *, against: str) -> dict[str, Any]:
    """Return what is kept of a report: each proof's answer, mconv's version, and a digest of the checkpoint."""
    return {
        "against": against,
        **{name: report[name] for name in KEPT if name in report},  # other architectures have no logits to compare
        **{name: answer for name, answer in report["verdicts"].items() if name != "generation" or answer != "not run"},
        "mconv": report["environment"]["mconv"],
        "when": manifest.now(),
        **_of(checkpoint),
    }


def _of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the identity of the judged bytes; {} for a checkpoint whose copies differ: its verdict never counts."""
    try:
        return {IDENTITY: identity(checkpoint)}
    except CopiesDiffer:
        return {}


def record(folder: Path, report: dict[str, Any], *, against: str) -> None:
    """Add a verdict to the manifest in `folder`. Raises MconvError if there is no manifest."""
    where = check_recordable(folder, None)
    keep(where, verdict_of(report, open_checkpoint(where), against=against))


def keep(folder: Path, verdict: dict[str, Any]) -> None:
    """Add a verdict to the existing manifest in `folder`."""
    made = manifest.read(folder) or {}
    manifest.write(folder, {**made, "verified": [*made.get("verified", []), verdict]})


# ---- digests -------------------------------------------------------------------------------------------------------
SHOWN_PIECES = 3
FEW = 4
"""Largest number of tensors listed if the models differ in size or kind, so that most of their tensors differ."""
SHAPING = {"hidden_size", "ffn_hidden_size", "num_query_groups", "position", "norm"}
"""Fields of the architecture that decide the size or kind of a model."""


def digest_lines(report: Report, *, limit: int = 20) -> list[str]:
    """Return the comparison of tensors for people, the answer first."""
    limit = min(limit, FEW) if SHAPING & report.spec.keys() else limit
    size = f"{report.nbytes / 1e9:.3g} GB" if report.nbytes >= 1e9 else f"{report.nbytes / 1e6:.3g} MB"
    if report.same:
        out = [f"SAME: {report.a} and {report.b} hold the same {report.tensors} tensors ({size}), {_how_same(report)}"]
    elif report.contradictions and not report.differences and not report.spec:
        out = [f"WRONG: copies that should be the same differ; {report.a} and {report.b} are the same otherwise"]
    else:
        counts = ((len(report.differences), "tensor"), (len(report.spec), "setting"))
        count = " and ".join(f"{number} {noun}" + "s" * (number > 1) for number, noun in counts if number)
        out = [f"DIFFERENT: {report.a} and {report.b} differ in {count} ({report.tensors} tensors, {size} compared)"]
    out += [f"  {name:<32} {plain(a)} against {plain(b)}" for name, (a, b) in report.spec.items()]
    out += [f"  {text}" for text in report.contradictions[:limit]]
    if len(report.contradictions) > limit:
        out.append(f"  ... and {len(report.contradictions) - limit} more tensors (--json lists all)")
    shown = report.differences[:limit]
    out += [f"  {d.tensor:<32} {_difference(d)}" for d in shown]
    if len(report.differences) > limit:
        out.append(f"  ... and {len(report.differences) - limit} more tensors (--json lists all)")
    out += [f"  {name:<32} {plain(a)} against {plain(b)}: the same function" for name, (a, b) in report.noted.items()]
    out += [f"  {line}" for line in _casts(report)]
    if report.zero_biases:
        out.append(f"  {len(report.zero_biases)} biases are stored on one side only, and zero there: no difference")
    return out


def _how_same(report: Report) -> str:
    """Return `bit for bit`, or which rounding made the tensors the same."""
    if report.exact:
        return "bit for bit"
    wide = [_wide_first(pair) for pair in dict.fromkeys(report.cast.values())]
    rounding = " and ".join(f"{a} to {b}" for a, b in dict.fromkeys(wide))
    rest = "" if len(report.cast) >= report.tensors else f"bit for bit, but {len(report.cast)} of them "
    return f"{rest}after rounding {rounding}"


def _casts(report: Report) -> list[str]:
    """Return a line for each pair of dtypes: which side holds the rounded tensors."""
    out = []
    for pair in dict.fromkeys(report.cast.values()):
        count = sum(x == pair for x in report.cast.values())
        narrow, (wide, dtype) = ("b", "a") if _wide_first(pair) == pair else ("a", "b"), _wide_first(pair)
        named = f"1 tensor is held in {dtype} by {narrow[0]}, and is {narrow[1]}'s rounded from {wide}"
        many = f"{count} tensors are held in {dtype} by {narrow[0]}, and are {narrow[1]}'s rounded from {wide}"
        out.append(named if count == 1 else many)
    return out


def _wide_first(pair: tuple[str, str]) -> tuple[str, str]:
    """Return the wider dtype, then the narrower: fp32 before bf16; of equal width, the first side's first."""
    first, second = ({"fp64": 8, "fp32": 4}.get(name, 2) for name in pair)
    return pair if first >= second else (pair[1], pair[0])


def _difference(d: Difference) -> str:
    if d.how == "missing":
        return f"missing: {d.a} against {d.b}"
    if d.how == "shape":
        return f"shape: {d.a} against {d.b}{_rows(d)}"
    return f"bits: {_apart(d)} ({d.a} against {d.b}){_confined(d)}"


def _rows(d: Difference) -> str:
    """Return, for vocabularies of different size, which side has more rows and whether the common rows agree."""
    if not d.rows:
        return ""
    words = f"b has {abs(d.rows)} rows {'more' if d.rows > 0 else 'less'} than a"
    if d.rows > 0:
        words += f" ({'zero: its padding leaked' if d.rows_zero else 'not zero'})"
    return f"; {words}, and of the rows of both {_apart(d) if d.elements else 'all are the same'}"


def _apart(d: Difference) -> str:
    words = f"{d.elements:,} of {d.of:,} elements differ"
    if d.dtypes:
        words += " after rounding " + " to ".join(_wide_first(d.dtypes))
    words += "" if d.largest is None else f", at most {d.largest:.3g} apart"
    if d.at:
        words += " at " + ", ".join(f"{name} {i}" for name, i in d.at.items())
    return words + (f", {d.nonfinite} of them NaN or infinite on a side" if d.nonfinite else "")


def _confined(d: Difference) -> str:
    """Return the stored tensors that a difference is confined to, if it is not in all of them."""
    out = []
    for side, pieces, total in (("a", d.a_pieces, d.of_a_pieces), ("b", d.pieces, d.of_pieces)):
        if 0 < len(pieces) < total:
            more = f" and {len(pieces) - SHOWN_PIECES} more" if len(pieces) > SHOWN_PIECES else ""
            out.append(f"; only in {', '.join(pieces[:SHOWN_PIECES])}{more}, of the {total} pieces of {side}")
    return "".join(out)


def of_digests(report: Report) -> dict[str, Any]:
    """Return the comparison of tensors as the report holds it."""
    return report.to_dict() | {"lines": digest_lines(report), "warnings": digest_warnings(report)}


def digest_warnings(report: Report) -> list[str]:
    """Return a warning for each side whose bytes do not match the digests in its manifest."""
    named = {"a": report.a, "b": report.b}
    return [
        f"{named[side]}: the digests of {len(names)} tensors ({', '.join(names[:5])}) in its mconv.json are not those of "
        "its bytes: it changed since mconv made it"
        for side, names in report.stale.items()
        if names
    ]
