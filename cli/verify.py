"""`mconv verify`: the check that fails the process."""

import json as jsonlib
import math
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from mconv.cli import located
from mconv.cli import options as o
from mconv.cli.judging import JudgedPair, flags_of, pair_of, tensors_of
from mconv.cli.terminal import before_slow
from mconv.errors import FormatError, MconvError

Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    Parameter(help="Device the models run on. Default: a GPU if there is one, else the CPU."),
]
RECORDED = "Default: the recorded layout if that many ranks are cheap here, else 1; the report says which was proven."
LENGTH = (
    "Positions per row. Default: the model's maximum, at most 1024, fewer for a large model; the positions of one row "
    "then jump ahead up to the last."
)
BATCH = "Rows. The last row is real text if the checkpoint has a tokenizer; the others are random token ids. Default: 3."


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitOptions:
    """Options on how logits are compared; --digests uses none of them."""

    tp: Annotated[int | None, Parameter(help=f"Tensor-parallel ranks to run a Megatron checkpoint on. {RECORDED}")] = None
    pp: Annotated[int | None, Parameter(help="Pipeline stages to run a Megatron checkpoint on. Default: as --tp.")] = None
    sequence_parallel: Annotated[
        bool, Parameter(help="Run a Megatron checkpoint with sequence parallelism. Needs --tp 2 or more.", negative=())
    ] = False
    length: Annotated[int | None, Parameter(help=LENGTH)] = None
    batch: Annotated[int | None, Parameter(help=BATCH)] = None
    seed: Annotated[
        int | None, Parameter(help="Seed of the first row's random token ids; each further row adds 1. Default: 1234.")
    ] = None
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        Parameter(
            help="Dtype of the computation, independent of the weights' dtype. fp32 (default) is the most sensitive."
        ),
    ] = None
    streamed: Annotated[
        bool | None,
        Parameter(help="Hold one layer in memory at a time, or not. Default: only if a model does not fit in memory."),
    ] = None
    generate: Annotated[int, Parameter(help="Also compare this many greedy tokens after each of four prompts.")] = 0

    def given(self) -> dict[str, Any]:
        """Return the options that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Options on the report, and on what is kept of it."""

    record: Annotated[
        bool,
        Parameter(
            help="Keep the verdict in the manifest of the judged checkpoint, from which `mconv push` writes it into the "
            "model card.",
            negative=(),
        ),
    ] = False
    report_only: Annotated[bool, Parameter(help="Exit with 0 whatever the verdict is.", negative=())] = False
    json: o.Json = False
    html: Annotated[
        Path | None,
        Parameter(help="Write the report as a self-contained HTML page. An earlier page at this path is removed first."),
    ] = None
    overwrite: Annotated[
        bool, Parameter(help="Let --html replace a file that is not a page of mconv verify.", negative=())
    ] = False


LOGITS, OUTPUT = LogitOptions(), Output()


def verify(
    a: Path | None = None,
    b: Path | None = None,
    *,
    digests: o.Flag = False,
    logits: o.Flag = False,
    asked: Annotated[LogitOptions, o.Group] = LOGITS,
    device: Device = "auto",
    trained: o.Flag = False,
    sample: int | None = None,
    output: Annotated[Output, o.Group] = OUTPUT,
    reading: o.ReadingGroup = o.READING,
) -> int:
    """Decide whether two checkpoints are the same model. Exit code 0: they are. 1: they are not. 2: not judged.

    With one checkpoint, the reference is the earliest checkpoint it was converted from that still exists. With none, the
    newest checkpoint in the current folder is judged.

    Parameters
    ----------
    a
        The reference: a Hugging Face folder, a repository ORG/NAME in the Hub's cache, or a Megatron checkpoint. If B is
        not given, the checkpoint to judge.
    b
        The checkpoint to judge: a folder or repository of the same kinds.
    digests
        Compare only the tensors, in one pass over the files and without running a model.
    logits
        Compare only what the models compute.
    trained
        Say that B is A after training: the report then measures how much changed and looks for no fault. The manifests of
        checkpoints that mconv made say so themselves.
    sample
        Of a model judged by its own recipe (blend, layers, resize): look at this many of its tensors. Default: all.
    """
    _check_page(output)
    if output.record and sample is not None:
        raise MconvError("--record keeps a verdict on all tensors, which a sample is not: leave --sample out")
    if digests:
        _only_digests(asked.given() | {"record": output.record, "logits": logits})
    a, b = (_found(path, iteration=reading.iteration) for path in (a, b))
    before_slow("verify: loading torch")
    _choose(device)
    pair = pair_of(a, b, reading.hints)
    proofs = "digests" if digests else "logits" if logits else "both"
    values = {"proofs": proofs, "hints": reading.hints, "trained": True if trained else None, **asked.given()}
    values |= {} if sample is None else {"sample": sample}
    passed = _judge(pair, values, output)
    if passed and not output.json and (line := _next_line(pair.candidate, reading.iteration)):
        print(line)
    return 1 if passed is False and not output.report_only else 0


