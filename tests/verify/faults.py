"""Faults to plant, each in a model in which it can be seen: what a converter gets wrong, a disk flips, a config forgets.

`plant` makes the pair: the reference is the right Hugging Face folder, the candidate a Megatron checkpoint (or, where the
fault is one of exporting, another folder) that has the fault. Most faults are in what is converted, so that the candidate
is what a wrong converter would have written; some are in the bytes of a rank's file; one is in the function, which no
file shows: it is there only within `acting`.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from judge import convert
from safetensors.torch import save_file
from tiny import LLAMA3, NEW, edit_json, make_falcon, make_llama, make_mistral, make_qwen2, make_qwen3, tensors
from wrongs import (
    H,
    L,
    Tensors,
    centre_the_norms,
    copy_a_norm,
    drop_biases,
    drop_head_norms,
    drop_the_keys_bias,
    exchange,
    exchange_groups,
    exchange_head_norms,
    exchange_layers,
    flip_an_exponent_bit,
    forget_head_norms,
    interleave_rotary_rows,
    leak_a_padded_row,
    lose_a_layer,
    order_slots_not_groups,
    repeat_a_layer,
    replace,
    shuffle_rows,
    tanh_gelu,
    tie_the_head,
    untie_the_head,
    zero_a_row,
)

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.formats.mapped import bytes_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A right model: what makes it, and what is done to its weights before anything is converted."""

    make: Callable[..., Path]
    config: Mapping[str, object]
    settle: Callable[[Tensors], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Bytes of a Megatron checkpoint: a logical tensor, and whose file where several ranks have a part or a copy."""

    logical: str
    change: Callable[[torch.Tensor], torch.Tensor]
    rank: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, the model that has it and the place that it is planted in: one of weights, config, spot, function."""

    name: str
    model: str
    guess: str | None
    """What the verifier should call it; None: it is only to be caught."""
    weights: Callable[[Tensors], None] | None = None
    """Done to the tensors of the folder that the candidate is converted from."""
    config: Mapping[str, object] = field(default_factory=dict)
    """What that folder's config says otherwise."""
    spot: Spot | None = None
    """Done to the bytes of the converted checkpoint."""
    function: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]] | None = None
    """What Megatron's side computes otherwise: a table of its layers, and what it holds then."""
    layout: Mapping[str, object] = field(default_factory=dict)
    """How the candidate is converted; a torch_dist of one rank if nothing is said."""

    @property
    def place(self) -> str:
        if self.function:
            return "function"
        if self.spot:
            return f"{self.layout.get('format', 'torch_dist')} file"
        return " and ".join(["weights"] * bool(self.weights) + ["config"] * bool(self.config))


# ---- models: weights as initialised (0.02) unless attention must be sharp for positions to matter --------------------
LLAMA = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "vocab_size": 331, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "initializer_range": 0.02,
}  # fmt: skip
FALCON = {**{name: LLAMA[name] for name in ("hidden_size", "num_attention_heads", "vocab_size")},
          "max_position_embeddings": 1024, "initializer_range": 0.02}  # fmt: skip
LLAMA31 = {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 512}
SHARP = {"initializer_range": 0.1, "head_dim": 64}


def quieten(t: Tensors) -> None:
    """What writes to the residual stream starts at 0.02 / sqrt(2 layers) in many recipes: 0.006 with six."""
    for name in t:
        if name.endswith(("down_proj.weight", "o_proj.weight")):
            t[name] = (t[name].float() * 0.3).to(t[name].dtype)


