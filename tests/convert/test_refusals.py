"""Every wrong input is refused once, by name, as a MconvError, and leaves nothing behind."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import edit_json, make_llama

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders.kinds import TRACKER
from mconv.errors import ConfigError, FormatError, LayoutError, MconvError

ROPE3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WEIGHTS, INDEX, RANK = "model.safetensors", "model.safetensors.index.json", "model_optim_rng.pt"


def convert(source, out, **options):
    options = {"format": "mp_rank", **options}
    return rewrite(plan.make(open_checkpoint(source), out, **options), step="test")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One small model in each format."""
    root = tmp_path_factory.mktemp("made")
    hf = make_llama(root / "hf", num_hidden_layers=2)
    make_llama(root / "shards", num_hidden_layers=2, shard="40KB")
    make_llama(root / "tied", num_hidden_layers=2, tie_word_embeddings=True)
    convert(hf, root / "torch_dist", format="torch_dist", tp=2, pp=2)
    convert(hf, root / "mp_rank", tp=2, pp=2)
    return root


@pytest.fixture
def copy(made, tmp_path):
    """A copy that a test may spoil."""
    return lambda name: Path(shutil.copytree(made / name, tmp_path / name))


def refused(kind, says, call, *args, **options):
    with pytest.raises(kind) as caught:
        call(*args, **options)
    for word in [says] if isinstance(says, str) else says:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


