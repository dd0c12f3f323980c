"""`guess.explain`: each known fault, planted, is named right and can be undone; noise has no name."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from judge import convert
from safetensors.torch import save_file
from tiny import LLAMA3, edit_json, make_llama, make_mistral, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.sources.checks import bits
from mconv.verify.diagnosis import explain as guessing
from mconv.verify.diagnosis.pair import entire
from mconv.verify.differences import logical_of
from mconv.verify.digests import compare

pytestmark = pytest.mark.once

GROUPS, QUERIES, WIDTH, HIDDEN = 4, 2, 6, 48
L = "model.layers.{}."


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("guess")
    make_llama(root / "hf", attention_bias=True)
    make_llama(root / "bf16", dtype=torch.bfloat16)
    make_llama(root / "tied", tie_word_embeddings=True)
    return root


def planted(source, out, plant=None, config=None):
    """A copy of a Hugging Face folder with a fault in its tensors or its config."""
    held = tensors(source)
    if plant:
        plant(held)
    shutil.copytree(source, out)
    file = {name: t.clone().contiguous() for name, t in held.items()}
    save_file(file, out / "model.safetensors", metadata={"format": "pt"})
    edit_json(out / "config.json", **(config or {}))
    return out


def explained(one, two):
    a, b = open_checkpoint(one), open_checkpoint(two)
    return a, b, guessing.explain(a, b, compare(a, b))


def check_undo(a, b, guesses):
    """What undoes a fault gives a's tensor, but for roundings."""
    left, right = a.source, b.source
    for guess in guesses:
        for name in guess.undo:
            logical = logical_of(name)
            want = entire(left, logical if logical in a.by_logical else logical_of("embed.weight"))
            got = guess.mended(logical, left, right)
            torch.testing.assert_close(got.to(want.dtype), want, msg=f"{guess.name} {name}")


# ---- faults, as changes of a Hugging Face folder ---------------------------------------------------------------------
def names_of(layer, *, leaf="weight"):
    return [L.format(layer) + f"self_attn.{n}_proj.{leaf}" for n in "qkv"]


def fused(held, layer):
    """q, k and v as (g s h) d."""
    parts = [held[n].view(GROUPS, -1, WIDTH, HIDDEN) for n in names_of(layer)]
    return torch.cat(parts, 1)


def unfused(held, layer, qkv):
    parts = qkv.reshape(GROUPS, QUERIES + 2, WIDTH, HIDDEN).split([QUERIES, 1, 1], 1)
    for name, part in zip(names_of(layer), parts, strict=True):
        held[name] = part.reshape(-1, HIDDEN)


def qkv(change, *layers):
    def plant(held):
        for layer in layers:
            unfused(held, layer, change(fused(held, layer)))

    return plant


def each(change, name, *layers):
    def plant(held):
        for layer in layers:
            key = L.format(layer) + name if layer is not None else name
            held[key] = change(held[key].clone())

    return plant


def clear(where):
    """Zero in some elements."""

    def change(x):
        x[where] = 0
        return x

    return change


def exchanged(one, two):
    def plant(held):
        held[one], held[two] = held[two], held[one]

    return plant


def layers(order):
    """b's layer i is the old layer order[i]."""

    def plant(held):
        old = dict(held)
        for i, j in enumerate(order):
            for name in [n for n in old if n.startswith(L.format(i))]:
                held[name] = old[name.replace(L.format(i), L.format(j))]

    return plant


