"""megatron-core and transformers as peers: what they write we read, what we write they read, at every layout."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import peers_jobs as jobs
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_llama, same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.formats.dtype import in_torch
from mconv.spec import Rope

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-lm"

LLAMA3 = Rope(kind="llama3", base=5e5, factor=8.0)
MODELS = {
    "gqa": {},
    "tied": {"tied_embeddings": True, "num_query_groups": 4},
    "mqa-wide": {"num_query_groups": 1, "kv_channels": 16},
    "qkv-bias": {"qkv_bias": True},
    "all-biases": {"qkv_bias": True, "proj_bias": True, "mlp_bias": True},
    "llama3": {"rope": LLAMA3},
    "linear-tied": {"rope": Rope(kind="linear", factor=4.0), "tied_embeddings": True},
    "free-heads": {"hidden_size": 40, "num_attention_heads": 8, "num_query_groups": 2, "kv_channels": 6},
}


@pytest.fixture(scope="module")
def template():
    """The args of a checkpoint of Megatron-LM's own, all 650 of them, where there is one."""
    file = GOLDEN / "td-tp2pp2-llama3/ckpt/iter_0000100/common.pt"
    if not file.is_file():
        return None
    importlib.import_module("mconv.train.megatron.imports")  # first: it imports megatron-core quietly
    from megatron.core.safe_globals import register_safe_globals

    register_safe_globals()
    return torch.load(file, weights_only=True)["args"]


def convert(source, out, **options):
    rewrite(plan.make(open_checkpoint(source), out, **options), step="test")
    return out


def logits(folder, tokens=None):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return model(jobs.tokens() if tokens is None else tokens).logits


# ---- what megatron-core writes ---------------------------------------------------------------------------------------
def written(world, folder, template, name, **options):
    spec = jobs.spec_of(**MODELS[name])
    scores = world.run(jobs.write, folder=str(folder / "iter_0000012"), spec=spec.to_dict(), template=template, **options)
    (folder / "latest_checkpointed_iteration.txt").write_text("12")
    return spec, scores[0]


def check_export(folder, out, spec, scores):
    found = open_checkpoint(folder)
    family = "qwen2" if spec.qkv_bias and not spec.proj_bias else "llama"  # biases on QKV alone are Qwen2's
    rope = dataclasses.replace(
        spec.rope, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    assert found.spec == dataclasses.replace(spec, rope=rope, family=family) and found.iteration == 12
    convert(folder, out, format="hf")
    assert json.loads((out / "config.json").read_text())["model_type"] == family
    theirs = logits(out)
    torch.testing.assert_close(theirs, scores[..., : jobs.TRUE], rtol=2e-5, atol=5e-5)
    assert theirs.std() > 0.1


WRITTEN = [
    ("gqa", 2, 2, "plain"), ("gqa", 1, 1, "fully_parallel"), ("gqa", 2, 1, "async"), ("tied", 2, 2, "fully_parallel"),
    ("mqa-wide", 4, 1, "plain"), ("qkv-bias", 4, 1, "plain"), ("all-biases", 2, 2, "plain"), ("llama3", 1, 4, "plain"),
    ("linear-tied", 1, 2, "plain"), ("free-heads", 4, 1, "layers"), ("all-biases", 4, 1, "layers"),
]  # fmt: skip


@pytest.mark.parametrize("name, tp, pp, how", WRITTEN)
def test_a_distributed_checkpoint_of_megatron_core(world, tmp_path, template, name, tp, pp, how):
    spec, scores = written(world, tmp_path / "m", template, name, tp=tp, pp=pp, how=how)
    check_export(tmp_path / "m", tmp_path / "hf", spec, scores)


@pytest.mark.parametrize("name", ["gqa", "all-biases"])
def test_a_checkpoint_of_single_local_shards(world, tmp_path, template, name):
    spec, scores = written(world, tmp_path / "m", template, name, tp=2, pp=2, how="singleton")
    check_export(tmp_path / "m", tmp_path / "hf", spec, scores)


RANKS = [
    ("gqa", 2, 2, "plain"), ("tied", 2, 2, "plain"), ("tied", 2, 1, "plain"), ("mqa-wide", 4, 1, "plain"),
    ("qkv-bias", 1, 2, "plain"), ("all-biases", 4, 1, "plain"), ("llama3", 1, 4, "plain"), ("gqa", 1, 1, "plain"),
    ("gqa", 2, 2, "te-none"),
]  # fmt: skip


@pytest.mark.parametrize("name, tp, pp, how", RANKS)
def test_files_of_ranks_of_megatron_core(world, tmp_path, template, name, tp, pp, how):
    spec, scores = written(world, tmp_path / "m", template, name, tp=tp, pp=pp, how=how, format="mp_rank")
    check_export(tmp_path / "m", tmp_path / "hf", spec, scores)


def test_files_of_ranks_with_the_extra_states_of_transformer_engine(world, tmp_path, template):
    spec, scores = written(world, tmp_path / "m", template, "gqa", tp=2, pp=2, how="te", format="mp_rank")
    check_export(tmp_path / "m", tmp_path / "hf", spec, scores)


def test_interleaved_files_hold_the_same_model(world, tmp_path, template):
    for name in ("gqa", "tied"):
        written(world, tmp_path / name, template, name, tp=2, pp=2, format="mp_rank")
        written(world, tmp_path / f"{name}-vpp", template, name, tp=2, pp=2, vpp=2, format="mp_rank")
        convert(tmp_path / name, tmp_path / f"{name}-a", format="hf")
        convert(tmp_path / f"{name}-vpp", tmp_path / f"{name}-b", format="hf")
        assert same(tensors(tmp_path / f"{name}-a"), tensors(tmp_path / f"{name}-b"))


# ---- what megatron-core reads ----------------------------------------------------------------------------------------
def hf_of(folder, spec, dtype=torch.float32):
    rope = {"rope_type": spec.rope.kind, "rope_theta": spec.rope.base}
    return make_llama(
        folder, dtype=dtype, vocab_size=spec.vocab_size, hidden_size=spec.hidden_size,
        intermediate_size=spec.ffn_hidden_size, num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_attention_heads, num_key_value_heads=spec.num_query_groups,
        head_dim=spec.kv_channels, rope_parameters=rope, attention_bias=spec.qkv_bias, mlp_bias=spec.mlp_bias,
        tie_word_embeddings=spec.tied_embeddings,
    )  # fmt: skip


READ = {"gqa": "float32", "tied": "bfloat16", "mqa-wide": "bfloat16", "all-biases": "float32"}
LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2)]


