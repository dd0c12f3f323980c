"""Tokenize conversations to Megatron-LLM's two pairs of files: the tokens, and the role of each."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mconv.errors import FormatError, MconvError
from mconv.train.data.bad_records import REJECTED, BadRecord, Kind, OnBad, Rejected, Rejects
from mconv.train.data.chat import OWN, Part, Role, Talk, check_template, spelled
from mconv.train.data.claims import Keys
from mconv.train.data.conversation import talk_of
from mconv.train.data.index import with_ending
from mconv.train.data.pool import in_order
from mconv.train.data.reading.batch import Batch, Record
from mconv.train.data.reading.fields import unicode
from mconv.train.data.record import Tokenized, appearing, facts, load_tokenizer
from mconv.train.data.sources import ROLE, TEXT
from mconv.train.data.templates import rendered
from mconv.train.data.tokenize import checked, good, highest, marks, read

END = 3
"""Tokens at the end of an answer among which the one that ends it is looked for: a template may add a line's end."""


class TokenizedTalk(NamedTuple):
    """A conversation as tokens."""

    ids: list[int]
    roles: list[int]
    """The role of each token."""
    ended: bool
    """True if the last answer ends in a special token, by which a model learns to stop, or if there is no answer."""
    talk: tuple[int, list[str], list[str]] = (0, [], [])
    """Answers that are excluded from the loss; fields that were ignored, and that say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """All that a tokenizing process needs to turn a record into tokens."""

    folder: Path
    """The tokenizer's folder."""
    template: str
    keys: Keys
    ignore: frozenset[str]
    bad: OnBad
    bos: int | None
    eos: int | None


def instruct(
    sources: Sequence[Path],
    prefix: Path,
    *,
    tokenizer: Path,
    template: str = OWN,
    keys: Keys | None = None,
    ignore_fields: Iterable[str] = (),
    append_eod: bool = False,
    prepend_bos: bool = False,
    workers: int = 1,
    on_bad_record: str = "stop",
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Tokenized:
    """Write PREFIX-text and PREFIX-role (.bin and .idx each) and PREFIX-text.mconv.json, in the order of `sources`.

    Each record of a source is a conversation: a list of turns, or a question and its answer (`keys`). `template` writes
    it as one text, which is tokenized whole; a token is said by who says its first character. `append_eod` puts EOS
    behind the last turn, as part of it. A bad record raises BadRecord (file:line, kind), or with `on_bad_record` "skip"
    is left out, counted, and listed in PREFIX-text.rejected.jsonl; one with fields that no table claims is bad, unless
    they are in `ignore_fields`.
    """
    bad = checked(workers, on_bad_record)
    known = facts(tokenizer, append_eod=append_eod, prepend_bos=prepend_bos)
    check_template(template, load_tokenizer(tokenizer))
    if not load_tokenizer(tokenizer).is_fast:
        raise MconvError(f"{tokenizer}: not a fast tokenizer; only fast ones say from which characters a token comes")
    ends = [f"{kind}{suffix}" for kind in (TEXT, ROLE) for suffix in (".bin", ".idx")] + [f"{TEXT}.mconv.json"]
    how = Encoding(
        folder=tokenizer, template=template, keys=keys or Keys(), ignore=frozenset(ignore_fields), bad=bad,
        bos=known["prepend_bos"], eos=known["append_eod"],
    )  # fmt: skip
    outputs = [with_ending(prefix, end) for end in ends]
    listed = with_ending(prefix, f"{TEXT}{REJECTED}")
    with appearing(outputs, maybe=listed, overwrite=overwrite) as parts:
        with closing(Rejects(parts[-1])) as rejects:
            said = in_order(read(sources, rejects), partial(_tokenize_batch, how=how), workers=workers)
            counts = _write(good(said, rejects), parts, known, progress)
            rejects.check()
        made = Tokenized(**known, **counts, template=template, on_bad_record=on_bad_record, **rejects.facts(listed.name))
        parts[-2].write_text(json.dumps(dataclasses.asdict(made), indent=2) + "\n")
    return made


def _tokenize_batch(batch: Batch, *, how: Encoding) -> list[TokenizedTalk | Rejected]:
    """Return ids and roles of each conversation of a batch; none for one without turns."""
    tokenizer = load_tokenizer(how.folder)
    records = [*batch.records()]
    read = [_read(record, how, tokenizer) for record in records]
    texts = ["".join(text for _, text in found[1]) for found in read if not isinstance(found, Rejected)]
    coded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False) if texts else {}
    tokens = zip(coded.get("input_ids", []), coded.get("offset_mapping", []), strict=True)
    special = {*tokenizer.all_special_ids, *(n for n, token in tokenizer.added_tokens_decoder.items() if token.special)}
    made: list[TokenizedTalk | Rejected] = []
    for record, found in zip(records, read, strict=True):
        if isinstance(found, Rejected):
            made.append(found)
            continue
        try:
            made.append(_tokenized(*found, *next(tokens), special, how))
        except BadRecord as error:
            made.append(how.bad(error, record.place))
    return made


