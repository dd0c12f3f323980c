"""Mistral and Falcon: which model a config describes, what it cannot say, and configs that transformers reads so."""

import dataclasses
import json
import shutil
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import FALCONS, MISTRALS, edit_json, make_falcon, make_model, same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.dialects import mcore
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.families import FAMILIES, family_for, family_of
from mconv.convert.families.falcon import FALCON
from mconv.convert.families.llama import LLAMA
from mconv.convert.families.mistral import MISTRAL
from mconv.errors import ConfigError, FormatError, LayoutError, MconvError
from mconv.hub.catalog import expected_parameters
from mconv.shard.layout import Layout, check_tp
from mconv.spec import ModelSpec, Rope

OURS = {f"mistral-{name}" for name in MISTRALS} | {f"falcon-{name}" for name in FALCONS}
HUB_CODE = {
    "AutoConfig": "configuration_falcon.FalconConfig", "AutoModel": "modeling_falcon.FalconModel",
    "AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM",
}  # fmt: skip
FALCON_7B = {
    "alibi": False, "apply_residual_connection_post_layernorm": False, "architectures": ["FalconForCausalLM"],
    "attention_dropout": 0.0, "auto_map": HUB_CODE, "bias": False, "bos_token_id": 11, "eos_token_id": 11,
    "hidden_dropout": 0.0, "hidden_size": 4544, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "falcon", "multi_query": True, "new_decoder_architecture": False, "num_attention_heads": 71,
    "num_hidden_layers": 32, "num_kv_heads": 71, "parallel_attn": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.27.4", "use_cache": True, "vocab_size": 65024,
}  # fmt: skip
NEW = {"new_decoder_architecture": True, "num_kv_heads": 8}
HUB = {
    ("falcon", "7"): FALCON_7B,
    ("falcon", "40"): {**FALCON_7B, **NEW, "hidden_size": 8192, "num_attention_heads": 128, "num_hidden_layers": 60},
    ("falcon", "180"): {**FALCON_7B, **NEW, "hidden_size": 14848, "num_attention_heads": 232, "num_hidden_layers": 80},
    ("falcon", "11"): {
        **FALCON_7B, **NEW, "activation": "gelu", "ff_factor": 4, "ffn_hidden_size": 16384, "hidden_size": 4096,
        "max_position_embeddings": 8192, "num_attention_heads": 32, "num_hidden_layers": 60,
        "num_ln_in_parallel_attn": 1, "rope_scaling": None, "rope_theta": 500042.0, "tie_word_embeddings": False,
    },
    ("falcon-rw", "1"): {
        **FALCON_7B, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False, "hidden_size": 2048,
        "num_attention_heads": 32, "num_kv_heads": 32, "num_hidden_layers": 24, "vocab_size": 50304,
    },
    ("falcon-rw", "7"): {
        **FALCON_7B, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False, "hidden_size": 4096,
        "num_attention_heads": 64, "num_kv_heads": 64, "num_hidden_layers": 36,
    },
    ("mistral", "7"): {
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True, "vocab_size": 32000,
    },
}  # fmt: skip
"""As the hub has them."""


def read(config: dict[str, object]) -> ModelSpec:
    return family_of(config).read_config(config)


