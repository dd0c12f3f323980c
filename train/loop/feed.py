"""The datasets of a run, and the micro batches that each rank draws from them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
import xxhash

from mconv.train.config.data import RESETS, shares
from mconv.train.config.length import run_length
from mconv.train.data import checks, dataset, instruction, mock
from mconv.train.data.index import with_ending
from mconv.train.data.loader import Shuffled, batches, sample_numbers
from mconv.train.data.sources import TEXT, Blend, blend
from mconv.train.logs.log import Say
from mconv.train.loop.run import Run
from mconv.train.loop.steps import Batches, Feeds
from mconv.train.megatron.imports import parallel_state

USES = ("training", "validation", "test")
STEP = 16
"""Rows of variable length are multiples of this."""


@dataclass(frozen=True, slots=True)
class Sets:
    """A run's datasets: for training, during it, and after it."""

    train: Any
    valid: Any = None
    test: Any = None


def sets(run: Run, say: Say) -> Sets:
    """Open everything that the run reads. Raises ConfigError or FormatError on data that cannot be trained on."""
    config, talks = run.config, run.config.data_type == "instruction"
    if config.mock_data:
        return _mock(run)
    if config.data:
        blends: list[Blend | None] = [blend(config.data, config.data_weights, instruction=talks)]
    else:
        apart = (config.train_data, config.valid_data, config.test_data)
        blends = [blend(names, instruction=talks) if names else None for names in apart]
    prefixes = list(dict.fromkeys(prefix for mix in blends if mix for prefix in mix.prefixes))
    if not config.allow_other_tokenizer:  # before index files are written
        ends = TEXT if talks else ""
        checks.same_tokenizer([with_ending(prefix, ends) for prefix in prefixes], run.origin.side_files)
    made = _conversations(run, blends, say) if talks else _text(run, blends, prefixes)
    return _cyclic(made, config.seed) if config.dataloader_type == "cyclic" else made


def feed(run: Run, data: Any, *, consumed: int) -> Feeds:
    """Return this replica's micro batches for each chunk; None for one that needs no tokens, labels or documents."""
    config, stage = run.config, parallel_state.get_pipeline_model_parallel_rank()
    apart = config.reset_position_ids or config.reset_attention_mask or config.packing
    fed = [apart or (stage, chunk) in run.parallel.ends for chunk in range(run.parallel.vpp)]
    return [_feed(run, data, consumed=consumed) if here else None for here in fed]


def last_drawn(run: Run, data: Any) -> str | None:
    """Return a digest of the last sample so far, kept in checkpoints: a resumed run recognises its data by it."""
    if not run.consumed:
        return None
    return xxhash.xxh3_128_hexdigest(data[(run.consumed - 1) % len(data)]["tokens"].numpy())


def other_data(run: Run, data: Any) -> Iterator[str]:
    """Yield a line if the data, or its order, is not what it was when the checkpoint was saved."""
    then = run.memory.get("sample")
    if then and then != last_drawn(run, data):
        yield (
            f"warning: the last sample of iteration {run.iteration} differs from the one at the save: the data or its "
            "order has changed; some samples may be repeated, others left out"
        )


def _feed(run: Run, data: Any, *, consumed: int) -> Batches:
    config = run.config
    numbers = sample_numbers(
        consumed, micro_batch_size=config.micro_batch_size, global_batch_size=config.global_batch_size,
        replica=parallel_state.get_data_parallel_rank(), replicas=parallel_state.get_data_parallel_world_size(),
    )  # fmt: skip
    multiple = math.lcm(STEP, config.tp) if config.variable_seq_lengths else run.seq_length
    return batches(
        data, numbers, device=torch.cuda.current_device(), workers=config.num_workers, multiple=multiple,
        longest=run.seq_length, vocab_size=run.spec.vocab_size,
    )  # fmt: skip


def _cyclic(made: Sets, seed: int) -> Sets:
    """Return training data that is shuffled anew each epoch, if it is not already."""
    again = made.train is None or isinstance(made.train, Shuffled)
    return made if again else replace(made, train=Shuffled(made.train, seed))


