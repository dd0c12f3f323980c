"""Records from any format to any other, and what the guides' own programs make of the same files."""

import json
import os
from pathlib import Path

import jobs
import pytest

from mconv.cli.app import run
from mconv.errors import FormatError, MconvError
from mconv.train.data import bad_records
from mconv.train.data.bad_records import Kind
from mconv.train.data.reading.formats import batches
from mconv.train.data.reading.inputs import files
from mconv.train.data.writing import targets
from mconv.train.data.writing.export import Selection, export
from mconv.train.data.writing.targets import Layout

pytestmark = pytest.mark.once
SEED = Path(__file__).parents[3] / "shared/seeds/000_9f66b4c92aa89b48.txt"
RAW = '\ufeffone\x0btwo \r\n\n \x1c\nthree\u2028four\x85five\rsix\n\ufeff \u3000"sèven"\\\n\u2028\nno end'
RECORDS = [{"text": text, "n": n} for n, text in enumerate(["one", 'two "2"', "drei ü", "\u2028 4", "null", "007"])]


def records(path):
    return [record.value for file in files([path]) for batch in batches(file) for record in batch.records()]


def write(path, found=RECORDS):
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    return path


def guides_program(source, out):
    """The eight lines of the guide, run as they are there, on other files."""
    text = SEED.read_text()
    start = text.index("input_file = ")
    lines = text[start : text.index("```", start)].splitlines()
    assert len([line for line in lines if line.strip() and not line.strip().startswith("#")]) == 7
    code = "import json\n" + "\n".join(line for line in lines if not line.startswith(("input_file", "output_file")))
    exec(code, {"input_file": source, "output_file": out})


@pytest.mark.skipif(not SEED.is_file(), reason="the guide is not here")
def test_text_to_json_lines_byte_for_byte_as_in_the_guide(tmp_path):
    """C5: vertical tab, line and paragraph separators, a byte order mark, CRLF, a lone CR, no line end at the end."""
    (tmp_path / "d.txt").write_bytes(RAW.encode())
    guides_program(tmp_path / "d.txt", tmp_path / "theirs.jsonl")
    assert export([tmp_path / "d.txt"], [tmp_path / "ours.jsonl"]).records == 5
    assert (tmp_path / "ours.jsonl").read_bytes() == (tmp_path / "theirs.jsonl").read_bytes()


KINDS = [".jsonl", ".jsonl.gz", ".ndjson.zst", ".json.xz", ".jsonl.bz2", ".parquet", ".arrow", ".feather", ""]


@pytest.mark.parametrize("suffix", KINDS)
def test_every_format_gives_back_what_was_written(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "GROUP", 1)
    source, out = write(tmp_path / "s.jsonl"), tmp_path / f"made{suffix}"
    assert export([source, source], [out]).records == 2 * len(RECORDS)
    assert records(out) == RECORDS * 2
    export(files([out]), [tmp_path / "back.jsonl"])
    assert records(tmp_path / "back.jsonl") == RECORDS * 2
    assert {path.name for path in tmp_path.iterdir()} == {"s.jsonl", out.name, "back.jsonl"}


