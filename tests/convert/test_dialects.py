"""NVIDIA's legacy names and Megatron-LLM's: written, read, told apart, and never guessed."""

import dataclasses
import pickle
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import VARIANTS, make_llama, same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.dialects import DIALECTS, mcore
from mconv.convert.dialects.flags import Case
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders.ignored import ignored
from mconv.errors import ConfigError, FormatError, LayoutError, MconvError
from mconv.shard.layout import Layout
from mconv.shard.stages import Uneven

OLD = {
    "input_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm", "final_norm": "final_layernorm",
}  # fmt: skip


def to(source, out, **options):
    opened = source if not hasattr(source, "is_dir") else open_checkpoint(source)
    rewrite(plan.make(opened, out, **options), step="test")
    return out


def rank_files(root):
    return sorted(root.rglob("model_optim_rng.pt"))


def rewritten(root, change):
    """Rewrite every rank's file by a function, with torch alone, and drop what mconv said of it."""
    for path in rank_files(root):
        state = torch.load(path, weights_only=False)
        torch.save(change(state) or state, path)
    for path in [*root.rglob("mconv.json")]:
        path.unlink()
    return root


def renamed(tree, names):
    out = {}
    for key, value in tree.items():
        for new, old in names.items():
            key = key.replace(new, old)
        out[key] = renamed(value, names) if isinstance(value, dict) else value
    return out


@pytest.mark.parametrize("dialect", ["nvidia-legacy", "megatron-llm"])
@pytest.mark.parametrize("variant", ["gqa", "mha", "mqa", "tied", "linear-rope", "all-biases", "code-llama"])
def test_there_to_megatron_core_and_back(tmp_path, variant, dialect):
    hf = make_llama(tmp_path / "hf", dtype=torch.bfloat16, **VARIANTS[variant])
    tp = 1 if variant == "mqa" and dialect == "megatron-llm" else 2
    legacy = to(hf, tmp_path / "a", format="mp_rank", tp=tp, pp=2, dialect=dialect)
    core = to(legacy, tmp_path / "b", format="torch_dist", tp=4)
    again = to(core, tmp_path / "c", format="mp_rank", tp=1, pp=4, dialect=dialect)
    out = to(again, tmp_path / "out", format="hf")
    assert same(tensors(hf), tensors(out))
    assert open_checkpoint(legacy).dialect == dialect == open_checkpoint(again).dialect


def test_legacy_rows_are_those_of_megatron_core(tmp_path):
    """The published map of names, one way, by hand: all that differs is what things are called."""
    hf = make_llama(tmp_path / "hf")
    core, legacy = (
        torch.load(rank_files(to(hf, tmp_path / d, format="mp_rank", tp=2, dialect=d))[1], weights_only=False)["model"]
        for d in ("mcore", "nvidia-legacy")
    )
    model = legacy["language_model"]
    names = {
        "input_norm.weight": "input_layernorm.weight",
        "self_attention.query_key_value.weight": "self_attention.linear_qkv.weight",
        "self_attention.dense.weight": "self_attention.linear_proj.weight",
        "post_attention_norm.weight": "pre_mlp_layernorm.weight", "mlp.dense_h_to_4h.weight": "mlp.linear_fc1.weight",
        "mlp.dense_4h_to_h.weight": "mlp.linear_fc2.weight",
    }  # fmt: skip
    assert model["encoder"].keys() == {f"layers.{i}.{n}" for i in range(4) for n in names} | {"final_norm.weight"}
    for i in range(4):
        for old, new in names.items():
            assert torch.equal(model["encoder"][f"layers.{i}.{old}"], core[f"decoder.layers.{i}.{new}"])
    assert torch.equal(model["embedding"]["word_embeddings"]["weight"], core["embedding.word_embeddings.weight"])
    assert torch.equal(model["output_layer"]["weight"], core["output_layer.weight"])
    assert torch.equal(model["encoder"]["final_norm.weight"], core["decoder.final_layernorm.weight"])


def test_legacy_names_of_every_generation_are_read(tmp_path):
    hf = make_llama(tmp_path / "hf")
    root = to(hf, tmp_path / "m", format="mp_rank", tp=2, pp=2, dialect="nvidia-legacy")

    def older(state):
        model = renamed(state["model"], {**OLD, "self_attention.": "attention."})
        model["language_model"]["transformer"] = model["language_model"].pop("encoder")
        state["model"] = model

    rewritten(root, older)
    found = open_checkpoint(root)
    assert found.dialect == "nvidia-legacy" and found.manifest is None
    assert same(tensors(to(root, tmp_path / "out", format="hf")), tensors(hf))


