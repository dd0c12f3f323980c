"""Decide which documents are removed, and because of which others."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mconv.errors import FormatError
from mconv.train.data.dedup import wanted
from mconv.train.data.dedup.buckets import SORTED, Buckets, buckets, exact
from mconv.train.data.dedup.clusters import Clusters, join_all, join_similar
from mconv.train.data.dedup.sign import BANDS
from mconv.train.data.dedup.work import Ids, Signatures, Work, useful
from mconv.train.data.pool import Ready, in_order

COPIES = "copies.npy"
PASSING = (COPIES, "band-*.npy", wanted.NGRAMS)
"""Files of the working folder that the decision alone needs."""
Tell = Callable[[str, int], None]
"""What takes the name of a step, and how far it is."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """The documents that are removed, in their order."""

    removed: Ids
    kept: Ids
    """For each of them the first document of its cluster, which is kept."""
    exact: npt.NDArray[np.bool_]
    """For each of them whether its text is equal to the kept one's."""
    similarity: npt.NDArray[np.float32]
    """For each of them the Jaccard similarity to the kept one; NaN if it was not measured."""

    def save(self, path: Path) -> None:
        """Write them to a file that is complete or absent."""
        part = path.with_name(f".{path.name}")
        with part.open("wb") as file:
            np.savez(file, removed=self.removed, kept=self.kept, exact=self.exact, similarity=self.similarity)
        part.replace(path)


def load(path: Path) -> Decisions:
    """Return the decisions of a file. Raises FormatError if it is missing or damaged."""
    try:
        with np.load(path) as arrays:
            return Decisions(*(arrays[name] for name in ("removed", "kept", "exact", "similarity")))
    except FileNotFoundError:
        raise FormatError(f"{path.parent} has no decisions yet; run --phase decide, once, before --phase write") from None
    except (ValueError, KeyError, OSError) as error:
        raise FormatError(f"{path} is damaged ({error}); run --phase decide again") from error


def decide(work: Work, signatures: Signatures, *, verify: bool, workers: int, tell: Tell) -> Decisions:
    """Return what is removed: exact duplicates first, then those that are similar by their n-grams.

    Without `verify`, documents that share a bucket are duplicates.
    """
    tell("exact duplicates", 0)
    copies, originals = _copies(exact(signatures))
    bands = _bands(work, signatures, copies, workers, tell)
    ids: Ids = reduce(np.union1d, (one.members for one in bands))
    clusters = Clusters(ids)
    found = wanted.grams(work, signatures, ids, workers=workers, tell=partial(tell, "n-grams")) if verify else None
    tell("clusters", 0)
    if found is None:
        join_all(clusters, ids, bands)
    else:
        join_similar(clusters, found, bands, work.settings.threshold)
    decisions = _decisions(ids, clusters.firsts(), copies, originals)
    if found is not None:
        decisions = _measured(decisions, found, copies, originals)
    for path in (path for pattern in PASSING for path in work.folder.glob(pattern)):
        path.unlink()
    return decisions


def _copies(groups: Buckets) -> tuple[Ids, Ids]:
    """Return all members of groups but the first ones, sorted, and the first one of the group of each."""
    heads = np.repeat(groups.members[groups.starts[:-1]], np.diff(groups.starts))
    later = groups.members != heads
    order = np.argsort(groups.members[later])
    return groups.members[later][order], heads[later][order]


def _bands(work: Work, signatures: Signatures, copies: Ids, workers: int, tell: Tell) -> list[Buckets]:
    """Return the buckets of each band, without exact copies, mapped from the disk."""
    np.save(work.folder / COPIES, copies)
    workers = min(signatures.bands, useful(workers, len(signatures) * signatures.bands, SORTED))
    paths = []
    for path in in_order(range(signatures.bands), Ready(partial(_band, work=work)), workers=workers):
        paths.append(path)
        tell("bands", len(paths))
    return [Buckets.load(path) for path in paths]


def _band(number: int, work: Work) -> Path:
    """Write the buckets of a band, and return where."""
    copies, path = np.load(work.folder / COPIES, mmap_mode="r"), work.folder / f"band-{number:03d}"
    buckets(work.signatures(), BANDS + number, copies).save(path)
    return path


def _decisions(ids: Ids, firsts: Ids, copies: Ids, originals: Ids) -> Decisions:
    """Return what is removed if `firsts` are the first members of the clusters of `ids`; nothing is measured yet."""
    near = firsts != ids
    removed = np.concatenate([ids[near], copies])
    kept = np.concatenate([firsts[near], _looked_up(originals, ids, firsts)])
    equal = np.concatenate([np.zeros(near.sum(), bool), kept[near.sum() :] == originals])
    order = np.argsort(removed)
    similarity = np.where(equal, 1.0, np.nan).astype(np.float32)
    return Decisions(removed[order], kept[order], equal[order], similarity[order])


def _looked_up(ids: Ids, keys: Ids, values: Ids) -> Ids:
    """Return for each of `ids` the value of its key; itself where there is no such key. Keys are sorted."""
    if not len(keys):
        return ids
    place = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
    return np.where(keys[place] == ids, values[place], ids)


def _measured(decisions: Decisions, grams: wanted.Grams, copies: Ids, originals: Ids) -> Decisions:
    """Return the decisions with the similarity of each near duplicate to the document that is kept."""
    near = ~decisions.exact
    texts = _looked_up(decisions.removed[near], copies, originals)
    similarity = decisions.similarity.copy()
    similarity[near] = grams.jaccard(texts, decisions.kept[near])
    return Decisions(decisions.removed, decisions.kept, decisions.exact, similarity)
