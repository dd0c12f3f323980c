"""The count of operations, against torch's own counter on models that transformers made; and the devices' peaks."""

import dataclasses
import re

import pytest
import tiny
import torch
from lora_jobs import adapter_folder, by_hand
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mconv.convert.checkpoint import adapter_folder as peft_adapter
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.families import FAMILIES
from mconv.errors import ConfigError
from mconv.train.estimate import flops
from mconv.train.model.trainable import Trainable

pytestmark = pytest.mark.once

BATCH, LENGTH = 2, 24


def counted(folder, change=lambda model: None) -> int:
    """What torch counts of one training step: a forward and a backward through the scores of all positions."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    change(model)
    tokens = torch.randint(0, 151, (BATCH, LENGTH))
    # Only of the plain kernel does the counter know forward and backward as the products that they are.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, use_cache=False).logits.sum().backward()
    return counter.get_total_flops()


MODELS = (
    "llama-gqa", "llama-mha", "llama-free-head-dim", "llama-tied", "falcon-7b-untied", "falcon-40b", "gpt2-tied",
    "gpt2-untied",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each model's folder and spec."""
    root = tmp_path_factory.mktemp("models")
    folders = {name: tiny.make_model(name, root / name) for name in MODELS}
    return {name: (folder, open_checkpoint(folder).spec) for name, folder in folders.items()}


@pytest.mark.parametrize("name", MODELS)
def test_as_torch_counts(name, made):
    folder, spec = made[name]
    ours, theirs = flops.per_token(spec, LENGTH) * BATCH * LENGTH, counted(folder)
    assert ours == pytest.approx(theirs, rel=0.002)


HF = {  # the words of `freeze`, as parts of transformers' names
    "embedding": "embed", "attention": ".self_attention.", "mlp": ".mlp.", "layers.0-1": "(h|layers)[.][01][.]",
    "layers.2": "layers[.]2[.]", "norms": "norm|ln_", "output": "lm_head",
}  # fmt: skip


@pytest.mark.parametrize(
    "name, words",
    [
        ("llama-gqa", ["embedding", "layers.0-1"]), ("falcon-40b", ["attention"]),
        ("falcon-7b-untied", ["mlp", "embedding"]), ("llama-mha", ["output", "layers.2"]),
        ("llama-gqa", ["layers.0-1"]),
        ("llama-gqa", ["embedding", "norms", "layers.0-1", "layers.2"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_frozen_is_not_counted(name, words, made):
    folder, spec = made[name]

    def freeze(model):
        for weight, parameter in model.named_parameters():
            parameter.requires_grad_(not any(re.search(HF[word], weight) for word in words))

    ours = flops.per_token(spec, LENGTH, Trainable(freeze=tuple(words))) * BATCH * LENGTH
    assert ours == pytest.approx(counted(folder, freeze), rel=0.002)


@pytest.mark.parametrize(
    "name, targets",
    [("llama-gqa", None), ("falcon-40b", ["dense", "dense_4h_to_h"]), ("llama-mha", ["up_proj"])],
    ids=str,
)
def test_adapters_are_counted_and_what_they_are_on_is_half(name, targets, made, tmp_path):
    folder, spec = made[name]
    adapter = adapter_folder(tmp_path, folder, targets=targets)
    settings = peft_adapter.read(adapter, family=FAMILIES[spec.family], spec=spec).settings
    ours = flops.per_token(spec, LENGTH, Trainable(adapter=settings)) * BATCH * LENGTH
    assert ours == pytest.approx(counted(folder, lambda model: by_hand(model, adapter)), rel=0.002)
    assert ours < 0.9 * flops.per_token(spec, LENGTH) * BATCH * LENGTH


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "gelu"}, {"num_query_groups": 8}, {"ffn_hidden_size": 72}, {"kv_channels": 12},
        {"vocab_size": 302}, {"sliding_window": LENGTH // 2},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_each_size_that_it_depends_on_moves_it_beyond_its_tolerance(change, made):
    """What would go wrong unseen if the count forgot one of them."""
    _, spec = made["llama-gqa"]
    changed = flops.per_token(dataclasses.replace(spec, **change), LENGTH)
    assert abs(changed / flops.per_token(spec, LENGTH) - 1) > 0.02


def test_as_the_formula_of_the_field(made):
    """12 B s L h^2 [(1 + g/a + s/h) q + f/h (1.5 if gated) + V / 2Lh], with q the width of all heads over hidden."""
    for _, spec in made.values():
        h, a, s, b = spec.hidden_size, spec.num_attention_heads, 512, 6
        q, glu = a * spec.kv_channels / h, 1.5 if spec.activation == "swiglu" else 1.0
        inside = (1 + spec.num_query_groups / a + s / h) * q + spec.ffn_hidden_size / h * glu
        theirs = 12 * b * s * spec.num_layers * h * h * (inside + spec.vocab_size / (2 * spec.num_layers * h))
        assert flops.per_iteration(spec, seq_length=s, global_batch_size=b) == pytest.approx(theirs)


def test_a_window_is_no_more_than_the_sample(made):
    _, spec = made["llama-gqa"]
    windowed = dataclasses.replace(spec, sliding_window=16)
    assert flops.per_token(windowed, 8) == flops.per_token(spec, 8)
    assert flops.forward(windowed, 64).scores == flops.forward(spec, 16).scores


@pytest.mark.parametrize(
    "device, dtype, tflops",
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312), ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756), ("NVIDIA H100 NVL", "fp16", 835.5), ("NVIDIA H200", "fp32", 66.9),
        ("NVIDIA B200", "bf16", 2250), ("NVIDIA GB200", "bf16", 2500), ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L40", "bf16", 181), ("NVIDIA L4", "bf16", 121), ("NVIDIA A40", "bf16", 149.7),
        ("NVIDIA RTX A4000", "bf16", None), ("Tesla V100-SXM2-32GB", "bf16", None), ("Something else", "bf16", None),
    ],
)  # fmt: skip
def test_peaks(device, dtype, tflops):
    assert flops.peak(device, dtype) == (tflops and tflops * 1e12)


def test_a_peak_that_the_user_gives(monkeypatch):
    monkeypatch.setenv(flops.OVERRIDE, "100.5")
    assert flops.peak("Something else", "bf16") == 100.5e12
    assert flops.peak("NVIDIA A100-SXM4-80GB", "bf16", peak_tflops=7.0) == 7e12
    for wrong in ("many", "0", "nan", "inf", ""):
        monkeypatch.setenv(flops.OVERRIDE, wrong)
        with pytest.raises(ConfigError, match=r"MCONV_PEAK_TFLOPS is .* positive"):
            flops.peak("Something else", "bf16")
