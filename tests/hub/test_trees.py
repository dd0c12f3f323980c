"""Whole trees: what stands beside the weights is the same at the end of every chain of commands, and renders the same."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny import make_llama

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders import sidecar
from mconv.errors import FormatError
from mconv.hub.fetch import pull, wanted
from mconv.hub.push import plan as plan_push
from mconv.hub.push import push

pytestmark = pytest.mark.once

TRAVELS = {
    "LICENSE": b"free\n",
    "README.md": b"---\nlicense: mit\n---\n# The source's own words\n",
    "docs/deep/notes.md": b"deep\n",
    "images/logo \xc3\xa9.png".encode("latin-1").decode(): b"\x89PNG\r\n\x1a\n\x00\xff",
    "modeling_x.py": b"raise SystemExit('code of others is never run')\n",
    "preprocessor_config.json": b"{}",
    "qwen.tiktoken": b"YQ== 0\n",
    "tekken.json": b'{"vocab": [], "config": {}}',
    "tokenizer.model.v3": b"\x00\x01pieces",
    "[odd] *name?.txt": b"odd\n",
}
STAYS = {
    ".env": "hidden",
    ".gitattributes": "hidden",
    "4bit/config.json": "a model of its own",
    "4bit/model.safetensors": "a model of its own",
    "__pycache__/a.pyc": "a cache, or compiled code",
    "adapter_config.json": "an adapter of its own",
    "checkpoint-5/config.json": "the state of a training",
    "hf_token.txt": "may hold a secret",
    "model.gguf": "other weights, or their config",
    "onnx/config.json": "other weights, or their config",
    "original/params.json": "other weights, or their config",
    "pytorch_model.bin": "other weights, or their config",
    "runs/1/events": "a log",
    "trainer_state.json": "the state of a training",
    "a\nb.txt": "a name that not every file system can hold",
    "Config.JSON": "its name differs from config.json only in case",
}
TOLD = {name.split("/")[0] + "/" * ("/" in name): why for name, why in STAYS.items()} | {
    "link.txt": "a link that leads out of the folder; put the file itself there",
    "linked": "a link to a folder",
    "pipe": "not a regular file",
}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, held in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(held)


def add_tokenizer(folder: Path) -> None:
    """A tokenizer with a template of each name: `tool_use` lies in a folder of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz_ "]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = {
        "default": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
        "tool_use": "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    }
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model folder with everything that travels, and everything that does not."""
    folder = make_llama(tmp_path_factory.mktemp("trees") / "hf", max_position_embeddings=64)
    add_tokenizer(folder)
    (folder / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes() + b"\n")
    put(folder, TRAVELS)
    put(folder, dict.fromkeys(STAYS, b"x"))
    outside = folder.parent / "outside.txt"
    outside.write_text("secret")
    (folder / "link.txt").symlink_to(outside)
    (folder / "linked").symlink_to(folder.parent)
    os.mkfifo(folder / "pipe")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but weights and manifest, whoever put it there."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file() or p.is_symlink()}
    return {
        n: p.read_bytes()
        for n, p in files.items()
        if not n.endswith((".safetensors", "mconv.json")) and ".cache/" not in n
    }


def to(source: Path, out: Path, **options: object) -> Path:
    rewrite(plan.make(open_checkpoint(source), out, **options), step="test")  # type: ignore[arg-type]
    return out


def rendered(folder: Path) -> str:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder)
    return found.apply_chat_template([{"role": "user", "content": "hello"}], chat_template="tool_use", tokenize=False)


def test_a_whole_chain_changes_no_file(source, tmp_path, hub, monkeypatch):
    """HF -> torch_dist -> mp_rank -> a training's save -> HF -> Hub -> folder, and HF -> mp_rank -> torch_dist -> HF."""
    from mconv.train.config import make
    from mconv.train.loop import train

    for name in ("link.txt", "linked", "pipe"):
        assert name in {p.name for p in source.iterdir()}
    expected = {name: (source / name).read_bytes() for name in sidecar.look(source).files}
    assert TRAVELS.items() <= expected.items() and "additional_chat_templates/tool_use.jinja" in expected
    assert rendered(source) == "<s><user>hello"

    one = to(source, tmp_path / "1", format="torch_dist", tp=2)
    two = to(one, tmp_path / "2", format="mp_rank", tp=1, pp=2)
    settings = {"mock_data": True, "train_iters": 1, "global_batch_size": 1, "seq_length": 16, "lr": 1e-4}
    train(make({"load": str(two), "save": str(tmp_path / "3"), **settings}), say=lambda line: None)
    four = to(tmp_path / "3", tmp_path / "4", format="hf")
    for folder in (one / "release/hf", two / "release/hf", tmp_path / "3/iter_0000001/hf", four):
        assert tree(folder) == expected, folder
    back = to(
        to(to(source, tmp_path / "5", format="mp_rank", tp=2), tmp_path / "6", format="torch_dist"),
        tmp_path / "7",
        format="hf",
    )
    assert tree(back) == expected and rendered(back) == rendered(source)
    assert run(["meg2hf", str(one), "--out", str(back), "--overwrite"]) == 0, "its own sub-folders are no obstacle"

    push(four, "acme/tiny", endpoint=hub.url)
    got = tree(pull("acme/tiny", tmp_path / "8", endpoint=hub.url))
    assert got.pop("SOURCE_README.md") == TRAVELS["README.md"] and b"made from" in got.pop("README.md")
    assert got == {name: held for name, held in expected.items() if name != "README.md"}
    assert rendered(tmp_path / "8") == rendered(source)
    again = to(to(tmp_path / "8", tmp_path / "9", format="torch_dist"), tmp_path / "10", format="hf")
    files = {file.name: file for file in plan_push(again, "acme/again").files}
    assert files["README.md"].content and not files["SOURCE_README.md"].content, "mconv's own card is no source's"


