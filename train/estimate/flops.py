"""Floating-point operations of a model, counted from its shapes, and what known devices can do of them in a second.

Counted is what the model needs: each multiplication and each addition of a matrix product is one, activations that are
computed again (recompute) are not. Norms, softmax and rotary embedding are left out, as in every such count.
"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from mconv.convert.families import FAMILIES
from mconv.convert.peft.lora import FACTORS, Linear
from mconv.convert.spelling.table import Row
from mconv.errors import ConfigError
from mconv.spec import ModelSpec
from mconv.train.model.trainable import ALL, Trainable, flows

PASSES = 3
"""Forward, and in backward twice as much: one product for a matrix's input, one for the matrix."""

PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    # in torch's device name    dense TFLOP/s by dtype (fp32 without TF32), from the makers' data sheets
    ("GB200",                   {"bf16": 2500, "fp16": 2500, "fp32": 80}),
    ("B200",                    {"bf16": 2250, "fp16": 2250, "fp32": 75}),
    ("GH200",                   {"bf16": 989.4, "fp16": 989.4, "fp32": 66.9}),
    ("H200 NVL",                {"bf16": 835.5, "fp16": 835.5, "fp32": 60}),
    ("H200",                    {"bf16": 989.4, "fp16": 989.4, "fp32": 66.9}),
    ("H100 NVL",                {"bf16": 835.5, "fp16": 835.5, "fp32": 60}),
    ("H100 PCIe",               {"bf16": 756, "fp16": 756, "fp32": 51}),
    ("H100",                    {"bf16": 989.4, "fp16": 989.4, "fp32": 66.9}),
    ("A100",                    {"bf16": 312, "fp16": 312, "fp32": 19.5}),
    ("A40",                     {"bf16": 149.7, "fp16": 149.7, "fp32": 37.4}),
    ("A30",                     {"bf16": 165, "fp16": 165, "fp32": 10.3}),
    ("L40S",                    {"bf16": 362, "fp16": 362, "fp32": 91.6}),
    ("L40",                     {"bf16": 181, "fp16": 181, "fp32": 90.5}),
    ("L4",                      {"bf16": 121, "fp16": 121, "fp32": 30.3}),
    ("V100-SXM2",               {"fp16": 125, "fp32": 15.7}),
    ("T4",                      {"fp16": 65, "fp32": 8.1}),
    ("MI300X",                  {"bf16": 1307.4, "fp16": 1307.4, "fp32": 163.4}),
)  # fmt: skip
"""The first name that is a word of the device's own name counts, so the longer ones stand first."""

OVERRIDE = "MCONV_PEAK_TFLOPS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Operations of one forward pass for each token, by place."""

    projections: float
    """Query, key, value and output of attention, over all layers."""
    scores: float
    """Queries by keys and scores by values, over all layers: every key of the sample or of the window, seen or not."""
    mlp: float
    """Two matrices a layer; three if the MLP is gated."""
    head: float
    """The vocabulary's scores."""

    @property
    def total(self) -> float:
        """Return the sum of all."""
        return self.projections + self.scores + self.mlp + self.head


def forward(spec: ModelSpec, seq_length: int) -> Forward:
    """Return the operations for each token of a sample of `seq_length`, by place.

    Attention counts the whole square of a sample (with a window, the band beside it), and not only the half that a
    causal mask leaves, as papers and other Megatrons count it; so a kernel that skips the other half can seem faster.
    """
    width, keys = spec.num_attention_heads * spec.kv_channels, min(seq_length, spec.sliding_window or seq_length)
    made = {branch.attends: _product(spec, branch.column) + _product(spec, branch.row)
            for branch in FAMILIES[spec.family].branches(spec)}  # fmt: skip
    return Forward(
        projections=spec.num_layers * made[True],
        scores=4.0 * spec.num_layers * width * keys,
        mlp=spec.num_layers * made[False],
        head=2.0 * spec.hidden_size * spec.vocab_size,
    )


def _product(spec: ModelSpec, row: Row) -> float:
    """Return the operations of one linear for each token."""
    return 2.0 * prod(row.axes_of("weight").shape(spec.sizes))


@lru_cache(maxsize=64)
def per_token(spec: ModelSpec, seq_length: int, trains: Trainable = ALL) -> float:
    """Return the operations of training, forward and backward, for each token of a sample of `seq_length`.

    Where a part is trained only, what is left out is left out: gradients of frozen matrices, and of whatever lies before
    the first thing that is trained.
    """
    if trains == ALL:
        return PASSES * forward(spec, seq_length).total
    return forward(spec, seq_length).total + _backward(spec, seq_length, trains)


def _backward(spec: ModelSpec, seq_length: int, trains: Trainable) -> float:
    """Return the operations of the gradients, and of adapters both ways."""
    once, branches = forward(spec, seq_length), FAMILIES[spec.family].branches(spec)
    found, leaves = 0.0, trains.embeds(spec)
    for at in flows(spec, trains, range(spec.num_layers), enters=leaves):
        for branch, way in zip(branches, at.ways, strict=True):
            found += branch.attends * once.scores / spec.num_layers * 2 * way.inner
            for row, asks in ((branch.column, way.normed), (branch.row, way.inner)):
                found += _product(spec, row) * (asks + (row.name in at.weights))
                found += sum(_adapter(spec, trains, linear, asks=asks) for linear in trains.adapters(spec, row.name))
        leaves = at.leaves
    return found + once.head * ((leaves or trains.final_norm(spec)) + trains.scores(spec))


def _adapter(spec: ModelSpec, trains: Trainable, linear: Linear, *, asks: bool) -> float:
    """Return the operations of one adapter in one layer: its factors, their gradients, and its input's if needed."""
    assert trains.adapter is not None
    a, b = (2.0 * prod(linear.shape(factor, rank=trains.adapter.width, sizes=spec.sizes)) for factor in FACTORS)
    return (2 + asks) * a + PASSES * b


def per_iteration(spec: ModelSpec, *, seq_length: int, global_batch_size: int) -> float:
    """Return the operations of one optimizer step of the whole model, over all ranks."""
    return per_token(spec, seq_length) * seq_length * global_batch_size


def peak(device: str, dtype: str, *, peak_tflops: float | None = None) -> float | None:
    """Return the dense FLOP/s of one device; None where they are not known.

    `device` is the name that torch gives it, `dtype` one of bf16, fp16, fp32. `peak_tflops`, else the environment
    variable MCONV_PEAK_TFLOPS, is the answer (in TFLOP/s) where it is set.
    """
    told = peak_tflops if peak_tflops is not None else _environment()
    if told is not None:
        return told * 1e12
    known = next((peaks for name, peaks in PEAKS if re.search(rf"\b{name}\b", device)), {})
    return known[dtype] * 1e12 if dtype in known else None


def _environment() -> float | None:
    """Return MCONV_PEAK_TFLOPS if it is set. Raises ConfigError if it is not a positive number."""
    text = os.environ.get(OVERRIDE)
    if text is None:
        return None
    try:
        if 0 < float(text) < float("inf"):
            return float(text)
    except ValueError:
        pass
    raise ConfigError(f"{OVERRIDE} is {text!r}; it must be a positive number of TFLOP/s")