def scores(folder, length: int = 48) -> torch.Tensor:
    """transformers' logits of fixed tokens."""
    from transformers import AutoModelForCausalLM

    tokens = torch.randint(151, (2, length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits


def bare(folder):
    """A Megatron checkpoint without what mconv left beside it: its args alone say what it is."""
    shutil.rmtree(folder / "release" / "hf")
    (folder / "release" / "mconv.json").unlink()
    return folder


# ---- by transformers' own word ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", sorted(OURS))
def test_a_config_made_from_args_alone_computes_the_same(tmp_path, model):
    hf = make_model(model, tmp_path / "hf")
    rewrite(plan.make(open_checkpoint(hf), tmp_path / "m", format="mp_rank", pp=2), step="hf2meg")
    rewrite(plan.make(open_checkpoint(bare(tmp_path / "m")), tmp_path / "out", format="hf"), step="meg2hf")
    assert same(tensors(hf), tensors(tmp_path / "out"))
    want = scores(hf)
    assert torch.equal(scores(tmp_path / "out"), want), "as transformers 5 reads it"
    edit_json(tmp_path / "out" / "config.json", rope_parameters=None, dtype=None)
    assert torch.equal(scores(tmp_path / "out"), want), "from the keys that transformers 4 reads"


def _named_once(config):
    """In rope settings `type` is but the older name of `rope_type`, which transformers keeps where it finds it."""
    return {**config, "rope_parameters": {k: v for k, v in config["rope_parameters"].items() if k != "type"}}


@pytest.mark.parametrize("model", sorted(OURS))
def test_the_spec_says_what_transformers_does(tmp_path, model):
    """The spec that is read back from a config that we wrote, and the one of transformers' own, are one."""
    from transformers import AutoConfig

    spec = open_checkpoint(make_model(model, tmp_path / "hf")).spec
    family = FAMILIES[spec.family]
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(family.write_config(spec)))
    theirs, ours = (AutoConfig.from_pretrained(tmp_path / name) for name in ("hf", "ours"))
    silent = {"_name_or_path", "dtype", "architectures", "bos_token_id", "eos_token_id", "initializer_range"}
    if spec.family == "falcon":  # what transformers then never reads
        silent |= (
            {"multi_query"} if theirs.new_decoder_architecture else {"num_kv_heads"} if theirs.multi_query else set()
        )
    theirs, ours = (_named_once(config.to_dict()) for config in (theirs, ours))
    differ = {k for k, v in theirs.items() if ours.get(k) != v}
    assert differ <= silent


def test_what_an_absent_key_means():
    from transformers import FalconConfig, MistralConfig

    mistral = {k: HUB["mistral", "7"][k] for k in ("model_type", "hidden_size", "intermediate_size", "vocab_size")}
    mistral |= {"num_attention_heads": 32, "num_hidden_layers": 32}
    spec, theirs = read(dict(mistral)), MistralConfig()
    assert spec.sliding_window == theirs.sliding_window == 4096
    assert spec.num_query_groups == theirs.num_key_value_heads == 8
    assert spec.max_position_embeddings == theirs.max_position_embeddings
    assert (spec.norm_epsilon, spec.rope.base) == (theirs.rms_norm_eps, theirs.rope_parameters["rope_theta"])
    assert read({**mistral, "sliding_window": None}).sliding_window is None
    assert read({**mistral, "num_key_value_heads": None}).num_query_groups == 32
    falcon = {"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32}
    spec, theirs = read({**falcon, "vocab_size": 65024}), FalconConfig()
    assert spec == read({**falcon, "vocab_size": 65024, "ffn_hidden_size": theirs.ffn_hidden_size, "multi_query": True,
                         "tie_word_embeddings": True, "layer_norm_epsilon": theirs.layer_norm_epsilon, "bias": False,
                         "max_position_embeddings": theirs.max_position_embeddings, "parallel_attn": True,
                         "rope_theta": theirs.rope_parameters["rope_theta"], "alibi": False})  # fmt: skip
    assert (theirs.tie_word_embeddings, theirs.multi_query, theirs.parallel_attn) == (True, True, True)


# ---- which model it is -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family, size", HUB)
def test_the_configs_of_the_hub(family, size):
    """What they say of themselves, and parameters as many as our table of repositories has."""
    config = HUB[family, size]
    spec = read(dict(config))
    order = (spec.parallel_attention, spec.shared_norm, spec.position, spec.num_query_groups)
    assert order == {
        ("falcon", "7"): (True, True, "rope", 1), ("falcon", "40"): (True, False, "rope", 8),
        ("falcon", "180"): (True, False, "rope", 8), ("falcon", "11"): (True, True, "rope", 8),
        ("falcon-rw", "1"): (False, False, "alibi", 32), ("falcon-rw", "7"): (False, False, "alibi", 64),
        ("mistral", "7"): (False, False, "rope", 8),
    }[family, size]  # fmt: skip
    table = FAMILIES[spec.family]
    count = sum(prod(table.axes(x).dims(spec.sizes)) for x in table.logicals(spec))
    assert round(count / 1e9, 2) == expected_parameters(family, size)
    assert read(table.write_config(spec)) == spec


@pytest.mark.parametrize(
    "size, fits",
    [("7", "1"), ("40", "1, 2, 4, 8, 16, 32, 64, 128"), ("180", "1, 2, 4, 8"), ("11", "1, 2, 4, 8, 16, 32")],
)
def test_the_tensor_parallel_sizes_that_the_docs_name(size, fits):
    spec = read(dict(HUB["falcon", size]))
    rows = [(row.name, row.axes_of(leaf), row.cut) for row in FALCON.rows for leaf in row.leaves(spec)]
    problems = check_tp(rows, spec.sizes, tp=3)
    assert problems and all(problem.endswith(f"tp can be {fits}") for problem in problems)


@st.composite
def falcons(draw):
    heads, width = draw(st.sampled_from([1, 2, 3, 6, 71])), 2 * draw(st.integers(1, 9))
    parallel = draw(st.booleans())
    shared = parallel and draw(st.booleans())
    groups = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0 and (parallel or n in (1, heads))]))
    alibi = draw(st.booleans())
    base = draw(st.sampled_from([1e4, 500042.0]))
    rope = draw(st.sampled_from([Rope(base=base), Rope(kind="linear", base=base, factor=2.0)]))
    return ModelSpec(
        family="falcon", num_layers=draw(st.integers(1, 9)), hidden_size=heads * width, num_attention_heads=heads,
        ffn_hidden_size=draw(st.integers(1, 99)), num_query_groups=groups, kv_channels=width,
        vocab_size=draw(st.integers(1, 999)), max_position_embeddings=draw(st.integers(1, 9999)), norm_epsilon=1e-6,
        rope=Rope() if alibi else rope, position="alibi" if alibi else "rope", norm="layer", activation="gelu",
        parallel_attention=parallel, shared_norm=shared, tied_embeddings=draw(st.booleans()),
        **dict.fromkeys(("qkv_bias", "proj_bias", "mlp_bias"), draw(st.booleans())),
    )  # fmt: skip


