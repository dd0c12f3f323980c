"""Text to .bin/.idx and back out as batches."""

import dataclasses
import gzip
import json
import lzma
import os
import sys
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch

from mconv.errors import ConfigError, FormatError, MconvError
from mconv.train.data.record import read_record
from mconv.train.data.tokenize import tokenize

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parents[3] / "shared/golden/datatrove/tokenize"
TEXTS = ["def work():", "", "one two three", "é ∑ unknown", "   ", "the end"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return jobs.tokenizer_folder(tmp_path_factory.mktemp("tokenizer"), jobs.texts())


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": n}) + "\n" for n, text in enumerate(TEXTS)))
    return path


def stored(prefix):
    """Documents as megatron-core reads them."""
    from mconv.train.megatron.imports import IndexedDataset, quiet

    with quiet():
        data = IndexedDataset(str(prefix))
    return [np.array(data[i]).tolist() for i in range(len(data))]


def test_round_trip(tokenizer, source, tmp_path):
    from transformers import AutoTokenizer

    record = tokenize([source], tmp_path / "out" / "d", tokenizer=tokenizer)
    fast = AutoTokenizer.from_pretrained(tokenizer)
    wanted = [[*ids, fast.eos_token_id] for text in TEXTS if (ids := fast.encode(text, add_special_tokens=False))]
    assert stored(tmp_path / "out" / "d") == wanted
    assert (record.documents, record.empty) == (len(wanted), len(TEXTS) - len(wanted)) and record.empty >= 1
    assert record.tokens == sum(map(len, wanted)) and record.max_id == max(map(max, wanted))
    assert (record.append_eod, record.prepend_bos, record.dtype) == (fast.eos_token_id, None, "uint16")
    assert read_record(tmp_path / "out" / "d") == record
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["d.bin", "d.idx", "d.mconv.json"]


def test_marks_are_as_asked(tokenizer, source, tmp_path):
    plain = tokenize([source], tmp_path / "plain", tokenizer=tokenizer, append_eod=False)
    both = tokenize([source], tmp_path / "both", tokenizer=tokenizer, prepend_bos=True)
    bare = stored(tmp_path / "plain")
    assert stored(tmp_path / "both") == [[both.prepend_bos, *ids, both.append_eod] for ids in bare]
    assert (plain.append_eod, both.tokens) == (None, plain.tokens + 2 * plain.documents)


def test_output_does_not_depend_on_compression_or_batches(tokenizer, source, tmp_path, monkeypatch):
    from mconv.train.data.reading import lines

    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    (tmp_path / "t.jsonl.xz").write_bytes(lzma.compress(source.read_bytes()))
    tokenize([source], tmp_path / "a", tokenizer=tokenizer)
    monkeypatch.setattr(lines, "BLOCK", 50)
    for name, path in [("b", source), ("c", tmp_path / "t.jsonl.gz"), ("d", tmp_path / "t.jsonl.xz")]:
        tokenize([path], tmp_path / name, tokenizer=tokenizer)
        for suffix in (".bin", ".idx"):
            assert (tmp_path / f"{name}{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()


def test_workers_give_the_same_bytes(tokenizer, tmp_path, monkeypatch):
    """Batches of different length, so that they are not done in the order in which they were begun."""
    from mconv.train.data.reading import lines

    monkeypatch.setattr(lines, "BLOCK", 200)
    texts = [f"{n} " + "one two three " * (1 + 90 * (n % 7 == 0)) for n in range(60)]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    for workers in (1, 3):
        tokenize([tmp_path / "t.txt"], tmp_path / f"w{workers}", tokenizer=tokenizer, workers=workers)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"w1{suffix}").read_bytes() == (tmp_path / f"w3{suffix}").read_bytes()
    assert len(stored(tmp_path / "w3")) == 60


@pytest.mark.parametrize("block, longest", [(1, 99), (2, 99), (7, 5), (30, 9), (1000, 9), (9, 9)])
def test_blocks_are_whole_lines_whatever_their_size(block, longest, tmp_path, monkeypatch):
    """Held to str.split: every line once, with its number, and what is too long is told and passed over."""
    from mconv.train.data.reading import lines
    from mconv.train.data.reading.formats import batches

    monkeypatch.setattr(lines, "BLOCK", block)
    monkeypatch.setattr(lines, "LONGEST", longest)
    path = tmp_path / "d.txt"
    text = "ab\n\n \ncdefgh\r\n" + "x" * 40 + "\n\x0b\nend"
    path.write_text(text)
    read = list(batches(path))
    found = {at.line: value for batch in read for at, value in batch.texts(["a", "b"])}
    wanted = {n: line for n, line in enumerate(text.split("\n"), 1) if line.strip()}
    assert found.keys() == wanted.keys() and sum(batch.size for batch in read) == len(text)
    for number, line in wanted.items():
        if isinstance(found[number], tuple):
            assert found[number] == (line.strip(),) * 2 and len(line) <= longest
        else:
            assert found[number].kind == "too long" and len(line) >= longest - 1


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden data is not here")
@pytest.mark.parametrize("eos", [True, False])
def test_bytes_equal_datatrove(eos, tmp_path):
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_file=str(GOLDEN / "tokenizer.json"), eos_token="<|endoftext|>")
    fast.save_pretrained(tmp_path / "tokenizer")
    tokenize([GOLDEN / "docs.jsonl"], tmp_path / "d", tokenizer=tmp_path / "tokenizer", append_eod=eos)
    for suffix in (".bin", ".idx"):
        theirs = GOLDEN / f"{'eos' if eos else 'noeos'}_uint16{suffix}"
        assert (tmp_path / f"d{suffix}").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_an_index_is_that_of_megatron_cores_builder(chunk, documents, tmp_path, monkeypatch):
    from mconv.train.data import pairs
    from mconv.train.megatron.imports import IndexedDatasetBuilder

    sequences = [list(range(n)) for n in (3, 1, 4, 1, 5)]
    builder = IndexedDatasetBuilder(str(tmp_path / "t.bin"), dtype=np.int32)
    for ids in sequences:
        if documents:
            builder.add_document(ids, [len(ids)])
        else:
            builder.add_item(torch.tensor(ids))
    builder.finalize(str(tmp_path / "t.idx"))
    builder.data_file.close()
    np.array([len(ids) for ids in sequences], np.int32).tofile(tmp_path / "lengths")
    monkeypatch.setattr(pairs, "CHUNK", chunk)
    pairs.write_index(tmp_path / "ours.idx", tmp_path / "lengths", "int32", documents=documents)
    assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "t.idx").read_bytes()


