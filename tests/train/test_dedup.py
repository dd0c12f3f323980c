"""Which documents `mconv data dedup` takes for duplicates: held to brute force, and to the theory of MinHash."""

import json
import math
import os
import random
import re
import subprocess
from itertools import combinations
from pathlib import Path

import numpy as np
import planted
import pytest

from mconv.errors import MconvError
from mconv.train.data.dedup import buckets, clusters, grams
from mconv.train.data.dedup.report import REMOVED, differing
from mconv.train.data.dedup.run import Job, dedup
from mconv.train.data.dedup.scheme import Scheme, balanced, choose, for_recall
from mconv.train.data.dedup.sign import NONE, Settings
from mconv.train.data.dedup.work import Signatures

pytestmark = pytest.mark.once
pytest.importorskip("rensa")
DATASKETCH = {
    (0.85, 64): (4, 15), (0.5, 128): (25, 5), (0.8, 128): (9, 13), (0.9, 128): (5, 25), (0.7, 256): (25, 10),
    (0.85, 250): (13, 19), (0.6, 32): (6, 5), (0.95, 64): (2, 32),
}  # fmt: skip
"""Bands and rows of datasketch 2.0.0's MinHashLSH, by threshold and permutations."""
SEED = {"num_perm": 64}
"""The scheme of text-dedup's `--num_perm 64 --threshold 0.85`: 4 bands of 15 rows."""


def settings(threshold=0.85, ngram=5, unit="word", **scheme):
    return Settings(key="text", threshold=threshold, ngram=ngram, unit=unit, scheme=choose(threshold, **scheme), seed=42)


@pytest.fixture
def run(tmp_path):
    """Deduplicate texts; returns the places of those that stay, the summary and the list of the removed ones."""

    def run(texts, how=None, **more):
        source = planted.write(tmp_path / "in.jsonl", texts)
        out = tmp_path / "out.jsonl"
        found = dedup(Job(sources=[source], out=out, settings=how or settings(), overwrite=True, **more))
        removed = [json.loads(line) for line in out.with_name(f"out{REMOVED}").read_text().splitlines()]
        return [json.loads(line)["id"] for line in out.read_text().splitlines()], found, removed

    return run


@pytest.fixture(scope="module")
def corpus():
    return planted.corpus()


# ---- bands and rows --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("asked", DATASKETCH)
def test_permutations_are_divided_as_datasketch_does(asked):
    assert (found := balanced(*asked)) == Scheme(*DATASKETCH[asked]) and found == choose(asked[0], num_perm=asked[1])


@pytest.mark.parametrize(
    "threshold, recall, most", [(0.85, 0.99, 128), (0.5, 0.9, 128), (0.85, 0.999, 64), (1.0, 0.9, 16)]
)
def test_a_recall_is_reached_with_as_many_rows_as_fit(threshold, recall, most):
    found = for_recall(threshold, recall, most)
    assert 1 - (1 - threshold**found.rows) ** found.bands >= recall and found.permutations <= most
    if threshold < 1:
        fewer = Scheme(found.bands - 1, found.rows)
        rows = found.rows + 1
        needed = math.ceil(math.log(1 - recall) / math.log(1 - threshold**rows))
        assert fewer.recall(threshold) < recall and needed * rows > most


@pytest.mark.parametrize(
    "options, said",
    [
        ({"threshold": 0.1, "recall": 0.99, "num_perm": 20}, "needs at least 44 permutations; give --num-perm 44"),
        ({"threshold": 1.5}, "--threshold is 1.5"),
        ({"threshold": 0.8, "recall": 1.0}, "--recall is 1.0"),
        ({"threshold": 0.8, "bands": 4}, "--bands and --rows are given together"),
        ({"threshold": 0.8, "bands": 4, "rows": 4, "num_perm": 16}, "without --num-perm"),
        ({"threshold": 0.8, "bands": 0, "rows": 4}, "--bands is 0"),
        ({"threshold": 0.8, "num_perm": 0}, "--num-perm is 0"),
    ],
)
def test_impossible_schemes_are_refused(options, said):
    with pytest.raises(MconvError, match=said):
        choose(**options)


def test_the_page_says_what_schemes_find():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = re.findall(r"\| (\d+) x (\d+) \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|", page)
    assert len(rows) == 4 and ("15", "8") in {row[:2] for row in rows}
    for bands, rows_, *said in rows:
        assert said == [f"{100 * (1 - (1 - s ** int(rows_)) ** int(bands)):.1f}" for s in (0.85, 0.9, 0.95)]


# ---- n-grams ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, size, unit, found",
    [
        ("The quick, brown FOX!", 3, "word", ["the quick brown", "quick brown fox"]),
        ("one\n\n  two -- three", 3, "word", ["one two three"]),
        ("Zwei Wörter", 5, "word", ["zwei wörter"]),
        ("?!", 5, "word", []),
        ("東京、大阪", 3, "character", ["東京大", "京大阪"]),
    ],
)
def test_ngrams(text, size, unit, found):
    assert grams.ngrams(text, size, unit) == [one.encode() for one in found]


