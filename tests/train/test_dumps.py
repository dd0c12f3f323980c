"""Files divided into dumps: an exact cover, balanced, and tokenized one by one, to the row of a table."""

import csv
import random
from pathlib import Path

import jobs
import pytest

from mconv.cli.app import run
from mconv.errors import FormatError, MconvError
from mconv.train.data import dumps
from mconv.train.data.index import open_index

pytestmark = pytest.mark.once


def test_dumps_cover_every_file_once_and_differ_by_the_largest_at_most():
    draw = random.Random(0)
    for _ in range(100):
        sizes = [(Path(f"f{number}"), draw.randrange(0, 10**9)) for number in range(draw.randrange(1, 60))]
        count = draw.randrange(1, 12)
        found = dumps.dumps(sizes, count=count)
        files = [path for dump in found for path in dump.files]
        assert len(files) == len(sizes) and {*files} == {path for path, _ in sizes}
        assert len(found) == min(count, len(sizes)) and [dump.number for dump in found] == list(range(len(found)))
        by_name = dict(sizes)
        assert all(dump.bytes == sum(by_name[path] for path in dump.files) for dump in found)
        assert max(dump.bytes for dump in found) - min(dump.bytes for dump in found) <= max(by_name.values())
        assert theirs(sizes, len(found)) == [list(dump.files) for dump in found]
        assert draw.sample(sizes, len(sizes)) and found == dumps.dumps(draw.sample(sizes, len(sizes)), count=count)


def theirs(sizes, count):
    """The published script: sorted by size, each file to the first of the smallest dumps."""
    files, held = [[] for _ in range(count)], [0] * count
    for path, size in sorted(sorted(sizes, key=lambda one: str(one[0])), key=lambda one: one[1], reverse=True):
        at = held.index(min(held))
        files[at].append(path)
        held[at] += size
    return files


def test_the_default_is_a_dump_for_each_150_gb():
    assert len(dumps.dumps([(Path(str(n)), 10**11) for n in range(9)])) == 7  # 900 GB: 6 + 1, as the script counts
    assert len(dumps.dumps([(Path("a"), 5)])) == 1
    with pytest.raises(MconvError, match="no file"):
        dumps.dumps([])
    with pytest.raises(MconvError, match="--n-dumps is 0"):
        dumps.dumps([(Path("a"), 5)], count=0)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A folder of JSON lines and other files, with a link that leads back."""
    monkeypatch.chdir(tmp_path)
    for number in range(5):
        path = Path("raw", ("train", "en_removed")[number == 4], f"part{number}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "the end"}\n' * (number + 1))
    Path("raw/notes.md").write_text("not data")
    Path("raw/train/again").symlink_to("..")
    return tmp_path


def test_files_are_filtered_by_their_path_within_the_corpus(corpus):
    def names(**filters):
        return [str(path) for path, _ in dumps.files_of(Path("raw"), lambda path: path.suffix == ".jsonl", **filters)]

    assert names() == ["en_removed/part4.jsonl", *(f"train/part{number}.jsonl" for number in range(4))]
    assert names(filter_in=["train"], filter_out=["part1", "part3"]) == ["train/part0.jsonl", "train/part2.jsonl"]
    assert names(filter_in=["raw"]) == []
    with pytest.raises(FormatError, match="none: no such folder"):
        dumps.files_of(Path("none"), lambda path: True)


def test_dumps_are_tokenized_one_by_one_and_go_on_where_they_stopped(corpus, capsys):
    tokenizer = jobs.tokenizer_folder(corpus / "tokenizer", jobs.texts())
    prepare = ["data", "dumps", "raw", "--metadata", "meta", "--n-dumps", "2", "--filter-out", "_removed"]
    assert run(prepare) == 0 and run(prepare) == 2  # there already: jobs may be working on them
    assert Path("meta/raw-dataset-link").resolve() == corpus / "raw"
    listed = [Path(f"meta/dumps/paths_file_{number}.txt").read_text().split() for number in range(2)]
    assert listed == [["train/part3.jsonl", "train/part0.jsonl"], ["train/part2.jsonl", "train/part1.jsonl"]]
    work = [
        "data",
        "dumps",
        "--metadata",
        "meta",
        "--run",
        "--tokenizer",
        str(tokenizer),
        "--out",
        "out",
        "--workers",
        "1",
    ]
    assert run([*work, "--dump", "1"]) == 0
    assert [path.name for path in Path("meta/completed-dumps").iterdir()] == ["paths_file_1.txt"]
    first = Path("out/dump-1/tokens.bin").stat().st_mtime_ns
    assert run(work) == 0 and Path("out/dump-1/tokens.bin").stat().st_mtime_ns == first
    assert run(work) == 0 and "all dumps are done" in capsys.readouterr().out
    assert run([*work, "--dump", "7"]) == 2
    rows = list(csv.DictReader(Path("meta/tokenize-tokenizer-raw.csv").read_text().splitlines()))
    assert [Path(row["paths_file"]).name for row in rows] == ["paths_file_1.txt", "paths_file_0.txt"]
    for row, number in zip(rows, (1, 0), strict=True):
        data = open_index(Path(f"out/dump-{number}/tokens"))
        assert int(row["total_tokens_processed"]) == len(data.tokens) and len(data) == 5
        assert int(row["dataset_total_size"]) == 5 * len('{"text": "the end"}\n')
        assert int(row["processed_total_size"]) == sum(
            path.stat().st_size for path in Path(f"out/dump-{number}").iterdir()
        )
        rounded = {"rel": 1e-3, "abs": 6e-4}  # the time is written in milliseconds
        assert int(row["dataset_total_size"]) / float(row["bw"]) == pytest.approx(float(row["time"]), **rounded)


def test_paths_that_are_gone_are_named(corpus):
    assert run(["data", "dumps", "raw", "--metadata", "meta"]) == 0
    Path("raw/train/part2.jsonl").unlink()
    with pytest.raises(FormatError, match=r"paths_file_0.txt: train/part2.jsonl is not in meta/raw-dataset-link"):
        dumps.read(Path("meta"))
