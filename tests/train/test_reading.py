"""Sources: every format and packing of records, folders, patterns, datasets; bombs and hostile names."""

import bz2
import gzip
import json
import lzma
import pickle
import sys
import tracemalloc
from pathlib import Path

import jobs
import pytest

from mconv.errors import ConfigError, FormatError, MconvError
from mconv.train.data import bad_records
from mconv.train.data.bad_records import Kind
from mconv.train.data.reading import csvs, expansion, lines
from mconv.train.data.reading.formats import FORMATS, batches
from mconv.train.data.reading.inputs import Choice, files

pytestmark = pytest.mark.once
TEXTS = ["one", 'zwei, "2"', "三\u2028drei", "two\nlines\r\n", "x" * 3000, "null", "007"]


def jsonl(texts=TEXTS):
    return "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(texts)).encode()


def table(texts=TEXTS):
    return pytest.importorskip("pyarrow").table({"text": texts, "n": range(len(texts))})


def write_csv(path, delimiter):
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("n", "text"), *enumerate(TEXTS)])


def write_arrow(path, *, stream):
    ipc = pytest.importorskip("pyarrow.ipc")
    with (ipc.new_stream if stream else ipc.new_file)(str(path), table().schema) as writer:
        writer.write_table(table(), max_chunksize=2)


def zst(data):
    return pytest.importorskip("zstandard").compress(data)


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}
WRITE = {
    ".jsonl": lambda path: path.write_bytes(jsonl()),
    ".ndjson": lambda path: path.write_bytes(jsonl()),
    ".csv": lambda path: write_csv(path, ","),
    ".tsv": lambda path: write_csv(path, "\t"),
    ".parquet": lambda path: pytest.importorskip("pyarrow.parquet").write_table(table(), path),
    ".arrow": lambda path: write_arrow(path, stream=True),
    ".feather": lambda path: write_arrow(path, stream=False),
}


