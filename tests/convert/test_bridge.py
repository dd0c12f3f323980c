"""Megatron-Bridge: what 0.3.1 and 0.6.2 wrote comes back as the model they were given; what we write says the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import make_llama, same, tensors

from mconv.convert.checkpoint import bridge
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.dialects import bridge as table
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.formats import archive, pack, torch_dist
from mconv.convert.formats.dtype import in_torch
from mconv.errors import ConfigError, FormatError, MconvError

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-bridge"
CASES = sorted([*GOLDEN.glob("*/megatron*"), *GOLDEN.with_name("megatron-bridge-qwen").glob("*/megatron*")])
NAMES = [f"{path.parent.name}-{path.name}" for path in CASES]
needs_golden = pytest.mark.skipif(not CASES, reason="the golden checkpoints are not here")
golden = pytest.mark.parametrize("root", CASES, ids=NAMES)


def convert(source, out, said=None, **options):
    rewrite(plan.make(open_checkpoint(source, **(said or {})), out, **options), step="test")
    return out


def run_config(root):
    return yaml.safe_load((next(root.glob("iter_*")) / bridge.RUN_CONFIG).read_text())


def scores(folder, ids, positions=None):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        return model(ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits


# ---- reading ---------------------------------------------------------------------------------------------------------
@golden
def test_what_bridge_wrote_is_the_model_it_was_given(root, tmp_path):
    # the tokenizer that went with the Qwen2 has a token too many: transformers 5 gave it a padding token of its own
    side = root.parent / "hf" if root.parent.name == "qwen2-tied-bf16" else None
    out = convert(root, tmp_path / "hf", format="hf", side_folder=side)
    assert same(tensors(out), tensors(root.parent / "hf"))
    expected = load_file(root.parent / "expected.safetensors")
    assert (scores(out, expected["input_ids"]) - expected["logits"]).abs().max() < 1e-5
    sparse = scores(out, expected["input_ids"], expected["sparse_position_ids"])
    assert (sparse - expected["sparse_logits"]).abs().max() < 1e-5
    assert (out / "tokenizer.json").is_file(), "tokenizer/ beside the tensors goes with the model"
    config, wanted = (json.loads((folder / "config.json").read_text()) for folder in (out, root.parent / "hf"))
    same_keys = (
        "bos_token_id",
        "eos_token_id",
        "sliding_window",
        "max_position_embeddings",
        "vocab_size",
        "rope_scaling",
    )
    assert {key: config.get(key) for key in same_keys if key in wanted} == {
        k: wanted[k] for k in same_keys if k in wanted
    }


@golden
def test_our_torch_dist_holds_what_theirs_holds(root, tmp_path):
    """Keys, shapes and values. Only how a tensor is cut into chunks differs, and how far the vocabulary is padded."""
    model = run_config(root)["model"]
    tp, multiple = model["tensor_model_parallel_size"], 16 if model["should_pad_vocab"] else 1
    if not model["should_pad_vocab"] and model["vocab_size"] % tp:
        pytest.skip("an odd vocabulary at tp 2")
    ours = convert(root.parent / "hf", tmp_path / "m", format="torch_dist", tp=tp, vocab_multiple=multiple)
    mine, theirs = whole(ours / "release"), whole(next(root.glob("iter_*")))
    assert mine.keys() == theirs.keys() and same(mine, theirs)


def whole(folder):
    """Every global tensor, put together from its chunks."""
    found = {}
    for fqn, tensor in torch_dist.open_folder(folder)[0].items():
        out = torch.zeros(tensor.shape, dtype=in_torch(tensor.dtype))
        for chunk in tensor.chunks:
            at = tuple(slice(o, o + n) for o, n in zip(chunk.offsets, chunk.shape, strict=True))
            out[at] = chunk.locate(fqn, tensor.dtype).load()
        found[fqn] = out
    return found


@pytest.fixture
def copy(tmp_path):
    def make(case, **changes):
        shutil.copytree(GOLDEN / case, tmp_path / "root", copy_function=shutil.copyfile)
        (tmp_path / "root").chmod(0o755)
        file = tmp_path / "root/iter_0000000" / bridge.RUN_CONFIG
        file.parent.chmod(0o755)
        edit(file, **changes)
        return tmp_path / "root"

    return make


def edit(file, **changes):
    config = yaml.safe_load(file.read_text())
    config["model"] |= changes
    file.write_text(yaml.safe_dump(config))


REFUSED = {
    "unknown": ({"brand_new_attention": "spiral"}, "does not know brand_new_attention='spiral' of"),
    "experts": ({"num_moe_experts": 8}, "num_moe_experts is 8"),
    "softmax": ({"softmax_scale": 0.1}, "softmax_scale is 0.1"),
    "gelu": ({"activation_func": {"_target_": "torch.nn.functional.gelu", "_call_": False}}, "activation_func"),
    "LayerNorm": ({"normalization": "LayerNorm"}, "normalization is 'LayerNorm'"),
    "positions": ({"position_embedding_type": "yarn"}, "position_embedding_type is 'yarn'"),
    "its own layers": ({"transformer_layer_spec": {"_target_": "mine.spec", "_call_": False}}, "transformer_layer_spec"),
    "a provider": ({"_target_": "os.system"}, "_target_ is 'os.system'"),
    "a window": ({"window_size": [16, 16]}, r"window_size is \[16, 16\]"),
    "a kind": ({"num_layers": "4"}, "num_layers is '4', not int"),
    "a hole": ({"ffn_hidden_size": None}, "ffn_hidden_size is None"),
    "two ropes": ({"rope_scaling": True, "seq_len_interpolation_factor": 2.0}, "at once"),
    "no vocabulary": ({"vocab_size": None}, "--vocab-size"),
}  # fmt: skip


@needs_golden
@pytest.mark.parametrize("case", REFUSED)
def test_what_changes_the_function_is_refused_by_name(copy, case):
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        open_checkpoint(copy("llama-gqa-untied-fp32/megatron", **changes))
    assert bridge.RUN_CONFIG in str(caught.value)


@needs_golden
def test_norms_of_query_and_key_that_are_not_there(copy):
    with pytest.raises(FormatError, match=r"layer\.0\.k_norm\.weight is missing"):
        open_checkpoint(copy("llama-gqa-untied-fp32/megatron", qk_layernorm=True))


@needs_golden
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: !!python/object/apply:os.system ['echo run']", "not readable as plain YAML"),
        ("model: [" * 3000, "not readable as plain YAML"),
        ("a: 1", "no 'model' section"),
        ("model: {1: 2}", "no 'model' section"),
        ("\x00", "not readable"),
        ("x" * (bridge.LIMIT + 1), "bytes"),
    ],
)
def test_hostile_yaml(copy, text, message):
    root = copy("llama-gqa-untied-fp32/megatron")
    (root / "iter_0000000" / bridge.RUN_CONFIG).write_text(text)
    with pytest.raises(FormatError, match=message):
        open_checkpoint(root)


@needs_golden
def test_neither_args_nor_run_config(copy):
    root = copy("llama-gqa-untied-fp32/megatron")
    (root / "iter_0000000" / bridge.RUN_CONFIG).unlink()
    with pytest.raises(FormatError, match=r"no args in it and no run_config\.yaml"):
        open_checkpoint(root)


@needs_golden
def test_the_window_that_bridge_wrote_one_too_wide(copy, tmp_path):
    """Converted only: the source's window. Trained since: what it was trained with. A later writer: as it says."""
    root = copy("mistral-window-bf16/megatron")
    file = root / "iter_0000000" / bridge.RUN_CONFIG
    found = open_checkpoint(root)
    assert found.spec.sliding_window == 16 and "one key more" in found.notes[0]
    bridge.write_train_state(root / "iter_0000000" / bridge.TRAIN_STATE, step=5)
    assert open_checkpoint(root).spec.sliding_window == 17
    settled = open_checkpoint(root, config=GOLDEN / "mistral-window-bf16/hf/config.json")
    assert settled.spec.sliding_window == 16 and not settled.notes
    config = yaml.safe_load(file.read_text())
    del config["model"][table.OLD_MARK]  # megatron-core 0.17 and on: Bridge 0.4, which has the fault mended
    file.write_text(yaml.safe_dump(config))
    later = open_checkpoint(root)
    assert later.spec.sliding_window == 17 and not later.notes
    edit(file, window_size=[15, 0])
    assert open_checkpoint(root).spec.sliding_window == 16


