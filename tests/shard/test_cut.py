"""The laws of cutting: merge of split is identity, and the shares are those of megatron-core."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mconv.convert.families.falcon import FALCON
from mconv.convert.families.llama import LLAMA
from mconv.errors import LayoutError
from mconv.shard.axes import parse, whole, within
from mconv.shard.cut import can_share, region
from mconv.shard.layout import Layout, check_tp, padded_vocab
from mconv.shard.pattern import parse as pattern_of
from mconv.shard.pattern import piece as piece_of

ROWS = [(row, leaf) for row in (*LLAMA.rows, *FALCON.rows) for leaf in ("weight", "bias")]


@st.composite
def sizes(draw):
    """MHA, GQA and MQA of any geometry."""
    g, q = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    h, d, f, v = (draw(st.integers(1, n)) for n in (5, 6, 12, 40))
    return {"g": g, "q": q, "s": q + 2, "h": h, "d": d, "f": f, "v": v, "p": 2}


def cut(whole_tensor, axes, dims, piece):
    """What a piece stores, -7 where it is padding."""
    logical = whole_tensor.reshape(dims)
    out = np.full(piece.shape, -7)
    for block in piece.blocks:
        region_of = tuple(slice(a, b) for a, b in block.at)
        out[region_of] = logical[within(block.box, whole(dims))].reshape(out[region_of].shape)
    return out


def paste(stored, dims, piece, into):
    """Write a stored piece back into the logical tensor; counts how often each element is written."""
    values, count = into
    for block in piece.blocks:
        at = within(block.box, whole(dims))
        values[at] = stored[tuple(slice(a, b) for a, b in block.at)].reshape(values[at].shape)
        count[at] += 1


@given(sizes=sizes(), tp=st.integers(1, 16), multiple=st.integers(1, 9), row=st.sampled_from(ROWS))
def test_merging_what_was_split_is_identity(sizes, tp, multiple, row):
    row, leaf = row
    axes = row.axes_of(leaf)
    padded = padded_vocab(sizes["v"], tp=tp, multiple=multiple) if row.cut == "v" else None
    assume(row.cut == "v" or can_share(axes, sizes, row.cut, tp))
    dims = axes.dims(sizes)
    tensor = np.arange(np.prod(dims)).reshape(axes.shape(sizes))
    values, count = np.full(dims, -1), np.zeros(dims, dtype=int)
    for rank in range(tp):
        piece = piece_of(axes, sizes, cut=row.cut, rank=rank, of=tp, padded=padded)
        paste(cut(tensor, axes, dims, piece), dims, piece, (values, count))
    assert (values.reshape(tensor.shape) == tensor).all()
    assert (count == (1 if row.cut in axes.names else tp)).all()


@given(sizes=sizes(), a=st.integers(1, 8), b=st.integers(1, 8), row=st.sampled_from(ROWS))
def test_resharding_to_b_is_splitting_at_b(sizes, a, b, row):
    row, leaf = row
    axes = row.axes_of(leaf)
    assume(row.cut != "v" and can_share(axes, sizes, row.cut, a) and can_share(axes, sizes, row.cut, b))
    dims = axes.dims(sizes)
    tensor = np.arange(np.prod(dims)).reshape(axes.shape(sizes))
    merged, count = np.full(dims, -1), np.zeros(dims, dtype=int)
    for rank in range(a):
        piece = piece_of(axes, sizes, cut=row.cut, rank=rank, of=a)
        paste(cut(tensor, axes, dims, piece), dims, piece, (merged, count))
    for rank in range(b):
        piece = piece_of(axes, sizes, cut=row.cut, rank=rank, of=b)
        again = cut(merged, axes, dims, piece)
        assert (again == cut(tensor, axes, dims, piece)).all()


@given(sizes=sizes(), tp=st.integers(1, 16), bias=st.booleans())
def test_qkv_rows_are_cut_evenly_as_megatron_core_does(sizes, tp, bias):
    """Its ColumnParallelLinear takes equal runs of rows, also where ranks outnumber the query groups."""
    axes = parse("(g s h)") if bias else parse("(g s h) d")
    assume(can_share(axes, sizes, "g", tp))
    tensor = np.arange(np.prod(axes.dims(sizes))).reshape(axes.shape(sizes))
    for rank, rows in enumerate(np.split(tensor, tp)):
        assert (cut(tensor, axes, axes.dims(sizes), piece_of(axes, sizes, cut="g", rank=rank, of=tp)) == rows).all()


@given(sizes=sizes(), tp=st.integers(1, 8))
def test_each_rank_has_its_own_gate_and_up(sizes, tp):
    assume(sizes["f"] % tp == 0)
    axes, f = parse("(p f) d"), sizes["f"]
    tensor = np.arange(2 * f * sizes["d"]).reshape(2 * f, sizes["d"])
    for rank in range(tp):
        gate, up = np.split(tensor[:f], tp)[rank], np.split(tensor[f:], tp)[rank]
        got = cut(tensor, axes, axes.dims(sizes), piece_of(axes, sizes, cut="f", rank=rank, of=tp))
        assert (got == np.concatenate([gate, up])).all()


@given(sizes=sizes())
def test_query_key_and_value_are_parts_on_the_slot_axis(sizes):
    axes, (g, q, h, d) = parse("(g s h) d"), (sizes[n] for n in "gqhd")
    query, key, value = (np.random.randint(0, 99, (g, n, h, d)) for n in (q, 1, 1))
    fused = np.concatenate([query, key, value], axis=1).reshape(-1, d)
    for part, want in {"s[:q]": query, "s[q]": key, "s[-1]": value}.items():
        piece = piece_of(axes, sizes, pattern_of(f"(g {part} h) d"))
        assert (cut(fused, axes, axes.dims(sizes), piece) == want.reshape(-1, d)).all()


@given(sizes=sizes(), data=st.data())
def test_a_region_is_a_rectangle_of_the_stored_tensor(sizes, data):
    axes = parse(data.draw(st.sampled_from(["(g s h) d", "d (g q h)", "(p f) d", "v d", "d"])))
    shape = axes.shape(sizes)
    offsets = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    lengths = tuple(data.draw(st.integers(1, n - o)) for n, o in zip(shape, offsets, strict=True))
    tensor = np.arange(np.prod(shape)).reshape(shape)
    got = cut(tensor, axes, axes.dims(sizes), region(axes, sizes, offsets, lengths))
    assert (got == tensor[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]).all()


def test_rows_past_the_true_vocabulary_are_padding():
    piece = piece_of(parse("v d"), {"v": 5, "d": 2}, cut="v", rank=1, of=2, padded=8)
    assert piece.shape == (4, 2) and [b.box for b in piece.blocks] == [((4, 5), (0, 2))]
    assert piece_of(parse("v d"), {"v": 3, "d": 2}, cut="v", rank=1, of=2, padded=8).blocks == ()


@given(sizes=sizes(), tp=st.integers(1, 12))
def test_a_refusal_names_tensor_axis_size_and_what_works(sizes, tp):
    rows = [(row.name, row.axes_of("weight"), row.cut) for row in LLAMA.rows]
    problems = check_tp(rows, sizes, tp=tp)
    fits = all(can_share(axes, sizes, cut_axis, tp) for _, axes, cut_axis in rows if cut_axis != "v")
    assert bool(problems) != fits
    for problem in problems:
        names = problem.partition("(")[2].partition(")")[0].split(", ")
        cuts = {LLAMA.row(name).cut for name in names}
        assert len(cuts) == 1 and f"tp {tp} does not divide {sizes[cuts.pop()]} " in problem
        for works in problem.split("tp can be ")[1].removesuffix(", ...").split(", "):
            assert check_tp(rows, sizes, tp=int(works)) == []


def test_more_ranks_than_groups_must_get_whole_query_heads():
    sizes = {"g": 2, "q": 3, "s": 5, "h": 4, "d": 8, "f": 24, "p": 2, "v": 10}
    axes = parse("d (g q h)")
    assert can_share(axes, sizes, "g", 6) and not can_share(axes, sizes, "g", 4) and not can_share(axes, sizes, "g", 3)


def test_the_vocabulary_is_padded_as_megatron_does():
    assert padded_vocab(50257, tp=8) == 51200
    assert [padded_vocab(32000, tp=tp) for tp in (1, 2, 4, 8)] == [32000, 32000, 32256, 32768]
    assert [padded_vocab(32005, tp=tp) for tp in (1, 2, 4, 8)] == [32128, 32256, 32256, 32768]
    assert [padded_vocab(65024, tp=tp) for tp in (1, 2, 4, 8)] == [65024, 65024, 65024, 65536]


@pytest.mark.parametrize("bad", [{"tp": 0}, {"pp": -1}, {"vpp": 2}, {"tp": 3, "padded_vocab": 128}])
def test_a_layout_that_cannot_be_is_refused(bad):
    with pytest.raises(LayoutError):
        Layout(**{"padded_vocab": 128, **bad})
