"""Tokenize conversations to Megatron-LLM's two pairs of files: the tokens, and the role of each."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mconv.errors import FormatError
from mconv.train.data import engine, staged
from mconv.train.data.bad_records import REJECTED, BadRecord, Kind, OnBad, Rejected
from mconv.train.data.chat import OWN, Part, Role, Talk, check_template, spelled
from mconv.train.data.claims import Keys
from mconv.train.data.conversation import talk_of
from mconv.train.data.encoded import Encoded, Sequences, joined, stored
from mconv.train.data.engine import RunOptions, Task, Totals
from mconv.train.data.index import with_ending
from mconv.train.data.reading.batch import Batch, Record
from mconv.train.data.reading.fields import unicode
from mconv.train.data.record import Tokenized, facts
from mconv.train.data.sources import ROLE, TEXT
from mconv.train.data.templates import rendered
from mconv.train.data.tokenize import checked
from mconv.train.data.tokenizers import huggingface
from mconv.train.data.tokenizers.choice import TokenizerChoice
from mconv.train.data.tokenizers.encoders import Locate
from mconv.train.data.tokenizers.loaded import LoadedTokenizer
from mconv.train.data.tokenizers.types import load

END = 3
"""Tokens at the end of an answer among which the one that ends it is looked for: a template may add a line's end."""


class TokenizedTalk(NamedTuple):
    """A conversation as tokens."""

    ids: list[int]
    roles: list[int]
    """The role of each token."""
    ended: bool
    """True if the last answer ends in a special token, by which a model learns to stop, or if there is no answer."""
    excluded: int = 0
    """Answers that are excluded from the loss."""
    ignored: Sequence[str] = ()
    """Fields that were passed over, as asked."""
    unread: Sequence[str] = ()
    """Fields that are known to say nothing of the conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """All that a tokenizing process needs to turn a record into tokens."""

    tokenizer: LoadedTokenizer
    template: str
    keys: Keys
    ignore: frozenset[str]
    bad: OnBad
    bos: int | None
    eos: int | None
    dtype: str
    vocab_size: int

    def open(self) -> Callable[[Batch], Encoded]:
        """Return the function that tokenizes a batch."""
        return partial(_tokenize_batch, how=self, locate=self.tokenizer.encoder.locate(), own=self.own_template())

    def own_template(self) -> Any:
        """Return transformers' tokenizer, which has the template; None if it has no part in it."""
        loaded = self.tokenizer
        return huggingface.read(loaded.folder, loaded.added) if self.template == OWN and loaded.folder else None


def instruct(
    sources: Sequence[Path],
    prefix: Path,
    *,
    tokenizer: Path | TokenizerChoice,
    template: str = OWN,
    keys: Keys | None = None,
    ignore_fields: Iterable[str] = (),
    append_eod: bool = False,
    prepend_bos: bool = False,
    on_bad_record: str = "stop",
    **options: Any,
) -> Tokenized:
    """Write PREFIX-text and PREFIX-role (.bin and .idx each) and PREFIX-text.mconv.json, in the order of `sources`.

    Each record of a source is a conversation: a list of turns, or a question and its answer (`keys`). `template` writes
    it as one text, which is tokenized whole; a token is said by who says its first character. `append_eod` puts EOS
    behind the last turn, as part of it. A bad record raises BadRecord (file:line, kind), or with `on_bad_record` "skip"
    is left out, counted, and listed in PREFIX-text.rejected.jsonl; one with fields that no table claims is bad, unless
    they are in `ignore_fields`. `options` are those of RunOptions.
    """
    run = RunOptions(**options)
    bad = checked(run.workers, on_bad_record)
    loaded = load(tokenizer)
    known = facts(loaded, append_eod=append_eod, prepend_bos=prepend_bos)
    how = Encoding(
        tokenizer=loaded, template=template, keys=keys or Keys(), ignore=frozenset(ignore_fields), bad=bad,
        bos=known["prepend_bos"], eos=known["append_eod"], dtype=known["dtype"], vocab_size=known["vocab_size"],
    )  # fmt: skip
    check_template(template, how.own_template())
    loaded.encoder.locate()  # raises where a tokenizer does not tell from which characters a token comes
    made_of = staged.made_of(
        sources, **known, template=template, keys=dataclasses.asdict(how.keys), ignore_fields=sorted(how.ignore),
        on_bad_record=on_bad_record,
    )  # fmt: skip
    text, role = with_ending(prefix, TEXT), with_ending(prefix, ROLE)
    task = Task(
        sources=sources, columns=None, job=how, pairs=[text, role], records=[text], rejected=with_ending(text, REJECTED),
        dtype=how.dtype, documents=False, made_of=made_of,
    )  # fmt: skip
    more = {**known, "template": template, "on_bad_record": on_bad_record}
    [made] = engine.write(task, partial(_described, more=more, listed=task.rejected.name), prefix, run)
    return made


