"""What a pattern says is stored, held against numpy: parts, other orders, rotary pairs, blocks end to end, shares."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mconv.errors import LayoutError
from mconv.shard.axes import lengths, parse, whole, within
from mconv.shard.pattern import parse as pattern_of
from mconv.shard.pattern import piece


@st.composite
def sizes(draw):
    g, q, h, d, f = (draw(st.integers(1, n)) for n in (6, 4, 4, 5, 9))
    return {"g": g, "q": q, "s": q + 2, "h": 2 * h, "d": d, "f": f, "p": 2, "m": draw(st.integers(1, 5))}


def stored(axes, sizes, pattern, **share):
    """The stored tensor that a piece describes of a logical tensor of distinct numbers, and that tensor by its axes."""
    dims = axes.dims(sizes)
    logical = np.arange(np.prod(dims)).reshape(dims)
    held = piece(axes, sizes, pattern_of(pattern), **share)
    out = np.full(held.shape, -7)
    for block in held.blocks:
        values = logical[within(block.box, whole(dims))]
        if block.order:  # reshaped and permuted, the stored region is the box: here the other way round
            back = np.argsort(block.order.axes)
            values = values.reshape([block.order.shape[i] for i in block.order.axes]).transpose(back)
        at = tuple(slice(a, b) for a, b in block.at)
        assert (out[at] == -7).all(), "stored twice"
        out[at] = values.reshape(lengths(block.at))
    assert (out >= 0).all(), "something is not stored"
    return out, logical


def pairwise(heads):
    """(..., n) as 0, n/2, 1, n/2 + 1, ..., as Meta orders the rows of a head."""
    half = heads.shape[-1] // 2
    return np.stack([heads[..., :half], heads[..., half:]], axis=-1).reshape(heads.shape)


@given(sizes=sizes())
def test_an_order_of_its_own(sizes):
    """GPT-2's c_attn: transposed, all queries, all keys, all values."""
    got, x = stored(parse("(g s h) d"), sizes, "d (s g h)")
    assert (got == x.transpose(3, 1, 0, 2).reshape(sizes["d"], -1)).all()


@given(sizes=sizes())
def test_rotary_pairs_of_a_part(sizes):
    """Meta's wk: the keys, the rows of each head pairwise."""
    got, x = stored(parse("(g s h) d"), sizes, "(g s[q] h~) d")
    keys = np.moveaxis(pairwise(np.moveaxis(x[:, sizes["q"]], 1, -1)), -1, 1)
    assert (got == keys.reshape(-1, sizes["d"])).all()


@given(sizes=sizes(), data=st.data())
def test_blocks_within_a_group_on_each_rank(sizes, data):
    """Megatron-LLM's QKV: of each group, queries and key pairwise, the value as it is."""
    of = data.draw(st.sampled_from([n for n in range(1, sizes["g"] + 1) if sizes["g"] % n == 0]))
    rows = []
    for rank in range(of):
        got, x = stored(parse("(g s h) d"), sizes, "(g (s[:-1] h~ + s[-1] h)) d", cut="g", rank=rank, of=of)
        rows.append(got)
    turned = np.moveaxis(pairwise(np.moveaxis(x, 2, -1)), -1, 2)
    want = np.concatenate([turned[:, :-1], x[:, -1:]], axis=1)
    assert (np.concatenate(rows) == want.reshape(-1, sizes["d"])).all()


@given(sizes=sizes(), of=st.integers(1, 4))
def test_up_before_gate_on_each_rank(sizes, of):
    assume(sizes["f"] % of == 0)
    for rank in range(of):
        got, x = stored(parse("(p f) d"), sizes, "(p[1] f + p[0] f) d", cut="f", rank=rank, of=of)
        gate, up = (np.split(half, of)[rank] for half in x)
        assert (got == np.concatenate([up, gate])).all()


def test_a_bias_has_the_pattern_of_its_weight_without_the_input():
    axes = parse("(g s h) d").without_input()
    text = {"d (s g h)": "(s g h)", "(g s[:q] h) d": "(g s[:q] h)", "(p[1] f + p[0] f) d": "(p[1] f + p[0] f)"}
    for weight, bias in text.items():
        names = axes.names if "g" in weight else ("p", "f")
        assert pattern_of(weight).only(names) == pattern_of(bias)


@pytest.mark.parametrize("text", ["(g s", "g)", "(g + ) d", "((g h) s) d", "s[:", "s[1.5]", "S d", "g ~ d", "()"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(ValueError, match="not a pattern"):
        pattern_of(text)


def test_what_cannot_be_stored_so_is_refused():
    sizes = {"g": 2, "q": 2, "s": 4, "h": 3, "d": 2}
    with pytest.raises(LayoutError, match="a head of 3 channels has no rotary pairs"):
        piece(parse("(g s h) d"), sizes, pattern_of("(g s h~) d"))
    with pytest.raises(LayoutError, match="2 slices along g cannot be shared by 4 ranks in the order"):
        piece(parse("(g s h) d"), sizes | {"h": 4}, pattern_of("(g s h~) d"), cut="g", rank=0, of=4)