@needs_golden
def test_a_config_that_is_not_of_this_checkpoint(copy):
    with pytest.raises(ConfigError, match="not the config of this checkpoint"):
        open_checkpoint(copy("llama-gqa-untied-fp32/megatron"), config=GOLDEN / "mistral-window-bf16/hf/config.json")


@needs_golden
def test_padded_rows_are_told_by_the_rule_and_held_against_the_table(copy):
    root = copy("llama32-tied-rope-llama3-bf16/megatron-0.6.2-padded")
    found = open_checkpoint(root)
    assert (found.spec.vocab_size, found.layout.padded_vocab) == (331, 352)
    edit(root / "iter_0000000" / bridge.RUN_CONFIG, should_pad_vocab=False, tensor_model_parallel_size=1)
    with pytest.raises(FormatError, match=r"\(352, 64\).*says \(331, 64\)"):
        open_checkpoint(root)


# ---- writing ---------------------------------------------------------------------------------------------------------
PADDING = {"vocab_size", "should_pad_vocab", "make_vocab_size_divisible_by"}
HOW = {"transformer_layer_spec", "bias_activation_fusion", "pipeline_dtype"}
"""How it is computed, not what."""
RUN = {
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size", "params_dtype",
    "bf16", "fp16", "pipeline_dtype", "hidden_dropout", "attention_dropout",
}  # fmt: skip