# ---- config.json -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", [None, "", "{", "[]", '"x"', "5", "null", "[" * 100_000, "\xff\xfe"])
def test_config_that_is_not_a_json_object(copy, text):
    hf = copy("hf")
    (hf / "config.json").unlink()
    if text is not None:
        (hf / "config.json").write_bytes(text.encode("latin-1"))
    refused(FormatError, "config.json", open_checkpoint, hf)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"frobnicate": 1}, "frobnicate"),
        ({"sliding_window": 40}, "sliding_window"),
        ({"model_type": "bert"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"architectures": ["Other"]}, "architectures"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"hidden_size": 48.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": [48]}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_layers"),
        ({"num_hidden_layers": -2}, "num_layers"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads"),
        ({"num_attention_heads": -8, "num_key_value_heads": None, "head_dim": None}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_key_value_heads": 0}, "num_query_groups"),
        ({"head_dim": -6}, "kv_channels"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": False}, "vocab_size"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "beta"),
        ({"rope_parameters": ROPE3 | {"factor": None}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "type": "default", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1e4}, "rope_theta"),
        ({"rope_theta": "x"}, "rope_theta"),
        ({"rope_theta": [1], "rope_parameters": None}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "x"}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": [2]}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": True}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, "rope_type"),
        ({"rope_parameters": ROPE3 | {"original_max_position_embeddings": 64.7}}, "original_max"),
        ({"rope_theta": -1.0, "rope_parameters": None}, "rope_theta"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rms_norm_eps": -1.0}, "eps"),
        ({"rms_norm_eps": float("nan")}, "eps"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_config_that_is_wrong(copy, change, says):
    hf = copy("hf")
    edit_json(hf / "config.json", **change)
    refused(ConfigError, says, open_checkpoint, hf)


# ---- safetensors -----------------------------------------------------------------------------------------------------
def weights(change):
    """Spoils the tensors of a folder."""

    def spoil(hf):
        tensors = load_file(hf / WEIGHTS)
        change(tensors)
        save_file({k: v.contiguous() for k, v in tensors.items()}, hf / WEIGHTS, metadata={"format": "pt"})

    return spoil


def header(change):
    """Spoils the header of a safetensors file, bytes untouched."""

    def spoil(hf):
        data = (hf / WEIGHTS).read_bytes()
        n = int.from_bytes(data[:8], "little")
        values = json.loads(data[8 : 8 + n])
        text = json.dumps(change(values) or values).encode()
        (hf / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])

    return spoil


def cut(name, to):
    def spoil(folder):
        file = next(iter(sorted(folder.rglob(name))))
        file.write_bytes(file.read_bytes()[:to])

    return spoil


K, NORM = "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"


@pytest.mark.parametrize(
    "spoil, says",
    [
        (weights(lambda t: t.pop(K)), K),
        (weights(lambda t: t.update(extra=torch.ones(2))), "extra"),
        (weights(lambda t: t.update({"model.layers.2.input_layernorm.weight": torch.ones(48)})), "layers.2"),
        (weights(lambda t: t.update({K: t[K][:-1]})), (K, "(23, 48)", "(24, 48)")),
        (weights(lambda t: t.update({K: t[K].T})), K),
        (weights(lambda t: t.update({K: t[K].to(torch.int8)})), (K, "int8")),
        (weights(lambda t: t.update({K: t[K].to(torch.float8_e4m3fn)})), (K, "float8")),
        (cut(WEIGHTS, -1), WEIGHTS),
        (cut(WEIGHTS, 5), WEIGHTS),
        (cut(WEIGHTS, 0), WEIGHTS),
        (cut(WEIGHTS, 100), WEIGHTS),
        (lambda hf: (hf / WEIGHTS).write_bytes((hf / WEIGHTS).read_bytes() + b"x"), WEIGHTS),
        (lambda hf: (hf / WEIGHTS).write_bytes(b"\xff" * 64), WEIGHTS),
        (lambda hf: (hf / WEIGHTS).unlink(), WEIGHTS),
        (header(lambda h: [1]), WEIGHTS),
        (header(lambda h: dict.fromkeys(h, 5)), WEIGHTS),
        (header(lambda h: h[NORM].update(data_offsets=[0, 192])), (WEIGHTS, "overlap")),
        (header(lambda h: h.__delitem__(K)), (WEIGHTS, "hole")),
        (header(lambda h: h[NORM].update(shape=[10**18])), NORM),
        (header(lambda h: h[NORM].update(shape=[-48])), NORM),
        (header(lambda h: h[NORM].update(shape=["48"])), NORM),
        (header(lambda h: h[NORM].update(dtype="F4")), (NORM, "F4")),
        (header(lambda h: h[NORM].update(dtype=["F32"])), WEIGHTS),
        (header(lambda h: h[NORM].update(data_offsets=[1])), WEIGHTS),
    ],
)
def test_weights_that_are_wrong(copy, tmp_path, spoil, says):
    hf = copy("hf")
    spoil(hf)
    refused(FormatError, says, convert, hf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(copy, tmp_path, value):
    hf = copy("hf")
    weights(lambda t: t[K][3].fill_(value))(hf)
    refused(FormatError, ("layer.1.qkv.weight", "--allow-nonfinite"), convert, hf, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rewrite(plan.make(open_checkpoint(hf), tmp_path / "out", format="hf"), step="test", allow_nonfinite=True)
    assert (
        load_file(tmp_path / "out" / WEIGHTS)[K][3].view(torch.int32) == load_file(hf / WEIGHTS)[K][3].view(torch.int32)
    ).all()


def test_a_cast_that_overflows(copy, tmp_path):
    hf = copy("hf")
    weights(lambda t: t[K][3].fill_(1e30))(hf)
    refused(FormatError, ("layer.1.qkv.weight", "float16"), convert, hf, tmp_path / "out", dtype="fp16")


def test_parts_of_one_tensor_of_several_dtypes(copy, tmp_path):
    hf = copy("hf")
    weights(lambda t: t.update({K: t[K].bfloat16()}))(hf)
    refused(FormatError, ("layer.1.qkv.weight", "bfloat16", "--dtype"), convert, hf, tmp_path / "out")


def test_the_advice_about_several_dtypes_works(copy, tmp_path):
    hf = copy("hf")
    weights(lambda t: t.update({K: t[K].bfloat16()}))(hf)
    convert(hf, tmp_path / "out", dtype="fp32")


def test_a_tied_head_that_differs(copy, tmp_path):
    hf = copy("tied")
    weights(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))(hf)
    refused(FormatError, ("lm_head.weight", "embed"), convert, hf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def index(change):
    def spoil(hf):
        values = json.loads((hf / INDEX).read_text())
        values = change(values["weight_map"], values) or values
        (hf / INDEX).write_text(json.dumps(values))

    return spoil


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda hf: next(hf.glob("model-00002*")).unlink(), "model-00002"),
        (cut("model-00002*", -4), "model-00002"),
        (index(lambda m, v: m.update(ghost=m[NORM])), "ghost"),
        (index(lambda m, v: m.pop(NORM) and None), NORM),
        (index(lambda m, v: m.update({NORM: m["model.embed_tokens.weight"]})), NORM),
        (index(lambda m, v: m.update({NORM: "../hf/model.safetensors"})), "../hf"),
        (index(lambda m, v: m.update({NORM: "/etc/passwd"})), "/etc/passwd"),
        (index(lambda m, v: m.update({NORM: ".."})), ".."),
        (index(lambda m, v: m.update({NORM: ""})), INDEX),
        (index(lambda m, v: m.update({NORM: 5})), INDEX),
        (index(lambda m, v: {"weight_map": []}), INDEX),
        (index(lambda m, v: {"x": 1}), INDEX),
        (index(lambda m, v: [1]), INDEX),
        (lambda hf: (hf / INDEX).write_text("{"), INDEX),
    ],
)
def test_an_index_that_is_wrong(copy, spoil, says):
    hf = copy("shards")
    spoil(hf)
    refused(FormatError, says, open_checkpoint, hf)


def test_a_single_file_beside_an_index(copy, made):
    hf = copy("shards")
    shutil.copy(made / "hf" / WEIGHTS, hf)
    refused(FormatError, (WEIGHTS, INDEX), open_checkpoint, hf)


# ---- layouts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options, says",
    [
        ({"tp": 3}, ("layer.qkv.weight", "does not divide 4 query groups", "tp 3", "1, 2, 4")),
        ({"tp": 5}, ("layer.mlp_in.weight", "tp 5 does not divide 64 rows of the MLP")),
        ({"tp": 64}, ("layer.qkv.weight", "tp can be 1, 2, 4")),
        ({"tp": 0}, "tp 0"),
        ({"tp": -2}, "tp -2"),
        ({"pp": 0}, "pp 0"),
        ({"vpp": -1}, "vpp -1"),
        ({"pp": 3}, ("2 layers", "pp 3", "pp can be 1, 2")),
        ({"pp": 4}, "pp 4"),
        ({"pp": 2, "vpp": 2}, "2 virtual chunks"),
        ({"vpp": 2}, "vpp 2 needs pp > 1"),
        ({"tp": 3, "pp": 3}, ("layer.qkv.weight", "2 layers")),
        ({"vocab_multiple": 0}, "multiple"),
        ({"vocab_multiple": -128}, "multiple"),
        ({"format": "hf", "tp": 2}, "tp"),
        ({"dtype": "int8"}, ("int8", "bf16")),
        ({"format": "hf", "shard_bytes": 0}, "0 bytes"),
        ({"vocab_multiple": 10**13}, "GB free"),
    ],
    ids=str,
)
@pytest.mark.parametrize("format", ["mp_rank", "torch_dist"])
def test_a_plan_that_cannot_be(made, tmp_path, options, says, format):
    refused(MconvError, says, convert, made / "hf", tmp_path / "out", **({"format": format} | options))
    assert not list(tmp_path.iterdir())


