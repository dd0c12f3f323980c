"""`mconv verify --digests`: which logical tensors of two checkpoints differ, and how, whatever their spellings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import edit_json, make_llama, tensors

from mconv.cli.app import run
from mconv.convert import plan
from mconv.convert.opening import open_checkpoint
from mconv.convert.rewrite import rewrite
from mconv.verify import digests
from mconv.verify.digests import compare, spec_differences

SPELLINGS = {
    "torch_dist": {"format": "torch_dist", "tp": 2},
    "mp_rank": {"format": "mp_rank", "tp": 2, "pp": 2},
    "vpp": {"format": "mp_rank", "pp": 2, "vpp": 2},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    make_llama(root / "hf", shard="60KB")
    for name, options in SPELLINGS.items():
        rewrite(plan.make(open_checkpoint(root / "hf"), root / name, **options), step="test")
    return root


@pytest.fixture
def changed(made, tmp_path):
    """A copy of the Hugging Face folder with some tensors replaced (None: removed), in one file."""

    def change(new, **config):
        folder = tmp_path / "changed"
        held = {name: t for name, t in ({**tensors(made / "hf"), **new}).items() if t is not None}
        folder.mkdir()
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
        shutil.copy(made / "hf/config.json", folder)
        edit_json(folder / "config.json", **config)
        return open_checkpoint(folder)

    return change


@pytest.mark.parametrize("a", ["hf", *SPELLINGS])
@pytest.mark.parametrize("b", ["hf", *SPELLINGS])
def test_every_spelling_holds_the_same_tensors(made, a, b):
    told = []
    one, two = open_checkpoint(made / a), open_checkpoint(made / b)
    report = compare(one, two, progress=told.append)
    assert report.same and report.tensors == 2 + 1 + 4 * 6 and not any(report.stale.values())
    assert sum(told) == digests.nbytes(one) + digests.nbytes(two) == 2 * report.nbytes


def test_one_bit_in_one_element_is_named_with_its_place(made, changed):
    name = "model.layers.2.self_attn.k_proj.weight"
    key = tensors(made / "hf")[name].clone()
    key[7, 5] += 0.5  # heads of 6 channels: group 1, channel 1, the slot after its two queries
    report = compare(open_checkpoint(made / "mp_rank"), changed({name: key}))
    (found,) = report.differences
    assert (found.tensor, found.how, found.elements, found.of) == ("layer.2.qkv.weight", "bits", 1, 16 * 6 * 48)
    assert found.at == {"g": 1, "s": 2, "h": 1, "d": 5} and found.largest == pytest.approx(0.5)
    assert not report.same and not report.spec


@pytest.mark.parametrize("slab", [64, 1 << 12])
def test_the_largest_difference_is_found_whatever_the_slabs(made, changed, monkeypatch, slab):
    monkeypatch.setattr(digests, "SLAB_BYTES", slab)
    name = "model.layers.0.mlp.up_proj.weight"
    up = tensors(made / "hf")[name].clone()
    up[3, 4], up[60, 47], up[9, 9] = up[3, 4] + 1, up[60, 47] - 3, up[9, 9] + 2
    (found,) = compare(open_checkpoint(made / "torch_dist"), changed({name: up})).differences
    assert found.elements == 3 and found.at == {"p": 1, "f": 60, "d": 47} and found.largest == pytest.approx(3)


def test_minus_zero_and_nan_are_bits(made, changed):
    held = tensors(made / "hf")
    zero, nan = held["model.norm.weight"].clone(), held["lm_head.weight"].clone()
    zero[0] = 0.0
    minus = zero.clone()
    minus[0] = -0.0
    nan[1, 2] = float("nan")
    one = changed({"model.norm.weight": zero, "lm_head.weight": nan})
    assert compare(one, one).same, "NaN equals itself"
    shutil.move(one.path, one.path.parent / "first")
    one = open_checkpoint(one.path.parent / "first")
    found = {d.tensor: d for d in compare(one, changed({"model.norm.weight": minus})).differences}
    assert found["final_norm.weight"].largest == 0.0 and found["final_norm.weight"].elements == 1
    assert found["head.weight"].nonfinite == 1 and found["head.weight"].largest is None
    assert found["head.weight"].a == "nan" and found["head.weight"].at == {"v": 1, "d": 2}


def test_another_dtype_with_and_without_the_same_values(made, changed):
    held = {name: t.bfloat16() for name, t in tensors(made / "hf").items()}
    rounded = changed(held)
    shutil.move(rounded.path, rounded.path.parent / "rounded")
    rounded = open_checkpoint(rounded.path.parent / "rounded")
    report = compare(open_checkpoint(made / "hf"), rounded)
    assert {d.how for d in report.differences} == {"dtype"} and len(report.differences) == report.tensors
    assert all(d.elements and 0 < d.largest < 0.01 for d in report.differences)
    again = compare(rounded, changed({name: t.float() for name, t in held.items()}))
    assert all(d.how == "dtype" and d.elements == 0 for d in again.differences) and not again.same


def test_what_is_missing_and_what_has_another_shape(made, tmp_path):
    make_llama(tmp_path / "less", num_hidden_layers=3, vocab_size=150, num_key_value_heads=8, tie_word_embeddings=True)
    report = compare(open_checkpoint(made / "hf"), open_checkpoint(tmp_path / "less"))
    how = {d.tensor: d.how for d in report.differences}
    assert how["layer.3.qkv.weight"] == how["head.weight"] == "missing"
    assert how["embed.weight"] == how["layer.0.qkv.weight"] == "shape" and how["layer.1.mlp_out.weight"] == "bits"
    qkv = next(d for d in report.differences if d.tensor == "layer.0.qkv.weight")
    assert (qkv.a, qkv.b) == ("(g 4, s 4, h 6) x d 48", "(g 8, s 3, h 6) x d 48")
    assert set(report.spec) == {"num_layers", "num_query_groups", "vocab_size", "tied_embeddings"}
    assert {d.b for d in report.differences if d.how == "missing"} == {"missing"}


@pytest.mark.parametrize(
    "config, says",
    [
        ({"rms_norm_eps": 1e-6}, {"norm_epsilon": (1e-5, 1e-6)}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope.base": (1e4, 5e5)}),
        ({"max_position_embeddings": 128}, {"max_position_embeddings": (256, 128)}),
    ],
    ids=str,
)
def test_what_is_no_tensor_is_compared_too(made, changed, config, says):
    report = compare(open_checkpoint(made / "hf"), changed({}, **config))
    assert report.spec == says and not report.differences and not report.same


def test_a_family_is_only_a_name_and_a_window_is_not(made):
    spec = open_checkpoint(made / "hf").spec
    assert spec_differences(spec, replace(spec, family="mistral")) == {}
    assert spec_differences(spec, replace(spec, family="mistral", sliding_window=16)) == {"sliding_window": (None, 16)}
    alibi = replace(spec, position="alibi")
    assert spec_differences(alibi, replace(alibi, rope=replace(spec.rope, base=5.0))) == {}


def test_zero_biases_that_megatron_adds_are_no_difference(tmp_path):
    hf = make_llama(tmp_path / "hf", num_hidden_layers=2, mlp_bias=True)
    rewrite(plan.make(open_checkpoint(hf), tmp_path / "megatron", format="mp_rank"), step="test")
    report = compare(open_checkpoint(hf), open_checkpoint(tmp_path / "megatron"))
    assert report.same and set(report.zero_biases) == {f"layer.{i}.{n}.bias" for i in (0, 1) for n in ("qkv", "attn_out")}
    file = tmp_path / "megatron/release/mp_rank_00/model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    state["model"]["decoder.layers.1.self_attention.linear_proj.bias"][3] = 1.0
    torch.save(state, file)
    report = compare(open_checkpoint(hf), open_checkpoint(tmp_path / "megatron"))
    assert [(d.tensor, d.how) for d in report.differences] == [("layer.1.attn_out.bias", "missing")]
    assert report.stale == {"a": (), "b": ()}, "a bias that the family cannot have has no digest"


# ---- as a user types it ----------------------------------------------------------------------------------------------
def test_exit_codes_and_words(made, changed, capsys):
    assert run(["verify", "--digests", str(made / "hf"), str(made / "vpp")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("SAME: hf (hf) and vpp/release (mp_rank, mcore, tp 1 x pp 2) hold the same 27 tensors")
    name = "model.layers.1.mlp.gate_proj.weight"
    other = changed({name: torch.zeros_like(tensors(made / "hf")[name])}, rms_norm_eps=1e-6).path
    assert run(["verify", str(made / "torch_dist"), str(other), "--digests"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("DIFFERENT") and "1e-05 against 1e-06" in out[1] and len(out) == 3
    assert "layer.1.mlp_in.weight" in out[2] and "bits: 3,072 of 6,144 elements differ" in out[2]
    assert run(["verify", str(made / "torch_dist"), str(other), "--digests", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["same"] and report["differences"][0]["at"]["p"] == 0


def test_a_manifest_that_disagrees_with_the_bytes_is_told(made, tmp_path, capsys):
    root = Path(shutil.copytree(made / "torch_dist", tmp_path / "td"))
    values = json.loads((root / "release/mconv.json").read_text())
    values["digests"]["layer.2.mlp_out.weight"] = "0" * len(values["digests"]["layer.2.mlp_out.weight"])
    (root / "release/mconv.json").write_text(json.dumps(values))
    assert run(["verify", "--digests", str(made / "hf"), str(root)]) == 0
    err = capsys.readouterr().err
    assert "layer.2.mlp_out.weight" in err and "not those of its bytes" in err


@pytest.mark.parametrize("option", ["--tp 2", "--length 32", "--record", "--dtype bf16", "--seed 1"])
def test_options_of_the_other_comparison_are_refused(made, capsys, option):
    assert run(["verify", "--digests", str(made / "hf"), str(made / "hf"), *option.split()]) == 2
    assert option.split()[0] in capsys.readouterr().err


def test_copies_that_differ_cannot_be_judged(made, tmp_path, capsys):
    root = Path(shutil.copytree(made / "mp_rank", tmp_path / "mp"))
    file = root / "release/mp_rank_01_000/model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    state["model"]["decoder.layers.0.input_layernorm.weight"][0] += 1
    torch.save(state, file)
    assert run(["verify", "--digests", str(made / "hf"), str(root)]) == 2
    assert "copies of layer.0.attn_norm.weight but differ" in capsys.readouterr().err
    assert run(["verify", "--digests", str(made / "hf"), str(tmp_path / "nowhere")]) == 2
