"""Surgery a second time, tensor by tensor whole, from what a manifest's recipe says and by none of mconv's sources."""

import hashlib
import re

import torch

LAYER = re.compile(r"(.*?\b(?:layers|h)\.)(\d+)(\..*)")


def numbers(text):
    """The layers that a recipe lists: "0-2,1" is 0, 1, 2, 1."""
    pairs = [[int(n) for n in word.split("-")] for word in text.split(",")]
    return [i for pair in pairs for i in range(pair[0], pair[-1] + 1)]


def relayered(held, recipe, *, head, embedding):
    """The tensors of a Hugging Face folder, its layers as the recipe has them, its head tied or not."""
    layers = numbers(recipe["layers"]) if "layers" in recipe else None
    out = {name: tensor for name, tensor in held.items() if layers is None or not LAYER.fullmatch(name)}
    for new, old in enumerate(layers or []):
        for name, tensor in held.items():
            found = LAYER.fullmatch(name)
            if found and int(found[2]) == old:
                out[f"{found[1]}{new}{found[3]}"] = tensor
    if recipe.get("tied") is True:
        del out[head]
    if recipe.get("tied") is False:
        out[head] = held[embedding]
    return out


def rows(table, origin, *, init="mean", seed=0, name="", parts=None):
    """A table with other rows: `origin` is the old row of each, None where it is new."""
    kept = torch.tensor([0 if row is None else row for row in origin])
    out, wide = table[kept], table.double()
    mean, deviation = wide.mean(0), wide.std(0, correction=0)
    for new, old in enumerate(origin):
        if old is not None:
            continue
        if parts and new in parts:
            row = wide[torch.tensor(parts[new])].mean(0)
        elif init == "normal":
            start = int.from_bytes(hashlib.sha256(f"{seed} {name} {new}".encode()).digest()[:8], "little") >> 1
            noise = torch.randn(wide.shape[1], generator=torch.Generator().manual_seed(start), dtype=torch.float64)
            row = mean + deviation * noise
        else:
            row = torch.zeros_like(mean) if init == "zeros" else mean
        out[new] = row.to(table.dtype)
    return out
