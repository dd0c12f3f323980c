"""What Mistral and Falcon have of their own, on megatron-core: right at any layout, and each fault in it is caught."""

from functools import partial
from pathlib import Path

import pytest
import torch
import verify_jobs
from judge import convert, report
from safetensors.torch import load_file, save_file
from tiny import edit_json, make_mistral, make_model, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.errors import ConfigError
from mconv.verify import logits, probes

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-llm"
ALIBI = ("falcon-rw", "falcon-40b-alibi")


@pytest.mark.parametrize(
    "model, layout",
    [
        ("mistral-window", {"tp": 2, "pp": 2}),
        ("mistral-window-free-head-dim", {"tp": 4, "pp": 1, "sequence_parallel": True}),
        ("falcon-7b", {"tp": 4, "pp": 1, "sequence_parallel": True}),  # four ranks share the one key and value
        ("falcon-7b-biases", {"tp": 2, "pp": 2}),
        ("falcon-40b", {"tp": 2, "pp": 2, "sequence_parallel": True}),
        ("falcon-40b-biases", {"tp": 2, "pp": 2, "sequence_parallel": True}),
        ("falcon-11b", {"tp": 1, "pp": 4}),
        ("falcon-heads", {"tp": 4, "pp": 1}),
        ("falcon-in-turn", {"tp": 2, "pp": 2, "sequence_parallel": True}),
        ("gpt2-tied", {"tp": 2, "pp": 2, "sequence_parallel": True}),
        ("qwen2-gqa", {"tp": 2, "pp": 2, "sequence_parallel": True}),
        ("qwen3-biases", {"tp": 4, "pp": 1, "sequence_parallel": True}),  # two ranks share a key and a value
        ("qwen3-tied", {"tp": 2, "pp": 2}),
    ],
    ids=str,
)
@pytest.mark.parametrize("format", ["torch_dist", "mp_rank"])
def test_real_ranks_of_other_families(tmp_path, world, model, layout, format):
    hf = make_model(model, tmp_path / "hf")
    as_it_lies = {"tp": layout["tp"], "pp": layout["pp"]} if format == "mp_rank" else {"tp": 2}
    megatron = convert(hf, tmp_path / "m", format=format, **as_it_lies)
    found = world.run(verify_jobs.verify, a=str(hf), b=str(megatron), **layout)[0]
    assert found["passed"] and found["relative_max"] < 2e-5
    assert (
        found["candidate"]["loaded_by"] == {"mp_rank": "rank files, as they are", "torch_dist": "megatron-core"}[format]
    )


# ---- faults ----------------------------------------------------------------------------------------------------------
H = "transformer.h.1."


def swap_the_two_norms(t):
    for leaf in ("weight", "bias"):
        a, b = f"{H}ln_attn.{leaf}", f"{H}ln_mlp.{leaf}"
        t[a], t[b] = t[b], t[a]


def drop_a_norm_bias(t):
    name = next(f"{H}{norm}.bias" for norm in ("input_layernorm", "ln_mlp") if f"{H}{norm}.bias" in t)
    t[name] = torch.zeros_like(t[name])


def drop_the_final_norm_bias(t):
    t["transformer.ln_f.bias"] = torch.zeros_like(t["transformer.ln_f.bias"])


def order_slots_not_groups(t):
    """All queries, then all keys, then all values: what a reader of other files would take the rows for."""
    name = f"{H}self_attention.query_key_value.weight"
    rows = t[name].view(4, 4, 6, 48)
    t[name] = torch.cat([rows[:, :2].flatten(0, 2), rows[:, 2].flatten(0, 1), rows[:, 3].flatten(0, 1)]).contiguous()


def exchange_key_and_value(t):
    name = f"{H}self_attention.query_key_value.weight"
    rows = t[name].view(4 if f"{H}ln_mlp.weight" in t else 1, -1, 6, 48)
    *queries, key, value = range(rows.shape[1])
    t[name] = rows[:, [*queries, value, key]].flatten(0, 2).contiguous()