@pytest.mark.parametrize("name", READ)
def test_megatron_core_loads_our_distributed_checkpoint_everywhere(world, tmp_path, name):
    spec, dtype = jobs.spec_of(**MODELS[name]), READ[name]
    hf_of(tmp_path / "hf", spec, getattr(torch, dtype))
    convert(tmp_path / "hf", tmp_path / "m", format="torch_dist", tp=2, pp=2, vocab_multiple=48)
    strictness = ["assume_ok_unexpected", "raise_unexpected", "log_all", "log_unexpected"]
    if name != "gqa":
        strictness = ["raise_unexpected"]
    found = world.run(
        jobs.read_distributed, folder=str(tmp_path / "m/release"), hf=str(tmp_path / "hf"), spec=spec.to_dict(),
        layouts=LAYOUTS, strictness=strictness, dtype=dtype,
    )  # fmt: skip
    assert found == [[]] * 4


@pytest.mark.parametrize("name, tp, pp, vpp", [
    ("gqa", 2, 2, 1), ("gqa", 2, 2, 2), ("tied", 2, 2, 2), ("tied", 1, 4, 1), ("tied", 4, 1, 1), ("mqa-wide", 4, 1, 1),
    ("all-biases", 1, 2, 2), ("all-biases", 4, 1, 1), ("gqa", 1, 1, 1),
])  # fmt: skip
def test_megatron_core_loads_our_files_of_ranks(world, tmp_path, name, tp, pp, vpp):
    spec, dtype = jobs.spec_of(**MODELS[name]), READ[name]
    hf_of(tmp_path / "hf", spec, getattr(torch, dtype))
    convert(tmp_path / "hf", tmp_path / "m", format="mp_rank", tp=tp, pp=pp, vpp=vpp, vocab_multiple=jobs.PADDED // tp)
    found = world.run(
        jobs.read_ranks, folder=str(tmp_path / "m/release"), hf=str(tmp_path / "hf"), spec=spec.to_dict(),
        tp=tp, pp=pp, vpp=vpp, dtype=dtype,
    )  # fmt: skip
    assert found == [[]] * 4


# ---- what transformers writes ----------------------------------------------------------------------------------------
BASE = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 48,
    "initializer_range": 0.02, "intermediate_size": 64, "max_position_embeddings": 2048, "model_type": "llama",
    "num_attention_heads": 8, "num_hidden_layers": 1, "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.31.0", "use_cache": True, "vocab_size": 151,
}  # fmt: skip
ROPE3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
HUB = {
    "huggyllama": {"max_sequence_length": 2048, "pad_token_id": 0, "bos_token_id": 1},
    "llama-2": {"_name_or_path": "meta-llama/Llama-2-7b-hf", "num_key_value_heads": 8, "pretraining_tp": 1,
                "rope_scaling": None, "rms_norm_eps": 1e-05},
    "llama-3.1": {"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "num_key_value_heads": 2,
                  "eos_token_id": [2, 3, 4], "rope_scaling": {**ROPE3, "rope_type": "llama3"}, "rope_theta": 500000.0},
    "llama-3.2": {"head_dim": 6, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 500000.0,
                  "rope_scaling": {**ROPE3, "factor": 32.0, "rope_type": "llama3", "type": "llama3"}},
    "code-llama": {"num_key_value_heads": 8, "rope_theta": 1000000, "rope_scaling": None,
                   "tokenizer_class": "CodeLlamaTokenizer"},
    "tiny-llama": {"num_key_value_heads": 1, "attention_bias": False, "rope_theta": 10000.0, "torch_dtype": "float32"},
    "falcon3": {"head_dim": 10, "num_key_value_heads": 4, "rope_theta": 1000042, "mlp_bias": False,
                "attention_bias": False, "torch_dtype": "bfloat16"},
    "smollm": {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "rope_scaling": None},
    "yi": {"pad_token_id": 0, "rope_theta": 5000000.0, "num_key_value_heads": 4},
    "vicuna-16k": {"rope_scaling": {"factor": 4.0, "type": "linear"}, "max_sequence_length": 16384, "pad_token_id": 0},
    "granite-code": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 8},
}  # fmt: skip
"""config.json as the hub has them, but small."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def hub_folder(folder, config):
    """Weights by transformers for the config; the config's own text beside them."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(folder)).to(DTYPES[config["torch_dtype"]])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