@pytest.mark.parametrize("more", ["", "é", "“İ”", "\u00a0", "東京"])
def test_words_of_ascii_are_those_of_all_texts(more):
    text = "".join(f"a{chr(code)}B{chr(code)}" for code in range(128)) + more
    assert grams.words(text) == [word.encode() for word in re.findall(r"\w+", text.lower())]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_rolled_hashes_are_equal_where_the_ngrams_are(size):
    """Beside the n-grams written down: texts of all lengths around that of an n-gram, empty ones between them."""
    rng = random.Random(size)
    texts = [[rng.randrange(3) for _ in range(length)] for length in (0, 1, 2, 4, 0, 0, 5, 6, 30, 0)]
    hashes, starts = grams.rolled([[1000 + word for word in text] for text in texts], size)
    rows = [[*text, *[-1] * (size - len(text))] if text else [] for text in texts]
    due = [[tuple(row[at : at + size]) for at in range(len(row) - size + 1)] for row in rows]
    assert starts.tolist() == [sum(map(len, due[:at])) for at in range(len(texts) + 1)]
    flat = [one for text in due for one in text]
    assert len(flat) == len(hashes) and len({*hashes.tolist()}) == len({*flat})
    assert len({*zip(hashes.tolist(), flat, strict=True)}) == len({*flat})
    assert [len(part) for part in grams.rolled([], size)] == [0, 1]


def test_jaccard_is_that_of_the_sets():
    one, other = "a b c d e f g a b c d e", "b c d e f g h i"
    ours = grams.jaccard(*(grams.hashed(grams.ngrams(text, 3, "word")) for text in (one, other)))
    assert ours == planted.similarity(one, other, 3) == 4 / 9
    assert [len(grams.hashed(made)) for made in ([], [b"a"], [b"b", b"a", b"b"])] == [0, 1, 2]


# ---- duplicates ------------------------------------------------------------------------------------------------------
def brute_force(texts, threshold):
    """Return the places that stay: the first of each connected component of similar pairs."""
    first = list(range(len(texts)))
    for a, b in combinations(range(len(texts)), 2):
        if texts[a] == texts[b] or planted.similarity(texts[a], texts[b]) >= threshold:
            old, new = max(first[a], first[b]), min(first[a], first[b])
            first = [new if one == old else one for one in first]
    return [at for at, own in enumerate(first) if at == own]


def chains(seed):
    """Return texts of which each is an edit of one before, so that clusters are joined through others."""
    rng = random.Random(seed)
    made = [[rng.choice(planted.WORDS) for _ in range(60)] for _ in range(10)]
    for _ in range(60):
        made.append(planted.edited(rng, rng.choice(made), rng.randint(0, 3)))
    made += [made[0][:3], made[1][:3], made[0][:3], [], [], ["?"]]
    rng.shuffle(made)
    return [" ".join(words) for words in made]


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_is_what_brute_force_says(run, seed):
    texts = chains(seed)
    kept, found, removed = run(texts, settings(0.7, recall=0.999999))
    assert kept == brute_force(texts, 0.7)
    assert len(kept) + len(removed) == len(texts) == found["documents"] and found["chained"] > 0
    for one in removed:
        ours, theirs = texts[one["line"] - 1], texts[one["kept"]["line"] - 1]
        assert one["kept"]["line"] < one["line"] and one["kept"]["line"] - 1 in kept
        assert (one["kind"] == "exact") == (ours == theirs)
        assert one["similarity"] == pytest.approx(1 if ours == theirs else planted.similarity(ours, theirs), abs=1e-4)


def test_planted_pairs_are_found_and_heavy_edits_stay(run, corpus):
    texts, pairs = corpus
    similar = {pair: planted.similarity(*(texts[at] for at in pair)) for kind in pairs for pair in pairs[kind]}
    gone = {*range(len(texts))} - {*run(texts)[0]}
    due = {max(pair) for pair in pairs["near"] if similar[pair] >= 0.85}
    assert len(due) > 150 and gone <= due and len(gone) / len(due) >= 0.985
    assert 0.1 < np.mean([similar[pair] for pair in pairs["heavy"]]) < 0.35


def test_signatures_alone_find_as_many_as_the_theory_says(run, corpus):
    """4 bands of 15 rows find 1 - (1 - s^15)^4 of the pairs: what a poor hash would miss."""
    texts, pairs = corpus
    chances = [Scheme(4, 15).recall(planted.similarity(*(texts[at] for at in pair))) for pair in pairs["near"]]
    kept, found, removed = run(texts, settings(**SEED), verify=False)
    deviation = math.sqrt(sum(chance * (1 - chance) for chance in chances))
    assert abs(len(removed) - sum(chances)) < 4 * deviation + 1
    assert {*kept} >= {at for pair in pairs["heavy"] for at in pair}
    assert {one["similarity"] for one in removed} == {None, 1.0} and not found["settings"]["verified"]


