"""Which core attention a run gets. Transformer Engine needs a GPU: here a stand-in with its signature takes its part."""

import ast
import inspect
from pathlib import Path

import jobs
import pytest
import torch

from mconv.errors import ConfigError
from mconv.train import config as configs

NEEDED = {"load": "x", "data": ["p"], "train_iters": 10, "lr": 1.0}


class StandIn(torch.nn.Module):
    """What megatron-core has of Transformer Engine, by its signatures; it computes by softmax and a causal mask."""

    def __init__(
        self, config, layer_number, attn_mask_type, attention_type, attention_dropout=None, softmax_scale=None,
        k_channels=None, v_channels=None, num_splits=None, cp_comm_type="p2p", pg_collection=None,
    ):  # fmt: skip
        super().__init__()
        assert (attn_mask_type.name, attention_type, softmax_scale) == ("causal", "self", None)
        self.groups, self.width = config.num_query_groups, config.kv_channels

    def forward(
        self, query, key, value, attention_mask, attn_mask_type, attention_bias=None, packed_seq_params=None,
        num_splits=None,
    ):  # fmt: skip
        assert attn_mask_type.name == "causal" and attention_bias is None and packed_seq_params is None
        each = query.shape[2] // key.shape[2]
        key, value = (x.repeat_interleave(each, dim=2) for x in (key, value))
        scores = torch.einsum("sbnh,tbnh->bnst", query, key) / self.width**0.5
        hidden = torch.ones(scores.shape[-2:]).triu(1).bool()
        made = torch.einsum("bnst,tbnh->sbnh", scores.masked_fill(hidden, float("-inf")).softmax(-1), value)
        return made.flatten(2)


def test_the_stand_in_has_the_signatures_of_the_real_one():
    """So that a test with it says something of megatron-core's."""
    from mconv.train.megatron.imports import parallel_state

    source = Path(parallel_state.__file__).parent / "extensions" / "transformer_engine.py"
    real = next(n for n in ast.walk(ast.parse(source.read_text())) if getattr(n, "name", "") == "TEDotProductAttention")
    for name in ("__init__", "forward"):
        function = next(node for node in real.body if getattr(node, "name", "") == name)
        assert [a.arg for a in function.args.args] == list(inspect.signature(getattr(StandIn, name)).parameters)


def test_the_layer_calls_it_as_it_calls_ours():
    from mconv.train.model import backend, engine, forward

    parallel, shape = engine.Parallel(), {"padded_vocab_size": jobs.PADDED, "dtype": torch.float32}
    engine.init(parallel)
    scores = []
    for core in (backend.CoreAttention, backend.causal_only(StandIn)):
        model = engine.build(jobs.SPEC, parallel=parallel, core_attention=core, **shape)
        jobs.fill_from_hf(engine.parameters(model), jobs.hf_model(jobs.SPEC), jobs.SPEC)
        scores.append(forward.logits(model, jobs.tokens(), parallel=parallel))
    assert type(model.decoder.layers[0].self_attention.core_attention).__mro__[1] is StandIn
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


def test_a_mask_that_it_would_not_look_at_is_an_error():
    from mconv.train.model import backend

    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    attention = backend.causal_only(StandIn)
    with pytest.raises(ConfigError, match="no mask but the causal one"):
        attention.forward(object(), None, None, None, mask, attn_mask_type=None)


def chosen(monkeypatch, *, backend="auto", installed=True, cuda=True, dtype=torch.bfloat16):
    from mconv.train.model import backend as module

    monkeypatch.setattr(module, "transformer_engine_attention", lambda: StandIn if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    return module.core_attention(configs.make({**NEEDED, "attention_backend": backend}), dtype=dtype)


def test_it_is_taken_where_it_is_installed_and_can_do_it(monkeypatch):
    from mconv.train.model.attention import CoreAttention

    assert issubclass(chosen(monkeypatch), StandIn)
    assert issubclass(chosen(monkeypatch, backend="transformer_engine"), StandIn)
    for without in ({"installed": False}, {"cuda": False}, {"dtype": torch.float32}, {"backend": "sdpa"}):
        assert chosen(monkeypatch, **without) is CoreAttention


def test_cudnn_is_asked_for(monkeypatch):
    """First of torch's kernels, and what it cannot do another does: here, where there is none, the same numbers."""
    from mconv.train.model import attention, engine, layers

    assert chosen(monkeypatch, backend="cudnn") is attention.CudnnAttention
    with pytest.raises(ConfigError, match="cudnn: there is no CUDA device"):
        chosen(monkeypatch, backend="cudnn", cuda=False)
    monkeypatch.undo()
    engine.init(engine.Parallel())
    config = layers.transformer_config(jobs.SPEC, engine.Parallel(), dtype=torch.float32)
    given = [torch.randn(9, 1, heads, 8) for heads in (4, 2, 2)]
    first = attention.CudnnAttention(config)(*given, None)
    assert torch.equal(first, attention.CoreAttention(config)(*given, None))


REASONS = {
    "is not installed here": {"installed": False},
    "there is no CUDA device": {"cuda": False},
    "its kernels do not support fp32": {"dtype": torch.float32},
}


@pytest.mark.parametrize("reason", REASONS)
def test_asked_for_in_vain(reason, monkeypatch):
    with pytest.raises(ConfigError, match=reason):
        chosen(monkeypatch, backend="transformer_engine", **REASONS[reason])
