"""Prefixes, folders, weights, the cache, and the order in which samples are drawn."""

import gzip
import lzma
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mconv.errors import ConfigError, FormatError, MconvError
from mconv.train.config import make
from mconv.train.data.index import open_index
from mconv.train.data.sources import Blend, blend, check_present

pytestmark = pytest.mark.once


def write(prefix, documents, *, marked=True):
    """A prefix with these documents, by megatron-core's builder."""
    from mconv.train.megatron.imports import IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for ids in documents:
        builder.add_document(ids, [len(ids)]) if marked else builder.add_item(torch.tensor(ids))
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two folders of prefixes, one of them behind a link, and a link that leads round in a circle."""
    root = tmp_path_factory.mktemp("tree")
    for number, name in enumerate(["a/z", "a/deep/x.text", "b/y"], 1):
        write(root / name, [[number] * 10] * (number * 30))
    (root / "a" / "linked").symlink_to(root / "b")
    (root / "a" / "deep" / "round").symlink_to(root / "a")
    (root / "a" / "notes.txt").write_text("nothing of ours")
    return root


def test_a_folder_is_its_prefixes(tree):
    a = tree / "a"
    assert blend([str(a)]) == Blend([a / "deep/x.text", a / "linked/y", a / "z"], None)
    assert blend([str(tree / "b/y"), str(tree / "a/z")]).prefixes == [tree / "b/y", tree / "a/z"]


@pytest.mark.parametrize("inline", [True, False])
def test_weights_however_they_are_written(tree, inline):
    a, y = str(tree / "a/z"), str(tree / "b/y")
    entries = [f"0.3 {a}", f"0.7  {y}"] if inline else ["0.3", a, "0.7", y]
    assert blend(entries) == blend([a, y], [0.3, 0.7]) == Blend([Path(a), Path(y)], [0.3, 0.7])
    shared = blend([f"6 {tree / 'a'}"])  # 600, 900 and 300 tokens
    assert shared.weights == pytest.approx([2.0, 3.0, 1.0])


REFUSED = {
    "no such folder or prefix": (lambda t: [str(t / "none")], "none.bin: no such file"),
    "an empty folder": (lambda t: [str(t / "empty")], "no prefix with .bin and .idx in this folder"),
    "half a pair": (lambda t: [str(t / "half")], r"half/h.idx is there without h.bin"),
    "weights for some": (lambda t: [f"0.3 {t / 'a/z'}", str(t / "b/y")], "some prefixes have a weight"),
    "a weight of nothing": (lambda t: [f"0 {t / 'a/z'}"], "must be positive"),
    "twice": (lambda t: [str(t / "a/z"), str(t / "a/z")], "named twice"),
}


OTHER_TYPE = {  # files there -> what is given, its data_type, what the answer says
    "conversations, read as text": (["d-text", "d-role"], "d", "gpt", "but there is .*d-text.bin.*: give --data-type"),
    "text, read as conversations": (["d"], "d", "instruction", "but there is .*d.bin, .*: leave --data-type instruction"),
    "-text, given with its ending": (["d-text", "d-role"], "d-text", "instruction", "without -text or -role: .*/d$"),
    "a folder of text": (["x/d"], "x", "instruction", "no prefix with -text and -role .*: leave --data-type instruction"),
    "nothing": ([], "d", "instruction", "d-text.bin: no such file; mconv data instruct ... --out .*/d makes it"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_TYPE)
def test_data_of_the_other_type_is_named_before_anything_starts(name, tmp_path):
    files, given, kind, says = OTHER_TYPE[name]
    (tmp_path / "x").mkdir()
    for prefix in files:
        (tmp_path / f"{prefix}.bin").touch()
        (tmp_path / f"{prefix}.idx").touch()
    config = make({"load": "x", "data": [str(tmp_path / given)], "data_type": kind, "lr": 1.0, "train_iters": 1})
    with pytest.raises(FormatError, match=says):
        check_present(config)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, tree):
    make, message = REFUSED[name]
    (tree / "empty").mkdir(exist_ok=True)
    (tree / "half").mkdir(exist_ok=True)
    (tree / "half" / "h.idx").write_bytes(b"")
    with pytest.raises(MconvError, match=message):
        for prefix in blend(make(tree)).prefixes:
            open_index(prefix)


def test_the_index_reader_reads_what_megatron_core_reads(tree, tmp_path):
    from mconv.train.megatron.imports import IndexedDataset, quiet

    with quiet():
        ours, theirs = open_index(tree / "b/y"), IndexedDataset(str(tree / "b/y"))
    assert len(ours) == len(theirs) and all(np.array_equal(ours[i], theirs[i]) for i in range(len(ours)))
    assert ours.ends.tolist() == theirs.document_indices[1:].tolist() and ours.extremes() == (3, 3)
    bare = open_index(write(tmp_path / "bare", [[1, 2], [3]], marked=False))  # as the ancestor leaves it
    assert len(bare.ends) == 0 and bare[1].tolist() == [3]


def _poke(at, *value):
    def damage(prefix):
        raw = bytearray(prefix.with_name(prefix.name + ".idx").read_bytes())
        raw[at : at + len(value)] = bytes(value)
        prefix.with_name(prefix.name + ".idx").write_bytes(raw)

    return damage


DAMAGE = {
    "a length": _poke(34, 7), "a negative length": _poke(37, 255), "a pointer, by a byte": _poke(34 + 4 * 90 + 8, 21),
    "the dtype": _poke(17, 7), "the version": _poke(9, 2), "the count": _poke(18, 91), "a document": _poke(-8, 1),
    "the first document": _poke(34 + 12 * 90, 1),
    "nothing behind the header": lambda p: os.truncate(f"{p}.idx", 34),
    "the older magic": _poke(0, *b"TNTIDX\x00\x00"), "half a token": lambda p: os.truncate(f"{p}.bin", 1799),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_index_is_refused_by_name(name, tree, tmp_path):
    for suffix in (".bin", ".idx"):
        shutil.copy(f"{tree / 'b/y'}{suffix}", f"{tmp_path / 'd'}{suffix}")
    open_index(tmp_path / "d")
    DAMAGE[name](tmp_path / "d")
    with pytest.raises(FormatError, match=str(tmp_path / "d")):
        open_index(tmp_path / "d")


def test_ids_are_read_whole_or_not_at_all(tree, tmp_path, monkeypatch):
    """A file system may give less than was asked for, and a file may be cut while a run reads it."""
    shutil.copy(f"{tree / 'b/y'}.idx", tmp_path / "d.idx")
    shutil.copy(f"{tree / 'b/y'}.bin", tmp_path / "d.bin")
    found, read = open_index(tmp_path / "d"), os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, into, at: read(file, [into[0][:3]], at))
    assert found[89].tolist() == [3] * 10
    os.truncate(tmp_path / "d.bin", 1790)
    with pytest.raises(FormatError, match=r"d\.bin ends at byte 1790"):
        found[89]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(at=st.integers(0, 1873), value=st.integers(0, 255), cut=st.integers(0, 1874) | st.none())
def test_no_byte_of_an_index_leads_out_of_its_file(at, value, cut, tree, tmp_path):
    raw = bytearray(Path(f"{tree / 'b/y'}.idx").read_bytes())
    raw[at % len(raw)] = value
    (tmp_path / "f.idx").write_bytes(raw[:cut])
    shutil.copy(f"{tree / 'b/y'}.bin", tmp_path / "f.bin")
    try:
        found = open_index(tmp_path / "f")
    except FormatError as error:
        assert "f.idx" in str(error) or "f.bin" in str(error)
        return
    assert sum(len(found[n]) for n in range(len(found))) == len(found.tokens)


def drawn(mix, cache, *, samples=(1000, 0, 0), split="100,0,0"):
    from mconv.train.data import dataset

    return dataset.datasets(mix, split=split, seq_length=8, seed=1, samples=samples, cache=cache)


@pytest.fixture
def group():
    from mconv.train.model import engine

    engine.init(engine.Parallel())


def test_a_blend_has_the_shares_that_it_is_given(tree, tmp_path, group):
    names = [tree / "a/z", tree / "b/y"]  # 300 and 900 tokens
    train, *_ = drawn(Blend(names, [0.3, 0.7]), tmp_path)
    found = Counter(int(train[i]["tokens"][0]) for i in range(1000))
    assert found[1] / 1000 == pytest.approx(0.3, abs=2e-3)
    by_size, *_ = drawn(Blend(names, None), tmp_path)
    found = Counter(int(by_size[i]["tokens"][0]) for i in range(len(by_size)))
    assert found[1] / found[3] == pytest.approx(1 / 3, abs=0.02)


def test_each_use_may_have_prefixes_of_its_own(tree, tmp_path, group):
    uses = [Blend([tree / "a/z"], None), None, Blend([tree / "b/y"], None)]
    train, valid, test = drawn(uses, tmp_path, samples=(5, 5, 5), split=None)
    assert valid is None and (int(train[0]["tokens"][0]), int(test[0]["tokens"][0])) == (1, 3)
    split = [data and len(data.indices) for data in drawn(uses[2], tmp_path, samples=(5, 5, 5), split="80,20,0")]
    assert split == [72, 18, None]


def test_what_is_not_drawn_from_may_be_too_small(tree, tmp_path, group):
    """Nor need a split be written as megatron-core would read it."""
    names = Blend([tree / "a/z", tree / "b/y"], None)
    train, valid, test = drawn(names, tmp_path, samples=(9, 0, 0), split="9_9,1,0")
    assert len(train) == 9 and valid is test is None
    train, valid, test = drawn(names, tmp_path, samples=(0, 2, 0), split="1e1,1e1,0")
    assert train is test is None and [len(part.indices) for part in valid.datasets] == [15, 45]


def test_a_blend_of_many_and_few_samples_has_them(tmp_path, group):
    """megatron-core rounds shares up: of these it would draw more from the first prefix than it has made."""
    names = [write(tmp_path / f"p{n}", [[n + 1] * 20] * 4) for n in range(12)]
    train, *_ = drawn(Blend(names, [1.0, *[1e-6] * 11]), tmp_path / "c", samples=(8, 0, 0))
    assert [int(train[n]["tokens"][0]) for n in range(8)].count(1) == 7


def test_the_second_start_finds_the_cache_unless_the_data_changed(tree, tmp_path, group, monkeypatch):
    from megatron.core.datasets import gpt_dataset

    built = []
    whole = gpt_dataset._build_shuffle_index
    monkeypatch.setattr(gpt_dataset, "_build_shuffle_index", lambda *a: built.append(1) or whole(*a))
    prefix = write(tmp_path / "d", [[5] * 10] * 60)
    first, *_ = drawn(Blend([prefix], None), tmp_path / "c")
    again, *_ = drawn(Blend([prefix], None), tmp_path / "c")
    assert built == [1] and all(torch.equal(first[i]["tokens"], again[i]["tokens"]) for i in range(9))
    write(tmp_path / "d", [[5] * 9, [5] * 11] * 30)  # as many bytes, other documents
    drawn(Blend([prefix], None), tmp_path / "c")
    assert built == [1, 1]


def test_nobody_sees_a_part_of_the_cache(tmp_path, group, monkeypatch):
    """Killed while the last file is written, or damaged later on; and nothing in it is taken for a pickle."""
    prefix, cache = write(tmp_path / "d", [[5] * 10] * 60), tmp_path / "c"
    whole, *_ = drawn(Blend([prefix], None), tmp_path / "other")
    save = np.save

    def ends_with(error):
        def cut(path, array, **options):
            save(path, array, **options)
            if "shuffle" in str(path):
                os.truncate(path, 140)
                raise error

        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, ConfigError)) as raised:
            patch.setattr(np, "save", cut)
            if isinstance(error, KeyboardInterrupt):  # as if nobody could clean up
                patch.setattr(shutil, "rmtree", lambda *args, **options: None)
            drawn(Blend([prefix], None), cache)
        return str(raised.value)

    assert "data_cache" in ends_with(OSError(28, "No space left on device")) and list(cache.iterdir()) == []
    assert ends_with(KeyboardInterrupt()) == "" and len(list(cache.iterdir())) == 1
    again, *_ = drawn(Blend([prefix], None), cache)
    assert all(torch.equal(whole[i]["tokens"], again[i]["tokens"]) for i in range(9))
    file = next(cache.glob("[!.]*/*shuffle*"))
    for damage in (file.read_bytes()[:-8], pickle.dumps(np.zeros(5))):
        file.write_bytes(damage)
        with pytest.raises(FormatError, match=r"shuffle_index\.npy is damaged"):
            drawn(Blend([prefix], None), cache)


def test_a_cache_that_cannot_be_is_refused(tree, tmp_path, group, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data_cache .*/file cannot be written to"):
        drawn(Blend([tree / "b/y"], None), tmp_path / "file")
    with pytest.raises(ConfigError, match="a folder that all nodes share"):
        from mconv.train.data import cache

        monkeypatch.setattr(cache, "rank", lambda: 1)
        monkeypatch.setattr(cache, "on_rank_0", lambda _: (tmp_path / "far", tmp_path / "far"))
        cache.cached(lambda at: (at / "x").open(), cache=tmp_path, prefixes=[], told=[])


def test_cyclic_is_every_sample_once_an_epoch_at_any_place_and_width():
    from mconv.train.data.loader import Shuffled, batches, sample_numbers

    data = [{"tokens": torch.tensor([i])} for i in range(10)]

    def draw(*, consumed=0, replicas=1, workers=0, steps=5, seed=3):
        feeds = [
            batches(
                Shuffled(data, seed), device="cpu", workers=workers,
                numbers=sample_numbers(consumed, micro_batch_size=1, global_batch_size=4, replica=r, replicas=replicas),
            )
            for r in range(replicas)
        ]  # fmt: skip
        return [int(next(feed)["tokens"]) for _ in range(steps * 4 // replicas) for feed in feeds]

    whole = draw()
    assert sorted(whole[:10]) == sorted(whole[10:]) == list(range(10)) and whole[:10] != whole[10:] != list(range(10))
    assert draw(replicas=4) == draw(replicas=2, workers=3) == draw(workers=2) == whole != draw(seed=4)
    assert [draw(consumed=n, steps=2, workers=1) for n in (4, 12)] == [whole[4:12], whole[12:20]]


def test_what_a_thread_raises_is_raised():
    from mconv.train.data.loader import batches

    class Torn(list):
        def __getitem__(self, number):
            raise OSError(f"sample {number} cannot be read")

    with pytest.raises(OSError, match="sample 0 cannot"):
        next(batches(Torn([1]), iter([[0]]), device="cpu", workers=2))


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.xz", ".txt.zst"])
def test_a_line_of_text_is_a_document(suffix, tmp_path):
    """C4, C9: one line one document, and as many EOD tokens as documents that are not empty."""
    from mconv.train.data.tokenize import tokenize

    raw = "﻿one two\r\n\n  three\x0bfour\u2028five  \n   \n\tlast".encode()
    path = tmp_path / f"lines{suffix}"
    if suffix.endswith("zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(raw))
    else:
        path.write_bytes({".txt": bytes, ".txt.gz": gzip.compress, ".txt.xz": lzma.compress}[suffix](raw))
    assert jobs.documents(path, key="text") == ["one two", "three\x0bfour\u2028five", "last"]
    folder = jobs.tokenizer_folder(tmp_path / "tokenizer", jobs.texts())
    record = tokenize([path], tmp_path / "d", tokenizer=folder)
    ids = open_index(tmp_path / "d").tokens[:]
    assert record.documents == 3 and (ids == record.append_eod).sum() == 3
    path.write_bytes(b"\xff\xfe nothing")
    with pytest.raises(FormatError, match=r"lines\.txt"):
        jobs.documents(path, key="text")


def test_another_tokenizer_than_the_checkpoints_is_refused(tmp_path):
    from mconv.train.data import checks
    from mconv.train.data.tokenize import tokenize

    (tmp_path / "text.txt").write_text("one two three\n" * 40)
    mine = jobs.tokenizer_folder(tmp_path / "mine", jobs.texts())
    other = jobs.tokenizer_folder(tmp_path / "other", ["entirely different words", "of another text"])
    tokenize([tmp_path / "text.txt"], tmp_path / "d", tokenizer=mine)
    checks.same_tokenizer(
        [tmp_path / "d"],
        {"tokenizer.json": mine / "tokenizer.json", "tokenizer_config.json": other / "tokenizer_config.json"},
    )
    with pytest.raises(ConfigError, match=r"another tokenizer than the checkpoint's: tokenizer.json differs"):
        checks.same_tokenizer([tmp_path / "d"], {"tokenizer.json": other / "tokenizer.json"})
