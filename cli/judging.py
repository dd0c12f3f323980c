"""The two checkpoints of `mconv verify`: which is the reference, at which layout they run, what is said meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.cli.terminal import before_slow, progress
from mconv.errors import MconvError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A checkpoint to judge, and its reference."""

    reference: Path
    candidate: Path
    origin: Any = None
    """The reference as `verify.against` found it, where nobody named it."""

    @property
    def against(self) -> str | None:
        """What to call a reference whose folder's name does not say all."""
        return self.origin.named if self.origin else None

    def judge(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the report; {} on a rank other than 0."""
        from mconv.verify import blended
        from mconv.verify.against import sides
        from mconv.verify.judge import Options, check_installed, judge_sides
        from mconv.verify.sides import open_both, opened

        sample = asked.pop("sample", None)
        if sample is not None and not (self.origin and self.origin.recipe):
            raise MconvError("--sample is of a blend, judged by its own recipe: give the blend alone, or leave it out")
        if self.origin and self.origin.recipe:
            _only_tensors(asked, self.origin)
            report = blended.judge(opened(self.candidate, asked["opening"]), sample=sample, show=_show)
            if sample is None:
                self._log(report, asked)
            return report
        merged = self.origin is not None and self.origin.adapter is not None
        if merged:
            _only_tensors(asked, self.origin)
            options = Options(proofs="digests", opening=asked["opening"])
            both = sides(self.origin, self.candidate, options.opening)
        else:
            options = Options(**asked | ({"trained": False} if self.origin and not asked["trained"] else {}))
            both = open_both(self.reference, self.candidate, options.opening)
            if options.proofs != "digests":
                check_installed(both[0].checkpoint, both[1].checkpoint)
            _say_layout(both, options, found=self.origin is not None)
        report = judge_sides(both, options, show=_show)
        self._log(report, asked)
        return report

    def _log(self, report: dict[str, Any], asked: dict[str, Any]) -> None:
        """Add the verdict to the logbook beside the manifest of what was judged, if it has one."""
        from mconv.convert import logbook, manifest

        where = tensors_of(self.candidate, asked["opening"]["iteration"])
        if report and where and manifest.NAME in {path.name for path in where.iterdir()}:
            name = self.against or report.get("reference", {}).get("name", self.reference.name)
            logbook.add(where, "verified", against=name, passed=report["passed"], **report["verdicts"])


@contextmanager
def _show(total: int, doing: str) -> Iterator[Callable[[int], None]]:
    """Say on a terminal what begins, then show how far it has come."""
    before_slow(f"verify: {doing}")
    with progress(total, doing.partition(":")[0]) as advance:
        yield advance


def _say_layout(sides: tuple[Any, Any], options: Any, *, found: bool) -> None:
    """Say at which layout a model will run; where nobody named the reference (`found`), in a pipe too."""
    from mconv.cli import choose
    from mconv.verify import layouts

    a, b = (side.checkpoint for side in sides)
    if options.proofs == "digests" or layouts.own_layout(a, b) is None or options.tp or options.pp:
        return
    ran = layouts.choose(a, b, tp=None, pp=None, uneven=options.uneven)
    say = choose.say if found else before_slow
    if b.layout and (ran.tp, ran.pp) == (b.layout.tp, b.layout.pp):
        say(f"verify: at its own layout, tp {ran.tp} x pp {ran.pp}")
    for note in ran.notes:
        say(f"note: {note}")


def pair_of(a: Path | None, b: Path | None, said: dict[str, Any]) -> Pair:
    """Return what is judged by what: as named, or the newest and what that was made from. Raises MconvError."""
    if a is not None and b is not None:
        return Pair(reference=a, candidate=b)
    from mconv.cli import choose, gate
    from mconv.verify.against import TRAINED
    from mconv.verify.sides import open_both

    candidate = a if a is not None else choose.newest("verify", "checkpoint that mconv made").path
    found = open_both(candidate, candidate, said)[1].checkpoint
    try:
        origin = gate.reference_of(found)
    except MconvError as error:
        more = f"; name the reference: mconv verify REFERENCE {candidate}"
        if TRAINED in str(error):
            more = (
                f"; what `mconv meg2hf {candidate}` exports is judged by it, and `mconv verify BASE {candidate} "
                "--report-only` shows what training has changed"
            )
        raise type(error)(f"{error}{more}") from error
    choose.say(f"verify: {candidate} against {origin}, what it was made from")
    return Pair(reference=origin.path, candidate=candidate, origin=origin)


def tensors_of(path: Path, iteration: int | None) -> Path | None:
    """Return the folder that holds the tensors of a checkpoint, or None where there is none."""
    from mconv.convert.opening import iteration_folder

    try:
        return path if (path / "config.json").is_file() else iteration_folder(path, iteration)
    except MconvError:
        return None


def _only_tensors(asked: dict[str, Any], origin: Any) -> None:
    """Refuse options about logits where the reference is a merge made in memory, which no program can load."""
    mixed = flags_of({name: value for name, value in asked.items() if name not in ("proofs", "opening")})
    if asked["proofs"] == "logits" or mixed:
        named = ", ".join(mixed) or "--logits"
        raise MconvError(
            f"{named}: the reference, {origin}, is made in memory and compared tensor by tensor, and no model is run; "
            f"leave {named} out"
        )


def flags_of(given: dict[str, Any]) -> list[str]:
    """Return the options that were given, as they were typed."""
    return [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in given.items() if value
    ]
