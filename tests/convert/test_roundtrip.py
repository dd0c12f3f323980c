"""HF -> Megatron -> another layout -> merged -> HF gives back every bit, whatever the architecture."""

import json
from itertools import cycle, product

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import MODELS, NEW_ROPE, VARIANTS, make_llama, make_model, same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders.sidecar import look
from mconv.convert.formats.dtype import BFLOAT16
from mconv.convert.spelling.rope import OLD_KEYS
from mconv.errors import LayoutError

FORMATS = (("torch_dist", "mp_rank"), ("mp_rank", "torch_dist"))


def to(source, out, **options):
    """One conversion; returns the folder."""
    rewrite(plan.make(open_checkpoint(source), out, **options), step="test")
    return out


LLAMAS = [name for name in MODELS if name.startswith("llama")]
OTHERS = [name for name in MODELS if name not in LLAMAS]
WAYS = [
    *product(LLAMAS, FORMATS, (torch.float32, torch.bfloat16)),
    *zip(OTHERS, cycle(FORMATS), cycle((torch.bfloat16, torch.bfloat16, torch.float32, torch.float32))),
]
"""Both formats are in every walk, whichever is first."""


@pytest.mark.parametrize("model, formats, dtype", WAYS, ids=str)
def test_there_resharded_merged_and_back(tmp_path, model, formats, dtype):
    there, back = formats
    hf = make_model(model, tmp_path / "hf", dtype=dtype)
    megatron = to(hf, tmp_path / "a", format=there, tp=2, pp=2)
    resharded = to(megatron, tmp_path / "b", format=back, tp=4, pp=1)
    merged = to(resharded, tmp_path / "c", format=there)
    out = to(merged, tmp_path / "out", format="hf")
    assert same(tensors(hf), tensors(out))
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (hf, out))
    added = ours.keys() - theirs.keys()  # by no model with transformers' default rope: test_transformers4.py
    assert added == (set(OLD_KEYS) if model in NEW_ROPE else set())
    assert {key: value for key, value in ours.items() if key not in added} == theirs
    for file in look(hf).files:
        assert (out / file).read_bytes() == (hf / file).read_bytes() or (added and file == "config.json"), file


def test_the_exported_folder_generates_the_same_tokens(tmp_path):
    from transformers import AutoModelForCausalLM

    hf = make_llama(tmp_path / "hf")
    out = to(to(hf, tmp_path / "m", format="torch_dist", tp=2, pp=2), tmp_path / "out", format="hf")
    prompt = torch.tensor([[5, 9, 77, 140]])
    first, second = (
        AutoModelForCausalLM.from_pretrained(folder).generate(prompt, max_new_tokens=12, do_sample=False)
        for folder in (hf, out)
    )
    assert torch.equal(first, second)


def test_many_shards_with_an_index(tmp_path):
    hf = make_llama(tmp_path / "hf", shard="40KB")
    assert len(list(hf.glob("*.safetensors"))) > 2
    megatron = to(hf, tmp_path / "m", format="mp_rank", tp=2, pp=4)
    out = to(megatron, tmp_path / "out", format="hf", shard_bytes=50_000)
    assert len(list(out.glob("*.safetensors"))) > 2 and (out / "model.safetensors.index.json").exists()
    assert same(tensors(hf), tensors(out))
    from transformers import AutoModelForCausalLM

    assert same(AutoModelForCausalLM.from_pretrained(out).state_dict(), tensors(hf))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    groups=st.sampled_from([1, 2, 4]),
    queries=st.sampled_from([1, 2, 3]),
    layers=st.sampled_from([1, 2, 4, 6]),
    vocab=st.integers(3, 300),
    multiple=st.sampled_from([1, 8, 128]),
    tied=st.booleans(),
    biases=st.booleans(),
)
def test_any_model_at_any_layout(tmp_path_factory, data, groups, queries, layers, vocab, multiple, tied, biases):
    tmp = tmp_path_factory.mktemp("any")
    hf = make_llama(
        tmp / "hf", dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        num_key_value_heads=groups, num_attention_heads=groups * queries, hidden_size=2 * groups * queries, head_dim=4,
        num_hidden_layers=layers, intermediate_size=24, vocab_size=vocab, tie_word_embeddings=tied,
        attention_bias=biases, mlp_bias=biases,
    )  # fmt: skip
    folder = hf
    for hop in range(3):
        pp = data.draw(st.sampled_from([n for n in (1, 2, 3) if layers % n == 0]))
        vpp = data.draw(st.sampled_from([n for n in (1, 2) if pp > 1 and layers % (pp * n) == 0] or [1]))
        layout = {"tp": data.draw(st.sampled_from([1, 2, 3, 4, 8])), "pp": pp, "vpp": vpp}
        format = data.draw(st.sampled_from(["torch_dist", "mp_rank"]))
        try:
            folder = to(folder, tmp / f"hop{hop}", format=format, vocab_multiple=multiple, **layout)
        except LayoutError as error:  # query heads that tp cannot share
            assert "does not divide" in str(error)
    assert same(tensors(hf), tensors(to(folder, tmp / "out", format="hf")))


