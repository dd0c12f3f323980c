"""Recipes of every method for tests, over four tiny models `base`, `a`, `b`, `c` of three layers, in fp32 and in bf16."""

import json

import torch
from safetensors.torch import save_file

DEPTH, HIDDEN, FFN, VOCAB = 3, 32, 48, 61
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": DEPTH, "vocab_size": VOCAB,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN), "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}  # fmt: skip
TWO = """
models:
  - model: ../base
  - model: ../a
    parameters: {weight: 0.6, density: 0.5}
  - model: ../b
    parameters: {weight: 0.3, density: 0.35}
base_model: ../base
"""
THREE = """
models:
  - model: ../a
    parameters: {weight: 0.6, density: [0.3, 0.9]}
  - model: ../b
    parameters:
      weight:
        - {filter: self_attn, value: [0.1, 0.5, 0.4]}
        - {filter: layers.1.mlp, value: -0.2}
        - value: 0.3
      density: 0.7
  - model: ../c
base_model: ../base
parameters: {weight: 0.25, density: 0.45}
"""
PAIR = "models: [{model: ../a}, {model: ../b}]\nbase_model: ../a\n"
BASED = "models: [{model: ../a}, {model: ../b}, {model: ../c}]\nbase_model: ../base\n"
PLAIN = "models: [{model: ../a, parameters: {weight: 0.6}}, {model: ../b, parameters: {weight: 0.2}}]\n"
SOUP = """
models:
  - {model: ../a, parameters: {weight: [0, 1]}}
  - {model: ../b, parameters: {weight: 0.3}}
  - {model: ../c, parameters: {weight: {filter: mlp, value: 2}}}
"""
SLICES = """
slices:
  - sources:
      - {model: ../a, layer_range: [0, 2]}
      - {model: ../b, layer_range: [1, 3], parameters: {weight: [0.9, 0.1]}}
  - sources:
      - {model: ../b, layer_range: [0, 3]}
      - {model: ../c, layer_range: [0, 3]}
    parameters: {weight: 0.7}
parameters: {weight: 0.4}
"""
FAMILY = {
    "task_arithmetic": "", "ties": "", "dare_ties": "", "dare_linear": "", "breadcrumbs": "gamma: 0.1",
    "breadcrumbs_ties": "gamma: [0.02, 0.2]", "della": "epsilon: 0.09", "della_linear": "epsilon: 0.05",
}  # fmt: skip


def _with(recipe, **parameters):
    """Return a recipe with more parameters for the whole merge."""
    written = ", ".join(f"{name}: {value}" for name, value in parameters.items())
    if "\nparameters: {" in recipe:
        return recipe.replace("\nparameters: {", f"\nparameters: {{{written}, ")
    return f"{recipe}\nparameters: {{{written}}}\n"


def _recipes():
    yield "linear", "linear", SOUP + "parameters: {weight: 0.5}"
    yield "linear-sum", "linear", _with(PLAIN, normalize="false")
    yield "linear-slices", "linear", SLICES
    yield "slerp", "slerp", PAIR + "parameters: {t: [{filter: self_attn, value: [0, 0.5, 1]}, {value: 0.3}]}"
    yield "nuslerp", "nuslerp", PLAIN
    yield "nuslerp-rows", "nuslerp", _with(PLAIN, nuslerp_flatten="false")
    yield "nuslerp-columns", "nuslerp", _with(PLAIN, nuslerp_flatten="false", nuslerp_row_wise="true")
    yield "nuslerp-base", "nuslerp", PLAIN + "base_model: ../base"
    yield "multislerp", "multislerp", _with(PLAIN, eps="1e-7")
    yield "multislerp-base", "multislerp", _with(BASED, weight="[0.2, 0.4]")
    yield "multislerp-sum", "multislerp", _with(BASED, weight=0.3, normalize_weights="false")
    yield "karcher", "karcher", "models: [{model: ../a}, {model: ../b}, {model: ../c}]"
    yield "karcher-one-step", "karcher", "models: [{model: ../a}, {model: ../b}]\nparameters: {max_iter: 1}"
    yield "model_stock", "model_stock", BASED
    yield "model_stock-rows", "model_stock", _with(BASED, filter_wise="true")
    yield "passthrough", "passthrough", "models: [{model: ../a}]\nparameters: {scale: [{filter: down_proj, value: 0.3}]}"
    yield "sce", "sce", BASED
    yield "sce-top", "sce", _with(BASED, select_topk=0.3)
    yield "arcee_fusion", "arcee_fusion", PAIR
    yield "nearswap", "nearswap", _with(PAIR, t="[0.0005, 0.002]")
    for method, more in FAMILY.items():
        extra = dict([more.split(": ", 1)]) if more else {}
        yield method, method, _with(TWO, **extra)
        yield f"{method}-three", method, _with(THREE, **extra, **{"lambda": 0.8})
        yield (
            f"{method}-other",
            method,
            _with(THREE, **extra, normalize="true", rescale="false" if method.startswith(("dare", "della")) else "true"),
        )


CASES = {
    f"{name}-{dtype}": f"merge_method: {method}\n{recipe}\ndtype: {dtype}\n"
    for name, method, recipe in _recipes()
    for dtype in ("float32", "bfloat16")
}
RANDOM = ("dare", "della")


def make_models(folder):
    """Write `base`, and `a`, `b` and `c` that are it with heavy-tailed differences."""
    draw = torch.Generator().manual_seed(7)
    shapes = {"model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN), "model.norm": (HIDDEN,)}
    shapes |= {f"model.layers.{at}.{leaf}": shape for at in range(DEPTH) for leaf, shape in SHAPES.items()}
    base = {
        f"{name}.weight": torch.randn(shape, generator=draw) * 0.05 + (len(shape) == 1) for name, shape in shapes.items()
    }
    for model in ("base", "a", "b", "c"):
        (folder / model).mkdir(parents=True)
        tensors = {
            name: tensor + (model != "base") * 0.003 * torch.randn(tensor.shape, generator=draw) ** 3
            for name, tensor in base.items()
        }
        save_file(tensors, folder / model / "model.safetensors", metadata={"format": "pt"})
        (folder / model / "config.json").write_text(json.dumps(CONFIG))