@given(spec=falcons())
def test_a_falcon_survives_its_own_config_and_the_args_of_megatron(spec):
    assert read(json.loads(json.dumps(FALCON.write_config(spec)))) == spec
    told = mcore.spec_of(mcore.args_of(spec, Layout(padded_vocab=1024), dtype="bfloat16"))
    assert dataclasses.replace(told, family=family_for(told).name) == spec
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def spec_of_mistral(**changes: object) -> ModelSpec:
    return read({**HUB["mistral", "7"], **changes})


def test_a_mistral_survives_its_own_config_and_the_args_of_megatron():
    for changes in ({}, {"sliding_window": 1}, {"head_dim": 64}, {"sliding_window": None}):
        spec = spec_of_mistral(**changes)
        assert read(json.loads(json.dumps(MISTRAL.write_config(spec)))) == spec
        told = mcore.spec_of(mcore.args_of(spec, Layout(padded_vocab=32000), dtype="bfloat16"))
        named = dataclasses.replace(told, family=family_for(told).name)
        assert named == (spec if spec.sliding_window else LLAMA.expressible(spec))


QWEN2_7B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 131072, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.40.1",
    "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip
"""As Qwen2.5-7B has it on the Hub."""


def test_qwen2_has_biases_on_query_key_and_value_alone():
    spec = read(QWEN2_7B)
    assert (spec.qkv_bias, spec.proj_bias, spec.mlp_bias, spec.sliding_window) == (True, False, False, None)
    told = mcore.spec_of(mcore.args_of(spec, Layout(padded_vocab=152064), dtype="bfloat16"))
    assert dataclasses.replace(told, family=family_for(told).name) == spec
    assert read(json.loads(json.dumps(family_for(spec).write_config(spec)))) == spec


QWEN_WINDOWS = {
    "used in all layers": ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}, 64),
    "used beyond the last layer": ({"use_sliding_window": True, "sliding_window": 64}, None),
    "not there": ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, None),
    "layer_types say full": ({"use_sliding_window": True, "max_window_layers": 0, "layer_types": ["full_attention"] * 28},
                             None),
    "layer_types say sliding": ({"use_sliding_window": True, "sliding_window": 64,
                                 "layer_types": ["sliding_attention"] * 28}, 64),
}  # fmt: skip


@pytest.mark.parametrize("name", QWEN_WINDOWS)
def test_a_window_of_qwen2_that_all_layers_agree_on(name):
    change, window = QWEN_WINDOWS[name]
    assert read({**QWEN2_7B, **change}).sliding_window == window


MIXED = {
    "upper layers": (
        {"use_sliding_window": True, "max_window_layers": 21},
        "use_sliding_window True, max_window_layers 21",
    ),
    "every other": ({"layer_types": ["full_attention", "sliding_attention"] * 14}, "supports only one kind"),
    "too few": ({"layer_types": ["full_attention"] * 27}, "give 28 layers"),
    "sliding, not used": ({"layer_types": ["sliding_attention"] * 28}, "but use_sliding_window is False"),
}


@pytest.mark.parametrize("name", MIXED)
def test_windows_of_qwen2_that_differ_are_refused(name):
    change, message = MIXED[name]
    with pytest.raises(ConfigError, match=message):
        read({**QWEN2_7B, **change})