def _judge(pair: JudgedPair, asked: dict[str, Any], output: Output) -> bool | None:
    """Judge, show and keep the report; return whether it passed, None on ranks other than 0 of a torchrun."""
    from mconv.verify import report as reports

    kept = reports.check_recordable(pair.candidate, asked["hints"]["iteration"]) if output.record else None
    html = output.html if os.environ.get("RANK", "0") == "0" else None
    if html:
        html.unlink(missing_ok=True)  # from here on, no old verdict can be taken for this one
    report = pair.judge(asked)
    if not report:
        return None
    _show(report, json=output.json)
    if html:
        _write_page(html, report)
    if kept:
        name = report.get("reference", {}).get("name", pair.reference.name)
        reports.record(kept, report, against=pair.against or name)
    return bool(report["passed"])


def _found(path: Path | None, *, iteration: int | None) -> Path | None:
    """Return a path, or the cached folder of a repository ORG/NAME, before torch is imported.

    Raises FormatError for a folder without a checkpoint, judged by the names in it.
    """
    if path is None:
        return None
    from mconv.convert.folders.recognize import explain, what_is

    if not path.exists() and what_is(path).kind == "unfinished":  # of a name with a slash, which could be a repository's
        raise FormatError(explain(path))
    try:
        found = located.local(path)
    except MconvError as error:
        raise FormatError(
            f"{path} is not a folder, and no whole repository of that name is in the Hub's cache; "
            f"`mconv pull {path} FOLDER` fetches one"
        ) from error
    what = what_is(found)
    if not found.is_dir() or not (what.readable or what.kind == "hf-odd" or iteration is not None):
        raise FormatError(explain(found))
    return found


def _next_line(candidate: Path, iteration: int | None) -> str | None:
    """Return the command that usually follows when a checkpoint that mconv made has passed, or None."""
    from mconv.cli import choose
    from mconv.convert.folders import manifest

    where = tensors_of(candidate, iteration)
    if (made := manifest.read(where) if where else None) is None:
        return None
    steps = {step.get("step") for step in made.get("history", []) if isinstance(step, dict)}
    path = shlex.quote(str(choose.near(candidate)))
    if (candidate / "config.json").is_file():
        return f"next: mconv push {path}"
    return f"next: mconv meg2hf {path}" if "train" in steps else f"next: mconv train --load {path} --data DATA --save RUN"


def _show(report: dict[str, Any], *, json: bool) -> None:
    """Print the report for people or for programs, and its warnings to stderr."""
    from mconv.verify import report as reports

    for warning in (report["digests"] or {}).get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    whole = jsonlib.dumps(_finite(reports.as_json(report)), indent=1, allow_nan=False) if json else None
    print(whole or "\n".join(reports.lines(report)))


def _only_digests(given: dict[str, Any]) -> None:
    """Refuse options about logits beside --digests. Raises MconvError."""
    if mixed := ", ".join(flags_of(given)):
        raise MconvError(f"{mixed} cannot be used with --digests, which compares tensors and runs no model")


def _check_page(output: Output) -> None:
    """Refuse a page that cannot be written, or whose place another file has. Raises MconvError."""
    file = output.html
    if file is None:
        if output.overwrite:
            raise MconvError("--overwrite replaces the file that --html names; give --html FILE with it, or leave it out")
        return
    from mconv.verify import page

    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise MconvError(f"--html {file}: {file.parent} is not a folder that can be written to; choose another")
    if file.is_dir():
        raise MconvError(f"--html {file} is a folder; name a file in it")
    if not output.overwrite and file.exists() and not page.is_ours(file):
        raise MconvError(
            f"--html {file} exists and is not a page of mconv verify; choose another file, or replace it with --overwrite"
        )


def _write_page(file: Path, report: dict[str, Any]) -> None:
    from mconv.convert.folders.staging import write_whole
    from mconv.verify import page

    write_whole(file, page.render(report))


def _choose(device: str) -> None:
    """Choose where models run, before torch looks for a GPU."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise MconvError("--device cuda: torch sees no CUDA device here")


def _finite(value: Any) -> Any:
    """Return a value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
