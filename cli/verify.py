"""`mconv verify`: the check that fails the process."""

import json as jsonlib
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from mconv.cli import options as o
from mconv.cli.terminal import progress
from mconv.errors import MconvError

Device = Annotated[
    Literal["auto", "cpu", "cuda"], Parameter(help="Where models run. Default: on a GPU where there is one.")
]
SPREAD = "of the Megatron side. Default: those of an mp_rank checkpoint, 1 for torch_dist."
LENGTH = (
    "Positions in a row. Default: all that the model has, up to 1024, fewer for a large model; one row then leaps ahead "
    "to the last position."
)
BATCH = "Rows. The last is real text where there is a tokenizer, the others are random ids. Default 3."


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How what models compute is compared: nothing that a comparison of tensors could use."""

    tp: Annotated[int | None, Parameter(help=f"Tensor-parallel ranks {SPREAD}")] = None
    pp: Annotated[int | None, Parameter(help=f"Pipeline stages {SPREAD}")] = None
    sequence_parallel: Annotated[
        bool, Parameter(help="Run the Megatron side with sequence parallelism.", negative=())
    ] = False
    length: Annotated[int | None, Parameter(help=LENGTH)] = None
    batch: Annotated[int | None, Parameter(help=BATCH)] = None
    seed: Annotated[
        int | None, Parameter(help="Of the random ids; each row has its own, counted from this one. Default 1234.")
    ] = None
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        Parameter(help="Of the arithmetic, whatever the weights are. Default fp32, which sees most."),
    ] = None
    streamed: Annotated[
        bool | None, Parameter(help="Hold one layer in memory at a time. Default: when a model does not fit.")
    ] = None
    generate: Annotated[int, Parameter(help="Compare this many greedy tokens after each of a few prompts.")] = 0

    def given(self) -> dict[str, Any]:
        """What was asked for, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


ASKED = Asked()


def verify(
    a: Path,
    b: Path,
    *,
    digests: o.Flag = False,
    logits: o.Flag = False,
    asked: Annotated[Asked, Parameter(name="*")] = ASKED,
    device: Device = "auto",
    iteration: o.Iteration = None,
    vocab_size: o.VocabSize = None,
    dialect: o.Dialect = None,
    config: o.Config = None,
    record: o.Flag = False,
    report_only: o.Flag = False,
    json: o.Json = False,
    html: Path | None = None,
    overwrite: o.Flag = False,
    ignoring: o.Ignores = o.IGNORING,
) -> int:
    """Decide whether two checkpoints are the same model: exit 0 if they are, 1 if not, 2 if it cannot be judged.

    Parameters
    ----------
    a
        The reference: a Hugging Face folder, a repository ORG/NAME of the Hub's cache, or a Megatron checkpoint.
    b
        The checkpoint to judge, likewise.
    digests
        Only compare the tensors themselves, in one pass and without a model.
    logits
        Only compare what the models compute.
    record
        Keep the verdict in the manifest of B, from where it goes into the model card.
    report_only
        Exit 0 whatever the verdict: to look at what training has changed, say.
    html
        Write the report as one page that needs nothing else. A page of an earlier run is gone as soon as this one begins.
    overwrite
        Let --html replace a file that is no such page.
    """
    from mconv.verify import report as reports
    from mconv.verify.judge import Options, judge

    _check_page(html, overwrite=overwrite)
    if digests:
        _only_digests(asked.given() | {"record": record, "logits": logits})
    _choose(device)
    said: dict[str, Any] = {"iteration": iteration, "vocab_size": vocab_size, "dialect": dialect}
    said["config"] = str(config.resolve()) if config else None
    said["ignore"] = ignoring.names.to_dict()
    reference, candidate = o.local(a), o.local(b)
    kept = reports.check_recordable(candidate, iteration) if record else None
    html = html if os.environ.get("RANK", "0") == "0" else None
    if html:
        html.unlink(missing_ok=True)  # whatever happens now, no old verdict is taken for this one
    proofs: Any = "digests" if digests else "logits" if logits else "both"
    report = judge(reference, candidate, Options(proofs=proofs, opening=said, **asked.given()), show=progress)
    if not report:  # a rank other than 0 of somebody's torchrun
        return 0
    _tell(report, json=json)
    if html:
        _write_page(html, report)
    if kept:
        reports.record(kept, report, against=report.get("reference", {}).get("name", reference.name))
    return 0 if report["passed"] or report_only else 1


def _tell(report: dict[str, Any], *, json: bool) -> None:
    """The report, for people or programs; warnings beside it."""
    from mconv.verify import report as reports

    for warning in (report["digests"] or {}).get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    whole = jsonlib.dumps(_finite(reports.as_json(report)), indent=1, allow_nan=False) if json else None
    print(whole or "\n".join(reports.lines(report)))


def _only_digests(given: dict[str, Any]) -> None:
    """Refuse what is of the other proof."""
    if mixed := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
        raise MconvError(f"{', '.join(mixed)}: of a comparison of logits; --digests compares the tensors themselves")


def _check_page(file: Path | None, *, overwrite: bool) -> None:
    """Refuse to write where the page cannot be, or where something else is. Raises MconvError."""
    if file is None:
        if overwrite:
            raise MconvError("--overwrite: of --html, which is not given")
        return
    from mconv.verify import page

    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise MconvError(f"--html {file}: {file.parent} is not a folder to write in")
    if file.is_dir():
        raise MconvError(f"--html {file}: is a folder; name a file")
    if not overwrite and file.exists() and not page.is_ours(file):
        raise MconvError(f"--html {file}: is there, and no page of mconv verify; --overwrite replaces it")


def _write_page(file: Path, report: dict[str, Any]) -> None:
    from mconv.convert.place import write_whole
    from mconv.verify import page

    write_whole(file, page.render(report))


def _choose(device: str) -> None:
    """Decide where models run, before torch looks for a GPU."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise MconvError("--device cuda: torch sees no CUDA device here")


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