def interleave(part):
    """From two halves to pairs, along the channels of a head."""
    return part.unflatten(-2, (2, WIDTH // 2)).transpose(-3, -2).flatten(-3, -2)


def deinterleave(part):
    return part.unflatten(-2, (WIDTH // 2, 2)).transpose(-3, -2).flatten(-3, -2)


def some(slots, change):
    def apply(x):
        out = x.clone()
        out[:, slots] = change(x[:, slots])
        return out

    return apply


def blocks(x):
    """All q, then all k, then all v."""
    return torch.cat([part.flatten(0, 2) for part in x.split([QUERIES, 1, 1], 1)])


def flip_bit(x, at, bit):
    bits(x)[at] ^= 1 << bit
    return x


def shuffle(x):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(3))]


def last_is(change):
    def apply(x):
        x[-1] = change(x)
        return x

    return apply


def swapped_but_two_elements(held):
    """Gate and up exchanged, and two elements besides: nothing exact."""
    exchanged(L.format(1) + GATE, L.format(1) + UP)(held)
    gate = held[L.format(1) + GATE] = held[L.format(1) + GATE].clone()
    gate[5, [40, 41]] = gate[5, [41, 40]]


def glu_by_rank(held):
    gate, up = (L.format(1) + f"mlp.{n}_proj.weight" for n in ("gate", "up"))
    (g0, g1), (u0, u1) = held[gate].chunk(2), held[up].chunk(2)
    held[gate], held[up] = torch.cat([g0, u0]), torch.cat([g1, u1])


Q, K, V, QK = slice(0, 2), slice(2, 3), slice(3, 4), slice(0, 3)
ATTN, MLP = L + "input_layernorm.weight", L + "post_attention_layernorm.weight"
FINAL = "model.norm.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
GATE, UP, OUT = "mlp.gate_proj.weight", "mlp.up_proj.weight", "self_attn.o_proj.weight"
DOWN = "mlp.down_proj.weight"
FAULTS = {
    # planted fault: how, its name, the layers, words of the text
    "gate-up": (exchanged(L.format(3) + GATE, L.format(3) + UP), "gate-up-swapped", (3,), "layer 3 mlp_in.weight: gate"),
    "gate-up-by-rank": (glu_by_rank, "gate-up-by-rank", (1,), "each of 2 ranks"),
    "rotary-all": (qkv(some(QK, interleave), 0, 1, 2, 3), "rotary-order", (0, 1, 2, 3), "all 4 layers qkv.weight: the"),
    "rotary-back": (qkv(some(QK, deinterleave), 1, 3), "rotary-order", (1, 3), "layers 1 and 3 qkv.weight: the rotary "),
    "rotary-q": (qkv(some(Q, interleave), 2), "rotary-order", (2,), "channels of q are interleaved"),
    "rotary-k": (qkv(some(K, deinterleave), 2), "rotary-order", (2,), "channels of k are half-split"),
    "groups": (qkv(lambda x: x[[1, 0, 2, 3]], 2), "query-group-order", (2,), "query groups: 0 and 1 are exchanged"),
    "groups-q-k": (qkv(some(QK, lambda x: x[[0, 3, 2, 1]]), 2), "query-group-order", (2,), "of q and k: 1 and 3 are"),
    "groups-v": (qkv(some(V, lambda x: x[[1, 2, 3, 0]]), 0), "query-group-order", (0,), "of v: all are 1 earlier"),
    "groups-out": (each(lambda x: x.unflatten(1, (4, 12))[:, [0, 2, 1, 3]].flatten(1), OUT, 1), "query-group-order", (1,),
                   "query groups in another order: 1 and 2"),
    "k-v": (qkv(lambda x: x[:, [0, 1, 3, 2]], 1), "slot-order", (1,), "k and v are exchanged"),
    "qqkkvv": (qkv(blocks, 1), "slot-order", (1,), "rows lie all q, then all k"),
    "version-0": (qkv(lambda x: x.transpose(0, 1), 1), "slot-order", (1,), "rows lie slot by slot"),
    "version-1": (qkv(lambda x: x.transpose(1, 2), 1), "slot-order", (1,), "rows lie channel by channel"),
    "slots": (qkv(lambda x: x[:, [3, 0, 1, 2]], 1), "slot-order", (1,), "of each group in another order"),
    "rows": (each(shuffle, DOWN, 2), "shuffled", (2,), "hidden channels in another order: "),
    "rows-of-q": (each(shuffle, "self_attn.q_proj.weight", 2), "shuffled", (2,), "rows (g s h) in another order"),
    "rows-of-up": (each(shuffle, UP, 2), "shuffled", (2,), "rows (p f) in another order"),
    "columns": (each(lambda x: x.flip(1), GATE, 0), None, (0,), "other bits"),
    "columns-of-both": (lambda h: [each(lambda x: x.flip(1), n, 0)(h) for n in (GATE, UP)], "shuffled", (0,), "48 of 48"),
    "ranks": (each(lambda x: x.roll(32, 1), DOWN, 3), "ranks-exchanged", (3,), "of 2 ranks, 0 and 1 are exchanged"),
    "norm-plus": (each(lambda x: x + 1, "input_layernorm.weight", 0, 1), "norm-off-by-one", (0, 1), "plus one"),
    "norm-minus": (each(lambda x: x - 1, "model.norm.weight", None), "norm-off-by-one", (), "final_norm.weight: the"),
    "factor": (each(lambda x: x * 0.125, OUT, 1), "factor", (1,), "0.125 times"),
    "factor-odd": (each(lambda x: x * 6**0.5, "mlp.down_proj.weight", 1), "factor", (1,), "2.44949 times"),
    "sign": (each(lambda x: -x, OUT, 1), "factor", (1,), "other sign"),
    "vocabulary-rolled": (each(lambda x: x.roll(1, 0), EMBED, None), "vocabulary-shift", (), "all are 1 later"),
    "vocabulary-inserted": (each(lambda x: torch.cat([x[:9], x[:1] / 3, x[9:-1]]), HEAD, None), "vocabulary-shift", (),
                            "head.weight: rows of the vocabulary from 9 on are 1 later"),
    "vocabulary-removed": (each(lambda x: torch.cat([x[3:], x[:3] * 3]), EMBED, None), "vocabulary-shift", (), "3 ear"),
    "vocabulary-end-zero": (each(last_is(lambda x: 0), EMBED, None), "vocabulary-end", (), "the last row is zero"),
    "vocabulary-end-copy": (each(last_is(lambda x: x[-2]), EMBED, None), "vocabulary-end", (), "a copy of row 149"),
    "vocabulary-two": (each(lambda x: x[[1, 0, *range(2, 151)]], HEAD, None), "vocabulary-order", (), "0 and 1 are"),
    "layer-repeated": (layers([0, 1, 1, 3]), "layer-repeated", (2,), "layer 2 is layer 1 again"),
    "layers-exchanged": (layers([0, 3, 2, 1]), "layers-exchanged", (1, 3), "layers 1 and 3 are exchanged"),
    "layers-reordered": (layers([1, 2, 3, 0]), "layers-reordered", (0, 1, 2, 3), "a's [1, 2, 3, 0]"),
    "layer-missing": (layers([0, 2, 3, 3]), "layer-missing", (1, 2), "layer 1 is missing, and those after"),
    "layer-inserted": (layers([0, 0, 1, 2]), "layer-repeated", (1, 2, 3), "layer 0 comes twice"),
    "one-tensor": (lambda h: h.update({L.format(1) + OUT: h[L.format(2) + OUT]}), "tensor-of-another-layer", (1,),
                   "layer 1: attn_out.weight is that of layer 2"),
    "norms": (exchanged(ATTN.format(2), MLP.format(2)), "norms-exchanged", (2,), "it is a's"),
    "norm-copied": (lambda h: h.update({MLP.format(2): h[ATTN.format(2)]}), "norm-copied", (2,), "mlp_norm.weight: it"),
    "norms-of-two-layers": (exchanged(ATTN.format(1), MLP.format(3)), "norms-exchanged", (1, 3),
                            "a's mlp_norm of layer 3, and"),
    "norm-of-another-row-and-layer": (lambda h: h.update({MLP.format(0): h[ATTN.format(3)]}), "norm-copied", (0,),
                                      "layer 0 mlp_norm.weight: it is a's attn_norm of layer 3"),
    "final-norm-of-a-layer": (lambda h: h.update({FINAL: h[MLP.format(3)]}), "norm-copied", (),
                              "final_norm.weight: it is a's mlp_norm of layer 3"),
    "final-norm-in-a-layer": (lambda h: h.update({ATTN.format(2): h[FINAL]}), "norm-copied", (2,), "it is a's final"),
    "final-norm-exchanged": (exchanged(FINAL, ATTN.format(0)), "norms-exchanged", (0,), "it is a's"),
    "norm-of-ones": (each(torch.ones_like, "model.norm.weight", None), "norm-dropped", (), "1 throughout"),
    "norm-of-twos": (each(lambda x: torch.full_like(x, 2), "model.norm.weight", None), "", (), "other bits"),
    "embed-head": (exchanged(EMBED, HEAD), "embed-head-exchanged", (), "a's"),
    "head-is-embed": (lambda h: h.update({HEAD: h[EMBED]}), "head-is-embed", (), "it is a's embed"),
    "exponent": (each(lambda x: flip_bit(x, (5, 7), 27), OUT, 1), "bit-flipped", (1,), "one exponent bit (bit 27 of 32)"),
    "sign-bit": (each(lambda x: x.where(torch.arange(48) > 0, -x), "model.norm.weight", None), "bit-flipped", (), "sign"),
    "mantissa": (each(lambda x: flip_bit(x, (5, 7), 0), OUT, 1), "bit-flipped", (1,), "one mantissa bit (bit 0 of 32)"),
    "transposed": (each(lambda x: x.T, OUT, 1), "transposed", (1,), "attn_out.weight: it is transposed"),
    "transposed-q": (each(lambda x: x.T, "self_attn.q_proj.weight", 1), "transposed", (1,), "q is transposed"),
    "bias": (each(torch.zeros_like, "self_attn.o_proj.bias", 0, 1, 2, 3), "bias-dropped", (0, 1, 2, 3), "the bias is"),
    "bias-of-k": (each(torch.zeros_like, "self_attn.k_proj.bias", 1, 2), "bias-dropped", (1, 2),
                  "layers 1 and 2 qkv.bias: the part of k of the bias is zero where a has values"),
    "bias-of-q-and-v": (lambda h: [each(torch.zeros_like, f"self_attn.{n}_proj.bias", 1)(h) for n in "qv"],
                        "bias-dropped", (1,), "the part of q and v of the bias"),
    "bias-of-a-rank": (lambda h: [each(clear(slice(at, None)), f"self_attn.{x}_proj.bias", 1)(h)
                                  for x, at in (("q", 24), ("k", 12), ("v", 12))], "bias-dropped", (1,), "rank 1 of 2"),
    "bias-of-v-of-a-rank": (each(clear(slice(6)), "self_attn.v_proj.bias", 3), "bias-dropped", (3,),
                            "the share of rank 0 of 4 of the part of v of the bias"),
    "bias-of-a-channel": (each(clear(slice(1)), "self_attn.v_proj.bias", 3), "", (3,), "other bits"),
    "zeroed": (each(torch.zeros_like, OUT, 1), "zeroed", (1,), "zero where a has values"),
    "zeroed-k": (each(torch.zeros_like, "self_attn.k_proj.weight", 1), "zeroed", (1,), "qkv.weight: the part of k of it"),
    "zeroed-up": (each(torch.zeros_like, UP, 1), "zeroed", (1,), "the up half of it"),
    "zeroed-rank": (each(lambda x: x * (torch.arange(48) < 24), OUT, 1), "zeroed", (1,), "of rank 1 of 2 of it"),
    "noise": (each(lambda x: x + torch.randn(x.shape) * 1e-3, OUT, 1), "", (1,), "attn_out.weight: other bits"),
    "noise-of-an-ulp": (each(lambda x: torch.nextafter(x, x + 1), OUT, 1), "", (1,), "other bits"),
    "noise-on-a-norm": (each(lambda x: x + torch.rand(48), "input_layernorm.weight", 1), "", (1,), "other bits"),
    "nearly-one": (each(lambda x: x * (1 + 2**-22), OUT, 1), "", (1,), "other bits"),
    "a-factor-and-noise": (each(lambda x: x * (0.5 + torch.rand(x.shape) / 100), OUT, 1), "", (1,), "other bits"),
    "nearly-swapped": (swapped_but_two_elements, "", (1,), "other bits"),
    "two-rows-of-noise": (each(lambda x: x + (torch.arange(151) > 148)[:, None], HEAD, None), "", (), "other bits"),
}  # fmt: skip
LOSSY = {"vocabulary-inserted", "vocabulary-removed"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_and_undone(made, tmp_path, fault):
    plant, name, where, words = FAULTS[fault]
    a, b, guesses = explained(made / "hf", planted(made / "hf", tmp_path / "b", plant))
    assert {g.name for g in guesses} == {name or ""}, [g.text for g in guesses]
    assert {layer for g in guesses for layer in g.layers} == set(where)
    assert words in guesses[0].text and all(guesses[0].text for g in guesses), [g.text for g in guesses]
    assert bool(guesses[0].undo) == bool(name), "what has a name can be undone"
    if fault not in LOSSY:
        check_undo(a, b, guesses)
    json.dumps([g.to_dict() for g in guesses])


@pytest.mark.parametrize(
    "spelling", [{"format": "mp_rank", "tp": 2}, {"format": "torch_dist", "tp": 4, "pp": 2}], ids=str
)
@pytest.mark.parametrize(
    "fault", ["gate-up", "rotary-k", "groups-q-k", "rows", "norm-minus", "layers-exchanged", "noise"]
)
def test_a_fault_is_named_across_formats_and_roundings(made, tmp_path, fault, spelling):
    plant, name, where, words = FAULTS[fault]
    two = convert(planted(made / "hf", tmp_path / "b", plant), tmp_path / "megatron", dtype="bf16", **spelling)
    _, _, guesses = explained(made / "hf", two)
    assert {g.name for g in guesses} == {name} and words in guesses[0].text
    assert {layer for g in guesses for layer in g.layers} == set(where)


def test_what_is_the_same_has_no_fault(made, tmp_path):
    for name, dtype in (("same", None), ("cast", "bf16")):
        two = convert(made / "hf", tmp_path / name, **({"dtype": dtype} if dtype else {}))
        assert explained(made / "hf", two)[2] == [] == explained(two, made / "hf")[2]


@pytest.mark.parametrize("dtype, bit, part", [("fp32", 29, "exponent"), ("fp16", 11, "exponent"), ("bf16", 15, "sign"),
                                              ("bf16", 6, "mantissa"), ("fp16", 9, "mantissa")])  # fmt: skip
def test_a_bit_is_named_in_each_dtype(tmp_path, dtype, bit, part):
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    one = make_llama(tmp_path / "a", dtype=kind, num_hidden_layers=1)

    def plant(held):
        whole = bits(held["model.norm.weight"])
        whole[5] ^= 1 << bit if bit < 8 * kind.itemsize - 1 else -(1 << bit)

    a, b, (guess,) = explained(one, planted(one, tmp_path / "b", plant))
    assert guess.name == "bit-flipped" and f"one {part} bit (bit {bit} of {8 * kind.itemsize})" in guess.text
    check_undo(a, b, [guess])


# ---- planted in a Megatron checkpoint itself -------------------------------------------------------------------------
def test_a_fault_in_one_ranks_share_is_named_with_its_place(made, tmp_path):
    root = convert(made / "hf", tmp_path / "mp", format="mp_rank", tp=2)
    file = root / "release/mp_rank_01/model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    model = state["model"]
    gate, up = model["decoder.layers.1.mlp.linear_fc1.weight"].chunk(2)
    model["decoder.layers.1.mlp.linear_fc1.weight"] = torch.cat([up, gate])
    key = "decoder.layers.2.self_attention.linear_qkv.weight"
    model[key] = some(QK, interleave)(model[key].view(2, 4, WIDTH, HIDDEN)).reshape(-1, HIDDEN)
    torch.save(state, file)
    a, b, guesses = explained(made / "hf", root)
    assert [(g.name, g.layers) for g in guesses] == [("gate-up-swapped", (1,)), ("rotary-order", (2,))]
    assert guesses[0].text.endswith("are swapped, in f 32 to 63") and guesses[1].text.endswith(", in g 2 to 3")
    check_undo(a, b, guesses)


def test_shares_of_two_ranks_exchanged(made, tmp_path):
    root = convert(made / "hf", tmp_path / "mp", format="mp_rank", tp=2)
    files = [root / f"release/mp_rank_0{rank}/model_optim_rng.pt" for rank in (0, 1)]
    states = [torch.load(file, weights_only=False) for file in files]
    key = "decoder.layers.3.mlp.linear_fc2.weight"
    one, two = (state["model"][key].clone() for state in states)
    states[0]["model"][key], states[1]["model"][key] = two, one
    for file, state in zip(files, states, strict=True):
        torch.save(state, file)
    a, b, (guess,) = explained(made / "hf", root)
    assert (guess.name, guess.layers) == ("ranks-exchanged", (3,))
    check_undo(a, b, [guess])


def test_a_bit_flipped_in_a_chunk_on_disk(made, tmp_path):
    root = convert(made / "hf", tmp_path / "td", format="torch_dist", tp=2)
    key = "decoder.layers.self_attention.linear_proj.weight@2,0,24"
    where = open_checkpoint(root).located[key]
    with where.path.open("r+b") as file:
        file.seek(where.offset + 4 * (24 * 3 + 1) + 3)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x40]))
    a, b, (guess,) = explained(made / "hf", root)
    assert guess.name == "bit-flipped" and guess.layers == (2,) and "exponent bit (bit 30 of 32)" in guess.text
    assert compare(a, b).differences[0].pieces == (key,)
    check_undo(a, b, [guess])


