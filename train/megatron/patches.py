"""Every place where mconv replaces, or works around, something of megatron-core: a table, and what applies it.

A row without `make` is a workaround: nothing of megatron-core is changed, `where` names our code that copes with it, and
most of these rows are in `workarounds`. A test fails where a symbol's signature is none that its row knows, and where a
fault that can be shown is gone, so that its row, and our code, can go too.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mconv.train.megatron import cpu
from mconv.train.megatron.compiled import one_kernel

ALL = "0.16.1 to 0.19.2"
NONE = "none known"
ISSUES = "https://github.com/NVIDIA/Megatron-LM/issues/"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorePatch:
    """One symbol of megatron-core (or of torch, on its account) that is not used as it is."""

    symbol: str
    """Full name of the symbol: module, dot, name."""
    wrong: str
    versions: str
    """Versions in which it was found wrong."""
    upstream: str
    """Upstream issue, or a note that none is known."""
    until: str
    """A sign that the row is no longer needed."""
    where: str
    """Our code in its place, or our workaround: module, colon, name."""
    signatures: tuple[str, ...]
    """All known signatures, in the form of `signature`; none for what is not megatron-core's own."""
    make: Callable[[Any], Any] | None = None
    """A function from the original to its replacement."""
    cpu_only: bool = False


PATCHES = (
    CorePatch(
        symbol="megatron.core.tensor_parallel.random._get_cuda_rng_state",
        wrong="asks a CUDA generator by its index, without CUDA too",
        versions=ALL,
        upstream=f"{NONE}; megatron-core does not claim to run without CUDA",
        until="it returns a state where there is no CUDA device",
        where="mconv.train.megatron.cpu:rng_state",
        signatures=("(device=, clone=, graph_safe=)",),
        make=lambda _: cpu.rng_state,
        cpu_only=True,
    ),
    CorePatch(
        symbol="megatron.core.tensor_parallel.random._set_cuda_rng_state",
        wrong="sets a CUDA generator by its index, without CUDA too",
        versions=ALL,
        upstream=f"{NONE}; megatron-core does not claim to run without CUDA",
        until="it sets a state where there is no CUDA device",
        where="mconv.train.megatron.cpu:set_rng_state",
        signatures=("(new_state, device=, graph_safe=)",),
        make=lambda _: cpu.set_rng_state,
        cpu_only=True,
    ),
    CorePatch(
        symbol="megatron.core.models.common.embeddings.rope_utils._apply_rotary_pos_emb_bshd",
        wrong="is ten operations, each of which passes over all queries and keys; fused, it needs Transformer Engine",
        versions=ALL,
        upstream=NONE,
        until="a profile of a training step on a GPU shows one kernel for it without this patch",
        where="mconv.train.megatron.compiled:one_kernel",
        signatures=(
            "(t, freqs, rotary_interleaved=, multi_latent_attention=, mscale=)",
            "(t, freqs, rotary_interleaved=, mla_rotary_interleaved=, mscale=, multi_latent_attention=)",
        ),
        make=one_kernel,
    ),
    CorePatch(
        symbol="torch.compile",
        wrong="megatron-core compiles its fused helpers as it is imported (`jit_fuser`); a CPU has no use for them",
        versions=ALL,
        upstream=NONE,
        until="`megatron.core.jit.jit_fuser` is not torch.compile where there is no CUDA device",
        where="mconv.train.megatron.imports:_uncompiled",
        signatures=(),  # of whatever torch there is
        cpu_only=True,
    ),
    CorePatch(
        symbol="torch.cuda",
        wrong="schedules, gradient buffers, clipping, optimizer and seeds ask it for devices, streams and generators",
        versions=ALL,
        upstream=f"{NONE}; megatron-core does not claim to run without CUDA",
        until="a training step runs without CUDA and without these stand-ins",
        where="mconv.train.megatron.cpu:STAND_INS",
        signatures=("module",),
        cpu_only=True,
    ),
)
"""Replacements that are made at import."""

ORIGINALS: dict[str, Any] = {}
"""Originals of what `apply` has replaced, by symbol."""


def apply() -> None:
    """Put each row's replacement in its place, once per process."""
    for patch in PATCHES:
        if patch.make is None or patch.symbol in ORIGINALS or (patch.cpu_only and torch.cuda.is_available()):
            continue
        owner, name = place(patch.symbol)
        ORIGINALS[patch.symbol] = getattr(owner, name)
        setattr(owner, name, patch.make(ORIGINALS[patch.symbol]))


def place(symbol: str) -> tuple[Any, str]:
    """Return the module or class that holds a symbol, and the symbol's name in it."""
    parts = symbol.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[length:-1], owner), parts[-1]
    raise ModuleNotFoundError(symbol)


def original(symbol: str) -> Any:
    """Return a symbol as megatron-core has it."""
    owner, name = place(symbol)
    return ORIGINALS.get(symbol, getattr(owner, name))


def signature(thing: Any) -> str:
    """Return the parameters of a function or class, with `=` behind those that have a default; else the type's name."""
    if not callable(thing):
        return type(thing).__name__
    kinds: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    words: list[str] = []
    for one in inspect.signature(thing).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not any(word.startswith("*") for word in words):
            words.append("*")
        words.append(kinds.get(one.kind, "") + one.name + ("" if one.default is one.empty else "="))
    return f"({', '.join(words)})"
