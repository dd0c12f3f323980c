"""Models from nothing: which they are, how their weights are drawn, and that a run's losses know no layout."""

import dataclasses
import math

import jobs
import pytest
import tiny
import torch

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.families import FAMILIES
from mconv.convert.peft.lora import chosen, linears
from mconv.convert.sources.load import load_rank
from mconv.convert.spelling.table import Logical
from mconv.errors import ConfigError
from mconv.train.config import make
from mconv.train.model import architecture, drawing
from mconv.train.model.presets import PRESETS

RUN = {"data": ["x"], "train_iters": 1, "lr": 1e-3, "init": "random"}
TINY = {
    "init": "random", "preset": "cineca-mt", "num_layers": 4, "hidden_size": 32, "num_attention_heads": 4,
    "vocab_size": 90, "max_position_embeddings": 64, "init_method_std": 0.05,
}  # fmt: skip


def spec_of(**fields: object):
    return architecture.origin(make(RUN | fields)).spec


# ---- which model -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "preset, told, counted",
    [
        ("gpt3-1.7b", 1.7, 1.65), ("gpt3-3.6b", 3.6, 3.56), ("gpt3-7.5b", 7.5, 7.47), ("gpt3-18.4b", 18.4, 18.45),
        ("gpt3-39.1b", 39.1, 39.10), ("gpt3-76.1b", 76.1, 76.05), ("gpt3-145.6b", 145.6, 145.62),
        ("gpt3-310.1b", 310.1, 310.13), ("llama2-7b", 6.74, 6.74), ("llama2-13b", 13.02, 13.02),
        ("llama2-70b", 68.98, 68.98), ("llama3-8b", 8.03, 8.03), ("llama3-70b", 70.55, 70.55),
    ],
)  # fmt: skip
def test_presets_have_the_parameters_that_their_names_say(preset, told, counted):
    """`counted`: in billions, of the program that pads the vocabulary of 50257 to 51200, or of the Hub's checkpoint."""
    opened = architecture.origin(make(RUN | {"preset": preset}))
    assert opened.parameters / 1e9 == pytest.approx(told, rel=0.03)
    padding = (51200 - opened.spec.vocab_size) * opened.spec.hidden_size if preset.startswith("gpt3") else 0
    assert round((opened.parameters + padding) / 1e9, 2) == counted


def test_a_key_of_a_config_that_mconv_does_not_know_passes_by_name(tmp_path):
    tiny.edit_json(tiny.make_llama(tmp_path / "hf") / "config.json", novelty=3)
    for path in (tmp_path / "hf", tmp_path / "hf" / "config.json"):
        with pytest.raises(ConfigError, match="novelty"):
            spec_of(model=str(path))
        assert spec_of(model=str(path), ignore_config_key=["novelty"]).num_layers == 4


def test_llama_2_has_the_mlp_of_its_checkpoints_and_not_the_one_that_megatron_would_make():
    assert [spec_of(preset=f"llama2-{size}").ffn_hidden_size for size in ("7b", "13b", "70b")] == [11008, 13824, 28672]


def test_the_translation_model():
    spec, std = spec_of(preset="cineca-mt"), PRESETS["cineca-mt"].init_method_std
    assert (spec.num_layers, spec.hidden_size, spec.num_attention_heads, spec.vocab_size) == (6, 2048, 32, 51200)
    assert (spec.max_position_embeddings, spec.position, spec.activation, std) == (4096, "learned", "gelu_tanh", 0.006)


def test_what_follows_from_a_size_follows_its_change():
    spec = spec_of(preset="gpt3-7.5b", hidden_size=8192, num_attention_heads=64, num_layers=48)
    assert dataclasses.replace(spec, vocab_size=50257) == PRESETS["gpt3-39.1b"].spec
    assert spec_of(preset="gpt3-7.5b", ffn_hidden_size=100).ffn_hidden_size == 100
    assert spec_of(preset="llama2-70b", num_layers=8).num_query_groups == 8
    rope = spec_of(preset="gpt3-1.7b", position_embedding_type="rope", rotary_base=5e5)
    assert (rope.position, rope.rope.base, rope.family) == ("rope", 5e5, "falcon")


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"preset": "gpt3-7.5b", "num_layers": 64, "hidden_size": 8192, "num_attention_heads": 48},
         "hidden_size 8192 is not a multiple of num_attention_heads 48"),
        ({"preset": "llama2-7b", "hidden_size": 2048}, "hidden_size is 2048 in place of 4096: give ffn_hidden_size"),
        ({"preset": "gpt3-7b"}, "preset 'gpt3-7b' is not known; did you mean 'gpt3-"),
        ({"preset": "gpt3-7.5b", "rotary_base": 1e4}, "no rotary embedding"),
        ({"preset": "llama2-7b", "position_embedding_type": "learned_absolute"}, "no family that mconv supports"),
        ({"preset": "gpt3-7.5b", "position_embedding_type": "alibi"}, "must be rope or learned_absolute"),
        ({}, "init random needs the model to train: give preset"),
        ({"preset": "gpt3-7.5b", "load": "x"}, "load is 'x', but init random"),
        ({"preset": "gpt3-7.5b", "verify_first": True}, "verify_first verifies load"),
        ({"init": "checkpoint"}, "load is not set"),
        ({"init": "checkpoint", "load": "x", "hidden_size": 8}, "hidden_size: allowed only with init random"),
    ],
)  # fmt: skip
def test_what_is_refused(fields, says):
    with pytest.raises(ConfigError, match=says):
        spec_of(**fields)


