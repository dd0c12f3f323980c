"""Greedy generation of two models: the same tokens?

The reference generates; the candidate reads what it wrote once and must rank the same token first at every step. That is
the same as generating with both, since each step is given the same tokens until the first that differs.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mconv.convert.checkpoint import Checkpoint
from mconv.spec import ModelSpec
from mconv.train.megatron.collectives import from_rank_0
from mconv.verify import probes
from mconv.verify.models import Model

PROMPT_LENGTH = 8
"""Random ids in a prompt where there is no tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the reference wrote."""

    tokens: Int[Tensor, "b s"]
    """Prompts and what follows them."""
    prompt: int
    """Tokens of each prompt."""
    scores: Float[Tensor, "b n v"]
    """The logits from which each new token was chosen."""
    from_text: bool


def prompts(spec: ModelSpec, folder: Path | None) -> tuple[Int[Tensor, "b s"], bool]:
    """Return the prompts of `probes` through a tokenizer, cut to one length; random ids where there is no tokenizer."""
    found = probes.encode(folder, spec, probes.PROMPTS) if folder else None
    if found:
        shortest = min(probes.PROMPT, *map(len, found))
        return torch.tensor([ids[:shortest] for ids in found]), True
    rows = [probes.random_ids(spec, length=PROMPT_LENGTH, seed=seed) for seed in range(len(probes.PROMPTS))]
    return torch.stack(rows), False


def reference(
    model: Model, checkpoint: Checkpoint, *, tokenizer_folder: Path | None, new: int, vocabulary: int | None = None
) -> Said | None:
    """Let the reference write `new` tokens after each prompt, and return them; None for none.

    It chooses among the first `vocabulary` tokens, so that a candidate that has fewer can read them.
    """
    if not new:
        return None
    size = min(vocabulary or checkpoint.spec.vocab_size, checkpoint.spec.vocab_size)
    tokens, from_text = prompts(replace(checkpoint.spec, vocab_size=size), tokenizer_folder)
    length, scores = tokens.shape[1], []
    for _ in range(new):
        last = _last(model, tokens)[:, :size]
        scores.append(last)
        tokens = torch.cat([tokens, last.argmax(dim=-1, keepdim=True)], dim=1)
    return Said(tokens=tokens, prompt=length, scores=torch.stack(scores, dim=1), from_text=from_text)


def _last(model: Model, tokens: Int[Tensor, "b s"]) -> Float[Tensor, "b v"]:
    """The logits behind the last token, on every rank: those that only wait for rank 0 get them from it."""
    scores = model.run(tokens)
    last = None if scores is None else torch.cat(list(scores.chunks()), dim=1)[:, -1].cpu()
    heard: Tensor = from_rank_0(last)
    return heard


def follow(model: Model, said: Said | None) -> Float[Tensor, "b n v"] | None:
    """The candidate's logits at the same steps, on rank 0."""
    if said is None:
        return None
    scores = model.run(said.tokens[:, :-1])
    return None if scores is None else torch.cat(list(scores.chunks()), dim=1)[:, said.prompt - 1 :].cpu()


def verdict(said: Said | None, followed: Float[Tensor, "b n v"] | None, *, noise: float) -> dict[str, Any] | None:
    """Whether each step ranks the same token first; two that the reference itself tells apart by noise alone are one."""
    if said is None or followed is None:
        return None
    common = min(followed.shape[-1], said.scores.shape[-1])
    own, wanted = followed[..., :common].argmax(dim=-1), said.tokens[:, said.prompt :]
    ahead = said.scores.gather(-1, wanted[..., None]) - said.scores.gather(-1, own[..., None])
    differs = (own != wanted) & (ahead[..., 0] > 2 * noise)
    steps = wanted.shape[1]
    first = [int(row.nonzero()[0]) if row.any() else None for row in differs]
    wrong = [f"prompt {n}: greedy token {at + 1} of {steps} differs" for n, at in enumerate(first) if at is not None]
    return {
        "passed": not wrong,
        "failures": wrong,
        "prompts": len(first),
        "tokens": steps,
        "from_text": said.from_text,
        "agreement": float((own == wanted).double().mean()),
        "first_difference": first,
    }