def test_a_file_that_could_be_either_is_not_guessed(tmp_path):
    """Tied, so no head tells; older names of norms; no arg that only one of them has. Shapes are equal, logits not."""
    hf = make_llama(tmp_path / "hf", tie_word_embeddings=True)
    root = to(hf, tmp_path / "m", format="mp_rank", dialect="megatron-llm")
    own = ("glu_activation", "use_rms_norm", "num_attention_heads_kv", "tie_embed_logits", "rope_theta")

    def silent(state):
        for name in (*own, "sliding_window_size"):
            delattr(state["args"], name)

    rewritten(root, silent)
    with pytest.raises(ConfigError, match=r"--dialect nvidia-legacy or --dialect megatron-llm"):
        open_checkpoint(root)
    with pytest.raises(ConfigError, match="one of mcore"):
        open_checkpoint(root, dialect="megatron")
    with pytest.raises(ConfigError, match="have the names of nvidia-legacy, megatron-llm"):
        open_checkpoint(root, dialect="mcore")


def test_names_and_args_that_contradict_each_other_are_not_guessed_either(tmp_path):
    root = to(make_llama(tmp_path / "hf"), tmp_path / "m", format="mp_rank", dialect="nvidia-legacy")

    def mixed(state):
        state["args"].glu_activation = "swiglu"

    rewritten(root, mixed)
    with pytest.raises(ConfigError, match="fit both"):
        open_checkpoint(root)
    with pytest.raises(ConfigError, match="--ignore-arg glu_activation"):  # which this dialect has not
        open_checkpoint(root, dialect="nvidia-legacy")
    known = ignored(args=["glu_activation"])
    assert open_checkpoint(root, dialect="nvidia-legacy", ignore=known).dialect == "nvidia-legacy"


@pytest.mark.parametrize("dialect", ["mcore", "nvidia-legacy"])
def test_the_epsilon_under_the_name_that_megatron_lm_had_for_it_until_core_0_15(tmp_path, dialect):
    hf = make_llama(tmp_path / "hf", rms_norm_eps=3e-6)
    root = to(hf, tmp_path / "m", format="mp_rank", dialect=dialect)

    def older(state):
        del state["args"].layernorm_epsilon
        state["args"].apply_query_key_layer_scaling = True  # the default of those days; it cancels out

    assert open_checkpoint(rewritten(root, older)).spec == open_checkpoint(hf).spec


@pytest.mark.parametrize(
    "values, says",
    [
        ((1e-5, 1e-6), "norm_epsilon is 1e-06 but layernorm_epsilon, the same thing, is 1e-05"),
        ((None, None), "args: layernorm_epsilon is None, not float"),
    ],
)
def test_an_epsilon_that_is_not_one_number_is_refused(tmp_path, values, says):
    root = to(make_llama(tmp_path / "hf"), tmp_path / "m", format="mp_rank")

    def two(state):
        state["args"].layernorm_epsilon, state["args"].norm_epsilon = values

    with pytest.raises(ConfigError, match=says):
        open_checkpoint(rewritten(root, two))


def test_flags_have_every_digit(tmp_path):
    spec = dataclasses.replace(open_checkpoint(make_llama(tmp_path / "hf")).spec, norm_epsilon=1.2345678e-6)
    case = Case(spec=spec, layout=Layout(padded_vocab=256), load="x")
    for name, flag in (("mcore", "--norm-epsilon"), ("megatron-llm", "--layernorm_epsilon")):
        assert f"{flag} 1.2345678e-06" in DIALECTS[name].flags(case)[0]


def test_a_rank_with_two_files_of_weights_is_not_guessed(tmp_path):
    """One with and one without a distributed optimizer: two runs that saved into one folder."""
    root = to(make_llama(tmp_path / "hf"), tmp_path / "m", format="mp_rank", dialect="megatron-llm")
    file = rank_files(root)[0]
    shutil.copyfile(file, file.with_name("model_rng.pt"))
    with pytest.raises(FormatError, match=r"mp_rank_00 has both model_optim_rng\.pt and model_rng\.pt"):
        open_checkpoint(root)


