"""The verifier passes what is right and fails what is wrong: each planted fault must be caught."""

import json
from pathlib import Path

import pytest
import torch
import verify_jobs
from judge import convert, report
from safetensors.torch import save_file
from tiny import LLAMA3, MODELS, VARIANTS, edit_json, make_llama, make_model, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.errors import FormatError

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-lm"
ALIBI = ("falcon-rw", "falcon-40b-alibi")


@pytest.mark.parametrize("model", [name for name in MODELS if name not in ALIBI])
def test_a_conversion_passes(tmp_path, model):
    hf = make_model(model, tmp_path / "hf")
    found = report(hf, convert(hf, tmp_path / "m", tp=2, pp=2))
    assert found["passed"] and found["relative_max"] < 2e-5 and found["argmax_agreement"] == 1.0
    assert found["candidate"]["loaded_by"] == "megatron-core"


def test_bf16_weights_are_judged_in_fp32_and_arithmetic_in_bf16_by_its_own_limit(tmp_path):
    hf = make_llama(tmp_path / "hf", dtype=torch.bfloat16, initializer_range=0.02)
    megatron = convert(hf, tmp_path / "m")
    assert report(hf, megatron)["relative_max"] < 2e-5
    rough = report(hf, megatron, dtype="bf16")
    assert rough["passed"] and rough["limits"]["relative_max"] > 0.01 and rough["limits"]["mean_abs_error"] == 0.1


@pytest.mark.parametrize(
    "layout",
    [{"tp": 2, "pp": 2}, {"tp": 4, "pp": 1}, {"tp": 2, "pp": 2, "sequence_parallel": True}, {"tp": 1, "pp": 4}],
    ids=str,
)
def test_real_ranks_at_any_layout(tmp_path, world, layout):
    hf = make_llama(tmp_path / "hf", num_key_value_heads=2)  # fewer query groups than tp 4
    megatron = convert(hf, tmp_path / "m", tp=2, pp=2)
    found = world.run(verify_jobs.verify, a=str(hf), b=str(megatron), **layout)
    assert found[0]["passed"] and found[0]["relative_max"] < 2e-5 and found[1:] == [{}, {}, {}]


@pytest.mark.parametrize("vpp, by", [(1, "rank files, as they are"), (2, "mconv, cut for this layout")])
def test_rank_files(tmp_path, world, vpp, by):
    hf = make_llama(tmp_path / "hf", tie_word_embeddings=True)
    megatron = convert(hf, tmp_path / "m", format="mp_rank", tp=2, pp=2, vpp=vpp)
    found = world.run(verify_jobs.verify, a=str(hf), b=str(megatron), tp=2, pp=2)[0]
    assert found["passed"] and found["candidate"]["loaded_by"] == by


# ---- faults ----------------------------------------------------------------------------------------------------------
def swap_gate_up(t):
    a, b = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"
    t[a], t[b] = t[b], t[a]


def interleave_rotary_rows(t):
    name = "model.layers.2.self_attn.q_proj.weight"
    t[name] = t[name].view(8, 2, 3, 48).transpose(1, 2).reshape(48, 48).contiguous()


def exchange_groups(t):
    name = "model.layers.0.self_attn.k_proj.weight"
    t[name] = t[name].view(4, 6, 48)[[1, 0, 2, 3]].reshape(24, 48).contiguous()


def shuffle_rows(t):
    name = "model.layers.3.mlp.down_proj.weight"
    t[name] = t[name][torch.randperm(48, generator=torch.Generator().manual_seed(0))].contiguous()


def repeat_a_layer(t):
    for name in [n for n in t if n.startswith("model.layers.2.")]:
        t[name] = t[name.replace("layers.2.", "layers.1.")].clone()


def shift_the_vocabulary(t):
    t["model.embed_tokens.weight"] = t["model.embed_tokens.weight"].roll(1, 0).contiguous()


def flip_an_exponent_bit(t):
    t["model.layers.0.mlp.up_proj.weight"].view(torch.int32)[3, 5] ^= 1 << 26


WEIGHT_FAULTS = [
    swap_gate_up, interleave_rotary_rows, exchange_groups, shuffle_rows, repeat_a_layer, shift_the_vocabulary,
    flip_an_exponent_bit,
]  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize("initializer_range", [0.2, 0.02])
@pytest.mark.parametrize("fault", WEIGHT_FAULTS, ids=lambda f: f.__name__)
def test_a_fault_in_the_weights_fails(tmp_path, fault, initializer_range):
    hf = make_llama(tmp_path / "hf", initializer_range=initializer_range)
    wrong = make_llama(tmp_path / "wrong", initializer_range=initializer_range)
    changed = tensors(wrong)
    fault(changed)
    save_file(changed, wrong / "model.safetensors", metadata={"format": "pt"})
    found = report(hf, convert(wrong, tmp_path / "m"))
    assert not found["passed"] and found["relative_max"] > 1e-4