def _mock(run: Run) -> Sets:
    """Return datasets of Megatron-LM's rising numbers, whose last one ends a document."""
    config, spec = run.config, run.spec
    samples = [wanted or 1 for wanted in _samples(run, weighed=True)]
    made = mock.datasets(vocab_size=spec.vocab_size, seq_length=run.seq_length, seed=config.seed, samples=samples)
    apart = _apart(run, eod=lambda wanted_by: spec.vocab_size - 1)
    sets = Sets(*(apart(data) for data in made if config.eval_interval or config.eval_only or data is made[0]))
    return _cyclic(sets, config.seed) if config.dataloader_type == "cyclic" else sets


def _text(run: Run, blends: list[Blend | None], prefixes: list[Path]) -> Sets:
    """Return datasets of running text, by megatron-core."""
    config = run.config
    wanted = _samples(run, weighed=bool(blends[0] and blends[0].weights))
    uses = _uses(run, blends, wanted)
    parts = [checks.PrefixShare(name=use.name, prefixes=use.mix.prefixes, edges=use.edges) for use in uses]
    checks.check(parts, vocab_size=run.spec.vocab_size, seq_length=run.seq_length)
    given = config.eod_token
    apart = _apart(run, eod=lambda wanted_by: checks.end_of_document(prefixes, given=given, wanted_by=wanted_by))
    near = Path(config.save) / "data-cache" if config.save else with_ending(prefixes[0], ".cache")
    built = dataset.datasets(
        blends[0] if config.data and blends[0] else blends, split=config.split, seq_length=run.seq_length,
        seed=config.seed, samples=wanted, cache=Path(config.data_cache) if config.data_cache else near,
        mmap=not config.no_mmap_bin_files,
    )  # fmt: skip
    return Sets(*(None if data is None else apart(data) for data in built))


def _conversations(run: Run, blends: list[Blend | None], say: Say) -> Sets:
    """Return datasets of instruction data, mconv's own."""
    config, uses = run.config, _uses(run, blends, _samples(run, weighed=True))
    prefixes = dict.fromkeys(prefix for use in uses for prefix in use.mix.prefixes)
    opened = checks.conversations(list(prefixes), vocab_size=run.spec.vocab_size)
    made = {
        use.name: instruction.endless(
            [opened[prefix] for prefix in use.mix.prefixes], use.mix.weights, use.edges, use.name,
            samples=use.samples or 1, seed=config.seed, say=say,
            seq_length=run.seq_length, scalar_loss_mask=config.scalar_loss_mask, packing=config.packing,
        )
        for use in uses
    }  # fmt: skip
    return Sets(*(made.get(name) for name in USES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """One blend, or a share of it, and its use."""

    name: str
    mix: Blend
    edges: tuple[float, float] = (0.0, 1.0)
    samples: int | None
    """Samples to draw; None for the data once through."""


def _uses(run: Run, blends: list[Blend | None], samples: list[int | None]) -> list[Subset]:
    """Return the subsets to draw from: one blend cut by the split, or several that are whole."""
    if not run.config.data:
        whole = zip(USES, blends, samples, strict=True)
        return [Subset(name=name, mix=mix, samples=count) for name, mix, count in whole if mix and count != 0]
    parts = shares(run.config.split)
    edges = pairwise([0.0, *accumulate(part / sum(parts) for part in parts)])
    cut = [one for one in zip(USES, edges, parts, samples, strict=True) if one[2] and one[3] != 0]
    return [Subset(name=name, mix=mix, edges=edge, samples=n) for mix in blends if mix for name, edge, _, n in cut]


def _samples(run: Run, *, weighed: bool) -> list[int | None]:
    """Return the samples for training, validation and test; 0 of what is not drawn from.

    None: without weights a cyclic epoch is the data once through.
    """
    config = run.config
    # one more than there are on the way: after the last step
    evaluations = run.iterations // config.eval_interval + 1 if config.eval_interval else int(config.eval_only)
    once = config.eval_iters * config.global_batch_size
    trained = None if config.dataloader_type == "cyclic" and not weighed else run_length(config).samples
    return [0 if config.eval_only else trained, evaluations * once, once]


def _apart(run: Run, *, eod: Callable[[str], int]) -> Callable[[Any], Any]:
    """Return a function that keeps the documents of a dataset apart, as the configuration asks.

    `eod` finds the token that ends them, for the option that needs it.
    """
    config = run.config
    asked = [name for name in RESETS if getattr(config, name)]
    if not asked:
        return lambda data: data
    return partial(
        dataset.Apart, eod=eod(asked[0]), positions=config.reset_position_ids, attention=config.reset_attention_mask,
        loss=config.eod_mask_loss,
    )  # fmt: skip