BAD_LINES = {
    "not json": ('{"text": "fine"}\n{"text": ', "text.jsonl:2: not JSON"),
    "no key": ('{"body": "x"}\n', r"text.jsonl:1: no text under 'text' \(the record has \['body'\]\)"),
    "no text": ('{"text": 7}\n', "text.jsonl:1: no text under 'text'"),
    "no object": ("[1]\n", r"text.jsonl:1: no text under .text.: it is a list; .*jq -c"),
    "nothing": ('{"text": ""}\n', "no document with text"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_input_is_refused_and_leaves_nothing(name, tokenizer, source, tmp_path):
    text, message = BAD_LINES[name]
    source.write_text(text)
    with pytest.raises(FormatError, match=message):
        tokenize([source], tmp_path / "out" / "d", tokenizer=tokenizer)
    assert list((tmp_path / "out").iterdir()) == []


def test_other_refusals(tokenizer, source, tmp_path):
    tokenize([source], tmp_path / "d", tokenizer=tokenizer)
    with pytest.raises(MconvError, match="already there; pass --overwrite"):
        tokenize([source], tmp_path / "d", tokenizer=tokenizer)
    tokenize([source], tmp_path / "d", tokenizer=tokenizer, overwrite=True)
    with pytest.raises(FormatError, match="not a folder with a tokenizer"):
        tokenize([source], tmp_path / "e", tokenizer=tmp_path / "none")


@pytest.mark.parametrize("suffix, package", [(".jsonl.zst", "zstandard"), (".parquet", "pyarrow")])
def test_a_reader_that_is_not_installed_is_asked_for(suffix, package, tokenizer, source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    other = source.with_suffix(suffix)
    other.write_bytes(b"")
    with pytest.raises(MconvError, match=rf"reading \S+{suffix} needs {package}: pip install 'mconv\[data\]'"):
        tokenize([other], tmp_path / "e", tokenizer=tokenizer)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".parquet"])
def test_every_container_holds_the_same_documents(suffix, tmp_path):
    texts = ["one\n", "zwei", "三\u2028", "x" * 300_000]
    plain = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path = tmp_path / f"d{suffix}"
    if suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table({"text": texts}), path)
    elif suffix == ".jsonl.zst":
        path.write_bytes(pytest.importorskip("zstandard").compress(plain))
    else:
        path.write_bytes({".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.xz": lzma.compress}[suffix](plain))
    assert jobs.documents(path, key="text") == texts
    with pytest.raises(FormatError, match="body"):
        jobs.documents(path, key="body")