def test_all_problems_are_listed_at_once(made, tmp_path):
    with pytest.raises(LayoutError) as caught:
        convert(made / "hf", tmp_path / "out", tp=3, pp=3)
    assert {"layer.qkv.weight", "layer.attn_out.weight", "layer.mlp_in.weight", "layer.mlp_out.weight"} <= {
        word.strip("(),;") for word in str(caught.value).split()
    }


# ---- where to write --------------------------------------------------------------------------------------------------
def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "out, says",
    [
        ("thesis", "thesis"),
        ("file", "file"),
        ("mp_rank", "mp_rank"),
        ("mp_rank/release", "source"),
        (".", "source"),
    ],
)
def test_what_is_there_is_not_touched(copy, tmp_path, out, says, overwrite):
    copy("mp_rank")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years")
    (tmp_path / "file").write_text("x")
    before = tree(tmp_path)
    for format in ("hf", "torch_dist"):
        refused(MconvError, says, convert, tmp_path / "mp_rank", tmp_path / out, format=format, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_overwrite_spares_a_project_that_happens_to_have_a_config_json(made, tmp_path):
    (tmp_path / "app/src").mkdir(parents=True)
    (tmp_path / "app/config.json").write_text('{"port": 80}')
    (tmp_path / "app/src/main.js").write_text("x")
    refused(MconvError, "app", convert, made / "mp_rank", tmp_path / "app", format="hf", overwrite=True)
    assert (tmp_path / "app/src/main.js").exists()


def test_the_current_folder_can_hold_a_megatron_root_but_not_be_replaced_by_a_model(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(MconvError, "is the current working directory", convert, made / "mp_rank", Path(), format="hf")
    convert(made / "mp_rank", Path(), format="torch_dist")
    assert (tmp_path / TRACKER).exists() and (tmp_path / "release").is_dir()


@pytest.mark.parametrize(
    "out",
    [
        ("file/below/out"),
        ("x" * 300),
        ("mp_rank/release/inside"),
    ],
)
def test_a_target_that_cannot_be_made_is_refused_by_the_plan(copy, tmp_path, out):
    copy("mp_rank")
    (tmp_path / "file").write_text("x")
    with pytest.raises(MconvError):
        plan.make(open_checkpoint(tmp_path / "mp_rank"), tmp_path / out, format="hf")


# ---- trackers, manifests, folders ------------------------------------------------------------------------------------
@pytest.mark.parametrize("word", ["", "x", "-1", "7", "../hf", "release2", "1e3", "9" * 40, "\0", "iter_0000001"])
def test_a_tracker_with_nonsense(copy, word):
    root = copy("mp_rank")
    (root / TRACKER).write_text(word)
    refused(FormatError, TRACKER if word != "7" else "iter_0000007", open_checkpoint, root)


def test_an_iteration_that_is_not_there(made):
    refused(FormatError, "iter_0000009", open_checkpoint, made / "mp_rank", iteration=9)


@pytest.mark.parametrize("option", [{"iteration": 9}, {"vocab_size": 7}])
def test_options_of_megatron_for_a_hugging_face_folder(made, option):
    with pytest.raises(MconvError):
        open_checkpoint(made / "hf", **option)


@pytest.mark.parametrize("what", ["nothing", "file", "empty"])
def test_what_is_no_checkpoint(tmp_path, what):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    refused(FormatError, what, open_checkpoint, tmp_path / what)


def manifest(change):
    def spoil(folder):
        values = json.loads((folder / "mconv.json").read_text())
        (folder / "mconv.json").write_text(json.dumps(change(values) or values))

    return spoil


def spec(**changes):
    return manifest(lambda m: m["spec"].update(changes))


@pytest.mark.parametrize("format", ["torch_dist", "mp_rank"])
@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda f: (f / "mconv.json").write_text("{"), "mconv.json"),
        (lambda f: (f / "mconv.json").write_text("[]"), "mconv.json"),
        (spec(num_layers=3), "num_layers"),
        (spec(hidden_size=64), "hidden_size"),
        (spec(norm_epsilon=1e-6), "norm_epsilon"),
        (spec(vocab_size=10_000), "10000"),
        (spec(whatever=1), "whatever"),
        (spec(rope={"zzz": 1}), "zzz"),
        (spec(family="falcon9"), "falcon9"),
        (manifest(lambda m: m["spec"].pop("rope") and None), "rope"),
        (manifest(lambda m: m["spec"].pop("num_layers") and None), "num_layers"),
        (manifest(lambda m: m.update(spec="x")), "spec"),
        (manifest(lambda m: {"mconv": "0"}), "mconv.json"),
        (spec(vocab_size=100), "100"),
    ],
)
def test_a_manifest_that_is_wrong(copy, format, spoil, says):
    root = copy(format)
    spoil(root / "release")
    refused(MconvError, says, open_checkpoint, root)


