"""The verdict on two checkpoints: do they hold the same tensors and compute the same function? Used by `mconv verify`.

report = judge(Path("hf"), Path("megatron"), Options(tp=2))
report["passed"]                                              # docs/verify-report.md describes the report
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mconv import extras
from mconv.convert.checkpoint.model import SourceModel
from mconv.errors import CheckFailed, LayoutError, MconvError, refuse
from mconv.shard.layout import padded_vocab
from mconv.shard.stages import EVEN, Uneven
from mconv.train.launch import ranks
from mconv.train.megatron import gate
from mconv.train.megatron.parallel import Parallel, world
from mconv.train.model.checks import problems
from mconv.verify import digests, environment, layouts, probes, training, training_lines
from mconv.verify import report as reports
from mconv.verify.checkpoints import Hints, Side, open_both
from mconv.verify.compare import NONFINITE
from mconv.verify.diagnosis.explain import explain
from mconv.verify.progress import ShowProgress, report_to, silent
from mconv.verify.request import Request
from mconv.verify.specs import in_words, incomparable, spec_differences

PRELOAD = ("mconv.train.megatron.imports", "mconv.train.model.engine", "mconv.verify.logits")
"""Modules that every rank imports."""
SCHEMA = 1
"""Version of the report's fields. Under one number fields may be added, never changed or removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a judgement; the defaults are those of `mconv verify`."""

    proofs: Literal["both", "digests", "logits"] = "both"
    tp: int | None = None
    """Tensor-parallel ranks of the Megatron side. Without `tp` and `pp`: the recorded layout if it is cheap, else 1."""
    pp: int | None = None
    uneven: Uneven = EVEN
    """Numbers of layers that the first and the last stage are to have, if not as many as the others."""
    sequence_parallel: bool = False
    length: int | None = None
    """Positions of a row. None: as many as the model has, up to a limit of cost."""
    batch: int = 3
    seed: int = 1234
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    streamed: bool | None = None
    """Hold one layer in memory at a time. None: only if the models do not fit."""
    generate: int = 0
    """Number of greedy tokens to compare after each prompt."""
    trained: bool | None = False
    """Training lies between the two: measure the change and look for no fault. None: as the manifests say."""
    hints: Hints = field(default_factory=dict)
    """Options of `open_checkpoint` for Megatron roots. A Hugging Face folder needs none."""

    @property
    def layout_flags(self) -> str:
        """The given flags about a layout, as typed."""
        sizes = [f"--{name} {value}" for name, value in (("tp", self.tp), ("pp", self.pp)) if value]
        return ", ".join([*sizes, *["--sequence-parallel"] * self.sequence_parallel])

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.length is not None and self.length < 2) or self.generate < 0:
            raise MconvError("--batch must be at least 1, --length at least 2, and --generate at least 0")
        sizes = [size for size in (self.tp, self.pp) if size is not None]
        if not 0 <= self.seed < 1 << 62 or any(size < 1 for size in sizes):
            raise MconvError("--tp and --pp must be at least 1, and --seed a positive number of at most 62 bits")


def judge(a: Path, b: Path, options: Options, *, show: ShowProgress = silent) -> dict[str, Any]:
    """Judge `b` against `a`, the reference, and return the report; {} on ranks other than 0 of a torchrun.

    Raises MconvError where no judgement is possible. A checkpoint that contradicts itself is judged: it is wrong.
    """
    return judge_sides(open_both(a, b, options.hints), options, show=show)


def judge_sides(sides: tuple[Side, Side], options: Options, *, show: ShowProgress = silent) -> dict[str, Any]:
    """Judge two opened checkpoints, the reference first, and return the report as `judge` does."""
    began = time.monotonic()
    one, two = (side.checkpoint for side in sides)
    unlike = incomparable(one.spec, two.spec)
    if options.proofs != "digests":
        check_installed(one, two)
    report: dict[str, Any] = {"schema": SCHEMA, "passed": True, "failures": [], "digests": None, "diagnosis": None}
    report["assumed"] = [note for side in sides for note in side.assumed]
    report["training"] = _training(one, two, options)
    report["not_compared"] = _not_compared(one, two) if unlike and options.proofs != "digests" else None
    logits = None
    if options.proofs != "logits" and world()[0] == 0:
        report |= _by_digests(one, two, options, report["training"], show=show)
    if options.proofs != "digests" and not unlike and not (_contradicted(report) and world()[1] == 1):
        logits = _by_logits(sides, options, report, show=show)
        if logits == {}:
            return {}
        report |= logits or {}
    if world()[0] != 0:
        return {}
    if logits is None and report["digests"] is None:  # no logits: show which tensors differ
        report |= _by_digests(one, two, options, report["training"], show=show)
    if line := training_lines.hint(report):
        report["diagnosis"]["lines"].append(line)
    report["verdicts"] = verdicts(report["digests"], logits)
    report["environment"] = environment.describe(seconds=time.monotonic() - began)
    return report


