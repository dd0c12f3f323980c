"""`mconv diff`: the statistics of numpy in fp64, the same from every format, and what two checkpoints do not share."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import make_llama, make_model, tensors

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.extraction import svd
from mconv.convert.sources.unfused import boxes
from mconv.verify import angles, diff

pytestmark = pytest.mark.once

SMALL = {"num_hidden_layers": 2}
Q, K = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"


def tuned(base, folder, *, change=None):
    """A copy of a model, every other tensor of which is moved a little; or changed by a function of its weights."""
    weights, random = tensors(base), torch.Generator().manual_seed(5)
    for key in list(weights)[::2] if change is None else []:
        weights[key] = (weights[key].float() + 0.05 * torch.randn(weights[key].shape, generator=random)).to(
            weights[key].dtype
        )
    if change:
        change(weights)
    folder.mkdir()
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A LLaMA, and one that was made of it."""
    root = tmp_path_factory.mktemp("diff")
    base = make_llama(root / "base", **SMALL)
    return base, tuned(base, root / "tuned")


def facts(capsys, *argv, code=0):
    assert run(["diff", *map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def oracle(a, b):
    """What is reported of one tensor, by numpy."""
    a, b = a.double().numpy().ravel(), b.double().numpy().ravel()
    apart = np.abs(b - a)
    return {
        "elements": a.size, "changed": int((a != b).sum()), "share_changed": float((a != b).mean()),
        "mean_abs": apart.mean(), "max_abs": apart.max(), "nonfinite": 0,
        "relative_norm": np.linalg.norm(b - a) / np.linalg.norm(a),
        "cosine": a @ b / np.linalg.norm(a) / np.linalg.norm(b),
    }  # fmt: skip


def close(found, wanted):
    return all(math.isclose(found[name], value, rel_tol=1e-12, abs_tol=1e-15) for name, value in wanted.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_number_is_numpys(tmp_path, dtype, capsys):
    base = make_llama(tmp_path / "base", **SMALL, dtype=dtype)
    other = tuned(base, tmp_path / "tuned")
    found, a, b = facts(capsys, base, other), tensors(base), tensors(other)
    assert [one["name"] for one in found["tensors"]] != [] and {one["name"] for one in found["tensors"]} == a.keys()
    for one in found["tensors"]:
        assert close(one, oracle(a[one["name"]], b[one["name"]])), one
    whole = [torch.cat([x[name].double().flatten() for name in a]) for x in (a, b)]
    assert close(found["total"], oracle(*whole))
    mine = [name for name in a if name.startswith("model.layers.1.")]
    layer = [torch.cat([x[name].double().flatten() for name in mine]) for x in (a, b)]
    assert close(next(one for one in found["layers"] if one["name"] == "layer 1"), oracle(*layer))
    queries = [torch.cat([x[name].double().flatten() for name in a if "q_proj" in name]) for x in (a, b)]
    assert close(next(one for one in found["modules"] if one["name"] == "self_attn.q_proj.weight"), oracle(*queries))
    ranked = [one["relative_norm"] for one in found["modules"]]
    assert ranked == sorted(ranked, reverse=True)


@pytest.mark.parametrize("name", ["llama-gqa", "falcon-40b", "gpt2-tied", "qwen3-gqa"])
def test_any_two_formats_give_the_same_numbers(name, tmp_path, capsys):
    layers = {"n_layer" if name.startswith("gpt2") else "num_hidden_layers": 2}
    base = make_model(name, tmp_path / "base", **layers)
    other = tuned(base, tmp_path / "tuned")
    wanted = facts(capsys, base, other)
    dialect = "mcore" if name[:4] in ("gpt2", "qwen") else "megatron-llm"
    for source, options in ((base, "--format mp_rank --tp 2 --pp 2 --dialect " + dialect), (other, "--tp 4")):
        assert run(["hf2meg", str(source), "--out", f"{source}-meg", *options.split()]) == 0
    capsys.readouterr()
    for one, two in ((f"{base}-meg", other), (base, f"{other}-meg"), (f"{base}-meg", f"{other}-meg")):
        found = facts(capsys, one, two)
        assert [found[part] for part in ("tensors", "layers", "modules", "total")] == [
            wanted[part] for part in ("tensors", "layers", "modules", "total")
        ]


def test_many_slabs_add_up(pair, monkeypatch, capsys):
    wanted = facts(capsys, *pair)
    monkeypatch.setattr(diff, "boxes", lambda box: boxes(box, 100))
    found = facts(capsys, *pair)
    assert [one["changed"] for one in found["tensors"]] == [one["changed"] for one in wanted["tensors"]]
    names = ("mean_abs", "max_abs", "relative_norm", "cosine")
    assert all(
        close(one, {n: two[n] for n in names}) for one, two in zip(found["tensors"], wanted["tensors"], strict=True)
    )


def test_other_vocabularies_and_depths_compare_what_they_share(tmp_path, capsys):
    base = make_llama(tmp_path / "base", **SMALL)
    deep = make_llama(tmp_path / "deep", num_hidden_layers=3, vocab_size=160)
    found, a, b = facts(capsys, base, deep), tensors(base), tensors(deep)
    said = "\n".join(found["notes"])
    assert "layers 2 / 3" in said and "vocabulary 151 / 160" in said
    assert "model.embed_tokens.weight: the first 151 rows are compared, of 151 and 160" in said
    assert "only deep has model.layers.2.input_layernorm.weight, " in said and "7 more tensors" in said
    embedding = next(one for one in found["tensors"] if one["name"] == "model.embed_tokens.weight")
    assert close(embedding, oracle(a["model.embed_tokens.weight"], b["model.embed_tokens.weight"][:151]))
    assert len(found["only_b"]) == 9 and not found["only_a"] and not found["shapes"]


def test_what_has_another_shape_is_named_and_left_out(tmp_path, capsys):
    base = make_llama(tmp_path / "base", **SMALL)
    other = make_llama(tmp_path / "wide", **SMALL, intermediate_size=80)
    found = facts(capsys, base, other)
    assert found["shapes"]["model.layers.0.mlp.up_proj.weight"] == [[64, 48], [80, 48]] and len(found["shapes"]) == 6
    assert any(note.startswith("not compared, since the shapes differ:") for note in found["notes"])
    assert Q in {one["name"] for one in found["tensors"]}


def test_a_tied_head_is_the_embedding(tmp_path, capsys):
    tied = make_llama(tmp_path / "tied", **SMALL, tie_word_embeddings=True)
    untied = make_llama(tmp_path / "untied", **SMALL)
    found, a, b = facts(capsys, tied, untied), tensors(tied), tensors(untied)
    head = next(one for one in found["tensors"] if one["name"] == "lm_head.weight")
    assert close(head, oracle(a["model.embed_tokens.weight"], b["lm_head.weight"]))
    assert not found["only_a"] and not found["only_b"]


def test_the_same_model_does_not_differ(pair, capsys):
    base, _ = pair
    assert run(["diff", str(base), str(base)]) == 0
    assert capsys.readouterr().out.splitlines() == ["base against base: 0 of 21 tensors differ"]
    found = facts(capsys, base, base)
    assert all(one["cosine"] == 1 and one["relative_norm"] == 0 for one in found["tensors"])


def test_nan_is_null_and_first(pair, tmp_path, capsys):
    def spoil(weights):
        weights[Q][0, :3] = math.nan

    other = tuned(pair[0], tmp_path / "nan", change=spoil)
    found = facts(capsys, pair[0], other)
    one = next(one for one in found["tensors"] if one["name"] == Q)
    assert one["nonfinite"] == one["changed"] == 3 and one["relative_norm"] is None and one["max_abs"] is None
    assert found["modules"][0]["name"] == "self_attn.q_proj.weight"
    assert run(["diff", str(pair[0]), str(other), "--top", "1", "--html", str(tmp_path / "nan.html")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(Q) and 'class="off"' in (tmp_path / "nan.html").read_text()


# ---- angles ----------------------------------------------------------------------------------------------------------
def test_angles_are_those_between_the_leading_subspaces(pair, capsys):
    base, other = pair
    found, a, b = facts(capsys, base, other, "--angles", 3), tensors(base), tensors(other)
    for one in found["tensors"]:
        if one["name"].startswith("model.layers") and one["name"].endswith("_proj.weight"):
            for side, turned in (("outputs", False), ("inputs", True)):
                wide = [x[one["name"]].double().numpy() for x in (a, b)]
                spans = [np.linalg.svd(x.T if turned else x)[0][:, :3] for x in wide]
                cosines = np.linalg.svd(spans[0].T @ spans[1])[1]
                wanted = np.degrees(np.arccos(np.clip(cosines, 0, 1)))
                assert np.allclose(one["angles"][side], wanted, atol=1e-5), one["name"]
            assert one["angle"] == max(*one["angles"]["outputs"], *one["angles"]["inputs"])
        else:
            assert one["angle"] is None
    assert any(one["angle"] == 0 for one in found["tensors"]), "some linear has not changed"


def test_a_planted_turn_is_measured_also_where_it_is_tiny():
    basis = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    one = basis @ torch.diag(torch.tensor([5.0, 4.0, *[0.1] * 18], dtype=torch.float64)) @ basis.t()
    for degrees in (1e-7, 0.5, 30.0, 89.0):
        turn, angle = torch.eye(20, dtype=torch.float64), math.radians(degrees)
        turn[0, 0] = turn[2, 2] = math.cos(angle)
        turn[2, 0], turn[0, 2] = math.sin(angle), -math.sin(angle)
        two = basis @ turn @ basis.t() @ one
        found = angles.between(svd.leading(one, 2), svd.leading(two, 2))
        assert math.isclose(found.outputs[-1], degrees, rel_tol=1e-4) and found.outputs[0] < 1e-7
        assert found.inputs[-1] < 1e-7


def test_large_matrices_are_measured_without_a_whole_svd(pair, monkeypatch, capsys):
    """A spectrum that falls: the two ways agree."""
    left, right = (torch.linalg.qr(torch.randn(60, 60, generator=torch.Generator().manual_seed(n))).Q for n in (1, 2))
    matrix = left @ torch.diag(0.8 ** torch.arange(60.0)) @ right
    whole = svd.leading(matrix, 4)
    monkeypatch.setattr(svd, "EXACT", 8)
    some = svd.leading(matrix, 4)
    assert torch.allclose(whole.values, some.values, rtol=1e-5) and angles.between(whole, some).largest < 0.01
    again = svd.leading(matrix, 4)
    assert torch.equal(some.left, again.left) and not torch.equal(some.left, svd.leading(matrix, 4, seed=1).left)


# ---- what is drawn and said ------------------------------------------------------------------------------------------
def test_the_table_the_page_and_the_picture(pair, tmp_path, capsys):
    page, picture = tmp_path / "x.html", tmp_path / "x.png"
    base, other = pair
    argv = ["diff", str(base), str(other), "--top", "2", "--angles", "2", "--html", str(page), "--plot", str(picture)]
    assert run(argv) == 0
    said = capsys.readouterr()
    first, header, *rows = said.out.splitlines()
    assert first.startswith("base against tuned: ") and header.split()[-2:] == ["changed", "angle"]
    assert [row.split("  ")[0] for row in rows[:4]] == ["all", "outside the layers", "layer 0", "layer 1"]
    assert rows[4].startswith("the most changed of") and len(rows) == 7 and rows[5].split()[0].startswith("model.")
    assert "the angles need about" in said.err
    text = page.read_text()
    assert (
        "<script" not in text and "http" not in text.replace("http-equiv", "") and Q in text and "largest angle" in text
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run(argv) == 0, "a page of ours is replaced"


def test_other_architectures_are_refused(tmp_path, capsys):
    base = make_llama(tmp_path / "base", **SMALL)
    wide = make_llama(tmp_path / "wide", **SMALL, hidden_size=32, vocab_size=150)
    gpt2 = make_model("gpt2-tied", tmp_path / "gpt2", n_layer=2)
    for other, why in ((wide, "hidden size 48 / 32"), (gpt2, "norm rms / layer")):
        assert run(["diff", str(base), str(other)]) == 2
        said = capsys.readouterr().err
        assert f"base and {other.name} are of different architectures: they differ in" in said and why in said


BAD = {
    "--top -1": "--top is -1",
    "--angles 0": "--angles is 0",
    "--angles 25": "k_proj.weight is 24 x 48, so it has 24 directions",
    "--html out.txt": "give a name that ends in .html",
    "--html nowhere/x.html": "nowhere is no folder",
    "--html mine.html": "exists and is not a page of mconv diff",
    "--plot x.gif": "give a name that ends in .png",
    "--plot nowhere/x.png": "nowhere is no folder",
}


@pytest.mark.parametrize("options, why", BAD.items(), ids=BAD)
def test_bad_options_stop_before_anything_is_read(pair, options, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.html").write_text("<p>mine")
    assert run(["diff", *map(str, pair), *options.split()]) == 2
    assert why in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]


def test_only_the_shared_part_of_an_opened_pair_is_listed(pair):
    base, other = (open_checkpoint(path) for path in pair)
    shared = diff.shared(base, other)
    assert [pair.partial for pair in shared.pairs] == [False] * 21 and not shared.notes
    assert shared.elements == base.parameters
