"""The proof by logits: transformers' model against the real megatron-core GPTModel, at any tp x pp, on the same tokens.

`work` runs on every rank. megatron-core's own loader reads a Megatron checkpoint wherever it can, so that the proof is
about what Megatron will compute, not about what mconv thinks it wrote.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.formats.dtype import in_torch
from mconv.convert.formats.mapped import forget
from mconv.convert.sources.read import check_copies
from mconv.errors import CheckFailed, CopiesDiffer
from mconv.train.megatron.collectives import from_rank_0
from mconv.train.megatron.parallel import Parallel, world
from mconv.verify import digests, generate, logit_report, probes
from mconv.verify.checkpoints import Hints, open_with
from mconv.verify.compare import LIMITS, Comparison, Errors, LogitPair, compare, distance, failures
from mconv.verify.diagnosis import bisect, ranks
from mconv.verify.diagnosis.explain import Guess, explain
from mconv.verify.environment import all_cores, reuse_memory
from mconv.verify.generate import Generated
from mconv.verify.models import Model, RunOptions, Scores, model_of
from mconv.verify.noise import ReorderedSums
from mconv.verify.probes import Probe
from mconv.verify.request import Request


def work(payload: dict[str, Any]) -> dict[str, Any]:
    """Compare the logits of the two checkpoints of a `Request`; return the report on rank 0, {} on the other ranks."""
    request = Request.from_dict(payload)
    # While rank 0 runs the reference, the others wait for it at the first collective.
    os.environ.setdefault("MCONV_TIMEOUT_MINUTES", "720")
    a, b = _open(request.a, request.a_hints), _open(request.b, request.b_hints)
    options = options_for(request, a, b)
    _prepare(options)
    probe = from_rank_0(probe_for(request, a, b) if world()[0] == 0 else None)
    reference = _run_reference(a, b, request, probe, options)
    candidate = model_of(b, options)
    scores = candidate.run(probe.tokens, probe.positions)
    replayed = generate.replay(candidate, reference.generated)
    found = _compare(reference, scores, probe, threads=request.threads)
    limits, noise = LIMITS[request.dtype], reference.noise
    wrong = [] if found is None or noise is None else failures(found, limits, noise=noise)
    wrong += ranks.wrong(candidate, b, options, failed=bool(wrong))
    candidate.release()
    with all_cores(request.threads):
        failed = bool(wrong) or bool(request.digests and not request.digests["same"])
        diagnosis = _diagnosis(a, b, probe, options, request.digests, failed=failed and request.diagnose)
    if reference.scores is None or scores is None or found is None or noise is None:
        return {}
    wrong += logit_report.vocabulary_failures(a, b, narrow=options.narrow)
    noise_of_tokens = max(noise.max_abs_error, limits.relative_max * found.scale)
    generation = generate.verdict(reference.generated, replayed, noise=noise_of_tokens)
    return {
        "passed": not wrong and (generation is None or generation["passed"]),
        "failures": wrong + ([] if generation is None else generation["failures"]),
        **logit_report.numbers(found, limits, noise, probe),
        "padding": logit_report.padding(scores, probe, true=b.spec.vocab_size),
        "layers": logit_report.layer_errors(reference.scores, scores),
        "generation": generation,
        "diagnosis": diagnosis,
        **logit_report.names(a, b, loaded_by=(reference.loaded_by, candidate.loaded_by)),
        **logit_report.setting(request, probe, options),
        "max_position_embeddings": a.spec.max_position_embeddings,
        "vocab_size": min(a.spec.vocab_size, b.spec.vocab_size),
    }


# ---- runs ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRun:
    """Answers of the reference; None on ranks other than 0."""

    loaded_by: str
    scores: Scores | None
    noise: Errors | None
    generated: Generated | None


def _run_reference(a: Checkpoint, b: Checkpoint, request: Request, probe: Probe, options: RunOptions) -> ReferenceRun:
    """Run the reference, measure its noise floor, let it generate, and return all three."""
    model = model_of(a, options)
    with all_cores(request.threads if a.format == "hf" else None):  # the other ranks wait
        scores = model.run(probe.tokens, probe.positions)
        noise = _noise(model, scores, probe)
        common = min(a.spec.vocab_size, b.spec.vocab_size)
        generated = generate.reference(
            model, a, tokenizer_folder=tokenizer_of(a, b), new=request.generate, vocabulary=common
        )
    model.release()
    return ReferenceRun(loaded_by=model.loaded_by, scores=scores, noise=noise, generated=generated)


def _prepare(options: RunOptions) -> None:
    """Set up memory, and the process group that carries rank 0's tokens to all ranks."""
    if not options.streamed:
        reuse_memory()
    if world()[1] > 1:
        from mconv.train.model import engine

        engine.init(options.parallel)


def _compare(reference: ReferenceRun, scores: Scores | None, probe: Probe, *, threads: int | None) -> Comparison | None:
    if reference.scores is None or scores is None:
        return None
    with all_cores(threads):
        return compare(_pairs(reference.scores, scores), tokens=probe.tokens, counted=probe.counted)