def test_a_manifest_that_lies_about_a_digest(copy, tmp_path):
    root = copy("mp_rank")
    manifest(lambda m: m["digests"].update({"final_norm.weight": "0" * 64}))(root / "release")
    refused(FormatError, ("final_norm.weight", "mconv.json"), convert, root, tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()


# ---- Megatron --------------------------------------------------------------------------------------------------------
def resave(name, change):
    """Spoils a file of torch.save; the manifest goes, so that only the file speaks."""

    def spoil(folder):
        value = torch.load(folder / name, weights_only=False)
        changed = change(value)
        torch.save(changed if isinstance(changed, list) else value, folder / name)
        (folder / "mconv.json").unlink()

    return spoil


def args(**changes):
    return resave("common.pt", lambda c: vars(c["args"]).update(changes))


def without(name):
    return resave("common.pt", lambda c: delattr(c["args"], name))


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda f: (f / ".metadata").unlink(), ".metadata"),
        (lambda f: (f / "metadata.json").unlink(), "metadata.json"),
        (lambda f: (f / "common.pt").unlink(), "common.pt"),
        (lambda f: (f / "__0_0.distcp").unlink(), "__0_0.distcp"),
        (lambda f: (f / "metadata.json").write_text('{"sharded_backend": "zarr"}'), "zarr"),
        (cut("__0_0.distcp", -1), "__0_0.distcp"),
        (cut("__0_0.distcp", 1000), "__0_0.distcp"),
        (cut("__0_0.distcp", 0), "__0_0.distcp"),
        (cut("common.pt", -30), "common.pt"),
        (cut(".metadata", -10), ".metadata"),
        (cut(".metadata", 0), ".metadata"),
        (resave("common.pt", lambda c: c.pop("args") and None), "args"),
        (resave("common.pt", lambda c: c.update(args=5)), "args"),
        (args(num_experts=8), "num_experts"),
        (args(swiglu=False), "swiglu"),
        (args(num_layers=None), "num_layers"),
        (args(num_layers=4), "(2, 48)"),
        (args(vocab_size=None), "--vocab-size"),
        (args(vocab_size=257), "257"),
        (args(vocab_size="x"), "vocab_size"),
        (args(padded_vocab_size=10**15), "embedding"),
        (args(num_query_groups=3), "num_query_groups"),
        (args(position_embedding_type="yarn"), "yarn"),
        (args(use_rope_scaling=True, rotary_seq_len_interpolation_factor=2), "at once"),
        (lambda f: (f / "metadata.json").write_text("{"), "metadata.json"),
        (lambda f: (f / "metadata.json").write_text("[]"), "metadata.json"),
        (resave("common.pt", lambda c: [1]), "common.pt"),
        (without("num_query_groups"), "num_query_groups"),
        (args(tensor_model_parallel_size="2"), "tensor_model_parallel_size"),
        (args(padded_vocab_size="256"), "padded_vocab_size"),
        (args(layernorm_epsilon="x"), "layernorm_epsilon"),
        (args(layernorm_epsilon=float("nan")), "epsilon"),
        (args(rotary_base="x"), "rotary_base"),
        (args(rotary_base=-1), "rotary_base"),
        (args(rotary_seq_len_interpolation_factor="z"), "interpolation"),
        (args(qk_l2_norm=True), "qk_l2_norm"),
        (args(layernorm_zero_centered_gamma=True), "zero_centered"),
        (args(rope_type="yarn"), "rope_type"),
        (args(mrope_section=[1, 1, 1]), "mrope_section"),
    ],
)
def test_a_torch_dist_that_is_wrong(copy, spoil, says):
    root = copy("torch_dist")
    spoil(root / "release")
    refused(MconvError, says, open_checkpoint, root)