@pytest.mark.parametrize("dialect", ["nvidia-legacy", "megatron-llm"])
def test_versions_with_other_rows_are_refused(tmp_path, dialect):
    root = to(make_llama(tmp_path / "hf"), tmp_path / "m", format="mp_rank", dialect=dialect)

    def old(state):
        state["checkpoint_version"] = 1.0

    rewritten(root, old)
    with pytest.raises(FormatError, match=r"checkpoint_version is 1\.0; below 2\.0"):
        open_checkpoint(root)


def test_what_a_dialect_cannot_hold_is_refused_before_a_byte_is_written(tmp_path):
    free = open_checkpoint(make_llama(tmp_path / "free", **VARIANTS["free-head-dim"]))
    scaled = open_checkpoint(make_llama(tmp_path / "scaled", **VARIANTS["llama3-rope"]))
    gqa = open_checkpoint(make_llama(tmp_path / "gqa"))
    out = tmp_path / "out"
    for source, dialect, tp, says in (
        (free, "megatron-llm", 1, "head width of its own"), (scaled, "megatron-llm", 1, "llama3 rope scaling"),
        (scaled, "nvidia-legacy", 1, "llama3 rope scaling"), (gqa, "megatron-llm", 8, "tp 8 for 4 query groups"),
    ):  # fmt: skip
        with pytest.raises(LayoutError, match=says):
            plan.make(source, out, format="mp_rank", dialect=dialect, tp=tp)
    with pytest.raises(MconvError, match="torch_dist"):
        plan.make(gqa, out, format="torch_dist", dialect="megatron-llm")
    assert not out.exists()


def test_the_two_dialects_differ_where_it_matters(tmp_path):
    """The planted fault that nobody else would see: the same file read as the other dialect has equal shapes."""
    hf = make_llama(tmp_path / "hf")
    root = to(hf, tmp_path / "m", format="mp_rank", dialect="megatron-llm")
    model = torch.load(rank_files(root)[0], weights_only=False)["model"]["language_model"]
    up_first = model["encoder"]["layers.0.mlp.dense_h_to_4h.weight"]
    source = tensors(hf)
    up, gate = (source[f"model.layers.0.mlp.{n}_proj.weight"] for n in ("up", "gate"))
    assert torch.equal(up_first, torch.cat([up, gate]))
    head = source["model.layers.0.self_attn.q_proj.weight"][:6]
    rows = model["encoder"]["layers.0.self_attention.query_key_value.weight"][:6]
    assert torch.equal(rows, head[[0, 3, 1, 4, 2, 5]])
    assert isinstance(model["lm_head"], torch.Tensor)


@pytest.mark.parametrize("padding", ["zeros", "last-row"])
def test_rows_of_padding(tmp_path, padding):
    hf = make_llama(tmp_path / "hf")
    for format, dialect in (("mp_rank", "megatron-llm"), ("torch_dist", "mcore")):
        out = tmp_path / f"{format}"
        made = to(hf, out, format=format, dialect=dialect, tp=2, vocab_padding=padding)
        assert same(tensors(to(made, tmp_path / f"{format}-hf", format="hf")), tensors(hf))
        found = open_checkpoint(made)
        last = [w for k, w in found.located.items() if "word_embeddings" in k and ("rank_01" in k or "@128" in k)]
        rows = last[0].load()[151 - 128 :]
        want = tensors(hf)["model.embed_tokens.weight"][-1] if padding == "last-row" else torch.zeros(48)
        assert len(last) == 1 and rows.shape == (105, 48) and torch.equal(rows, want.expand_as(rows))


UNEVEN = (
    {"pp": 2, "uneven": Uneven(first=1)}, {"pp": 2, "uneven": Uneven(first=1, last=3)},
    {"pp": 2, "uneven": Uneven(last=3)},
    {"pp": 3, "uneven": Uneven(embedding=True, loss=True)}, {"pp": 2, "vpp": 2, "uneven": Uneven(first=2, last=2)},
)  # fmt: skip


@pytest.mark.parametrize("layout", UNEVEN, ids=str)
@pytest.mark.parametrize("dialect", ["mcore", "nvidia-legacy"])
def test_stages_of_different_numbers_of_layers(tmp_path, layout, dialect):
    hf = make_llama(tmp_path / "hf")
    root = to(hf, tmp_path / "m", format="mp_rank", tp=2, dialect=dialect, **layout)
    [path.unlink() for path in root.rglob("mconv.json")]
    found = open_checkpoint(root)
    assert found.layout.uneven == layout["uneven"]
    assert same(tensors(to(root, tmp_path / "out", format="hf")), tensors(hf))