def _noise(model: Model, scores: Scores | None, probe: Probe) -> Errors | None:
    """Return how far the reference is from itself when its sums are taken in another order, over the whole probe.

    Fewer positions would show too low a floor: rounding grows along a row, and most where positions jump.
    """
    with ReorderedSums():
        again = model.run(probe.tokens, probe.positions)
        if scores is None or again is None:
            return None
        return distance(_pairs(scores, again))


def _pairs(a: Scores, b: Scores) -> Iterator[LogitPair]:
    """Yield chunks of both logits, cut to the vocabulary and the positions that both have."""
    for candidate, reference in zip(b.chunks(), a.chunks(), strict=False):
        common = min(reference.shape[-1], candidate.shape[-1])
        positions = min(reference.shape[1], candidate.shape[1])
        yield reference[:, :positions, :common], candidate[:, :positions, :common].to(reference.device)


def logits_of(
    checkpoint: Checkpoint, tokens: Int[Tensor, "b s"], options: RunOptions | None = None
) -> tuple[Float[Tensor, "b s v"] | None, str]:
    """Return logits [b s v] over the true vocabulary in fp32 on rank 0 (None elsewhere), and who loaded the weights."""
    model = model_of(checkpoint, options or RunOptions())
    scores = model.run(tokens)
    return None if scores is None else torch.cat([part.cpu() for part in scores.chunks()], dim=1), model.loaded_by


# ---- diagnosis -------------------------------------------------------------------------------------------------------
def _diagnosis(
    a: Checkpoint, b: Checkpoint, probe: Probe, options: RunOptions, tensors: dict[str, Any] | None, *, failed: bool
) -> dict[str, Any] | None:
    """Return where a failed comparison departs, and why, on rank 0. Every rank calls it."""
    if not from_rank_0(failed):
        return None
    if world()[1] > 1 or torch.distributed.is_initialized():
        from mconv.train.model import engine

        engine.init(Parallel())
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return None
    found = digests.compare(a, b) if tensors is None else digests.Report.from_dict(tensors)
    guesses = explain(a, b, found)
    try:
        diagnosis = bisect.diagnose(a, b, probe, options, guesses)
    except (RuntimeError, ValueError, LookupError) as error:  # the verdict holds: odd models can differ in any way
        return _without_place(guesses, error)
    if options.parallel.tp > 1:
        diagnosis["lines"] += ranks.of_ranks(found, b, tp=options.parallel.tp)
    return diagnosis


def _without_place(guesses: Sequence[Guess], error: Exception) -> dict[str, Any]:
    """Return the diagnosis of two models that cannot take each other's inputs: the faults that their tensors show."""
    found = [guess.to_dict() | {"error_after": None} for guess in guesses]
    why = str(error).splitlines()[0] if str(error) else "no message"
    first = (
        "the first layer that departs was not found: the layers cannot be given the same input "
        f"({type(error).__name__}: {why:.120})"
    )
    return {"guesses": found, "lines": [first, *(guess["text"] for guess in found)]}


# ---- inputs ----------------------------------------------------------------------------------------------------------
def _open(path: str, hints: Hints) -> Checkpoint:
    found = open_with(Path(path), hints)
    if found.format != "hf":
        from mconv.train.model.checks import check_known

        check_known(found.spec, what=str(found.path))
    try:
        check_copies(found.source)  # a rank may load one copy and another rank the other
    except CopiesDiffer as error:
        raise CheckFailed(str(error)) from error
    forget()
    return found


def probe_for(request: Request, a: Checkpoint, b: Checkpoint) -> Probe:
    """Return the batch that both models run on. Both have its ids and positions."""
    spec = a.spec if a.spec.vocab_size <= b.spec.vocab_size else b.spec
    spec = replace(spec, max_position_embeddings=probes.positions_of(a.spec, b.spec))
    length = request.row_length(a, b)
    return probes.probe(spec, tokenizer_folder=tokenizer_of(a, b), batch=request.batch, length=length, seed=request.seed)


def options_for(request: Request, a: Checkpoint, b: Checkpoint) -> RunOptions:
    """Return how the models run: arithmetic, layout, and whether weights stay in memory."""
    return RunOptions(
        dtype=request.torch_dtype, narrow=narrower(a, b), streamed=request.streamed, parallel=request.parallel
    )


def narrower(a: Checkpoint, b: Checkpoint) -> tuple[torch.dtype, ...]:
    """Return the dtypes that one side was cast to and that lose bits of the other's, which is rounded to them as well.

    Otherwise the rounding of a cast would hide every fault that is smaller. Each of bf16 and fp16 loses something of the
    other; bf16, whose range contains fp16's, comes first: then it does not matter which of the two was cast.
    """
    first, second = ({in_torch(dtype) for dtype in c.dtypes} for c in (a, b))
    lossy = {
        dtype
        for one, other in ((first, second), (second, first))
        for dtype in one
        if len(one) == 1 and any(torch.promote_types(dtype, theirs) != dtype for theirs in other)
    }
    return tuple(dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16) if dtype in lossy)


def tokenizer_of(*checkpoints: Checkpoint) -> Path | None:
    """Return the first checkpoint folder that has a tokenizer."""
    found = [path.parent for c in checkpoints for name, path in c.side_files.items() if name.startswith("tokenizer.")]
    return found[0] if found else None
