"""From raw files to a mixture by one file: done once, done again where something has changed, taken up after a kill."""

import gzip
import itertools
import json
from pathlib import Path

import jobs
import numpy as np
import pytest
import yaml

from mconv.cli.app import run
from mconv.errors import ConfigError
from mconv.train.data.index import open_index
from mconv.train.data.preparing import config as configs
from mconv.train.data.preparing import lines, prepare, steps

pytestmark = pytest.mark.once
DOCUMENTS = [" ".join(words) for words in itertools.product(("model", "layer", "cut"), repeat=4)][:40]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return jobs.tokenizer_folder(tmp_path_factory.mktemp("tokenizer"), jobs.texts())


@pytest.fixture
def corpus(tmp_path, monkeypatch, tokenizer):
    """Raw texts of three formats, and the file that prepares them."""
    monkeypatch.chdir(tmp_path)
    Path("raw/more").mkdir(parents=True)
    Path("raw/a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS[:15]))
    packed = "".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS[10:20])  # five of them for the second time
    Path("raw/more/b.jsonl.gz").write_bytes(gzip.compress(packed.encode()))
    Path("lines.txt").write_text("\n".join(DOCUMENTS[20:]))
    write(tokenizer)
    return tmp_path


def write(tokenizer, **changes):
    """Write the configuration, with changes of its top keys."""
    values = {
        "out": "out", "tokenizer": str(tokenizer), "shuffle": {"seed": 7},
        "sets": {
            "json": {"sources": ["raw"], "key": "body", "weight": 3},
            "plain": {"sources": ["lin*.txt"], "weight": 1},
        },
    }  # fmt: skip
    Path("c.yaml").write_text(yaml.safe_dump(values | changes))


def planned(capsys):
    """Return the steps of a dry run that are to be done, with the reasons."""
    capsys.readouterr()
    assert run(["data", "prepare", "c.yaml", "--dry-run", "--json"]) == 0
    return {one["step"]: one["why"] for one in json.loads(capsys.readouterr().out) if not one["done"]}


def documents(prefix, tokenizer):
    from transformers import AutoTokenizer

    decode = AutoTokenizer.from_pretrained(tokenizer).decode
    data = open_index(Path(prefix))
    return [decode(data[number], skip_special_tokens=True) for number in range(len(data))]


