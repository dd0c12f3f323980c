"""The verdict on two checkpoints: the same tensors, and the same function. What `mconv verify` decides by.

report = judge(Path("hf"), Path("megatron"), Options(tp=2))
report["passed"]                                              # docs/verify.md has the whole of it
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mconv import extras
from mconv.convert.checkpoint import SourceModel
from mconv.errors import CheckFailed, LayoutError, MconvError, refuse
from mconv.shard.layout import padded_vocab
from mconv.shard.stages import EVEN, Uneven
from mconv.train.launch import ranks
from mconv.train.megatron import gate
from mconv.train.megatron.parallel import Parallel, world
from mconv.train.model.checks import problems
from mconv.verify import digests, environment, layouts, probes, steps, training, training_lines
from mconv.verify import report as reports
from mconv.verify.compare import NONFINITE
from mconv.verify.guesses.explain import explain
from mconv.verify.sides import Side, open_both
from mconv.verify.specs import in_words, incomparable, spec_differences

PRELOAD = ("mconv.train.megatron.imports", "mconv.train.model.engine", "mconv.verify.logits")
"""What all ranks import."""
SCHEMA = 1
"""Of the report. Fields may be added under one number, never changed or removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to judge; the defaults are those of `mconv verify`."""

    proofs: Literal["both", "digests", "logits"] = "both"
    tp: int | None = None
    """Ranks of the Megatron side. Without `tp` and `pp`: the recorded layout where its ranks are cheap, else 1."""
    pp: int | None = None
    uneven: Uneven = EVEN
    """What makes these stages hold different numbers of layers."""
    sequence_parallel: bool = False
    length: int | None = None
    """Positions of a row. None: as many as the model has, within reason."""
    batch: int = 3
    seed: int = 1234
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    streamed: bool | None = None
    """One layer in memory at a time. None: if the models do not fit."""
    generate: int = 0
    """Greedy tokens to compare."""
    trained: bool | None = False
    """Whether training lies between the two: then its change is measured and no fault sought. None: by the manifests."""
    opening: dict[str, Any] = field(default_factory=dict)
    """What is said of Megatron roots to `open_checkpoint`; a Hugging Face folder knows all of it."""

    @property
    def layout_flags(self) -> str:
        """The flags about a layout that were given, as typed."""
        sizes = [f"--{name} {value}" for name, value in (("tp", self.tp), ("pp", self.pp)) if value]
        return ", ".join([*sizes, *["--sequence-parallel"] * self.sequence_parallel])

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.length is not None and self.length < 2) or self.generate < 0:
            raise MconvError("--batch must be at least 1, --length at least 2, and --generate at least 0")
        sizes = [size for size in (self.tp, self.pp) if size is not None]
        if not 0 <= self.seed < 1 << 62 or any(size < 1 for size in sizes):
            raise MconvError("--tp and --pp must be at least 1, and --seed a positive number of at most 62 bits")


def judge(a: Path, b: Path, options: Options, *, show: steps.Show = steps.silent) -> dict[str, Any]:
    """Judge `b` by `a`, the reference. The report is rank 0's; {} on other ranks of somebody's torchrun.

    Raises MconvError where it cannot be judged. A checkpoint that contradicts itself is judged: it is wrong.
    """
    return judge_sides(open_both(a, b, options.opening), options, show=show)


def judge_sides(sides: tuple[Side, Side], options: Options, *, show: steps.Show = steps.silent) -> dict[str, Any]:
    """Judge two checkpoints that are open already, the reference first; the report is that of `judge`."""
    began = time.monotonic()
    one, two = (side.checkpoint for side in sides)
    apart = incomparable(one.spec, two.spec)
    if options.proofs != "digests":
        check_installed(one, two)
    report: dict[str, Any] = {"schema": SCHEMA, "passed": True, "failures": [], "digests": None, "diagnosis": None}
    report["assumed"] = [told for side in sides for told in side.assumed]
    report["training"] = _training(one, two, options)
    report["not_compared"] = _not_compared(one, two) if apart and options.proofs != "digests" else None
    logits = None
    if options.proofs != "logits" and world()[0] == 0:
        report |= _by_digests(one, two, options, report["training"], show=show)
    if options.proofs != "digests" and not apart and not (_contradicted(report) and world()[1] == 1):
        logits = _by_logits(sides, options, report, show=show)
        if logits == {}:
            return {}
        report |= logits or {}
    if world()[0] != 0:
        return {}
    if logits is None and report["digests"] is None:  # no model to be asked: which tensors are to blame
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
    what, without = "comparing what models compute", "--digests compares tensors alone"
    extras.need("train", *sorted(engines), "psutil", to=what, without=without)
    if "megatron.core" in engines:
        gate.check()


def _training(a: SourceModel, b: SourceModel, options: Options) -> dict[str, Any] | None:
    """Return what is known of a training between the two before anything is read; None where none lies between."""
    if options.trained is False or incomparable(a.spec, b.spec):
        return None
    between = training.between(a, b)
    return training.describe(between, asked=bool(options.trained)) if between or options.trained else None


def _by_digests(
    a: SourceModel, b: SourceModel, options: Options, trained: dict[str, Any] | None, *, show: steps.Show
) -> dict[str, Any]:
    """Return the first proof's part of the report."""
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
    sides: tuple[Side, Side], options: Options, report: dict[str, Any], *, show: steps.Show
) -> dict[str, Any] | None:
    """The second proof's part: {} on a rank that does not report. None where it cannot be had, and need not be."""
    try:
        logits = _logits(sides, options, report["digests"], trained=report["training"] is not None, show=show)
    except CheckFailed:  # copies that differ: of which model are the logits?
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
    """Each proof's own answer: `pass`, `fail` or `not run`."""
    spoken = (logits or {}).get("generation")
    answers = {
        "digests": None if tensors is None else tensors["same"],
        "logits": None if logits is None else not set(logits["failures"]) - set((spoken or {}).get("failures", ())),
        "generation": None if spoken is None else spoken["passed"],
    }
    return {name: "not run" if a is None else "pass" if a else "fail" for name, a in answers.items()}


