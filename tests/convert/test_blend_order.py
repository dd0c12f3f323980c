"""The largest elements of a tensor: exactly those of a stable sort, with ties, in every element type and cut."""

import numpy as np
import pytest
import torch
from blends import slabs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mconv.convert.blend.order import cuts, keys, largest, value

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def values_of(dtype, size, draw, *, ties):
    values = torch.randn(size, generator=draw, dtype=torch.float64)
    return ((values * 4).round().div(4) + 0.0).to(dtype) if ties else values.to(dtype)


def taken(values, count, sizes):
    """Return which elements are above the cut below the `count` largest, found and applied slab by slab."""
    slabs = slabs_of([values], sizes)
    ((cut,),) = cuts(slabs, lambda slab: list(slab.tensors), [[count]], values.dtype, len(values))
    return torch.cat([torch.from_numpy(cut.above(keys(slab.tensors[0]), slab.start)) for slab in slabs()])


@settings(max_examples=40, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), ties=st.booleans(), seed=st.integers(0, 99))
def test_the_largest_are_those_of_a_stable_sort(data, dtype, ties, seed):
    size = data.draw(st.integers(1, 300))
    count = data.draw(st.integers(0, size))
    values = values_of(dtype, size, torch.Generator().manual_seed(seed), ties=ties)
    wanted = torch.zeros(size, dtype=torch.bool)
    wanted[torch.argsort(values.double(), descending=True, stable=True)[:count]] = True
    assert torch.equal(taken(values, count, data.draw(st.lists(st.integers(60, size + 60), min_size=1))), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 30, 99, 100])
def test_of_equal_elements_the_earlier_are_taken(dtype, count):
    found = taken(torch.full((100,), 0.3, dtype=dtype), count, [7])
    assert found[:count].all() and not found[count:].any()


def test_several_counts_of_several_series_in_the_same_passes():
    draw = torch.Generator().manual_seed(1)
    tensors = [torch.randn(500, generator=draw) for _ in range(2)]
    passes = 0

    def slabs():
        nonlocal passes
        passes += 1
        return slabs_of(tensors, [64])()

    found = cuts(slabs, lambda slab: list(slab.tensors), [[10, 20, 500], [0, 250, 499]], torch.float32, 500)
    assert passes == 2  # two digits of 16 bits; no equal elements
    for values, of, counts in zip(tensors, found, [[10, 20, 500], [0, 250, 499]], strict=True):
        assert [int(cut.above(keys(values), 0).sum()) for cut in of] == counts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_are_in_the_order_of_the_numbers_and_lead_back(dtype):
    info = torch.finfo(dtype)
    numbers = [-torch.inf, info.min, -1.0, -info.tiny, 0.0, info.tiny, 0.5, 1.0, 1.0 + info.eps, info.max, torch.inf]
    found = keys(torch.tensor(numbers, dtype=torch.float64).to(dtype))
    assert (np.diff(found.astype(object)) > 0).all()
    assert [value(int(key), dtype) for key in found] == torch.tensor(numbers, dtype=torch.float64).to(dtype).tolist()


def test_a_quantile_is_an_element():
    values = torch.randn(1001, generator=torch.Generator().manual_seed(2))
    ((found,),) = largest(slabs_of([values], [100]), lambda slab: list(slab.tensors), [[501]], torch.float32)
    assert value(found.key, torch.float32) == values.median()
