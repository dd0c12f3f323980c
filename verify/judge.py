"""The verdict on two checkpoints: the same tensors, and the same function. What `mconv verify` decides by.

report = judge(Path("hf"), Path("megatron"), Options(tp=2))
report["passed"]                                              # docs/verify.md has the whole of it
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mconv.convert.checkpoint import Checkpoint
from mconv.errors import CheckFailed, LayoutError, MconvError, refuse
from mconv.shard.layout import padded_vocab
from mconv.shard.stages import EVEN, Uneven
from mconv.train.launch import ranks
from mconv.train.model.checks import problems
from mconv.train.parallel import Parallel, world
from mconv.verify import digests, environment, steps
from mconv.verify import report as reports
from mconv.verify.guesses.explain import explain
from mconv.verify.sides import Side, open_both

PRELOAD = ("mconv.train.mcore", "mconv.train.model.engine", "mconv.verify.logits")
"""What all ranks import."""
SCHEMA = 1
"""Of the report. Fields may be added under one number, never changed or removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to judge; the defaults are those of `mconv verify`."""

    proofs: Literal["both", "digests", "logits"] = "both"
    tp: int | None = None
    """Ranks of the Megatron side. None: those of an mp_rank checkpoint, 1 for torch_dist."""
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
    opening: dict[str, Any] = field(default_factory=dict)
    """What is said of Megatron roots to `open_checkpoint`; a Hugging Face folder knows all of it."""

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.length is not None and self.length < 2) or self.generate < 0:
            raise MconvError("--batch must be at least 1, --length at least 2, and --generate a number of tokens")
        sizes = [size for size in (self.tp, self.pp) if size is not None]
        if not 0 <= self.seed < 1 << 62 or any(size < 1 for size in sizes):
            raise MconvError("--tp and --pp must be at least 1, and --seed a positive number of at most 62 bits")


def judge(a: Path, b: Path, options: Options, *, show: steps.Show = steps.silent) -> dict[str, Any]:
    """Judge `b` by `a`, the reference. The report is rank 0's; {} on other ranks of somebody's torchrun.

    Raises MconvError where it cannot be judged. A checkpoint that contradicts itself is judged: it is wrong.
    """
    return judge_sides(open_both(a, b, options.opening), options, show=show)


def judge_sides(sides: tuple[Side, Side], options: Options, *, show: steps.Show = steps.silent) -> dict[str, Any]:
    """The same of two that are open already."""
    began = time.monotonic()
    one, two = (side.checkpoint for side in sides)
    report: dict[str, Any] = {"schema": SCHEMA, "passed": True, "failures": [], "digests": None, "diagnosis": None}
    report["assumed"] = [told for side in sides for told in side.assumed]
    logits = None
    if options.proofs != "logits" and world()[0] == 0:
        report |= _by_digests(one, two, options, show=show)
    if options.proofs != "digests" and not (_contradicted(report) and world()[1] == 1):
        logits = _by_logits(sides, options, report, show=show)
        if logits == {}:
            return {}
        report |= logits or {}
    if world()[0] != 0:
        return {}
    if logits is None and report["digests"] is None:  # no model to be asked: which tensors are to blame
        report |= _by_digests(one, two, options, show=show)
    report["verdicts"] = verdicts(report["digests"], logits)
    report["environment"] = environment.describe(seconds=time.monotonic() - began)
    return report


def _by_digests(a: Checkpoint, b: Checkpoint, options: Options, *, show: steps.Show) -> dict[str, Any]:
    """The first proof's part of the report."""
    found = _digests(a, b, show=show)
    part: dict[str, Any] = {"digests": reports.of_digests(found), "passed": found.same}
    if found.same:
        return part
    kinds = {"the tensors differ": found.differences, "the architectures differ": found.spec}
    part["failures"] = [*[text for text, there in kinds.items() if there][:1], *found.contradictions]
    if options.proofs == "digests" or found.contradictions:
        guesses = [guess.to_dict() | {"error_after": None} for guess in explain(a, b, found)]
        part["diagnosis"] = {"guesses": guesses, "lines": [guess["text"] for guess in guesses]}
    return part


