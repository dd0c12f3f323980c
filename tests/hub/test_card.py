"""The model card says what the manifest says, and nothing that a manifest could smuggle in."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mconv.errors import ConfigError, FormatError
from mconv.hub.card import escape, is_ours, public, render, seal

pytestmark = pytest.mark.once

FULL = {
    "mconv": "0.1.0",
    "family": "llama2",
    "spec": {"num_layers": 2, "hidden_size": 64, "rope": {"kind": "default", "base": 10000.0}},
    "format": "hf",
    "dialect": None,
    "layout": None,
    "vocab": {"true": 32000, "padded": 32128},
    "dtype": "bfloat16",
    "source": {"name": "meta-llama/Llama-2-7b-hf", "format": "hf"},
    "digests": {"embed": "ab", "head": "cd"},
    "versions": {"torch": "2.9.1", "transformers": "5.23.0"},
    "history": [{"step": "hf2meg", "detail": {"tp": 2, "pp": 1}}, {"step": "train", "detail": {"steps": 100}}],
    "ignored": {"config_keys": {"novelty": 3, "rope_scaling.beta": [1, 2]}, "args": {"moe": "x"}},
    "verified": [
        {
            "against": "transformers",
            "max_abs_error": 1.5e-5,
            "kl": 1e-9,
            "argmax_agreement": 1.0,
            "passed": True,
            "digests": "pass",
            "logits": "pass",
            "mconv": "0.1.0",
        },
        {"against": "golden", "max_abs_error": 3.0, "passed": False},
    ],
}


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_full_card():
    card = render(FULL, repo="acme/tiny", license="llama2")
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "llama2",
        "base_model": "meta-llama/Llama-2-7b-hf",
        "tags": ["mconv", "megatron", "llama2"],
    }
    for said in (
        "1. Converted from Hugging Face to Megatron: tp 2, pp 1.",
        "2. Trained: steps 100.",
        "| num layers | 2 |",
        "torch 2.9.1, transformers 5.23.0",
        "novelty = 3 (config.json); rope_scaling.beta = 1, 2 (config.json); moe = x (Megatron&#x27;s args).",
        'model="acme/tiny"',
        "| transformers | pass |  |  | 1.5e-05 |  | 1e-09 | 1 | 0.1.0 | passed |",
        "| golden |  |  |  | 3 |  |  |  |  | **failed** |",
        "digests of its 2 logical tensors",
    ):
        assert said.replace("_", "\\_") in card
    assert card.index("How to load it") < card.index("How it was checked")


def test_card_without_a_manifest():
    card = render({}, repo="tiny")
    assert set(front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    assert "No check of its logits is recorded." in card
    assert "passed" not in card


def test_the_checked_function_is_read_from_passed_alone():
    card = render({"mconv": "1", "verified": [{"against": "x", "passed": "yes"}]}, repo="a/b")
    assert "**failed**" in card


EVIL = [
    "x\n---\nlicense: mit\n---\n",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![](https://evil.example/pixel.png)",
    "| a | b |\n|---|---|",
    "`code` **bold** # head",
    "{{ 123456 * 7 }}{% raw %}",
    "\u202e\u0000\u001b[31m",
    "https://evil.example www.evil.example @everyone",
]


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_values_stay_text(evil: str):
    manifest = {
        "mconv": evil,
        "family": evil,
        "spec": {evil: evil},
        "vocab": {evil: evil},
        "dtype": evil,
        "source": {"name": evil},
        "digests": {evil: evil},
        "versions": {evil: evil},
        "history": [{"step": evil, "detail": {evil: evil}}, {"detail": {"list": [evil, {evil: [evil]}]}}],
        "verified": [{"against": evil, "kl": evil, "passed": True}],
    }
    card = render(manifest, repo="acme/tiny")
    meta = front_matter(card)
    assert set(meta) <= {"library_name", "pipeline_tag", "tags"}
    assert all(re.fullmatch(r"[a-z0-9.-]+", tag) for tag in meta["tags"])
    body = card.split("---\n", 2)[2]
    code = re.search(r"```python\n.*?```\n", body, re.DOTALL)
    rest = body.replace(code[0], "")
    assert "<script" not in rest and "864192" not in rest
    assert not re.search(r"(?<!\\)!\[|(?<!\\)\]\(|(?<!\\)`code|(?<!\\)://|www\.evil", rest)
    assert "\u202e" not in rest and "\x1b" not in rest and "\x00" not in rest
    headings = re.findall(r"^#+ .*", rest, re.MULTILINE)
    assert headings == ["# tiny", "## What was done", "## The model", "## How to load it", "## How it was checked"]


@given(st.text())
def test_escape_is_one_line_without_html(text: str):
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[<>]|(?<!\\)[`|\[\]*]", shown)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/me/secret/llama", "llama"),
        ("~/models/llama/", "llama"),
        ("../up/llama", "llama"),
        ("C:\\Users\\me\\llama", "llama"),
        ("file:///data/llama", "llama"),
        ("runs/2024/llama", "llama"),
        ("read from /data/x/llama, then /tmp/y", "read from llama, then y"),
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("https://huggingface.co/acme/tiny", "https://huggingface.co/acme/tiny"),
        ("plain", "plain"),
    ],
)
def test_paths_are_cut_to_names(path: str, shown: str):
    assert public({path: [path, {"a": path}]}) == {shown: [shown, {"a": shown}]}


@pytest.mark.parametrize("key", ["spec", "history", "source", "digests", "verified", "versions"])
def test_wrong_kinds_are_refused(key: str):
    with pytest.raises(FormatError, match=key):
        render({"mconv": "1", key: 3}, repo="a/b")
    with pytest.raises(FormatError, match="history"):
        render({"mconv": "1", "history": ["x"]}, repo="a/b")


def test_license_is_an_identifier():
    with pytest.raises(ConfigError, match="--license"):
        render({}, repo="a/b", license="mit\nbase_model: x")


def test_seal():
    card = seal("# Hello\n")
    assert is_ours(card)
    assert is_ours(card.replace("\n", "\r\n"))
    assert not is_ours(card.replace("Hello", "Hullo"))
    assert not is_ours(card + "more\n")
    assert not is_ours("# Hello\n")
