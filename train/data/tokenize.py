"""Tokenize text to megatron-core's `.bin`/`.idx`, and record beside them how documents end."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mconv.errors import FormatError, MconvError
from mconv.train.data.bad_records import POLICIES, REJECTED, BadRecord, OnBad, Rejected, Rejects
from mconv.train.data.index import with_ending
from mconv.train.data.pool import in_order
from mconv.train.data.reading.batch import Batch
from mconv.train.data.reading.formats import batches
from mconv.train.data.record import Tokenized, appearing, facts, load_tokenizer


def tokenize(
    sources: Sequence[Path],
    prefix: Path,
    *,
    tokenizer: Path,
    key: str = "text",
    append_eod: bool = True,
    prepend_bos: bool = False,
    workers: int = 1,
    on_bad_record: str = "stop",
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Tokenized:
    """Write PREFIX.bin, .idx and .mconv.json from `sources`, in their order whatever the number of `workers`.

    The tokenizer is an HF folder, read offline and without remote code. Each document ends in its EOS token unless
    `append_eod` is off: without it megatron-core's samples run documents together with nothing between them.
    Files appear under their names only when all is written. A bad record raises BadRecord (file:line, kind), or with
    `on_bad_record` "skip" is left out, counted, and listed in PREFIX.rejected.jsonl.
    """
    bad = checked(workers, on_bad_record)
    known = facts(tokenizer, append_eod=append_eod, prepend_bos=prepend_bos)
    outputs = [with_ending(prefix, suffix) for suffix in (".bin", ".idx", ".mconv.json")]
    listed = with_ending(prefix, REJECTED)
    with appearing(outputs, maybe=listed, overwrite=overwrite) as (data, index, record, rejected):
        with closing(Rejects(rejected)) as rejects:
            encode = partial(
                _encode, key=key, bad=bad, folder=tokenizer, bos=known["prepend_bos"], eos=known["append_eod"]
            )
            encoded = good(in_order(read(sources, rejects, [key]), encode, workers=workers), rejects)
            counts = _write(encoded, data, index, known, progress)
            rejects.check()
        made = Tokenized(**known, **counts, on_bad_record=on_bad_record, **rejects.facts(listed.name))
        record.write_text(json.dumps(dataclasses.asdict(made), indent=2) + "\n")
    return made


def checked(workers: int, on_bad_record: str) -> OnBad:
    """Return what to do about a bad record. Raises MconvError on options that cannot be."""
    if workers < 1:
        raise MconvError(f"--workers is {workers}; at least 1 is needed")
    if on_bad_record not in POLICIES:
        raise MconvError(f"--on-bad-record is {on_bad_record!r}; it must be one of {', '.join(POLICIES)}")
    return POLICIES[on_bad_record]


def read(sources: Sequence[Path], rejects: Rejects, keys: Sequence[str] | None = None) -> Iterator[Batch]:
    """Yield the batches of all sources, counting the records of each."""
    for path in sources:
        for batch in batches(path, keys):
            rejects.records[batch.file] += sum(1 for _ in batch.texts([]))
            yield batch


def good(results: Iterable[list[Any]], rejects: Rejects) -> Iterator[Any]:
    """Yield what is not rejected; pass the others to `rejects`. Raises FormatError where nothing else was there."""
    found = False
    for result in chain.from_iterable(results):
        if isinstance(result, Rejected):
            rejects.add(result)
        else:
            found = True
            yield result
    if not found:
        rejects.check()


def _encode(
    batch: Batch, *, key: str, bad: OnBad, folder: Path, bos: int | None, eos: int | None
) -> list[list[int] | Rejected]:
    """Return the ids of each document of a batch, with its marks where it has none; none for an empty document."""
    found = [bad(value, place) if isinstance(value, BadRecord) else value[0] for place, value in batch.texts([key])]
    texts = [text for text in found if isinstance(text, str)]
    coded = iter(load_tokenizer(folder)(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [])
    return [text if isinstance(text, Rejected) else _ended(next(coded), bos, eos) for text in found]


def _ended(ids: list[int], bos: int | None, eos: int | None) -> list[int]:
    return marked(ids, bos, eos) if ids else []


def marks(ids: list[int], bos: int | None, eos: int | None) -> tuple[list[int], list[int]]:
    """Return the ids to put before and behind those of a document: BOS and EOS, neither of them twice."""
    return [] if bos is None or ids[0] == bos else [bos], [] if eos is None or ids[-1] == eos else [eos]


def marked(ids: list[int], bos: int | None, eos: int | None) -> list[int]:
    """Return ids with BOS before them and EOS behind."""
    head, tail = marks(ids, bos, eos)
    return [*head, *ids, *tail]


def highest(ids: list[int], vocab_size: int) -> int:
    """Return the largest id. Raises FormatError if the tokenizer has no such id: a builder's cast would wrap it round."""
    if (found := max(ids)) >= vocab_size:
        raise FormatError(f"the tokenizer gave id {found}, beyond its own vocabulary of {vocab_size}")
    return found


def _write(
    encoded: Iterable[list[int]], data: Path, index: Path, known: dict[str, Any], progress: Callable[[int], None]
) -> dict[str, Any]:
    """Feed megatron-core's builder, and count."""
    from mconv.train.megatron.imports import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(data), dtype=np.dtype(known["dtype"]).type)
    with closing(builder.data_file):
        counts = _add(builder, encoded, known, progress)
        builder.finalize(str(index))
    return {**counts, "bin_bytes": data.stat().st_size}


def _add(
    builder: Any, encoded: Iterable[list[int]], known: dict[str, Any], progress: Callable[[int], None]
) -> dict[str, int]:
    """Add every document that is not empty. Raises FormatError if there is none, or an id is out of range."""
    counts = {"documents": 0, "empty": 0, "spelled": 0, "tokens": 0, "max_id": -1}
    for ids in encoded:
        if not ids:
            counts["empty"] += 1
            continue
        largest = highest(ids, known["vocab_size"])
        builder.add_document(ids, [len(ids)])
        counts["documents"] += 1
        counts["spelled"] += known["append_eod"] in ids[:-1]
        counts["tokens"] += len(ids)
        counts["max_id"] = max(counts["max_id"], largest)
        if counts["documents"] % 512 == 0:
            progress(counts["documents"])
    if not counts["documents"]:
        raise FormatError("no document with text in the input; megatron-core cannot open an empty dataset")
    return counts
