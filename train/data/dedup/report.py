"""What was removed, and why: a list of all of it, and a summary with examples."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from mconv.train.data.dedup.decide import Decisions
from mconv.train.data.dedup.sign import LINE, algorithm
from mconv.train.data.dedup.wanted import texts
from mconv.train.data.dedup.work import Ids, Signatures, Work

REMOVED = ".removed.jsonl"
"""End of the name of the list of removed records."""
EXAMPLES, LARGEST = 12, 10
"""Numbers of pairs, and of clusters, that the report shows."""
WORDS, AROUND, BEGINNING = 1500, 12, 300
"""Words of a text that are compared, words shown around a difference, letters shown of a text."""
TOGETHER = 1 << 16
"""Removed records that are listed together."""


def removed_lines(work: Work, signatures: Signatures, decisions: Decisions) -> Iterator[str]:
    """Yield a line of JSON for each removed record, in the order of the input."""
    for start in range(0, len(decisions.removed), TOGETHER):
        part = slice(start, start + TOGETHER)
        removed = _places(work, signatures, decisions.removed[part])
        kept = _places(work, signatures, decisions.kept[part])
        measured = zip(decisions.exact[part].tolist(), decisions.similarity[part].tolist(), strict=True)
        for one, other, (exact, similarity) in zip(removed, kept, measured, strict=True):
            yield json.dumps({**one, **_why(exact, similarity), "kept": other}) + "\n"


def _why(exact: bool, similarity: float) -> dict[str, Any]:
    """Return the kind and the similarity of a duplicate."""
    measured = None if np.isnan(similarity) else round(similarity, 4)
    return {"kind": "exact" if exact else "near", "similarity": measured}


def _places(work: Work, signatures: Signatures, ids: Ids) -> list[dict[str, Any]]:
    """Return file and line of each document."""
    sources, lines = signatures.source(ids).tolist(), signatures.lines(ids).tolist()
    return [{"file": str(work.sources[number]), "line": line} for number, line in zip(sources, lines, strict=True)]


def summary(work: Work, signatures: Signatures, decisions: Decisions, *, verified: bool) -> dict[str, Any]:
    """Return the counts, the settings and examples as values for JSON."""
    settings = work.settings
    near = decisions.similarity[~decisions.exact]
    files = _files(work, signatures, decisions)
    kept, sizes = np.unique(decisions.kept, return_counts=True)
    return {
        "documents": sum(one["documents"] for one in files),
        "kept": sum(one["kept"] for one in files),
        "exact": int(decisions.exact.sum()),
        "near": len(near),
        "chained": int((near < settings.threshold).sum()),
        "clusters": len(kept),
        "cluster_sizes": {str(size): count for size, count in sorted(Counter((sizes + 1).tolist()).items())},
        "settings": {**asdict(settings), "verified": verified, "algorithm": algorithm()},
        "recall_at_threshold": settings.scheme.recall(settings.threshold),
        "similarities": np.histogram(near[~np.isnan(near)], 20, (0.0, 1.0))[0].tolist(),
        "files": files,
        **_shown(work, signatures, decisions, kept[np.argsort(-sizes, kind="stable")][:LARGEST]),
    }


def _files(work: Work, signatures: Signatures, decisions: Decisions) -> list[dict[str, Any]]:
    """Return the counts of each source."""
    cuts = np.searchsorted(decisions.removed, signatures.starts)
    return [
        _counts(
            str(path), int((signatures.arrays[number][LINE] > 0).sum()), decisions.exact[cuts[number] : cuts[number + 1]]
        )
        for number, path in enumerate(work.sources)
    ]


def _counts(file: str, documents: int, exact: Any) -> dict[str, Any]:
    return {
        "file": file, "documents": documents, "kept": documents - len(exact), "exact": int(exact.sum()),
        "near": int((~exact).sum()),
    }  # fmt: skip


def _shown(work: Work, signatures: Signatures, decisions: Decisions, largest: Ids) -> dict[str, Any]:
    """Return the largest clusters with the beginning of their text, and pairs of near duplicates with what differs."""
    pairs = _spread(decisions)
    ids = np.unique(np.concatenate([largest, decisions.removed[pairs], decisions.kept[pairs]]))
    found = dict(zip(ids.tolist(), texts(work, signatures, ids), strict=True))
    places = dict(zip(ids.tolist(), _places(work, signatures, ids), strict=True))
    return {
        "largest": [
            {**places[one], **_members(decisions, one), "text": found[one][:BEGINNING]} for one in largest.tolist()
        ],
        "examples": [
            {
                **_why(False, float(decisions.similarity[pair])), "removed": places[removed], "kept": places[kept],
                "parts": differing(found[kept], found[removed]),
            }
            for pair, removed, kept in zip(
                pairs.tolist(), decisions.removed[pairs].tolist(), decisions.kept[pairs].tolist(), strict=True
            )
        ],
    }  # fmt: skip


def _spread(decisions: Decisions) -> Ids:
    """Return near duplicates from the least to the most similar, evenly spread over their order."""
    near = np.flatnonzero(~decisions.exact)
    ordered = near[np.argsort(decisions.similarity[near], kind="stable")]
    return ordered[np.unique(np.linspace(0, len(ordered) - 1, EXAMPLES).astype(np.int64))] if len(ordered) else ordered


def _members(decisions: Decisions, kept: int) -> dict[str, int]:
    """Return how many documents a cluster has, and how many of them are exact copies of the kept one."""
    here = decisions.kept == kept
    return {"size": int(here.sum()) + 1, "exact": int(decisions.exact[here].sum())}


def differing(kept: str, removed: str) -> list[tuple[str, str]]:
    """Return the texts word by word, in order: pairs of (`both`, `kept` or `removed`, what these have).

    Long common passages are cut to the words around a difference.
    """
    ours, theirs = (re.findall(r"\S+\s*|\s+", text)[:WORDS] for text in (kept, removed))
    matcher = difflib.SequenceMatcher(None, [word.strip() for word in ours], [word.strip() for word in theirs], False)
    parts = []
    for kind, a, b, c, d in matcher.get_opcodes():
        sides = [("both", ours[a:b])] if kind == "equal" else [("kept", ours[a:b]), ("removed", theirs[c:d])]
        parts += [(side, _shortened(words) if side == "both" else "".join(words)) for side, words in sides if words]
    return parts


def _shortened(words: list[str]) -> str:
    """Return a common passage without its middle, if it is long."""
    if len(words) <= 2 * AROUND + 1:
        return "".join(words)
    return "".join([*words[:AROUND], "[…] ", *words[-AROUND:]])
