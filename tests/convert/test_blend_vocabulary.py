"""Models with several tokenizers in one blend: mergekit's `tokenizer_source`, `tokenizer` and `chat_template`."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import mergekit_peer
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_resize import tokenizer
from tiny import edit_json, make_llama, same, tensors

from mconv.cli.app import run
from mconv.convert.folders import tokens
from mconv.convert.surgery.tokenizer import ids_of

pytestmark = pytest.mark.once
PYTHON = os.environ.get("MCONV_MERGEKIT")
WORDS = {
    "base": [f"w{i}" for i in range(20)],
    "a": [*(f"w{i}" for i in range(5, 20)), "x1", "x2", "both"],
    "b": [*(f"w{i}" for i in reversed(range(18))), "y1", "both"],
}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SMALL = {"num_hidden_layers": 1, "max_position_embeddings": 64}
MODELS = "models:\n  - {model: a, parameters: {weight: 0.7}}\n  - {model: b, parameters: {weight: 0.3}}\n"
TASK = f"{MODELS}base_model: base\nmerge_method: task_arithmetic\n"
CASES = {
    "union": f"{MODELS}merge_method: linear\ntokenizer_source: union\n",
    "union-base": f"{TASK}tokenizer_source: union\n",
    "base": f"{TASK}tokenizer_source: base\n",
    "model": f"{TASK}tokenizer_source: b\n",
    "tokens": f"""{TASK}tokenizer:
  source: union
  pad_to_multiple_of: 8
  tokens:
    x1: {{source: a, force: true}}
    y1: {{source: {{kind: zero}}}}
    both: {{source: b, force: true}}
    new: {{source: {{kind: model_token, model: a, token: w7}}}}
    newer: {{source: {{kind: model_token, model: base, token_id: 3}}, force: true}}
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three models with tokenizers of their own, whose tables have other sizes; the recipes; what mergekit makes."""
    root = tmp_path_factory.mktemp("words")
    for seed, (name, words) in enumerate(WORDS.items()):
        tokenizer(make_llama(root / name, **SMALL, vocab_size=len(words) + 3, seed=seed), words)
    edit_json(root / "a" / "tokenizer_config.json", chat_template="{% for m in messages %}A {{ m }}{% endfor %}")
    for case, text in CASES.items():
        (root / "made" / case).mkdir(parents=True)
        (root / "made" / case / "merge.yaml").write_text(text)
        for name in WORDS:
            (root / "made" / case / name).symlink_to(root / name)
    if PYTHON:
        subprocess.run([PYTHON, mergekit_peer.__file__, *(str(root / "made" / case) for case in CASES)], check=True)
    return root


def blended(place, case, out, monkeypatch, *options):
    monkeypatch.chdir(place / "made" / case)
    assert run(["blend", "merge.yaml", "--out", str(out), *options]) == 0
    return tensors(out)


def vocabulary(folder):
    return ids_of({path.name: path for path in folder.iterdir() if tokens.is_tokenizer(path.name)}, of=folder)


def table(place, name, key):
    """Return the rows of a model by their tokens."""
    held = tensors(place / name)[key]
    return {token: held[id] for token, id in vocabulary(place / name).items()}


def by_hand(place, case, key):
    """Return the rows of a blend, by token: textbook arithmetic over the tokens' strings."""
    base, a, b = (table(place, name, key) for name in ("base", "a", "b"))
    nothing = torch.zeros(48)

    def rule(token):
        if case == "tokens" and token in (told := {"x1": a["x1"], "y1": nothing, "both": b["both"], "new": a["w7"],
                                                   "newer": tensors(place / "base")[key][3]}):  # fmt: skip
            return told[token]
        having = [one[token] for one in (base, a, b) if token in one]
        if case == "union":
            having = [one[token] for one in (a, b) if token in one]
            return sum(having) / len(having)
        return base[token] if token in base else sum(having) / len(having) if having else nothing

    forced = ("x1", "both", "newer") if case == "tokens" else ()

    def own(one, token):
        return one[token] if token in one and token not in forced else rule(token)

    words = {"union": {**a, **b}, "base": base, "model": b}.get(case, {**base, **a, **b, **dict.fromkeys(
        ("new", "newer") if case == "tokens" else ())})  # fmt: skip
    if case == "union":
        return {t: 0.7 * own(a, t) + 0.3 * own(b, t) for t in words}
    return {t: own(base, t) + 0.7 * (own(a, t) - own(base, t)) + 0.3 * (own(b, t) - own(base, t)) for t in words}