def _by_logits(
    sides: tuple[Side, Side], options: Options, report: dict[str, Any], *, show: steps.Show
) -> dict[str, Any] | None:
    """The second proof's part: {} on a rank that does not report. None where it cannot be had, and need not be."""
    try:
        logits = _logits(sides, options, report["digests"], show=show)
    except CheckFailed:  # copies that differ: of which model are the logits?
        return None
    except MconvError as error:
        if report["passed"]:
            raise
        report["failures"].append(f"the logits could not be compared: {error}")
        return None
    failures = report["failures"] + logits.get("failures", [])
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


def _digests(a: Checkpoint, b: Checkpoint, *, show: steps.Show) -> digests.Report:
    with show(digests.nbytes(a) + digests.nbytes(b), "comparing tensors") as advance:
        return digests.compare(a, b, progress=advance)


def _contradicted(report: dict[str, Any]) -> bool:
    """Return whether the tensors of a checkpoint are known to contradict each other."""
    return any(((report["digests"] or {}).get("replicas") or {}).values())


def _logits(
    sides: tuple[Side, Side], options: Options, tensors: dict[str, Any] | None, *, show: steps.Show
) -> dict[str, Any]:
    a, b = (side.checkpoint for side in sides)
    hugging = all(c.format == "hf" for c in (a, b))
    if hugging and (options.tp or options.pp or options.sequence_parallel):
        raise MconvError(
            "--tp, --pp and --sequence-parallel are of a Megatron side; both of these are Hugging Face folders"
        )
    if not hugging and a.spec.num_layers != b.spec.num_layers and options.pp and options.pp > 1:
        raise LayoutError(f"{a.name} has {a.spec.num_layers} layers and {b.name} {b.spec.num_layers}: take pp 1")
    own = next((c.layout for c in (a, b) if c.format == "mp_rank" and c.layout), None)
    even = own is not None and all(c.spec.num_layers % own.pp == 0 for c in (a, b))
    tp, pp = options.tp or (own.tp if own else 1), options.pp or (own.pp if own and even else 1)
    parallel = Parallel(tp=tp, pp=pp, uneven=options.uneven, sequence_parallel=options.sequence_parallel)
    for spec in (c.spec for c in (a, b) if c.format != "hf"):  # before ranks are started
        bad = problems(spec, padded_vocab_size=padded_vocab(spec.vocab_size, tp=tp), parallel=parallel)
        refuse(bad, doing="sharing the model among ranks", kind=LayoutError)
    payload = {
        "a": str(a.path.resolve()), "a_options": sides[0].said,
        "b": str(b.path.resolve()), "b_options": sides[1].said,
        "tp": tp, "pp": pp, "uneven": asdict(options.uneven), "sequence_parallel": options.sequence_parallel,
        "length": options.length, "batch": options.batch, "seed": options.seed, "dtype": options.dtype,
        "generate": options.generate, "digests": tensors, "threads": environment.spare_threads(),
    }  # fmt: skip
    nproc = 1 if hugging else tp * pp
    payload["streamed"] = _streamed(a, b, payload) if options.streamed is None else options.streamed
    runs = 3 + options.generate * 2  # the reference, once more for the noise floor, the candidate
    with show(runs * digests.nbytes(a), "comparing logits") as advance, steps.told(advance):
        return ranks.run("mconv.verify.logits:work", payload, nproc=nproc, preload=PRELOAD)


def _streamed(a: Checkpoint, b: Checkpoint, payload: dict[str, Any]) -> bool:
    from mconv.verify.logits import DTYPES, length_for

    rows = payload["batch"] * length_for(payload, a, b)
    return environment.too_large(
        a, b, dtype_bytes=DTYPES[payload["dtype"]].itemsize, logits=rows * max(a.spec.vocab_size, b.spec.vocab_size)
    )
