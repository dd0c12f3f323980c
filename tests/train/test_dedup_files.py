"""What `mconv data dedup` reads and writes: bytes, shards, pages; what it refuses; what an interruption leaves."""

import bz2
import gzip
import json
import lzma
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import planted
import pytest

from mconv.cli.app import run as cli
from mconv.train.data.dedup import run as runs
from mconv.train.data.reading.packed import PACKED
from mconv.train.data.writing.packing import PACKERS

pytestmark = pytest.mark.once
pytest.importorskip("rensa")
A, B, C = ("alpha beta gamma delta epsilon", "one two three four five six", "red green blue black white")


@pytest.fixture
def dedup(tmp_path, capsys, monkeypatch):
    """Run the command in a folder of its own; returns what it prints. The exit code must be `code`."""
    monkeypatch.chdir(tmp_path)

    def dedup(line, code=0):
        assert cli(["data", "dedup", *line.split()]) == code, capsys.readouterr()
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return dedup


def files(folder="."):
    """Return all files below a folder but the working folder's, with their bytes."""
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


# ---- bytes -----------------------------------------------------------------------------------------------------------
def test_records_are_kept_byte_for_byte(dedup):
    lines = [
        b'\xef\xbb\xbf{"text": "%s"}\r\n' % A.encode(), b'  {"id": 1.0e2,  "text":"\\u00e9 %s"}\n' % B.encode(), b"\n",
        b'{"text": "%s"}\n' % A.upper().encode(), b'{"n": null, "text": "%s"}' % C.encode(),
    ]  # fmt: skip
    Path("in.jsonl").write_bytes(b"".join(lines))
    assert "3 of 4 documents kept, 0 exact and 1 near duplicates in 1 clusters removed" in dedup(
        "in.jsonl --out out.jsonl"
    )
    assert Path("out.jsonl").read_bytes() == lines[0] + lines[1] + lines[4] + b"\n"
    (removed,) = map(json.loads, Path("out.removed.jsonl").read_text().splitlines())
    assert removed == {
        "file": "in.jsonl", "line": 4, "kind": "near", "similarity": 1.0, "kept": {"file": "in.jsonl", "line": 1},
    }  # fmt: skip
    assert {path.name for path in Path().iterdir()} == {"in.jsonl", "out.jsonl", "out.removed.jsonl"}


OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, "": open}


def test_all_packings_that_are_read_are_written():
    assert PACKERS.keys() == PACKED.keys()


@pytest.mark.parametrize("packing", [*PACKERS, ""])
def test_files_are_packed_as_their_name_says_and_always_alike(dedup, packing):
    Path("a.txt").write_text(f"{A}\n{B}\n")
    Path("b.txt").write_text(f"{C}\n{A}\n")
    for name in ("one", "two"):
        dedup(f"a.txt b.txt --out {name}.txt{packing}")
    made = Path(f"one.txt{packing}").read_bytes()
    assert made == Path(f"two.txt{packing}").read_bytes()
    if packing == ".zst":
        import zstandard

        text = zstandard.ZstdDecompressor().decompressobj().decompress(made).decode()
    else:
        with OPENERS[packing](f"one.txt{packing}", "rt") as file:
            text = file.read()
    assert text == f"{A}\n{B}\n{C}\n"
    dedup(f"one.txt{packing} --out again.txt")
    assert Path("again.txt").read_text() == text


def test_parquet_keeps_its_columns(dedup):
    pa, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    table = pa.table({"n": pa.array(range(4), pa.int8()), "text": [A, B, A, C], "tags": [["x"], [], None, ["y", "z"]]})
    parquet.write_table(table, "in.parquet", row_group_size=2)
    dedup("in.parquet --out out.parquet")
    found = parquet.read_table("out.parquet")
    assert found.schema.equals(table.schema) and found.to_pylist() == table.take([0, 1, 3]).to_pylist()
    dedup("in.parquet --out two.arrow")
    dedup("two.arrow out.parquet --out once.feather")
    for opened in (pa.ipc.open_stream(Path("two.arrow").read_bytes()), pa.ipc.open_file("once.feather")):
        assert opened.read_all().equals(found)
    parquet.write_table(table.drop(["n"]), "other.parquet")
    assert "other.parquet has other columns than the first source" in dedup(
        "in.parquet other.parquet --out both.parquet", 2
    )


