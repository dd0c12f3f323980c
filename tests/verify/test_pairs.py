"""Any pair of readable checkpoints gets a verdict: families, sizes, depths, vocabularies, dtypes, formats, dialects."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch
from judge import convert, judged
from tiny import FALCONS, make_falcon, make_gpt2, make_llama, make_mistral

import mconv.verify
from mconv.cli.app import run
from mconv.cli.verify import _finite
from mconv.verify import page
from mconv.verify.report import as_json, lines

pytestmark = pytest.mark.once

SCHEMA = json.loads((Path(mconv.verify.__file__).parent / "report.schema.json").read_text())
LLAMA = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
OTHERS = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
MODELS = {
    "llama": (make_llama, LLAMA),
    "small": (make_llama, {**LLAMA, **SMALL}),
    "deep": (make_llama, {**LLAMA, "num_hidden_layers": 3}),
    "wide-mlp": (make_llama, {**LLAMA, "intermediate_size": 96}),
    "vocabulary": (make_llama, {**LLAMA, "vocab_size": 160}),
    "heads": (make_llama, {**LLAMA, "num_attention_heads": 8}),
    "head-dimension": (make_llama, {**LLAMA, "head_dim": 10}),
    "tied": (make_llama, {**LLAMA, "tie_word_embeddings": True}),
    "biases": (make_llama, {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "rope": (make_llama, {**LLAMA, "rope_parameters": LINEAR}),
    "positions": (make_llama, {**LLAMA, "max_position_embeddings": 64}),
    "mistral": (make_mistral, {**LLAMA, "sliding_window": 4}),
    "falcon": (make_falcon, OTHERS),
    "falcon-40b": (make_falcon, {**OTHERS, **FALCONS["40b"], "num_kv_heads": 2}),
    "falcon-in-turn": (make_falcon, {**OTHERS, **FALCONS["in-turn"]}),
    "falcon-rw": (make_falcon, {**OTHERS, **FALCONS["rw"]}),
    "gpt2": (make_gpt2, GPT2),
    "gpt2-short": (make_gpt2, {**GPT2, "n_positions": 6}),
}
SAME = {"positions": "llama"}
"""What is no difference: a limit."""
SPELLINGS = {
    "torch_dist": {},
    "padded": {"tp": 2, "vocab_multiple": 8},
    "mp_rank": {"format": "mp_rank", "tp": 2},
    "nvidia-legacy": {"format": "mp_rank", "dialect": "nvidia-legacy"},
    "megatron-llm": {"format": "mp_rank", "dialect": "megatron-llm"},
    "bf16": {"dtype": "bf16"},
    "fp16": {"dtype": "fp16"},
}
"""One model, spelt otherwise."""
SHORT = {"length": 6, "batch": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder for each model, and for each spelling of the LLaMA."""
    root = tmp_path_factory.mktemp("pairs")
    found = {name: make(root / name, **config) for name, (make, config) in MODELS.items()}
    return found | {name: convert(found["llama"], root / f"as-{name}", **how) for name, how in SPELLINGS.items()}


def check(report, same):
    """A whole report, whatever it says: text, page and JSON can be made of it."""
    assert report["passed"] is same and bool(report["failures"]) is not same
    assert lines(report)[0].startswith(("PASS", "SAME") if same else ("FAIL", "DIFFERENT", "WRONG"))
    assert not re.search(r"\b(None|True|False)\b|\b1 tensors|\b0 \w+ and|places? depart", "\n".join(lines(report)))
    assert page.render(report).count("FAIL") >= (not same)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(_finite(as_json(report)))))
    first = (report["diagnosis"] or {}).get("lines", [""])[:1]
    assert not "".join(first).startswith("the first layer that departs was not found")


@pytest.mark.parametrize("a", MODELS)
def test_no_pair_of_models_has_the_same_tensors(made, a):
    """Every model against the first, the smallest and two others, by turns as the reference."""
    names = list(MODELS)
    here = names.index(a)
    for b in dict.fromkeys(["llama", "small", *(names[(here + step) % len(names)] for step in (1, 6))]):
        same = SAME.get(a, a) == SAME.get(b, b)
        report = judged(made[a], made[b], proofs="digests")
        check(report, same)
        if {a, b} & {"small"} and a != b:
            check(whole := judged(made[a], made[b]), False)
            assert whole["verdicts"]["logits"] == "not run" and "hidden size" in lines(whole)[0]


@pytest.mark.parametrize("b", ["deep", "vocabulary", "heads", "positions", "mistral", "falcon"])
def test_what_models_compute_is_compared_or_they_are_told_apart(made, b):
    megatron = convert(made[b], made[b].parent / f"{b}-megatron")
    report = judged(made["llama"], megatron, proofs="logits", streamed=b == "heads", generate=b == "vocabulary", **SHORT)
    check(report, b == "positions")
    assert (report["verdicts"]["logits"] == "not run") is (b == "falcon")


@pytest.mark.parametrize("pair", [("gpt2", "gpt2-short"), ("gpt2-short", "gpt2"), ("vocabulary", "llama")], ids="-".join)
def test_ids_and_positions_are_those_that_both_models_have(made, pair):
    check(judged(*(made[name] for name in pair), generate=2 if "llama" in pair else 0), False)


@pytest.mark.parametrize("b", SPELLINGS)
def test_a_spelling_is_no_difference(made, b):
    run_too = b in ("padded", "mp_rank", "bf16")
    check(judged(made["llama"], made[b], **(SHORT if run_too else {"proofs": "digests"})), True)
    assert judged(made[b], made["small"], proofs="logits")["passed"] is False


def test_the_command_line_lists_the_fields_that_differ(made, tmp_path, capsys, monkeypatch):
    a, b, html = str(made["llama"]), str(made["small"]), str(tmp_path / "page.html")
    assert run(["verify", a, b, "--html", html]) == 1
    out = capsys.readouterr().out
    first, *rest = out.splitlines()
    assert first == (
        "FAIL: llama and small are models of different architectures: "
        "hidden size 32 / 16, attention heads 4 / 2, query groups 2 / 1"
    )
    assert any(line.split() == ["hidden_size", "32", "against", "16"] for line in rest)
    assert "different architectures" in Path(html).read_text()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert run(["verify", a, b]) == 1  # on a terminal, it says what it begins
    said = capsys.readouterr().err
    assert said.startswith("verify: loading torch") and "verify: comparing tensors" in said
    monkeypatch.undo()
    for words in (["--json", "--logits"], ["--json", "--digests"], ["--json", "--streamed", "--generate", "2"]):
        assert run(["verify", a, b, *words]) == 1
        assert json.loads(capsys.readouterr().out)["failures"][0].startswith("the architectures differ: hidden size")


@pytest.mark.parametrize(
    "words, says",
    [(["--length", "300"], "--length 300: the model has learned 256 positions"),
     (["--generate", "250"], "give at most 240")],
)  # fmt: skip
def test_positions_that_nobody_learned_are_refused(made, capsys, words, says):
    assert run(["verify", str(made["gpt2"]), str(made["gpt2"]), *words]) == 2
    assert says in capsys.readouterr().err


def test_the_arithmetic_and_the_weights_may_be_of_any_dtype(made, tmp_path):
    half = make_llama(tmp_path / "half", **LLAMA, dtype=torch.float16)
    for b, dtype in (("bf16", "bf16"), ("fp16", "fp16"), ("tied", "fp32"), ("small", "bf16")):
        check(judged(half, made[b], dtype=dtype, **SHORT), False if b != "fp16" else judged(half, made[b])["passed"])