@pytest.mark.parametrize("case", CASES)
def test_rows_follow_the_tokens(place, case, tmp_path, monkeypatch, capsys):
    found = blended(place, case, tmp_path / "out", monkeypatch)
    known = vocabulary(tmp_path / "out")
    rows = -(-len(known) // 8) * 8 if case == "tokens" else len(known)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == rows == len(found[EMBED])
    for key in (EMBED, HEAD):
        wanted = by_hand(place, case, key)
        assert wanted.keys() == known.keys()
        assert all(torch.allclose(found[key][known[t]], row, rtol=1e-5, atol=1e-6) for t, row in wanted.items())
    meg = tmp_path / "meg"
    assert run(["blend", "merge.yaml", "--out", str(meg), "--format", "torch_dist", "--tp", "2"]) == 0
    assert run(["meg2hf", str(meg), "--out", str(tmp_path / "back")]) == 0
    assert same(tensors(tmp_path / "back"), found)
    for out in (tmp_path / "out", meg):
        assert run(["verify", str(out)]) == 0
    save_file({**found, HEAD: found[HEAD].roll(1, 0)}, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    assert run(["verify", str(tmp_path / "out")]) == 1 and f"  {HEAD}: " in capsys.readouterr().out


def test_transformers_reads_the_joined_tokenizer(place, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    blended(place, "tokens", tmp_path / "out", monkeypatch)
    spoken, known = AutoTokenizer.from_pretrained(tmp_path / "out"), vocabulary(tmp_path / "out")
    assert spoken.get_vocab() == known
    words = ["w3", "x1", "both", "y1", "newer", "w19"]
    assert spoken(" ".join(words)).input_ids == [known[word] for word in words]


@pytest.mark.skipif(not PYTHON, reason="MCONV_MERGEKIT names no Python with mergekit")
@pytest.mark.parametrize("case", CASES)
def test_mergekit_makes_the_same(place, case, tmp_path, monkeypatch):
    """The same tokens and for each the same row; the ids of tokens that are added are in no order in mergekit."""
    found, theirs = (
        blended(place, case, tmp_path / "out", monkeypatch),
        load_file(place / "made" / case / "out" / "model.safetensors"),
    )
    peer = place / "made" / case / "out"
    ours, ids = vocabulary(tmp_path / "out"), vocabulary(peer)
    assert ours.keys() == ids.keys() and found[EMBED].shape == theirs[EMBED].shape
    for key in (EMBED, HEAD):
        one, two = (held[key][[own[token] for token in ours]] for held, own in ((found, ours), (theirs, ids)))
        exact = ~(one != two).any(1)
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-7) and exact.sum() >= len(exact) - 2
        assert torch.allclose(found[key][len(ours) :], theirs[key][len(ours) :], rtol=1e-5, atol=1e-7)
    assert same({k: v for k, v in found.items() if k not in (EMBED, HEAD)},
                {k: v for k, v in theirs.items() if k not in (EMBED, HEAD)})  # fmt: skip
    texts = ["w3 w7 w19", "w5 x1 x2", "both y1 w0"]
    script = (
        "import sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]); "
        "print([t.convert_ids_to_tokens(t(text).input_ids) for text in sys.argv[2:]])"
    )
    said = subprocess.run([PYTHON, "-c", script, peer, *texts], check=True, capture_output=True, text=True).stdout.strip()
    from transformers import AutoTokenizer

    spoken = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert said == str([spoken.convert_ids_to_tokens(spoken(text).input_ids) for text in texts])


# ---- templates, and what is refused ----------------------------------------------------------------------------------
WRITTEN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("asked, found", [("auto", "{% for m in messages %}A {{ m }}{% endfor %}"), (WRITTEN, WRITTEN)])
def test_chat_templates(place, tmp_path, monkeypatch, asked, found):
    (tmp_path / "recipe.yaml").write_text(f"{CASES['union']}chat_template: {json.dumps(asked)}\n")
    monkeypatch.chdir(place)
    assert run(["blend", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == found


@pytest.mark.parametrize(
    "more, said",
    [
        ("tokenizer_source: union\nchat_template: chatml\n", "chat_template: 'chatml' is neither `auto` nor a template"),
        ("tokenizer_source: elsewhere\n", "tokenizer: elsewhere is none of the models that are merged"),
        ("tokenizer: {tokens: {new: {source: {kind: model_token, model: a, token: none}}}}\n", "a has no token none"),
        ("tokenizer: {tokens: {new: {source: {kind: model_token, model: a, token_id: 99}}}}\n", "a has no token 99"),
        ("tokenizer: {tokens: {new: {}}}\n", "tokenizer.tokens.new: its source is not said"),
        ("", "vocabulary is 21 in"),
    ],
)
def test_what_is_refused(place, tmp_path, monkeypatch, capsys, more, said):
    (tmp_path / "recipe.yaml").write_text(f"{MODELS}merge_method: linear\n{more}")
    monkeypatch.chdir(place)
    assert run(["blend", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_and_a_recipe_that_both_say_the_tokenizer(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place / "made" / "union")
    assert run(["blend", "merge.yaml", "--out", str(tmp_path / "out"), "--tokenizer", "a"]) == 2
    assert "leave one of the two out" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_ids_beyond_the_table_are_refused(place, tmp_path, monkeypatch, capsys):
    shutil.copytree(place / "a", tmp_path / "a")
    shutil.copytree(place / "base", tmp_path / "b")
    for file in (place / "a").glob("*token*"):
        shutil.copy(file, tmp_path / "b")
    edit_json(tmp_path / "b" / "tokenizer_config.json", added_tokens_decoder={"90": {"content": "<far>"}})
    (tmp_path / "recipe.yaml").write_text(CASES["union"])
    monkeypatch.chdir(tmp_path)
    assert run(["blend", "recipe.yaml", "--out", "out"]) == 2
    assert "mconv resize" in capsys.readouterr().err and not Path("out").exists()