# ---- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "size, change, says",
    [
        ("7", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn 2 describe no model that transformers can run"),
        ("40", {"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn 3 describe no model"),
        ("40", {"parallel_attn": False}, "parallel_attn False"),
        ("7", {"multi_query": False, "num_kv_heads": 1}, "num_kv_heads is 1 for 71 heads"),
        ("40", {"num_kv_heads": 7}, "num_attention_heads 128 is not a multiple of num_query_groups 7"),
        ("7", {"num_attention_heads": 70}, "hidden_size 4544 is not a multiple of num_attention_heads 70"),
        ("7", {"num_attention_heads": 0}, "not a multiple of num_attention_heads 0"),
        ("7", {"activation": "gelu_new"}, "activation is 'gelu_new'"),
        ("7", {"activation": "relu"}, "activation is 'relu'"),
        ("7", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is True"),
        ("7", {"alibi": True, "rope_scaling": {"type": "linear", "factor": 2.0}}, "alibi is true.*'linear'"),
        ("7", {"alibi": 1}, "alibi is 1, not bool"),
        ("7", {"n_head_kv": 8}, "mconv does not know n_head_kv=8 of a falcon model"),
        ("7", {"head_dim": 128}, "does not know head_dim=128"),
        ("7", {"rms_norm_eps": 1e-6}, "does not know rms_norm_eps"),
        ("7", {"model_type": "RefinedWebModel"}, "'RefinedWebModel'.*before transformers had it"),
        ("40", {"model_type": "RefinedWeb", "auto_map": None}, "'RefinedWeb'.*model_type 'falcon'"),
        ("7", {"architectures": ["RWForCausalLM"]}, "RWForCausalLM"),
        ("7", {"auto_map": {**HUB_CODE, "AutoTokenizer": "tokenization_evil.Tokenizer"}}, "auto_map"),
        ("7", {"auto_map": {"AutoModel": ["modeling_falcon.FalconModel"]}}, "auto_map"),
        ("7", {"auto_map": {"AutoModel": "modeling_falcon.FalconModel\n"}}, "auto_map"),
        ("7", {"auto_map": "modeling_falcon.FalconModel"}, "auto_map"),
        ("7", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)  # fmt: skip
def test_falcons_that_are_refused_by_name(size, change, says):
    config = {k: v for k, v in {**HUB["falcon", size], **change}.items() if v is not None}
    with pytest.raises(ConfigError, match=says):
        if str(config["model_type"]).startswith("Refined"):
            config.pop("auto_map", None)
        read(config)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"sliding_window": "4096"}, "sliding_window is '4096', not int"),
        ({"attention_bias": True}, "does not know attention_bias=True"),
        ({"layer_types": ["full_attention"] * 32}, "layer_types is .*'sliding_attention' for every layer"),
        ({"architectures": ["MistralForSequenceClassification"]}, "MistralForSequenceClassification"),
        ({"auto_map": {"AutoModel": "modeling_mistral.MistralModel"}}, "auto_map"),
    ],
)
def test_mistrals_that_are_refused_by_name(change, says):
    with pytest.raises(ConfigError, match=says):
        read({**HUB["mistral", "7"], **change})


def test_layer_types_of_a_mistral_say_what_its_window_says():
    sliding, full = (["sliding_attention"] * 32, ["full_attention"] * 32)
    assert spec_of_mistral(layer_types=sliding, use_sliding_window=True, max_window_layers=0) == spec_of_mistral()
    none = {"sliding_window": None, "max_window_layers": 21}
    assert spec_of_mistral(layer_types=full, **none) == spec_of_mistral(sliding_window=None)
    for change, says in (
        ({"layer_types": sliding, "sliding_window": None}, "with sliding_window None.*'full_attention'"),
        ({"layer_types": [*sliding[1:], "full_attention"]}, "'sliding_attention' for every layer"),
        ({"max_window_layers": 21}, "does not know max_window_layers=21"),
    ):
        with pytest.raises(ConfigError, match=says):
            spec_of_mistral(**change)


def test_other_names_of_a_key_must_agree_with_it():
    falcon, gpt2 = HUB["falcon", "7"], {"model_type": "gpt2", "vocab_size": 9, "n_head": 2, "n_layer": 1}
    assert read({**falcon, "n_embed": 4544}) == read(dict(falcon))
    assert read({**gpt2, "hidden_size": 8}) == read({**gpt2, "n_embd": 8})
    assert read({**gpt2, "hidden_size": 8, "max_position_embeddings": 77}).max_position_embeddings == 77
    with pytest.raises(ConfigError, match="n_embed is 8 but hidden_size, the same thing, is 4544"):
        read({**falcon, "n_embed": 8})