def test_stages_laid_out_by_hand_are_refused_by_name(tmp_path):
    root = to(make_llama(tmp_path / "hf"), tmp_path / "m", format="mp_rank", pp=2)

    def by_hand(state):
        state["args"].pipeline_model_parallel_layout = "Et|ttt|L"

    with pytest.raises(ConfigError, match=r"pipeline_model_parallel_layout.*Et\|ttt\|L"):
        open_checkpoint(rewritten(root, by_hand))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), groups=st.sampled_from([1, 2, 4]), queries=st.sampled_from([1, 3]), tied=st.booleans())
def test_any_dialect_to_any_other(tmp_path_factory, data, groups, queries, tied):
    tmp = tmp_path_factory.mktemp("any")
    folder = hf = make_llama(
        tmp / "hf", num_key_value_heads=groups, num_attention_heads=groups * queries, hidden_size=4 * groups * queries,
        tie_word_embeddings=tied, vocab_size=data.draw(st.integers(5, 200)), intermediate_size=24,
    )  # fmt: skip
    for hop in range(3):
        dialect = data.draw(st.sampled_from(["mcore", "nvidia-legacy", "megatron-llm"]))
        pp = data.draw(st.sampled_from([1, 2, 4]))
        layout = {"tp": data.draw(st.sampled_from([n for n in (1, 2, 4) if groups % n == 0])), "pp": pp}
        layout["vpp"] = data.draw(st.sampled_from([1, 2])) if pp == 2 else 1
        folder = to(folder, tmp / f"{hop}", format="mp_rank", dialect=dialect, **layout)
        if data.draw(st.booleans()):
            [path.unlink() for path in folder.rglob("mconv.json")]  # found by its names and args alone
            folder_vocab = tensors(hf)["model.embed_tokens.weight"].shape[0]
            found = open_checkpoint(folder, vocab_size=folder_vocab)
            assert found.dialect == dialect
    assert same(tensors(to(folder, tmp / "out", format="hf")), tensors(hf))


def test_a_distributed_checkpoint_with_separate_norms_is_read(tmp_path):
    """The keys of megatron-core's local spec, where it does not map them to the fused-norm names."""
    hf = make_llama(tmp_path / "hf")
    root = to(hf, tmp_path / "m", format="torch_dist")
    index = root / "release" / ".metadata"
    meta = pickle.loads(index.read_bytes())
    local = {
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": "decoder.layers.input_layernorm.weight",
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": "decoder.layers.pre_mlp_layernorm.weight",
    }
    meta.state_dict_metadata = {local.get(k, k): v for k, v in meta.state_dict_metadata.items()}
    meta.storage_data = {dataclasses.replace(k, fqn=local.get(k.fqn, k.fqn)): v for k, v in meta.storage_data.items()}
    index.write_bytes(pickle.dumps(meta))
    (root / "release" / "mconv.json").unlink()
    assert same(tensors(to(root, tmp_path / "out", format="hf")), tensors(hf))


def test_an_iteration_of_ones_own(tmp_path):
    root = to(make_llama(tmp_path / "hf"), tmp_path / "m", format="torch_dist", iteration=70)
    assert (root / "latest_checkpointed_iteration.txt").read_text() == "70"
    assert open_checkpoint(root).iteration == 70 and open_checkpoint(root).common["iteration"] == 70
    with pytest.raises(MconvError, match="negative"):
        to(tmp_path / "hf", tmp_path / "x", format="torch_dist", iteration=-1)


def test_a_factor_that_megatron_keeps_but_does_not_use_is_said():
    """Ours says what it means; of others' it cannot be known whether the model was converted or trained with it."""
    from argparse import Namespace

    assumptions = mcore.DIALECT.assumptions
    [note] = assumptions(Namespace(use_rope_scaling=True, rope_scaling_factor=32.0), {})
    assert "32.0" in note and "up to core 0.19.2 computes with 8" in note
    assert assumptions(Namespace(use_rope_scaling=True, rope_scaling_factor=8.0), {}) == ()
    assert assumptions(Namespace(use_rope_scaling=True, rope_scaling_factor=32.0, rope_low_freq_factor=1.0), {}) == ()
