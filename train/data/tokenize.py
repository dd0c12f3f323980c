"""Tokenize text to the `.bin`/`.idx` that Megatron reads, and record beside them how documents end."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mconv.errors import FormatError, MconvError
from mconv.train.data import engine, staged
from mconv.train.data.bad_records import POLICIES, REJECTED, BadRecord, OnBad, Rejected
from mconv.train.data.encoded import Encoded, Sequences, joined, stored
from mconv.train.data.engine import RunOptions, Task, Totals
from mconv.train.data.index import with_ending
from mconv.train.data.reading.batch import Batch
from mconv.train.data.record import Tokenized, facts
from mconv.train.data.tokenizers.choice import TokenizerChoice
from mconv.train.data.tokenizers.encoders import Encode, Encoder
from mconv.train.data.tokenizers.loaded import LoadedTokenizer
from mconv.train.data.tokenizers.types import load


def tokenize(sources: Sequence[Path], prefix: Path, *, key: str = "text", **settings: Any) -> Tokenized:
    """Write PREFIX.bin, .idx and .mconv.json of the texts under one key; `settings` are those of `tokenize_keys`."""
    return tokenize_keys(sources, prefix, {key: prefix}, **settings)[key]


def tokenize_keys(
    sources: Sequence[Path],
    prefix: Path,
    outputs: Mapping[str, Path],
    *,
    tokenizer: Path | TokenizerChoice,
    append_eod: bool = True,
    prepend_bos: bool = False,
    dtype_rule: str = "megatron",
    on_bad_record: str = "stop",
    **options: Any,
) -> dict[str, Tokenized]:
    """Write a pair, with its record, of the texts under each key of `outputs`, in one pass over `sources`.

    The data has the order of the input, and does not depend on the number of workers. The tokenizer is a folder, a file,
    or a choice by Megatron's options; nothing is fetched and no code of its folder runs. Each document ends in the EOS
    token unless `append_eod` is off: without it megatron-core's samples run documents together with nothing between
    them. Files appear under their names only when all is written; until then they lie beside `prefix`. A bad record
    raises BadRecord (file:line, kind), or with `on_bad_record` "skip" is left out, counted, and listed in
    PREFIX.rejected.jsonl. `options` are those of RunOptions.
    """
    how = RunOptions(**options)
    bad = checked(how.workers, on_bad_record)
    loaded = load(tokenizer)
    known = facts(loaded, append_eod=append_eod, prepend_bos=prepend_bos, dtype_rule=dtype_rule)
    job = _job(loaded, known, tuple(outputs), bad)
    made_of = staged.made_of(sources, **known, keys=[*outputs], on_bad_record=on_bad_record)
    task = Task(
        sources=sources, columns=job.keys, job=job, pairs=[*outputs.values()], records=[*outputs.values()],
        rejected=with_ending(prefix, REJECTED), dtype=job.dtype, documents=True, made_of=made_of,
    )  # fmt: skip
    more = {**known, "on_bad_record": on_bad_record}
    describe = partial(_described, keys=job.keys, more=more, listed=task.rejected.name)
    return dict(zip(outputs, engine.write(task, describe, prefix, how), strict=True))


def job_of(loaded: LoadedTokenizer, keys: Sequence[str]) -> "TokenizeJob":
    """Return the work of tokenizing the texts under `keys` as they are, bad records left out."""
    return _job(loaded, facts(loaded, append_eod=False, prepend_bos=False), tuple(keys), POLICIES["skip"])


def _job(loaded: LoadedTokenizer, known: dict[str, Any], keys: tuple[str, ...], bad: OnBad) -> "TokenizeJob":
    return TokenizeJob(
        keys=keys, encoder=loaded.encoder, bad=bad, bos=known["prepend_bos"], eos=known["append_eod"],
        dtype=known["dtype"], vocab_size=known["vocab_size"],
    )  # fmt: skip


def prefixes(prefix: Path, keys: Sequence[str], *, named: bool) -> dict[str, Path]:
    """Return the prefix of each key: PREFIX_KEY_document for several keys, or if `named`; else PREFIX."""
    if len(keys) == 1 and not named:
        return {keys[0]: prefix}
    return {key: with_ending(prefix, f"_{key}_document") for key in keys}


def checked(workers: int, on_bad_record: str) -> OnBad:
    """Return what to do about a bad record. Raises MconvError on options that cannot be."""
    if workers < 1:
        raise MconvError(f"--workers is {workers}; at least 1 is needed")
    if on_bad_record not in POLICIES:
        raise MconvError(f"--on-bad-record is {on_bad_record!r}; it must be one of {', '.join(POLICIES)}")
    return POLICIES[on_bad_record]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeJob:
    """All that a process needs to tokenize texts."""

    keys: tuple[str, ...]
    encoder: Encoder
    bad: OnBad
    bos: int | None
    eos: int | None
    dtype: str
    vocab_size: int

    def open(self) -> Callable[[Batch], Encoded]:
        """Return the function that tokenizes a batch."""
        return partial(_encoded, job=self, encode=self.encoder.open())


def _encoded(batch: Batch, *, job: TokenizeJob, encode: Encode) -> Encoded:
    """Return the tokens of each key's texts; empty ones have none."""
    texts: list[tuple[str, ...]] = []
    rejected: list[Rejected] = []
    for place, value in batch.texts(job.keys):
        if isinstance(value, BadRecord):
            rejected.append(job.bad(value, place))
        else:
            texts.append(value)
    made = {key: _pair(job, encode([text[number] for text in texts])) for number, key in enumerate(job.keys)}
    counts = {
        key: Counter(empty=len(texts) - len(found.lengths), spelled=_spelled(found, job.eos))
        for key, found in made.items()
    }
    return Encoded(batch.file, len(texts) + len(rejected), batch.size, [*made.values()], counts, rejected)


def _pair(job: TokenizeJob, documents: Iterable[list[int]]) -> Sequences:
    ids, lengths = joined(documents, bos=job.bos, eos=job.eos)
    return Sequences(stored(ids, job.dtype, job.vocab_size), lengths)


def _spelled(found: Sequences, eos: int | None) -> int:
    """Return how many documents spell the token that ends them within their text."""
    if eos is None:
        return 0
    ends = np.cumsum(found.lengths, dtype=np.int64) - 1
    within = np.setdiff1d(np.flatnonzero(found.ids == eos), ends, assume_unique=True)
    return len(np.unique(np.searchsorted(ends, within)))


def _described(totals: Totals, *, keys: Sequence[str], more: dict[str, Any], listed: str) -> list[Tokenized]:
    """Return the record of each key's pair. Raises FormatError if one has no document."""
    made = []
    for key, pair in zip(keys, totals.pairs, strict=True):
        if not pair.sequences:
            under = f" under {key!r}" if len(keys) > 1 else ""
            raise FormatError(f"no document with text{under} in the input; megatron-core cannot open an empty dataset")
        counts: dict[str, Any] = {"empty": 0, "spelled": 0, **totals.counts[key]}
        made.append(Tokenized(
            **more, **counts, documents=pair.sequences, tokens=pair.tokens, max_id=pair.max_id,
            bin_bytes=pair.tokens * np.dtype(more["dtype"]).itemsize, **totals.rejects.facts(listed),
        ))  # fmt: skip
    return made