def _tokenize_batch(batch: Batch, *, how: Encoding, locate: Locate, own: Any) -> Encoded:
    """Return ids and roles of each conversation of a batch; none for one without turns."""
    records = [*batch.records()]
    made = _conversations(records, how, locate, own)
    talks = [talk for talk in made if isinstance(talk, TokenizedTalk)]
    ids, lengths = joined(talk.ids for talk in talks)
    roles, _ = joined(talk.roles for talk in talks)
    pairs = [Sequences(stored(ids, how.dtype, how.vocab_size), lengths), Sequences(roles.astype(how.dtype), lengths)]
    rejected = [talk for talk in made if isinstance(talk, Rejected)]
    return Encoded(batch.file, len(records), batch.size, pairs, _counted(talks), rejected)


def _counted(talks: Sequence[TokenizedTalk]) -> dict[str, Counter[str]]:
    """Return the counts that the record keeps: of conversations, and of fields that were passed over."""
    there = [talk for talk in talks if talk.ids]
    return {
        "talks": Counter(
            empty=len(talks) - len(there), unended=sum(not talk.ended for talk in there),
            answer_tokens=sum(talk.roles.count(Role.ASSISTANT) for talk in there),
            excluded=sum(talk.excluded for talk in there),
        ),
        "ignored": Counter(name for talk in talks for name in talk.ignored),
        "unread": Counter(name for talk in talks for name in talk.unread),
    }  # fmt: skip


def _conversations(records: Sequence[Record], how: Encoding, locate: Locate, own: Any) -> list[TokenizedTalk | Rejected]:
    """Return each record as tokens, or as what is wrong with it."""
    read = [_read(record, how, own) for record in records]
    texts = ["".join(text for _, text in found[1]) for found in read if not isinstance(found, Rejected)]
    tokens = iter(locate(texts) if texts else [])
    made: list[TokenizedTalk | Rejected] = []
    for record, found in zip(records, read, strict=True):
        if isinstance(found, Rejected):
            made.append(found)
            continue
        try:
            made.append(_tokenized(*found, *next(tokens), how))
        except BadRecord as error:
            made.append(how.bad(error, record.place))
    return made


def _read(record: Record, how: Encoding, own: Any) -> tuple[Talk, list[Part]] | Rejected:
    """Return the conversation of a record and the parts of its text, or what is wrong with it."""
    try:
        if isinstance(record.value, BadRecord):
            raise record.value
        talk = talk_of(record.value, how.keys, how.ignore)
        if how.template == OWN:
            parts = rendered(talk, own) if talk.turns else []
        else:
            parts = spelled(talk, how.template)
        unicode("".join(text for _, text in parts))
    except BadRecord as error:
        return how.bad(error, record.place)
    return talk, parts


def _tokenized(talk: Talk, parts: list[Part], ids: list[int], starts: Sequence[int], how: Encoding) -> TokenizedTalk:
    """Return the tokens of a conversation, with their roles."""
    marked = _marked(ids, _roles(starts, parts), how.bos, how.eos)
    excluded = sum(turn.counted is not turn.role for turn in talk.turns)
    return TokenizedTalk(*marked, ends(*marked, how.tokenizer.special), excluded, talk.ignored, talk.unread)


def _roles(starts: Sequence[int], spoken: Sequence[Part]) -> list[int]:
    """Return the role of each token: that of the part in which it begins. Raises BadRecord if an answer has none."""
    ends = np.cumsum([len(text) for _, text in spoken])
    found = np.searchsorted(ends, starts, side="right")
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
    """Return ids and roles with BOS, as the prompter's at most, and EOS, in the role of the last token; neither twice."""
    if not ids:
        return [], []
    head = [] if bos is None or ids[0] == bos else [bos]
    tail = [] if eos is None or ids[-1] == eos else [eos]
    return [*head, *ids, *tail], [*[min(roles[0], Role.PROMPTER)] * len(head), *roles, *[roles[-1]] * len(tail)]


def _described(totals: Totals, *, more: dict[str, Any], listed: str) -> list[Tokenized]:
    """Return the record. Raises FormatError if no conversation has an answer to learn from."""
    counts: dict[str, Any] = dict.fromkeys(("empty", "unended", "answer_tokens", "excluded"), 0)
    counts |= totals.counts.get("talks", {})
    if not counts["answer_tokens"]:
        why = f", but for {counts['excluded']} that are excluded from the loss" if counts["excluded"] else ""
        raise FormatError(f"no conversation with an answer in the input{why}; there is nothing to train on")
    text = totals.pairs[0]
    passed: dict[str, Any] = {name: totals.counts.get(name, {}) for name in ("ignored", "unread")}
    return [Tokenized(
        **more, **counts, **passed, documents=text.sequences, tokens=text.tokens, max_id=text.max_id,
        bin_bytes=text.tokens * np.dtype(more["dtype"]).itemsize, **totals.rejects.facts(listed),
    )]  # fmt: skip
