"""`params.json` beside Meta's and Mistral's own weights: every key is claimed by a table."""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mconv.convert.formats import meta
from mconv.convert.formats.hf import read_json
from mconv.errors import ConfigError, refuse

NUMBERS: dict[str, type] = {
    "dim": int, "n_layers": int, "n_heads": int, "n_kv_heads": int, "vocab_size": int, "norm_eps": float,
    "rope_theta": float, "max_seq_len": int, "max_batch_size": int,
    # Meta's
    "multiple_of": int, "ffn_dim_multiplier": float, "use_scaled_rope": bool, "rope_scaling_factor": float,
    "rope_high_freq_factor": float, "model_parallel_size": int,
    # Mistral's
    "hidden_dim": int, "head_dim": int, "sliding_window": int, "max_position_embeddings": int, "tied_embeddings": bool,
}  # fmt: skip
"""Keys that say the architecture, and how long a text the model was trained for."""
FREE = ("vocab_size", "max_batch_size")
"""Numbers that may be -1 or 0: not said."""
ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("transformer",), "activation": ("silu",), "use_biases": (False,), "causal": (True,),
    "attention_bias": (False,), "norm_type": ("rms",),
}  # fmt: skip
"""Keys of which mconv computes one value."""
KEPT = ("dtype", "name", "version", "model_name", "tokenizer")
"""Keys that change nothing that is computed."""
OTHERS = {
    "moe": "a mixture of experts", "vision_encoder": "a model of images and text", "multimodal": "one of several media",
    "quantization": "quantised weights", "quantization_config": "quantised weights", "lora": "an adapter within it",
    "yarn": "rope scaling by YaRN", "rope_scaling": "a rope scaling of Mistral's", "q_lora_rank": "latent attention",
    "llama_4_scaling": "queries scaled by position", "kv_lora_rank": "latent attention",
    "qk_nope_head_dim": "latent attention", "qk_rope_head_dim": "latent attention", "v_head_dim": "latent attention",
    "qk_norm": "norms of queries and keys", "use_qk_norm": "norms of queries and keys",
}  # fmt: skip
"""Keys of other architectures, and what they are."""
NEEDED = ("dim", "n_layers", "n_heads", "norm_eps")


def is_mistral(params: dict[str, Any]) -> bool:
    """Return whether it is Mistral's: the width of its MLP is said, where Meta's follows from the hidden size."""
    return "hidden_dim" in params


def read(folder: Path, ignore: Collection[str] = ()) -> dict[str, Any]:
    """Return `params.json`, every key known and of its kind; those that say nothing are left out.

    Raises ConfigError, by name, on a key that no row claims and that is not in `ignore`.
    """
    path = folder / meta.PARAMS
    passed = passed_over(folder, ignore)
    params = {name: value for name, value in read_json(path).items() if value is not None and name not in passed}
    if "sliding_window" in params:
        params["sliding_window"] = _window(path, params["sliding_window"])
    params = {name: value for name, value in params.items() if value is not None}
    problems = [f"{path} has no {name!r}, which decides the architecture" for name in NEEDED if name not in params]
    problems += [f"{path}: {problem}" for name, value in params.items() if (problem := _problem(name, value))]
    refuse(problems, doing=f"reading {path}", kind=ConfigError)
    return {name: value for name, value in params.items() if name in NUMBERS}


def passed_over(folder: Path, ignore: Collection[str]) -> dict[str, Any]:
    """Return the keys of `params.json` that `ignore` names, with their values. Raises ConfigError on a claimed one."""
    path = folder / meta.PARAMS
    named = {name: value for name, value in read_json(path).items() if name in ignore}
    table = {*NUMBERS, *ONLY, *OTHERS, *KEPT}
    refuse(
        [f"{path}: --ignore-config-key {name}, but the table claims that key: it is read, not passed over"
         for name in sorted(named.keys() & table)],
        doing="names to ignore", kind=ConfigError,
    )  # fmt: skip
    return named


def _problem(name: str, value: Any) -> str | None:
    """What is wrong with one key, or None."""
    kind = NUMBERS.get(name)
    empty = kind is None and value in ({}, [], "")
    if name in KEPT or empty or value in ONLY.get(name, ()) or (kind is None and value is False and name not in ONLY):
        return None
    if name in ONLY:
        return f"{name} is {value!r}; mconv supports only {ONLY[name][0]!r}"
    if name in OTHERS:
        return f"{name} says that it is {OTHERS[name]}, which mconv does not convert"
    if kind is None:
        return (
            f"mconv does not know {name}={repr(value)[:60]}, and cannot tell whether it changes the model. If it does "
            f"not: --ignore-config-key {shlex.quote(name)}"
        )
    if type(value) is not kind and (kind is not float or type(value) is not int):
        return f"{name} is {repr(value)[:60]}, not {kind.__name__}"
    if kind is not bool and name not in FREE and not (isinstance(value, (int, float)) and 0 < value < 1 << 53):
        return f"{name} is {value}; it must be positive"
    return None


def _window(path: Path, value: Any) -> Any:
    """A sliding window as one number for all layers: it may be a text, or a list that repeats over the layers."""
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        value = value[0]
    if isinstance(value, list):
        raise ConfigError(
            f"{path}: sliding_window is {repr(value)[:60]}: layers with and without, which mconv does not convert"
        )
    return int(value) if isinstance(value, str) and value.isdecimal() else value
