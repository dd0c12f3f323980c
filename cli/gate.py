"""Checks before `mconv train --verify-first` and `mconv push`: is this checkpoint what it should be?"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.cli import located
from mconv.cli.terminal import progress
from mconv.errors import MconvError
from mconv.extras import MissingPackage

if TYPE_CHECKING:
    from mconv.convert.checkpoint.model import Checkpoint, SourceModel
    from mconv.train.config import TrainConfig
    from mconv.verify.origin import Origin


# ---- before training -------------------------------------------------------------------------------------------------
def before_training(config: "TrainConfig") -> bool:
    """Return whether training may begin, after judging `load` against its source. Every rank calls it.

    Raises MconvError where it cannot be judged.
    """
    from mconv.convert.checkpoint.open import open_checkpoint
    from mconv.convert.folders.staging import has_saved
    from mconv.train.checkpoints.finished import finished
    from mconv.train.megatron import collectives
    from mconv.train.megatron.collectives import from_rank_0
    from mconv.train.model.architecture import passes

    if collectives.on_rank_0(lambda: finished(config)):
        return True  # nothing will be trained
    load = Path(str(config.load))
    if not load.is_dir() and has_saved(config.save):
        _say(f"not verified: {load} no longer exists, and the run continues from its own checkpoint in {config.save}")
        return True
    found = open_checkpoint(load, vocab_size=config.vocab_size, ignore=passes(config))
    if config.verify_against is None and found.is_pretrained and found.manifest is None:
        _say(f"nothing to verify: {load} is a model as it was published, not a conversion")
        return True
    with _with_advice("name what it must equal with --verify-against, or leave --verify-first out"):
        reference = reference_of(found, config.verify_against)
        report = judged(reference, found, **_layout(config, reference, found))
    if report:  # rank 0
        print("\n".join(report["lines"][: 1 if report["passed"] else None]), flush=True)
    if not (passed := from_rank_0(bool(report.get("passed")))):
        _say(f"{load} is not the same model as {reference}: nothing was trained")
    return passed


@contextmanager
def one_world(config: "TrainConfig") -> Iterator[None]:
    """Join torchrun's ranks once for judging and training: they could not join a second time."""
    if not config.verify_first or os.environ.get("WORLD_SIZE", "1") == "1":  # imports nothing
        yield
        return
    from mconv.train.megatron.parallel import init, parallel_of, shutdown

    init(parallel_of(config), seed=config.seed)
    try:
        yield
    finally:
        shutdown()


def _layout(config: "TrainConfig", reference: "Origin", found: "Checkpoint") -> dict[str, Any]:
    """Return the options to judge at the run's layout; two Hugging Face folders have none."""
    from mconv.train.megatron.parallel import parallel_of
    from mconv.train.model.architecture import passes

    hints: dict[str, Any] = {} if config.vocab_size is None else {"vocab_size": config.vocab_size}
    hints["ignore"] = passes(config).to_dict()
    if found.format == "hf" and (reference.path / "config.json").is_file():
        return {"hints": hints}
    sizes = {name: getattr(config, name) for name in ("tp", "pp", "sequence_parallel")}
    return {**sizes, "uneven": parallel_of(config).uneven, "hints": hints}


def _say(line: str) -> None:
    from mconv.train.megatron.parallel import world

    if world()[0] == 0:
        print(line, flush=True)


# ---- before publishing -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Verdict on a folder that is to be published."""

    state: str
    """`recorded` in the manifest and still valid; `judged` just now; `tensors` compared only (a dry run);
    `unverified`.
    """
    passed: bool
    against: str | None
    lines: tuple[str, ...]
    """The finding in words."""
    verdicts: tuple[dict[str, Any], ...]
    """All verdicts on these very bytes, for the card."""

    def as_json(self) -> dict[str, Any]:
        return {"state": self.state, "passed": self.passed, "against": self.against, "lines": list(self.lines)}


def before_publishing(folder: Path, *, against: Path | None, rehearsal: bool, record: bool) -> Finding:
    """Return a verdict on `folder`: the last one in its manifest if it passed and is valid, else a new one.

    `rehearsal` compares only tensors. Raises MconvError if there is nothing to verify the folder against.
    """
    from mconv.convert.checkpoint.open import open_checkpoint
    from mconv.verify.recorded_verdicts import valid_verdicts

    with _with_advice(
        f"`mconv verify CHECKPOINT {folder} --record` leaves a verdict that counts; --unverified publishes without one"
    ):
        found = open_checkpoint(folder)
        with progress(_nbytes(found), "reading weights to check recorded verdicts") as advance:
            holding = tuple(valid_verdicts(found, progress=advance))
        if not holding and (found.manifest or {}).get("verified"):
            print(
                f"note: the verdict in {folder}/mconv.json is about other weights, so it does not count", file=sys.stderr
            )
        if against is None and holding and holding[-1].get("passed") is True:
            return _recorded(holding)
        reference = reference_of(found, None if against is None else str(against))
        if rehearsal:
            return _rehearsed(reference, found, holding)
        report = judged(reference, found, proofs=_proofs(reference, found))
    return _judgement(report, found, holding, record=record)


def _proofs(reference: "Origin", found: "Checkpoint") -> str:
    """Return the proofs that a push asks for: both, or tensors only if the packages that run the models are missing."""
    from mconv.verify.judge import check_installed
    from mconv.verify.origin import open_against

    if reference.anew:
        return "digests"
    try:
        one, two = open_against(reference, found.path, {})
        check_installed(one.checkpoint, two.checkpoint)
    except MissingPackage as error:
        print(f"note: only tensors are compared: {str(error).partition(';')[0]}", file=sys.stderr)
        return "digests"
    return "both"