def test_linears_that_share_a_name_have_a_longer_one():
    """GPT-2's two c_proj, which PEFT's `c_proj` means both."""
    spec = spec_of(preset="cineca-mt")
    known = linears(FAMILIES[spec.family], spec)
    assert list(known) == ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    assert chosen(["c_proj"], known) == ("attn.c_proj", "mlp.c_proj")
    assert chosen(["mlp.c_proj"], known) == ("mlp.c_proj",)


# ---- weights ---------------------------------------------------------------------------------------------------------
def drawn(**fields: object) -> dict[str, torch.Tensor]:
    opened = architecture.origin(make({**RUN, **TINY, **fields}))
    return {str(tensor): opened.source.whole(tensor).clone() for tensor in opened.source.tensors()}


def test_weights_are_drawn_as_megatron_draws_them():
    held = drawn(hidden_size=128)
    for name, tensor in held.items():
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
        else:
            narrow = "attn_out" in name or "mlp_out" in name
            assert float(tensor.std()) == pytest.approx(0.05 / math.sqrt(8) if narrow else 0.05, rel=0.05), name
            assert abs(float(tensor.mean())) < 0.05 / math.sqrt(tensor.numel()) * 5, name


def test_a_seed_is_one_set_of_weights_and_no_two_tensors_are_alike():
    one, same, other = drawn(), drawn(), drawn(seed=1)
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    name = "layer.0.mlp_in.weight"
    assert not torch.equal(one[name], other[name]) and not torch.equal(one[name], one["layer.1.mlp_in.weight"])


def test_a_rank_has_its_slice_of_them():
    opened = architecture.origin(make(RUN | TINY))
    whole = opened.source.whole(Logical("layer.mlp_in", 2)).clone()
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    halves = []
    for rank in range(2):
        held = {name: torch.empty(whole.shape[0] // 2, whole.shape[1])}
        place = jobs.placed(tp=2, pp=2, padded=96, tp_rank=rank, stage=1)
        load_rank(opened.source, held, **place, partial=True)
        halves.append(held[name])
    assert torch.equal(torch.cat(halves), whole)
    drawing.forget()


# ---- runs ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch")
    return jobs.fields(folder, spec=None, train_iters=5, global_batch_size=8, seq_length=32, **TINY)


@pytest.mark.parametrize("change", [{}, {"preset": "llama2-7b", "ffn_hidden_size": 48}], ids=str)
def test_losses_know_no_layout(change, run, world):
    alone = jobs.train(**run | change)
    ranks = world.run(jobs.train, **run | change, tp=2, pp=2, sequence_parallel=True)[0]
    assert alone["losses"][0] == pytest.approx(math.log(90), abs=0.1) and alone["losses"][-1] < alone["losses"][0] - 0.1
    for name in ("losses", "grad_norms"):
        assert max(abs(a - b) for a, b in zip(alone[name], ranks[name], strict=True)) < 1e-4


def test_a_run_goes_on_from_itself_and_is_a_model_like_any_other(run, tmp_path):
    import transformers

    from mconv.convert.engine import plan
    from mconv.convert.engine.rewrite import rewrite

    whole = jobs.train(**run)
    first = jobs.train(**run, save=str(tmp_path / "run"), exit_after=2)
    second = jobs.train(**run, save=str(tmp_path / "run"))
    assert first["losses"] + second["losses"] == whole["losses"]
    with pytest.raises(ConfigError, match="holds a run of another model than cineca-mt"):
        jobs.train(**run | {"num_layers": 2}, save=str(tmp_path / "run"))
    rewrite(plan.make(open_checkpoint(tmp_path / "run"), tmp_path / "hf", format="hf"), step="meg2hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.config.model_type == "gpt2" and model.config.activation_function == "gelu_new"