def test_a_folder_has_a_file_for_each_source_under_its_own_path(dedup):
    for folder, texts in (("x", [A, B]), ("y/z", [B, C])):
        Path(folder).mkdir(parents=True)
        planted.write(Path(folder, "part.jsonl"), texts)
    planted.write(Path("empty.jsonl"), [])
    dedup("x/part.jsonl y/z/part.jsonl empty.jsonl --out kept --workers 2")
    made = files("kept")
    assert [*made] == ["kept/empty.jsonl", "kept/x/part.jsonl", "kept/y/z/part.jsonl"]
    assert [len(text.splitlines()) for text in made.values()] == [0, 2, 1] and b"red" in made["kept/y/z/part.jsonl"]


def test_bad_records_are_left_out_and_listed(dedup):
    Path("in.jsonl").write_text(f'{{"text": "{A}"}}\n[1]\n{{"text": "{A}"}}\n{{"text": 3}}\n{{"text": "{B}"}}\n')
    assert "in.jsonl:2: no text under 'text'" in dedup("in.jsonl --out out.jsonl", 2) and not Path("out.jsonl").exists()
    said = dedup("in.jsonl --out out.jsonl --on-bad-record skip")
    assert "2 of 3 documents kept" in said and "2 bad records left out (1 not an object, 1 wrong type)" in said
    assert Path("out.jsonl").read_text().count("\n") == 2
    assert [json.loads(line)["line"] for line in Path("out.rejected.jsonl").read_text().splitlines()] == [2, 4]
    assert "every record of the input is bad" in dedup("in.jsonl --out no.jsonl --key body --on-bad-record skip", 2)


# ---- steps, shards, workers ------------------------------------------------------------------------------------------
@pytest.fixture
def parts(tmp_path):
    texts, _ = planted.corpus(originals=120, near=60, heavy=20, length=(30, 60))
    for number in range(5):
        planted.write(tmp_path / f"p{number}.jsonl", texts[number::5])
    return " ".join(f"p{number}.jsonl" for number in range(5))


def test_shards_and_workers_change_nothing(dedup, parts, monkeypatch):
    dedup(f"{parts} --out whole")
    one = files("whole") | {"removed": Path("whole.removed.jsonl").read_bytes()}
    monkeypatch.setattr(runs, "SIGNED", 1)  # so that all workers are started
    dedup(f"{parts} --out many --workers 3")
    step = f"{parts} --out shared --work work"
    for shard in (2, 1, 3):
        dedup(f"{step} --phase sign --shard {shard}/3")
    assert "kept" in dedup(f"{step} --phase decide")
    for shard in (3, 1, 2):
        dedup(f"{step} --phase write --shard {shard}/3")
    for name in ("many", "shared"):
        found = files(name) | {"removed": Path(f"{name}.removed.jsonl").read_bytes()}
        assert {path.replace(name, "whole"): data for path, data in found.items()} == one


