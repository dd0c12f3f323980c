"""Who would have noticed? Each planted fault of tests/verify/faults.py against our rules and those of others.

    python benchmarks/faults.py [--weights bf16] [--length 512]      # the table of docs/verify.md
    python benchmarks/faults.py --floors [--weights bf16]            # right conversions: error, noise floor and limit

Every number comes from real logits or real weights of the pair that was planted. A cell is the number that the rule looks
at ("caught": without one, by a shape or by the size of the vocabulary), and **missed** where the fault passes.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "verify")]

import judge  # noqa: E402
import peers  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from faults import DTYPES, FAULTS, Fault, acting, plant  # noqa: E402
from peers import Seen  # noqa: E402

ALIBI = ("falcon-rw", "falcon-40b-alibi")
"""megatron-core has no ALiBi."""


@dataclass
class Pair:
    """A reference and a candidate, and what the rules want to know of them, computed once."""

    reference: Path
    candidate: Path
    length: int

    def logits(self, dtype: str, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Both models' logits [b s v] of the same tokens."""
        from mconv.convert.checkpoint.open import open_checkpoint
        from mconv.verify.models import RunOptions, model_of

        options = RunOptions(dtype=DTYPES[dtype])
        scores = [model_of(open_checkpoint(p), options).run(tokens) for p in (self.reference, self.candidate)]
        return [torch.cat(list(x.chunks()), dim=1) for x in scores]

    @cached_property
    def tokens(self) -> torch.Tensor:
        from mconv.convert.checkpoint.open import open_checkpoint
        from mconv.verify.probes import random_ids

        spec = open_checkpoint(self.reference).spec
        return torch.stack([random_ids(spec, length=self.length, seed=seed) for seed in (1234, 1235)])

    @cached_property
    def weights(self) -> list[dict[str, torch.Tensor]]:
        """The reference's tensors, and the candidate's as an export would name and cut them: whatever a manifest says."""
        from mconv.convert.checkpoint.open import open_checkpoint
        from mconv.convert.sources.read import assemble
        from mconv.convert.sources.source import dtype_of

        found = open_checkpoint(self.candidate)
        source, stored = found.source, found.family.stored(found.spec)
        exported = {s.key: assemble(source, s, dtype=dtype_of(source, s.logical)) for s in stored}
        return [tiny.tensors(self.reference), exported]


def digests(pair: Pair) -> Seen:
    from mconv.convert.checkpoint.open import open_checkpoint
    from mconv.verify.digests import compare

    found = compare(open_checkpoint(pair.reference), open_checkpoint(pair.candidate))
    return Seen(not found.same, len(found.differences) + len(found.spec))


def ours(pair: Pair, dtype: str) -> Seen:
    """Our rule for logits, in arithmetic of `dtype`; the number is the largest error over scale."""
    found = judge.judged(pair.reference, pair.candidate, proofs="logits", length=pair.length, batch=2, dtype=dtype)
    caught = not found["passed"]
    return Seen(caught, None if caught and not found["relative_max"] else found["relative_max"])


RULES: dict[str, Callable[[Pair], Seen]] = {
    "digests: what differs": digests,
    "logits in fp32: max / scale": lambda pair: ours(pair, "fp32"),
    "logits in bf16: max / scale": lambda pair: ours(pair, "bf16"),
    "mean error < 0.01, fp32": lambda pair: peers.mean_error(*pair.logits("fp32", pair.tokens), dtype="fp32"),
    "mean error < 0.1, bf16": lambda pair: peers.mean_error(*pair.logits("bf16", pair.tokens), dtype="bf16"),
    "cosine >= 0.99, 8 tokens": lambda pair: peers.last_cosine(
        *(x[0] for x in pair.logits("bf16", pair.tokens[:1, : peers.PROMPT]))
    ),
    "weights, atol 0.1": lambda pair: peers.weights_close(*pair.weights),
    "sums, 1e-5": lambda pair: peers.sums_close(*pair.weights),
}
"""Ours, then the ancestor's two, Megatron-Bridge's two, mbridge's. Cosines are of bf16 arithmetic, as its script runs."""


def judged(fault: Fault, *, dtype: str, length: int) -> dict[str, Seen]:
    """What each rule makes of one fault."""
    with tempfile.TemporaryDirectory() as folder, acting(fault):
        pair = Pair(*plant(fault, Path(folder), dtype), length)
        return {name: rule(pair) for name, rule in RULES.items()}


def cell(rule: str, seen: Seen) -> str:
    number = "caught" if seen.caught else "not compared"
    if seen.number is not None:
        number = f"{seen.number:.5f}" if "cosine" in rule else f"{seen.number:.2g}"
    return number if seen.caught else f"**missed** ({number})"


def row(*cells: object) -> None:
    print(f"| {' | '.join(str(c) for c in cells)} |", flush=True)


def catalogue(*, weights: str, length: int) -> None:
    row(f"fault, in {weights} weights", *RULES)
    row(*["---"] * (1 + len(RULES)))
    caught = dict.fromkeys(RULES, 0)
    for fault in FAULTS:
        seen = judged(fault, dtype=weights, length=length)
        caught = {name: n + seen[name].caught for name, n in caught.items()}
        row(fault.name, *(cell(rule, s) for rule, s in seen.items()))
    row("caught", *(f"{n} of {len(FAULTS)}" for n in caught.values()))


FLOORS = ("relative_max", "relative_rms")


def floors(*, dtype: str, length: int) -> None:
    """Right conversions in arithmetic of `dtype`, of weights in it: the error, the model's own noise, the limit."""
    row(f"model, {dtype}", *(f"{what} {name}" for name in ("max", "rms") for what in ("error", "noise", "limit")))
    row(*["---"] * (1 + 3 * len(FLOORS)))
    for model in tiny.MODELS:
        if model not in ALIBI:
            found = _right(model, dtype, length=length)
            parts = [(found[name], found["noise"][name], found["limits"][name]) for name in FLOORS]
            row(model, *(f"{value:.1e}" for part in parts for value in part))


def _right(model: str, dtype: str, *, length: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        hf = tiny.make_model(model, Path(folder) / "hf", dtype=DTYPES[dtype])
        megatron = judge.convert(hf, Path(folder) / "megatron")
        return judge.judged(hf, megatron, proofs="logits", length=length, dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", choices=DTYPES, default="bf16")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--floors", action="store_true")
    given = parser.parse_args()
    if given.floors:
        floors(dtype=given.weights, length=min(given.length, 256))
    else:
        catalogue(weights=given.weights, length=given.length)


if __name__ == "__main__":
    main()
