"""Layer <-> (stage, chunk, local layer)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mconv.errors import LayoutError
from mconv.shard.stages import Place, places, stage_layers


@given(per_chunk=st.integers(1, 5), pp=st.integers(1, 6), vpp=st.integers(1, 4))
def test_layers_and_places_are_a_bijection(per_chunk, pp, vpp):
    layers = per_chunk * pp * vpp
    found = places(layers, pp=pp, vpp=vpp)
    assert len(set(found)) == layers
    for (stage, chunk), run in stage_layers(layers, pp=pp, vpp=vpp).items():
        assert [found[layer] for layer in run] == [Place(stage, chunk, local) for local in range(per_chunk)]


@given(per_chunk=st.integers(1, 3), pp=st.integers(2, 4), vpp=st.integers(2, 3))
def test_interleaved_layers_lie_where_megatron_core_puts_them(per_chunk, pp, vpp):
    """Its `get_transformer_layer_offset`: offset of chunk c on stage s is c * (L / vpp) + s * (L / vpp / pp)."""
    layers = per_chunk * pp * vpp
    for (stage, chunk), run in stage_layers(layers, pp=pp, vpp=vpp).items():
        assert run.start == chunk * (layers // vpp) + stage * (layers // vpp // pp)


def test_uneven_stages_are_refused_with_what_works():
    with pytest.raises(LayoutError, match=r"6 layers .* pp 4; pp can be \[1, 2, 3, 6\]"):
        stage_layers(6, pp=4)