MODELS = {
    "llama": Model(make=make_llama, config=LLAMA),
    "llama-quiet": Model(make=make_llama, config=LLAMA, settle=quieten),
    "llama-tied": Model(make=make_llama, config={**LLAMA, "tie_word_embeddings": True}),
    "llama-biases": Model(make=make_llama, config={**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-3.1": Model(make=make_llama, config={**LLAMA, **SHARP, "rope_parameters": LLAMA31}),
    "code-llama": Model(
        make=make_llama,
        config={**LLAMA, **SHARP, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "mistral": Model(make=make_mistral, config={**LLAMA, "sliding_window": 64}),
    "qwen2": Model(make=make_qwen2, config={k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "qwen3": Model(make=make_qwen3, config=LLAMA),
    "falcon-7b": Model(make=make_falcon, config={**FALCON, "initializer_range": 0.1}),
    "falcon-40b": Model(make=make_falcon, config={**FALCON, **NEW, "num_kv_heads": 2, "bias": True}),
}


RANKS = {"format": "mp_rank", "tp": 2}
ROPE = {"rope_theta": LLAMA31["rope_theta"]}
FAULTS = (
    # ---- the order of rows
    Fault(name="gate and up swapped in one layer", model="llama", guess="gate-up-swapped", layout={"format": "mp_rank"},
          spot=Spot(logical="layer.1.mlp_in.weight", change=lambda x: x.roll(len(x) // 2, 0))),
    Fault(name="rotary permute skipped", model="llama", guess="rotary-order", weights=interleave_rotary_rows),
    Fault(name="q and k of two groups exchanged", model="llama", guess="query-group-order", weights=exchange_groups),
    Fault(name="key and value exchanged", model="llama", guess="slot-order",
          weights=exchange(L.format(2) + "self_attn.k_proj.weight", L.format(2) + "self_attn.v_proj.weight")),
    Fault(name="qkv slot by slot, not group by group", model="falcon-40b", guess="slot-order",
          weights=order_slots_not_groups),
    Fault(name="rows shuffled, sigma 0.006", model="llama-quiet", guess="shuffled", weights=shuffle_rows),
    Fault(name="a square weight transposed", model="llama", guess="transposed",
          weights=replace(L.format(1) + "self_attn.o_proj.weight", lambda x: x.T)),
    # ---- values
    Fault(name="norm weights off by one", model="llama", guess="norm-off-by-one", weights=centre_the_norms),
    Fault(name="a weight halved", model="llama", guess="factor",
          weights=replace(L.format(2) + "mlp.down_proj.weight", lambda x: x / 2)),
    Fault(name="the up half of a gated MLP halved", model="llama", guess=None,
          weights=replace(L.format(2) + "mlp.up_proj.weight", lambda x: x / 2)),
    Fault(name="one tp rank's shard zeroed", model="llama", guess="zeroed", layout=RANKS,
          spot=Spot(logical="layer.1.attn_out.weight", rank="mp_rank_01", change=torch.zeros_like)),
    Fault(name="one tp rank's shard scaled", model="llama", guess=None, layout=RANKS,
          spot=Spot(logical="layer.2.qkv.weight", rank="mp_rank_01", change=lambda x: x * 1.5)),
    Fault(name="one exponent bit flipped", model="llama", guess="bit-flipped",
          spot=Spot(logical="layer.2.mlp_out.weight", change=flip_an_exponent_bit)),
    Fault(name="a norm's bias dropped", model="falcon-40b", guess="bias-dropped",
          weights=replace(f"{H}ln_mlp.bias", torch.zeros_like)),
    Fault(name="a linear's bias dropped", model="falcon-40b", guess="bias-dropped",
          weights=replace(f"{H}mlp.dense_h_to_4h.bias", torch.zeros_like)),
    Fault(name="the key's bias dropped", model="falcon-40b", guess="bias-dropped",
          weights=replace(f"{H}self_attention.query_key_value.bias", drop_the_keys_bias)),
    Fault(name="all biases dropped", model="llama-biases", guess="bias-dropped", weights=drop_biases,
          config={"attention_bias": False, "mlp_bias": False}),
    Fault(name="the value's bias dropped", model="qwen2", guess="bias-dropped",
          weights=replace(L.format(1) + "self_attn.v_proj.bias", torch.zeros_like)),
    Fault(name="attention's and MLP's norm exchanged", model="falcon-40b", guess="norms-exchanged",
          weights=exchange(f"{H}ln_attn.weight", f"{H}ln_mlp.weight")),
    Fault(name="the final norm is a layer's", model="llama", guess="norm-copied", weights=copy_a_norm),
    Fault(name="the norms of queries and keys exchanged", model="qwen3", guess="norms-exchanged",
          weights=exchange_head_norms),
    Fault(name="the norms of keys of two layers exchanged", model="qwen3", guess="tensor-of-another-layer",
          weights=exchange(L.format(1) + "self_attn.k_norm.weight", L.format(2) + "self_attn.k_norm.weight")),
    Fault(name="the norms of queries and keys as initialised", model="qwen3", guess="norm-dropped",
          weights=forget_head_norms),
    Fault(name="the norms of queries and keys left out", model="qwen3", guess="norm-dropped", weights=drop_head_norms,
          config={"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
    # ---- layers
    Fault(name="a layer repeated", model="llama", guess="layer-repeated", weights=repeat_a_layer),
    Fault(name="two layers exchanged", model="llama", guess="layers-exchanged", weights=exchange_layers),
    Fault(name="a layer missing", model="llama", guess="layer-missing", weights=lose_a_layer,
          config={"num_hidden_layers": 3}),
    # ---- the vocabulary
    Fault(name="embedding off by one row", model="llama", guess="vocabulary-shift",
          weights=replace("model.embed_tokens.weight", lambda x: x.roll(1, 0))),
    Fault(name="head off by one row", model="llama", guess="vocabulary-shift",
          weights=replace("lm_head.weight", lambda x: x.roll(1, 0))),
    Fault(name="a padded row leaked into the export", model="llama", guess="padding-leaked", layout={"format": "hf"},
          weights=leak_a_padded_row, config={"vocab_size": 332}),
    Fault(name="one embedding row zeroed", model="llama", guess=None,
          weights=replace("model.embed_tokens.weight", zero_a_row)),
    Fault(name="tied head untied", model="llama-tied", guess="tied-head-untied", weights=untie_the_head,
          config={"tie_word_embeddings": False}),
    Fault(name="head taken for tied", model="llama", guess="head-tied", weights=tie_the_head,
          config={"tie_word_embeddings": True}),
    # ---- what is no tensor
    Fault(name="llama3 rope scaling dropped", model="llama-3.1", guess="rope-scaling-dropped",
          config={"rope_parameters": {**ROPE, "rope_type": "default"}}),
    Fault(name="rope factor 8 for 32", model="llama-3.1", guess="rope-factor",
          config={"rope_parameters": {**LLAMA31, "factor": 8.0}}),
    Fault(name="linear interpolation for llama3", model="llama-3.1", guess="rope-linear-for-llama3",
          config={"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 32.0}}),
    Fault(name="rope base 1e4 for 1e6", model="code-llama", guess="rope-base",
          config={"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    Fault(name="norm epsilon 1e-5 for 1e-6", model="llama", guess="norm-epsilon", config={"rms_norm_eps": 1e-5}),
    Fault(name="one key too many in the window", model="mistral", guess="sliding-window", config={"sliding_window": 65}),
    Fault(name="one key too few in the window", model="mistral", guess="sliding-window", config={"sliding_window": 63}),
    Fault(name="tanh GELU for erf", model="falcon-7b", guess="activation", function=tanh_gelu),
)  # fmt: skip


# ---- planting --------------------------------------------------------------------------------------------------------
def clean(model: str, root: Path, dtype: str) -> Path:
    """The right Hugging Face folder; made once in `root`."""
    folder, made = root / f"{model}-{dtype}" / "hf", MODELS[model]
    if not folder.is_dir():
        made.make(folder, dtype=DTYPES[dtype], **made.config)
        if made.settle:
            _save(folder, made.settle)
    return folder


def converted(model: str, root: Path, dtype: str, **layout: Any) -> Path:
    """The right Megatron checkpoint of it; made once in `root`."""
    folder = root / f"{model}-{dtype}" / "-".join(["megatron", *(f"{k}-{v}" for k, v in layout.items())])
    return folder if folder.is_dir() else convert(clean(model, root, dtype), folder, **layout)


def plant(fault: Fault, root: Path, dtype: str) -> tuple[Path, Path]:
    """Reference and candidate, of weights in `dtype` (a key of `DTYPES`); right parts are shared within `root`."""
    reference = clean(fault.model, root, dtype)
    folder = reference.parent / fault.name.replace(" ", "-").replace("'", "")
    if fault.function:
        return reference, converted(fault.model, root, dtype, **fault.layout)
    if fault.spot:
        shutil.copytree(converted(fault.model, root, dtype, **fault.layout), folder)
        _overwrite(folder, fault.spot)
        return reference, folder
    shutil.copytree(reference, folder / "hf")
    if fault.weights:
        _save(folder / "hf", fault.weights)
    edit_json(folder / "hf" / "config.json", **fault.config)
    if fault.layout.get("format") == "hf":
        return reference, folder / "hf"
    return reference, convert(folder / "hf", folder / "megatron", **fault.layout)


@contextmanager
def acting(fault: Fault) -> Iterator[None]:
    """Within it, a fault of the function is there; the others are in their files anyway."""
    from mconv.train.model import layers

    with patch.dict(*fault.function(layers)) if fault.function else nullcontext():
        yield


def _save(folder: Path, change: Callable[[Tensors], None]) -> None:
    held = tensors(folder)
    change(held)
    kept = {name: tensor.contiguous() for name, tensor in held.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _overwrite(root: Path, spot: Spot) -> None:
    opened = open_checkpoint(root)
    (stored,) = (s for s in opened.stored if str(s.logical) == spot.logical and s.key.startswith(spot.rank))
    where = opened.located[stored.key]
    with where.path.open("r+b") as file:
        file.seek(where.offset)
        file.write(bytes_of(spot.change(where.load().clone()).contiguous()))