def test_a_file_that_ends_too_early_is_refused(tmp_path, monkeypatch):
    """Each of these was taken for the whole of it, or for something else."""
    zstandard, parquet = pytest.importorskip("zstandard"), pytest.importorskip("pyarrow.parquet")
    path, line = tmp_path / "d.txt.zst", b"twelve bytes\n"
    path.write_bytes(zstandard.compress(line * 3) * 2 + b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab")  # frames, one without text
    assert len(jobs.documents(path, key="text")) == 6
    os.truncate(path, 30)
    with pytest.raises(FormatError, match="ends in the middle of a frame"):
        jobs.documents(path, key="text")
    table = pytest.importorskip("pyarrow").table({"text": [str(n) * 99 for n in range(500)]})
    parquet.write_table(table, tmp_path / "d.parquet")
    raw = bytearray((tmp_path / "d.parquet").read_bytes())
    raw[40:90] = bytes(50)
    (tmp_path / "d.parquet").write_bytes(raw)
    with pytest.raises(FormatError, match=r"d\.parquet: not a parquet file, or damaged"):
        jobs.documents(tmp_path / "d.parquet", key="text")
    (tmp_path / "notes.txt.jsonl").write_text('{"text": "one"}\n')
    assert jobs.documents(tmp_path / "notes.txt.jsonl", key="text") == ["one"]
    from mconv.train.data.reading import lines

    monkeypatch.setattr(lines, "LONGEST", 64)
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "x" * 64}))
    with pytest.raises(FormatError, match=r"d.jsonl:1: the line is longer"):
        jobs.documents(tmp_path / "d.jsonl", key="text")


def test_overwriting_that_is_killed_leaves_no_old_index_beside_new_text(tokenizer, source, tmp_path, monkeypatch):
    from mconv.train.data.index import open_index

    tokenize([source], tmp_path / "d", tokenizer=tokenizer)
    replace = Path.replace

    def killed(self, target):
        if target.suffix == ".idx":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenize([source], tmp_path / "d", tokenizer=tokenizer, overwrite=True)
    with pytest.raises(FormatError, match=r"d\.idx: no such file"):
        open_index(tmp_path / "d")


def test_text_that_spells_the_end_of_a_document_is_told(tokenizer, tmp_path, capsys):
    from mconv.cli.app import run

    (tmp_path / "d.txt").write_text("one</s> two\none two</s>\none\n")
    words = ["data", "tokenize", str(tmp_path / "d.txt"), "--tokenizer", str(tokenizer), "--prefix", str(tmp_path / "d")]
    assert run(words) == 0 and "3 documents" in (said := capsys.readouterr().out)
    assert (
        "2 documents contain the end-of-document token in their text" in said and read_record(tmp_path / "d").spelled == 2
    )


def test_eos_is_appended_as_the_other_programs_do_and_bos_is_not_doubled():
    """Megatron-LM, Megatron-LLM and datatrove append EOS to a text that spells it at its end, too."""
    from mconv.train.data.encoded import joined

    found = joined([[1, 5, 2], [], [5]], bos=1, eos=2)
    assert (found.ids.tolist(), found.lengths.tolist()) == ([1, 5, 2, 2, 1, 5, 2], [4, 3])
    assert joined([[5]]).ids.tolist() == [5]


