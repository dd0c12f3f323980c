"""The proof by logits: transformers' model against the real megatron-core GPTModel, at any tp x pp, on the same tokens.

`work` runs on every rank. A Megatron checkpoint is loaded by megatron-core's own loader where that can be, so that what
is proven is what Megatron will compute, not what mconv thinks it wrote.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mconv.convert.checkpoint import Checkpoint, SourceModel
from mconv.convert.formats.dtype import in_torch
from mconv.convert.formats.mapped import forget
from mconv.convert.sources.read import check_copies
from mconv.convert.sources.source import dims_of, dtype_of, slab_boxes
from mconv.errors import CheckFailed, CopiesDiffer
from mconv.shard.stages import Uneven
from mconv.train.megatron.collectives import from_rank_0
from mconv.train.megatron.parallel import Parallel, world
from mconv.verify import bisect, digests, generate, probes, shards
from mconv.verify.compare import CHUNK, LIMITS, Comparison, Errors, Limits, Pair, allowed, compare, distance, failures
from mconv.verify.environment import all_cores, reuse_memory
from mconv.verify.guesses.explain import Guess, explain
from mconv.verify.models import How, Model, Scores, model_of, rounded
from mconv.verify.noise import OtherOrder
from mconv.verify.probes import Probe
from mconv.verify.sides import opened

DEFAULTS = {"streamed": False, "generate": 0, "digests": None, "threads": None, "search": True}
"""What a payload need not say."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def work(payload: dict[str, Any]) -> dict[str, Any]:
    """Compare the logits of `payload["a"]` (the reference) and `payload["b"]`; the report is rank 0's."""
    # While rank 0 runs the reference, the others wait for it at the first collective.
    os.environ.setdefault("MCONV_TIMEOUT_MINUTES", "720")
    payload = {**DEFAULTS, **payload}
    a, b = (_open(payload, side) for side in ("a", "b"))
    how = how_for(payload, a, b)
    limits = LIMITS[payload["dtype"]]
    if not how.streamed:
        reuse_memory()
    if world()[1] > 1:
        from mconv.train.model import engine

        engine.init(how.parallel)  # what rank 0 makes goes to all ranks: the tokens, and each one that it generates
    asked = from_rank_0(probe_for(payload, a, b) if world()[0] == 0 else None)
    reference = model_of(a, how)
    with all_cores(payload["threads"] if a.format == "hf" else None):  # the other ranks wait
        scores = reference.run(asked.tokens, asked.positions)
        noise = _noise(reference, scores, asked)
        common = min(a.spec.vocab_size, b.spec.vocab_size)
        said = generate.reference(
            reference, a, tokenizer_folder=tokenizer_of(a, b), new=payload["generate"], vocabulary=common
        )
    reference.rest()
    candidate = model_of(b, how)
    own = candidate.run(asked.tokens, asked.positions)
    followed = generate.follow(candidate, said)
    with all_cores(payload["threads"]):
        found = (
            None
            if scores is None or own is None
            else compare(_pairs(scores, own), tokens=asked.tokens, counted=asked.counted)
        )
    wrong = [] if found is None or noise is None else failures(found, limits, noise=noise)
    wrong += shards.wrong(candidate, b, how, failed=bool(wrong))
    candidate.rest()
    tensors = payload["digests"]
    with all_cores(payload["threads"]):
        failed = bool(wrong) or bool(tensors and not tensors["same"])
        diagnosis = _diagnosis(a, b, asked, how, tensors, failed=failed and payload["search"])
    if scores is None or own is None or found is None or noise is None:
        return {}
    if rows := embedding_rows(a, b, narrow=how.narrow):
        wrong.append(f"{len(rows)} rows of the embedding differ, the first is of token {rows[0]}")
    wrong += vocabulary(a, b)
    spoken = generate.verdict(said, followed, noise=max(noise.max_abs_error, limits.relative_max * found.scale))
    return {
        "passed": not wrong and (spoken is None or spoken["passed"]),
        "failures": wrong + ([] if spoken is None else spoken["failures"]),
        **_compared(found, limits, noise, asked),
        "padding": padding(own, asked, true=b.spec.vocab_size),
        "layers": layer_errors(scores, own),
        "generation": spoken,
        "diagnosis": diagnosis,
        "reference": {"name": a.name, "format": a.format, "loaded_by": reference.loaded_by},
        "candidate": {"name": b.name, "format": b.format, "loaded_by": candidate.loaded_by},
        **_setting(payload, asked, how),
        "max_position_embeddings": a.spec.max_position_embeddings,
        "vocab_size": common,
    }


