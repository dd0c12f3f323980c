"""`mconv inspect` for people: optimizer state, token data, and no word that only a programming language has."""

import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from tiny import make_llama

from mconv.cli.app import run
from mconv.train.data import facts

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-lm"
PYTHON = re.compile(r"\b(None|True|False|dict|tuple|list|Path|Namespace)\b|[{}]|\(\d+,\)")


def inspected(capsys, path, *options):
    """Return what is printed of a path: in words, and as JSON."""
    assert run(["inspect", str(path), *options]) == 0
    text = capsys.readouterr().out
    assert run(["inspect", str(path), *options, "--json"]) == 0
    assert not PYTHON.search(text), text
    return text, json.loads(capsys.readouterr().out)


def line(text, name):
    return next(words[25:] for words in text.splitlines() if words.startswith(f"{name} "))


# ---- checkpoints -----------------------------------------------------------------------------------------------------
KINDS = {
    "td-dp2-distopt-reshardable": ("by parameter", "distributed over the replicas, under the parameters' names"),
    "td-dp2-distopt": ("buckets", "flat buckets cut at the replicas' shares (dp_reshardable)"),
    "legacy-dp2-distopt": ("flat", "flat buffers of each rank (distrib_optim.pt)"),
    "legacy-tp1-adam": ("numbered", "in each rank's own file"),
    "legacy-tp2pp2-vpp2-bf16": ("none", "none: the weights alone"),
}


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout")
@pytest.mark.parametrize("case", KINDS)
def test_the_optimizers_state_of_a_run_of_megatron_lm(case, capsys):
    """Of which kind, at which iteration, under which settings: as the checkpoint's own files have it."""
    kind, words = KINDS[case]
    text, found = inspected(capsys, GOLDEN / case / "ckpt")
    training = found["training"]
    assert training["optimizer_state"] == kind and words in line(text, "optimizer state")
    assert (training["optimizer_bytes"] > 0) == (kind != "none")
    if kind in ("by parameter", "buckets", "flat"):  # two moments and main weights, each of four bytes
        assert training["optimizer_bytes"] >= 12 * found["parameters"]
    if kind != "none":
        assert (training["iteration"], training["consumed_samples"]) == (3, 12)
        assert "lr 0.001" in (settings := line(text, "training settings")) and "global_batch_size 4" in settings


def test_a_model_and_its_conversion_have_none(tmp_path, capsys):
    make_llama(tmp_path / "hf")
    assert run(["hf2meg", str(tmp_path / "hf"), "--out", str(tmp_path / "meg"), "--tp", "2"]) == 0
    capsys.readouterr()
    text, found = inspected(capsys, tmp_path / "hf", "--tensors", "--tp", "2")
    assert found["training"] is None and line(text, "optimizer state") == "none: a model as it is published"
    assert line(text, "tied embeddings") == "no" and "48 x 48" in text and "bytes_per_rank" in line(text, "preview")
    text, found = inspected(capsys, tmp_path / "meg")
    assert found["training"]["optimizer_state"] == "none" and "none: the weights alone" in line(text, "optimizer state")


# ---- data ------------------------------------------------------------------------------------------------------------
def write(prefix, lengths, ends, tokens, code=8):
    """Write a pair of files as megatron-core has them. `tokens`: the ids, or None for a .bin that is one long hole."""
    width = {4: 4, 8: 2}[code]
    starts = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64) * width])
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(ends) + 1)
    parts = (np.array(lengths, np.int32), starts.astype(np.int64), np.array([0, *ends], np.int64))
    prefix.with_name(prefix.name + ".idx").write_bytes(head + b"".join(part.tobytes() for part in parts))
    with prefix.with_name(prefix.name + ".bin").open("wb") as file:
        if tokens is None:
            file.truncate(sum(lengths) * width)
        else:
            file.write(np.array(tokens, {4: np.int32, 8: np.uint16}[code]).tobytes())


