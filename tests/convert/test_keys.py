"""Which keys of a config.json transformers reads, by watching it, and that the keys which mconv keeps change nothing."""

import dataclasses
import json

import pytest
import torch
from tiny import edit_json, make_model

from mconv.convert.families import FAMILIES
from mconv.convert.spelling.keys import Kept
from mconv.convert.spelling.known import BASE_KEYS, ONE, ONLY, YES
from mconv.errors import ConfigError

MODELS = {"llama": "llama-gqa", "mistral": "mistral-window", "falcon": "falcon-7b", "gpt2": "gpt2-tied",
          "qwen2": "qwen2-gqa", "qwen3": "qwen3-gqa"}  # fmt: skip
SMALL = {"llama": "num_hidden_layers", "mistral": "num_hidden_layers", "falcon": "num_hidden_layers", "gpt2": "n_layer",
         "qwen2": "num_hidden_layers", "qwen3": "num_hidden_layers"}  # fmt: skip
MACHINERY = {
    "base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan", "sub_configs",
    "sub_configs_defaults", "is_heterogeneous", "default_theta", "default_rope_type", "ignore_keys_at_rope_validation",
    "keys_to_ignore_at_inference", "attribute_map", "rotary", "has_no_defaults_at_init",
}  # fmt: skip
"""Attributes of transformers' classes, which no config.json sets."""
VALIDATED = {"num_heads", "head_dim", "rope_parameters", "mlp_layer_types"}
"""Read only to be held against other keys, in families whose models do not have them."""
UNTOUCHED = {
    "model_type", "auto_map", "generation_config", "dtype", "torch_dtype", "architectures", "return_dict",
    "use_return_dict", "torchscript", "name_or_path",
}  # fmt: skip
"""Kept keys of which another value makes transformers load other classes or dtypes, or give its result another form."""
ODD = {
    "use_cache": False, "id2label": {"0": "A"}, "label2id": {"A": 0}, "problem_type": "regression", "num_labels": 1,
    "pruned_heads": {"0": [1]}, "bad_words_ids": [[3]], "tokenizer_class": "X", "output_hidden_states": True,
    "output_attentions": True, "chunk_size_feed_forward": 3, "is_encoder_decoder": False, "is_decoder": True,
    "pad_token_id": 5, "bos_token_id": 6, "eos_token_id": [7, 8], "transformers_version": "4.0.0",
    "_attn_implementation": "eager", "attn_implementation": "eager", "pretraining_tp": 2, "summary_type": "last",
    "summary_use_proj": False, "summary_proj_to_labels": False, "summary_activation": "tanh",
    "experts_implementation": "eager", "_experts_implementation": "eager", "cache_implementation": "dynamic",
    "early_stopping": True, "num_beams": 2, "num_beam_groups": 1, "num_return_sequences": 2, "do_sample": True,
}  # fmt: skip
"""A value of each kept key that says something else than its default; 0.3 for the rest."""


def model_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def logits(folder):
    with torch.no_grad():
        return model_of(folder)(torch.arange(40)[None]).logits


def claims(family, config, name):
    """Return whether a row of the table takes the key, or refuses its value."""
    try:
        return name not in family._claim({**config, name: 12345})[1]
    except ConfigError:
        return True


@pytest.fixture(scope="module", params=sorted(MODELS))
def made(request, tmp_path_factory):
    """A family, and the folder of a small model of it."""
    folder = tmp_path_factory.mktemp("keys") / request.param
    return FAMILIES[request.param], make_model(MODELS[request.param], folder, **{SMALL[request.param]: 2})


def test_every_key_that_transformers_reads_is_claimed(made, monkeypatch):
    """While it loads a model, runs it and generates. Without the common keys' rows, this fails."""
    from transformers import PreTrainedConfig

    family, folder = made
    seen, get = set(), PreTrainedConfig.__getattribute__
    monkeypatch.setattr(PreTrainedConfig, "__getattribute__", lambda self, name: (seen.add(name), get(self, name))[1])
    model = model_of(folder)
    with torch.no_grad():
        model.generate(torch.arange(20)[None], max_new_tokens=3, do_sample=False, pad_token_id=0)
    monkeypatch.undo()
    kind = type(model.config)
    keys = {n for n in seen - MACHINERY if not n.startswith("_") and not callable(getattr(kind, n, None))}
    config = json.loads((folder / "config.json").read_text())
    only = keys & {key.key for key in ONLY}  # transformers 5.0 reads fewer than 5.24
    assert {"tie_word_embeddings", "layer_types"} < keys and {"quantization_config", "text_config"} < only
    assert {name for name in keys if not claims(family, config, name)} <= VALIDATED
    poorer = dataclasses.replace(family, config=tuple(key for key in family.config if key not in ONLY))
    assert {name for name in keys if not claims(poorer, config, name)} >= only - {"auto_map"}  # which Falcon keeps


def test_kept_keys_change_no_logit(made):
    family, folder = made
    names = {name for key in family.config if isinstance(key, Kept) for name in key.names} - UNTOUCHED
    config = folder / "config.json"
    plain, want = config.read_text(), logits(folder)
    edit_json(config, **{name: ODD.get(name, 0.3) for name in names})
    assert names > {"neftune_noise_alpha", "use_flash_attn", "max_seq_len", "num_logits_to_keep", "_model_name_or_path"}
    assert family.read_config(json.loads(config.read_text())) == family.read_config(json.loads(plain))
    assert torch.equal(logits(folder), want)
    config.write_text(plain)


def test_generation_settings_in_a_config_are_kept():
    """transformers takes them out of a config.json by this list."""
    from transformers import GenerationConfig

    assert set(GenerationConfig._get_default_generation_params()) <= set(BASE_KEYS.names)


NOTHING = [False, 0, 0.0, "", [], {}, None]


@pytest.mark.parametrize("name", ["attn_logit_softcapping", "qk_norm", "use_qk_norm", "num_local_experts", "bias"])
def test_a_key_whose_value_says_nothing_passes(made, name):
    family, folder = made
    config = json.loads((folder / "config.json").read_text())
    for value in NOTHING if name != "bias" else [False]:
        assert family.read_config({**config, name: value}) == family.read_config(config)
    if name != "bias":
        with pytest.raises(ConfigError, match=f"does not know {name}=2.*--ignore-config-key {name}"):
            family.read_config({**config, name: 2})
        assert family.read_config({**config, name: 2}, {name}) == family.read_config(config)


def test_no_is_not_always_nothing(made):
    """Of a factor, zero says much; so does a no to what every model of these families has."""
    family, folder = made
    config = json.loads((folder / "config.json").read_text())
    for name, fine, wrong in [*((n, True, False) for n in YES), *((n, 1.0, 0.0) for n in ONE), ("x_multiplier", None, 0)]:
        assert family.read_config({**config, name: fine}) == family.read_config(config)
        with pytest.raises(ConfigError, match=f"does not know {name}="):
            family.read_config({**config, name: wrong})
    for change in ({"is_causal": False}, {"per_layer_config": {"0": {}}}, {"text_config": {"a": 1}}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            family.read_config({**config, **change}, set(change))