def test_what_stays_is_told(source, tmp_path, capsys):
    """With its name and the reason: in the note of a conversion, by inspect, before a push."""
    found = sidecar.look(source, weights=["model.safetensors"])
    assert {item.name: item.why for item in found.left_out} == TOLD
    assert run(["hf2meg", str(source), "--out", str(tmp_path / "m")]) == 0
    err = capsys.readouterr().err
    for name in (
        "model.gguf",
        "link.txt (a link that leads out",
        "onnx/",
        "hf_token.txt (may hold a secret)",
        r"'a\nb.txt'",
    ):
        assert name in err, name
    assert "model.safetensors" not in err and "mconv.json" not in err
    assert run(["inspect", str(source), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "pipe (not a regular file)" in facts["left_out"] and "images/logo \u00e9.png" in facts["side_files"]
    assert run(["inspect", str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == []


def test_a_repository_is_held_to_the_same_rule():
    """A listing of the Hub, without a file at hand; weights once, whole and in one kind."""
    listed = {**dict.fromkeys(TRAVELS, 9), **dict.fromkeys(STAYS, 9), "config.json": 9, "mconv.json": 9, "big.txt": 10**9}
    weights = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    copies = ["model.fp16.safetensors", "consolidated.safetensors", "tf_model.h5", "original/consolidated.00.pth"]
    names, left_out = wanted({**listed, **dict.fromkeys([*weights, *copies], 10**9)})
    assert set(names) == {*TRAVELS, *weights, "config.json", "mconv.json"}
    told = {item.name: item.why for item in left_out}
    assert {*TOLD, "big.txt", *copies[:3], "pytorch_model.bin"} - {"link.txt", "linked", "pipe"} <= told.keys()
    assert "pytorch_model.bin" in wanted(listed)[0], "where there is nothing else"
    for own in ("consolidated.safetensors", "consolidated.00.pth"):  # Mistral's and Meta's own files
        names, left_out = wanted(dict.fromkeys([own, "params.json", "tekken.json", "onnx/x.onnx"], 9))
        assert names == [own, "params.json", "tekken.json"] and [item.name for item in left_out] == ["onnx/"]


def test_what_cannot_be_pushed_says_what_it_is(source, tmp_path):
    """A Megatron checkpoint is exported first; whatever is no model is named."""
    megatron = to(source, tmp_path / "m", format="torch_dist")
    with pytest.raises(
        FormatError, match=f"a Megatron checkpoint, not a Hugging Face.*`mconv meg2hf {megatron} --out FOLDER`"
    ):
        plan_push(megatron, "acme/tiny")
    with pytest.raises(FormatError, match=f"give {megatron}/release"):
        plan_push(megatron / "release/hf", "acme/tiny")


def test_makers_own_files_come_from_the_hub(hub, tmp_path):
    """`mconv pull` of a repository that has Mistral's files alone: whole, and held to its numbers."""
    from huggingface_hub import HfApi
    from safetensors.torch import save_file

    put(tmp_path / "m", {"params.json": b"{}", "tekken.json": b"{}", ".gitattributes": b"x"})
    save_file({"norm.weight": torch.ones(2)}, tmp_path / "m/consolidated-00001-of-00002.safetensors")
    save_file({"output.weight": torch.ones(2)}, tmp_path / "m/consolidated-00002-of-00002.safetensors")
    api = HfApi(endpoint=hub.url)
    api.create_repo("own")
    api.upload_folder(repo_id="tester/own", folder_path=tmp_path / "m")
    got = pull("tester/own", tmp_path / "got", endpoint=hub.url)
    assert {p.name for p in got.iterdir()} - {".cache"} == {p.name for p in (tmp_path / "m").iterdir()} - {
        ".gitattributes"
    }
    api.delete_file("consolidated-00002-of-00002.safetensors", repo_id="tester/own")
    with pytest.raises(FormatError, match=r"00002-of-00002\.safetensors is missing"):
        pull("tester/own", tmp_path / "cut", endpoint=hub.url)


def test_what_is_large_stays(monkeypatch):
    """In one file, or together: small files first, so that a data set beside a model costs it no tokenizer."""
    sizes = {"tokenizer.json": 5, "data/a": 60, "data/b": 50, "data/c": 70, "data/d": 101}
    monkeypatch.setattr(sidecar, "LARGEST", 100)
    monkeypatch.setattr(sidecar, "TOGETHER", 120)
    travel, left_out = sidecar.judge(sizes)
    assert travel == ["data/a", "data/b", "tokenizer.json"]
    assert [item.name for item in left_out] == ["data/c", "data/d"] and "in all" in left_out[0].why
    monkeypatch.setattr(sidecar, "MOST", 2)
    assert sidecar.judge(sizes)[0] == ["data/b", "tokenizer.json"]


def test_a_snapshot_of_the_cache_is_a_folder_of_links(source, tmp_path):
    """Links from a snapshot into the blobs of its repository are files like any other; one to elsewhere is not."""
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    blobs = tmp_path / "models--a--b/blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number, name in enumerate(("config.json", "tokenizer.json", "model.safetensors")):
        (blobs / str(number)).write_bytes((source / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    (tmp_path / "models--a--b/secret").write_text("x")
    (snapshot / "notes.txt").symlink_to("../../secret")
    assert set(open_checkpoint(snapshot).side_files) == {"config.json", "tokenizer.json"}


def test_a_given_tokenizer_replaces_the_whole_one(source, tmp_path, capsys):
    """`--tokenizer DIR` mixes nothing: what the checkpoint's own tokenizer has more than the given one is gone."""
    given = tmp_path / "given"
    put(
        given,
        {"tokenizer.json": (source / "tokenizer.json").read_bytes(), "README.md": b"of the tokenizer", "x/y.txt": b"y"},
    )
    megatron = to(source, tmp_path / "m", format="torch_dist")
    out = to(megatron, tmp_path / "out", format="hf", side_folder=given)
    gone = {n for n in TRAVELS if n.startswith(("tekken", "tokenizer.", "qwen"))}
    gone |= {"tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"}
    assert set(tree(out)) == set(tree(megatron / "release/hf")) - gone
    assert tree(out)["README.md"] == TRAVELS["README.md"]
    (given / "tokenizer.json").unlink()
    put(given, {"chat_template.jinja": b"hint"})
    assert run(["meg2hf", str(megatron), "--out", str(tmp_path / "no"), "--tokenizer", str(given)]) == 2
    assert "no tokenizer files in" in capsys.readouterr().err and not (tmp_path / "no").exists()
    (out / "mine").mkdir()
    (out / "mine/thesis.txt").write_text("x")
    assert run(["meg2hf", str(megatron), "--out", str(out), "--overwrite"]) == 2, "a folder that mconv did not make"
    assert (out / "mine/thesis.txt").is_file()


def test_a_run_that_lets_its_beginning_go_keeps_the_files(source, tmp_path):
    """Resumed from its own checkpoint, which `keep_last` removes on the way: the next saves have them all the same."""
    from mconv.train.checkpoints import metadata

    origin = open_checkpoint(to(source, tmp_path / "run", format="torch_dist", iteration=7))
    had = {name: path.read_bytes() for name, path in origin.side_files.items()}
    (tmp_path / "run/iter_0000007").rename(tmp_path / "run/iter_0000009")
    found = metadata._side_files(tmp_path / "run", origin)
    assert {name: path.read_bytes() for name, path in found.items()} == had and len(had) > len(TRAVELS)