def test_a_corpus_is_prepared_in_one_go_and_steps_are_done_once(corpus, tokenizer, capsys):
    names = ["shuffle json", "tokenize json", "collect plain", "shuffle plain", "tokenize plain", "mix"]
    assert planned(capsys) == dict.fromkeys(names, "new")
    assert not Path("out").exists() and run(["data", "prepare", "c.yaml"]) == 0
    wanted = [*DOCUMENTS[:15], *DOCUMENTS[10:20]]
    order = np.argsort(np.random.PCG64(7).random_raw(len(wanted)), kind="stable")
    assert documents("out/tokens/json", tokenizer) == [wanted[number] for number in order]
    assert sorted(documents("out/tokens/plain", tokenizer)) == sorted(DOCUMENTS[20:])
    shares = json.loads(Path("out/mixture/dataset_mixture.json").read_text())["sets"]
    assert [one["wanted"] for one in shares] == [0.75, 0.25] and abs(shares[0]["share"] - 0.75) < 0.05
    assert "next: mconv train --data out/mixture" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.name != "prepare.json"}
    assert planned(capsys) == {} and run(["data", "prepare", "c.yaml"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not list(Path("out").rglob(".*"))


def test_only_what_depends_on_a_change_is_done_again(corpus, tokenizer, capsys):
    assert run(["data", "prepare", "c.yaml"]) == 0
    capsys.readouterr()
    write(tokenizer, shuffle={"seed": 7, "buffer": 0.1}, workers=2)  # decide nothing
    assert planned(capsys) == {}
    Path("lines.txt").write_text("the end\n" * 9)
    assert planned(capsys) == {
        "collect plain": "lines.txt has changed", "shuffle plain": "after collect plain",
        "tokenize plain": "after shuffle plain", "mix": "after tokenize plain",
    }  # fmt: skip
    first = Path("out/tokens/json.bin").stat().st_mtime_ns
    assert run(["data", "prepare", "c.yaml"]) == 0 and Path("out/tokens/json.bin").stat().st_mtime_ns == first
    assert documents("out/tokens/plain", tokenizer) == ["the end"] * 9
    capsys.readouterr()
    Path("out/work/json/shuffled.jsonl").unlink()
    Path("raw/c.jsonl").write_text('{"body": "cut"}\n')
    assert planned(capsys)["shuffle json"] == "raw/c.jsonl is new among its inputs"
    Path("raw/c.jsonl").unlink()
    assert planned(capsys)["shuffle json"] == "out/work/json/shuffled.jsonl is gone"
    write(tokenizer, tokenize={"append_eod": False})
    assert planned(capsys)["tokenize plain"] == "append_eod was 2, now None"


def test_a_kill_within_or_between_steps_goes_on(corpus, tokenizer, capsys, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*args, **options):
        raise Killed

    goes_on = []
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "tokenize", kill)
        with pytest.raises(Killed):
            run(["data", "prepare", "c.yaml"])
    capsys.readouterr()
    assert list(planned(capsys)) == ["tokenize json", "collect plain", "shuffle plain", "tokenize plain", "mix"]
    assert planned(capsys)["tokenize json"] == "interrupted"
    real = prepare.tokenize
    monkeypatch.setattr(
        prepare, "tokenize", lambda *args, **options: goes_on.append(options["resume"]) or real(*args, **options)
    )
    assert run(["data", "prepare", "c.yaml"]) == 0 and goes_on == [True, False] and planned(capsys) == {}
    monkeypatch.setattr(
        lines, "shuffled", lambda found, **options: (line if number < 3 else kill() for number, line in enumerate(found))
    )
    Path("raw/a.jsonl").write_text('{"body": "the end"}\n' * 9)
    old = Path("out/work/json/shuffled.jsonl").read_bytes()
    with pytest.raises(Killed):
        run(["data", "prepare", "c.yaml"])
    assert Path("out/work/json/shuffled.jsonl").read_bytes() == old and not [*Path("out/work").rglob(".*")]


BAD = """
tokenizer: hf
worker: 2
workers: two
shuffle: {seed: -1}
tokenize: 7
sets:
  a: {source: x, weight: 1}
  ../b: {sources: [], weight: 0}
"""


def test_every_mistake_of_a_file_is_told_at_once(tmp_path):
    (tmp_path / "c.yaml").write_text(BAD)
    with pytest.raises(ConfigError) as error:
        configs.read_yaml(tmp_path / "c.yaml")
    text = str(error.value)
    for part in (
        "unknown key worker; did you mean workers?", "out is missing: Folder to write to",
        "workers is 'two'; it must be a whole number", "shuffle.seed is -1; it must be 0 or more",
        "tokenize is 7; it must be a section", "unknown key sets.a.source; did you mean sources?",
        "sets.a.sources is missing", "sets.../b: the name becomes a file's", "sets.../b.weight is 0.0",
        "sets.../b.sources is empty",
    ):  # fmt: skip
        assert part in text
    (tmp_path / "c.yaml").write_text("out: o\ntokenizer: hf\nsets: {a: {sources: x, weight: 1}, b: {sources: y}}")
    with pytest.raises(ConfigError, match="give each a weight, or none; b has none"):
        configs.read_yaml(tmp_path / "c.yaml")


def test_files_of_folders_that_are_no_texts_stop_or_are_left_out(corpus, tokenizer, capsys):
    Path("raw/notes.md").write_text("x")
    assert run(["data", "prepare", "c.yaml"]) == 2 and "raw/notes.md: the name says no format" in capsys.readouterr().err
    Path("raw/d.tsv").write_text("body\tn\nthe end\t1\n\t\ncut\t2\t3\n")
    bad = {"sources": ["raw"], "key": "body", "skip_unknown_files": True}
    write(tokenizer, sets={"json": bad}, on_bad_record="skip")
    assert list(planned(capsys)) == ["collect json", "shuffle json", "tokenize json"]
    assert run(["data", "prepare", "c.yaml"]) == 0
    assert "collect json: 27 documents of 3 files; bad records left out: 1 " in capsys.readouterr().out


def test_shuffle_is_a_command_of_its_own(corpus, capsys):
    argv = ["data", "shuffle", "raw", "--out", "s.jsonl", "--seed", "3", "--buffer", "0.001"]
    assert run(argv) == 0 and run(argv) == 2 and run([*argv, "--overwrite"]) == 0
    found = (
        Path("raw/a.jsonl").read_bytes().splitlines()
        + gzip.decompress(Path("raw/more/b.jsonl.gz").read_bytes()).splitlines()
    )
    order = np.argsort(np.random.PCG64(3).random_raw(len(found)), kind="stable")
    assert Path("s.jsonl").read_bytes().splitlines() == [found[number] for number in order]
    assert run(["data", "shuffle", "raw", "--out", "s.jsonl.gz", "--seed", "3"]) == 0
    assert gzip.decompress(Path("s.jsonl.gz").read_bytes()) == Path("s.jsonl").read_bytes()
    mistakes = {
        "lines.txt raw --out x.jsonl": "their formats differ", "raw --out x.txt.gz": "their formats differ",
        "raw --out raw": "name a file", "raw": "--out is missing", "--out x.jsonl": "give at least one file",
        "lines.txt --out lines.txt --overwrite": "one of the sources",
    }  # fmt: skip
    for wrong, said in mistakes.items():
        capsys.readouterr()
        assert run(["data", "shuffle", *wrong.split()]) == 2 and said in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["c.yaml", "lines.txt", "raw", "s.jsonl", "s.jsonl.gz"]


def test_duplicates_are_left_out_before_the_rest(corpus, tokenizer, capsys):
    """Of the 25 documents of two files five are there twice, and one more is nearly one of them."""
    pytest.importorskip("rensa")
    long = " ".join(DOCUMENTS)
    near = "".join(json.dumps({"body": text}) + "\n" for text in (long, f"{long} layer"))
    Path("raw/c.jsonl").write_text(near)
    write(tokenizer, dedup=True, sets={"json": {"sources": ["raw"], "key": "body"}})
    assert list(planned(capsys)) == ["deduplicate json", "shuffle json", "tokenize json"]
    assert run(["data", "prepare", "c.yaml"]) == 0
    assert "deduplicate json: 21 of 27 documents; 5 equal and 1 near" in capsys.readouterr().out
    assert sorted(documents("out/tokens/json", tokenizer)) == sorted([*DOCUMENTS[:20], long])
    write(tokenizer, dedup={"threshold": 0.9}, sets={"json": {"sources": ["raw"], "key": "body"}})
    assert planned(capsys)["deduplicate json"] == "threshold was 0.85, now 0.9"


def test_a_damaged_ledger_counts_as_none(tmp_path):
    (tmp_path / steps.NAME).write_text('{"steps"')
    done = steps.Step(name="a", inputs=(), outputs=(), settings={}, run=lambda goes_on: "")
    assert steps.Ledger(tmp_path).why(done) == "new"
    steps.Ledger(tmp_path).do(done)
    assert steps.Ledger(tmp_path).why(done) is None
