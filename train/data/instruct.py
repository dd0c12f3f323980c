"""Conversations to the ancestor's two pairs of files: the tokens, and who says each of them."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mconv.errors import FormatError, MconvError
from mconv.train.data.chat import OWN, TEMPLATES, Keys, Role, Turn, check_template, spelled, turns
from mconv.train.data.index import beside
from mconv.train.data.pool import BATCH, in_batches
from mconv.train.data.record import Tokenized, appearing, facts, load_tokenizer
from mconv.train.data.sources import ROLE, TEXT
from mconv.train.data.templates import rendered
from mconv.train.data.text import lines, parsed
from mconv.train.data.tokenize import highest, marks

END = 3
"""Tokens at the end of an answer among which the one that ends it is looked for: a template may add a line's end."""


class Said(NamedTuple):
    """A conversation as tokens."""

    ids: list[int]
    roles: list[int]
    """Of each token."""
    ended: bool
    """Whether the last answer has a special token at its end, by which a model learns to stop; true without an answer."""


def instruct(
    sources: Sequence[Path],
    prefix: Path,
    *,
    tokenizer: Path,
    template: str = OWN,
    keys: Keys | None = None,
    append_eod: bool = False,
    prepend_bos: bool = False,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Tokenized:
    """Write PREFIX-text and PREFIX-role (.bin and .idx each) and PREFIX-text.mconv.json, in the order of `sources`.

    Each line of a source is a conversation: a list of turns, or a question and its answer (`keys`). `template` writes
    it as one text, which is tokenized whole; a token is said by who says its first character. `append_eod` puts EOS
    behind the last turn, as part of it. Raises FormatError on a bad record (file:line).
    """
    if workers < 1:
        raise MconvError(f"--workers is {workers}; at least 1 is needed")
    known = facts(tokenizer, append_eod=append_eod, prepend_bos=prepend_bos)
    check_template(template, load_tokenizer(tokenizer))
    if not load_tokenizer(tokenizer).is_fast:
        raise MconvError(f"{tokenizer}: not a fast tokenizer; no other tells from which letters a token comes")
    ends = [f"{kind}{suffix}" for kind in (TEXT, ROLE) for suffix in (".bin", ".idx")] + [f"{TEXT}.mconv.json"]
    with appearing([beside(prefix, end) for end in ends], overwrite=overwrite) as parts:
        said = partial(_said, folder=tokenizer, template=template, bos=known["prepend_bos"], eos=known["append_eod"])
        talks = _conversations(sources, keys or Keys())
        counts = _write(in_batches(talks, said, workers=workers, letters=_letters), parts, known, progress)
        made = Tokenized(**known, **counts, template=template)
        parts[-1].write_text(json.dumps(dataclasses.asdict(made), indent=2) + "\n")
    return made


def _conversations(sources: Iterable[Path], keys: Keys) -> Iterator[tuple[list[Turn], str]]:
    """(turns, file:line) of every record."""
    for path in sources:
        for line, where in lines(path):
            yield turns(parsed(line, where), keys, where), where


def _letters(conversation: tuple[list[Turn], str]) -> int:
    return sum(len(text) for _, text in conversation[0])


def _said(
    batch: list[tuple[list[Turn], str]], *, folder: Path, template: str, bos: int | None, eos: int | None
) -> list[Said]:
    """Ids and roles of each conversation of a batch; none for one without turns."""
    tokenizer = load_tokenizer(folder)
    own = template == OWN
    parts = [
        [] if not talk else rendered(talk, tokenizer, where) if own else spelled(talk, TEMPLATES[template])
        for talk, where in batch
    ]
    texts = ["".join(text for _, text in spoken) for spoken in parts]
    coded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    special = {*tokenizer.all_special_ids, *(n for n, token in tokenizer.added_tokens_decoder.items() if token.special)}
    made = []
    for ids, offsets, spoken, (_, where) in zip(coded["input_ids"], coded["offset_mapping"], parts, batch, strict=True):
        marked = _marked(ids, _roles(offsets, spoken, where), bos, eos)
        made.append(Said(*marked, ends(*marked, special)))
    return made


def _roles(offsets: Sequence[tuple[int, int]], spoken: Sequence[Turn], where: str) -> list[int]:
    """The role of each token: that of the part in which it begins. Raises FormatError if an answer has none."""
    ends = np.cumsum([len(text) for _, text in spoken])
    parts = np.searchsorted(ends, [start for start, _ in offsets], side="right")
    whose = {min(int(part), len(spoken) - 1) for part in parts}
    for part, (role, text) in enumerate(spoken):
        if role is Role.ASSISTANT and text.strip() and part not in whose:
            raise FormatError(f"{where}: the tokenizer does not tell which tokens are those of the answer {text[:80]!r}")
    return [int(spoken[min(part, len(spoken) - 1)][0]) for part in parts]


def ends(ids: Sequence[int], roles: Sequence[int], special: Set[int]) -> bool:
    """Whether the last answer has a token at its end that says so; true too where there is no answer."""
    said = [token for token, role in zip(ids, roles, strict=True) if role == Role.ASSISTANT]
    return not said or not special.isdisjoint(said[-END:])


def _marked(ids: list[int], roles: list[int], bos: int | None, eos: int | None) -> tuple[list[int], list[int]]:
    """With BOS, which nobody answers, and EOS, which the last to speak says."""
    if not ids:
        return [], []
    head, tail = marks(ids, bos, eos)
    return [*head, *ids, *tail], [*[min(roles[0], Role.PROMPTER)] * len(head), *roles, *[roles[-1]] * len(tail)]


def _write(
    said: Iterable[Said], parts: Sequence[Path], known: dict[str, Any], progress: Callable[[int], None]
) -> dict[str, Any]:
    """Feed megatron-core's builders, and count. The ancestor marks no documents, so nor do these files."""
    from mconv.train.mcore import IndexedDatasetBuilder

    texts, roles = (IndexedDatasetBuilder(str(parts[n]), dtype=np.dtype(known["dtype"]).type) for n in (0, 2))
    with closing(texts.data_file), closing(roles.data_file):
        counts = _add(texts, roles, said, known, progress)
        texts.finalize(str(parts[1]))
        roles.finalize(str(parts[3]))
    return {**counts, "bin_bytes": parts[0].stat().st_size}


def _add(
    texts: Any, roles: Any, said: Iterable[Said], known: dict[str, Any], progress: Callable[[int], None]
) -> dict[str, int]:
    """Add every conversation that is not empty. Raises FormatError if there is none, or none has an answer."""
    counts = {"documents": 0, "empty": 0, "tokens": 0, "max_id": -1, "answer_tokens": 0, "unended": 0}
    for ids, whose, ended in said:
        if not ids:
            counts["empty"] += 1
            continue
        largest = highest(ids, known["vocab_size"])
        texts.add_item(torch.tensor(ids))
        roles.add_item(torch.tensor(whose))
        counts["documents"] += 1
        counts["tokens"] += len(ids)
        counts["max_id"] = max(counts["max_id"], largest)
        counts["answer_tokens"] += whose.count(Role.ASSISTANT)
        counts["unended"] += not ended
        if counts["documents"] % BATCH == 0:
            progress(counts["documents"])
    if not counts["answer_tokens"]:
        raise FormatError("no conversation with an answer in the input; there is nothing to train on")
    return counts
