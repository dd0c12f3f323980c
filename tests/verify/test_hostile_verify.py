"""What a hostile look at `mconv verify` found, and that it stays mended."""

import pytest
import torch
from judge import convert, judged, report
from safetensors.torch import save_file
from tiny import VARIANTS, make_llama, tensors

from mconv.cli.app import run
from mconv.errors import CheckFailed

pytestmark = pytest.mark.once


def edit_rank(root, rank, change):
    """Change the state of one rank's file, as torch sees it."""
    file = next(root.rglob(f"{rank}/model_optim_rng.pt"))
    state = torch.load(file, weights_only=False)
    change(state)
    torch.save(state, file)


ODD = {
    "one layer": {"num_hidden_layers": 1},
    "hidden 2": {"hidden_size": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 2,
                 "head_dim": 2},
    "vocabulary 3": {"vocab_size": 3},
    "large weights": {"initializer_range": 1.0},
    "logits of 1e-13": {"initializer_range": 1e-8},
    "24 layers": {"num_hidden_layers": 24},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_no_false_alarm_on_odd_models(tmp_path, name):
    hf = make_llama(tmp_path / "hf", **ODD[name])
    assert report(hf, convert(hf, tmp_path / "m"), batch=1, length=33)["passed"]


@pytest.mark.parametrize("initializer_range", [0.2, 0.02])
def test_a_wrong_epsilon_shows_as_the_docs_say(tmp_path, initializer_range):
    """docs/verify.md: "a wrong norm epsilon 1e-3 and more"; measured 3.8e-3 (0.2) and 6.0e-2 (0.02)."""
    options = {"initializer_range": initializer_range}
    hf, wrong = make_llama(tmp_path / "a", **options), make_llama(tmp_path / "b", **options, rms_norm_eps=1e-6)
    assert report(hf, convert(wrong, tmp_path / "m"))["relative_max"] > 1e-3


def test_the_ends_of_the_input_vocabulary_are_probed(tmp_path):
    hf, wrong = (make_llama(tmp_path / name, vocab_size=4000) for name in ("hf", "wrong"))
    changed = tensors(wrong)
    changed["model.embed_tokens.weight"][0] = 0
    save_file(changed, wrong / "model.safetensors", metadata={"format": "pt"})
    assert not report(hf, convert(wrong, tmp_path / "m"), length=256, seed=1234)["passed"]


COPIES = {
    "norm": ({}, {"tp": 2}, "mp_rank_01", "decoder.layers.1.input_layernorm.weight"),
    "final norm": ({}, {"tp": 2}, "mp_rank_01", "decoder.final_layernorm.weight"),
    "replicated bias": (VARIANTS["all-biases"], {"tp": 2}, "mp_rank_01",
                        "decoder.layers.1.self_attention.linear_proj.bias"),
    "tied head": (VARIANTS["tied"], {"pp": 2}, "mp_rank_00_001", "output_layer.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_copies_that_differ_do_not_pass_at_another_layout(tmp_path, name):
    config, layout, rank, key = COPIES[name]
    hf = make_llama(tmp_path / "hf", **config)
    megatron = convert(hf, tmp_path / "m", format="mp_rank", **layout)
    edit_rank(megatron, rank, lambda state: state["model"][key].mul_(1.5))
    found = judged(hf, megatron)
    assert not found["passed"] and any(rank in key for keys in found["digests"]["replicas"]["b"].values() for key in keys)
    with pytest.raises(CheckFailed, match="are copies of"):
        report(hf, megatron)


def test_a_fault_in_one_rank_only_is_seen_at_another_layout(tmp_path):
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m", format="mp_rank", tp=2)
    name = "decoder.layers.1.self_attention.linear_qkv.weight"
    edit_rank(megatron, "mp_rank_01", lambda state: state["model"][name].mul_(1.5))
    assert not report(hf, megatron)["passed"]


def test_a_checkpoint_that_does_not_know_its_vocabulary(tmp_path, capsys):
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m", format="mp_rank")
    next(megatron.rglob("mconv.json")).unlink()
    edit_rank(megatron, "mp_rank_00", lambda state: setattr(state["args"], "vocab_size", None))
    assert run(["verify", str(hf), str(megatron), "--vocab-size", "151", "--length", "16"]) == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--tp", "0"],
        ["--pp", "0"],
        ["--seed", "99999999999999999999"],
        ["--sequence-parallel"],
        ["--tp", "-1", "--pp", "-1"],
        ["--batch", "0"],
        ["--length", "1"],
        ["--iteration", "5"],
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(tmp_path, flags, capsys):
    hf = make_llama(tmp_path / "hf")
    assert run(["verify", str(hf), str(convert(hf, tmp_path / "m")), "--length", "16", *flags]) == 2


def test_a_layout_without_a_megatron_side_is_refused(tmp_path, capsys):
    hf = make_llama(tmp_path / "hf")
    assert run(["verify", str(hf), str(hf), "--tp", "4", "--length", "16"]) == 2


def test_a_verdict_that_cannot_be_recorded_is_refused_before_the_work(tmp_path, capsys):
    hf = make_llama(tmp_path / "hf")
    code = run(["verify", str(hf), str(hf), "--record", "--length", "16"])
    assert code == 2 and "max abs error" not in capsys.readouterr().out


def test_json_of_a_nan_is_json(tmp_path, capsys):
    import json

    hf, wrong = make_llama(tmp_path / "hf"), make_llama(tmp_path / "wrong")
    changed = tensors(wrong)
    changed["lm_head.weight"][7] = float("nan")
    save_file(changed, wrong / "model.safetensors", metadata={"format": "pt"})
    assert run(["verify", str(hf), str(wrong), "--json", "--length", "16"]) == 1
    json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
