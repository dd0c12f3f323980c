"""`mconv doctor`: what it finds on this very machine, what it makes of bad ones, and a token that it never shows."""

import importlib.metadata
import json

import pytest

from mconv.cli.app import run
from mconv.train.estimate import machine

TOKEN = "hf_thisMustNeverBePrinted"


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return machine.machine(tmp_path_factory.mktemp("save") / "not" / "there")


def test_it_says_what_there_is_and_exits_0(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run(["doctor", "--save", str(tmp_path / "runs" / "first")]) == 0
    text = capsys.readouterr().out
    core = importlib.metadata.version("megatron-core")
    assert f"megatron-core {core}" in text and "there is one" in text and TOKEN not in text
    assert run(["doctor", "--json"]) == 0
    text = capsys.readouterr().out
    told = json.loads(text)
    assert told["hub_token"] is True and TOKEN not in text
    assert told["cores"] >= 1 and told["disk"]["free"] > 0 and told["dataset_helpers"] is True


def test_a_file_is_no_folder_to_save_in(tmp_path):
    (tmp_path / "file").write_text("")
    assert [machine.writable(tmp_path / name) for name in (".", "new/er", "file", "file/x")] == [True, True, False, False]


def test_no_device_is_said_in_words(capsys, monkeypatch):
    monkeypatch.setattr(machine, "devices", list)
    assert run(["doctor"]) == 0
    assert "CPU only" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, says",
    [
        ({"core_problem": "megatron-core 0.12.0 is older"}, "megatron-core 0.12.0 is older"),
        ({"dataset_helpers": False}, "helpers are not built"),
        ({"open_files": 1024}, "no more than 1024 files"),
        ({"devices": [{}, {}], "shm": {"size": 64 << 20, "free": 0}, "backends": {"nccl": "2"}}, "less than 1 GiB"),
        ({"devices": [{}], "backends": {"nccl": None}}, "no NCCL"),
        ({"nvidia_driver": True, "backends": {"cuda": None}}, "torch sees no device; it is built without CUDA"),
        ({"nvidia_driver": True, "backends": {"cuda": "13.0"}}, "is built for CUDA 13.0"),
        ({"disk": {"folder": "/x", "writable": False}}, "/x cannot be written to"),
    ],
    ids=str,
)
def test_what_will_go_wrong_is_said_before(change, says, facts):
    fine = {**facts, "open_files": None, "devices": [], "dataset_helpers": True, "nvidia_driver": False}
    assert list(machine.advice(fine)) == []
    [note] = machine.advice({**fine, **change})
    assert says in note