def _compared(found: Comparison, limits: Limits, noise: Errors, asked: Probe) -> dict[str, Any]:
    """Return the part of a report that is about the numbers, with what they may be."""
    return {
        **asdict(found),
        "by_row": [{"row": name, **one} for name, one in zip(asked.rows, found.by_row, strict=True)],
        "limits": {
            **{n: allowed(n, limits, noise=noise) for n in ("mean_abs_error", "relative_max", "relative_rms")},
            "times_noise": limits.times_noise,
        },
        "noise": {name: getattr(noise, name) for name in ("max_abs_error", "relative_max", "relative_rms", "scale")},
    }


def _setting(payload: dict[str, Any], asked: Probe, how: How) -> dict[str, Any]:
    """What a report says of how it was reached."""
    return {
        **{name: payload[name] for name in ("tp", "pp", "sequence_parallel", "dtype", "seed")},
        "rounded_to": " and ".join(str(dtype).removeprefix("torch.") for dtype in how.narrow) or None,
        "streamed": how.streamed,
        "device": how.device.type,
        "batch": asked.tokens.shape[0],
        "length": asked.tokens.shape[1],
        "reach": asked.reach,
        "rows": list(asked.rows),
    }


def _diagnosis(
    a: Checkpoint, b: Checkpoint, asked: Probe, how: How, tensors: dict[str, Any] | None, *, failed: bool
) -> dict[str, Any] | None:
    """Where a failed comparison parts, and why; every rank calls it, and rank 0 looks."""
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
        said = bisect.diagnose(a, b, asked, how, guesses)
    except (RuntimeError, ValueError, LookupError) as error:  # the verdict stands: two odd models can part in any way
        return _without_place(guesses, error)
    if how.parallel.tp > 1:
        said["lines"] += shards.of_ranks(found, b, tp=how.parallel.tp)
    return said


def _without_place(guesses: Sequence[Guess], error: Exception) -> dict[str, Any]:
    """Return the diagnosis of two models that cannot be given each other's inputs: what their tensors say."""
    told = [guess.to_dict() | {"error_after": None} for guess in guesses]
    why = str(error).splitlines()[0] if str(error) else "no message"
    first = (
        f"where they part was not found: the layers cannot be given the same input ({type(error).__name__}: {why:.120})"
    )
    return {"guesses": told, "lines": [first, *(guess["text"] for guess in told)]}


def logits_of(
    checkpoint: Checkpoint, tokens: Int[Tensor, "b s"], how: How | None = None
) -> tuple[Float[Tensor, "b s v"] | None, str]:
    """Logits [b s v] over the true vocabulary, fp32, on rank 0 (None elsewhere), and who loaded the weights."""
    model = model_of(checkpoint, how or How())
    scores = model.run(tokens)
    return None if scores is None else torch.cat([part.cpu() for part in scores.chunks()], dim=1), model.loaded_by


def _open(payload: dict[str, Any], side: str) -> Checkpoint:
    found = opened(Path(payload[side]), payload.get(f"{side}_options", {}))
    if found.format != "hf":
        from mconv.train.model.checks import check_known

        check_known(found.spec, what=str(found.path))
    try:
        check_copies(found.source)  # a rank may load one copy and another rank the other
    except CopiesDiffer as error:
        raise CheckFailed(str(error)) from error
    forget()
    return found


def probe_for(payload: dict[str, Any], a: Checkpoint, b: Checkpoint) -> Probe:
    """Return the batch that both are asked. Its ids and positions are of both models."""
    spec = a.spec if a.spec.vocab_size <= b.spec.vocab_size else b.spec
    spec = replace(spec, max_position_embeddings=probes.positions_of(a.spec, b.spec))
    length = length_for(payload, a, b)
    return probes.probe(
        spec, tokenizer_folder=tokenizer_of(a, b), batch=payload["batch"], length=length, seed=payload["seed"]
    )


def length_for(payload: dict[str, Any], a: SourceModel, b: SourceModel) -> int:
    """Positions of each of its rows."""
    return probes.length_for(
        a.spec, b.spec, length=payload.get("length"), parameters=a.parameters, batch=payload["batch"]
    )