def _read(record: Record, how: Encoding, tokenizer: Any) -> tuple[Talk, list[Part]] | Rejected:
    """Return the conversation of a record and the parts of its text, or what is wrong with it."""
    try:
        if isinstance(record.value, BadRecord):
            raise record.value
        talk = talk_of(record.value, how.keys, how.ignore)
        if how.template == OWN:
            parts = rendered(talk, tokenizer) if talk.turns else []
        else:
            parts = spelled(talk, how.template)
        unicode("".join(text for _, text in parts))
    except BadRecord as error:
        return how.bad(error, record.place)
    return talk, parts


def _tokenized(
    talk: Talk, parts: list[Part], ids: list[int], offsets: Sequence[tuple[int, int]], special: Set[int], how: Encoding
) -> TokenizedTalk:
    """Return the tokens of a conversation, with their roles."""
    marked = _marked(ids, _roles(offsets, parts), how.bos, how.eos)
    excluded = sum(turn.counted is not turn.role for turn in talk.turns)
    return TokenizedTalk(*marked, ends(*marked, special), (excluded, talk.ignored, talk.unread))


def _roles(offsets: Sequence[tuple[int, int]], spoken: Sequence[Part]) -> list[int]:
    """Return the role of each token: that of the part in which it begins. Raises BadRecord if an answer has none."""
    ends = np.cumsum([len(text) for _, text in spoken])
    found = np.searchsorted(ends, [start for start, _ in offsets], side="right")
    parts = np.minimum(found, max(len(spoken) - 1, 0))
    whose = set(parts.tolist())
    for part, (role, text) in enumerate(spoken):
        if role is Role.ASSISTANT and part not in whose and text.strip():
            raise BadRecord(
                Kind.TEMPLATE, f"the tokenizer does not tell which tokens are those of the answer {text[:80]!r}"
            )
    roles: list[int] = np.array([role for role, _ in spoken], dtype=np.int64)[parts].tolist()
    return roles


def ends(ids: Sequence[int], roles: Sequence[int], special: Set[int]) -> bool:
    """Return whether the last answer has a special token at its end; true too if there is no answer."""
    answer = int(Role.ASSISTANT)
    last = next((at for at in range(len(roles) - 1, -1, -1) if roles[at] == answer), None)
    if last is None:
        return True
    return any(roles[at] == answer and ids[at] in special for at in range(max(0, last + 1 - END), last + 1))


def _marked(ids: list[int], roles: list[int], bos: int | None, eos: int | None) -> tuple[list[int], list[int]]:
    """Return ids and roles with BOS, as the prompter's at most, and EOS, in the role of the last token."""
    if not ids:
        return [], []
    head, tail = marks(ids, bos, eos)
    return [*head, *ids, *tail], [*[min(roles[0], Role.PROMPTER)] * len(head), *roles, *[roles[-1]] * len(tail)]


def _write(
    said: Iterable[TokenizedTalk], parts: Sequence[Path], known: dict[str, Any], progress: Callable[[int], None]
) -> dict[str, Any]:
    """Feed megatron-core's builders, and return the counts. Megatron-LLM marks no documents, nor do these files."""
    from mconv.train.megatron.imports import IndexedDatasetBuilder

    texts, roles = (IndexedDatasetBuilder(str(parts[n]), dtype=np.dtype(known["dtype"]).type) for n in (0, 2))
    with closing(texts.data_file), closing(roles.data_file):
        counts = _add(texts, roles, said, known, progress)
        texts.finalize(str(parts[1]))
        roles.finalize(str(parts[3]))
    return {**counts, "bin_bytes": parts[0].stat().st_size}


def _add(
    texts: Any, roles: Any, said: Iterable[TokenizedTalk], known: dict[str, Any], progress: Callable[[int], None]
) -> dict[str, Any]:
    """Add every conversation that is not empty, and count. Raises FormatError if none has an answer to learn from."""
    counts = {"documents": 0, "empty": 0, "tokens": 0, "max_id": -1, "answer_tokens": 0, "unended": 0, "excluded": 0}
    passed: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for ids, whose, ended, (excluded, *names) in said:
        for counter, found in zip(passed, names, strict=True):
            counter.update(found)
        if not ids:
            counts["empty"] += 1
            continue
        largest = highest(ids, known["vocab_size"])
        texts.add_item(torch.from_numpy(np.array(ids)))
        roles.add_item(torch.from_numpy(np.array(whose)))
        counts["documents"] += 1
        counts["tokens"] += len(ids)
        counts["max_id"] = max(counts["max_id"], largest)
        counts["answer_tokens"] += whose.count(Role.ASSISTANT)
        counts["unended"] += not ended
        counts["excluded"] += excluded
        if counts["documents"] % 512 == 0:
            progress(counts["documents"])
    if not counts["answer_tokens"]:
        why = f", but for {counts['excluded']} that are excluded from the loss" if counts["excluded"] else ""
        raise FormatError(f"no conversation with an answer in the input{why}; there is nothing to train on")
    return {**counts, "ignored": dict(passed[0]), "unread": dict(passed[1])}
