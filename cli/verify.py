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
    a: Path | None = None,
    b: Path | None = None,
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

    One checkpoint alone is judged by what it was made from, back to the first source that is still there, at its own
    layout. Without any, the newest in the current folder is.

    Parameters
    ----------
    a
        The reference: a Hugging Face folder, a repository ORG/NAME of the Hub's cache, or a Megatron checkpoint. Without
        B: the checkpoint to judge.
    b
        The checkpoint to judge: a folder or repository of the same kinds.
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

    _check_page(html, overwrite=overwrite)
    if digests:
        _only_digests(asked.given() | {"record": record, "logits": logits})
    _choose(device)
    said: dict[str, Any] = {"iteration": iteration, "vocab_size": vocab_size, "dialect": dialect}
    said["config"] = str(config.resolve()) if config else None
    said["ignore"] = ignoring.names.to_dict()
    pair = _pair(a, b, said)
    candidate = pair.candidate
    kept = reports.check_recordable(candidate, iteration) if record else None
    html = html if os.environ.get("RANK", "0") == "0" else None
    if html:
        html.unlink(missing_ok=True)  # whatever happens now, no old verdict is taken for this one
    proofs: Any = "digests" if digests else "logits" if logits else "both"
    report = pair.judge({"proofs": proofs, "opening": said, **asked.given()})
    if not report:  # a rank other than 0 of somebody's torchrun
        return 0
    _tell(report, json=json)
    if html:
        _write_page(html, report)
    if kept:
        reports.record(kept, report, against=pair.against or report.get("reference", {}).get("name", pair.reference.name))
    return 0 if report["passed"] or report_only else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """What is judged, by what."""

    reference: Path
    candidate: Path
    origin: Any = None
    """The reference as `verify.against` found it, where nobody named it."""
    layout: dict[str, Any] | None = None

    @property
    def against(self) -> str | None:
        """What to call a reference whose folder's name does not say all."""
        return self.origin.named if self.origin else None

    def judge(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the report; {} on a rank other than 0."""
        from mconv.convert import logbook, manifest
        from mconv.verify.against import sides
        from mconv.verify.judge import Options, judge, judge_sides

        if self.origin and self.origin.adapter:
            _only_tensors(asked, self.origin)
            options = Options(proofs="digests", opening=asked["opening"])
            report = judge_sides(sides(self.origin, self.candidate, options.opening), options, show=progress)
        else:
            report = judge(self.reference, self.candidate, Options(**self._laid_out(asked)), show=progress)
        where = _tensors_of(self.candidate, asked["opening"]["iteration"])
        if report and where and manifest.NAME in {path.name for path in where.iterdir()}:
            name = self.against or report.get("reference", {}).get("name", self.reference.name)
            logbook.add(where, "verified", against=name, passed=report["passed"], **report["verdicts"])
        return report

    def _laid_out(self, asked: dict[str, Any]) -> dict[str, Any]:
        if not self.layout or asked["proofs"] == "digests" or "tp" in asked or "pp" in asked:
            return asked
        return {**asked, **_fitting(self.layout)}


def _pair(a: Path | None, b: Path | None, said: dict[str, Any]) -> _Pair:
    """What is to be judged by what: as named, or the newest, and what that was made from. Raises MconvError."""
    if a is not None and b is not None:
        return _Pair(reference=o.local(a), candidate=o.local(b))
    from mconv.cli import choose, gate
    from mconv.verify.against import TRAINED
    from mconv.verify.sides import open_both

    candidate = o.local(a) if a is not None else choose.newest("verify", "checkpoint that mconv made").path
    found = open_both(candidate, candidate, said)[1].checkpoint
    try:
        origin = gate.reference_of(found)
    except MconvError as error:
        more = f"; `mconv verify REFERENCE {candidate}` judges it by what you name"
        if TRAINED in str(error):
            more = (
                f"; what `mconv meg2hf {candidate}` exports is judged by it, and `mconv verify BASE {candidate} "
                "--report-only` shows what training has changed"
            )
        raise type(error)(f"{error}{more}") from error
    choose.say(f"verify: {candidate} against {origin}, what it was made from")
    layout = found.layout
    own = {"tp": layout.tp, "pp": layout.pp, "uneven": layout.uneven} if layout else None
    return _Pair(reference=origin.path, candidate=candidate, origin=origin, layout=own)


def _tensors_of(path: Path, iteration: int | None) -> Path | None:
    """The folder that holds the tensors of a checkpoint, where there is one."""
    from mconv.convert.opening import iteration_folder

    try:
        return path if (path / "config.json").is_file() else iteration_folder(path, iteration)
    except MconvError:
        return None


def _only_tensors(asked: dict[str, Any], origin: Any) -> None:
    """Refuse what a merge made anew, which is no folder that a program loads, cannot be asked."""
    mixed = [f"--{name}" for name, value in asked.items() if name not in ("proofs", "opening") and value]
    if asked["proofs"] == "logits" or mixed:
        named = ", ".join(mixed) or "--logits"
        raise MconvError(f"{named}: {origin} is made in memory and compared tensor by tensor; no model runs")


def _fitting(layout: dict[str, Any]) -> dict[str, Any]:
    """The layout to judge at: the checkpoint's own, or one rank where GPUs are too few for it; it is said."""
    import torch

    from mconv.cli import choose
    from mconv.train.parallel import world

    needed = layout["tp"] * layout["pp"]
    choose.say(f"verify: at its own layout, tp {layout['tp']} x pp {layout['pp']}")
    if needed == 1 or world()[1] > 1:
        return layout
    if torch.cuda.is_available() and torch.cuda.device_count() < needed:
        choose.say(
            f"note: {needed} ranks need as many GPUs, and here are {torch.cuda.device_count()}: judged at tp 1 x pp 1"
        )
        return {"tp": 1, "pp": 1}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not torch.cuda.is_available() and cores < needed:
        choose.say(f"note: {needed} ranks take turns on {cores} cores here; --tp 1 --pp 1 judges the same on one")
    return layout


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