@pytest.mark.parametrize("size", [(100), (0), 257, -1])
def test_a_vocabulary_size_that_contradicts_the_checkpoint(copy, size):
    root = copy("torch_dist")
    (root / "release/mconv.json").unlink()
    with pytest.raises(MconvError, match=str(size)):
        open_checkpoint(root, vocab_size=size)


def rank(change, name="mp_rank_01_000"):
    return resave(f"{name}/{RANK}", change)


INPUT = "decoder.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda f: shutil.rmtree(f / "mp_rank_01_001"), "mp_rank_01_001"),
        (lambda f: (f / "mp_rank_01_001" / RANK).unlink(), f"mp_rank_01_001/{RANK}"),
        (cut(RANK, -30), RANK),
        (cut(RANK, 0), RANK),
        (rank(lambda s: s["model"].__delitem__(INPUT)), f"mp_rank_01_000/model/{INPUT}"),
        (rank(lambda s: s["model"].update(ghost=torch.ones(1))), "mp_rank_01_000/model/ghost"),
        (rank(lambda s: s["model"].update({INPUT: 5})), INPUT),
        (rank(lambda s: s["model"].update({INPUT: torch.ones(7)})), (INPUT, "(7,)", "(48,)")),
        (rank(lambda s: s["model"].update({INPUT: torch.ones(96)[::2]})), RANK),
        (rank(lambda s: s["model"].update({INPUT: torch.ones(48).to(torch.int32)})), (INPUT, "int32")),
        (rank(lambda s: s.update(model=[1])), RANK),
        (rank(lambda s: s.pop("model") and None), RANK),
        (rank(lambda s: [1]), RANK),
        (lambda f: shutil.copytree(f / "mp_rank_00_000", f / "mp_rank_02_000"), "mp_rank_02_000"),
        (rank(lambda s: s.update({5: 1})), RANK),
        (rank(lambda s: s.update(iteration=999)), "mp_rank_01_000"),
        (rank(lambda s: setattr(s["args"], "rotary_base", 5)), "mp_rank_01_000"),
    ],
)
def test_an_mp_rank_that_is_wrong(copy, spoil, says):
    root = copy("mp_rank")
    spoil(root / "release")
    refused(MconvError, says, open_checkpoint, root)