@pytest.mark.parametrize("suffix", WRITE)
def test_every_format_holds_the_same_texts(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"d{suffix}"
    WRITE[suffix](path)
    assert jobs.documents(path) == TEXTS
    with pytest.raises(FormatError, match="body"):
        jobs.documents(path, key="body")
    numbers = [record.value["n"] for batch in batches(path) for record in batch.records()]
    assert [int(number) for number in numbers] == [*range(len(TEXTS))]
    monkeypatch.setattr(lines, "BLOCK", 100)
    monkeypatch.setattr(csvs, "BLOCK", 100)
    whole = [*batches(path, ["text"])]
    assert [text for batch in whole for _, (text,) in batch.texts(["text"])] == TEXTS
    assert [*pickle.loads(pickle.dumps(whole[-1])).texts(["text"])] == [*whole[-1].texts(["text"])]


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_every_packing_holds_the_same_texts(packing, suffix, tmp_path):
    WRITE[suffix](tmp_path / f"d{suffix}")
    (tmp_path / f"d{suffix}{packing}").write_bytes(PACK[packing]((tmp_path / f"d{suffix}").read_bytes()))
    assert jobs.documents(tmp_path / f"d{suffix}{packing}") == TEXTS


def test_a_batch_of_rows_is_sent_without_those_around_it(tmp_path):
    path = tmp_path / "d.parquet"
    pytest.importorskip("pyarrow.parquet").write_table(table(["x" * 100_000] * 64), path)
    found = [*batches(path, ["text"])]
    assert len(found) > 4 and all(len(pickle.dumps(batch)) < 2 * batch.size for batch in found)


@pytest.mark.parametrize("suffix", [*PACK, ".parquet", ".arrow"])
def test_a_bomb_is_stopped_and_memory_is_bounded(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(expansion, "FREE", 1 << 16)
    path, size = tmp_path / (f"d.txt{suffix}" if suffix in PACK else f"d{suffix}"), 1 << 21
    if suffix in PACK:
        path.write_bytes(PACK[suffix](b"0123456\n" * (size // 8)))
    else:
        arrow = pytest.importorskip("pyarrow")
        rows = arrow.table({"text": arrow.array(["0" * 8000] * (size // 8000)).dictionary_encode().cast(arrow.string())})
        if suffix == ".parquet":
            pytest.importorskip("pyarrow.parquet").write_table(rows, path)
        else:
            options = arrow.ipc.IpcWriteOptions(compression="zstd")
            with arrow.ipc.new_stream(str(path), rows.schema, options=options) as writer:
                writer.write_table(rows, max_chunksize=64)
    ratio = size / path.stat().st_size
    assert ratio > 40 and sum(batch.size for batch in batches(path, ["text"], max_expand=2 * ratio)) > 0.99 * size
    read = 0
    with pytest.raises(FormatError, match=r"unpacks to more than \S+ MiB .* raise --max-expand"):
        for batch in batches(path, ["text"], max_expand=ratio / 4):
            read += batch.size
    assert read < size / 2
    with pytest.raises(ConfigError, match=r"--max-expand is 0\.5"):
        next(batches(path, ["text"], max_expand=0.5))


def test_an_endless_line_is_refused_by_its_number(tmp_path, monkeypatch):
    """The file takes no room on the disk; memory holds a line of the longest length that is allowed, twice."""
    monkeypatch.setattr(lines, "LONGEST", longest := 1 << 22)
    path = tmp_path / "d.txt"
    with path.open("wb") as file:
        file.write(b"one\n")
        file.truncate(1 << 27)
        file.seek(0, 2)
        file.write(b"\ntwo\n")
    tracemalloc.start()
    found = jobs.documents(path, bad=bad_records.skip)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [found[0], found[2]] == ["one", "two"] and (found[1].place.line, found[1].kind) == (2, Kind.TOO_LONG)
    assert most < 3 * longest


CELLS = {
    "quotes, line ends and a byte order mark": (
        b'\xef\xbb\xbftext,n\r\n"a ""b""\r\nc",1\r\n\r\nd,2',
        ['a "b"\r\nc', "d"],
    ),
    "too few cells": (b"text,n\na,1\nb\nc,3\n", ["a", Kind.NOT_CSV, "c"]),
    "not UTF-8": (b"text,n\na,1\n\xff,2\nc,3\n", ["a", Kind.NOT_UTF8, "c"]),
    "text behind a quote": (b'text,n\n"a"b,1\nc,3\n', [Kind.NOT_CSV, "c"]),
    "a quote without an end": (b'text,n\na,1\n"b,2\nc,3\n', ["a", Kind.NOT_CSV]),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells(name, tmp_path):
    content, wanted = CELLS[name]
    (tmp_path / "d.csv").write_bytes(content)
    found = jobs.documents(tmp_path / "d.csv", bad=bad_records.skip)
    assert [getattr(one, "kind", one) for one in found] == wanted


def test_a_bad_row_is_named_by_its_line(tmp_path):
    (tmp_path / "d.csv").write_text('text,n\n"a\nb",1\nc\n')
    with pytest.raises(FormatError, match=r"d.csv:4: the row has 1 cells, the first row 2 \(kind: not CSV"):
        jobs.documents(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text("text,text\n")
    with pytest.raises(FormatError, match="the first row must name the columns, each once"):
        jobs.documents(tmp_path / "d.csv")


def test_an_arrow_stream_that_is_cut_between_batches_is_refused(tmp_path):
    path = tmp_path / "d.arrow"
    write_arrow(path, stream=True)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FormatError, match="without the mark of its end"):
        jobs.documents(path)
    path.write_bytes(b"no Arrow at all" + b"\xff\xff\xff\xff\0\0\0\0")
    with pytest.raises(FormatError, match="not an Arrow file, or damaged"):
        jobs.documents(path)


def test_text_as_pythons_text_mode_reads_it(tmp_path):
    """C5, held to the guide's program: what is a line there, and what is stripped from it."""
    path = tmp_path / "d.txt"
    raw = "\ufeffone\x0btwo \r\n\n \x1c\nthree\u2028four\x85five\rsix\r\rseven\n\ufeff \u3000eight\n\u2028\nend"
    path.write_bytes(raw.encode())
    with path.open("r", encoding="utf-8") as file:
        wanted = [line.strip() for line in file if line.strip()]
    found = [record.value for batch in batches(path) for record in batch.records()]
    assert found == [{"text": line} for line in wanted] and len(wanted) > 5


@pytest.fixture
def tree(tmp_path):
    for name in ("b/2.jsonl", "b/10.jsonl", "a.txt", "c/z.csv.gz", ".hidden.txt", "b/.cache/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_folders_and_patterns(tree):
    def found(*names, **choice):
        return [str(path.relative_to(tree)) for path in files([tree / name for name in names], Choice(**choice))]

    assert found(".") == ["a.txt", "b/10.jsonl", "b/2.jsonl", "c/z.csv.gz"] == found("**/*.*") == found("**")
    assert found("c", "b/*.jsonl", "a.txt") == ["c/z.csv.gz", "b/10.jsonl", "b/2.jsonl", "a.txt"]
    (tree / "b/README.md").touch()
    (tree / "b/t.parquet.gz").touch()
    with pytest.raises(MconvError, match=r"README.md and 1 more files: .* --skip-unknown-files leaves such files out"):
        found(".")
    assert found(".", skip_unknown=True) == ["a.txt", "b/10.jsonl", "b/2.jsonl", "c/z.csv.gz"]
    assert found("b/*", skip_unknown=True) == ["b/10.jsonl", "b/2.jsonl"]
    with pytest.raises(ConfigError, match="--split test: no source is a folder that datasets saved with splits"):
        found("a.txt", split="test")
    for name, message in (
        ("b/README.md", "says no format that is read: .jsonl, .*rename it, such as to README.md.jsonl"),
        ("b/t.parquet.gz", "a .parquet file is compressed inside; unpack it to t.parquet"),
        ("nothing*", "no file has a name of this pattern"),
        ("nothing", "no such file"),
    ):
        with pytest.raises(MconvError, match=message):
            found(name)


def saved(folder, *, shards=1, splits=()):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict({"text": TEXTS, "n": [*range(len(TEXTS))]})
    if splits:
        datasets.DatasetDict({name: made.select([n]) for n, name in enumerate(splits)}).save_to_disk(folder)
    else:
        made.save_to_disk(folder, num_shards=shards)
    return folder


def test_folders_that_datasets_saved(tmp_path):
    """K5: the shards in their order, and the split that is chosen."""
    found = files([saved(tmp_path / "one", shards=3)])
    assert len(found) == 3 and [text for path in found for text in jobs.documents(path)] == TEXTS
    both = saved(tmp_path / "both", splits=("train", "test"))
    with pytest.raises(MconvError, match="has the splits train, test; choose one with --split"):
        files([both])
    assert jobs.documents(*files([both], Choice(split="test"))) == [TEXTS[1]]
    assert len(files([tmp_path], Choice(split="train"))) == 4
    assert jobs.documents(*files([saved(tmp_path / "only", splits=("valid",))])) == [TEXTS[0]]


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/secret.arrow", "a/b.arrow", "..", "", 7])
def test_a_name_in_saved_data_leads_to_no_other_folder(name, tmp_path):
    (tmp_path / "d").mkdir()
    write_arrow(tmp_path / "secret.arrow", stream=True)
    (tmp_path / "d/dataset_info.json").write_text("{}")
    (tmp_path / "d/state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(MconvError, match="is not a file of its folder"):
        files([tmp_path / "d"])
    (tmp_path / "e").mkdir()
    (tmp_path / "e/dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(MconvError, match="is not a file of its folder"):
        files([tmp_path / "e"], Choice(split=str(name)))


@pytest.fixture
def named(tmp_path, monkeypatch):
    """A dataset ORG/NAME that the package finds without a network: a folder of this name where it runs."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ORG/NAME/data").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / f"ORG/NAME/data/{split}.jsonl").write_bytes(jsonl([f"{split} {n}" for n in range(600)]))
    return tmp_path / "ORG/NAME"


def test_datasets_by_name(named):
    """E3: streamed, the columns that are asked for, a split, in the order of the dataset."""
    pytest.importorskip("datasets")
    for name, split in (
        ("hf://ORG/NAME", "train"),
        ("hf://ORG/NAME@test", "test"),
        ("hf://ORG/NAME/default@test", "test"),
    ):
        [source] = files([Path(name)])
        assert jobs.documents(source) == [f"{split} {n}" for n in range(600)]
    [first, *_] = batches(Path("hf://ORG/NAME"), ["text"])
    assert first.file == "hf://ORG/NAME" and {*next(first.records()).value} == {"text"}
    for name, message in (
        ("hf://ORG/NAME@none", r"hf://ORG/NAME@none: ValueError: .*Available splits"),
        ("hf://ORG/NAME/none", "hf://ORG/NAME/none: "),
        ("hf://NAME", "a dataset is hf://ORG/NAME, with"),
    ):
        with pytest.raises(MconvError, match=message):
            jobs.documents(Path(name))
    with pytest.raises(FormatError, match="hf://ORG/NAME: no column 'body'"):
        jobs.documents(Path("hf://ORG/NAME"), key="body")


def test_a_dataset_by_name_is_tokenized(named, tmp_path, capsys):
    """By the command, with a record; --resume tells it from another dataset."""
    pytest.importorskip("datasets")
    from mconv.cli.app import run

    folder = jobs.tokenizer_folder(tmp_path / "t", jobs.texts())
    words = ["data", "tokenize", "hf://ORG/NAME@test", "--out", str(tmp_path / "d"), "--tokenizer", str(folder)]
    assert run([*words, "--workers", "1"]) == 0 and "600 documents" in capsys.readouterr().out
    assert run([*words, "--workers", "1"]) == 2 and "already there" in capsys.readouterr().err


def test_a_datasets_script_is_never_run(named):
    pytest.importorskip("datasets")
    (named / "NAME.py").write_text(f"open({str(named / 'ran')!r}, 'w')\n")
    with pytest.raises(FormatError, match="Dataset scripts are no longer supported"):
        jobs.documents(Path("hf://ORG/NAME"))
    assert not (named / "ran").exists()


def test_the_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MconvError, match=r"reading hf://ORG/NAME needs datasets: pip install 'mconv\[data\]'"):
        next(batches(Path("hf://ORG/NAME")))
    assert {".txt", ".arrow"} <= FORMATS.keys()
