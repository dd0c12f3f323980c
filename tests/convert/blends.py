"""Tiny merges for tests: a tensor in slabs, a recipe over folders of tensors, differences in units of last place."""

import itertools
import re

import torch
from safetensors.torch import load_file

from mconv.convert.blend import sparsify
from mconv.convert.blend.arithmetic import kernel
from mconv.convert.blend.lineup import bind, lineup
from mconv.convert.blend.slabs import Merge, Slab

BEFORE, AFTER = ("model.embed_tokens.weight",), ("model.norm.weight", "lm_head.weight")


def slabs_of(tensors, sizes=(1 << 16,)):
    """Return the passes over one tensor of several models, in slabs whose sizes go round."""
    flat = [tensor.reshape(-1) for tensor in tensors]

    def slabs():
        start = 0
        for size in itertools.cycle(sizes):
            if start >= len(flat[0]):
                return
            yield Slab(start, tuple(tensor[start : start + size] for tensor in flat))
            start += size

    return slabs


def merged(method, merge, tensors, sizes=(1 << 16,), order=iter):
    """Return a merged tensor, made slab by slab in some order."""
    slabs = slabs_of(tensors, sizes)
    make = kernel(method, merge, slabs)
    parts = {slab.start: make(slab) for slab in order(list(slabs()))}
    return torch.cat([parts[start] for start in sorted(parts)]).reshape(merge.shape)


def tensors_of(recipe, folder):
    """Return the tensors of each model of a recipe, whose paths start at a folder."""
    return {model: load_file(folder / model.path / "model.safetensors") for model in recipe.models}


def run(recipe, files, depth, *, seed=0, make=merged, only=""):
    """Return what `make` makes of each tensor of a recipe's Llama models, given method, merge and the models' tensors."""
    plan = lineup(recipe, dict.fromkeys(recipe.models, depth))
    inside = [name.split(".", 3)[3] for name in next(iter(files.values())) if name.startswith("model.layers.0.")]
    todo = [(plan.before, name, name) for name in BEFORE] + [(plan.after, name, name) for name in AFTER]
    for at, origin in enumerate(plan.layers):
        todo += [(origin, f"model.layers.{at}.{leaf}", leaf) for leaf in inside]
    todo = [one for one in todo if re.search(only, one[1])]
    return {name: made_of(recipe, origin, name, leaf, files, seed, make) for origin, name, leaf in todo}


def made_of(recipe, origin, name, leaf, files, seed, make):
    models = [one.model for one in origin.part.inputs]
    names = [leaf if at is None else f"model.layers.{at}.{leaf}" for at in origin.layers]
    tensors = [files[model][key] for model, key in zip(models, names, strict=True)]
    dtype = getattr(torch, recipe.dtype) if recipe.dtype else tensors[0].dtype
    bound = bind(recipe, origin, name, names)
    merge = Merge(
        name=name, shape=tuple(tensors[0].shape), dtype=dtype, shared=bound.shared, inputs=bound.inputs,
        base=bound.base, seed=seed,
    )  # fmt: skip
    return make(recipe.method.name, merge, tensors)


def with_masks(monkeypatch, masks):
    """Let random rules keep what `masks` has of a tensor: of each model that is not kept whole, one mask."""

    def fixed(mask):
        return lambda values, start: mask.reshape(-1)[start : start + len(values)]

    def rule(merge, slabs):
        left = iter(masks.get(merge.name, ()))
        return [None if density >= 1 else fixed(next(left)) for density in merge.each("density")]

    for name in ("random", "ranks"):
        monkeypatch.setitem(sparsify.RULES, name, rule)


def ordered(values):
    """Return whole numbers, of which those of neighbouring floating-point numbers differ by 1."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    bits = values.view(kind).long()
    return torch.where(bits < 0, torch.iinfo(kind).min - bits, bits)


def ulps(found, wanted):
    """Return the largest difference between two tensors in units of last place, of each element."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    return int((ordered(found) - ordered(wanted)).abs().max())


def scaled_ulps(found, wanted, inputs):
    """Return the largest difference in units of last place of the largest magnitude among result and inputs."""
    size = torch.stack([one.double().abs() for one in (wanted, *inputs)]).amax(dim=0).clamp(min=1e-30)
    unit = torch.exp2(torch.floor(torch.log2(size))) * torch.finfo(wanted.dtype).eps
    return float(((found.double() - wanted.double()).abs() / unit).max())