def test_a_folder_that_datasets_loads_to_json_lines_and_text(tmp_path):
    """K5, in one pass; datasets itself is the reader of the folder, and the text file the guide's."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list([*RECORDS, {"text": "  in the middle ", "n": 7}, {"text": " ", "n": 8}])
    made.save_to_disk(tmp_path / "saved")
    outs = [tmp_path / "all.jsonl", tmp_path / "all.txt"]
    found = export(files([tmp_path / "saved"]), outs, select=Selection(keys=["text"]))
    assert (found.records, found.empty) == (8, 1)
    assert outs[0].read_text() == "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in made["text"])
    assert outs[1].read_text() == "".join(text.strip() + "\n" for text in made["text"] if text.strip())


def test_text_files_to_a_folder_with_their_source(tmp_path):
    """K3: any .txt, all files of a set, the name of the set in a column; read back by datasets."""
    datasets = pytest.importorskip("datasets")
    for name, text in (("dawiki.1.txt", "a\n\nb\n"), ("dawiki.2.txt", "c"), ("reddit.danish.txt", "d\r\n")):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(text, newline="")
    words = ["data", "export", str(tmp_path / "in"), "--out", str(tmp_path / "all"), "--source-column", "source"]
    assert run(words) == 0
    found = datasets.load_from_disk(tmp_path / "all")
    assert found.to_list() == [
        {"source": source, "text": text}
        for source, text in (("dawiki", "a"), ("dawiki", "b"), ("dawiki", "c"), ("reddit", "d"))
    ]


@pytest.mark.parametrize("how, lines", [("stop", ["a"]), ("space", ["a", "b c d"]), ("keep", ["a", "b", "c\r", "", "d"])])
def test_line_breaks_in_a_text(how, lines, tmp_path):
    source = write(tmp_path / "s.jsonl", [{"text": "a"}, {"text": "b \n c\r\n\nd\n"}])
    made = export([source], [tmp_path / "d.txt"], layout=Layout(line_breaks=how), bad=bad_records.skip)
    assert (tmp_path / "d.txt").read_bytes().decode().split("\n")[:-1] == [
        *lines[:1], *(["b ", " c\r", "", "d"] if how == "keep" else lines[1:])
    ]  # fmt: skip
    assert made.rejects.counts == ({str(Kind.LINE_BREAK): 1} if how == "stop" else {})
    assert (tmp_path / "d.txt.rejected.jsonl").exists() == (how == "stop")


BAD = {
    "a field is missing": ([{"a": "x"}], {"keys": ["text"]}, ".jsonl", r"s.jsonl:1: no field 'text' \(the record has"),
    "no object": ([7], {}, ".jsonl", "the record is the number 7"),
    "a column twice": ([{"source": "x"}], {"source_column": "source"}, ".jsonl", "name another --source-column"),
    "half of a pair": ([{"text": "\ud800"}], {}, ".jsonl", "not Unicode"),
    "other fields": ([{"a": 1}, {"b": 2}], {}, ".parquet", "a later one 'b'"),
    "other types": ([{"a": 1}, {"a": "x"}], {}, ".arrow", "not all records fit into one table"),
    "nothing": ([], {}, ".jsonl", "no record in the input"),
    "no text": ([{"text": None}], {}, ".txt", "no text under 'text': it is null"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_leaves_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "GROUP", 1)
    from mconv.train.data.reading import lines

    monkeypatch.setattr(lines, "BLOCK", 1)
    found, select, suffix, message = BAD[name]
    source, out = write(tmp_path / "s.jsonl", found), tmp_path / f"d{suffix}"
    with pytest.raises(FormatError, match=message):
        export([source], [out], select=Selection(**select))
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


def test_outputs_that_cannot_be(tmp_path):
    source = write(tmp_path / "s.jsonl")
    (tmp_path / "there.jsonl").write_text("old")
    (tmp_path / "in").mkdir()
    inner = write(tmp_path / "in/s.jsonl")
    for sources, outs, message, more in (
        ([source], ["d.docx"], "the name says no format that is written: .jsonl", {}),
        ([source], ["d.parquet.gz"], "the name says no format that is written", {}),
        ([source], ["d.jsonl", "d.jsonl"], "named twice", {}),
        ([source], ["there.jsonl"], "already there; pass --overwrite", {}),
        ([source], ["s.jsonl"], "would replace the source", {"overwrite": True}),
        ([inner], ["in"], "would replace the source", {"overwrite": True}),
    ):
        with pytest.raises(MconvError, match=message):
            export(sources, [tmp_path / out for out in outs], **more)
    export([source], [tmp_path / "there.jsonl", tmp_path / "folder"], overwrite=True)
    export([source], [tmp_path / "there.jsonl", tmp_path / "folder"], overwrite=True)
    assert records(tmp_path / "there.jsonl") == records(tmp_path / "folder") == RECORDS


def test_a_killed_export_leaves_what_was_there(tmp_path, monkeypatch):
    source, out = write(tmp_path / "s.jsonl"), tmp_path / "d.jsonl"
    out.write_text("old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        export([source], [out], overwrite=True)
    assert out.read_text() == "old" and {path.name for path in tmp_path.iterdir()} == {"s.jsonl", "d.jsonl"}


def test_the_command(tmp_path, capsys):
    source = write(tmp_path / "s.jsonl", [*RECORDS, 7])
    words = ["data", "export", "--input", str(source), "--out", str(tmp_path / "d.txt"), "--on-bad-record", "skip"]
    assert run(words) == 0
    assert "6 records; 1 bad records left out: 1 not an object; " in capsys.readouterr().out
    assert run([*words, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 6
    assert run(words) == 2 and "already there" in capsys.readouterr().err
    assert jobs.documents(tmp_path / "d.txt")[:3] == ["one", 'two "2"', "drei ü"]