@golden
def test_our_run_config_says_what_theirs_says(root, tmp_path):
    """Every key that decides the function, value by value; the window as it should be."""
    model = run_config(root)["model"]
    tp, pp = model["tensor_model_parallel_size"], model["pipeline_model_parallel_size"]
    ours = convert(root.parent / "hf", tmp_path / "m", format="torch_dist", tp=tp, pp=pp, emit="megatron-bridge")
    made = run_config(ours)["model"]
    assert not set(made) - set(model), "0.3.1 builds a dataclass of these: a key of no field would stop it"
    # its import pads nothing; the one padded case was asked to be
    apart = HOW | (PADDING if model["should_pad_vocab"] else set())
    differ = {key for key in made if made[key] != model[key] and key not in apart}
    assert differ == ({"window_size"} if "mistral" in root.parent.name else set())
    assert made["window_size"] in (None, [15, 0]) and made["vocab_size"] == model["vocab_size"]
    assert set(made) >= RUN | {key.key for key in table.TABLE if isinstance(key, table.Field)}
    assert open_checkpoint(ours).spec == open_checkpoint(root.parent / "hf").spec


@golden
def test_our_train_state_is_theirs(root, tmp_path):
    theirs = next(root.glob("iter_*")) / bridge.TRAIN_STATE
    bridge.write_train_state(tmp_path / "t.pt", step=0)
    mine, wanted = (torch.load(path, weights_only=True) for path in (tmp_path / "t.pt", theirs))
    assert mine.keys() == wanted.keys()
    assert all(mine[k] == wanted[k] and mine[k].shape == wanted[k].shape for k in wanted)
    if root.parents[1] == GOLDEN and "0.6.2" not in root.name:  # which counts in 64 bits; both read either
        assert all(mine[k].dtype == wanted[k].dtype for k in wanted)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("emit") / "hf")


def test_an_emitted_root_is_one_of_both_programs(model, tmp_path):
    root = convert(model, tmp_path / "m", format="torch_dist", tp=2, emit="megatron-bridge")
    names = {path.name for path in root.iterdir()}
    assert names == {"iter_0000000", "release", bridge.LATEST, "latest_checkpointed_iteration.txt"}
    assert archive.read(root / bridge.LATEST)["step"].load() == 0
    # Megatron-LM asserts an iteration above 0, or "release"; Bridge asks latest_train_state.pt
    assert (root / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert (root / "release").resolve() == (root / "iter_0000000").resolve()
    assert (root / "iter_0000000/tokenizer/tokenizer_config.json").is_file()
    for path in (root, root / "iter_0000000"):
        assert same(tensors(convert(path, tmp_path / f"back-{path.name}", format="hf")), tensors(model))
    (root / "iter_0000000/common.pt").rename(root / "kept")
    assert "args" in archive.read(root / "kept")
    (root / "kept").rename(root / "iter_0000000/common.pt")
    convert(model, root, format="torch_dist", emit="megatron-bridge", overwrite=True)
    assert open_checkpoint(root).layout.tp == 1


@pytest.mark.parametrize(
    ("options", "rows", "ways"),
    [
        ({}, 151, None),
        ({"tp": 2}, 152, "take a tp that divides 151 (a"),
        ({"vocab_multiple": 128}, 256, "take no --make-vocab-size-divisible-by (a"),
        ({"tp": 2, "vocab_multiple": 64}, 256, "take a tp that divides 151 and no --make-vocab-size-divisible-by (a"),
    ],
)  # fmt: skip
def test_the_vocabulary_is_padded_only_where_tp_asks_for_it_and_said(model, tmp_path, options, rows, ways):
    """Bridge exports every row that there is."""
    source = open_checkpoint(model)
    made = plan.make(source, tmp_path / "m", format="torch_dist", emit="megatron-bridge", **options)
    assert made.layout.padded_vocab == rows
    said = bridge.warnings(source.spec, made.layout)
    assert [ways in text and f"to {rows} rows" in text for text in said] == [True] * bool(ways)


def test_without_args_the_emitted_config_is_enough(model, tmp_path):
    """What Bridge itself would have left: the same folder without a word of ours in it."""
    root = convert(model, tmp_path / "m", format="torch_dist", pp=2, emit="megatron-bridge")
    folder = root / "iter_0000000"
    common = archive.read(folder / "common.pt")
    del common["args"]
    pack.save(folder / "common.pt", common)
    (folder / "mconv.json").unlink()
    shutil.rmtree(folder / "hf")
    out = convert(root, tmp_path / "back", format="hf")
    assert same(tensors(out), tensors(model)) and open_checkpoint(out).spec == open_checkpoint(model).spec


def test_a_run_config_that_would_not_say_it_is_not_written(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64}
    folder = make_llama(tmp_path / "hf", rope_parameters=rope)
    with pytest.raises(MconvError, match="cannot express llama3 rope scaling"):
        convert(folder, tmp_path / "m", format="torch_dist", emit="megatron-bridge")
    with pytest.raises(MconvError, match="needs --format torch_dist"):
        convert(make_llama(tmp_path / "plain"), tmp_path / "m", format="mp_rank", emit="megatron-bridge")


def test_an_emitted_root_does_not_take_a_release_away(model, tmp_path):
    root = convert(model, tmp_path / "m", format="torch_dist")
    with pytest.raises(MconvError, match="a checkpoint of its own"):
        convert(model, root, format="torch_dist", emit="megatron-bridge", overwrite=True)
