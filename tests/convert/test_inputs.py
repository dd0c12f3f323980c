"""What else models come in: pickled Hugging Face weights, Meta's own shards, Mistral's. Nothing of them is run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import edit_json, make_llama, make_mistral, same, tensors

from mconv.cli.app import run
from mconv.convert.checkpoint.meta import MODULES as modules_of_meta
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.formats import bin
from mconv.errors import ConfigError, FormatError, MconvError
from mconv.spec import Rope

pytestmark = pytest.mark.once

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
    as_stored = {name: pattern.replace("~", "") for name, pattern in modules_of_meta["layer.qkv"].items()}
    monkeypatch.setitem(modules_of_meta, "layer.qkv", as_stored)
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
    "unknown": ({"quantization_args": {"scheme": "int4"}}, "mconv does not know quantization_args"),
    "missing": ({"norm_eps": None}, "norm_eps is missing"),
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


# ---- Mistral ---------------------------------------------------------------------------------------------------------
def as_mistral(source, folder, *, shards=1, config=False, **params):
    """A Hugging Face Mistral in Mistral's own files, written here by mistral-inference's rules and by no code of ours."""
    values = json.loads((source / "config.json").read_text())
    folder.mkdir()
    state = {}
    for name, tensor in tensors(source).items():
        for theirs, own in NAMES.items():
            name = name.replace(theirs, own)
        if name.split(".")[-2] in ("wq", "wk"):
            rows, columns = tensor.shape
            width = values["head_dim"]
            tensor = tensor.view(rows // width, 2, width // 2, columns).transpose(1, 2).reshape(rows, columns)
        state[name] = tensor.contiguous()
    files = ["consolidated.safetensors"]
    if shards > 1:
        files = [f"consolidated-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        save_file({n: t for j, (n, t) in enumerate(sorted(state.items())) if j % shards == i}, folder / file)
    told = {
        "dim": values["hidden_size"], "n_layers": values["num_hidden_layers"], "head_dim": values["head_dim"],
        "hidden_dim": values["intermediate_size"], "n_heads": values["num_attention_heads"],
        "n_kv_heads": values["num_key_value_heads"], "norm_eps": values["rms_norm_eps"],
        "vocab_size": values["vocab_size"], "rope_theta": values["rope_parameters"]["rope_theta"],
        "sliding_window": values["sliding_window"], "max_position_embeddings": values["max_position_embeddings"],
    }  # fmt: skip
    told = {k: v for k, v in {**told, **params}.items() if v is not None}
    (folder / "params.json").write_text(json.dumps(told))
    if config:
        shutil.copy(source / "config.json", folder)
    return folder


def mistrals_logits(folder, tokens):
    """What Mistral's own program computes: pairs of neighbouring rows turned as complex numbers."""
    p = json.loads((folder / "params.json").read_text())
    w = {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}
    n, at = len(tokens), torch.arange(len(tokens))
    width, window = p["head_dim"], p.get("sliding_window") or n
    angles = torch.outer(at.float(), p["rope_theta"] ** (-torch.arange(0, width, 2).float() / width))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    seen = (at[:, None] >= at) & (at[:, None] - at < window)

    def norm(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + p["norm_eps"]) * w[f"{name}.weight"]

    def heads(x, name):
        return (x @ w[f"{name}.weight"].T).view(n, -1, width)

    def turned(x):
        return torch.view_as_real(torch.view_as_complex(x.reshape(n, -1, width // 2, 2)) * turn).flatten(2)

    h = w["tok_embeddings.weight"][tokens]
    for i in range(p["n_layers"]):
        x, a, f = norm(h, f"layers.{i}.attention_norm"), f"layers.{i}.attention.", f"layers.{i}.feed_forward."
        q, k, v = turned(heads(x, f"{a}wq")), turned(heads(x, f"{a}wk")), heads(x, f"{a}wv")
        k, v = (t.repeat_interleave(p["n_heads"] // p["n_kv_heads"], dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / width**0.5
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v).flatten(1)
        h = h + mixed @ w[f"{a}wo.weight"].T
        x = norm(h, f"layers.{i}.ffn_norm")
        gated = torch.nn.functional.silu(x @ w[f"{f}w1.weight"].T) * (x @ w[f"{f}w3.weight"].T)
        h = h + gated @ w[f"{f}w2.weight"].T
    return norm(h, "norm") @ w[f"{'output' if 'output.weight' in w else 'tok_embeddings'}.weight"].T


MISTRALS_OWN = {
    "window": ({"sliding_window": 5}, {}),
    "no window": ({"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {}),
    "free head width": ({"sliding_window": 16, "head_dim": 10, "num_key_value_heads": 2}, {}),
    "tied": ({"sliding_window": 16, "tie_word_embeddings": True}, {"tied_embeddings": True}),
    "sharded": ({"sliding_window": 16}, {"shards": 3}),
    "a window as a text": ({"sliding_window": 16}, {"sliding_window": "16"}),
    "a window in a list": ({"sliding_window": 16}, {"sliding_window": [16, 16]}),
}


@pytest.mark.parametrize("case", MISTRALS_OWN)
def test_mistrals_own_files(tmp_path, case):
    """transformers' logits before and after, and those of Mistral's own arithmetic on its own files."""
    options, written = MISTRALS_OWN[case]
    source = make_mistral(tmp_path / "hf", num_hidden_layers=2, **options)
    own = as_mistral(source, tmp_path / "own", **written)
    found = open_checkpoint(own)
    assert (found.format, found.spec, found.notes) == ("mistral", open_checkpoint(source).spec, ())
    assert same(back(own, tmp_path, tp=2), tensors(source))
    from transformers import AutoModelForCausalLM

    tokens = torch.randint(151, (24,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        want, out = (
            AutoModelForCausalLM.from_pretrained(folder)(tokens[None]).logits[0] for folder in (source, tmp_path / "back")
        )
        assert torch.equal(out, want)
        if not isinstance(written.get("sliding_window"), (str, list)):
            assert torch.allclose(mistrals_logits(own, tokens), want, atol=1e-3 * want.abs().max())


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    return make_mistral(tmp_path_factory.mktemp("mistral") / "hf", num_hidden_layers=2, sliding_window=16)


def test_what_mistrals_files_leave_open(mistral, tmp_path):
    own = as_mistral(mistral, tmp_path / "own", rope_theta=None, max_position_embeddings=None)
    found = open_checkpoint(own)
    assert found.spec.rope == Rope() and found.spec.max_position_embeddings == 32768
    assert "32768" in found.notes[0] and "10000 is taken" in found.notes[1]
    assert open_checkpoint(own, config=mistral).spec == open_checkpoint(mistral).spec
    shutil.copy(mistral / "config.json", own)  # beside it, it settles them by itself
    assert open_checkpoint(own).spec == open_checkpoint(mistral).spec
    edit_json(own / "config.json", hidden_act="gelu")
    with pytest.raises(ConfigError, match="hidden_act"):
        open_checkpoint(own)


WRONG_MISTRALS = {
    "moe": ({"moe": {"num_experts": 8}}, "moe says that it is a mixture of experts"),
    "vision": ({"vision_encoder": {"dim": 8}}, "images and text"),
    "quantised": ({"quantization": {"qformat_weight": "fp8_e4m3"}}, "quantised weights"),
    "yarn": ({"yarn": {"factor": 4}}, "YaRN"),
    "adapter": ({"lora": {"enable": True}}, "an adapter"),
    "unknown": ({"novelty": 3}, "mconv does not know novelty=3"),
    "mamba": ({"model_type": "mamba"}, "model_type is 'mamba'; mconv supports only 'transformer'"),
    "activation": ({"activation": "gelu"}, "activation is 'gelu'"),
    "causal": ({"causal": False}, "causal is False"),
    "some windows": ({"sliding_window": [16, None]}, "layers with and without"),
    "theta": ({"rope_theta": None, "sliding_window": None}, "takes a base of 1e6.*--config"),
    "width": ({"hidden_dim": 60}, "hidden_dim is 60, but layers.0.feed_forward.w1 has 64 rows"),
    "head": ({"head_dim": 12}, "has shape"),
    "tied": ({"tied_embeddings": True}, "tied_embeddings is True, but the head, output.weight, is there"),
    "vocabulary": ({"vocab_size": 7}, "vocab_size is 7, but the table has 151"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_MISTRALS)
def test_mistrals_files_that_are_refused(mistral, tmp_path, case):
    params, message = WRONG_MISTRALS[case]
    own = as_mistral(mistral, tmp_path / "own", **params)
    with pytest.raises(MconvError, match=message) as caught:
        open_checkpoint(own)
    assert str(own) in str(caught.value)


def test_mistrals_keys_that_say_nothing_pass(mistral, tmp_path):
    said = {"moe": {}, "vision_encoder": False, "quantization": None, "max_batch_size": 0, "dtype": "bfloat16",
            "model_type": "transformer", "use_biases": False, "causal": True, "activation": "silu"}  # fmt: skip
    own = as_mistral(mistral, tmp_path / "own", **said)
    assert open_checkpoint(own).spec == open_checkpoint(mistral).spec


def test_mistrals_shards_must_all_be_there(mistral, tmp_path):
    own = as_mistral(mistral, tmp_path / "own", shards=3)
    (own / "consolidated-00002-of-00003.safetensors").rename(tmp_path / "gone")
    with pytest.raises(FormatError, match=r"consolidated-00002-of-00003\.safetensors is missing"):
        open_checkpoint(own)
    shutil.copy(own / "consolidated-00001-of-00003.safetensors", own / "consolidated-00002-of-00003.safetensors")
    with pytest.raises(FormatError, match="which another file has too"):
        open_checkpoint(own)
    torch.save({}, own / "consolidated.00.pth")
    with pytest.raises(FormatError, match=r"has both consolidated\.00\.pth and"):
        open_checkpoint(own)


def test_the_first_mistrals_archive(mistral, tmp_path):
    """As 7B v0.1 was first given out: one .pth, and a params.json without rope_theta."""
    own = as_mistral(mistral, tmp_path / "own", rope_theta=None)
    torch.save(load_file(own / "consolidated.safetensors"), own / "consolidated.00.pth")
    (own / "consolidated.safetensors").unlink()
    assert open_checkpoint(own).format == "mistral"
    assert same(back(own, tmp_path, tp=2), tensors(mistral))


def test_a_rotary_order_of_mistrals_left_as_it_is_would_be_seen(mistral, tmp_path, monkeypatch):
    as_stored = {name: pattern.replace("~", "") for name, pattern in modules_of_meta["layer.qkv"].items()}
    monkeypatch.setitem(modules_of_meta, "layer.qkv", as_stored)
    assert not same(back(as_mistral(mistral, tmp_path / "own"), tmp_path), tensors(mistral))
