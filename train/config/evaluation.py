"""What a run measures on data that it does not train on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mconv.train.config import rules
from mconv.train.config.data import shares


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation: loss, perplexity and accuracy on validation and test data."""

    eval_interval: int = 0
    """Iterations between evaluations on the validation data, with one more at the end; 0 never evaluates."""
    eval_iters: int = 10
    """Global batches in one evaluation."""
    eval_only: bool = False
    """Only evaluate, on the validation and test data: nothing is trained and no checkpoint or log is written."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "eval_iters")
        yield from rules.not_negative(config, "eval_interval")
        valid, test = (sum(shares(config.split)[n : n + 1]) if config.data else 0.0 for n in (1, 2))
        split = f"split {config.split!r} has no share for" if config.split else "split is not set, which leaves no"
        given = split if config.data else "there is no"
        if config.eval_interval and not (config.mock_data or valid or config.valid_data):
            yield f"eval_interval is {config.eval_interval}, but {given} validation data"
        if config.eval_only and not (config.mock_data or valid or test or config.valid_data or config.test_data):
            yield "eval_only measures on validation and test data, and there is neither; see split, valid_data, test_data"
        if config.valid_data and not (config.eval_interval or config.eval_only):
            yield "valid_data is set, but neither eval_interval nor eval_only ever evaluates on it"