def how_for(payload: dict[str, Any], a: Checkpoint, b: Checkpoint) -> How:
    """The arithmetic, and whether weights stay in memory."""
    sizes = {name: payload[name] for name in ("tp", "pp", "sequence_parallel")}
    parallel = Parallel(**sizes, uneven=Uneven(**payload.get("uneven", {})))
    return How(dtype=DTYPES[payload["dtype"]], narrow=narrower(a, b), streamed=payload["streamed"], parallel=parallel)


def narrower(a: Checkpoint, b: Checkpoint) -> tuple[torch.dtype, ...]:
    """The dtypes to which one side was cast and which lose something of the other's: its weights are rounded as well.

    Otherwise the rounding of a cast would hide whatever is smaller than it. Of bf16 and fp16 either loses something,
    and bf16, whose range is fp16's and more, is first: then whichever was cast comes to the same.
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
    """The first folder that has a tokenizer."""
    found = [path.parent for c in checkpoints for name, path in c.side_files.items() if name.startswith("tokenizer.")]
    return found[0] if found else None


def _noise(model: Model, scores: Scores | None, asked: Probe) -> Errors | None:
    """Return how far the reference is from itself when its sums are taken in another order, over the whole probe.

    Fewer positions would show too low a floor: rounding grows along a row, and most where a row leaps.
    """
    with OtherOrder():
        again = model.run(asked.tokens, asked.positions)
        if scores is None or again is None:
            return None
        return distance(_pairs(scores, again))


def _pairs(a: Scores, b: Scores) -> Iterator[Pair]:
    """Chunks of both over the vocabulary and the positions that both have."""
    for candidate, reference in zip(b.chunks(), a.chunks(), strict=False):
        common = min(reference.shape[-1], candidate.shape[-1])
        positions = min(reference.shape[1], candidate.shape[1])
        yield reference[:, :positions, :common], candidate[:, :positions, :common].to(reference.device)


def vocabulary(a: Checkpoint, b: Checkpoint) -> list[str]:
    """The true vocabulary is the model's: a row more is padding that leaked, a row less is a token that is lost."""
    one, two = a.spec.vocab_size, b.spec.vocab_size
    if two > one:
        return [f"{b.name} has {two - one} tokens more than {a.name}'s {one}: rows of padding that leaked"]
    return [f"{b.name} has {one - two} tokens less than {a.name}'s {one}"] if two < one else []


def padding(scores: Scores, asked: Probe, *, true: int) -> dict[str, Any] | None:
    """What Megatron's logits beyond the true vocabulary do to the loss that it prints; None where there are none."""
    whole = getattr(scores, "padded", None)
    if whole is None or whole.shape[-1] == true:
        return None
    labels, total = asked.tokens[:, 1:, None].to(whole.device), 0.0
    for part, wanted in zip(whole[:, :-1].split(CHUNK, dim=1), labels.split(CHUNK, dim=1), strict=True):
        total -= float(part.double().log_softmax(-1).gather(-1, wanted).sum())
    return {"rows": whole.shape[-1] - true, "loss_over_all": total / max(1, labels.numel())}


def layer_errors(a: Scores, b: Scores) -> list[dict[str, Any]]:
    """Root mean square error over scale of the hidden states behind each layer, each model on its own states."""
    out = []
    for name, reference in a.layers.items():
        if name in b.layers:
            error = (reference - b.layers[name]).square().mean().sqrt() / reference.square().mean().sqrt().clamp(
                min=1e-30
            )
            out.append({"layer": name, "error": float(error)})
    return out


def embedding_rows(a: Checkpoint, b: Checkpoint, *, narrow: tuple[torch.dtype, ...] = ()) -> list[int]:
    """Tokens whose input embeddings differ. Each token of a probe reads one row, so the others are compared here.

    The limit is 1e-4 of the row's norm where the dtypes are the same or both were rounded, else a rounding to 8 bits.
    """
    first, second = a.source, b.source
    logical = a.family.embedding
    limit = 1e-4 if narrow or dtype_of(first, logical) == dtype_of(second, logical) else 2**-7
    rows = min(dims_of(first, logical)[0], dims_of(second, logical)[0])
    found = []
    for box in slab_boxes((rows, *dims_of(first, logical)[1:]), 1 << 22):
        one, two = (rounded(side.pull(logical, box), narrow).float() for side in (first, second))
        off = ~((one - two).norm(dim=-1) <= limit * one.norm(dim=-1))  # a NaN is off, too
        found += [box[0][0] + int(i) for i in off.nonzero()]
    forget()
    return found
