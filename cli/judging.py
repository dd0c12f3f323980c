"""The two checkpoints of `mconv verify`: which is the reference, and at which layout they run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mconv.cli.terminal import before_slow, progress
from mconv.errors import MconvError


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """A checkpoint to judge, and its reference."""

    reference: Path
    candidate: Path
    origin: Any = None
    """The reference as `verify.origin` found it; None if the user named it."""

    @property
    def against(self) -> str | None:
        """Label of a reference whose folder's name is not enough."""
        return self.origin.label if self.origin else None

    def judge(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the report; {} on ranks other than 0."""
        from mconv.verify.checkpoints import open_both
        from mconv.verify.judge import Options, check_installed, judge_sides
        from mconv.verify.origin import open_against
        from mconv.verify.recipes.judge import judge

        sample = asked.pop("sample", None)
        if sample is not None and not (self.origin and self.origin.recipe):
            raise MconvError(
                "--sample is of a model judged by its own recipe (blend, layers, resize): name that alone, or leave it"
            )
        if self.origin and self.origin.recipe:
            _only_tensors(asked, self.origin)
            candidate = open_both(self.candidate, self.candidate, asked["hints"])[1].checkpoint
            report = judge(candidate, sample=sample, show=_show)
            if sample is None:
                self._log(report, asked)
            return report
        merged = self.origin is not None and bool(self.origin.adapters)
        if merged:
            _only_tensors(asked, self.origin)
            options = Options(proofs="digests", hints=asked["hints"])
            both = open_against(self.origin, self.candidate, options.hints)
        else:
            options = Options(**asked | ({"trained": False} if self.origin and not asked["trained"] else {}))
            both = open_both(self.reference, self.candidate, options.hints)
            if options.proofs != "digests":
                check_installed(both[0].checkpoint, both[1].checkpoint)
            _say_layout(both, options, found=self.origin is not None)
        report = judge_sides(both, options, show=_show)
        self._log(report, asked)
        return report

    def _log(self, report: dict[str, Any], asked: dict[str, Any]) -> None:
        """Add the verdict to the logbook of the judged checkpoint, if mconv made it."""
        from mconv.convert.folders import logbook, manifest

        where = tensors_of(self.candidate, asked["hints"]["iteration"])
        if report and where and manifest.NAME in {path.name for path in where.iterdir()}:
            name = self.against or report.get("reference", {}).get("name", self.reference.name)
            logbook.add(where, "verified", against=name, passed=report["passed"], **report["verdicts"])


@contextmanager
def _show(total: int, doing: str) -> Iterator[Callable[[int], None]]:
    """Print on a terminal what begins, then show its progress."""
    before_slow(f"verify: {doing}")
    with progress(total, doing.partition(":")[0]) as advance:
        yield advance


def _say_layout(sides: tuple[Any, Any], options: Any, *, found: bool) -> None:
    """Print the layout at which a model will run; in a pipe only if the reference was `found`, not named."""
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


def pair_of(a: Path | None, b: Path | None, said: dict[str, Any]) -> JudgedPair:
    """Return the checkpoint to judge and its reference: as named, else the newest and what it was made from."""
    if a is not None and b is not None:
        return JudgedPair(reference=a, candidate=b)
    from mconv.cli import choose, gate
    from mconv.convert.folders.manifest import RECIPES
    from mconv.verify.checkpoints import open_both
    from mconv.verify.origin import TRAINED

    candidate = a if a is not None else choose.newest("verify", "checkpoint that mconv made").path
    found = open_both(candidate, candidate, said)[1].checkpoint
    try:
        origin = gate.reference_of(found)
    except MconvError as error:
        recipe = any(key in (found.manifest or {}) for key in RECIPES)  # it equals no other model that could be named
        more = "" if recipe else f"; name the reference: mconv verify REFERENCE {candidate}"
        if TRAINED in str(error):
            more = (
                f"; it is itself the reference for what `mconv meg2hf {candidate}` exports, and `mconv verify BASE "
                f"{candidate} --report-only` shows what training has changed"
            )
        raise type(error)(f"{error}{more}") from error
    choose.say(f"verify: {candidate} against {origin}, what it was made from")
    return JudgedPair(reference=origin.path, candidate=candidate, origin=origin)


def tensors_of(path: Path, iteration: int | None) -> Path | None:
    """Return the folder that holds the tensors of a checkpoint, or None where there is none."""
    from mconv.convert.checkpoint.open import iteration_folder

    try:
        return path if (path / "config.json").is_file() else iteration_folder(path, iteration)
    except MconvError:
        return None


def _only_tensors(asked: dict[str, Any], origin: Any) -> None:
    """Refuse options about logits if the reference is a merge in memory, which no program can load."""
    mixed = flags_of({name: value for name, value in asked.items() if name not in ("proofs", "hints")})
    if asked["proofs"] == "logits" or mixed:
        named = ", ".join(mixed) or "--logits"
        raise MconvError(
            f"{named}: the reference, {origin}, is a merge in memory, compared tensor by tensor without running a model; "
            f"leave {named} out"
        )


def flags_of(given: dict[str, Any]) -> list[str]:
    """Return the given options as typed."""
    return [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in given.items() if value
    ]
