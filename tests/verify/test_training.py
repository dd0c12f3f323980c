"""A model before and after training: how much changed, and no fault sought; what is a fault stays one."""

import json
import shutil

import pytest
import torch
from judge import convert, judged
from safetensors.torch import save_file
from tiny import edit_json, make_llama, tensors

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.verify import page
from mconv.verify.diagnosis.explain import explain
from mconv.verify.digests import compare
from mconv.verify.report import lines

TRAIN = {"step": "train", "detail": {"from": "hf", "iteration": 20, "samples": 40}}
SHORT = {"length": 16, "batch": 2}
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def with_tokenizer(folder):
    """Give a tiny model a tokenizer that knows every text: a word for each byte's character."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "<s>", "</s>", *(chr(i) for i in range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>").save_pretrained(folder)
    return folder


def edited(source, out, change):
    """A copy of a Hugging Face folder with other tensors."""
    held = tensors(source)
    change(held)
    shutil.copytree(source, out)
    save_file({n: t.contiguous() for n, t in held.items()}, out / "model.safetensors", metadata={"format": "pt"})
    return out


def nudged(held):
    """Change nearly everything by a little, as a few steps of training do; one norm in one bit of one element."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in held.items():
        noise = 1 + 2e-3 * torch.randn(tensor.shape, generator=generator)
        held[name] = (tensor.float() * noise).to(tensor.dtype)
    held[DOWN] = (held[DOWN].float() * 1.05).to(held[DOWN].dtype)


def swapped(held):
    gate, up = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
    held[gate], held[up] = held[up], held[gate]


def history(folder, *steps):
    """Add steps to the history of a Megatron checkpoint."""
    manifest = folder / "release" / "mconv.json"
    edit_json(manifest, history=[*json.loads(manifest.read_text())["history"], *steps])
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model with a tokenizer, its conversion, and what training has made of that."""
    tmp = tmp_path_factory.mktemp("training")
    hf = with_tokenizer(make_llama(tmp / "hf", dtype=torch.bfloat16))
    after = edited(hf, tmp / "after", nudged)
    return {"hf": hf, "before": convert(hf, tmp / "before"), "after": after, "run": convert(after, tmp / "run")}


@pytest.fixture(scope="module")
def trained(made):
    return history(made["run"], TRAIN)


def test_before_against_after_is_five_lines(made, trained):
    report = judged(made["before"], trained, trained=None, **SHORT)
    text = lines(report)
    assert text[0] == "DIFFERENT: before/release against run/release; training lies between (train to iteration 20)"
    assert [line.split()[0] for line in text[1:]] == ["changed", "most", "KL", "loss", "loss"] and not report["passed"]
    assert "layer.1.mlp_out.weight by 0.05" in text[2] and "by place: layer 1" in text[2]
    assert (
        "on real text (16 tokens)" in text[4] and "where about ln(151) = 5.02, or a few nats more, is normal" in text[5]
    )
    change, diagnosis = report["training"]["change"], report["diagnosis"]
    assert 1e-3 < change["relative_norm"] < 0.05 and change["tensors_changed"] == change["tensors"] == 27
    assert diagnosis["guesses"] == [] and report["training"]["faults"] == []
    shown = page.render(report)
    assert "How much training changed" in shown and "layer.1.mlp_out.weight" in shown


def test_the_command_line_says_it_and_report_only_exits_with_0(made, trained, capsys):
    words = ["verify", str(made["hf"]), str(trained), "--tp", "1", "--length", "16"]
    assert run(words) == 1 and "training lies between (train to iteration 20)" in capsys.readouterr().out
    assert run([*words, "--report-only"]) == 0
    capsys.readouterr()
    assert run(["verify", str(made["hf"]), str(made["after"]), "--digests", "--trained"]) == 1
    assert "training lies between (as --trained says)" in capsys.readouterr().out


def test_without_a_manifest_nothing_is_called_a_flipped_bit(made, tmp_path):
    def one_bit_too(held):
        nudged(held)
        held[NORM] = tensors(made["hf"])[NORM].clone()
        held[NORM].view(torch.int16)[3] ^= 1

    a, b = open_checkpoint(made["hf"]), open_checkpoint(edited(made["hf"], tmp_path / "b", one_bit_too))
    found = compare(a, b)
    assert next(d for d in found.differences if d.tensor == "layer.0.attn_norm.weight").elements == 1
    assert {guess.name for guess in explain(a, b, found)} == {""}
    said = judged(made["hf"], b.path, proofs="digests", trained=None)
    assert said["training"] is None and said["diagnosis"]["lines"][-1].endswith("--trained measures that")


def test_a_fault_is_sought_where_both_were_trained_alike(made, tmp_path):
    wrong = history(convert(edited(made["after"], tmp_path / "wrong", swapped), tmp_path / "m"), TRAIN)
    found = judged(made["run"], wrong, trained=None, proofs="digests")
    assert found["training"] is None and [g["name"] for g in found["diagnosis"]["guesses"]] == ["gate-up-swapped"]
    assert judged(made["run"], wrong, proofs="digests")["training"] is None, "not unless it is asked for"


def test_what_training_does_not_do_is_a_fault(made, tmp_path):
    def broken(held):
        nudged(held)
        held[DOWN][2, 3] = float("nan")
        swapped(held)

    bad = edited(made["hf"], tmp_path / "bad", broken)
    (bad / "mconv.json").write_text('{"history": [{"step": "lora"}, {"step": "lora merge"}]}')
    edit_json(bad / "config.json", rms_norm_eps=1e-3)
    report = judged(made["before"], bad, trained=None, **SHORT)
    text = "\n".join(lines(report))
    assert "(lora, then lora merge)" in text
    assert "because the architectures differ: norm epsilon 1e-05 / 0.001" in text
    assert "because layer.1.mlp_out.weight: 1 of its elements are NaN or infinite" in text
    assert "because the logits hold NaN or infinity" in text
    assert "training hardly changes a tensor by more than 0.5 of its norm" in text


def test_training_that_left_the_weights_alone_passes(made):
    report = judged(made["hf"], made["before"], trained=True, **SHORT)
    assert report["passed"] and lines(report)[0].startswith("PASS") and report["training"]["change"] is None
    assert report["by_row"][1]["row"].startswith("text") and report["by_row"][0]["positions"] == 16
