"""jsonl to megatron-core's `.bin`/`.idx`, with the policy of documents' ends recorded beside them."""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mconv.errors import ConfigError, FormatError, MconvError
from mconv.train.data.text import documents

BATCH = 512
"""Documents tokenized together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """What `PREFIX.mconv.json` records: enough to know at training whether model and data belong together."""

    tokenizer: str
    """Folder that the tokenizer was read from."""
    tokenizer_sha256: str
    """Digest over the tokenizer's files."""
    vocab_size: int
    append_eod: int | None
    """Token that ends each document; None if none was appended."""
    prepend_bos: int | None
    documents: int
    empty: int
    """Documents without text, left out."""
    tokens: int
    max_id: int
    dtype: str
    bin_bytes: int
    """Size of the .bin file: a record of another size belongs to other data."""


def tokenize(
    sources: Sequence[Path],
    prefix: Path,
    *,
    tokenizer: Path,
    key: str = "text",
    append_eod: bool = True,
    prepend_bos: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Tokenized:
    """Write PREFIX.bin, .idx and .mconv.json from `sources`, in their order whatever the number of `workers`.

    The tokenizer is an HF folder, read offline and without remote code. Each document ends in its EOS token unless
    `append_eod` is off: without it megatron-core's samples run documents together with nothing between them.
    Files appear under their names only when all is written. Raises FormatError on a bad record (file:line).
    """
    if workers < 1:
        raise MconvError(f"--workers is {workers}; at least 1 is needed")
    outputs = [_beside(prefix, suffix) for suffix in (".bin", ".idx", ".mconv.json")]
    if (there := [str(path) for path in outputs if path.exists()]) and not overwrite:
        raise MconvError(f"{', '.join(there)}: already there; pass --overwrite, or another prefix")
    facts = _facts(tokenizer, append_eod=append_eod, prepend_bos=prepend_bos)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    parts = [path.with_name(f".{path.name}.part") for path in outputs]
    try:
        texts = itertools.chain.from_iterable(documents(path, key=key) for path in sources)
        counts: dict[str, Any] = _write(_encoded(texts, tokenizer, facts, workers), parts[0], parts[1], facts, progress)
        record = Tokenized(**facts, **counts)
        parts[2].write_text(json.dumps(dataclasses.asdict(record), indent=2) + "\n")
        for part, path in zip(parts, outputs, strict=True):
            part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return record


def read_record(prefix: Path) -> Tokenized | None:
    """The record beside PREFIX.bin, or None if there is none or it belongs to other data."""
    path = _beside(prefix, ".mconv.json")
    if not path.is_file():
        return None
    known = {field.name for field in dataclasses.fields(Tokenized)}
    try:
        record = Tokenized(**{name: value for name, value in json.loads(path.read_text()).items() if name in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is damaged ({error}); remove it, or tokenize again") from error
    return record if record.bin_bytes == _beside(prefix, ".bin").stat().st_size else None


def _beside(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise FormatError(f"{folder}: not a folder with a tokenizer")
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(f"{folder}: transformers cannot read a tokenizer from it: {error}") from error


def _facts(folder: Path, *, append_eod: bool, prepend_bos: bool) -> dict[str, Any]:
    """Everything about the tokenizer that the record keeps. Raises ConfigError if it lacks the wanted token."""
    tokenizer = _load(folder)
    marks = {"append_eod": append_eod and tokenizer.eos_token_id, "prepend_bos": prepend_bos and tokenizer.bos_token_id}
    for name, mark in marks.items():
        if mark is None:
            raise ConfigError(f"{folder}: {name} was asked for, but the tokenizer has no such token")
    return {
        "tokenizer": str(folder),
        "tokenizer_sha256": _digest(folder),
        "vocab_size": len(tokenizer),
        **{name: None if mark is False else mark for name, mark in marks.items()},
        "dtype": "uint16" if len(tokenizer) < 65500 else "int32",  # megatron-core's rule, IndexedDataset.optimal_dtype
    }


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.name.startswith(("tokenizer", "special_tokens", "added_tokens", "vocab", "merges")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _encoded(texts: Iterable[str], folder: Path, facts: dict[str, Any], workers: int) -> Iterator[list[int]]:
    """Ids of each document, in order, with its marks; empty for an empty document."""
    encode = partial(_encode, folder=str(folder), bos=facts["prepend_bos"], eos=facts["append_eod"])
    texts = iter(texts)
    batches = iter(lambda: list(itertools.islice(texts, BATCH)), [])
    results: Iterable[list[list[int]]]
    with ExitStack() as stack:
        if workers > 1:
            # Spawned: the tokenizers library warns, and may lock up, in a forked child.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, context))
            results = _in_order(pool, encode, batches, 2 * workers)
        else:
            results = map(encode, batches)
        yield from itertools.chain.from_iterable(results)


def _in_order(
    pool: ProcessPoolExecutor, encode: Callable[..., list[list[int]]], batches: Iterator[list[str]], ahead: int
) -> Iterator[list[list[int]]]:
    """Results in the order of `batches`, at most `ahead` of them under way. A killed worker is an error, not a wait."""
    waiting = deque(pool.submit(encode, batch) for batch in itertools.islice(batches, ahead))
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(encode, batch) for batch in itertools.islice(batches, 1))
    except BrokenProcessPool as error:
        raise MconvError("a tokenizing process was killed (out of memory?); try fewer --workers") from error


_tokenizers: dict[str, Any] = {}


def _encode(batch: list[str], *, folder: str, bos: int | None, eos: int | None) -> list[list[int]]:
    """One batch of documents; the tokenizer is kept between calls, once per process."""
    if folder not in _tokenizers:
        _tokenizers.clear()
        _tokenizers[folder] = _load(Path(folder))
    ids = _tokenizers[folder](batch, add_special_tokens=False, verbose=False)["input_ids"]
    head, tail = ([] if mark is None else [mark] for mark in (bos, eos))
    return [[*head, *one, *tail] if one else [] for one in ids]


def _write(
    encoded: Iterable[list[int]], data: Path, index: Path, facts: dict[str, Any], progress: Callable[[int], None]
) -> dict[str, int]:
    """Feed megatron-core's builder, and count."""
    from mconv.train.mcore import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(data), dtype=np.dtype(facts["dtype"]).type)
    with closing(builder.data_file):
        counts = _add(builder, encoded, facts, progress)
        builder.finalize(str(index))
    return {**counts, "bin_bytes": data.stat().st_size}


def _add(
    builder: Any, encoded: Iterable[list[int]], facts: dict[str, Any], progress: Callable[[int], None]
) -> dict[str, int]:
    """Add every document that is not empty. Raises FormatError if there is none, or an id is out of range."""
    counts = {"documents": 0, "empty": 0, "tokens": 0, "max_id": -1}
    for ids in encoded:
        if not ids:
            counts["empty"] += 1
            continue
        highest = max(ids)
        if highest >= facts["vocab_size"]:  # the builder's cast would wrap it round in silence
            raise FormatError(f"the tokenizer gave id {highest}, beyond its own vocabulary of {facts['vocab_size']}")
        builder.add_document(ids, [len(ids)])
        counts["documents"] += 1
        counts["tokens"] += len(ids)
        counts["max_id"] = max(counts["max_id"], highest)
        if counts["documents"] % BATCH == 0:
            progress(counts["documents"])
    if not counts["documents"]:
        raise FormatError("no document with text in the input; megatron-core cannot open an empty dataset")
    return counts