def _digests(a: SourceModel, b: SourceModel, *, show: steps.Show) -> digests.Report:
    with show(digests.nbytes(a) + digests.nbytes(b), "comparing tensors") as advance:
        return digests.compare(a, b, progress=advance, read_all=not incomparable(a.spec, b.spec))


def _contradicted(report: dict[str, Any]) -> bool:
    """Return whether the tensors of a checkpoint are known to contradict each other."""
    return any(((report["digests"] or {}).get("replicas") or {}).values())


def _logits(
    sides: tuple[Side, Side], options: Options, tensors: dict[str, Any] | None, *, trained: bool, show: steps.Show
) -> dict[str, Any]:
    a, b = (side.checkpoint for side in sides)
    hugging = all(c.format == "hf" for c in (a, b))
    if hugging and (asked := options.layout_flags):
        raise MconvError(
            f"{asked}: only a Megatron checkpoint has a layout; {a.name} and {b.name} are Hugging Face folders"
        )
    if not hugging and a.spec.num_layers != b.spec.num_layers and options.pp and options.pp > 1:
        raise LayoutError(
            f"--pp {options.pp}: {a.name} has {a.spec.num_layers} layers and {b.name} {b.spec.num_layers}, which stages "
            "would cut in different places; use --pp 1"
        )
    probes.check_room(a.spec, b.spec, length=options.length, new_tokens=options.generate)
    ran = layouts.choose(a, b, tp=options.tp, pp=options.pp, uneven=options.uneven)
    tp, pp = ran.tp, ran.pp
    if options.sequence_parallel and tp == 1:
        raise LayoutError("--sequence-parallel shares positions among tensor-parallel ranks; give --tp 2 or more with it")
    parallel = Parallel(tp=tp, pp=pp, uneven=ran.uneven, sequence_parallel=options.sequence_parallel)
    for c in (c for c in (a, b) if c.format != "hf"):  # before ranks are started
        bad = problems(c.spec, padded_vocab_size=padded_vocab(c.spec.vocab_size, tp=tp), parallel=parallel)
        refuse(bad, doing=f"running {c.name} at tp {tp} x pp {pp}", kind=LayoutError)
    payload = {
        "a": str(a.path.resolve()), "a_options": sides[0].said,
        "b": str(b.path.resolve()), "b_options": sides[1].said,
        "tp": tp, "pp": pp, "uneven": asdict(ran.uneven), "sequence_parallel": options.sequence_parallel,
        "length": options.length, "batch": options.batch, "seed": options.seed, "dtype": options.dtype,
        "generate": options.generate, "digests": tensors, "threads": environment.spare_threads(),
        "search": not trained,
    }  # fmt: skip
    nproc = 1 if hugging else tp * pp
    payload["streamed"] = _streamed(a, b, payload) if options.streamed is None else options.streamed
    runs = 3 + options.generate * 2  # the reference, once more for the noise floor, the candidate
    with show(runs * digests.nbytes(a), f"comparing logits: {_running(a, b, nproc)}") as advance, steps.told(advance):
        found = ranks.run("mconv.verify.logits:work", payload, nproc=nproc, preload=PRELOAD)
    return found and {**found, "layouts": layouts.recorded(a, b, ran)}


def _running(a: SourceModel, b: SourceModel, nproc: int) -> str:
    """Return what is about to run, in words."""
    by = {True: "transformers", False: "megatron-core" + (f" on {nproc} ranks" if nproc > 1 else "")}
    return ", then ".join(f"{c.name} in {by[c.format == 'hf']}" for c in (a, b))


def _streamed(a: SourceModel, b: SourceModel, payload: dict[str, Any]) -> bool:
    from mconv.verify.logits import DTYPES, length_for

    rows = payload["batch"] * length_for(payload, a, b)
    return environment.too_large(
        a, b, dtype_bytes=DTYPES[payload["dtype"]].itemsize, logits=rows * max(a.spec.vocab_size, b.spec.vocab_size)
    )
