"""A plan of two parts: the weights, and tensors of another source under a prefix of their own."""

import dataclasses
import json

import pytest
import torch
from interrupts import stop_after
from safetensors.torch import load_file, save_file
from tiny import make_llama, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.dialects import spell
from mconv.convert.engine import plan
from mconv.convert.engine.files import lay_out
from mconv.convert.engine.parts import Part
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders.staging import Staging
from mconv.convert.formats import torch_dist
from mconv.convert.sources.read import digests
from mconv.convert.sources.stored import StoredSource
from mconv.errors import MconvError

PREFIX = "optimizer.state.exp_avg."
OPTIONS = {"format": "torch_dist", "tp": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model in bf16, and one of the same architecture in fp32 that stands for its moments."""
    root = tmp_path_factory.mktemp("parts")
    return make_llama(root / "hf", dtype=torch.bfloat16), make_llama(root / "moments", seed=7)


def planned(folders, out, **options):
    model, moments = map(open_checkpoint, folders)
    made = plan.make(model, out, **options)
    stored = plan.spelled(moments.source, made.layout, format=made.format)
    return dataclasses.replace(made, parts=(*made.parts, Part.of(PREFIX, moments.source, stored)))


def hashed(folder):
    return digests(open_checkpoint(folder).source).stored


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [{"format": "torch_dist", "tp": 2, "pp": 2}, {"format": "hf"}], ids=str)
def test_both_parts_are_written_and_their_digests_recorded(folders, tmp_path, options):
    made = rewrite(planned(folders, tmp_path / "out", **options), step="test")
    weights, moments = map(hashed, folders)
    assert made["digests"] == {**weights, **{f"{PREFIX}{name}": digest for name, digest in moments.items()}}
    assert (
        made["dtype"] == "bfloat16" and made["source"]["digest"] == alone(folders, tmp_path, options)["source"]["digest"]
    )


def alone(folders, tmp_path, options):
    return rewrite(plan.make(open_checkpoint(folders[0]), tmp_path / "alone", **options), step="test")


def test_a_torch_dist_checkpoint_gives_each_part_back(folders, tmp_path):
    rewrite(planned(folders, tmp_path / "out", format="torch_dist", tp=2), step="test")
    found = open_checkpoint(tmp_path / "out")
    assert digests(found.source).stored == hashed(folders[0])  # what is under the prefix does not disturb it
    held, _ = torch_dist.open_training(found.path)
    named = {name.removeprefix(PREFIX): tensor for name, tensor in held.items()}
    stored, located = spell.torch_dist_sources(found.family, found.spec, found.layout, named)
    moments = StoredSource(label="moments", family=found.family, spec=found.spec, stored=stored, located=located)
    assert digests(moments).stored == hashed(folders[1])


def test_a_hugging_face_folder_has_the_second_part_under_its_prefix(folders, tmp_path):
    rewrite(planned(folders, tmp_path / "out", format="hf"), step="test")
    expected = {**tensors(folders[0]), **{f"{PREFIX}{name}": x for name, x in tensors(folders[1]).items()}}
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], x) for name, x in expected.items())


# ---- the journal -----------------------------------------------------------------------------------------------------
def interrupted(folders, out):
    """The staging directory of a conversion that Ctrl-C has stopped just before its end, and what its journal names."""
    with pytest.MonkeyPatch.context() as patch:
        writes = stop_after(patch, 0)
        rewrite(planned(folders, out.with_name("counted"), **OPTIONS), step="test")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, len(writes) - 20)
        rewrite(planned(folders, out, **OPTIONS), step="test")
    staging = Staging.of(out / "release")
    lines = [json.loads(line) for path in staging.journal.glob("done-*") for line in path.read_text().split("\n") if line]
    return staging, [line["logical"] for line in lines], len(writes)


def test_a_run_is_resumed_by_the_names_of_both_parts(folders, tmp_path, monkeypatch):
    rewrite(planned(folders, tmp_path / "whole" / "out", **OPTIONS), step="test")
    out = tmp_path / "again" / "out"
    staging, done, count = interrupted(folders, out)
    moments = [name for name in done if name.startswith(PREFIX)]
    assert staging.unfinished and moments and len(moments) < len(done)
    writes = stop_after(monkeypatch, 0)
    rewrite(planned(folders, out, resume=True, **OPTIONS), step="test")
    monkeypatch.undo()
    assert 0 < len(writes) < count
    written, whole = files(out), files(tmp_path / "whole" / "out")
    same = {name for name in whole if name.endswith("mconv.json") or written[name] == whole[name]}
    assert same == written.keys() == whole.keys()


def test_what_changed_between_two_runs_is_noticed_in_either_part(folders, tmp_path):
    staging, done, _ = interrupted(folders, tmp_path / "out")
    made = planned(folders, tmp_path / "out", resume=True, **OPTIONS)
    name = next(name for name in done if name.startswith(PREFIX))
    key = next(s.key for s in made.parts[1].stored if made.parts[1].name(s.logical) == name)
    extent = lay_out(made).extents[key]
    with (staging.partial / extent.file).open("r+b") as file:
        file.seek(extent.offset)
        file.write(b"\x01\x02\x03\x04")
    with pytest.raises(MconvError, match=f"1 tensors \\({name}\\) are not what the interrupted run wrote"):
        rewrite(made, step="test")


def test_a_run_is_not_resumed_with_another_second_source(folders, tmp_path):
    moments = tmp_path / "moments"
    moments.mkdir()
    for path in folders[1].iterdir():
        (moments / path.name).write_bytes(path.read_bytes())
    interrupted((folders[0], moments), tmp_path / "out")
    held = load_file(moments / "model.safetensors")
    save_file({name: x + 1 for name, x in held.items()}, moments / "model.safetensors", {"format": "pt"})
    with pytest.raises(MconvError, match=r"files: moments/model\.safetensors was"):
        rewrite(planned((folders[0], moments), tmp_path / "out", resume=True, **OPTIONS), step="test")
