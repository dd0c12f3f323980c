"""Experts as an axis: a made-up mixture, a name for each expert here, all stacked there, cut by ep and tp."""

from itertools import product

import pytest
import torch

from mconv.convert.dialects.spell import rectangles
from mconv.convert.sources.stored import seen
from mconv.convert.spelling.spelled import spelled, stacked
from mconv.convert.spelling.table import Row
from mconv.shard.axes import Axes, parse, whole, within
from mconv.shard.cut import region
from mconv.shard.patch import patch_of
from mconv.shard.pattern import parse as pattern_of
from mconv.shard.pattern import piece

E = "model.layers.{l}.mlp.experts.{e}."
CUTS = {"tp": "f", "ep": "e"}
UP = Row("layer.experts_in", "e (p f) d", CUTS, {E + "gate_proj": "(p[0] f) d", E + "up_proj": "(p[1] f) d"}, "mlp_bias")
DOWN = Row("layer.experts_out", "e d f", CUTS, E + "down_proj", "mlp_bias")
SIZES = {"l": 3, "e": 4, "p": 2, "f": 6, "d": 5}
LOCAL = "decoder.layers.{l}.mlp.experts.local_experts.{e}.linear_fc1"
PARTS = {"gate_proj": 0, "up_proj": 1, "down_proj": slice(None)}
"""What the modules hold of an expert."""
RANKS = list(product(range(2), range(2)))
"""(ep, tp), two of each."""


def distinct(axes):
    """A tensor of distinct numbers, as it is stored whole, and a view of it with a dimension for each axis."""
    stored = torch.arange(torch.Size(axes.shape(SIZES)).numel()).reshape(axes.shape(SIZES))
    return stored, stored.reshape(axes.dims(SIZES))


def holds(axes, held, want):
    """A piece read out of what `want` stores is the logical tensor's box; the box written there is what `want` stores."""
    _, logical = distinct(axes)
    assert (
        held.shape == want.shape and sum(torch.Size(b - a for a, b in x.at).numel() for x in held.blocks) == want.numel()
    )
    written = torch.full(held.shape, -1)
    for block in held.blocks:
        patch, box = patch_of(held.shape, block), logical[within(block.box, whole(axes.dims(SIZES)))]
        assert torch.equal(seen(want.reshape(-1), patch, block.box), box)
        seen(written.view(-1), patch, block.box).copy_(box)
    assert torch.equal(written, want)


def test_a_row_of_experts_says_what_it_is():
    assert (UP.kind, DOWN.kind, UP.cut, UP.per_layer) == ("column", "row", "f", True)
    assert (str(UP.axes_of("bias")), str(DOWN.axes_of("bias"))) == ("e (p f)", "e d")


@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_a_name_for_each_expert(leaf):
    """Hugging Face: gate and up of each expert apart."""
    for row in (UP, DOWN):
        axes = row.axes_of(leaf)
        _, logical = distinct(axes)
        names = dict(spelled(row.hf, axes, SIZES, layer=7))
        assert len(names) == SIZES["e"] * len(row.modules)
        for name, held in names.items():
            expert = logical[int(name.split(".")[5])]
            assert name.startswith("model.layers.7.mlp.experts.")
            holds(axes, held, expert[PARTS[name.rpartition(".")[2]]].contiguous())


@pytest.mark.parametrize(("ep", "tp"), RANKS)
def test_a_rank_names_its_own_experts(ep, tp):
    """megatron-core's rank file counts the experts of the rank, each cut by tp."""
    axes, own = parse(UP.axes), SIZES["e"] // 2
    _, logical = distinct(axes)
    for local in range(own):
        held = piece(axes, SIZES, pattern_of(UP.axes).at({"e": ep * own + local}), cut=UP.cut, rank=tp, of=2)
        gate, up = (half.chunk(2)[tp] for half in logical[ep * own + local])
        holds(axes, held, torch.cat([gate, up]))


@pytest.mark.parametrize("row", [UP, DOWN], ids=lambda row: row.name)
def test_layers_and_experts_stacked(row):
    """torch_dist: "l e (p f) d", in the chunks of each layer and rank of ep and tp; together they are all of it."""
    axes = parse(row.axes)
    every = Axes((("l",), *axes.groups))
    stored, _ = distinct(axes)
    count = torch.zeros(every.shape(SIZES), dtype=int)
    for layer, (ep, tp) in product(range(SIZES["l"]), RANKS):
        shares = {"l": (layer, SIZES["l"]), row.cuts["ep"]: (ep, 2), row.cuts["tp"]: (tp, 2)}
        for offsets, shape in rectangles(every, SIZES, shares):
            at = tuple(slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
            count[at] += 1
            holds(axes, region(axes, SIZES, offsets[1:], shape[1:]), stored[at[1:]].contiguous())
    assert (count == 1).all()


def test_what_a_key_does_not_enumerate_is_stored():
    assert stacked(LOCAL) == "decoder.layers.mlp.experts.local_experts.linear_fc1"
