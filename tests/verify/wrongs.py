"""What planted faults do: to the tensors of a folder, to the bytes of one stored tensor, to the function.

A change of tensors replaces entries of the dict, never what a tensor holds. Sizes are those of `faults.py`'s models.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
L, H = "model.layers.{}.", "transformer.h.1."
QKV = f"{H}self_attention.query_key_value.weight"


def interleave_rotary_rows(t: Tensors) -> None:
    for name in t:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            t[name] = t[name].view(-1, 2, 16, 128).transpose(1, 2).flatten(0, 2)


def exchange_groups(t: Tensors) -> None:
    """The queries and the key of the two groups, but not their values."""
    for name in (L.format(1) + "self_attn.q_proj.weight", L.format(1) + "self_attn.k_proj.weight"):
        t[name] = t[name].roll(len(t[name]) // 2, 0)


def exchange(*names: str) -> Callable[[Tensors], None]:
    def change(t: Tensors) -> None:
        t[names[0]], t[names[1]] = t[names[1]], t[names[0]]

    return change


def order_slots_not_groups(t: Tensors) -> None:
    """All queries, then all keys, then all values."""
    rows = t[QKV].view(2, 4, 32, 128)
    t[QKV] = torch.cat([rows[:, :2].flatten(0, 2), rows[:, 2].flatten(0, 1), rows[:, 3].flatten(0, 1)])


def shuffle_rows(t: Tensors) -> None:
    name = L.format(2) + "mlp.down_proj.weight"
    t[name] = t[name][torch.randperm(128, generator=torch.Generator().manual_seed(0))]


def replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def plant(t: Tensors) -> None:
        t[name] = change(t[name])

    return plant


def centre_the_norms(t: Tensors) -> None:
    """As Megatron's --apply-layernorm-1p stores them: around 0."""
    for name in t:
        if "norm" in name:
            t[name] = t[name] - 1


def copy_layer(t: Tensors, source: int, target: int) -> None:
    for name in [n for n in t if n.startswith(L.format(target))]:
        t[name] = t[name.replace(L.format(target), L.format(source))].clone()


def repeat_a_layer(t: Tensors) -> None:
    copy_layer(t, 1, 2)


def exchange_layers(t: Tensors) -> None:
    for name in [n for n in t if n.startswith(L.format(1))]:
        other = name.replace(L.format(1), L.format(2))
        t[name], t[other] = t[other], t[name]


def lose_a_layer(t: Tensors) -> None:
    copy_layer(t, 3, 2)
    drop(t, lambda name: name.startswith(L.format(3)))


def drop(t: Tensors, unwanted: Callable[[str], bool]) -> None:
    for name in [n for n in t if unwanted(n)]:
        del t[name]


def drop_biases(t: Tensors) -> None:
    drop(t, lambda name: name.endswith("bias"))


def drop_the_keys_bias(x: torch.Tensor) -> torch.Tensor:
    """Of each of the two groups: two queries, key, value."""
    x = x.clone()
    x.view(2, 4, 32)[:, 2] = 0
    return x


def head_norms(t: Tensors) -> list[str]:
    return [name for name in t if name.endswith(("q_norm.weight", "k_norm.weight"))]


def exchange_head_norms(t: Tensors) -> None:
    for name in [n for n in head_norms(t) if "q_norm" in n]:
        exchange(name, name.replace("q_norm", "k_norm"))(t)


def forget_head_norms(t: Tensors) -> None:
    """What a converter leaves that does not know them."""
    for name in head_norms(t):
        t[name] = torch.ones_like(t[name])


def drop_head_norms(t: Tensors) -> None:
    drop(t, head_norms(t).__contains__)


def copy_a_norm(t: Tensors) -> None:
    t["model.norm.weight"] = t[L.format(1) + "post_attention_layernorm.weight"].clone()


def untie_the_head(t: Tensors) -> None:
    embedding = t["model.embed_tokens.weight"]
    head = torch.empty(embedding.shape).normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    t["lm_head.weight"] = head.to(embedding.dtype)


def tie_the_head(t: Tensors) -> None:
    del t["lm_head.weight"]


def leak_a_padded_row(t: Tensors) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        t[name] = torch.cat([t[name], torch.zeros_like(t[name][:1])])


def zero_a_row(x: torch.Tensor) -> torch.Tensor:
    return x.index_fill(0, torch.tensor([7]), 0.0)


# ---- faults in bytes and in the function -----------------------------------------------------------------------------
def flip_an_exponent_bit(x: torch.Tensor) -> torch.Tensor:
    """Of one element, the fourth bit of the exponent: it becomes 256 times smaller, or larger."""
    x = x.clone()
    whole, bit = (torch.int32, 26) if x.dtype == torch.float32 else (torch.int16, 10)
    x.view(whole).view(-1)[1000] ^= 1 << bit
    return x


def tanh_gelu(layers: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return layers.ACTIVATIONS, {"gelu": partial(torch.nn.functional.gelu, approximate="tanh")}
