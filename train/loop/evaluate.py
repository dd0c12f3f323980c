"""Evaluate on held-out data: loss, perplexity, accuracy; the same at every layout."""

import contextlib
import math
from collections.abc import Iterator

import torch

from mconv.train.loop.run import Run
from mconv.train.loop.steps import SUMS, Feeds, forward_backward
from mconv.train.model.engine import unwrap


@torch.no_grad()
def evaluate(run: Run, feed: Feeds) -> dict[str, float]:
    """Return {"loss", "perplexity", "accuracy"} over all tokens of the next `eval_iters` global batches.

    Accuracy is the share of the tokens that the loss counts which the model finds likeliest. "answer_accuracy" is that
    of the tokens which the loss counts in full, where it counts others for less. Nothing of the run changes.
    """
    sums = [0.0] * SUMS
    with _measuring(run):
        for _ in range(run.config.eval_iters):
            total = forward_backward(run, feed, size=run.config.global_batch_size, forward_only=True)
            sums = [a + b for a, b in zip(sums, total.tolist(), strict=True)]
    loss, weight, right, tokens, right_answers, answers = sums
    loss = loss / weight if weight else float("nan")
    measured = {"loss": loss, "perplexity": perplexity(loss), "accuracy": right / max(tokens, 1)}
    return measured | ({"answer_accuracy": right_answers / max(answers, 1)} if 0 < answers < tokens else {})


def perplexity(loss: float) -> float:
    """Return exp(loss), also where it is infinite or NaN; Megatron-LM ends it at exp(20)."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@contextlib.contextmanager
def _measuring(run: Run) -> Iterator[None]:
    """Turn dropout off, and have each forward compare the likeliest token with the label, within this context."""
    scores = [unwrap(chunk).compute_language_model_loss for chunk in run.chunks]
    for chunk, score in zip(run.chunks, scores, strict=True):
        chunk.eval()
        score.watching = True
    try:
        yield
    finally:
        for chunk, score in zip(run.chunks, scores, strict=True):
            chunk.train()
            score.watching = False