# ---- what the specs say ----------------------------------------------------------------------------------------------
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
SPECS = {
    # fault: a's config, b's, its name, words
    "dropped": ({"rope_parameters": LLAMA3}, {"rope_parameters": PLAIN}, "rope-scaling-dropped",
                "llama3 rope scaling (factor 8)"),
    "factor": ({"rope_parameters": {**LLAMA3, "factor": 32.0}}, {"rope_parameters": LLAMA3}, "rope-factor",
               "factor is 8, not 32"),
    "linear": ({"rope_parameters": LLAMA3}, {"rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 8.0}},
               "rope-linear-for-llama3", "linear, not llama3"),
    "added": ({"rope_parameters": PLAIN}, {"rope_parameters": LLAMA3}, "rope-kind", "is llama3, not default"),
    "base": ({"rope_parameters": {**PLAIN, "rope_theta": 1e6}}, {"rope_parameters": {**PLAIN, "rope_theta": 1e4}},
             "rope-base", "base is 10000, not 1e+06"),
    "fields": ({"rope_parameters": LLAMA3}, {"rope_parameters": {**LLAMA3, "low_freq_factor": 2.0, "factor": 4.0}},
               "rope-fields", "factor is 4, not 8, low_freq_factor is 2, not 1"),
    "epsilon": ({"rms_norm_eps": 1e-6}, {"rms_norm_eps": 1e-5}, "norm-epsilon", "1e-05, not 1e-06"),
}  # fmt: skip


@pytest.mark.parametrize("fault", SPECS)
def test_a_fault_of_the_config_is_named_and_repaired(made, tmp_path, fault):
    one, two, name, words = SPECS[fault]
    a, b, (guess,) = explained(
        planted(made / "hf", tmp_path / "a", config=one), planted(made / "hf", tmp_path / "b", config=two)
    )
    assert guess.name == name and words in guess.text and not guess.undo
    assert replace(b.spec, **guess.spec) == a.spec


@pytest.mark.parametrize("window, words", [(15, "15, not 16: 1 too few"), (None, "of 16 is dropped"), (20, "4 too many")])
def test_a_window(tmp_path, window, words):
    one = make_mistral(tmp_path / "a", sliding_window=16, num_hidden_layers=1)
    two = planted(one, tmp_path / "b", config={"sliding_window": window})
    if window is None:  # an absent key is Mistral's default
        (two / "config.json").write_text(
            (one / "config.json").read_text().replace('"sliding_window": 16', '"sliding_window": null')
        )
    a, b, (guess,) = explained(one, two)
    assert guess.name == "sliding-window" and words in guess.text and replace(b.spec, **guess.spec) == a.spec


def test_a_tied_head_untied_and_the_other_way(made, tmp_path):
    untie = each(lambda x: x + 0.5, EMBED, None)

    def plant(held):
        copy = {EMBED: held[EMBED].clone()}
        untie(copy)
        held[HEAD] = copy[EMBED]

    two = planted(made / "tied", tmp_path / "b", plant, {"tie_word_embeddings": False})
    a, b, (guess,) = explained(made / "tied", two)
    assert guess.name == "tied-head-untied" and replace(b.spec, **guess.spec) == a.spec
    check_undo(a, b, [guess])
    a, b, (guess,) = explained(two, made / "tied")
    assert guess.name == "head-tied" and replace(b.spec, **guess.spec) == a.spec
    check_undo(a, b, [guess])


def test_rows_of_padding_that_leaked_and_rows_that_are_missing(made, tmp_path):
    both = (EMBED, HEAD)
    more = planted(made / "hf", tmp_path / "more", lambda h: h.update({n: torch.cat([h[n], h[n][-1:]]) for n in both}),
                   {"vocab_size": 152})  # fmt: skip
    a, b, guesses = explained(made / "hf", more)
    assert [g.name for g in guesses] == ["padding-leaked"] * 2 and "1 rows beyond the vocabulary, not zero" in guesses[
        0
    ].text
    assert all(replace(b.spec, **g.spec) == a.spec for g in guesses)
    check_undo(a, b, guesses)
    a, b, guesses = explained(more, made / "hf")
    assert [g.name for g in guesses] == ["vocabulary-cut"] * 2 and "the last 1 rows" in guesses[0].text
    first = planted(made / "hf", tmp_path / "first", lambda h: h.update({n: h[n][1:] for n in both}), {"vocab_size": 150})
    _, _, guesses = explained(made / "hf", first)
    assert [g.name for g in guesses] == ["vocabulary-shift"] * 2 and "from 0 on are 1 earlier" in guesses[0].text


@pytest.mark.parametrize("order, name, words", [
    ([0, 1, 2], "layer-missing", "layer 3 is missing"), ([0, 2, 3], "layer-missing", "layer 1 is missing"),
    ([0, 1, 1, 2, 3], "layer-repeated", "layer 1 comes twice"),
    ([0, 1, 2, 3, 3], "layer-repeated", "layer 3 comes twice"),
])  # fmt: skip
def test_another_number_of_layers(made, tmp_path, order, name, words):
    def plant(held):
        old = dict(held)
        for key in [key for key in held if ".layers." in key]:
            del held[key]
        for i, j in enumerate(order):
            held |= {n.replace(L.format(j), L.format(i)): t for n, t in old.items() if n.startswith(L.format(j))}

    two = planted(made / "hf", tmp_path / "b", plant, {"num_hidden_layers": len(order)})
    a, b, (guess,) = explained(made / "hf", two)
    assert guess.name == name and words in guess.text and replace(b.spec, **guess.spec) == a.spec
    check_undo(a, b, [guess])


@pytest.mark.parametrize("names, words", [("k", "the part of k of the bias"), ("qkv", "the bias")])
def test_a_bias_that_is_zero_in_the_reference_alone(made, tmp_path, names, words):
    """What b must not have is taken out of b itself."""
    plant = lambda h: [each(torch.zeros_like, f"self_attn.{n}_proj.bias", 2)(h) for n in names]  # noqa: E731
    a, b, (guess,) = explained(planted(made / "hf", tmp_path / "a", plant), made / "hf")
    assert guess.name == "bias-added" and words in guess.text and guess.undo["layer.2.qkv.bias"].side == "b"
    check_undo(a, b, [guess])


def test_biases_that_one_side_has_not(made, tmp_path):
    def plant(held):
        for key in [key for key in held if key.endswith(".bias")]:
            del held[key]

    two = planted(made / "hf", tmp_path / "b", plant, {"attention_bias": False})
    a, b, guesses = explained(made / "hf", two)
    assert {(g.name, g.tensor, g.layers) for g in guesses} == {
        ("bias-dropped", f"{row}.bias", (0, 1, 2, 3)) for row in ("qkv", "attn_out")
    }
    assert replace(b.spec, **guesses[0].spec, **guesses[1].spec) == a.spec
    check_undo(a, b, guesses)
    assert {g.name for g in explained(two, made / "hf")[2]} == {"bias-added"}


# ---- several, and many -----------------------------------------------------------------------------------------------
def test_one_fault_does_not_hide_another(made, tmp_path):
    def plant(held):
        for fault in ("gate-up", "rotary-q", "norm-minus", "noise", "vocabulary-two"):
            FAULTS[fault][0](held)

    a, b, guesses = explained(made / "hf", planted(made / "hf", tmp_path / "b", plant, {"rms_norm_eps": 1e-6}))
    assert {g.name for g in guesses} == {
        "gate-up-swapped", "rotary-order", "norm-off-by-one", "", "vocabulary-order", "norm-epsilon",
    }  # fmt: skip
    check_undo(a, b, guesses)


def test_what_is_not_found_in_the_first_layers_is_not_read_in_the_others(made, tmp_path, monkeypatch):
    noise = each(lambda x: x + torch.randn(x.shape) * 1e-3, OUT, 0, 1, 2, 3)
    swap = [exchanged(L.format(i) + GATE, L.format(i) + UP) for i in range(4)]
    two = planted(made / "hf", tmp_path / "b", lambda h: [plant(h) for plant in (noise, *swap)])
    read, whole = [], guessing.TensorPair.read
    monkeypatch.setattr(guessing, "SEARCHED", 2)
    monkeypatch.setattr(guessing.TensorPair, "read", lambda *args: read.append(args[2].row) or whole(*args))
    _, _, guesses = explained(made / "hf", two)
    assert read.count("layer.attn_out") == 2 and read.count("layer.mlp_in") == 4
    assert [(g.name, g.layers) for g in guesses] == [
        ("", (0, 1)), ("gate-up-swapped", (0, 1, 2, 3)), ("", (2, 3)),
    ]  # fmt: skip
    assert "only the first 2 were searched" in guesses[2].text
