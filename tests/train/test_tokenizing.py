"""A tokenizing run: the same bytes however it is cut, killed and resumed; one run per prefix; several keys."""

import dataclasses
import fcntl
import json
import multiprocessing
import os
import re
import signal

import jobs
import pytest

from mconv.cli.app import run
from mconv.errors import MconvError
from mconv.train.data import engine
from mconv.train.data.reading import lines
from mconv.train.data.reading.expansion import MAX_EXPAND, Expansion
from mconv.train.data.tokenize import tokenize, tokenize_keys

pytestmark = pytest.mark.once
TEXTS = [f"{n} " + "one two three " * (1 + 40 * (n % 7 == 0)) for n in range(90)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return jobs.tokenizer_folder(tmp_path_factory.mktemp("tokenizer"), jobs.texts())


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Two files, blocks of a few lines, and a state that is saved every few blocks."""
    monkeypatch.setattr(lines, "BLOCK", 300)
    monkeypatch.setattr(engine, "PART", 2000)
    paths = [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    paths[0].write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:50]))
    paths[1].write_text("\n".join(TEXTS[50:]))
    return paths


def written(prefix):
    """Bytes of the pair, and the record without what names it."""
    return [prefix.with_name(prefix.name + suffix).read_bytes() for suffix in (".bin", ".idx")]


def stopping(after, error=KeyboardInterrupt):
    """A progress that raises once more than `after` bytes are done."""
    seen = [0]

    def tell(records, size):
        seen[0] += size
        if seen[0] > after:
            raise error("stopped")

    return tell


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# ---- killed and resumed ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("after", [2500, 5000, 8000])
def test_a_run_that_was_stopped_goes_on_where_it_was(after, folder, sources, tmp_path):
    wanted = tokenize(sources, tmp_path / "whole", tokenizer=folder)
    with pytest.raises(KeyboardInterrupt):
        tokenize(sources, tmp_path / "d", tokenizer=folder, progress=stopping(after))
    assert not (tmp_path / "d.bin").exists()
    calls = []
    made = tokenize(sources, tmp_path / "d", tokenizer=folder, resume=True, progress=lambda *done: calls.append(done))
    assert calls[0][1] >= 2000 and sum(size for _, size in calls) == sum(path.stat().st_size for path in sources)
    batches = sum(1 for _ in lines.json_lines(sources[0], None, Expansion.of(sources[0], MAX_EXPAND)))
    assert len(calls[1:]) < batches + 10, "the rest alone is read"
    assert written(tmp_path / "d") == written(tmp_path / "whole") and made == wanted and hidden(tmp_path) == []


def test_what_was_written_after_the_last_state_is_cut_off(folder, sources, tmp_path):
    """As a kill by the system leaves it: files that are longer than the state says."""
    tokenize(sources, tmp_path / "whole", tokenizer=folder)
    with pytest.raises(KeyboardInterrupt):
        tokenize(sources, tmp_path / "d", tokenizer=folder, progress=stopping(5000))
    for name in ("d.bin", "d.lengths"):
        with (tmp_path / ".mconv-partial-d" / name).open("ab") as file:
            file.write(b"\x07" * 101)
    tokenize(sources, tmp_path / "d", tokenizer=folder, resume=True)
    assert written(tmp_path / "d") == written(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tokenize(sources, tmp_path / "e", tokenizer=folder, progress=stopping(5000))
    os.truncate(tmp_path / ".mconv-partial-e" / "e.bin", 10)
    with pytest.raises(MconvError, match=r"e\.bin is missing or was cut short; leave --resume out to start again"):
        tokenize(sources, tmp_path / "e", tokenizer=folder, resume=True)
    tokenize(sources, tmp_path / "e", tokenizer=folder)
    assert written(tmp_path / "e") == written(tmp_path / "whole") and hidden(tmp_path) == []


def test_only_the_same_run_is_continued(folder, sources, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tokenize(sources, tmp_path / "d", tokenizer=folder, progress=stopping(5000))
    with pytest.raises(MconvError, match="prepend_bos was None, now 1"):
        tokenize(sources, tmp_path / "d", tokenizer=folder, prepend_bos=True, resume=True)
    with pytest.raises(MconvError, match=r"b\.txt has changed"):
        sources[1].write_text("another text")
        tokenize(sources, tmp_path / "d", tokenizer=folder, resume=True)
    tokenize(sources, tmp_path / "d", tokenizer=folder)
    assert hidden(tmp_path) == []


def test_a_bad_record_keeps_what_is_before_it_and_may_be_skipped_then(folder, sources, tmp_path, capsys):
    with sources[0].open("a") as file:
        file.write("no JSON\n")
    words = ["data", "tokenize", *map(str, sources), "--tokenizer", str(folder), "--out", str(tmp_path / "d")]
    assert run([*words, "--workers", "1"]) == 2
    said = capsys.readouterr().err
    assert "a.jsonl:51: not JSON" in said and "the same command with --resume completes it" in said
    assert run(["status", str(tmp_path)]) == 0
    assert "d: an unfinished tokenization (made by `mconv data tokenize" in (said := capsys.readouterr().out)
    assert "% written)" in said or "made by" in said
    assert run([*words, "--workers", "1", "--resume", "--on-bad-record", "skip"]) == 0
    assert [json.loads(line)["line"] for line in (tmp_path / "d.rejected.jsonl").read_text().splitlines()] == [51]
    tokenize(sources, tmp_path / "whole", tokenizer=folder, on_bad_record="skip")
    assert written(tmp_path / "d") == written(tmp_path / "whole")


@pytest.mark.parametrize("at", [".bin", ".idx", ".mconv.json"])
def test_one_that_was_stopped_between_two_names_is_completed(at, folder, sources, tmp_path, monkeypatch):
    wanted = tokenize(sources, tmp_path / "d", tokenizer=folder, append_eod=False)
    replace = type(tmp_path).replace

    def killed(self, target):
        if str(target).endswith(f"d{at}"):
            raise KeyboardInterrupt
        return replace(self, target)

    options = {"tokenizer": folder, "overwrite": True}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(tmp_path), "replace", killed)
        tokenize(sources, tmp_path / "d", **options)
    made = tokenize(sources, tmp_path / "d", **options, resume=True)
    assert made.tokens == wanted.tokens + wanted.documents and hidden(tmp_path) == []
    tokenize(sources, tmp_path / "whole", tokenizer=folder)
    assert written(tmp_path / "d") == written(tmp_path / "whole")


def test_a_second_run_into_one_prefix_is_refused(folder, sources, tmp_path):
    with (tmp_path / ".mconv-partial-d.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(MconvError, match=r"another mconv is writing \S*d now"):
            tokenize(sources, tmp_path / "d", tokenizer=folder)
    tokenize(sources, tmp_path / "d", tokenizer=folder)


def test_a_worker_that_is_killed_is_an_error_and_the_run_goes_on_later(folder, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "PART", 1000)

    def kill(records, size):
        if size and not killed:
            worker = next(child for child in multiprocessing.active_children() if child not in others)
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(True)

    killed, others = [], multiprocessing.active_children()  # the ranks of other tests
    with pytest.raises(MconvError, match="a worker process was killed"):
        tokenize(sources, tmp_path / "d", tokenizer=folder, workers=2, progress=kill)
    tokenize(sources, tmp_path / "d", tokenizer=folder, resume=True)
    tokenize(sources, tmp_path / "whole", tokenizer=folder)
    assert written(tmp_path / "d") == written(tmp_path / "whole")


# ---- what is written -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule, edge", [("megatron", 65500), ("datatrove", 65537)])
def test_each_rule_takes_two_bytes_below_its_edge(rule, edge, folder):
    from mconv.train.data.record import facts
    from mconv.train.data.tokenizers.types import load

    loaded = load(folder)
    for size, dtype in ((edge - 1, "uint16"), (edge, "int32")):
        known = facts(dataclasses.replace(loaded, size=size), append_eod=False, prepend_bos=False, dtype_rule=rule)
        assert known["dtype"] == dtype


# ---- several keys ----------------------------------------------------------------------------------------------------
def test_each_key_is_what_a_run_of_its_own_makes(folder, tmp_path):
    records = [{"text": text, "title": "" if n % 3 else f"title {n}"} for n, text in enumerate(TEXTS)]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = ["data", "tokenize", str(source), "--tokenizer", str(folder), "--workers", "1", "--out"]
    assert run([*words, str(tmp_path / "d"), "--json-keys", "text", "title"]) == 0
    for key in ("text", "title"):
        made = tokenize([source], tmp_path / f"alone-{key}", key=key, tokenizer=folder)
        assert written(tmp_path / f"d_{key}_document") == written(tmp_path / f"alone-{key}")
        record = json.loads((tmp_path / f"d_{key}_document.mconv.json").read_text())
        assert record == dataclasses.asdict(made)
    assert run([*words, str(tmp_path / "one"), "--json-keys", "text"]) == 0
    assert run([*words, str(tmp_path / "two"), "--key", "text"]) == 0
    assert written(tmp_path / "one_text_document") == written(tmp_path / "two")
    assert run([*words, str(tmp_path / "three"), "--key", "text", "--key", "title"]) == 0
    assert written(tmp_path / "three_title_document") == written(tmp_path / "alone-title")


def test_a_key_without_any_text_is_named(folder, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "one", "title": ""}\n')
    outputs = {key: tmp_path / key for key in ("text", "title")}
    with pytest.raises(MconvError, match="no document with text under 'title'"):
        tokenize_keys([source], tmp_path / "d", outputs, tokenizer=folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


# ---- progress --------------------------------------------------------------------------------------------------------
def test_progress_lines_have_megatrons_shape_and_count_bytes(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK", 40)
    text = "é" * 30 + "\n"
    (tmp_path / "t.txt").write_text(text * 50)
    words = ["data", "tokenize", str(tmp_path / "t.txt"), "--tokenizer", str(folder), "--out", str(tmp_path / "d")]
    from mconv.cli import data_progress

    clock = iter(range(1000))
    monkeypatch.setattr(data_progress.time, "monotonic", lambda: float(next(clock)))
    assert run([*words, "--workers", "1", "--log-interval", "20"]) == 0
    shape = r"^Processed (\d+) documents \(([\d.]+) docs/s, ([\d.]+) MB/s\)\.$"
    found = re.findall(shape, capsys.readouterr().err, re.M)
    assert [int(count) for count, _, _ in found] == [20, 40]
    assert float(found[0][2]) == pytest.approx(20 * len(text.encode()) / (1 << 20), abs=0.01)
    assert run([*words, "--overwrite", "--log-interval", "0"]) == 2


# ---- how many workers ------------------------------------------------------------------------------------------------
def test_bench_measures_each_number_of_workers(folder, sources, tmp_path, capsys):
    words = ["data", "bench", *map(str, sources), "--tokenizer", str(folder), "--workers", "2", "1"]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["workers"] for row in found["runs"]] == [1, 2] and all(row["tokens"] > 0 for row in found["runs"])
    assert found["best_workers"] in (1, 2) and 12 * 300 <= found["sample_bytes"] < 12 * 1300
    assert run([*words[:-2], "1"]) == 0 and capsys.readouterr().out.endswith("best here: --workers 1\n")
    (tmp_path / "short.txt").write_text("one\n")
    assert run(["data", "bench", str(tmp_path / "short.txt"), "--tokenizer", str(folder)]) == 2
    assert "the input is one block of 4 bytes; more text is needed" in capsys.readouterr().err


def test_the_fewest_workers_that_are_about_as_fast_are_best():
    from mconv.train.data.bench import Measured, best, counts

    rates = {1: 3.0, 2: 5.9, 4: 9.6, 8: 10.0}
    rows = [Measured(workers=workers, start=1.0, rate=rate, tokens=1.0) for workers, rate in rates.items()]
    assert best(rows).workers == 4 and counts(12) == [1, 2, 4, 8, 12] and counts(1) == [1]


# ---- what transformers made of a tokenizer -----------------------------------------------------------------------------
def test_transformers_is_asked_once_for_a_tokenizer_and_again_when_a_file_changes(folder, tmp_path, monkeypatch):
    import shutil

    from mconv.train.data.tokenizers import huggingface, kept
    from mconv.train.data.tokenizers.types import load

    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    wanted = load(mine)
    monkeypatch.setenv("MCONV_CACHE", str(tmp_path / "cache"))
    read, asked = huggingface._found, []
    monkeypatch.setattr(huggingface, "_found", lambda *args: asked.append(args) or read(*args))
    assert load(mine) == load(mine) == wanted and len(asked) == 1
    (mine / "special_tokens_map.json").write_text('{"eos_token": "<s>"}')
    load(mine)
    assert len(asked) == 2, "a file that was not there belongs to another tokenizer"
    [*files] = (tmp_path / "cache" / "tokenizers").iterdir()
    for path in files:
        path.write_text("damaged")
    assert load(folder) and len(asked) == 3
    monkeypatch.setattr(kept, "MOST", 2)
    (mine / "added_tokens.json").write_text("{}")
    load(mine)
    assert len([*(tmp_path / "cache" / "tokenizers").iterdir()]) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MCONV_CACHE", str(tmp_path / "file"))
    assert load(folder).size == wanted.size, "a cache that cannot be written to is none"
