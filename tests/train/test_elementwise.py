"""SwiGLU and RMSNorm by hand: values and gradients are autograd's, and less is kept; and what a GPU is asked for."""

import pytest
import torch


def by_autograd(kind, x, weight):
    """The same of torch's own operations, in the roundings of transformers."""
    if kind == "swiglu":
        gate, up = x.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def by_hand(kind, x, weight):
    from mconv.train.model.elementwise import rms_norm, swiglu

    return swiglu(x) if kind == "swiglu" else rms_norm(x, weight, 1e-5)


def worked(function, kind, dtype):
    """(value, gradients of input and weight, bytes kept)."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, 16, generator=random).to(dtype).requires_grad_()
    weight = torch.rand(16, generator=random).to(dtype).requires_grad_()
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = function(kind, x, weight)
    made.backward(torch.randn(made.shape, generator=random).to(dtype))
    return made, x.grad, weight.grad, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["swiglu", "rms_norm"])
def test_autograds_gradients_from_fewer_bytes(kind, dtype):
    (ours, mine, weight, kept), (theirs, other, of_weight, more) = (
        worked(function, kind, dtype) for function in (by_hand, by_autograd)
    )
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(mine, other, atol=1e-6 if dtype == torch.float32 else 0.02, rtol=0)
    torch.testing.assert_close(weight, of_weight, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)
    own = 6 * 3 * 16 * dtype.itemsize  # the input; and of a norm the weight, and a number in fp32 for each row
    assert kept == own + (kind == "rms_norm") * (16 * dtype.itemsize + 6 * 3 * 4) < more


def test_a_frozen_weight_has_no_gradient():
    from mconv.train.model.elementwise import rms_norm

    x, weight = torch.randn(2, 3, 8, requires_grad=True), torch.ones(8)
    rms_norm(x, weight, 1e-5).sum().backward()
    assert x.grad is not None and weight.grad is None
    weight.requires_grad_()
    rms_norm(x.detach(), weight, 1e-5).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])
def test_a_mask_and_shared_keys_are_not_asked_for_together(masked, monkeypatch):
    """No kernel of a GPU but the plain one takes both; and the heads find their own keys either way."""
    from mconv.train.model import engine, layers
    from mconv.train.model.attention import CoreAttention

    engine.init(engine.Parallel())
    config = layers.transformer_config(engine_spec(), engine.Parallel(), dtype=torch.float32)
    q, k, v = (torch.randn(7, 2, heads, 8) for heads in (4, 2, 2))
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)[None, None] if masked else None
    whole, asked = torch.nn.functional.scaled_dot_product_attention, []

    def noted(*given, **options):
        asked.append(options)
        return whole(*given, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    found = CoreAttention(config)(q, k, v, hidden)
    assert [options["enable_gqa"] for options in asked] == [not masked]
    scores = torch.einsum("sbnh,tbnh->bnst", q, k.repeat_interleave(2, 2)) / 8**0.5
    scores = scores.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), float("-inf")).softmax(-1)
    by_hand = torch.einsum("bnst,tbnh->sbnh", scores, v.repeat_interleave(2, 2)).flatten(2)
    torch.testing.assert_close(found, by_hand)
    engine.shutdown()


def engine_spec():
    from mconv.train.model.presets import llama

    return llama(layers=1, hidden=32, ffn=48, heads=4, groups=2)


def test_adams_counters_are_where_its_parameters_are():
    """Fused on a GPU it takes their addresses; a device without memory stands for one here."""
    from mconv.train.optim.optimizer import _set_fused

    parameter = torch.nn.Parameter(torch.empty(7, device="meta"))
    adam = torch.optim.AdamW([parameter])
    adam.state[parameter] = {"step": torch.tensor(3.0)}
    _set_fused(adam, None)
    assert adam.state[parameter]["step"].device.type == "cpu"
    _set_fused(adam, True)
    assert adam.state[parameter]["step"].device.type == "meta" and adam.param_groups[0]["fused"]


# ---------------------------------------------------------------- what is compiled on a GPU
@pytest.fixture
def gpu(monkeypatch):
    """Tensors of this machine are taken for a GPU's."""
    from mconv.train.megatron import compiled

    monkeypatch.setattr(compiled, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(compiled, "can_compile", lambda: True)


def test_a_function_is_compiled_once_and_only_on_a_gpu(gpu, monkeypatch):
    from mconv.train.megatron import compiled

    made = []
    monkeypatch.setattr(torch, "compile", lambda function: made.append(function) or (lambda x: function(x) + 1))
    double = compiled.one_kernel(lambda x: 2 * x)
    assert [double(torch.ones(1)).item() for _ in range(2)] == [3, 3] and len(made) == 1
    monkeypatch.setattr(compiled, "_on_gpu", lambda tensor: False)
    assert double(torch.ones(1)).item() == 2


def test_a_compiler_that_fails_costs_time_and_not_the_run(gpu, monkeypatch):
    from mconv.train.megatron import compiled

    def compiler(function):
        return lambda x: (_ for _ in ()).throw(RuntimeError("no compiler here\nand much more"))

    monkeypatch.setattr(torch, "compile", compiler)
    double = compiled.one_kernel(lambda x: 2 * x)
    with pytest.warns(RuntimeWarning, match="runs uncompiled, and slower: no compiler here$"):
        assert double(torch.ones(1)).item() == 2
    assert double(torch.ones(1)).item() == 2


def test_one_formula_and_four_operations_have_the_same_gradient():
    from mconv.train.model.elementwise import _gate_back, _gate_back_in_place

    gradient, halves = torch.randn(5, 8), torch.randn(5, 16)
    torch.testing.assert_close(_gate_back(gradient, halves), _gate_back_in_place(gradient, halves))
