"""Layer <-> (stage, chunk, local layer)."""

import importlib
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mconv.errors import LayoutError
from mconv.shard.stages import LayerPlacement, Uneven, placements, stage_layers


@given(per_chunk=st.integers(1, 5), pp=st.integers(1, 6), vpp=st.integers(1, 4))
def test_layers_and_places_are_a_bijection(per_chunk, pp, vpp):
    layers = per_chunk * pp * vpp
    found = placements(layers, pp=pp, vpp=vpp)
    assert len(set(found)) == layers
    for (stage, chunk), run in stage_layers(layers, pp=pp, vpp=vpp).items():
        assert [found[layer] for layer in run] == [LayerPlacement(stage, chunk, local) for local in range(per_chunk)]


@given(per_chunk=st.integers(1, 3), pp=st.integers(2, 4), vpp=st.integers(2, 3))
def test_interleaved_layers_lie_where_megatron_core_puts_them(per_chunk, pp, vpp):
    """Its `get_transformer_layer_offset`: offset of chunk c on stage s is c * (L / vpp) + s * (L / vpp / pp)."""
    layers = per_chunk * pp * vpp
    for (stage, chunk), run in stage_layers(layers, pp=pp, vpp=vpp).items():
        assert run.start == chunk * (layers // vpp) + stage * (layers // vpp // pp)


def test_uneven_stages_are_refused_with_what_works():
    with pytest.raises(LayoutError, match=r"6 layers .* pp 4; pp can be 1, 2, 3, 6"):
        stage_layers(6, pp=4)


@settings(deadline=None)  # the first example imports megatron-core
@given(
    middle=st.integers(0, 3), pp=st.integers(2, 5), vpp=st.integers(1, 3), first=st.integers(0, 2) | st.none(),
    last=st.integers(0, 2) | st.none(), embedding=st.booleans(), loss=st.booleans(),
)  # fmt: skip
def test_uneven_stages_are_those_of_megatron_core(middle, pp, vpp, first, last, embedding, loss):
    """Its own `get_num_layers_to_build` and `get_transformer_layer_offset` are the oracle, chunk by chunk."""
    importlib.import_module("mconv.train.megatron.imports")  # the quiet door to megatron-core
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    first, last = (None if n is None else n * vpp for n in (first, last))
    if first is not None or last is not None:
        embedding = loss = False
    left = pp - (first is not None) - (last is not None)
    layers = (first or 0) + (last or 0) + middle * vpp * left - embedding - loss
    if layers < 1 or middle * vpp * left - embedding - loss < 0 or (middle == 0 and (embedding or loss)):
        return
    config = SimpleNamespace(
        num_layers=layers, pipeline_model_parallel_size=pp, pipeline_model_parallel_layout=None,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None, num_layers_in_first_pipeline_stage=first,
        num_layers_in_last_pipeline_stage=last, account_for_embedding_in_pipeline_split=embedding,
        account_for_loss_in_pipeline_split=loss,
    )  # fmt: skip
    found = stage_layers(layers, pp=pp, vpp=vpp, uneven=Uneven(first=first, last=last, embedding=embedding, loss=loss))
    for (stage, chunk), run in found.items():
        where = {"vp_stage": chunk if vpp > 1 else None, "pp_rank": stage}
        assert len(run) == get_num_layers_to_build(config, **where)
        if left == 0 and vpp > 1:  # megatron-core divides by zero here
            continue
        assert not run or run.start == get_transformer_layer_offset(config, **where)
    flat = [layer for run in found.values() for layer in run]
    assert flat == list(range(layers))


def test_sizes_that_leave_no_even_rest_are_refused():
    with pytest.raises(LayoutError, match="9 of 12 layers are left for 2 stages"):
        stage_layers(12, pp=3, uneven=Uneven(first=3))
    with pytest.raises(LayoutError, match="7 layers on the first and last stage, but the model has 8"):
        stage_layers(8, pp=2, uneven=Uneven(first=3, last=4))
    with pytest.raises(LayoutError, match="do not go with"):
        stage_layers(8, pp=2, uneven=Uneven(first=3, loss=True))
    with pytest.raises(LayoutError, match="pp 1 has no first"):
        stage_layers(8, pp=1, uneven=Uneven(first=3))