def test_an_id_beyond_the_model_is_refused_where_it_is_drawn(tmp_path):
    """Whatever a record says: with the vocabulary shared among ranks, zeros would stand for it."""
    from mconv.train.data.loader import batches

    for tokens, labels in (([3, 90], [90, 4]), ([3, 4], [4, 90]), ([-1, 3], [3, 4])):
        sample = {"tokens": torch.tensor(tokens), "labels": torch.tensor(labels)}
        next(batches([sample], iter([[0]]), device="cpu", vocab_size=91)) if min(tokens) >= 0 else None
        with pytest.raises(FormatError, match=r"sample 0 holds token id (90|-1); those of the model are 0 to 89"):
            next(batches([sample], iter([[0]]), device="cpu", vocab_size=90))


def test_training_refuses_ids_that_the_model_lacks(tokenizer, source, tmp_path):
    from mconv.train.data import checks

    def check(prefix, *, vocab_size, seq_length):
        part = checks.PrefixShare(name="training", prefixes=[prefix])
        checks.check([part], vocab_size=vocab_size, seq_length=seq_length)

    record = tokenize([source], tmp_path / "d", tokenizer=tokenizer)
    check(tmp_path / "d", vocab_size=record.max_id + 1, seq_length=8)
    for _ in range(2):  # with the record, then from the ids themselves
        with pytest.raises(ConfigError, match=f"token id {record.max_id}, but the model's vocabulary ends at"):
            check(tmp_path / "d", vocab_size=record.max_id, seq_length=8)
        (tmp_path / "d.mconv.json").write_text(json.dumps(dataclasses.asdict(record) | {"bin_bytes": 1, "max_id": 0}))
    with pytest.raises(ConfigError, match="one sample of seq_length 9999 needs 10000"):
        check(tmp_path / "d", vocab_size=90, seq_length=9999)


def test_every_layout_draws_the_same_global_batches():
    from mconv.train.data.loader import sample_numbers

    def batches(micro, replicas, consumed, count):
        """The samples of each of the next `count` global batches, over all replicas."""
        feeds = [
            sample_numbers(consumed, micro_batch_size=micro, global_batch_size=12, replica=r, replicas=replicas)
            for r in range(replicas)
        ]
        steps = 12 // (micro * replicas)
        return [sorted(n for feed in feeds for _ in range(steps) for n in next(feed)) for _ in range(count)]

    wanted = [list(range(12 * i, 12 * i + 12)) for i in range(4)]
    for micro, replicas in [(1, 1), (2, 1), (1, 4), (3, 4), (2, 3), (6, 2)]:
        assert batches(micro, replicas, 0, 4) == wanted
        assert batches(micro, replicas, 24, 2) == wanted[2:]


def test_batches_are_the_text(tokenizer, tmp_path):
    """Labels are the next tokens, and the tokens are the documents' own, run together."""
    from mconv.train.data import dataset, loader
    from mconv.train.data.sources import Blend
    from mconv.train.model import engine

    prefix = jobs.train_data(tmp_path)
    engine.init(engine.Parallel())
    data, *none = dataset.datasets(
        Blend([prefix], None), split="100,0,0", seq_length=16, seed=1, samples=(40, 0, 0), cache=tmp_path / "cache"
    )
    numbers = loader.sample_numbers(0, micro_batch_size=2, global_batch_size=4, replica=0, replicas=1)
    batch = next(loader.batches(data, numbers, device="cpu"))
    engine.shutdown()
    assert none == [None, None] and {name: tuple(t.shape) for name, t in batch.items()} == dict.fromkeys(batch, (2, 16))
    assert torch.equal(batch["tokens"][:, 1:], batch["labels"][:, :-1])
    assert batch["loss_mask"].all() and torch.equal(batch["position_ids"][0], torch.arange(16))
    documents = {tuple(ids) for ids in stored(prefix)}
    joined = " ".join(" ".join(map(str, ids)) for ids in documents)
    inside = [part for part in " ".join(map(str, batch["tokens"][0].tolist())).split(" 2 ") if part]
    assert all(part.removesuffix(" 2") in joined for part in inside)
