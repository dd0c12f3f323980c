"""`mconv train --write-config`: what is written reads back to the same configuration."""

import dataclasses
import re
import string
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mconv.cli.app import run
from mconv.train.config import TrainConfig, help_of, make, read_yaml
from mconv.train.config.read import checked
from mconv.train.config.template import text

pytestmark = pytest.mark.once

EXAMPLE = Path(__file__).parents[2] / "examples" / "run.yaml"
FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
ODD = [
    "", " ", "no", "null", "~", "1e3", "010", "1:30", "2024-01-01", "a: b", "a #b", "- a", "'", '"', "\\", "\n", "\x07",
    "[a]", "a, b", "é", "\u2028", "\ufeff", "\x85", "🙂", "{x}", "%", "@a", ".5", ".inf", "=", "<<", "0.3 data/a",
]  # fmt: skip
TEXTS = st.sampled_from(ODD) | st.text(max_size=12) | st.text(string.printable, max_size=12)
NUMBERS = {"int": st.integers(), "float": st.floats(allow_nan=False), "bool": st.booleans(), "str": TEXTS}


def of(kind):
    """Values of a field's kind."""
    if choices := [one for one in get_args(kind) if isinstance(one, str)]:
        return st.sampled_from(choices)
    word = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).removesuffix(" | None")
    if word.startswith("list["):
        return st.lists(NUMBERS[word[5:-1]], max_size=3)
    return NUMBERS[word]


VALUES = st.fixed_dictionaries({}, optional={name: of(field.type) for name, field in FIELDS.items()})


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_what_is_written_reads_back_the_same(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("written") / "run.yaml"
    path.write_text(text(checked(values)), encoding="utf-8")
    found = checked(read_yaml(path))
    assert found == checked(values) and {*map(type, found.values())} == {*map(type, checked(values).values())}


def test_defaults_that_are_commented_out_are_the_defaults(tmp_path):
    """With every `#` before a field removed the file says what a run without it has."""
    path = tmp_path / "run.yaml"
    path.write_text(re.sub(rf"(?m)^# ({'|'.join(FIELDS)}):", r"\1:", text({})))
    found = read_yaml(path)
    assert found.keys() == FIELDS.keys() == help_of().keys()
    assert all(checked(found)[name] == field.default for name, field in FIELDS.items())
    path.write_text(text({}))
    assert read_yaml(path) == {}


def test_the_command_merges_file_variables_and_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").write_text("load: x\ndata: [a]\nlr: 1\ntp: 2\nsplit: 9,1,0\n")
    monkeypatch.setenv("MCONV_TRAIN_TP", "4")
    line = ["train", "old.yaml", "--write-config", "new.yaml", "--lr", "3e-4", "--packing=false"]
    assert run(line) == 0
    said = capsys.readouterr().out
    assert "wrote new.yaml: 6 of" in said and "before it can run: the length of the run is not set" in said
    monkeypatch.delenv("MCONV_TRAIN_TP")
    whole = {"load": "x", "data": ["a"], "lr": 3e-4, "tp": 4, "split": "9,1,0", "packing": False}
    assert checked(read_yaml(Path("new.yaml"))) == whole
    assert make(read_yaml(Path("new.yaml")) | {"train_iters": 3}) == make(whole | {"train_iters": 3})


def test_a_file_is_not_replaced_unless_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("mine")
    assert run(["train", "--write-config", "run.yaml"]) == 2
    assert "run.yaml is there already" in capsys.readouterr().err and Path("run.yaml").read_text() == "mine"
    assert run(["train", "--write-config", "run.yaml", "--overwrite", "--tp", "2"]) == 0
    assert read_yaml(Path("run.yaml")) == {"tp": 2} and [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    assert "next: mconv train run.yaml" in capsys.readouterr().out
    assert run(["train", "--write-config", "no/run.yaml"]) == 2
    said = "no/run.yaml cannot be written: no: No such file or directory; name another file"
    assert capsys.readouterr().err == f"mconv: {said}\n"
    Path("folder").mkdir()
    for more in ([], ["--overwrite"]):
        assert run(["train", "--write-config", "folder", *more]) == 2
        assert "folder is a folder; name a file in it, such as folder/run.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("argv, says", [(["--tp", "x"], "whole number"), (["bad.yaml"], "unknown field 'lrr'")])
def test_what_is_wrong_is_not_written(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("lrr: 1\n")
    assert run(["train", *argv, "--write-config", "run.yaml"]) == 2
    assert says in capsys.readouterr().err and not Path("run.yaml").exists()


def test_the_example_is_what_the_command_writes():
    values = read_yaml(EXAMPLE)
    assert EXAMPLE.read_text() == text(checked(values)), (
        "write it anew: mv examples/run.yaml old.yaml; mconv train old.yaml --write-config examples/run.yaml"
    )
    assert make(values).load == "megatron"
