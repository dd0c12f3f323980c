"""Typical mistakes, each with the whole message that it gets: `mistakes.md` is the golden text."""

import json
import os
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from tiny import make_llama

from mconv.cli.app import run
from mconv.hub.loopback import LoopbackHub

PAGE = Path(__file__).with_name("mistakes.md")
SMALL = {"num_hidden_layers": 2, "max_position_embeddings": 64}
TEXT = "the quick brown fox jumps over the lazy dog and runs away from it"
TRAINED = "--data data/text --seq-length 16 --micro-batch-size 1 --global-batch-size 2 --train-iters 2 --lr 1e-3"
FILES = {
    "notes.txt": "buy milk\n",
    "typo.yaml": "load: meg\ndata: data/text\nlr: 1e-4\ntrain_iter: 2\nlearning_rate: 1\n",
    "colon.yaml": "load: meg\nlr 1e-4\n",
    "small.yaml": "load: meg\ndata: data/text\nlr: 1e-4\ntrain_iters: 2\nseq_length: 16\n",
    "site.yaml": "cluster: {gpus_per_node: 2}\n",
    "twice.yaml": "lr: 1e-4\nlr: 1e-3\n",
    "recipe.yaml": "merge_method: linear\nmodels: [{model: hf}, {model: back}]\nparameters: {weight: 1}\n",
    "odd.yaml": "merge_method: linear\nmodels: [{model: hf}, {model: back}]\nmerge_dtype: bfloat16\n",
    "text.jsonl": f'{{"text": "{TEXT}"}}\n' * 30,
    "bad.jsonl": f'{{"text": "{TEXT}"}}\n{{"text": 5}}\n',
    "chat.jsonl": '{"question": "the quick", "answer": "brown fox"}\n' * 5,
}
MADE = (
    "hf2meg hf --out meg --tp 2",
    "hf2meg hf --out mp --tp 2 --format mp_rank",
    "meg2hf meg --out back",
    "data tokenize text.jsonl --out data/text --tokenizer hf",
    "data instruct chat.jsonl --out data/chat --tokenizer hf --template chatml",
    f"train --load meg {TRAINED} --save run",
    f"train --load meg {TRAINED} --save lora-run --lora-rank 2",
    "lora export lora-run --out adapter --base you/base",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder that the page describes, made by mconv's own commands where it makes such a thing."""
    root = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (root / name).write_text(text)
    for name in ("empty", "data", "cut", "odd-config"):
        (root / name).mkdir()
    make_llama(root / "hf", **SMALL)
    add_tokenizer(root / "hf")
    make_llama(root / "wide", **SMALL, hidden_size=32, intermediate_size=48)
    weights = (root / "hf" / "model.safetensors").read_bytes()
    config = json.loads((root / "hf" / "config.json").read_text())
    for name, kept, more in (("cut", len(weights) // 2, {}), ("odd-config", len(weights), {"clip_qkv": 8})):
        (root / name / "model.safetensors").write_bytes(weights[:kept])
        (root / name / "config.json").write_text(json.dumps({**config, **more}))
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()),
        redirect_stderr(StringIO()) as said,
    ):
        patch.chdir(root)
        for line in MADE:
            assert run(line.split()) == 0, f"{line}: {said.getvalue()}"
        interrupt("hf2meg hf --out half")
    return root


def add_tokenizer(folder):
    """Write a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *dict.fromkeys(TEXT.split())])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def interrupt(line):
    """Run a conversion that is killed when its first bytes are written."""
    from mconv.convert.engine import rewrite

    def killed(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrite, "stream", killed)
        assert run(line.split()) == 130


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub where nobody has anything, and no token to log in with."""
    with (
        LoopbackHub(tmp_path_factory.mktemp("hub"), token="hf_" + "x" * 34, orgs=("you",)) as served,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {
            **served.environ,
            "HF_ENDPOINT": served.url,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
        }.items():
            patch.setenv(name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        yield served


def commands():
    """Yield each command of the page with its place: (first line, line after its answer, words)."""
    lines = PAGE.read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    ends = [number for number, line in enumerate(lines) if line.startswith(("$ ", "```"))]
    for start in starts:
        yield start, next(end for end in ends if end > start), lines[start].removeprefix("$ ")


def answer(line, folder, hub):
    """Return what a command prints, and its exit code where that is not 2."""
    words = shlex.split(line)
    settings = [words.pop(0).split("=") for _ in range(words.index("mconv"))]
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in settings:
            patch.setenv(name, value)
        patch.setattr("sys.stdin", StringIO())
        code = run(words[1:])
    said = (out.getvalue() + err.getvalue()).replace(str(folder), "HERE").replace(hub.url, "https://hub")
    said = re.sub(r"\b\d+\.\d{4,}\b", "0.N", said)
    return [
        *([f"(exit code {code})"] if code != 2 else []),
        *(text.rstrip() for text in said.splitlines() if text.strip()),
    ]


def test_every_mistake_is_answered_as_the_page_says(folder, hub, monkeypatch):
    """Each is refused, in the words of the page, and leaves the folder as it was."""
    lines = PAGE.read_text().splitlines()
    page, at, left = [], 0, []
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    for start, end, line in commands():
        said = answer(line, folder, hub)
        assert said and "Traceback" not in " ".join(said), line
        after = sorted(folder.rglob("*"))
        if after != before and "(exit code 1)" not in said:  # a verdict is logged
            left.append((line, [str(path) for path in {*after} ^ {*before}]))
        before = after
        page += [*lines[at : start + 1], *said]
        at = end
    text = "\n".join([*page, *lines[at:]]) + "\n"
    if os.environ.get("MCONV_WRITE"):
        PAGE.write_text(text)
    assert not left, left
    assert text.splitlines() == PAGE.read_text().splitlines()
    assert len([*commands()]) >= 40
