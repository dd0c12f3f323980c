"""config.json <-> ModelSpec: both ways, both spellings, and a refusal by name for everything else."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import LLAMA3, VARIANTS, edit_json, make_llama

from mconv.convert.dialects import mcore
from mconv.convert.families import family_of
from mconv.convert.families.llama import LLAMA
from mconv.errors import ConfigError
from mconv.shard.layout import Layout
from mconv.spec import ModelSpec, Rope

LLAMA2 = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
"""As the hub has it."""


def positive(most):
    return st.integers(1, most)


@st.composite
def specs(draw):
    groups = draw(positive(8))
    kind = draw(st.sampled_from(["default", "linear", "llama3"]))
    rope = {"kind": kind, "base": draw(st.sampled_from([1e4, 5e5, 1e6, 12345.5]))}
    if kind != "default":
        rope["factor"] = draw(st.sampled_from([2.0, 8.0, 32.0]))
    if kind == "llama3":
        rope |= {
            "low_freq_factor": 2.0,
            "high_freq_factor": 3.0,
            "original_max_position_embeddings": draw(positive(9000)),
        }
    attention, mlp = draw(st.booleans()), draw(st.booleans())
    return ModelSpec(
        family="llama", num_layers=draw(positive(9)), hidden_size=draw(positive(99)), ffn_hidden_size=draw(positive(99)),
        num_attention_heads=groups * draw(positive(4)), num_query_groups=groups, kv_channels=draw(positive(64)),
        vocab_size=draw(positive(999)), max_position_embeddings=draw(positive(9999)), norm_epsilon=1e-6,
        rope=Rope(**rope), tied_embeddings=draw(st.booleans()), qkv_bias=attention, proj_bias=attention, mlp_bias=mlp,
    )  # fmt: skip


@given(spec=specs())
def test_a_spec_survives_its_own_config(spec):
    config = json.loads(json.dumps(LLAMA.write_config(spec)))
    assert family_of(config).read_config(config) == spec
    old = {k: v for k, v in config.items() if k != "rope_parameters"}
    new = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")}
    assert LLAMA.read_config(old) == LLAMA.read_config(new) == spec


@given(spec=specs())
def test_a_spec_survives_json_and_the_args_of_megatron(spec):
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    layout = Layout(padded_vocab=1024)
    found = mcore.spec_of(mcore.args_of(spec, layout, dtype="bfloat16"))
    assert dataclasses.replace(found, family=spec.family) == mcore.bias_spec(spec)


@pytest.mark.parametrize("unknown", ["rope_low_freq_factor", "rope_high_freq_factor"])
def test_args_that_megatron_lm_wrote_have_what_megatron_core_has_built_in(unknown):
    spec = LLAMA.read_config({**LLAMA2, "rope_scaling": {**LLAMA3, "rope_theta": None}, "rope_theta": 5e5})
    args = mcore.args_of(spec, Layout(padded_vocab=32000), dtype="bfloat16")
    delattr(args, unknown)
    assert mcore.spec_of(args).rope == spec.rope


def means(config, key):
    """A value of a transformers config; in rope settings `type` is but the older name of `rope_type`."""
    value = getattr(config, key)
    return {k: v for k, v in value.items() if k != "type"} if key == "rope_parameters" else value


def test_the_config_that_we_write_means_the_same_to_transformers(tmp_path):
    for name, variant in VARIANTS.items():
        folder = make_llama(tmp_path / name, **variant)
        from transformers import LlamaConfig

        spec = LLAMA.read_config(json.loads((folder / "config.json").read_text()))
        theirs, ours = LlamaConfig.from_pretrained(folder), LlamaConfig(**LLAMA.write_config(spec))
        for key in ("hidden_size", "num_key_value_heads", "head_dim", "rms_norm_eps", "attention_bias", "mlp_bias",
                    "tie_word_embeddings", "vocab_size", "intermediate_size", "rope_parameters"):  # fmt: skip
            assert means(ours, key) == means(theirs, key), (name, key)


def test_llama2_as_the_hub_has_it():
    spec = LLAMA.read_config(dict(LLAMA2))
    assert (spec.num_query_groups, spec.kv_channels, spec.rope) == (32, 128, Rope())


@pytest.mark.parametrize(
    "change, says",
    [
        ({"sliding_window": 512}, r"sliding_window is 512, below max_position_embeddings \(4096\)"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"hidden_size": "4096"}, "hidden_size is '4096', not int"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, not bool"),
        ({"num_key_value_heads": 5}, "num_attention_heads 32 is not a multiple"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "linear"}}, r"lacks \['factor'\]"),
        ({"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2.0}}, "type"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "beta"),
        ({"rope_scaling": {k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}}, "low_freq_factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1e4}, "rope_theta"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}, "says"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "--ignore-config-key rope_scaling.beta"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "of their own for .'full_attention'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "factor is 0.5"),
        ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 32}, "is 32 but rope_scaling.*is 64"),
        ({"rope_scaling": "linear"}, "not an object"),
        ({"layer_types": ["full_attention"] * 31}, "layer_types has 31 entries, but num_hidden_layers is 32"),
        ({"layer_types": ["sliding_attention"] * 32}, "supports only 'full_attention'"),
        ({"layer_types": "full_attention"}, "layer_types is 'full_attention'"),
        ({"use_sliding_window": True}, "does not know use_sliding_window=True"),
        ({"hidden_size": 4096.0}, "hidden_size is 4096.0, not int"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, not int"),
    ],
)
def test_what_no_row_claims_is_refused_by_name(change, says):
    config = {k: v for k, v in {**LLAMA2, **change}.items() if v is not None or k == "rope_scaling"}
    with pytest.raises(ConfigError, match=says):
        family_of(config).read_config(config)


def test_old_config_and_new_config_of_llama3(tmp_path):
    folder = make_llama(tmp_path, **VARIANTS["llama3-rope"])
    config = json.loads((folder / "config.json").read_text())
    new = LLAMA.read_config(dict(config))
    rope = config["rope_parameters"]
    edit_json(folder / "config.json", rope_parameters=None, rope_theta=rope["rope_theta"],
              rope_scaling={k: v for k, v in rope.items() if k != "rope_theta"})  # fmt: skip
    assert LLAMA.read_config(json.loads((folder / "config.json").read_text())) == new
    assert new.rope == Rope(kind="llama3", base=5e5, factor=8.0, original_max_position_embeddings=64)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": ["full_attention"] * 32},
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28},
        {"rope_scaling": {}},
        {"rope_scaling": {"type": "default", "factor": 8.0}},
        {"rope_scaling": {}, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "attention_factor": 1.0}},
        {"head_dim": None, "num_key_value_heads": None, "torch_dtype": None, "dtype": "torch.bfloat16"},
        {"architectures": None},
        {"architectures": []},
        {"rope_theta": 10000, "original_max_position_embeddings": 77},
    ],
)
def test_what_transformers_ignores_changes_nothing(change):
    config = {**LLAMA2, **change}
    assert family_of(config).read_config(config) == LLAMA.read_config(dict(LLAMA2))


def test_a_setting_of_rope_that_other_kinds_have():
    linear = {"type": "linear", "factor": 2.0, "original_max_position_embeddings": 64, "beta_fast": 32}
    assert LLAMA.read_config({**LLAMA2, "rope_scaling": linear}).rope == Rope(kind="linear", factor=2.0)
    ignored = {**LLAMA2, "rope_scaling": {**linear, "novelty": 1}}
    assert LLAMA.read_config(ignored, {"rope_scaling.novelty"}).rope == Rope(kind="linear", factor=2.0)
    assert LLAMA.read(ignored, {"rope_scaling.novelty"})[1] == {"rope_scaling.novelty": 1}


def test_llama3_looks_for_the_trained_length_in_three_places():
    """As transformers does: in its settings, beside them, and at last the context length."""
    bare = {name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"}

    def found(**change):
        return LLAMA.read_config({**LLAMA2, **change}).rope.original_max_position_embeddings

    assert found(rope_scaling=LLAMA3) == 64
    assert found(rope_scaling=bare, original_max_position_embeddings=32) == 32
    assert found(rope_scaling=bare) == 4096