def test_a_cast_is_made_once_and_said(tmp_path):
    hf = make_llama(tmp_path / "hf")
    megatron = to(hf, tmp_path / "m", format="torch_dist", tp=2, dtype="bf16")
    found = open_checkpoint(megatron)
    assert found.dtypes == {BFLOAT16} and found.manifest["history"][-1]["detail"]["cast_to"] == "bfloat16"
    out = to(megatron, tmp_path / "out", format="hf")
    assert same(tensors(out), {name: t.bfloat16() for name, t in tensors(hf).items()})
    assert open_checkpoint(out).manifest["digests"] == found.manifest["digests"]
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(out).dtype == torch.bfloat16


def test_padding_rows_are_zero_and_are_not_exported(tmp_path):
    hf = make_llama(tmp_path / "hf")
    megatron = to(hf, tmp_path / "m", format="mp_rank", tp=2)
    for rank, rows in ((0, 0), (1, 256 - 151)):
        state = torch.load(megatron / f"release/mp_rank_0{rank}/model_optim_rng.pt", weights_only=False)["model"]
        embedding = state["embedding.word_embeddings.weight"]
        assert embedding.shape[0] == 128 and int((embedding == 0).all(dim=1).sum()) == rows


def test_mp_rank_rows_are_megatrons_own_layout(tmp_path):
    """An independent cut of QKV and the gated MLP, written out by hand: interleaved groups, gate before up."""
    hf = make_llama(tmp_path / "hf")
    source, (g, q, h, f) = tensors(hf), (4, 2, 6, 64)
    megatron = to(hf, tmp_path / "m", format="mp_rank", tp=2)
    state = torch.load(megatron / "release/mp_rank_01/model_optim_rng.pt", weights_only=False)["model"]
    prefix = "model.layers.2."
    query, key, value = (source[f"{prefix}self_attn.{n}_proj.weight"].view(g, -1, h, 48) for n in "qkv")
    rows = [torch.cat([query[i].flatten(0, 1), key[i, 0], value[i, 0]]) for i in (2, 3)]
    assert torch.equal(state["decoder.layers.2.self_attention.linear_qkv.weight"], torch.cat(rows))
    assert query.shape[1] == q
    halves = [source[f"{prefix}mlp.{n}_proj.weight"][f // 2 :] for n in ("gate", "up")]
    assert torch.equal(state["decoder.layers.2.mlp.linear_fc1.weight"], torch.cat(halves))


def test_a_digest_is_of_the_logical_tensor_whatever_holds_it(tmp_path):
    hf = make_llama(tmp_path / "hf", **VARIANTS["mlp-bias"])
    a = to(hf, tmp_path / "a", format="torch_dist", tp=4, pp=2)
    b = to(hf, tmp_path / "b", format="mp_rank", tp=8, pp=1)
    one, two = (open_checkpoint(x).manifest["digests"] for x in (a, b))
    assert one == two and len(set(one.values())) == len(one)


def test_the_manifest_keeps_what_the_first_source_held(tmp_path):
    """One digest of all its tensors, through every hop, layout and cast."""
    hf = make_llama(tmp_path / "hf")
    one = to(hf, tmp_path / "a", format="torch_dist")
    cast = to(to(one, tmp_path / "b", format="mp_rank", dtype="bf16"), tmp_path / "c", format="hf")
    again = to(hf, tmp_path / "d", format="mp_rank", tp=2, dtype="bf16")
    other = to(make_llama(tmp_path / "x", seed=3), tmp_path / "e", format="torch_dist")
    first, *same, differs = (open_checkpoint(x).manifest["source"]["digest"] for x in (one, cast, again, other))
    assert same == [first, first] and differs != first and first.startswith("xxh3-128 ")


def test_a_digest_is_the_hash_of_the_rows_in_order(tmp_path):
    import xxhash

    hf = make_llama(tmp_path / "hf")
    manifest = open_checkpoint(to(hf, tmp_path / "a", format="torch_dist")).manifest
    want = xxhash.xxh3_128(np.ascontiguousarray(tensors(hf)["model.layers.0.mlp.down_proj.weight"].numpy())).hexdigest()
    assert manifest["digests"]["layer.0.mlp_out.weight"] == want and manifest["digest"].startswith("xxh3-128 ")


@pytest.mark.parametrize("cast", [None, "fp32"])
def test_a_manifest_with_older_digests_is_held_against_what_is_read(tmp_path, cast):
    import json

    from mconv.convert.sources.read import digests
    from mconv.errors import FormatError

    megatron = to(make_llama(tmp_path / "hf", dtype=torch.bfloat16), tmp_path / "m", format="torch_dist", tp=2)
    path = megatron / "release/mconv.json"
    made = json.loads(path.read_text())
    found = digests(open_checkpoint(megatron).source, algorithm="sha256").stored
    path.write_text(json.dumps({**made, "digest": "sha256 of the logical tensor's bytes, row-major", "digests": found}))
    out = to(megatron, tmp_path / "out", format="hf", dtype=cast)
    assert open_checkpoint(out).manifest["digest"].startswith("xxh3-128")
    assert cast or open_checkpoint(out).manifest["digests"] == made["digests"]
    found["layer.1.mlp_out.weight"] = "0" * 64
    path.write_text(json.dumps({**made, "digest": "sha256", "digests": found}))
    with pytest.raises(FormatError, match=r"layer\.1\.mlp_out\.weight.*changed since"):
        to(megatron, tmp_path / "wrong", format="hf", dtype=cast)
    path.write_text(json.dumps({**made, "digest": "md6 of something", "digests": found}))
    with pytest.raises(FormatError, match=r"md6.*newer mconv"):
        to(megatron, tmp_path / "wrong", format="hf", dtype=cast)
    assert not (tmp_path / "wrong").exists()


def test_a_damaged_weight_is_noticed_on_the_way_back(tmp_path):
    from mconv.errors import FormatError

    megatron = to(make_llama(tmp_path / "hf"), tmp_path / "m", format="torch_dist", tp=2)
    where = open_checkpoint(megatron).located["decoder.layers.mlp.linear_fc2.weight@1,0,0"]
    with where.path.open("r+b") as file:
        file.seek(where.offset + 5)
        file.write(b"\x01")
    with pytest.raises(FormatError, match=r"layer\.1\.mlp_out\.weight.*changed since"):
        to(megatron, tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()


def test_overwrite_replaces_and_leaves_nothing_behind(tmp_path):
    first, second = make_llama(tmp_path / "1"), make_llama(tmp_path / "2", seed=5)
    out = to(first, tmp_path / "m", format="mp_rank", tp=2)
    to(second, out, format="torch_dist", overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == ["latest_checkpointed_iteration.txt", "release"]
    assert same(tensors(to(out, tmp_path / "back", format="hf")), tensors(second))


@pytest.mark.parametrize(
    "key, value, says", [("digests", {"embed.weight": 0}, "digest of embed"), ("copies", [3], "copies holds 3")]
)
def test_a_manifest_whose_values_are_of_a_wrong_kind_is_refused_by_name(tmp_path, key, value, says):
    import json

    from mconv.errors import FormatError

    root = to(make_llama(tmp_path / "hf"), tmp_path / "m", format="torch_dist")
    path = root / "release" / "mconv.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(FormatError, match=says):
        open_checkpoint(root)