ROPE_FAULTS = {
    "base": {"rope_theta": 1e4},
    "llama3 dropped": {"rope_type": "default"},
    "factor 4 for 8": {"factor": 4.0},
    "linear for llama3": {"rope_type": "linear"},
    "original length": {"original_max_position_embeddings": 128},
    "high_freq_factor": {"high_freq_factor": 8.0},
}


@pytest.mark.once
@pytest.mark.parametrize("fault", ROPE_FAULTS)
def test_a_fault_in_the_rope_fails(tmp_path, fault):
    wide = {**VARIANTS["llama3-rope"], "head_dim": 32}  # sixteen frequencies, so that each field moves some
    hf, wrong = make_llama(tmp_path / "hf", **wide), make_llama(tmp_path / "wrong", **wide)
    rope = {**LLAMA3, **ROPE_FAULTS[fault]}
    keep = {"default": ("rope_theta", "rope_type"), "linear": ("rope_theta", "rope_type", "factor")}
    kept = keep.get(rope["rope_type"], tuple(rope))
    edit_json(wrong / "config.json", rope_parameters={k: v for k, v in rope.items() if k in kept})
    found = report(hf, convert(wrong, tmp_path / "m"), length=256)
    assert not found["passed"]


def test_a_wrong_norm_epsilon_fails(tmp_path):
    weak = {"initializer_range": 0.02}  # where eps is a visible part of the mean square
    hf, wrong = make_llama(tmp_path / "a", **weak), make_llama(tmp_path / "b", **weak, rms_norm_eps=1e-6)
    assert not report(hf, convert(wrong, tmp_path / "m"))["passed"]


def test_gate_and_up_swapped_inside_a_megatron_file_are_caught(tmp_path):
    """The fault that only the Megatron side has: the reader of mconv and its writer cannot cancel out here."""
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m", format="mp_rank")
    where = open_checkpoint(megatron).located["mp_rank_00/model/decoder.layers.1.mlp.linear_fc1.weight"]
    data = where.path.read_bytes()
    half = where.nbytes // 2
    gate, up = data[where.offset : where.offset + half], data[where.offset + half : where.offset + where.nbytes]
    where.path.write_bytes(data[: where.offset] + up + gate + data[where.offset + where.nbytes :])
    assert not report(hf, megatron)["passed"]


def test_nan_never_passes(tmp_path):
    hf, wrong = make_llama(tmp_path / "hf"), make_llama(tmp_path / "wrong")
    changed = tensors(wrong)
    changed["lm_head.weight"][7] = float("nan")
    save_file(changed, wrong / "model.safetensors", metadata={"format": "pt"})
    found = report(hf, wrong)
    assert not found["passed"] and "NaN" in found["failures"][0]


def test_a_tokenizer_that_does_not_load_is_named(tmp_path):
    hf = make_llama(tmp_path / "hf")
    (hf / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"hf: its tokenizer does not load .* --batch 1"):
        report(hf, hf)
    assert report(hf, hf, batch=1)["passed"]


def test_a_row_too_many_and_a_row_too_few_fail(tmp_path):
    more, less = make_llama(tmp_path / "a"), make_llama(tmp_path / "b", vocab_size=150)
    changed = tensors(more)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        changed[name] = changed[name][:150].contiguous()
    for name in changed.keys() - {"model.embed_tokens.weight", "lm_head.weight"}:
        assert changed[name].shape == tensors(less)[name].shape
    save_file(changed, less / "model.safetensors", metadata={"format": "pt"})
    leaked, lost = report(less, more), report(more, less)
    assert "1 tokens more than" in leaked["failures"][-1] and "leaked" in leaked["failures"][-1]
    assert "1 tokens less than" in lost["failures"][-1] and len(lost["failures"]) == 1


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout")
@pytest.mark.parametrize(
    "case",
    [
        "td-tp2pp2-llama3",
        "td-tp1-tied-eps6",
        "td-tp2-mha-bf16",
        "td-dp2-distopt",
        "legacy-tp1-gqa-bf16",
        "legacy-tp2pp2-vpp2-bf16",
    ],
)
def test_what_megatron_wrote_passes(case):
    found = report(GOLDEN / case / "hf", GOLDEN / case / "ckpt")
    assert found["passed"] and found["max_abs_error"] < 1e-5


def test_the_report_can_be_read_and_recorded(tmp_path):
    from mconv.verify import report as reports
    from mconv.verify.judge import verdicts

    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m")
    found = json.loads(json.dumps(report(hf, megatron)))
    assert found["reach"] == 256 and found["rows"][1].endswith("positions up to 255")
    found = json.loads(json.dumps(report(hf, megatron, batch=1)))
    text = "\n".join(reports.lines(found))
    assert text.startswith("PASS: hf (transformers) against m/release (megatron-core, tp 1 x pp 1)")
    assert "positions beyond 96 of 256 were not probed" in text
    found |= {"verdicts": verdicts(None, found), "environment": {"mconv": "0"}}
    reports.record(megatron / "release", found, against="hf")
    assert open_checkpoint(megatron).manifest["verified"][0]["passed"] is True
