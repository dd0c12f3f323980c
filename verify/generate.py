"""Greedy generation: do both models produce the same tokens?

The reference generates. The candidate reads the result once, and must rank the same token first at every step. That
equals generating with both, because each step gets the same tokens until the first difference.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mconv.convert.checkpoint.model import Checkpoint
from mconv.spec import ModelSpec
from mconv.train.megatron.collectives import from_rank_0
from mconv.verify import probes
from mconv.verify.models import Model

PROMPT_LENGTH = 8
"""Random ids in a prompt where there is no tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Text that the reference generated."""

    tokens: Int[Tensor, "b s"]
    """Prompts, each followed by its generated tokens."""
    prompt: int
    """Number of tokens of each prompt."""
    scores: Float[Tensor, "b n v"]
    """Logits from which each generated token was chosen."""
    from_text: bool


def prompts(spec: ModelSpec, folder: Path | None) -> tuple[Int[Tensor, "b s"], bool]:
    """Return tokenized prompts of one length, and True; random ids and False if there is no tokenizer."""
    found = probes.encode(folder, spec, probes.PROMPTS) if folder else None
    if found:
        shortest = min(probes.PROMPT, *map(len, found))
        return torch.tensor([ids[:shortest] for ids in found]), True
    rows = [probes.random_ids(spec, length=PROMPT_LENGTH, seed=seed) for seed in range(len(probes.PROMPTS))]
    return torch.stack(rows), False


def reference(
    model: Model, checkpoint: Checkpoint, *, tokenizer_folder: Path | None, new: int, vocabulary: int | None = None
) -> Generated | None:
    """Generate `new` tokens after each prompt with the reference, and return them; None if `new` is 0.

    It chooses among the first `vocabulary` tokens, so that a candidate with fewer tokens can read them.
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
    return Generated(tokens=tokens, prompt=length, scores=torch.stack(scores, dim=1), from_text=from_text)


def _last(model: Model, tokens: Int[Tensor, "b s"]) -> Float[Tensor, "b v"]:
    """Return the logits behind the last token on every rank: rank 0 sends them to those that only wait."""
    scores = model.run(tokens)
    last = None if scores is None else torch.cat(list(scores.chunks()), dim=1)[:, -1].cpu()
    received: Tensor = from_rank_0(last)
    return received


def replay(model: Model, generated: Generated | None) -> Float[Tensor, "b n v"] | None:
    """Return the candidate's logits at the same steps, on rank 0."""
    if generated is None:
        return None
    scores = model.run(generated.tokens[:, :-1])
    return None if scores is None else torch.cat(list(scores.chunks()), dim=1)[:, generated.prompt - 1 :].cpu()


def verdict(
    generated: Generated | None, replayed: Float[Tensor, "b n v"] | None, *, noise: float
) -> dict[str, Any] | None:
    """Return whether both rank the same token first at each step; differences within noise do not count."""
    if generated is None or replayed is None:
        return None
    common = min(replayed.shape[-1], generated.scores.shape[-1])
    own, wanted = replayed[..., :common].argmax(dim=-1), generated.tokens[:, generated.prompt :]
    ahead = generated.scores.gather(-1, wanted[..., None]) - generated.scores.gather(-1, own[..., None])
    differs = (own != wanted) & (ahead[..., 0] > 2 * noise)
    steps = wanted.shape[1]
    first = [int(row.nonzero()[0]) if row.any() else None for row in differs]
    wrong = [f"prompt {n}: greedy token {at + 1} of {steps} differs" for n, at in enumerate(first) if at is not None]
    return {
        "passed": not wrong,
        "failures": wrong,
        "prompts": len(first),
        "tokens": steps,
        "from_text": generated.from_text,
        "agreement": float((own == wanted).double().mean()),
        "first_difference": first,
    }
