"""Conversations as samples: loss on answers, a weight for other tokens, several to a row if they are packed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mconv.errors import ConfigError, FormatError, refuse
from mconv.train.data.chat import Role
from mconv.train.data.index import CHUNK, Indexed, open_index, with_ending
from mconv.train.data.loader import Shuffled
from mconv.train.data.packing import pack
from mconv.train.data.sources import ROLE, TEXT
from mconv.train.logs.log import Say


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """The two files of a prefix, side by side."""

    prefix: Path
    text: Indexed
    role: Indexed

    def __len__(self) -> int:
        return len(self.text)


def open_conversations(prefix: Path) -> Conversations:
    """Open PREFIX-text and PREFIX-role, mconv's or Megatron-LLM's. Raises FormatError if they do not match."""
    text, role = (open_index(with_ending(prefix, kind)) for kind in (TEXT, ROLE))
    if len(text) != len(role):
        raise FormatError(f"{role.prefix}: {len(role)} conversations, {text.prefix} has {len(text)}; make both again")
    if (other := np.flatnonzero(text.lengths != role.lengths)).size:
        at = int(other[0])
        raise FormatError(
            f"{role.prefix}: conversation {at} has {role.lengths[at]} roles, and {text.lengths[at]} tokens in "
            f"{text.prefix.name}; make both again"
        )
    lowest, highest = role.extremes()
    if lowest < min(Role) or highest > max(Role):
        wrong = lowest if lowest < min(Role) else highest
        raise FormatError(f"{role.prefix}: role {wrong} is none of 0 system, 1 prompter, 2 assistant; make it again")
    return Conversations(prefix=prefix, text=text, role=role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Samples of `seq_length` tokens or less: a conversation each, or the several that share a row."""

    data: Conversations
    rows: Sequence[Sequence[int]]
    """The conversations of each row."""
    seq_length: int
    scalar_loss_mask: float
    packing: bool
    cut: int = 0
    """Conversations that are longer than a row."""
    dropped: int = 0
    """Conversations without a token to train on, once they are cut."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Return tokens, labels, loss_mask and position_ids, each [s]; also `documents` where rows are shared."""
        said = [self._one(conversation) for conversation in self.rows[number]]
        lengths = np.array([len(ids) - 1 for ids, _ in said])
        sample = {
            "tokens": _joined([ids[:-1] for ids, _ in said]),
            "labels": _joined([ids[1:] for ids, _ in said]),
            "loss_mask": weights(_joined([roles[1:] for _, roles in said]), self.scalar_loss_mask),
            "position_ids": _joined([np.arange(length) for length in lengths]),
        }
        documents = {"documents": torch.from_numpy(np.repeat(np.arange(len(said)), lengths))} if self.packing else {}
        return sample | documents

    def _one(self, conversation: int) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
        """Return the ids of one conversation, cut to a row, and the role of each."""
        return self.data.text[conversation][: self.seq_length + 1], self.data.role[conversation][: self.seq_length + 1]


def weights(roles: Int[Tensor, "s"], scalar: float) -> Float[Tensor, "s"]:
    """Return the loss weight of each label: 1 for what the assistant says, `scalar` for all else."""
    return torch.where(roles == Role.ASSISTANT, 1.0, scalar)


def _joined(parts: Sequence[npt.NDArray[np.integer]]) -> Int[Tensor, "s"]:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def rows(
    data: Conversations, edges: tuple[float, float], *, seq_length: int, scalar_loss_mask: float, packing: bool
) -> Rows:
    """Return the rows of a share of the conversations (between two edges), without those with nothing to train on."""
    first, last = (round(len(data) * edge) for edge in edges)
    kept = first + np.flatnonzero(_trained(data, first, last, seq_length, scalar_loss_mask))
    shared = (
        pack(_labels(data, kept, seq_length).tolist(), room=seq_length) if packing else [[n] for n in range(len(kept))]
    )
    return Rows(
        data=data, rows=[kept[row].tolist() for row in shared], seq_length=seq_length, packing=packing,
        scalar_loss_mask=scalar_loss_mask, dropped=last - first - len(kept),
        cut=int((data.text.lengths[first:last] > seq_length + 1).sum()),
    )  # fmt: skip


