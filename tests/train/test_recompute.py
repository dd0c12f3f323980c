"""Activations that are computed again: the same loss and gradients, more forwards, fewer bytes kept."""

import jobs
import pytest
import torch

BIASES = {"qkv_bias": True, "proj_bias": True, "mlp_bias": True}
FALCON = {
    "family": "falcon", "activation": "gelu", "norm": "layer", "parallel_attention": True, "shared_norm": True,
    "num_query_groups": 1,
}  # fmt: skip
MODELS = {
    "llama": {},
    "biases": BIASES,
    "mistral": {"family": "mistral", "sliding_window": 5},
    "qwen3": {"family": "qwen3", "qk_norm": True},
    "falcon": FALCON,
    "falcon-biases": {**FALCON, **BIASES, "shared_norm": False},
}
FULL = {"recompute_granularity": "full"}
KINDS = {
    "none": ({}, {"layer": 4, "attention": 4, "mlp": 4}),
    "attention": ({"recompute_granularity": "selective"}, {"layer": 4, "attention": 8, "mlp": 4}),
    "parts": (
        {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]},
        {"layer": 4, "attention": 8, "mlp": 8},
    ),
    "block": (
        {**FULL, "recompute_method": "block", "recompute_num_layers": 2},
        {"layer": 6, "attention": 6, "mlp": 6},
    ),
    "full": (FULL, {"layer": 8, "attention": 8, "mlp": 8}),
    "pairs": ({**FULL, "recompute_num_layers": 2}, {"layer": 8, "attention": 8, "mlp": 8}),
}
"""Fields, and how often each part of 4 layers is computed."""


def step(spec, fields, *, frozen=False):
    """(loss, gradients, forwards of each part, bytes kept for the backward pass) of one micro batch, with dropout."""
    from mconv.train.config import make
    from mconv.train.megatron.imports import quiet
    from mconv.train.model import engine, recompute

    config = make({"load": "x", "data": ["x"], "train_iters": 1, "lr": 1.0, **fields})
    engine.init(engine.Parallel())
    model = engine.build(
        spec, padded_vocab_size=96, parallel=engine.Parallel(), dtype=torch.float32, initialize=True,
        hidden_dropout=0.2, attention_dropout=0.2, **recompute.options(config),
    )  # fmt: skip
    model.embedding.requires_grad_(not frozen)
    counts = dict.fromkeys(("layer", "attention", "mlp"), 0)
    for layer in model.decoder.layers:
        parts = {"layer": layer, "attention": layer.self_attention.core_attention, "mlp": layer.mlp.linear_fc1}
        for name, part in parts.items():
            part.register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    kept = {}
    tokens = jobs.tokens(length=32)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held: no other gets its address
        return tensor

    with quiet():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = model(tokens, torch.arange(32).expand_as(tokens), None, labels=tokens).mean()
        loss.backward()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return (
        loss.item(),
        {name: weight.grad for name, weight in weights.items()},
        counts,
        sum(storage.nbytes() for storage in kept.values()),
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
def test_the_same_gradients_from_fewer_bytes(model, frozen):
    spec = jobs.variant(**MODELS[model])
    loss, gradients, _, _ = step(spec, {}, frozen=frozen)
    kept = {}
    for name, (fields, forwards) in KINDS.items():
        again, found, counts, kept[name] = step(spec, fields, frozen=frozen)
        assert (again, counts) == (loss, forwards), name
        assert found.keys() == gradients.keys()
        assert all(torch.equal(found[n], gradients[n]) for n in gradients), name
    assert kept["pairs"] < kept["full"] < kept["parts"] < kept["attention"] < kept["none"]
    assert kept["full"] < kept["block"] < kept["none"]
    assert kept["full"] < 0.3 * kept["none"]


def test_what_a_frozen_embedding_would_lose(monkeypatch):
    """The planted fault: without a gradient to ask for, recomputed layers never run backward."""
    from mconv.train.model import recompute

    monkeypatch.setattr(recompute, "let_gradients_through", lambda embedding: None)
    _, gradients, _, _ = step(jobs.SPEC, FULL, frozen=True)
    assert gradients["decoder.layers.0.mlp.linear_fc1.weight"] is None


def test_refusals():
    from mconv.errors import ConfigError
    from mconv.train.config import make

    base = {"load": "x", "data": ["x"], "train_iters": 1, "lr": 1.0}
    for fields, message in [
        ({"recompute_num_layers": 2}, "are for recompute_granularity full; it is none"),
        ({"recompute_granularity": "selective", "recompute_method": "block"}, "it is selective"),
        ({"recompute_granularity": "full", "recompute_modules": ["mlp"]}, "for recompute_granularity selective"),
        ({"recompute_granularity": "selective", "recompute_modules": ["layernorm"]}, "one or both of core_attn, mlp"),
        ({"recompute_granularity": "full", "recompute_num_layers": 0}, "recompute_num_layers is 0"),
        ({"vpp": 2}, "vpp 2 needs pp > 1"),
        ({"sequence_parallel": True}, "sequence_parallel shares .* needs tp > 1"),
        ({"decoder_first_pipeline_num_layers": 2}, "decoder_first_pipeline_num_layers: with pp 1"),
        ({"account_for_loss_in_pipeline_split": True}, "account_for_loss_in_pipeline_split: with pp 1"),
        (
            {"pp": 2, "decoder_last_pipeline_num_layers": 2, "account_for_loss_in_pipeline_split": True},
            "decoder_last_pipeline_num_layers and account_for_loss_in_pipeline_split do not go together",
        ),
        (
            {"pp": 2, "vpp": 2, "decoder_first_pipeline_num_layers": 2, "decoder_last_pipeline_num_layers": 2},
            "name the layers of one stage only",
        ),
        ({"overlap_param_gather": True}, "needs distributed_optimizer and overlap_grad_reduce"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            make({**base, **fields})