@pytest.mark.parametrize("name", HUB)
def test_a_config_of_the_hub_comes_back_byte_for_byte(tmp_path, name):
    hf = hub_folder(tmp_path / "hf", {**BASE, **HUB[name]})
    convert(hf, tmp_path / "m", format="torch_dist", tp=2)
    convert(tmp_path / "m", tmp_path / "out", format="hf")
    assert same(tensors(hf), tensors(tmp_path / "out"))
    assert (hf / "config.json").read_bytes() == (tmp_path / "out/config.json").read_bytes()
    # and without our manifest and side files, from Megatron's args alone, where they can say it
    shutil.rmtree(tmp_path / "m/release/hf")
    (tmp_path / "m/release/mconv.json").unlink()
    convert(tmp_path / "m", tmp_path / "bare", format="hf")
    assert same(tensors(hf), tensors(tmp_path / "bare"))
    made = json.loads((tmp_path / "bare/config.json").read_text())
    assert made["dtype"] == made["torch_dtype"] == {**BASE, **HUB[name]}["torch_dtype"]
    batch = torch.randint(0, 151, (2, 200), generator=torch.Generator().manual_seed(1))
    if "original_max_position_embeddings" not in str(HUB[name]):  # which no arg of Megatron carries
        assert torch.equal(logits(hf, batch), logits(tmp_path / "bare", batch))


HARMLESS = {
    "smollm2": {"is_llama_config": True, "rope_interleaved": False},
    "smollm2-js": {"transformers.js_config": {"dtype": "q4"}},
    "unsloth": {"unsloth_fixed": True},
    "unsloth-version": {"unsloth_version": "2024.9"},
    "null": {"quantization_config": None, "auto_map": None, "sliding_window": None},
    "no-bits": {"load_in_8bit": False, "load_in_4bit": False},
    "llama-1": {"architectures": ["LLaMAForCausalLM"]},
    "generation-1": {"num_return_sequences": 1,
                     "length_penalty": 1.0, "no_repeat_ngram_size": 0, "early_stopping": False},
    "generation-2": {"bad_words_ids": None, "typical_p": 1.0, "num_beam_groups": 1, "diversity_penalty": 0.0},
    "base": {"tie_encoder_decoder": False, "add_cross_attention": False, "cross_attention_hidden_size": None},
    "base-2": {"tf_legacy_loss": False, "remove_invalid_values": False, "return_dict_in_generate": False},
    "attention": {"_attn_implementation": "sdpa"},
    "transformers-5-partial": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    },
    "transformers-5-linear": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0, "type": "linear"}
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_a_key_that_transformers_or_its_users_write_and_that_changes_nothing(name):
    from mconv.convert.families import family_of

    config = {**BASE, **HARMLESS[name]}
    assert family_of(config).read_config(dict(config)).hidden_size == 48