def _trained(data: Conversations, first: int, last: int, seq_length: int, scalar: float) -> npt.NDArray[np.bool_]:
    """Return of each conversation from `first` up to `last` whether any label within the row counts."""
    lengths = data.role.lengths[first:last]
    if scalar > 0 or first == last:
        return np.asarray(lengths > 1)
    ids = data.role.tokens
    begins = data.role.starts[first:last] // ids.dtype.itemsize
    stop = int(begins[-1] + lengths[-1])
    found = np.zeros(last - first, np.bool_)
    for at in range(int(begins[0]), stop, CHUNK):
        said = at + np.flatnonzero(ids[at : min(at + CHUNK, stop)] == Role.ASSISTANT)
        whose = np.searchsorted(begins, said, side="right") - 1
        place = said - begins[whose]  # the first token is no label
        found[whose[(place > 0) & (place <= seq_length)]] = True
    return found


def _labels(data: Conversations, numbers: npt.NDArray[np.int64], seq_length: int) -> npt.NDArray[np.int64]:
    """Return the number of labels of each of these conversations within a row."""
    return np.minimum(data.text.lengths[numbers].astype(np.int64) - 1, seq_length)


def summary(made: Rows, name: str) -> str:
    """Return a line for people: how many conversations, in how many rows, and how many were cut."""
    used = np.fromiter(chain.from_iterable(made.rows), np.int64)
    tokens = int(_labels(made.data, used, made.seq_length).sum())
    filled = f", {tokens / max(1, len(made.rows) * made.seq_length):.0%} full" if made.packing else ""
    cut = f"; {made.cut} longer than that were cut" if made.cut else ""
    left = f"; {made.dropped} left out, with no answer within it" if made.dropped else ""
    return (
        f"{made.data.prefix}: {len(used)} conversations for {name} in {len(made.rows)} rows of {made.seq_length} tokens"
        f"{filled}{cut}{left}"
    )


@dataclass(frozen=True, slots=True)
class Joined:
    """Datasets one behind the other."""

    parts: Sequence[Any]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, number: int) -> Any:
        for part, end in zip(self.parts, accumulate(len(part) for part in self.parts), strict=True):
            if number < end:
                return part[number - end + len(part)]
        raise IndexError(number)


@dataclass(frozen=True, slots=True)
class Mixed:
    """Endless datasets in given shares: sample `number` is the next one of the dataset that is furthest behind."""

    parts: Sequence[Any]
    which: npt.NDArray[np.int16]
    at: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, number: int) -> Any:
        return self.parts[int(self.which[number])][int(self.at[number])]


def mixed(parts: Sequence[Any], shares: Sequence[float], *, samples: int) -> Mixed:
    """Return `samples` samples of endless datasets, by the rule of megatron-core's blends."""
    from mconv.train.megatron.imports import helpers

    which, at = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    share = np.asarray(shares, np.float64) / sum(shares)
    helpers.build_blending_indices(which, at, share, len(parts), samples, False)
    return Mixed(parts, which, at)


def endless(
    talks: Sequence[Conversations],
    shares: Sequence[float] | None,
    edges: tuple[float, float],
    name: str,
    *,
    samples: int,
    seed: int,
    say: Say,
    **options: Any,
) -> Shuffled | Mixed:
    """Return the rows of a blend for one use, `name`, shuffled epoch by epoch; `options` are those of `rows`.

    Without `shares` every row comes once an epoch. Raises ConfigError where a prefix leaves no row.
    """
    made = [rows(data, edges, **options) for data in talks]
    empty = [f"{part.data.prefix}: no conversation with an answer for {name}" for part in made if not part.rows]
    refuse(empty, doing="opening the data", kind=ConfigError)
    for part in made:
        say(summary(part, name))
    if shares is None or len(made) == 1:
        return Shuffled(Joined(made), seed)
    return mixed([Shuffled(part, seed + number) for number, part in enumerate(made)], shares, samples=samples)
