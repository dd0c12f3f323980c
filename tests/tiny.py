"""Tiny Hugging Face models with random weights, made by transformers itself."""

import json
from pathlib import Path

import torch

BASE = {
    "vocab_size": 151, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
VARIANTS = {
    "gqa": {},
    "mha": {"num_key_value_heads": 8},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "free-head-dim": {"head_dim": 10},
    "all-biases": {"attention_bias": True, "mlp_bias": True},
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3-rope": {"rope_parameters": LLAMA3, "max_position_embeddings": 1024},
    "code-llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "rms_norm_eps": 1e-6},
}
MISTRALS = {
    "window": {"sliding_window": 16},
    "no-window": {"sliding_window": None},
    "window-tied": {"sliding_window": 5, "tie_word_embeddings": True},
    "window-free-head-dim": {"sliding_window": 16, "head_dim": 10, "num_key_value_heads": 1},
}
FALCON = {
    "vocab_size": 151, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 8, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.2, "max_position_embeddings": 256,
}  # fmt: skip
NEW = {"new_decoder_architecture": True, "num_kv_heads": 4}
FALCONS = {
    "7b": {},
    "7b-untied": {"tie_word_embeddings": False, "ffn_hidden_size": 100},
    "7b-biases": {"bias": True},
    "40b": NEW,
    "40b-biases": {**NEW, "bias": True, "tie_word_embeddings": False},
    "11b": {**NEW, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500042.0}},
    "heads": {"multi_query": False},
    "in-turn": {"multi_query": False, "parallel_attn": False, "bias": True},
    "in-turn-mqa": {"parallel_attn": False},
    "rw": {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
    "40b-alibi": {**NEW, "alibi": True},
    "40b-linear-rope": {**NEW, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
}  # fmt: skip


GPT2 = {
    "vocab_size": 151, "n_embd": 48, "n_layer": 4, "n_head": 8, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2,
}  # fmt: skip
GPT2S = {
    "tied": {},
    "untied": {"tie_word_embeddings": False, "n_inner": 100, "layer_norm_epsilon": 1e-6},
    "erf": {"activation_function": "gelu"},
}


def make_llama(folder: Path, **options: object) -> Path:
    """Save a random LLaMA in `folder`."""
    return _make(folder, "Llama", **{**BASE, **options})


def make_mistral(folder: Path, **options: object) -> Path:
    """Save a random Mistral in `folder`."""
    return _make(folder, "Mistral", **{**BASE, **options})


def make_falcon(folder: Path, **options: object) -> Path:
    """Save a random Falcon in `folder`."""
    return _make(folder, "Falcon", **{**FALCON, **options})


def make_gpt2(folder: Path, **options: object) -> Path:
    """Save a random GPT-2 in `folder`."""
    return _make(folder, "GPT2", head="LMHeadModel", **{**GPT2, **options})


QWEN2S = {
    "gqa": {},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 8},
    "window": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
}


def make_qwen2(folder: Path, **options: object) -> Path:
    """Save a random Qwen2 in `folder`."""
    return _make(folder, "Qwen2", **{**BASE, **options})


QWEN3S = {
    "gqa": {"head_dim": 10, "num_key_value_heads": 4},
    "tied": {"head_dim": 6, "tie_word_embeddings": True},
    "biases": {"head_dim": 8, "attention_bias": True, "num_key_value_heads": 2},
}


def make_qwen3(folder: Path, **options: object) -> Path:
    """Save a random Qwen3 in `folder`."""
    return _make(folder, "Qwen3", **{**BASE, **options})


MODELS = {
    **{f"llama-{name}": (make_llama, variant) for name, variant in VARIANTS.items()},
    **{f"mistral-{name}": (make_mistral, variant) for name, variant in MISTRALS.items()},
    **{f"falcon-{name}": (make_falcon, variant) for name, variant in FALCONS.items()},
    **{f"gpt2-{name}": (make_gpt2, variant) for name, variant in GPT2S.items()},
    **{f"qwen2-{name}": (make_qwen2, variant) for name, variant in QWEN2S.items()},
    **{f"qwen3-{name}": (make_qwen3, variant) for name, variant in QWEN3S.items()},
}
"""Every variant of every family: what makes it, and its config."""
NEW_ROPE = ("falcon-11b", "falcon-40b-linear-rope", "llama-code-llama", "llama-linear-rope", "llama-llama3-rope")
"""Models whose rotary settings are not transformers' defaults."""


def make_model(name: str, folder: Path, **options: object) -> Path:
    """Save one of `MODELS` in `folder`."""
    make, variant = MODELS[name]
    return make(folder, **{**variant, **options})


def _make(
    folder: Path, family: str, *, head: str = "ForCausalLM", dtype: torch.dtype = torch.float32, seed: int = 0,
    shard: str = "50GB", **config: object,
) -> Path:  # fmt: skip
    """A random model with sharp attention, norms away from 1, biases away from 0."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    described = getattr(transformers, f"{family}Config")(**config)
    model = getattr(transformers, f"{family}{head}")(described).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.2)
            elif "norm" in name or "ln_" in name:
                parameter.uniform_(0.5, 1.5)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 256}\n')
    return folder


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors folder, by safetensors' own reader."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Same names, dtypes, shapes and bits."""
    return a.keys() == b.keys() and all(
        x.dtype == b[n].dtype and x.shape == b[n].shape and torch.equal(x.view(torch.uint8), b[n].view(torch.uint8))
        for n, x in a.items()
    )