@pytest.mark.parametrize(
    "family, base, change, lost",
    [
        (MISTRAL, "mistral", {"qkv_bias": True}, "qkv_bias True would be False"),
        (LLAMA, "mistral", {}, "sliding_window 4096 would be None"),
        (LLAMA, "falcon", {}, "norm layer would be rms"),
        (FALCON, "falcon", {"kv_channels": 60}, "kv_channels 60 would be 64"),
        (FALCON, "falcon", {"sliding_window": 5}, "sliding_window 5 would be None"),
        (FALCON, "falcon", {"parallel_attention": False, "shared_norm": False, "num_attention_heads": 142,
                            "kv_channels": 32, "num_query_groups": 71}, "num_query_groups 71 would be 142"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_say_it_is_not_written(family, base, change, lost):
    import dataclasses

    spec = dataclasses.replace(read(dict(HUB[base, "7"])), **{**change, "family": family.name})
    with pytest.raises(ConfigError, match=lost):
        family.write_config(spec)


def test_such_a_model_is_refused_before_a_byte_is_written(tmp_path):
    """A window and biases: megatron-core has that, but no family of Hugging Face that we know."""
    source = make_model("llama-attention-bias", tmp_path / "hf")
    rewrite(plan.make(open_checkpoint(source), tmp_path / "m", format="mp_rank"), step="hf2meg")
    file = bare(tmp_path / "m") / "release" / "mp_rank_00" / "model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    state["args"].window_size = (15, 0)
    torch.save(state, file)
    with pytest.raises(ConfigError, match=r"no family .* sliding window 16, .* biases qkv_bias, proj_bias, mlp_bias"):
        plan.make(open_checkpoint(tmp_path / "m"), tmp_path / "out", format="hf")


@pytest.mark.parametrize("heads", [3, 71])
def test_heads_of_a_multi_query_falcon_that_tp_cannot_share(tmp_path, heads):
    hf = make_falcon(tmp_path / "hf", hidden_size=heads * 8, num_attention_heads=heads, num_hidden_layers=1)
    for tp in (2, heads):
        says = rf"tp {tp} does not divide 1 query groups \(layer\.qkv\.weight.*\); tp can be 1(\n|$)"
        with pytest.raises(LayoutError, match=says):
            plan.make(open_checkpoint(hf), tmp_path / "m", format="mp_rank", tp=tp)


# ---- weights ---------------------------------------------------------------------------------------------------------
def test_a_tied_head_that_the_hub_stores_all_the_same_comes_back(tmp_path):
    from safetensors.torch import save_file

    hf = make_falcon(tmp_path / "hf")
    stored = tensors(hf)
    assert "lm_head.weight" not in stored
    stored["lm_head.weight"] = stored["transformer.word_embeddings.weight"].clone()
    save_file(stored, hf / "model.safetensors", metadata={"format": "pt"})
    rewrite(plan.make(open_checkpoint(hf), tmp_path / "m", format="torch_dist", tp=2), step="hf2meg")
    rewrite(plan.make(open_checkpoint(tmp_path / "m"), tmp_path / "out", format="hf"), step="meg2hf")
    assert same(tensors(tmp_path / "out"), stored)
    stored["lm_head.weight"] += 1
    save_file(stored, hf / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MconvError, match=r"lm_head\.weight"):
        rewrite(plan.make(open_checkpoint(hf), tmp_path / "n", format="torch_dist"), step="hf2meg")


@pytest.mark.parametrize("change", [{"parallel_attn": False}, {"bias": True}, {"multi_query": False}])
def test_a_config_that_is_not_of_these_weights(tmp_path, change):
    hf = make_falcon(tmp_path / "hf")
    edit_json(hf / "config.json", **{"num_kv_heads": None, **change})
    with pytest.raises(FormatError, match=r"is missing|has shape"):
        open_checkpoint(hf)


def test_fused_rows_are_stored_as_they_are(tmp_path):
    """Nothing is permuted: at tp 1, Megatron's fused QKV is the file's own."""
    for name, options in {"7": {}, "40": FALCONS["40b"], "rw": FALCONS["rw"]}.items():
        hf = make_falcon(tmp_path / name, **options)
        rewrite(plan.make(open_checkpoint(hf), tmp_path / f"m{name}", format="mp_rank"), step="hf2meg")
        state = torch.load(tmp_path / f"m{name}/release/mp_rank_00/model_optim_rng.pt", weights_only=False)["model"]
        theirs = tensors(hf)["transformer.h.1.self_attention.query_key_value.weight"]
        assert torch.equal(state["decoder.layers.1.self_attention.linear_qkv.weight"], theirs)