def test_a_norm_that_differs_between_ranks(copy, tmp_path):
    root = copy("mp_rank")
    rank(lambda s: s["model"][INPUT].add_(1))(root / "release")
    says = (f"mp_rank_01_000/model/{INPUT}", f"mp_rank_00_000/model/{INPUT}", "differ")
    refused(FormatError, says, convert, root, tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()


# ---- an index of torch_dist that contradicts itself ------------------------------------------------------------------
FINAL, STACK = "decoder.final_layernorm.weight", "decoder.layers.mlp.linear_fc1.layer_norm_weight"


def reindex(change):
    def spoil(folder):
        from torch.distributed.checkpoint import metadata as meta

        index = pickle.loads((folder / ".metadata").read_bytes())
        change(index, meta)
        (folder / ".metadata").write_bytes(pickle.dumps(index))

    return spoil


def chunk_at(fqn, old, new, shape, *, move):
    def change(index, meta):
        entry, places = index.state_dict_metadata[fqn], index.storage_data
        found = meta.ChunkStorageMetadata(torch.Size(new), torch.Size(shape))
        place = places[meta.MetadataIndex(fqn, torch.Size(old))]
        entry.chunks[:] = [c for c in entry.chunks if not (move and tuple(c.offsets) == old)] + [found]
        places[meta.MetadataIndex(fqn, torch.Size(new))] = place

    return reindex(change)


def drop(fqn):
    return reindex(lambda index, meta: index.state_dict_metadata.pop(fqn) and None)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (drop(FINAL), "final_norm"),
        (drop(STACK), "mlp_norm"),
        (reindex(lambda i, m: i.state_dict_metadata[STACK].chunks.pop() and None), "mlp_norm"),
        (reindex(lambda i, m: i.storage_data.clear()), ".metadata"),
        (reindex(lambda i, m: setattr(i, "storage_data", None)), ".metadata"),
        (reindex(lambda i, m: i.state_dict_metadata.update(ghost=i.state_dict_metadata[FINAL])), ".metadata"),
        (reindex(lambda i, m: [setattr(p, "relative_path", "../x") for p in i.storage_data.values()]), "../x"),
        (reindex(lambda i, m: [setattr(p, "relative_path", "/etc/passwd") for p in i.storage_data.values()]), "passwd"),
        (reindex(lambda i, m: [setattr(p, "offset", -9) for p in i.storage_data.values()]), ".distcp"),
        (reindex(lambda i, m: [setattr(p, "length", 10**18) for p in i.storage_data.values()]), ".distcp"),
        (chunk_at(FINAL, (0,), (0,), (49,), move=True), FINAL),
        (chunk_at(STACK, (1, 0), (0, 0), (1, 48), move=True), "mlp_norm"),
        (chunk_at(FINAL, (0,), (-48,), (48,), move=True), FINAL),
        (chunk_at(STACK, (0, 0), (77, 0), (1, 48), move=False), "77"),
    ],
)
def test_an_index_that_contradicts_itself(copy, spoil, says):
    root = copy("torch_dist")
    spoil(root / "release")
    refused(MconvError, says, open_checkpoint, root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_a_parent_that_cannot_be_written(made, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(MconvError, "locked", convert, made / "hf", tmp_path / "locked/out")