def check_installed(a: SourceModel, b: SourceModel) -> None:
    """Raise MissingPackage if what runs these models is not installed; models that cannot be compared are not run."""
    if incomparable(a.spec, b.spec):
        return
    engines = {"transformers" if c.format == "hf" else "megatron.core" for c in (a, b)}
    what, without = "comparing what models compute", "--digests compares only tensors"
    extras.need("train", *sorted(engines), "psutil", to=what, without=without)
    if "megatron.core" in engines:
        gate.check()


def _training(a: SourceModel, b: SourceModel, options: Options) -> dict[str, Any] | None:
    """Return what the manifests say about training between the two; None if there was none."""
    if options.trained is False or incomparable(a.spec, b.spec):
        return None
    between = training.between(a, b)
    return training.describe(between, asked=bool(options.trained)) if between or options.trained else None


def _by_digests(
    a: SourceModel, b: SourceModel, options: Options, trained: dict[str, Any] | None, *, show: ShowProgress
) -> dict[str, Any]:
    """Return the part of the report that compares tensors."""
    found = _digests(a, b, show=show)
    part: dict[str, Any] = {"digests": reports.of_digests(found), "passed": found.same}
    if found.same:
        return part
    why = [f"the architectures differ: {in_words(found.spec)}"] if found.spec else []
    part["failures"] = [*why, *["the tensors differ"][: len(found.differences)], *found.contradictions]
    if incomparable(a.spec, b.spec):
        return part | {"diagnosis": {"guesses": [], "lines": []}}
    if trained is not None:
        with show(digests.nbytes(a) + digests.nbytes(b), "measuring the change") as advance:
            change = training.measure(a, b, found, progress=advance)
        part["training"] = {**trained, "faults": training.faults(found), "change": asdict(change)}
    if options.proofs == "digests" or found.contradictions or trained is not None:
        known = [guess for guess in explain(a, b, found) if guess.name or trained is None]
        guesses = [guess.to_dict() | {"error_after": None} for guess in known]
        part["diagnosis"] = {"guesses": guesses, "lines": [guess["text"] for guess in guesses]}
    return part


def _not_compared(a: SourceModel, b: SourceModel) -> str:
    """Return why what two models compute cannot be compared."""
    return f"{a.name} and {b.name} are models of different architectures: {in_words(spec_differences(a.spec, b.spec))}"


def _by_logits(
    sides: tuple[Side, Side], options: Options, report: dict[str, Any], *, show: ShowProgress
) -> dict[str, Any] | None:
    """Return the comparison of logits: {} on ranks other than 0, None if it is not possible and not needed."""
    try:
        logits = _logits(sides, options, report["digests"], trained=report["training"] is not None, show=show)
    except CheckFailed:  # copies that differ: there is no one model whose logits could be compared
        return None
    except MconvError as error:
        if report["passed"]:
            raise
        report["failures"].append(f"{reports.NO_LOGITS}: {error}")
        return None
    failures = report["failures"] + logits.get("failures", [])
    if report["training"] and logits:
        logits["diagnosis"] = report["diagnosis"]  # the models were not searched
        report["training"]["faults"] += [] if logits["finite"] else [NONFINITE]
    return logits and logits | {"passed": report["passed"] and logits["passed"], "failures": failures}


def verdicts(tensors: dict[str, Any] | None, logits: dict[str, Any] | None) -> dict[str, str]:
    """Return each proof's own answer: `pass`, `fail` or `not run`."""
    generation = (logits or {}).get("generation")
    answers = {
        "digests": None if tensors is None else tensors["same"],
        "logits": None if logits is None else not set(logits["failures"]) - set((generation or {}).get("failures", ())),
        "generation": None if generation is None else generation["passed"],
    }
    return {name: "not run" if a is None else "pass" if a else "fail" for name, a in answers.items()}


def _digests(a: SourceModel, b: SourceModel, *, show: ShowProgress) -> digests.Report:
    with show(digests.nbytes(a) + digests.nbytes(b), "comparing tensors") as advance:
        return digests.compare(a, b, progress=advance, read_all=not incomparable(a.spec, b.spec))


