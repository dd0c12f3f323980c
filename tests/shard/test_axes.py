"""Named axes: parsing, boxes, and intervals of fused axes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mconv.shard.axes import intersect, lengths, overlap, parse, runs, volume, whole, within

DIMS = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize("pattern", ["d", "v d", "(g s h) d", "d (g q h)", "(p f) d", "d f"])
def test_a_pattern_reads_back(pattern):
    assert str(parse(pattern)) == pattern


@pytest.mark.parametrize("pattern", ["", "(g", "g g", "(g (s h)) d", "G d", "1 d", "(g  s) d"])
def test_what_is_not_a_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match="not an axes pattern"):
        parse(pattern)


def test_the_bias_of_a_weight_is_the_weight_without_its_input():
    assert str(parse("(g s h) d").without_input()) == "(g s h)"
    assert str(parse("d (g q h)").without_input()) == "d"


@given(dims=DIMS, data=st.data())
def test_runs_are_exactly_the_interval(dims, data):
    total = int(np.prod(dims))
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total + 5))  # what lies past the end is padding
    logical = np.arange(total).reshape(dims)
    got = np.full(max(0, min(stop, total) - start), -1)
    for at, box in runs(dims, start, stop):
        values = logical[within(box, whole(dims))].reshape(-1)
        assert (got[at : at + values.size] == -1).all(), "two runs overlap"
        got[at : at + values.size] = values
    assert (got == np.arange(start, min(stop, total))).all()
    assert len(runs(dims, start, stop)) <= 2 * len(dims) - 1


@given(dims=DIMS, data=st.data())
def test_intersection_is_what_both_hold(dims, data):
    def box():
        return tuple(tuple(sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in dims)

    a, b = box(), box()
    mark = np.zeros(dims, dtype=int)
    for one in (a, b):
        mark[within(one, whole(dims))] += 1
    both = intersect(a, b)
    assert (mark == 2).sum() == (volume(both) if both else 0)
    if both:
        assert mark[within(both, whole(dims))].shape == lengths(both)


@given(dims=DIMS, cells=st.booleans(), data=st.data())
def test_boxes_that_overlap_are_found(dims, cells, data):
    """Cells of one grid and boxes anywhere: two of them hold an element in common, or none do."""

    def box():
        if cells:
            return tuple((at, at + 1) for at in (data.draw(st.integers(0, n - 1)) for n in dims))
        return tuple(tuple(sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in dims)

    boxes = sorted(box() for _ in range(data.draw(st.integers(0, 5))))
    mark = np.zeros(dims, dtype=int)
    for one in boxes:
        mark[within(one, whole(dims))] += 1
    found = overlap(boxes)
    assert (found is not None) == (mark > 1).any()
    if found:
        assert found[0] != found[1] and intersect(*(boxes[number] for number in found)) is not None