@pytest.mark.parametrize("full", [False, True])
def test_every_field_of_transformers_own_config(tmp_path, full):
    from transformers import LlamaConfig

    config = LlamaConfig(
        architectures=["LlamaForCausalLM"], vocab_size=151, hidden_size=48, num_attention_heads=8, num_hidden_layers=1,
        intermediate_size=64, return_dict=False, output_hidden_states=True, chunk_size_feed_forward=4, id2label={0: "a"},
        problem_type="regression", initializer_range=0.5, use_cache=False, pad_token_id=3, bos_token_id=None,
        eos_token_id=[4, 5], pretraining_tp=2, attention_dropout=0.1, dtype="bfloat16", sep_token_id=6,
        tokenizer_class="LlamaTokenizer", attn_implementation="eager",
    )  # fmt: skip
    from mconv.convert.families import family_of

    values = json.loads(config.to_json_string(use_diff=not full))
    assert family_of(values).read_config(values).num_query_groups == 8


def test_a_tied_head_that_is_stored_comes_back(tmp_path):
    hf = make_llama(tmp_path / "hf", tie_word_embeddings=True, num_hidden_layers=1)
    held = load_file(hf / "model.safetensors")
    save_file({**held, "lm_head.weight": held["model.embed_tokens.weight"].clone()}, hf / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    convert(hf, tmp_path / "m", format="mp_rank", tp=2)
    convert(tmp_path / "m", tmp_path / "out", format="hf")
    assert same(tensors(hf), tensors(tmp_path / "out"))


# ---- other writers of torch.distributed.checkpoint -------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("layers", [2, 12])
def test_layers_stacked_in_one_chunk(tmp_path, layers):
    """torch's own saver writes a global tensor whole: fewer chunks than a deep model has layers."""
    import torch.distributed.checkpoint as dcp

    from mconv.convert.formats import torch_dist

    hf = make_llama(tmp_path / "hf", num_hidden_layers=layers)
    ours = convert(hf, tmp_path / "m", format="torch_dist") / "release"
    state = {}
    for key, stored in torch_dist.open_folder(ours)[0].items():
        state[key] = torch.empty(stored.shape, dtype=in_torch(stored.dtype))
        for chunk in stored.chunks:
            at = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.shape, strict=True))
            state[key][at] = chunk.locate(key, stored.dtype).load()
    folder = tmp_path / "whole/iter_0000003"
    folder.mkdir(parents=True)
    dcp.save(state, checkpoint_id=str(folder), no_dist=True)
    for name in ("common.pt", "metadata.json"):
        shutil.copy(ours / name, folder / name)
    convert(folder, tmp_path / "out", format="hf")
    assert same(tensors(hf), tensors(tmp_path / "out"))


# ---- what inspect says -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change, dtype", [({}, "float32"), ({"tie_word_embeddings": True}, "bfloat16"),
                                           ({"attention_bias": True, "mlp_bias": True}, "float16")])  # fmt: skip
@pytest.mark.parametrize("format", ["hf", "torch_dist", "mp_rank"])
def test_inspect_counts_as_transformers_does(tmp_path, capsys, change, dtype, format):
    from transformers import AutoModelForCausalLM

    from mconv.cli.inspect import inspect

    hf = make_llama(tmp_path / "hf", dtype=DTYPES[dtype], num_hidden_layers=2, **change)
    at = hf if format == "hf" else convert(hf, tmp_path / "m", format=format, tp=2, pp=2)
    inspect(at, json=True)
    facts = json.loads(capsys.readouterr().out)
    model = AutoModelForCausalLM.from_pretrained(hf)
    assert facts["parameters"] == model.num_parameters()
    assert {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(facts["dtype"], facts["dtype"]) == dtype
    if format == "hf":
        assert facts["bytes"] == sum(t.nbytes for t in tensors(hf).values())
    else:
        assert facts["bytes"] >= model.num_parameters() * DTYPES[dtype].itemsize
        assert facts["layout"] == {"tp": 2, "pp": 2, "vpp": 1} and facts["vocab"] == {"true": 151, "padded": 256}
