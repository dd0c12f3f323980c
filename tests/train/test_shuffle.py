"""Lines shuffled on the disk: numpy's own sort is the oracle."""

from collections import Counter

import numpy as np
import pytest

from mconv.train.data.preparing import shuffle
from mconv.train.data.preparing.shuffle import shuffled

pytestmark = pytest.mark.once
LINES = [f"line {number}\n".encode() * (1 + number % 7) for number in range(3000)]


@pytest.mark.parametrize("buffer", [1 << 30, 200_000, 3_000])
def test_the_permutation_is_exact_whatever_the_buffer(buffer, tmp_path, monkeypatch):
    """At 3,000 bytes the files of the first pass are divided again, and again."""
    folders = Counter()
    spill = shuffle._spilled
    monkeypatch.setattr(shuffle, "BITS", 4)
    monkeypatch.setattr(
        shuffle, "_spilled", lambda lines, folder, shift: folders.update([shift]) or spill(lines, folder, shift)
    )
    found = list(shuffled(iter(LINES), seed=5, buffer=buffer, scratch=tmp_path / "scratch"))
    order = np.argsort(np.random.PCG64(5).random_raw(len(LINES)), kind="stable")
    assert found == [LINES[number] for number in order] and list(tmp_path.iterdir()) == []
    assert len(folders) == {1 << 30: 0, 200_000: 1, 3_000: 3}[buffer]


def test_memory_is_bounded_by_the_buffer(tmp_path, monkeypatch):
    most = []
    real = sorted
    monkeypatch.setattr(
        shuffle, "sorted", lambda held: most.append(sum(len(x.text) + 200 for x in held)) or real(held), raising=False
    )
    list(shuffled(iter(LINES), seed=5, buffer=20_000, scratch=tmp_path / "scratch"))
    assert max(most) <= 20_000 + 100 + 200 and len(most) > 30


def test_lines_longer_than_the_buffer_and_seeds(tmp_path):
    lines = [bytes([65 + number]) * 5_000 + b"\n" for number in range(9)]
    orders = [tuple(shuffled(iter(lines), seed=seed, buffer=100, scratch=tmp_path / "scratch")) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and {frozenset(one) for one in orders} == {frozenset(lines)}
    firsts = Counter(
        next(shuffled([b"a", b"b", b"c"], seed=seed, buffer=1000, scratch=tmp_path / "scratch")) for seed in range(600)
    )
    assert min(firsts.values()) > 150  # 200 each, and 2.5 standard deviations of 11.5 are far from 50


def test_equal_keys_keep_the_order_of_the_input(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "_keys", lambda seed: iter([7] * 100))
    assert list(shuffled(iter(LINES[:100]), seed=0, buffer=500, scratch=tmp_path / "scratch")) == LINES[:100]