def test_steps_in_a_wrong_order_are_refused(dedup, parts):
    step = f"{parts} --out kept --work work"
    assert "5 problems" in dedup(f"{step} --phase decide", 2)
    dedup(f"{step} --phase sign")
    assert "has no decisions yet; run --phase decide" in dedup(f"{step} --phase write", 2)
    dedup(f"{step} --phase decide")
    with Path("p3.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    assert "no signatures of p3.jsonl as it is now" in dedup(f"{step} --phase write", 2)
    assert "as it is now" in dedup(f"{step} --phase write --seed 7", 2)


def test_a_working_folder_is_used_again_for_what_has_not_changed(dedup, parts):
    dedup(f"{parts} --out kept --work work")
    with Path("p3.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    assert json.loads(dedup(f"{parts} --out kept --work work --phase sign --json"))["signed"] == ["p3.jsonl"]
    Path("work/00001.json").write_text("{")
    assert "work/00001.json is damaged" in dedup(f"{parts} --out other --work work", 2)


def test_two_runs_in_one_working_folder_are_refused(dedup, parts):
    from mconv.convert.folders import lock

    Path("work").mkdir()
    descriptor = os.open("work/.lock", os.O_RDWR | os.O_CREAT)
    try:
        assert lock.take(descriptor, shared=True)
        assert "another run of mconv data dedup uses work" in dedup(f"{parts} --out kept --work work", 2)
        dedup(f"{parts} --out kept --work work --phase sign")  # steps of several nodes
    finally:
        os.close(descriptor)


# ---- interruptions ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["decide", "write"])
def test_a_failed_run_leaves_the_old_output_and_its_signatures(dedup, parts, monkeypatch, where):
    dedup(f"{parts} --out kept")
    before = files("kept") | files(".")
    with monkeypatch.context() as patch:
        patch.setattr(runs, where, lambda *args, **more: (_ for _ in ()).throw(OSError("disk on fire")))
        assert "disk on fire" in dedup(f"{parts} --out kept --overwrite --threshold 0.5", 2)
    after = files(".")
    assert {path: data for path, data in after.items() if ".kept.dedup" not in path} == before
    assert json.loads(dedup(f"{parts} --out kept --threshold 0.5 --overwrite --json"))["near"] > 0
    assert not Path(".kept.dedup").exists() and files(".") != before


def test_a_killed_run_leaves_nothing_that_looks_whole(dedup, parts, monkeypatch):
    """The process kills itself when the second file of records is written."""
    code = (
        "import os, signal\nfrom mconv.cli.app import run\nfrom mconv.train.data.dedup import writers as write\n"
        "real = write.LineWriter.close\nwrite.LineWriter.close = lambda self: "
        "(real(self), globals().update(n=globals().get('n', 0) + 1), n > 1 and os.kill(os.getpid(), signal.SIGKILL))\n"
        f"run('data dedup {parts} --out kept'.split())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL
    assert not [path for path in Path("kept").iterdir() if not path.name.startswith(".")]
    assert not Path("kept.removed.jsonl").exists()
    dedup(f"{parts} --out kept")
    assert not list(Path().rglob(".*"))


# ---- refusals --------------------------------------------------------------------------------------------------------
REFUSED = {
    "p0.jsonl --out p0.jsonl": "would replace the source p0.jsonl",
    "p0.jsonl ./p0.jsonl --out kept": "a source is named twice",
    "p0.jsonl notes.txt --out all.jsonl": "--out all.jsonl cannot take in JSON lines and text; name a folder",
    "p0.jsonl table.csv --out kept": "table.csv: dedup writes .jsonl, .json, .ndjson, .txt, .parquet, ",
    "notes.txt --out kept --render-datatrove run.py": "notes.txt: --render-datatrove takes files of JSON lines only",
    "p0.jsonl --out old": "old/other.jsonl is not of this run, and would lie among what it keeps",
    "p0.jsonl --out there.jsonl": "there.jsonl: already there; pass --overwrite",
    "p0.jsonl --out kept --phase sign": "--phase sign needs --work",
    "p0.jsonl --out kept --work w --shard 1/2": "--shard goes with --phase sign or --phase write",
    "p0.jsonl --out kept --work w --shard 3/2 --phase sign": "--shard is '3/2'; give I/N",
    "p0.jsonl --out one.jsonl --work w --shard 1/2 --phase write": "several nodes cannot write; name a folder",
    "p0.jsonl --out kept --html there.jsonl": "give a name that ends in .html",
    "p0.jsonl --out kept --render-datatrove run.sh": "give a name that ends in .py",
    "p0.jsonl --out kept --render-datatrove datatrove.py": "would hide the package datatrove",
    "p0.jsonl --out kept --ngram 0": "--ngram is 0",
    "p0.jsonl --out kept --seed -1": "--seed is -1",
    "p0.jsonl --out kept --workers 0": "--workers is 0",
    "nothing.jsonl --out kept": "nothing.jsonl: no such file",
    "--out kept": "give at least one file to read",
}


@pytest.mark.parametrize("line", REFUSED)
def test_mistakes_are_named_and_change_nothing(dedup, parts, line):
    for name in ("notes.txt", "table.csv"):
        Path(name).write_text("text\n")
    Path("old").mkdir()
    for name in ("old/other.jsonl", "there.jsonl"):
        Path(name).write_text("kept\n")
    before = files(".")
    assert REFUSED[line] in dedup(line, 2)
    assert files(".") == before and not list(Path().rglob(".*"))


# ---- page and pipeline -----------------------------------------------------------------------------------------------
def test_the_page_shows_clusters_and_escapes_texts(dedup):
    evil = "<script>alert(1)</script> " + " ".join(planted.WORDS[:60])
    planted.write(Path("in.jsonl"), [evil, evil + " more", evil, B, B])
    found = json.loads(dedup("in.jsonl --out out.jsonl --html page.html --json"))
    page = Path("page.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "<del>more</del>" in page
    assert "2 of 5 documents kept" in page and "in.jsonl:1" in page and "http" not in page.replace("http-equiv", "")
    assert found["cluster_sizes"] == {"2": 1, "3": 1} and [one["size"] for one in found["largest"]] == [3, 2]
    assert found["recall_at_threshold"] == pytest.approx(1 - (1 - 0.85**8) ** 15)
    dedup("in.jsonl --out out.jsonl --html page.html --overwrite --no-verify")
    Path("page.html").write_text("mine")
    assert "is not a page of mconv data dedup" in dedup("in.jsonl --out new.jsonl --html page.html", 2)


def test_datatroves_pipeline_has_the_parameters_and_the_sources(dedup, monkeypatch):
    Path("it's").mkdir()
    planted.write(Path("it's/a.jsonl"), [A])
    planted.write(Path("b.jsonl"), [A])
    monkeypatch.setitem(sys.modules, "rensa", None)  # not needed for it
    assert cli(["data", "dedup", "it's/a.jsonl", "b.jsonl", "--out", "kept", "--num-perm", "64", "--ngram", "3", "--key",
                'te"xt', "--render-datatrove", "run.py"]) == 0  # fmt: skip
    config = {}
    for name in ("executor", "pipeline", "pipeline.dedup", "pipeline.dedup.minhash", "pipeline.readers", "utils",
                 "pipeline.writers", "pipeline.writers.jsonl", "utils.hashing"):  # fmt: skip
        monkeypatch.setitem(sys.modules, f"datatrove.{name}", Stand(config))
    monkeypatch.setitem(sys.modules, "datatrove", Stand(config))
    script = runpy.run_path("run.py")
    assert script["SOURCES"] == ["it's/a.jsonl", "b.jsonl"] and script["FOLDER"] == str(Path().resolve())
    assert {name: config["MinhashConfig"][name] for name in ("n_grams", "num_buckets", "hashes_per_bucket", "seed")} == {
        "n_grams": 3, "num_buckets": 4, "hashes_per_bucket": 15, "seed": 42,
    }  # fmt: skip
    assert [name for name, _, _ in script["stages"](2, "eng_Latn")] == ["sign", "buckets", "cluster", "filter"]
    assert config["JsonlReader"]["text_key"] == 'te"xt' and script["OUT"] == Path("kept").resolve()
    shutil.rmtree("it's")
    assert "no such file" in dedup("it's/a.jsonl --out kept --render-datatrove no.py", 2)


class Stand:
    """Stands in for a module of datatrove: every name is a function that writes its options down."""

    __path__ = ()

    def __init__(self, config):
        self._config = config

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **options: (self, self._config.setdefault(name, options))[0]