def of_an_adapter(folder: Path, *, asked: bool) -> Finding:
    """Return the finding on an adapter, which nothing can be compared with. `asked`: the user wants a verdict."""
    if asked:
        raise MconvError(
            f"{folder} is an adapter, which cannot be verified against anything: drop --against and --record; the model "
            "that `mconv lora merge` makes of it and its base can be verified"
        )
    line = f"{folder} is an adapter: its tensors are complete and finite; there is nothing to verify it against"
    return Finding(state="adapter", passed=True, against=None, lines=(line,), verdicts=())


def without_a_verdict(folder: Path) -> Finding:
    """Return the finding of --unverified. Verdicts on other weights do not reach the card."""
    from mconv.convert.checkpoint.open import open_checkpoint
    from mconv.verify.recorded_verdicts import valid_verdicts

    try:
        found = tuple(valid_verdicts(open_checkpoint(folder)))
    except MconvError:  # mconv cannot read it, so no verdict on it can be checked
        found = ()
    return Finding(state="unverified", passed=False, against=None, lines=("not verified (--unverified)",), verdicts=found)


def _recorded(holding: tuple[dict[str, Any], ...]) -> Finding:
    against = str(holding[-1].get("against", "?"))
    line = f"verified against {against} before; the weights have not changed since"
    return Finding(state="recorded", passed=True, against=against, lines=(line,), verdicts=holding)


def _rehearsed(reference: "Origin", found: "Checkpoint", holding: tuple[dict[str, Any], ...]) -> Finding:
    """Return the finding of a dry run, which compares only tensors."""
    report = judged(reference, found, proofs="digests")
    later = "tensors" if reference.anew else "tensors now; a push also compares what the models compute"
    line = f"to be verified against {reference}: {later}"
    return Finding(
        state="tensors", passed=report["passed"], against=report["against"], lines=(line, *report["lines"]),
        verdicts=holding,
    )  # fmt: skip


def _judgement(
    report: dict[str, Any], found: "Checkpoint", holding: tuple[dict[str, Any], ...], *, record: bool
) -> Finding:
    from mconv.verify import report as reports

    against = report["against"]
    verdict = reports.verdict_of(report, found, against=against)
    if record:
        reports.keep(found.path, verdict)
    return Finding(
        state="judged", passed=report["passed"], against=against, lines=tuple(report["lines"]),
        verdicts=(*holding, verdict),
    )  # fmt: skip


# ---- shared ----------------------------------------------------------------------------------------------------------
def reference_of(found: "SourceModel", named: str | None = None) -> "Origin":
    """Return what a checkpoint must equal: the named one, else what it was made from. Raises MconvError."""
    from mconv.verify.origin import Origin, origin_of

    if named is not None:
        return Origin(path=located.local(Path(named)))
    try:
        return origin_of(found)
    except MconvError:
        if (cached := _in_the_cache(found)) is None:
            raise
        return Origin(path=cached)


def _in_the_cache(found: "SourceModel") -> Path | None:
    """Return the Hub's cached folder of the repository that a checkpoint was converted from, without training since."""
    from mconv.convert.checkpoint.base_name import CHANGED
    from mconv.hub import fetch

    made = found.manifest or {}
    steps = {step.get("step") for step in made.get("history", []) if isinstance(step, dict)}
    name = made.get("source", {}).get("name")
    if not steps.isdisjoint(CHANGED) or not isinstance(name, str) or name.count("/") != 1:
        return None
    if name.endswith(("/release", "/")) or "/iter_" in name:  # a Megatron root and its iteration
        return None
    try:
        return fetch.resolve(name, offline=True)
    except MconvError:
        return None


def judged(reference: "Origin", found: "Checkpoint", **asked: Any) -> dict[str, Any]:
    """Return the report with its lines; {} on ranks other than 0. A new merge is compared tensor by tensor."""
    from mconv.convert.folders import logbook
    from mconv.verify import report as reports
    from mconv.verify.judge import Options, judge_sides
    from mconv.verify.origin import open_against
    from mconv.verify.recipes.judge import judge

    if reference.recipe:
        report = judge(found, show=progress)
        against = reference.recipe
        logbook.add(found.path, "verified", against=against, passed=report["passed"], **report["verdicts"])
        return {**report, "lines": reports.lines(report), "against": against}
    if reference.adapters:
        asked = {"proofs": "digests", "hints": asked.get("hints", {})}
    options = Options(**asked)
    opened = open_against(reference, found.path, options.hints)
    report = judge_sides(opened, options, show=progress)
    if not report:
        return {}
    for warning in (report.get("digests") or {}).get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    against = reference.label or opened[0].checkpoint.name
    if found.manifest is not None:
        logbook.add(found.path, "verified", against=against, passed=report["passed"], **report["verdicts"])
    return {**report, "lines": reports.lines(report), "against": against}


def _nbytes(found: "Checkpoint") -> int:
    from mconv.verify.digests import nbytes

    return nbytes(found)


@contextmanager
def _with_advice(what: str) -> Iterator[None]:
    """Add advice to an error that prevents a judgement. A verdict needs no such advice."""
    try:
        yield
    except MconvError as error:
        if error.exit_code == 1:
            raise
        raise type(error)(f"{error}; {what}") from error