def test_token_data_by_any_of_its_names(tmp_path, capsys):
    """Three documents, the second of two sequences, each ended by token 2."""
    write(tmp_path / "text.v1", [3, 2, 2, 5], [1, 3, 4], [9, 8, 2, 7, 7, 60000, 2, 5, 5, 5, 5, 2])
    texts = {}
    for name in ("text.v1", "text.v1.bin", "text.v1.idx"):
        texts[name], found = inspected(capsys, tmp_path / name)
        assert found["lengths"] == {"min": 3, "median": 4.0, "max": 5} and found["dtype"] == "uint16"
        assert (found["documents"], found["sequences"], found["tokens"]) == (3, 4, 12)
        assert found["endings"]["token"] == 2 and found["ids"] == {"min": 2, "max": 60000, "looked_at": 12}
        assert found["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(set(texts.values())) == 1
    text = texts["text.v1"]
    assert line(text, "ends") == "each document ends in token 2 (in all documents)"
    assert line(text, "documents") == "3 (4 sequences)" and line(text, "tokenizer") == "not recorded"
    write(tmp_path / "other", [2, 2], [1, 2], [1, 2, 3, 4])
    assert "documents end in 2 different tokens" in inspected(capsys, tmp_path / "other")[0]
    text, found = inspected(capsys, tmp_path)
    assert [Path(one["prefix"]).name for one in found] == ["other", "text.v1"] and text.count("\nwhat ") == 2


def test_conversations_by_any_of_their_names(tmp_path, capsys):
    write(tmp_path / "chat-text", [4, 4], [], range(8))
    write(tmp_path / "chat-role", [4, 4], [], [0, 1, 2, 2, 1, 1, 2, 2])
    for name in ("chat", "chat-text", "chat-role.bin", "chat-text.idx"):
        text, found = inspected(capsys, tmp_path / name)
        assert Path(found["prefix"]).name == "chat" and found["documents"] == 2
        assert {name: found["roles"][name] for name in facts.ROLES} == {
            "system": 0.125,
            "prompter": 0.375,
            "assistant": 0.5,
        }
        assert line(text, "roles").startswith("system 12.5 %, prompter 37.5 %, assistant 50 %")
    write(tmp_path / "chat-role", [4, 4], [], [0, 1, 2, 2, 1, 1, 2, 3])
    assert run(["inspect", str(tmp_path / "chat")]) == 2 and "no role" in capsys.readouterr().err
    write(tmp_path / "chat-role", [5, 3], [], [0] * 8)
    assert run(["inspect", str(tmp_path / "chat")]) == 2 and "lengths of their" in capsys.readouterr().err


def test_the_tokenizer_that_the_record_names(tmp_path, capsys):
    write(tmp_path / "text", [2, 2], [1, 2], [1, 2, 3, 2])
    record = {
        "tokenizer": "models/llama", "tokenizer_sha256": "", "vocab_size": 32000, "append_eod": 2, "prepend_bos": None,
        "documents": 2, "empty": 0, "tokens": 4, "max_id": 3, "dtype": "uint16", "bin_bytes": 8,
    }  # fmt: skip
    (tmp_path / "text.mconv.json").write_text(json.dumps(record))
    text, found = inspected(capsys, tmp_path / "text")
    assert line(text, "tokenizer") == "models/llama, 32,000 ids" and found["record"]["append_eod"] == 2


def test_a_hundred_gigabytes_are_sampled(tmp_path, capsys, monkeypatch):
    """A .bin of 100 GB that is a hole: what is read of it stays within the limit, and what was looked at is said."""
    write(tmp_path / "huge", [10**9] * 50, range(1, 51), None)
    read, real = [], os.preadv

    def counted(file, buffers, at):
        read.append(sum(map(len, buffers)))
        return real(file, buffers, at)

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr(facts, "SAMPLED", 1 << 22)
    assert run(["inspect", str(tmp_path / "huge")]) == 0
    text = capsys.readouterr().out
    assert line(text, "tokens") == "50,000,000,000" and line(text, "bytes") == "100.0 GB"
    assert "of 50,000,000,000 tokens, spread over the data" in line(text, "ids") and sum(read) <= 2 * (1 << 22) + 2 * 50


NO_DATA = {
    "notes.md": "a file that is no model, no checkpoint and no token data",
    "alone.bin": "or token data without its .idx",
    "alone": "alone.bin is there and alone.idx is not",
    "bad.idx": "bad.bin: no such file",
    "odd": "odd.idx is not an index of megatron-core",
}


@pytest.mark.parametrize("name", NO_DATA)
def test_what_it_is_not(tmp_path, capsys, name):
    for file in ("notes.md", "alone.bin", "bad.idx", "odd.idx", "odd.bin"):
        (tmp_path / file).write_text("something else altogether, of some length")
    assert run(["inspect", str(tmp_path / name)]) == 2
    assert NO_DATA[name] in (error := capsys.readouterr().err) and "Traceback" not in error
