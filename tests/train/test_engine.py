"""megatron-core's model, as we build it, against transformers and against itself at other layouts."""

import itertools

import jobs
import pytest
import torch

from mconv.errors import FormatError, LayoutError
from mconv.shard.stages import Uneven
from mconv.spec import Rope
from mconv.train.megatron.parallel import Parallel
from mconv.train.model.rope import inverse_frequencies

MODELS = {
    "gqa": {},
    "mha-tied": {"num_query_groups": 4, "tied_embeddings": True},
    "wide-head": {"kv_channels": 16, "num_query_groups": 1},
    "qkv-bias": {"qkv_bias": True},
    "attention-bias": {"qkv_bias": True, "proj_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "all-biases": {"qkv_bias": True, "proj_bias": True, "mlp_bias": True},
    "llama3-odd": {"rope": jobs.ROPES["llama3-odd"]},
    "linear": {"rope": jobs.ROPES["linear"]},
    "eps": {"norm_epsilon": 1e-2},
}


@pytest.mark.parametrize("kind", jobs.ROPES)
def test_rope_equals_transformers(kind):
    spec = jobs.variant(rope=jobs.ROPES[kind], kv_channels=16)
    theirs = jobs.hf_model(spec).model.rotary_emb.inv_freq
    assert torch.equal(inverse_frequencies(spec.rope, kv_channels=16), theirs)


def test_rope_equals_megatron_where_it_can_say_it():
    from mconv.train.model import engine

    engine.init(Parallel())
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    theirs = RotaryEmbedding(16, 1.0, rotary_base=500000, rope_scaling=True, rope_scaling_factor=32.0).inv_freq
    ours = inverse_frequencies(Rope(kind="llama3", base=5e5, factor=32.0), kv_channels=16)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(name):
    from mconv.train.model import forward

    spec = jobs.variant(**MODELS[name])
    model, hf = jobs.whole_model(spec)
    batch = jobs.tokens(length=50)
    ours = forward.logits(model, batch, parallel=Parallel())
    with torch.no_grad():
        theirs = hf(batch).logits
    assert ours.shape == (2, 50, jobs.PADDED)
    torch.testing.assert_close(ours[..., : spec.vocab_size], theirs, rtol=1e-5, atol=2e-5)
    assert theirs.std() > 0.5  # a fault would be seen


def test_unfilled_weights_are_seen():
    from mconv.train.model import engine, forward

    engine.init(Parallel())
    model = engine.build(jobs.SPEC, padded_vocab_size=jobs.PADDED, parallel=Parallel(), dtype=torch.float32)
    assert forward.logits(model, jobs.tokens(), parallel=Parallel()).isnan().all()


WIDEST, BOTH = (4, 1, True), (2, 2, True)
SPREAD = {
    "gqa": [WIDEST, BOTH, (1, 4, False), (2, 1, False)], "mha-tied": [BOTH, (1, 2, False)], "wide-head": [WIDEST],
    "all-biases": [BOTH],
}  # fmt: skip
"""(tp, pp, sequence parallel) of each: all of them for one model, and for others where they differ from it."""


@pytest.mark.parametrize("name", SPREAD)
def test_logits_equal_at_every_layout(name, world, tmp_path):
    from mconv.train.model import forward

    spec = jobs.variant(**MODELS[name])
    model, _ = jobs.whole_model(spec)
    jobs.save_weights(model, tmp_path / "ckpt")
    whole = forward.logits(model, jobs.tokens(), parallel=Parallel())
    for tp, pp, sp in SPREAD[name]:
        results = world.run(jobs.logits_of, folder=str(tmp_path / "ckpt"), spec=spec.to_dict(), tp=tp, pp=pp, sp=sp)
        assert [r is None for r in results] == [False, True, True, True]
        torch.testing.assert_close(results[0], whole, rtol=1e-5, atol=2e-5)


def test_refusals_name_the_numbers(tmp_path):
    from mconv.train.model import checks, engine

    with pytest.raises(LayoutError, match="needs tp > 1"):
        Parallel(sequence_parallel=True)
    with pytest.raises(LayoutError, match="tp 3 x pp 1 = 3 does not divide the world of 1"):
        engine.init(Parallel(tp=3))
    with pytest.raises(LayoutError, match="ffn_hidden_size 48 is not a multiple of tp 5"):
        checks.check(jobs.SPEC, padded_vocab_size=100, parallel=Parallel(tp=5))
    with pytest.raises(LayoutError, match="4 layers cannot be divided evenly among pp 3"):
        checks.check(jobs.SPEC, padded_vocab_size=96, parallel=Parallel(pp=3))


@pytest.mark.parametrize("groups", [1, 2, 4, 12])
def test_what_conversion_cannot_share_training_cannot_either(groups):
    """Two rules, one in each world: megatron-core's sizes, and axes of tensors."""
    from mconv.convert.checkpoint.model import target_layout
    from mconv.convert.families import FAMILIES
    from mconv.train.model import checks

    spec = jobs.variant(num_attention_heads=12, num_query_groups=groups, num_layers=6)
    stages = [
        {"pp": 1}, {"pp": 2}, {"pp": 4}, {"pp": 2, "vpp": 3}, {"pp": 2, "vpp": 2}, {"pp": 2, "uneven": Uneven(first=1)},
        {"pp": 3, "uneven": Uneven(last=1)}, {"pp": 2, "vpp": 4, "uneven": Uneven(embedding=True, loss=True)},
    ]  # fmt: skip
    refused = set()
    for tp, stage in itertools.product(range(1, 9), stages):
        bad = checks.problems(spec, padded_vocab_size=128 * tp, parallel=Parallel(tp=tp, **stage))
        try:
            target_layout(spec, FAMILIES["llama"], tp=tp, **stage)
        except LayoutError:
            assert bad, (tp, stage)
        else:
            assert not bad, (tp, stage, bad)
        refused.add(bool(bad))
    assert refused == {True, False}


def test_loading_refuses_what_does_not_fit(tmp_path):
    from mconv.train.model import engine, loading

    model, _ = jobs.whole_model(jobs.SPEC)
    jobs.save_weights(model, tmp_path / "ckpt")
    other = engine.build(jobs.SPEC, padded_vocab_size=192, parallel=Parallel(), dtype=torch.float32)
    with pytest.raises(FormatError, match=r"word_embeddings.weight: \[96, 32\] in the checkpoint, \[192, 32\]"):
        loading.load_torch_dist(other, tmp_path / "ckpt")
    biased = engine.build(jobs.variant(qkv_bias=True), padded_vocab_size=96, parallel=Parallel(), dtype=torch.float32)
    with pytest.raises(FormatError, match=r"linear_qkv.bias"):
        loading.load_torch_dist(biased, tmp_path / "ckpt")
    with pytest.raises(FormatError, match="not a torch_dist checkpoint"):
        loading.load_torch_dist(model, tmp_path)


def test_rank_file_is_strict():
    from mconv.train.model import engine, loading

    model, _ = jobs.whole_model(jobs.SPEC)
    state = {name: tensor.clone() for name, tensor in engine.parameters(model).items()}
    state["decoder.layers.0.mlp.linear_fc1._extra_state"] = None
    loading.load_rank_file(model, state)
    state["decoder.layers.9.odd"] = state.pop("decoder.layers.3.mlp.linear_fc2.weight")
    with pytest.raises(FormatError) as caught:
        loading.load_rank_file(model, state)
    assert "decoder.layers.3.mlp.linear_fc2.weight: not in the file" in str(caught.value)
    assert "decoder.layers.9.odd: in the file, but not in the model" in str(caught.value)