def test_without_verification_the_signatures_decide(run):
    """One row a band: what shares a few n-grams is a candidate, and only its n-grams show that it is no duplicate."""
    rng = random.Random(1)
    words = [rng.choice(planted.WORDS) for _ in range(60)]
    texts = [" ".join(words), " ".join(planted.edited(rng, words, 8))]
    many = settings(bands=64, rows=1)
    assert planted.similarity(*texts) < 0.5
    assert run(texts, many, verify=False)[0] == [0] and run(texts, many)[0] == [0, 1]


def test_equal_texts_are_exact_and_others_with_equal_words_are_near(run):
    text = "one two three four five six seven"
    kept, found, removed = run([text, text, text.upper(), text + "!", "?!", "?!", "!?", ""])
    assert kept == [0, 4, 6, 7] and (found["exact"], found["near"]) == (2, 2)
    assert [one["kind"] for one in removed] == ["exact", "near", "near", "exact"]
    assert {one["similarity"] for one in removed} == {1.0}


def test_characters_find_what_words_do_not(run):
    one = "我们今天去公园散步看见很多花和鸟大家都很高兴然后一起回家吃饭"
    other = one.replace("很多", "不少")
    assert run([one, other])[0] == [0, 1]
    assert run([one, other], settings(0.6, ngram=3, unit="character"))[0] == [0]


# ---- buckets and clusters --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("together", [1, 3, 7, 1 << 20])
def test_buckets_are_the_same_however_few_are_sorted_together(together):
    rng = np.random.default_rng(5)
    columns = [rng.integers(0, 12, (4, size)).astype(np.uint64) for size in (17, 0, 30)]
    columns[0][3, :5] = NONE
    signatures, numbers = Signatures(columns), np.concatenate([one[3] for one in columns])
    without = np.array([6, 20, 21])
    taken = [at for at in range(47) if at not in without and numbers[at] != NONE]
    by_number = {}
    for at in taken:
        by_number.setdefault(int(numbers[at]), []).append(at)
    found = buckets.buckets(signatures, 3, without, together=together)
    members = found.members.tolist()
    assert sorted(members[start:end] for start, end in found.spans()) == sorted(
        one for one in by_number.values() if len(one) > 1
    )


def test_a_large_bucket_is_compared_in_linear_time(monkeypatch):
    """500 documents that share a bucket and nothing else: not every pair is looked at, and similar ones still meet."""
    sets = [np.arange(1000 * number, 1000 * number + 40 + number, dtype=np.uint64) for number in range(500)]
    sets[499] = np.append(sets[100], np.uint64(7))
    found = clusters.Grams(np.arange(500), np.cumsum([len(one) for one in sets]), np.concatenate(sets))
    compared = []
    monkeypatch.setattr(clusters, "jaccard", lambda a, b: compared.append(1) or grams.jaccard(a, b))
    joined = clusters.Clusters(found.ids)
    clusters.join_similar(joined, found, [buckets.Buckets(found.ids, np.array([0, 500]))], 0.85)
    assert [at for at, first in enumerate(joined.firsts()) if first != at] == [499] and joined.find(499) == 100
    assert len(compared) <= 500 * clusters.NEAREST


def test_the_report_shows_what_differs():
    words = [f"w{number}" for number in range(60)]
    parts = differing(" ".join(words), " ".join([*words[:40], "NEW", *words[41:]]))
    assert [kind for kind, _ in parts] == ["both", "kept", "removed", "both"]
    assert parts[1][1].strip() == "w40" and parts[2][1].strip() == "NEW" and "[…]" in parts[0][1]


# ---- peers -----------------------------------------------------------------------------------------------------------
@pytest.mark.skipif("MCONV_TEXT_DEDUP" not in os.environ, reason="MCONV_TEXT_DEDUP: a Python with text-dedup 0.4.0")
def test_recall_is_at_least_that_of_text_dedup(run, corpus, tmp_path):
    texts, pairs = corpus
    kept = {*run(texts)[0]}
    source = planted.write(tmp_path / "theirs.jsonl", texts)
    script = Path(__file__).parents[2] / "benchmarks" / "dedup_peers.py"
    theirs = tmp_path / "kept.jsonl"
    command = [os.environ["MCONV_TEXT_DEDUP"], script, "text-dedup", source, theirs]
    subprocess.run(command, check=True, capture_output=True)
    them = {json.loads(line)["id"] for line in theirs.read_text().splitlines()}
    ours, others = ([not {*pair} <= one for pair in pairs["near"]] for one in (kept, them))
    assert sum(ours) >= sum(others) > 0