def _contradicted(report: dict[str, Any]) -> bool:
    """Return whether the tensors of a checkpoint are known to contradict each other."""
    return any(((report["digests"] or {}).get("replicas") or {}).values())


def _logits(
    sides: tuple[Side, Side], options: Options, tensors: dict[str, Any] | None, *, trained: bool, show: ShowProgress
) -> dict[str, Any]:
    """Run both models, and return the comparison of their logits."""
    a, b = (side.checkpoint for side in sides)
    hugging = all(c.format == "hf" for c in (a, b))
    _check_flags(a, b, options, hugging=hugging)
    probes.check_room(a.spec, b.spec, length=options.length, new_tokens=options.generate)
    layout = layouts.choose(a, b, tp=options.tp, pp=options.pp, uneven=options.uneven)
    request = _request(sides, options, layout, tensors, trained=trained)
    _check_runnable(a, b, request.parallel)
    nproc = 1 if hugging else request.tp * request.pp
    runs = 3 + options.generate * 2  # the reference, once more for the noise floor, the candidate
    with show(runs * digests.nbytes(a), f"comparing logits: {_running(a, b, nproc)}") as advance, report_to(advance):
        found = ranks.run("mconv.verify.logits:work", request.to_dict(), nproc=nproc, preload=PRELOAD)
    return found and {**found, "layouts": layouts.recorded(a, b, layout)}


def _check_flags(a: SourceModel, b: SourceModel, options: Options, *, hugging: bool) -> None:
    """Refuse flags about a layout that do not suit the two checkpoints."""
    if hugging and (flags := options.layout_flags):
        raise MconvError(
            f"{flags}: only a Megatron checkpoint has a layout; {a.name} and {b.name} are Hugging Face folders"
        )
    if not hugging and a.spec.num_layers != b.spec.num_layers and options.pp and options.pp > 1:
        raise LayoutError(
            f"--pp {options.pp}: {a.name} has {a.spec.num_layers} layers and {b.name} {b.spec.num_layers}, which stages "
            "would cut in different places; use --pp 1"
        )


def _request(
    sides: tuple[Side, Side], options: Options, layout: layouts.Choice, tensors: dict[str, Any] | None, *, trained: bool
) -> Request:
    """Return what the ranks are asked to do."""
    if options.sequence_parallel and layout.tp == 1:
        raise LayoutError("--sequence-parallel shares positions among tensor-parallel ranks; give --tp 2 or more with it")
    a, b = (side.checkpoint for side in sides)
    request = Request(
        a=str(a.path.resolve()), a_hints=sides[0].hints, b=str(b.path.resolve()), b_hints=sides[1].hints,
        tp=layout.tp, pp=layout.pp, uneven=layout.uneven, sequence_parallel=options.sequence_parallel,
        length=options.length, batch=options.batch, seed=options.seed, dtype=options.dtype, generate=options.generate,
        digests=tensors, threads=environment.spare_threads(), diagnose=not trained,
    )  # fmt: skip
    streamed = _too_large(request, a, b) if options.streamed is None else options.streamed
    return replace(request, streamed=streamed)


def _check_runnable(a: SourceModel, b: SourceModel, parallel: Parallel) -> None:
    """Refuse, before ranks start, a layout at which megatron-core cannot run a checkpoint."""
    tp, pp = parallel.tp, parallel.pp
    for c in (c for c in (a, b) if c.format != "hf"):
        bad = problems(c.spec, padded_vocab_size=padded_vocab(c.spec.vocab_size, tp=tp), parallel=parallel)
        refuse(bad, doing=f"running {c.name} at tp {tp} x pp {pp}", kind=LayoutError)


def _running(a: SourceModel, b: SourceModel, nproc: int) -> str:
    """Return in words which program is about to run which checkpoint."""
    by = {True: "transformers", False: "megatron-core" + (f" on {nproc} ranks" if nproc > 1 else "")}
    return ", then ".join(f"{c.name} in {by[c.format == 'hf']}" for c in (a, b))


def _too_large(request: Request, a: SourceModel, b: SourceModel) -> bool:
    """Return whether a model does not fit into memory whole."""
    logits = request.batch * request.row_length(a, b) * max(a.spec.vocab_size, b.spec.vocab_size)
    return environment.too_large(a, b, dtype_bytes=request.torch_dtype.itemsize, logits=logits)
