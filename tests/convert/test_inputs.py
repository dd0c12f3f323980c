"""What else models come in: pickled Hugging Face weights, and Meta's own shards. Nothing of them is run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import edit_json, make_llama, same, tensors

from mconv.cli.app import run
from mconv.convert import plan
from mconv.convert.formats import bin
from mconv.convert.opening import open_checkpoint
from mconv.convert.rewrite import rewrite
from mconv.errors import ConfigError, FormatError, MconvError
from mconv.spec import Rope

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-llm" / "llama2-gqa"


def convert(source, out, said=None, **options):
    rewrite(plan.make(open_checkpoint(source, **(said or {})), out, **options), step="test")
    return out


def back(source, folder, said=None, **options):
    """To Megatron and back: the tensors of the Hugging Face folder that comes of it."""
    convert(source, folder / "meg", said, format="torch_dist", **options)
    return tensors(convert(folder / "meg", folder / "back", format="hf"))


# ---- .bin ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("bin") / "hf", dtype=torch.bfloat16, tie_word_embeddings=True)


def pickled(source, folder, *, shards=1, change=None):
    """The same model with its weights as torch.save leaves them."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    state = tensors(source)
    if change:
        change(state)
    if shards == 1:
        torch.save(state, folder / bin.SINGLE)
        return folder
    names = list(state)
    where = {name: f"pytorch_model-{i % shards + 1:05d}-of-{shards:05d}.bin" for i, name in enumerate(names)}
    for shard in set(where.values()):
        torch.save({n: state[n] for n in names if where[n] == shard}, folder / shard)
    (folder / bin.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_bin_weights_come_back_bit_for_bit(source, tmp_path, shards):
    assert same(back(pickled(source, tmp_path / "hf", shards=shards), tmp_path, tp=2), tensors(source))


def test_names_that_share_bytes_and_views_within_a_storage(source, tmp_path):
    def share(state):
        state["lm_head.weight"] = state["model.embed_tokens.weight"]  # one storage under two names
        block = torch.stack([state["model.layers.0.input_layernorm.weight"], state["model.norm.weight"]])
        state["model.norm.weight"] = torch.nn.Parameter(block)[1]  # starts within its storage

    folder = pickled(source, tmp_path / "hf", change=share)
    found = open_checkpoint(folder)
    assert found.located["lm_head.weight"].offset == found.located["model.embed_tokens.weight"].offset
    wanted = tensors(source)
    wanted["lm_head.weight"] = wanted["model.embed_tokens.weight"]
    assert same(back(folder, tmp_path), wanted)


def test_safetensors_win_as_they_do_in_transformers(source, tmp_path):
    folder = pickled(source, tmp_path / "hf")
    shutil.copy(source / "model.safetensors", folder)
    (folder / bin.SINGLE).write_bytes(b"not even read")
    assert same(back(folder, tmp_path), tensors(source))


def add(state):
    state["model.layers.0.extra"] = torch.zeros(2)


REFUSED = {
    "a view": (lambda s: s.update({"model.norm.weight": s["model.norm.weight"].repeat(2)[::2]}), "norm.weight.*plainly"),
    "fp8": (lambda s: s.update({"model.norm.weight": s["model.norm.weight"].to(torch.float8_e4m3fn)}), "8-bit floats"),
    "int8": (lambda s: s.update({"model.norm.weight": s["model.norm.weight"].to(torch.int8)}), "quantised"),
    "sparse": (lambda s: s.update({"model.norm.weight": s["model.norm.weight"].to_sparse()}), "sparse"),
    "nested": (lambda s: s.update({"state_dict": dict(s)}), "'state_dict' is dict, not a tensor"),
    "a number": (lambda s: s.update({"step": 3}), "'step' is int"),
    "one too many": (add, r"layers\.0\.extra.*no row"),
    "one too few": (lambda s: s.pop("model.norm.weight"), "model.norm.weight is missing"),
    "a wrong shape": (lambda s: s.update({"model.norm.weight": torch.zeros(3)}), "shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bin_weights_that_are_refused(source, tmp_path, case):
    change, message = REFUSED[case]
    with pytest.raises(FormatError, match=message) as caught:
        open_checkpoint(pickled(source, tmp_path / "hf", change=change))
    assert str(tmp_path / "hf") in str(caught.value)


def test_a_quantised_tensor_of_torch_is_named(tmp_path):
    class Quantised:  # making a true one warns
        def __reduce__(self):
            return torch._utils._rebuild_qtensor, ()

    torch.save({"model.norm.weight": Quantised()}, tmp_path / "x.bin")
    with pytest.raises(FormatError, match=r"x\.bin holds a quantised tensor"):
        bin.read(tmp_path / "x.bin")


class Hostile:
    def __reduce__(self):
        return print, ("run",)


def test_hostile_and_damaged_bin_files(source, tmp_path, capsys):
    folder = pickled(source, tmp_path / "hf", shards=2)
    index = json.loads((folder / bin.INDEX).read_text())["weight_map"]
    shard, other = sorted(set(index.values()))
    kept = (folder / shard).read_bytes()

    def refused(message):
        with pytest.raises(FormatError, match=message):
            open_checkpoint(folder)

    torch.save({"model.norm.weight": Hostile()}, folder / shard)
    refused(r"builtin.*\.print.*do not trust")
    (folder / shard).write_bytes(kept[: len(kept) // 2])
    refused("truncated")
    (folder / shard).unlink()
    refused("is missing, but")
    torch.save(load_some(kept, tmp_path), folder / shard, _use_new_zipfile_serialization=False)
    refused(r"before 1\.6.*weights_only=True")
    (folder / shard).write_bytes(kept)
    (folder / bin.INDEX).write_text(json.dumps({"weight_map": {**index, "model.gone": other}}))
    refused("has no tensor 'model.gone'")
    (folder / bin.INDEX).write_text(
        json.dumps({"weight_map": {n: f for n, f in index.items() if n != "model.norm.weight"}})
    )
    refused("holds 'model.norm.weight'")
    (folder / bin.INDEX).write_text(json.dumps({"weight_map": {n: f"../{f}" for n, f in index.items()}}))
    refused("not the name of a file in this folder")
    (folder / bin.INDEX).write_text(json.dumps({"weight_map": index}))
    (folder / bin.SINGLE).write_bytes(kept)
    refused("two models")
    assert "run" not in capsys.readouterr().out


def load_some(data, folder):
    (folder / "some.bin").write_bytes(data)
    return torch.load(folder / "some.bin", weights_only=True)


def test_bytes_in_the_other_order_are_refused(source, tmp_path):
    """A file from a big-endian machine: read as it lies, every number in it would be another."""
    import zipfile

    folder = pickled(source, tmp_path / "hf")
    with zipfile.ZipFile(folder / bin.SINGLE) as old, zipfile.ZipFile(tmp_path / "new", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info, b"big" if info.filename.endswith("byteorder") else data)
    (tmp_path / "new").replace(folder / bin.SINGLE)
    with pytest.raises(FormatError, match="big-endian"):
        open_checkpoint(folder)


# ---- Meta ------------------------------------------------------------------------------------------------------------
NAMES = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
}  # fmt: skip
CUT = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w3": 0, "w2": 1, "output": 0}


def as_meta(source, folder, *, ranks=1, embed_cut=1, **params):
    """A Hugging Face LLaMA in Meta's form, written here by Meta's rules and by no code of ours."""
    config = json.loads((source / "config.json").read_text())
    folder.mkdir()
    shards = [{} for _ in range(ranks)]
    for name, tensor in tensors(source).items():
        for theirs, metas in NAMES.items():
            name = name.replace(theirs, metas)
        kind = name.split(".")[-2]
        if kind in ("wq", "wk"):
            heads = config["num_attention_heads" if kind == "wq" else "num_key_value_heads"]
            rows, columns = tensor.shape
            tensor = tensor.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
        dim = embed_cut if kind == "tok_embeddings" else CUT.get(kind)
        parts = [tensor] * ranks if dim is None else tensor.chunk(ranks, dim)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.clone()
    width = config["hidden_size"] // config["num_attention_heads"]
    for rank, shard in enumerate(shards):
        shard["rope.freqs"] = 10000.0 ** (-torch.arange(0, width, 2) / width)
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    values = {
        "dim": config["hidden_size"], "n_layers": config["num_hidden_layers"], "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"], "norm_eps": config["rms_norm_eps"], "vocab_size": -1,
    }  # fmt: skip
    values |= params
    (folder / "params.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("meta") / "hf", dtype=torch.float16, vocab_size=152)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not here")
@pytest.mark.parametrize("format", ["torch_dist", "mp_rank"])
def test_the_golden_meta_files_are_the_golden_model(tmp_path, format):
    convert(GOLDEN / "meta", tmp_path / "meg", format=format, tp=2, pp=2)
    out = convert(tmp_path / "meg", tmp_path / "back", format="hf")
    assert same(tensors(out), load_file(GOLDEN / "hf/model.safetensors"))
    assert not open_checkpoint(GOLDEN / "meta", config=GOLDEN / "hf/config.json").notes


@pytest.mark.parametrize(("ranks", "embed_cut"), [(1, 1), (2, 1), (4, 0)])
def test_meta_shards_of_any_number(plain, tmp_path, ranks, embed_cut):
    meta = as_meta(plain, tmp_path / "meta", ranks=ranks, embed_cut=embed_cut)
    assert same(back(meta, tmp_path, tp=2), tensors(plain))


def test_a_rotary_order_left_as_it_is_would_be_seen(plain, tmp_path, monkeypatch):
    """The planted fault: equal shapes, other rows."""
    monkeypatch.setattr("mconv.convert.meta.interleaved", lambda block, axis: block)
    assert not same(back(as_meta(plain, tmp_path / "meta"), tmp_path), tensors(plain))


def test_what_meta_does_not_say(plain, tmp_path):
    meta = as_meta(plain, tmp_path / "meta", n_kv_heads=4)
    found = open_checkpoint(meta)
    assert found.spec.max_position_embeddings == 2048 and "--max-position-embeddings" in found.notes[0]
    assert not open_checkpoint(meta, max_position_embeddings=256).notes
    assert open_checkpoint(meta, config=plain).spec == open_checkpoint(plain).spec
    edit_json(meta / "params.json", use_scaled_rope=True, rope_theta=500000.0)
    with pytest.raises(ConfigError, match="--rope-factor 8 or 32"):
        open_checkpoint(meta)
    scaled = open_checkpoint(meta, rope_factor=32.0, max_position_embeddings=131072)
    assert scaled.spec.rope == Rope(kind="llama3", base=500000.0, factor=32.0) and not scaled.notes
    with pytest.raises(ConfigError, match="not the config of this checkpoint"):
        open_checkpoint(meta, config=plain, rope_factor=8.0)


def test_inspect_takes_every_folder_that_hf2meg_takes(plain, source, tmp_path, capsys):
    """Meta's files and `.bin` weights too, with the flags that settle what they leave open, and says what they are."""
    meta = as_meta(plain, tmp_path / "meta", n_kv_heads=4, use_scaled_rope=True, rope_theta=500000.0)
    assert run(["inspect", str(meta), "--json"]) == 2 and "--rope-factor 8 or 32" in capsys.readouterr().err
    assert run(["inspect", str(meta), "--rope-factor", "8", "--max-position-embeddings", "256", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["what"], facts["left_out"]) == ("meta", "a folder in Meta's own files", [])
    assert facts["parameters"] == open_checkpoint(plain).parameters
    assert run(["inspect", str(pickled(source, tmp_path / "bin")), "--tensors"]) == 0
    assert "a Hugging Face folder" in capsys.readouterr().out


def test_defaults_of_params_json(tmp_path):
    mha = make_llama(tmp_path / "hf", num_key_value_heads=8, vocab_size=152)
    meta = as_meta(mha, tmp_path / "meta", n_kv_heads=None, vocab_size=152, multiple_of=8, ffn_dim_multiplier=0.5)
    assert same(back(meta, tmp_path), tensors(mha))


WRONG = {
    "unknown": ({"quantization_args": {"scheme": "int4"}}, "no rule claims quantization_args"),
    "missing": ({"norm_eps": None}, "no 'norm_eps'"),
    "kind": ({"dim": "48"}, "dim is '48', not int"),
    "negative": ({"n_layers": -1}, "must be positive"),
    "vocab": ({"vocab_size": 7}, "vocab_size is 7, but the table has 152"),
    "ffn": ({"multiple_of": 96}, "make an MLP of 192"),
    "theta": ({"drop": True}, "add the model's rope_theta"),
    "ranks": ({"gone": True}, "missing or too many"),
    "hole": ({"hole": True}, r"consolidated\.00\.pth is missing"),
    "extra": ({"extra": True}, "layers.0.lora.*no row"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_meta_folders_that_are_refused(plain, tmp_path, case):
    params, message = WRONG[case]
    meta = as_meta(plain, tmp_path / "meta", ranks=2, **params if case not in ("theta", "ranks", "hole", "extra") else {})
    first = meta / "consolidated.00.pth"
    if case in ("theta", "extra"):
        state = torch.load(first)
        state["rope.freqs"] = 1e6 ** (-torch.arange(3) / 3)
        if case == "extra":
            state["layers.0.lora.weight"] = state.pop("rope.freqs")
        torch.save(state, first)
    if case == "ranks":
        (meta / "consolidated.01.pth").unlink()
    if case == "hole":
        first.unlink()
    with pytest.raises(MconvError, match=message) as caught:
        open_checkpoint(meta)
    assert str(meta) in str(caught.value)


def test_meta_knows_no_iteration_and_others_no_rope_factor(plain, tmp_path):
    with pytest.raises(FormatError, match="no iterations"):
        open_checkpoint(as_meta(plain, tmp_path / "meta"), iteration=3)
    with pytest.raises(FormatError, match="--rope-factor"):
        open_checkpoint(plain, rope_factor=8.0)
