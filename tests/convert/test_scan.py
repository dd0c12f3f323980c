"""Which checkpoint a command takes where none is named: by lineage, never by a guess between siblings."""

import json
import os
import subprocess
import sys
from functools import partial

import lineage
import pytest

from mconv.convert.folders import choose, naming, scan
from mconv.errors import MconvError


@pytest.fixture
def make(tmp_path):
    """A function that writes the manifest and the tracker of a checkpoint, and nothing else of it."""
    return partial(lineage.checkpoint, tmp_path)


def newest(folder, what="Megatron checkpoint"):
    return choose.newest(scan.scan(folder), what).found.path.name


def test_the_end_of_the_chain_is_the_newest(tmp_path, make):
    base = make("base", step="hf2meg")
    assert newest(tmp_path) == "base"
    tp4 = make("tp4", base)
    run = make("run", tp4, step="train", iteration=5)
    assert newest(tmp_path) == "run" and scan.scan(tmp_path).by_place[run].trained
    make("export", run, kind="hf", step="meg2hf")
    assert newest(tmp_path) == "run", "a model folder does not fit"
    made, exported = "checkpoint that mconv made", "Hugging Face folder that mconv made"
    assert newest(tmp_path, made) == newest(tmp_path, exported) == "export"


def test_a_link_in_the_middle_that_is_gone_breaks_no_chain(tmp_path, make):
    base = make("base")
    middle = make("middle", base)
    make("end", middle)
    (tmp_path / "middle").rename(tmp_path / ".gone")
    assert newest(tmp_path) == "end"


def siblings(tmp_path, make):
    base = make("base")
    make("x", base), make("y", base)
    return ["x", "y"]


def strangers(tmp_path, make):
    make("x", made="2026-01-01T00:00:00Z"), make("y", made="2026-02-01T00:00:00Z")
    return ["x", "y"]


def a_source_made_anew(tmp_path, make):
    make("y", make("x"), made="2026-01-01T00:00:00Z")
    make("x", made="2026-02-01T00:00:00Z")
    return ["x", "y"]


def a_run_that_went_on(tmp_path, make):
    make("y", make("x", step="train", iteration=5))
    make("x", step="train", iteration=10)
    return ["x", "y"]


def one_of_another_program(tmp_path, make):
    make("x")
    (make("y") / "mconv.json").unlink()
    return ["x", "y"]


@pytest.mark.parametrize("case", [siblings, strangers, a_source_made_anew, a_run_that_went_on, one_of_another_program])
def test_two_that_fit_equally_are_listed(tmp_path, make, case):
    """Neither the time of a file nor that of a manifest decides between two of which none was made of the other."""
    names = case(tmp_path, make)
    with pytest.raises(MconvError, match="2 fit equally") as error:
        newest(tmp_path)
    assert all(f"{tmp_path / name}: " in str(error.value) for name in names)
    assert "base" not in names and f"{tmp_path / 'base'}: " not in str(error.value)


def test_what_is_made_of_each_other_is_not_chosen_between(tmp_path, make):
    x, y = make("x"), make("y")
    for one, other in ((x, y), (y, x)):
        (one / "mconv.json").write_text(json.dumps({"ancestors": [str(other)]}))
    with pytest.raises(MconvError, match=r"say of each .* that it was made from another"):
        newest(tmp_path)


def test_an_older_manifest_has_made_from_alone(tmp_path, make):
    base = make("base")
    end = make("end")
    (end / "mconv.json").write_text(json.dumps({"made_from": [os.path.relpath(base, end)]}))
    assert newest(tmp_path) == "end"


DAMAGED = {
    "not JSON": lambda place: place.write_text("{"),
    "no object": lambda place: place.write_text("[1]"),
    "not UTF-8": lambda place: place.write_bytes(b"\xff\xfe"),
    "a list of numbers": lambda place: place.write_text('{"made_from": [1]}'),
    "no time": lambda place: place.write_text('{"made": 5}'),
    "deep": lambda place: place.write_text("[" * 100_000),
    "tracker": lambda place: (place.parents[1] / "latest_checkpointed_iteration.txt").write_text("../x"),
    "nothing there": lambda place: (place.parents[1] / "latest_checkpointed_iteration.txt").write_text("7"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_one_is_passed_over_and_named(tmp_path, make, how):
    make("whole")
    DAMAGED[how](make("broken") / "mconv.json")
    found = scan.scan(tmp_path)
    assert newest(tmp_path) == "whole" and len(found.notes) == 1 and "broken" in found.notes[0]


def test_hidden_unfinished_and_linked_ones_are_not_taken(tmp_path, make):
    base = make("base")
    make(".mconv-partial-tp4", base), make(".hidden", base)
    (tmp_path / "latest").symlink_to("base")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "unbegun").mkdir()
    found = scan.scan(tmp_path)
    assert [one.path for one in found.found] == [tmp_path / "base"] and not found.notes
    assert list(scan.unfinished_in(tmp_path)) == ["tp4"]


def test_a_link_to_one_elsewhere_counts_by_its_own_name(tmp_path, make):
    make("elsewhere/base")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine").symlink_to("../elsewhere/base")
    assert newest(tmp_path / "here") == "mine"


def test_a_manifest_cannot_speak_to_the_terminal(tmp_path, make):
    make("x", step="\x1b[2J"), make("y")
    with pytest.raises(MconvError) as error:
        newest(tmp_path)
    assert "\x1b" not in str(error.value)


def test_looking_imports_nothing_heavy():
    code = "import sys, mconv.convert.folders.scan; print(sorted({'torch', 'numpy', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


NAMES = [
    ("llama2-7b-megatron", {"tp": 4}, "llama2-7b-megatron-tp4"),
    ("llama2-7b-megatron-tp4", {"tp": 2}, "llama2-7b-megatron-tp2"),
    ("llama2-7b-megatron-tp4-pp2-mp_rank", {}, "llama2-7b-megatron"),
    ("x", {"tp": 4, "pp": 2, "format": "mp_rank"}, "x-megatron-tp4-pp2-mp_rank"),
    ("x-megatron", {"format": "mp_rank", "dialect": "megatron-llm", "dtype": "bf16"}, "x-megatron-megatron-llm-bf16"),
    ("x-megatron-megatron-llm-bf16", {"pp": 2, "vpp": 2}, "x-megatron-pp2-vpp2"),
    ("x-run", {"iteration": 500, "tp": 2}, "x-run-iter_500-megatron-tp2"),
    ("x-run-iter_500-megatron-tp2", {"iteration": 500}, "x-run-iter_500-megatron"),
    ("Llama-2-7b-hf", {}, "Llama-2-7b-megatron"),
    ("hf", {}, "hf-megatron"),
]


@pytest.mark.parametrize(("name", "what", "expected"), NAMES)
def test_names_say_what_it_is_and_do_not_add_up(name, what, expected):
    assert naming.megatron(name, **what) == expected


def test_names_of_model_folders_runs_and_adapters():
    assert naming.hugging_face("llama2-7b-megatron-tp4") == "llama2-7b-hf"
    assert naming.hugging_face("x-run", iteration=500) == naming.hugging_face("x-run-iter_500-hf", iteration=500)
    assert naming.hugging_face("x-run", iteration=500) == "x-run-iter_500-hf"
    assert naming.run("x-megatron-tp4") == "x-run" == naming.run("x")
    assert naming.merged("x-run", iteration=3) == "x-run-iter_3-merged"
    assert naming.adapter("x-run", iteration=3) == "x-run-iter_3-adapter"