@pytest.mark.once
@pytest.mark.parametrize(
    "model, fault",
    [
        ("40b", swap_the_two_norms), ("40b", drop_a_norm_bias), ("40b", order_slots_not_groups),
        ("40b", exchange_key_and_value), ("40b", drop_the_final_norm_bias), ("7b", drop_a_norm_bias),
        ("7b", exchange_key_and_value),
    ],
)  # fmt: skip
def test_a_fault_in_the_weights_of_a_falcon_fails(tmp_path, model, fault):
    hf, wrong = (make_model(f"falcon-{model}", tmp_path / name, initializer_range=0.02) for name in ("hf", "wrong"))
    changed = tensors(wrong)
    fault(changed)
    save_file(changed, wrong / "model.safetensors", metadata={"format": "pt"})
    found = report(hf, convert(wrong, tmp_path / "m"))
    assert not found["passed"] and found["relative_max"] > 1e-3


CONFIG_FAULTS = {
    "window one too small": ("mistral-window", {"sliding_window": 15}),
    "window one too large": ("mistral-window", {"sliding_window": 17}),
    "a window where there is none": ("mistral-no-window", {"sliding_window": 16}),
    "window all but dropped": ("mistral-window", {"sliding_window": 95}),
    "epsilon of another falcon": ("falcon-11b", {"layer_norm_epsilon": 1e-5}),
    "theta of another falcon": ("falcon-11b", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
}


@pytest.mark.once
@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_a_fault_in_the_config_fails(tmp_path, fault):
    model, change = CONFIG_FAULTS[fault]
    hf, wrong = (make_model(model, tmp_path / name, initializer_range=0.02) for name in ("hf", "wrong"))
    edit_json(wrong / "config.json", **change)
    found = report(hf, convert(wrong, tmp_path / "m"))
    assert not found["passed"] and found["relative_max"] > 1e-4


def tanh_gelu(patch, layers):
    patch.setitem(layers.ACTIVATIONS, "gelu", partial(torch.nn.functional.gelu, approximate="tanh"))


def one_after_the_other(patch, layers):
    from mconv.train.megatron.imports import TransformerLayer

    patch.setattr(layers, "ParallelLayer", TransformerLayer)


def rms_for_layer_norm(patch, layers):
    class LayerNorm(layers.LayerNorm):
        def forward(self, x):
            return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.eps) + self.bias

    patch.setitem(layers.NORMS, "layer", LayerNorm)


@pytest.mark.parametrize("model", ["7b", "40b"])
@pytest.mark.parametrize("fault", [tanh_gelu, one_after_the_other, rms_for_layer_norm], ids=lambda f: f.__name__)
def test_a_falcon_that_is_built_wrong_fails(tmp_path, monkeypatch, model, fault):
    """Faults that no file shows: they are in the function that Megatron's side computes."""
    from mconv.train.model import layers

    hf = make_model(f"falcon-{model}", tmp_path / "hf", initializer_range=0.1)
    megatron = convert(hf, tmp_path / "m")
    assert report(hf, megatron)["passed"]
    fault(monkeypatch, layers)
    found = report(hf, megatron)
    assert not found["passed"] and found["relative_max"] > 1e-4


def test_a_probe_reaches_past_the_window(tmp_path):
    windowed, free = (open_checkpoint(make_mistral(tmp_path / str(w), sliding_window=w, max_position_embeddings=32768))
                      for w in (4096, None))  # fmt: skip
    assert probes.length_for(windowed.spec, free.spec, length=None) == 4096 + 64
    assert probes.length_for(free.spec, windowed.spec, length=None) == 4096 + 64
    assert (
        probes.length_for(free.spec, length=None) == probes.LENGTH == 1024
        and probes.length_for(windowed.spec, length=7) == 7
    )


@pytest.mark.parametrize("model", ALIBI)
def test_alibi_is_refused_in_one_line_and_between_two_folders_it_is_compared(tmp_path, model):
    hf = make_model(model, tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m")
    with pytest.raises(ConfigError, match=r"m/release has ALiBi positions") as caught:
        report(hf, megatron)
    assert "\n" not in str(caught.value)
    assert report(hf, convert(megatron, tmp_path / "out", format="hf"))["passed"]


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout")
@pytest.mark.parametrize("case", ["falcon7-mqa", "falcon40-gqa", "mistral-gqa", "mistral-window16"])
@pytest.mark.parametrize("format", ["torch_dist", "mp_rank"])
def test_the_logits_that_another_transformers_wrote_down(tmp_path, case, format):
    golden = load_file(GOLDEN / case / "expected.safetensors")
    megatron = open_checkpoint(convert(GOLDEN / case / "hf", tmp_path / "m", format=format))
    found, by = logits.logits_of(megatron, golden["input_ids"])
    assert by in ("megatron-core", "rank files, as they are") and float((found - golden["logits"]).abs().max()) < 1e-5
