"""`mconv verify --digests`: which logical tensors of two checkpoints differ, and how, whatever their spellings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import save_file
from tiny import edit_json, make_llama, tensors

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.spec import Rope
from mconv.verify import digests
from mconv.verify.digests import compare, spec_differences
from mconv.verify.recorded_verdicts import valid_verdicts

pytestmark = pytest.mark.once

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


def test_a_cast_is_the_same_after_rounding_and_says_so(made, changed, capsys):
    rounded = changed({name: t.bfloat16() for name, t in tensors(made / "hf").items()})
    for one, two, dtypes in (
        (made / "hf", rounded.path, ("fp32", "bf16")),
        (rounded.path, made / "hf", ("bf16", "fp32")),
    ):
        report = compare(open_checkpoint(one), open_checkpoint(two))
        assert report.same and not report.exact and len(report.cast) == 27 and set(report.cast.values()) == {dtypes}
        assert run(["verify", "--digests", str(one), str(two)]) == 0
        out = capsys.readouterr().out
        assert "bit for bit" not in out.splitlines()[0] and out.splitlines()[0].endswith("after rounding fp32 to bf16")
        who = ("b", "a's") if dtypes[0] == "fp32" else ("a", "b's")
        assert f"27 tensors are held in bf16 by {who[0]}, and are {who[1]} rounded from fp32" in out


def test_a_cast_that_is_more_than_rounding_differs(made, changed):
    held = tensors(made / "hf")
    name, big = "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.down_proj.weight"
    held[big][0, 0] = 1e6  # fits bf16, not fp16
    new = {n: t.half() for n, t in held.items()}
    new[name][3, 4] += 0.5
    one = changed(held)
    shutil.move(one.path, one.path.parent / "first")
    report = compare(open_checkpoint(one.path.parent / "first"), changed(new))
    found = {d.tensor: d for d in report.differences}
    assert set(found) == {"layer.1.mlp_in.weight", "layer.2.mlp_out.weight"} and len(report.cast) == 25
    assert found["layer.1.mlp_in.weight"].elements == 1 and found["layer.1.mlp_in.weight"].dtypes == ("fp32", "fp16")
    assert found["layer.2.mlp_out.weight"].nonfinite == 1, "an overflow is no rounding"


def test_of_bf16_and_fp16_either_may_be_the_other_rounded(made, changed):
    half = changed({name: t.half() for name, t in tensors(made / "hf").items()})
    shutil.move(half.path, half.path.parent / "half")
    half = open_checkpoint(half.path.parent / "half")
    brain = changed({name: t.half().bfloat16() for name, t in tensors(made / "hf").items()})
    assert compare(half, brain).same and compare(brain, half).same and len(compare(half, brain).cast) == 27
    shutil.move(brain.path, brain.path.parent / "brain")
    name = "model.norm.weight"
    other = changed({n: t.half().bfloat16() * (1 + (n == name)) for n, t in tensors(made / "hf").items()})
    assert [d.tensor for d in compare(half, other).differences] == ["final_norm.weight"]


def test_what_is_missing_and_what_has_another_shape(made, tmp_path):
    make_llama(tmp_path / "less", num_hidden_layers=3, vocab_size=150, num_key_value_heads=8, tie_word_embeddings=True)
    report = compare(open_checkpoint(made / "hf"), open_checkpoint(tmp_path / "less"))
    how = {d.tensor: d.how for d in report.differences}
    assert how["layer.3.qkv.weight"] == "missing" and how["head.weight"] == "shape", "a tied head is the embedding"
    assert how["embed.weight"] == how["layer.0.qkv.weight"] == "shape" and how["layer.1.mlp_out.weight"] == "bits"
    qkv = next(d for d in report.differences if d.tensor == "layer.0.qkv.weight")
    assert (qkv.a, qkv.b) == ("(g 4, s 4, h 6) x d 48", "(g 8, s 3, h 6) x d 48")
    assert set(report.spec) == {"num_layers", "num_query_groups", "vocab_size", "tied_embeddings"}
    assert {d.b for d in report.differences if d.how == "missing"} == {"missing"}


# ---- where -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spelling", ["mp_rank", "torch_dist"])
def test_a_fault_in_one_shard_is_found_there_and_its_rank_is_named(made, changed, spelling, capsys):
    names = [f"model.layers.2.self_attn.{n}_proj.weight" for n in "qkv"]
    held = {name: tensors(made / "hf")[name].clone() for name in names}
    held[names[0]][30:40] += 1.0  # heads of 6 channels, two queries a group: groups 2 and 3
    one, two = changed(held), open_checkpoint(made / spelling)
    (found,) = compare(one, two).differences
    assert found.extent == {"g": [2, 3], "s": [0, 1], "h": [0, 5], "d": [0, 47]} and found.of_pieces == 2
    assert found.a_pieces == () and found.of_a_pieces == 0, "Hugging Face's file has no ranks"
    assert (
        found.pieces
        == {
            "mp_rank": ("mp_rank_01_001/model/decoder.layers.0.self_attention.linear_qkv.weight",),
            "torch_dist": ("decoder.layers.self_attention.linear_qkv.weight@2,48,0",),
        }[spelling]
    )
    assert [digests.tp_ranks(found, two.family, two.spec, tp=n) for n in (1, 2, 4, 8)] == [[0], [1], [2, 3], [4, 6]]
    (back,) = compare(two, one).differences
    assert back.a_pieces == found.pieces and back.pieces == (names[0],) and back.of_pieces == 3
    assert run(["verify", "--digests", str(one.path), str(made / spelling)]) == 1
    assert f"only in {found.pieces[0]}, of the 2 pieces of b" in capsys.readouterr().out


def test_the_ranks_of_rows_that_are_not_cut_or_padded(made, changed):
    held = tensors(made / "hf")
    norm, embed = held["model.norm.weight"].clone(), held["model.embed_tokens.weight"].clone()
    norm[3] += 1
    embed[140:] += 1
    two = changed({"model.norm.weight": norm, "model.embed_tokens.weight": embed})
    found = {d.tensor: d for d in compare(open_checkpoint(made / "mp_rank"), two).differences}
    assert digests.tp_ranks(found["final_norm.weight"], two.family, two.spec, tp=2) == [0, 1]
    assert found["embed.weight"].extent["v"] == [140, 150]
    assert digests.tp_ranks(found["embed.weight"], two.family, two.spec, tp=2) == [1], "256 rows, 128 a rank"
    assert digests.tp_ranks(found["embed.weight"], two.family, two.spec, tp=2, padded_vocab_size=320) == [0]


# ---- vocabularies ----------------------------------------------------------------------------------------------------
def test_rows_beyond_the_vocabulary_are_counted_and_those_of_both_compared(made, changed, capsys):
    names = ("model.embed_tokens.weight", "lm_head.weight")
    held = {name: tensors(made / "hf")[name] for name in names}
    more = {name: torch.cat([t, torch.zeros(5, 48)]) for name, t in held.items()}
    more[names[1]] = more[names[1]].clone()
    more[names[1]][[7, 153]] += 1.0
    one, two = open_checkpoint(made / "hf"), changed(more, vocab_size=156)
    found = {d.tensor: d for d in compare(one, two).differences}
    assert all(d.how == "shape" and d.rows == 5 and d.of == 151 * 48 for d in found.values()) and len(found) == 2
    assert found["embed.weight"].elements == 0 and found["embed.weight"].rows_zero
    assert found["head.weight"].elements == 48 and not found["head.weight"].rows_zero
    assert found["head.weight"].extent["v"] == [7, 7]
    assert run(["verify", "--digests", str(one.path), str(two.path)]) == 1
    assert "b has 5 rows more than a (zero: its padding leaked), and of the rows of both all" in capsys.readouterr().out
    back = compare(two, open_checkpoint(made / "mp_rank"))
    assert {d.rows for d in back.differences} == {-5} and not any(back.stale.values())


# ---- what is no tensor -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config, says",
    [
        ({"rms_norm_eps": 1e-6}, {"norm_epsilon": (1e-5, 1e-6)}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope.base": (1e4, 5e5)}),
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


def test_a_limit_is_no_part_of_the_function(made, changed, capsys):
    two = changed({}, max_position_embeddings=128)
    report = compare(open_checkpoint(made / "hf"), two)
    assert report.same and report.exact and not report.spec and report.noted == {"max_position_embeddings": (256, 128)}
    assert run(["verify", "--digests", str(made / "hf"), str(two.path)]) == 0
    assert "256 against 128: the same function" in capsys.readouterr().out


@pytest.mark.parametrize(
    "a, b, differ",
    [
        (Rope(), Rope(factor=8.0, low_freq_factor=2.0, original_max_position_embeddings=4096), set()),
        (Rope(kind="linear", factor=4.0), Rope(kind="linear", factor=4.0, high_freq_factor=9.0), set()),
        (Rope(kind="linear", factor=1.0), Rope(), set()),
        (Rope(base=500000.0), Rope(base=500000.0 * (1 + 4e-8)), set()),
        (Rope(kind="linear", factor=4.0), Rope(), {"rope.kind", "rope.factor"}),
        (Rope(kind="llama3", factor=8.0), Rope(kind="llama3", factor=32.0), {"rope.factor"}),
        (Rope(kind="llama3", factor=8.0), Rope(kind="llama3", factor=8.0, low_freq_factor=2.0), {"rope.low_freq_factor"}),
        (Rope(base=1e6), Rope(base=1e4), {"rope.base"}),
    ],
    ids=range(8),
)  # fmt: skip
def test_only_what_a_kind_of_rope_computes_with_counts(made, a, b, differ):
    spec = open_checkpoint(made / "hf").spec
    for one, two in ((a, b), (b, a)):
        assert set(spec_differences(replace(spec, rope=one), replace(spec, rope=two))) == differ


def test_a_head_that_is_the_embedding_is_tied_whoever_says_so(made, changed, tmp_path, capsys):
    tied = make_llama(tmp_path / "tied", tie_word_embeddings=True)
    embed = tensors(tied)["model.embed_tokens.weight"]
    other = embed.clone()
    other[9, 9] += 1
    for head, same in ((embed, True), (other, False)):
        folder = Path(shutil.copytree(tied, tmp_path / f"untied-{same}"))
        save_file({**tensors(tied), "lm_head.weight": head.clone()}, folder / "model.safetensors", {"format": "pt"})
        edit_json(folder / "config.json", tie_word_embeddings=False)
        for pair in ((tied, folder), (folder, tied)):
            report = compare(*map(open_checkpoint, pair))
            assert report.same == report.exact == same and ("tied_embeddings" in report.noted) == same
            assert [d.tensor for d in report.differences] == [] if same else ["head.weight"]
            assert set(report.spec) == (set() if same else {"tied_embeddings"})
            json.dumps(report.to_dict())
    (found,) = report.differences
    assert found.how == "bits" and found.elements == 1 and found.at == {"v": 9, "d": 9}


def test_a_tied_embedding_is_read_twice_and_told_once(tmp_path):
    tied, untied = make_llama(tmp_path / "tied", tie_word_embeddings=True), tmp_path / "untied"
    rewrite(plan.make(open_checkpoint(tied), tmp_path / "td", format="torch_dist"), step="test")
    manifest = tmp_path / "td/release/mconv.json"
    digests_of = json.loads(manifest.read_text())["digests"]
    edit_json(manifest, digests={**digests_of, "embed.weight": "0" * 32})
    embed = torch.cat([tensors(tied)["model.embed_tokens.weight"], torch.ones(3, 48)])
    shutil.copytree(tied, untied)
    both = {"model.embed_tokens.weight": embed, "lm_head.weight": embed.clone()}
    save_file({**tensors(tied), **both}, untied / "model.safetensors", {"format": "pt"})
    edit_json(untied / "config.json", tie_word_embeddings=False, vocab_size=154)
    report = compare(open_checkpoint(tmp_path / "td"), open_checkpoint(untied))
    assert report.stale == {"a": ("embed.weight",), "b": ()}
    assert set(report.spec) == {"vocab_size"} and set(report.noted) == {"tied_embeddings"}, "the rows of both are tied"
    assert [(d.tensor, d.rows, d.elements) for d in report.differences] == [("embed.weight", 3, 0), ("head.weight", 3, 0)]


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
    assert out[0].startswith("DIFFERENT") and "1e-05 against 1e-06" in out[1] and len(out) == 5
    assert "layer.1.mlp_in.weight" in out[2] and "bits: 3,072 of 6,144 elements differ" in out[2]
    assert "layer 1 mlp_in.weight: the gate half of it is zero" in out[3] and "norm_epsilon" in out[4]
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


@pytest.fixture
def disagreeing(made, tmp_path):
    """A checkpoint in which the second tensor rank has other values in a norm of its own copy."""
    root = Path(shutil.copytree(made / "mp_rank", tmp_path / "mp"))
    file = root / "release/mp_rank_01_000/model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    state["model"]["decoder.layers.0.input_layernorm.weight"][0] += 1
    torch.save(state, file)
    return root


ONE = ["--tp", "1", "--pp", "1", "--length", "16", "--batch", "1"]


@pytest.mark.parametrize("mode", [["--digests"], ONE, ["--logits", *ONE]], ids=["digests", "both", "logits"])
def test_copies_that_differ_are_wrong_in_every_mode(made, disagreeing, capsys, mode):
    """One answer: exit 1, with the tensor and the rank named, for people and for programs."""
    names = ["layer.0.attn_norm.weight", "mp_rank_01_000/model/decoder.layers.0.input_layernorm.weight"]
    assert run(["verify", str(made / "hf"), str(disagreeing), *mode]) == 1
    told = capsys.readouterr().out
    assert told.startswith("WRONG") and all(name in told for name in names)
    assert run(["verify", str(made / "hf"), str(disagreeing), *mode, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    other = names[1].replace("rank_01", "rank_00")
    assert not report["passed"] and report["verdicts"]["digests"] == "fail" and report["verdicts"]["logits"] == "not run"
    assert report["replicas"] == {"a": {}, "b": {names[0]: [other, names[1]]}} and not report["differences"]
    [reason] = report["failures"]
    assert all(name in reason for name in names)
    jsonschema.validate(report, json.loads((Path(digests.__file__).parent / "report.schema.json").read_text()))


def test_what_was_judged_wrong_is_recorded_and_does_not_count(made, disagreeing):
    assert run(["verify", str(made / "hf"), str(disagreeing), *ONE, "--record"]) == 1
    kept = json.loads((disagreeing / "release/mconv.json").read_text())["verified"]
    assert kept[-1]["digests"] == "fail" and valid_verdicts(open_checkpoint(disagreeing)) == []


def test_copies_that_differ_are_not_converted(disagreeing, tmp_path, capsys):
    for command in (["meg2hf"], ["reshard", "--tp", "1"], ["merge"]):
        assert run([command[0], str(disagreeing), "--out", str(tmp_path / "out"), *command[1:]]) == 2
        assert "mp_rank_01_000/model/decoder.layers.0.input_layernorm.weight" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_what_is_not_there_cannot_be_judged(made, tmp_path):
    assert run(["verify", "--digests", str(made / "hf"), str(tmp_path / "nowhere")]) == 2
