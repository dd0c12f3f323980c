"""The commands as people type them: the README's opening block, word for word, and what hangs on it."""

import io
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import jobs
import pytest
from tiny import make_llama

from mconv.cli.app import run
from mconv.convert.folders import scan
from mconv.hub import catalog
from mconv.train.launch import ranks

ROOT = Path(__file__).parents[2]
REPO = "meta-llama/Llama-2-7b-hf"
TEXT = "the quick brown fox jumps over the lazy dog and runs away from it"


def opening_block():
    """The commands of the README's first shell block."""
    block = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines() if line.startswith("mconv ")]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A tiny Llama-2 with a tokenizer, as the Hub's client keeps one in its cache."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    cache = tmp_path_factory.mktemp("cache") / "models--meta-llama--Llama-2-7b-hf"
    folder = make_llama(cache / "snapshots" / ("01c7f73d771dfac7d292323805ebc428287df4f9"), max_position_embeddings=32)
    words = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *dict.fromkeys(TEXT.split())])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(folder.name)
    return cache.parent


class Terminal(io.StringIO):
    """A terminal at which somebody types."""

    def isatty(self):
        return True


@pytest.fixture
def here(tmp_path, hub, monkeypatch):
    """An empty working folder, and a Hub to push to."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def four_ranks(here, world, monkeypatch):
    """The ranks that a command would start are those of `world`, in this folder meanwhile; `make demo` starts its own."""

    def run(target, payload, *, nproc, **_):
        return world.run(jobs.work, target=target, payload=payload)[0]

    monkeypatch.setattr(ranks, "run", run)
    world.run(os.chdir, path=str(here))
    yield
    world.run(os.chdir, path=str(ROOT))


@pytest.fixture
def cached(snapshot, tmp_path, monkeypatch):
    """The Hub's cache with the tiny model under the real one's name, and of its size in the table: the check stays."""
    from huggingface_hub import constants

    parameters = sum(p.stat().st_size for p in snapshot.rglob("*.safetensors")) / 4 / 1e9
    monkeypatch.setitem(catalog.REPOSITORIES, ("llama2", "7"), catalog.Known(repo=REPO, billions=parameters))
    shutil.copytree(snapshot, tmp_path / "hub-cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return tmp_path / "hub-cache"


def test_the_opening_block_of_the_readme_runs_as_it_is_written(here, cached, hub, four_ranks, monkeypatch, capfd):
    block = opening_block()
    typed = [" ".join(words[:1]) for words in block]
    assert typed == ["hf2meg", "reshard", "verify", "data", "train", "meg2hf", "push"]
    assert [words for words in block if words[0] in ("verify", "meg2hf", "push")] == [["verify"], ["meg2hf"], ["push"]]
    assert block[0] == ["hf2meg", "llama2", "--size", "7"] and block[1] == ["reshard", "--tp", "4"]
    (here / "code.jsonl").write_text((json.dumps({"text": TEXT}) + "\n") * 40)
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    said = {}
    for words in block:
        assert run(words) == 0, (words, capfd.readouterr())
        said[words[0]] = capfd.readouterr()
    assert "size 7" not in said["hf2meg"].err
    assert "next: mconv verify llama2-7b-megatron\n" in said["hf2meg"].out
    assert "reshard: llama2-7b-megatron (the only Megatron checkpoint here)" in said["reshard"].err
    assert "verify: llama2-7b-megatron-tp4 (the newest" in said["verify"].err
    assert "at its own layout, tp 4 x pp 1" in said["verify"].err and "(megatron-core, tp 4 x pp 1)" in said["verify"].out
    assert "next: mconv meg2hf llama2-7b-run\n" in said["train"].out
    assert "next: mconv push llama2-7b-run-iter_20-hf\n" in said["meg2hf"].out
    assert "PASS: llama2-7b-run/iter_0000020" in said["push"].out, "what was trained is judged by its run"
    assert "to tester/llama2-7b-run-iter_20-hf? [y/N]" in said["push"].err
    published = hub.store.folder("tester/llama2-7b-run-iter_20-hf")
    assert published.is_dir()
    _check_status(capfd)
    _check_no_guess(here, capfd)


def _check_status(capfd):
    """The family tree says what came of what, by which step, how it was verified, and where it is now."""
    assert run(["status"]) == 0
    out = capfd.readouterr().out
    order = ["meta-llama/Llama-2-7b-hf (not in this folder)", "llama2-7b-megatron\n", "made by hf2meg",
             "llama2-7b-megatron-tp4\n", "tp 4 x pp 1, float32", "made by reshard", "verified against 01c7",
             "llama2-7b-run\n", "iteration 20", "made by train", "llama2-7b-run-iter_20-hf\n", "made by meg2hf",
             "verified against llama2-7b-run/iter_0000020 (digests and logits)",
             "pushed to tester/llama2-7b-run-iter_20-hf"]  # fmt: skip
    places = [out.find(words) for words in order]
    assert -1 not in places and places == sorted(places), out
    assert run(["status", "--json"]) == 0
    tree = json.loads(capfd.readouterr().out)["checkpoints"]
    names = []
    while tree:
        (node,) = tree
        names.append((node["name"], node["state"]))
        tree = node["children"]
    assert [state for _, state in names] == ["elsewhere", "here", "here", "here", "here"]
    assert node["pushed"][0]["repo"] == "tester/llama2-7b-run-iter_20-hf" and node["verified"][0]["same"] is True


def _check_no_guess(here, capfd):
    """What has no origin it equals, what two fit equally, and a name that is taken: exit code 2, and what to do."""
    assert run(["verify", "llama2-7b-run"]) == 2
    assert "it is itself the reference for what `mconv meg2hf llama2-7b-run` exports" in capfd.readouterr().err
    assert run(["meg2hf"]) == 2 and "is not empty; give --overwrite" in capfd.readouterr().err
    assert run(["reshard", "llama2-7b-megatron", "--tp", "2"]) == 0
    capfd.readouterr()
    assert run(["meg2hf"]) == 2
    error = capfd.readouterr().err
    assert "2 fit equally" in error and "- llama2-7b-run: " in error and "- llama2-7b-megatron-tp2: " in error
    assert "- llama2-7b-megatron: " not in error and "- llama2-7b-megatron-tp4: " not in error
    assert run(["train", "--data", "code", "--train-iters", "1", "--lr", "1e-3"]) == 2
    assert "give --load" in capfd.readouterr().err
    assert scan.unfinished_in(here) == {}


def test_a_source_in_the_cache_that_has_moved_is_found_by_its_name(here, cached, tmp_path, monkeypatch, capsys):
    """The manifest's path is gone; offline, the repository that it names is still there."""
    from huggingface_hub import constants

    assert run(["hf2meg", "llama2", "--size", "7"]) == 0
    cached.rename(tmp_path / "moved")
    assert run(["verify"]) == 2 and "no longer exist" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "moved"))
    assert run(["verify", "--digests"]) == 0
    assert "moved/models--meta-llama--Llama-2-7b-hf" in capsys.readouterr().err
    assert run(["status"]) == 0
    assert "meta-llama/Llama-2-7b-hf (no longer exists)" in capsys.readouterr().out


def test_a_folder_without_anything_says_what_is_missing(here, capsys):
    wanted = {"reshard": "Megatron checkpoint", "push": "Hugging Face folder", "verify": "checkpoint",
              "lora merge": "adapter", "train --data x": "Megatron checkpoint"}  # fmt: skip
    for line, missing in wanted.items():
        words = line.split()
        assert run(words) == 2
        assert f"this folder holds no {missing}" in capsys.readouterr().err
    assert run(["status"]) == 0 and "nothing that mconv knows" in capsys.readouterr().out
