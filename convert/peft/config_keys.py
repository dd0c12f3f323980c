"""Table of the keys of PEFT's `adapter_config.json`; a key that no row claims stops.

Names and defaults are those of `LoraConfig` in PEFT 0.2 to 0.21. What PEFT does with them was read from its
`tuners/lora/layer.py`, `tuners/tuners_utils.py` and `utils/save_and_load.py`.
"""

import math
from collections.abc import Collection
from typing import Any

READ = (
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "bias", "modules_to_save", "init_lora_weights",
)  # fmt: skip
"""Keys whose values are read, and held against the tensors."""

FREE = (
    "task_type", "inference_mode", "revision", "peft_version", "base_model_name_or_path", "auto_mapping",
    "base_model_class", "parent_library", "fan_in_fan_out", "megatron_core", "megatron_config", "qalora_group_size",
    "runtime_config", "ensure_weight_tying", "low_cpu_mem_usage", "merge_weights", "eva_config", "corda_config",
    "loftq_config", "lora_ga_config", "velora_config",
)  # fmt: skip
"""Keys that change no merged weight: who made the adapter, how it is loaded, and how it was started or trained.

PEFT takes fan_in_fan_out from the module itself (true for GPT-2's Conv1D, false for a linear), whatever the key says; an
initialisation's own config (eva_config and others) matters with that initialisation alone, which INITS judges.
"""

MERGE = "merge it with PEFT's own merge_and_unload and convert the result"
STOPS = {
    "use_dora": "DoRA rescales each row of the merged weight",
    "lora_bias": "a bias of lora_B is added to the base's biases",
    "trainable_token_indices": "it replaces single rows of the embedding",
    "target_parameters": "it adapts parameters that are no module's weight",
    "layer_replication": "it repeats layers of the base, so the model has more of them",
    "use_qalora": "QALoRA pools the inputs of A",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "kasa_config": "KaSA truncates the base's weights",
    "monteclora_config": "MonteCLoRA samples around the factors",
    "arrow_config": "Arrow routes each token to another adapter",
    "enable_lora": "the old MergedLinear has one adapter for several linears",
}
"""Keys that change the function when they say something, and what it is that they change."""
NEVER = {"alora_invocation_tokens": "aLoRA acts on the tokens after its invocation alone, which no merged weight can do"}
"""Keys that no merge can follow, PEFT's own included."""

INITS: dict[str, str | None] = {
    "true": None, "false": None, "gaussian": None, "eva": None, "orthogonal": None, "mica": None,
    "pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ", "lora_ga": "LoRA-GA",
}  # fmt: skip
"""Ways to start an adapter; a name where PEFT takes what the new adapter makes out of the base's own weights."""


def problems(config: dict[str, Any], *, ignore: Collection[str] = ()) -> list[str]:
    """Return all that the config says and mconv does not do, or does not know. `ignore`: keys that the user lets pass."""
    return [*_shape(config), *_patterns(config), *_start(config), *_stops(config), *_unknown(config, ignore)]


def passed(config: dict[str, Any], ignore: Collection[str]) -> dict[str, Any]:
    """Return the keys that no row claims, that say something, and that the user lets pass."""
    claimed = {*READ, *FREE, *STOPS, *NEVER}
    return {name: value for name, value in config.items() if name in ignore and name not in claimed and value}


def _shape(config: dict[str, Any]) -> list[str]:
    """Return what is wrong with rank, alpha, dropout and the kind of adapter."""
    bad, kind = [], config.get("peft_type")
    if kind != "LORA":
        bad.append(f"peft_type is {kind!r}; mconv reads LORA")
    if not _is_rank(config.get("r", 8)):
        bad.append(f"r is {config.get('r')!r}; it must be a positive integer")
    if not _is_number(config.get("lora_alpha", 8)):
        bad.append(f"lora_alpha is {config.get('lora_alpha')!r}; it must be a finite number")
    dropout = config.get("lora_dropout") or 0.0
    if not _is_number(dropout) or not 0 <= dropout < 1:
        bad.append(f"lora_dropout is {dropout!r}; it must be a number from 0 to below 1")
    for name in ("use_rslora", "ensure_weight_tying"):
        if config.get(name) not in (None, True, False):
            bad.append(f"{name} is {config[name]!r}; it must be true or false")
    if config.get("bias") not in (None, "none", "all", "lora_only"):
        bad.append(f"bias is {config['bias']!r}; PEFT knows none, all and lora_only")
    return bad


def _is_rank(value: object) -> bool:
    return type(value) is int and value > 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _patterns(config: dict[str, Any]) -> list[str]:
    """Return what is wrong with the keys that choose modules."""
    bad = []
    for name, fits, what in (("rank_pattern", _is_rank, "positive integers"), ("alpha_pattern", _is_number, "numbers")):
        value = config.get(name) or {}
        if not isinstance(value, dict) or not all(map(fits, value.values())):
            bad.append(f"{name} is {value!r}; it must map names or patterns of modules to {what}")
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = config.get(name)
        words = [value] if isinstance(value, str) and name != "modules_to_save" else value or []
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            bad.append(f"{name} is {value!r}; it must be a list of names")
    layers = config.get("layers_to_transform")
    if layers is not None and not all(type(n) is int for n in (layers if isinstance(layers, list) else [layers])):
        bad.append(f"layers_to_transform is {layers!r}; it must be a layer's number, or a list of them")
    if isinstance(config.get("target_modules"), str) and layers not in (None, []):
        bad.append("layers_to_transform goes with a list of target_modules, and this one is a pattern; PEFT refuses both")
    return bad


def _start(config: dict[str, Any]) -> list[str]:
    """Return why an adapter that was started so cannot be added to the base as it was published."""
    value = config.get("init_lora_weights", True)
    word = "true" if value is None else str(value).lower()
    word = "pissa" if word.startswith("pissa_niter_") else word
    if word not in INITS:
        return [f"init_lora_weights is {value!r}, which mconv does not know; it may change the base"]
    if INITS[word] is None:
        return []
    plain = "save it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes a plain "
    plain = "" if word == "loftq" else plain + "adapter of it; or "
    return [
        f"init_lora_weights is {value!r}: {INITS[word]} starts by changing the base's own weights, so the factors do not "
        f"belong to the base as it was published; {plain}save the base as {INITS[word]} left it, give that with --base, "
        "and write init_lora_weights true"
    ]


def _stops(config: dict[str, Any]) -> list[str]:
    """Return the keys that change the function in a way that mconv does not compute."""
    bad = [f"{name} is {config[name]!r}: {why}; {MERGE}" for name, why in STOPS.items() if config.get(name)]
    return bad + [f"{name} is {config[name]!r}: {why}" for name, why in NEVER.items() if config.get(name)]


def _unknown(config: dict[str, Any], ignore: Collection[str]) -> list[str]:
    """Return the keys that no row claims and that say something."""
    claimed = {*READ, *FREE, *STOPS, *NEVER, *ignore}
    return [
        f"{name} is {value!r}, which mconv does not know; if it changes nothing, --ignore-config-key {name} lets it pass"
        for name, value in config.items()
        if name not in claimed and value
    ]
