"""Choose a mixture of sets by weights, without repetition: as much as there is until one set is used up."""

import random
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np

from mconv.errors import ConfigError, refuse
from mconv.train.data.mixing import records
from mconv.train.data.mixing.join import Head
from mconv.train.data.mixing.prefixes import Prefix, open_all, refuse_overlaps, under

SEED = 1234
"""Seed of the order in which a set's prefixes are taken, as in swiss-ai's create_data_mixture.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """A folder of prefixes, or one prefix, and the share of the mixture that it is to have."""

    name: str
    """Name of its folder in the mixture."""
    source: Path
    weight: Fraction
    """The wanted share of the tokens; all shares add up to 1."""
    prefixes: tuple[Prefix, ...]
    """The prefixes in the order in which they are taken."""

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.prefixes)

    def place(self, one: Prefix) -> Path:
        """Return where a prefix lies within the set's folder of the mixture."""
        return one.path.relative_to(self.source) if self.source.is_dir() else Path(one.path.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A prefix in the mixture: the whole of it, or its first documents."""

    prefix: Prefix
    documents: int
    heads: tuple[Head, ...]
    """What is taken of each pair of files."""

    @property
    def whole(self) -> bool:
        return self.documents == self.prefix.documents

    @property
    def tokens(self) -> int:
        return self.heads[0].tokens

    @property
    def bytes(self) -> int:
        """Size of the pairs of files in the mixture."""
        return sum(head.bytes + head.index_bytes for head in self.heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What is taken of each set."""

    sets: tuple[DataSet, ...]
    taken: tuple[tuple[Taken, ...], ...]
    """The prefixes taken of each set, in their order."""
    exact: bool
    seed: int

    @property
    def tokens(self) -> list[int]:
        """Tokens taken of each set."""
        return [sum(one.tokens for one in group) for group in self.taken]

    @property
    def used_up(self) -> list[str]:
        """Names of the sets of which nothing is left."""
        return [one.name for one, tokens in zip(self.sets, self.tokens, strict=True) if tokens == one.tokens]


def mixture(
    names: Sequence[Path], weights: Sequence[float], out: Path, *, seed: int = SEED, exact: bool = False,
    allowed: Collection[str] = (),
) -> Mixture:  # fmt: skip
    """Return the mixture of folders or prefixes by weights; what lies in `out` already is no part of it.

    Whole prefixes are taken, so that shares hold to about one prefix; with `exact` the last one of a set is cut between
    two documents, so that they hold to about one document. Raises ConfigError or FormatError where sets cannot be mixed.
    """
    sets = _sets(names, _shares(names, weights), out, seed)
    records.check([one for group in sets for one in group.prefixes], allowed)
    sizes = [[one.tokens for one in group.prefixes] for group in sets]
    shares = [group.weight for group in sets]
    if exact:
        goals = [min(Fraction(sum(size)) / share for size, share in zip(sizes, shares, strict=True)) * w for w in shares]
        taken = [_exactly(group.prefixes, goal) for group, goal in zip(sets, goals, strict=True)]
    else:
        counts = whole(shares, sizes)
        taken = [[_all(one) for one in group.prefixes[:count]] for group, count in zip(sets, counts, strict=True)]
    return Mixture(sets=tuple(sets), taken=tuple(map(tuple, taken)), exact=exact, seed=seed)


def whole(shares: Sequence[Fraction], sizes: Sequence[Sequence[int]]) -> list[int]:
    """Return how many prefixes to take of each set.

    The next one is always of the set that lacks most of its share, until such a set has no more: create_data_mixture.py's
    rule. shares 1/2 1/2, sizes [3 3 3] [4 4] -> 2 2: 3|0, 3|4, 6|4, 6|8, then the first lacks most, 9|8, then the second
    has none left.
    """
    counts, taken = [0] * len(shares), [0] * len(shares)
    for _ in range(sum(map(len, sizes))):
        lacking = [share * sum(taken) - have for share, have in zip(shares, taken, strict=True)]
        at = lacking.index(max(lacking))
        if counts[at] == len(sizes[at]):
            break
        taken[at] += sizes[at][counts[at]]
        counts[at] += 1
    return counts


def _exactly(prefixes: Sequence[Prefix], goal: Fraction) -> list[Taken]:
    """Return prefixes of about `goal` tokens together, the last one cut where a document ends nearest to it."""
    after = list(accumulate(one.tokens for one in prefixes))
    count = bisect_left(after, goal)
    if after[count] == goal:
        return [_all(one) for one in prefixes[: count + 1]]
    rest = goal - (after[count - 1] if count else 0)
    cut = _cut(prefixes[count], rest, at_least=0 if count else 1)
    return [*map(_all, prefixes[:count]), *([cut] if cut.documents else [])]


def _cut(one: Prefix, goal: Fraction, *, at_least: int) -> Taken:
    """Return the first documents of a prefix that have about `goal` tokens."""
    data = one.open()
    after = np.concatenate([[0], np.cumsum(data.lengths, dtype=np.int64)])
    ends = np.concatenate([[0], after[data.ends]]) if len(data.ends) else after
    above = int(np.searchsorted(ends, float(goal)))
    nearest = min(range(max(above - 1, 0), min(above + 1, len(ends))), key=lambda n: abs(int(ends[n]) - goal))
    documents = max(nearest, at_least)
    heads = tuple(Head.of(one.open(number), documents) for number in range(len(one.heads)))
    return Taken(prefix=one, documents=documents, heads=heads)


def _all(one: Prefix) -> Taken:
    return Taken(prefix=one, documents=one.documents, heads=one.heads)


def _shares(names: Sequence[Path], weights: Sequence[float]) -> list[Fraction]:
    """Return weights as shares of 1. Raises ConfigError where they cannot be weights of these names."""
    problems = [f"{len(names)} folders and {len(weights)} weights; give one for each"] * (len(names) != len(weights))
    problems += [f"the weight {weight:g} is not a positive number" for weight in weights if not 0 < weight < float("inf")]
    problems += ["give at least one folder and its weight"] * (not names)
    refuse(problems, doing="mixing", kind=ConfigError)
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def _sets(names: Sequence[Path], shares: Sequence[Fraction], out: Path, seed: int) -> list[DataSet]:
    """Open what is mixed, each set's prefixes sorted and then shuffled by the seed."""
    groups = [under(name, leaving_out=[out]) for name in names]
    refuse_overlaps(groups, "mixing")
    opened = {one.path: one for one in open_all(path for group in groups for path in group)}
    for group in groups:
        group.sort(key=lambda path: f"{path}.bin")  # the guide sorts files, and by their whole names
        random.Random(seed).shuffle(group)
    return [
        DataSet(name=title, source=name, weight=share, prefixes=tuple(opened[path] for path in group))
        for title, name, share, group in zip(_titles(names), names, shares, groups, strict=True)
    ]


def _titles(names: Sequence[Path]) -> list[str]:
    """Return a name for each set's folder: that of its source, with a number where others have it too."""
    titles: list[str] = []
    for name in names:
        plain = name.resolve().name or "root"
        tries = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(names) + 1))
        titles.append(next(title for title in tries if title not in titles))
    return titles
