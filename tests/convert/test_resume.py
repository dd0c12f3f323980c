"""Taking up an unfinished conversion, and what one needs of memory."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from interrupts import stop_after
from tiny import make_llama

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders.staging import Staging
from mconv.convert.formats.dtype import BFLOAT16, FLOAT16
from mconv.errors import MconvError


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("made") / "hf", dtype=torch.bfloat16)


def convert(source, out, **options):
    rewrite(plan.make(open_checkpoint(source), out, **{"format": "mp_rank", "tp": 2, **options}), step="test")
    return out


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def interrupted(source, out, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 30)
        convert(source, out)
    return Staging.of(out / "release")


def test_ctrl_c_keeps_what_is_done_and_resume_writes_only_the_rest(hf, tmp_path, monkeypatch):
    want = files(convert(hf, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        all_of_them = stop_after(patch, 0)
        convert(hf, tmp_path / "again")
    staging = interrupted(hf, tmp_path / "out", monkeypatch)
    with pytest.raises(MconvError):
        open_checkpoint(tmp_path / "out")
    assert staging.unfinished and not staging.folder.exists()
    rest = stop_after(monkeypatch, 0)
    assert files(convert(hf, tmp_path / "out", resume=True)) == want
    assert 0 < len(rest) < len(all_of_them)


def test_what_differs_is_said_and_nothing_is_touched(hf, tmp_path, monkeypatch):
    source = tmp_path / "hf"
    shutil.copytree(hf, source)
    staging = interrupted(source, tmp_path / "out", monkeypatch)
    before = files(tmp_path / "out")
    for options, says in (({"dtype": "fp32"}, "dtype was None, now float32"), ({"tp": 4}, "'tp': 4")):
        with pytest.raises(MconvError) as refused:
            convert(source, tmp_path / "out", resume=True, **options)
        assert says in str(refused.value) and "leave --resume out" in str(refused.value)
    os.utime(source / "model.safetensors", ns=(0, 0))
    with pytest.raises(MconvError, match=r"hf/model\.safetensors was"):
        convert(source, tmp_path / "out", resume=True)
    assert files(tmp_path / "out") == before and staging.unfinished
    convert(source, tmp_path / "out")  # without --resume it starts anew
    assert not list(tmp_path.rglob(".mconv-*"))


def test_files_that_were_changed_meanwhile_are_not_taken_up(hf, tmp_path, monkeypatch):
    staging = interrupted(hf, tmp_path / "out", monkeypatch)
    next(staging.partial.rglob("*.pt")).write_bytes(b"short")
    with pytest.raises(MconvError, match=r"model_optim_rng\.pt is missing or was changed"):
        convert(hf, tmp_path / "out", resume=True)


def test_resume_with_nothing_to_resume_converts(hf, tmp_path):
    assert files(convert(hf, tmp_path / "a", resume=True)) == files(convert(hf, tmp_path / "b"))
    with pytest.raises(MconvError, match="exists and is not empty"):
        convert(hf, tmp_path / "a", resume=True)


def test_a_resume_does_not_replace_what_came_meanwhile(hf, tmp_path, monkeypatch):
    staging = interrupted(hf, tmp_path / "out", monkeypatch)
    staging.folder.mkdir()
    (staging.folder / "mine").write_text("precious")
    with pytest.raises(MconvError, match="--overwrite"):
        convert(hf, tmp_path / "out", resume=True)
    assert (staging.folder / "mine").read_text() == "precious"


def test_a_second_run_into_the_same_folder_is_refused(hf, tmp_path, monkeypatch):
    out, seen, write = tmp_path / "out", [], os.pwrite

    def writing(*args):
        if not seen:
            seen.append(1)
            for options in ({}, {"overwrite": True}, {"resume": True}):
                with pytest.raises(MconvError, match="another mconv is writing"):
                    convert(hf, out, **options)
        return write(*args)

    want = files(convert(hf, tmp_path / "whole"))
    monkeypatch.setattr(os, "pwrite", writing)
    assert files(convert(hf, out)) == want and seen and not list(tmp_path.rglob(".mconv-*"))


def test_what_came_since_the_plan_was_made_is_not_replaced(hf, tmp_path):
    late = plan.make(open_checkpoint(hf), tmp_path / "out", format="mp_rank", tp=2, dtype="fp16")
    before = files(convert(hf, tmp_path / "out"))
    with pytest.raises(MconvError, match="--overwrite"):
        rewrite(late, step="test")
    assert files(tmp_path / "out") == before


def test_a_damaged_plan_with_resume_replaces_nothing(hf, tmp_path, monkeypatch):
    staging = interrupted(hf, tmp_path / "out", monkeypatch)
    shutil.copytree(convert(hf, tmp_path / "other", dtype="fp16") / "release", staging.folder)
    before = files(staging.folder)
    for text in ("", '{"of": [], "overwrite": true}'):
        (staging.journal / "plan.json").write_text(text)
        with pytest.raises(MconvError, match="--overwrite"):
            convert(hf, tmp_path / "out", resume=True)
    assert files(staging.folder) == before


@pytest.mark.parametrize("format", ["mp_rank", "torch_dist", "hf"])
def test_resume_believes_neither_journals_nor_files(hf, tmp_path, monkeypatch, format):
    source = hf if format != "hf" else convert(hf, tmp_path / "source") / "release"
    options = {"format": format, "tp": 1 if format == "hf" else 2}
    want = files(convert(source, tmp_path / "whole", **options))
    for forged in (
        '{"logical": ["head.weight"], "digests": {}, "crcs": {}}',
        '{"logical": "head.weight", "digests": {}, "crcs": {}}',
        '{"logical": "head.weight", "digests": "cast source", "crcs": {}}', '{"logical": "x", "digests": {}, "crcs": {}}',
        "[1]", '{"logical": "head.weight", "digests": {"cast": 1, "source": 2}, "crcs": {"a": -1}}', '{"logical": "he',
    ):  # fmt: skip
        staging = half(source, tmp_path / "out", monkeypatch, options)
        with (staging.journal / "done-0.jsonl").open("a") as file:
            file.write(forged + "\n")
        assert files(convert(source, tmp_path / "out", resume=True, **options)) == want, forged
        shutil.rmtree(tmp_path / "out")
    staging = half(source, tmp_path / "out", monkeypatch, options)
    for path in staging.partial.rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))  # the same sizes, nothing in them
    with pytest.raises(MconvError, match="not what the interrupted run wrote"):
        convert(source, tmp_path / "out", resume=True, **options)
    assert not files(tmp_path / "out") and not list(tmp_path.rglob(".mconv-*"))


def half(source, out, monkeypatch, options):
    """A run that was interrupted when it had journalled some tensors, but not the last."""
    from mconv.convert.engine import journal

    real = journal.record

    def recording(staging, rank, done, files):
        kept = [one for one in done if one.logical != "head.weight"]
        real(staging, rank, kept, files)
        if len(journal.finished(staging)) > 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(journal, "record", recording)
        convert(source, out, **options)
    return Staging.of(out if options["format"] == "hf" else out / "release")


def test_a_link_named_as_the_target_stays_one_and_what_it_leads_to_is_replaced(hf, tmp_path):
    root = convert(hf, tmp_path / "meg")
    back = convert(root, tmp_path / "disk" / "back", format="hf", tp=1)
    (tmp_path / "link").symlink_to(back)
    convert(root, tmp_path / "link", format="hf", tp=1, dtype="fp16", overwrite=True)
    assert (tmp_path / "link").is_symlink() and open_checkpoint(back).dtype == FLOAT16
    assert not list(tmp_path.rglob(".mconv-*"))


PEAK = """
import sys, threading, time
from pathlib import Path
from mconv.convert.engine import plan
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine.rewrite import rewrite
def memory():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) * 1024
made, peak, base = plan.make(open_checkpoint(sys.argv[1]), Path(sys.argv[2]), format="mp_rank", tp=2), 0, memory()
def tell(_):
    global peak
    peak = max(peak, memory())
rewrite(made, step="test", progress=tell)
print(peak - base, made.peak_bytes)
"""


def test_memory_does_not_grow_with_the_largest_tensor(tmp_path):
    """An embedding of 256 MB (a hole in the file) takes no more than the plan says, 64 MB on two processors."""
    from mconv.convert.families.llama import LLAMA
    from mconv.convert.formats import hf as format
    from mconv.convert.formats.tensors import Target

    folder = make_llama(tmp_path / "hf", num_hidden_layers=1)
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": 128_000, "hidden_size": 1024, "num_attention_heads": 8, "head_dim": 128}
    (folder / "config.json").write_text(json.dumps(config))
    targets = [Target(s.key, s.piece.shape, BFLOAT16) for s in LLAMA.stored(LLAMA.read_config(config))]
    files = format.lay_out(targets, limit=10**12)
    (folder / "model.safetensors").unlink()
    files.create(folder)
    files.finish(folder, {})
    words = [sys.executable, "-W", "ignore", "-c", PEAK, str(folder), str(tmp_path / "out")]
    used, said = map(int, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())
    assert 0 < used < said + (16 << 20) and said < 200 << 20
