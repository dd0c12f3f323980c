"""Names to folders: a folder wins, then the cache, then a download; offline and absent says what to type."""

import re
import shutil
import time
from contextlib import nullcontext

import pytest
from huggingface_hub import snapshot_download

from mconv.convert.folders.recognize import what_is
from mconv.errors import ConfigError, FormatError, MconvError
from mconv.hub.catalog import REPOSITORIES, check_size, expected_parameters, repository
from mconv.hub.fetch import pull, resolve
from mconv.hub.folder import missing
from mconv.hub.push import push


@pytest.fixture
def published(hub, make_model):
    """acme/tiny on the loopback Hub; its local folder is returned."""
    folder = make_model("source", shards=2)
    push(folder, "acme/tiny", endpoint=hub.url)
    hub.log.clear()
    return folder


@pytest.fixture
def impatient(monkeypatch):
    """The Hub's client waits longer and longer between its tries, for half a minute: here it does not."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def test_a_local_folder_wins(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_model("llama2")
    assert resolve(str(folder)) == folder
    assert resolve("llama2").resolve() == folder


def test_download_then_cache(hub, published, tmp_path):
    got = resolve("acme/tiny", cache_dir=tmp_path / "c", endpoint=hub.url)
    assert (got / "config.json").read_bytes() == (published / "config.json").read_bytes()
    asked = len(hub.log)
    assert resolve("acme/tiny", cache_dir=tmp_path / "c", endpoint=hub.url, offline=True) == got
    assert resolve("acme/tiny", cache_dir=tmp_path / "c", endpoint=hub.url) == got
    assert len(hub.log) == asked, "the cache is looked at first"


def test_the_cache_of_the_client_is_used(hub, published, tmp_path):
    got = snapshot_download("acme/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    assert str(resolve("acme/tiny", cache_dir=tmp_path / "c", offline=True)) == got


def test_half_a_model_in_the_cache_does_not_count(hub, published, tmp_path):
    got = resolve("acme/tiny", cache_dir=tmp_path / "c", endpoint=hub.url)
    (got / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MconvError, match="not completely"):
        resolve("acme/tiny", cache_dir=tmp_path / "c", offline=True)
    assert resolve("acme/tiny", cache_dir=tmp_path / "c", endpoint=hub.url) == got
    assert (got / "model-00002-of-00002.safetensors").is_file()


def test_a_bare_config_in_the_cache_does_not_count(hub, published, tmp_path):
    snapshot_download("acme/tiny", endpoint=hub.url, cache_dir=tmp_path / "c", allow_patterns=["config.json"])
    # The client remembers listings by path: another path is like another process, with a cache that has no listing.
    shutil.copytree(tmp_path / "c", tmp_path / "d", symlinks=True, ignore=shutil.ignore_patterns("trees"))
    assert snapshot_download("acme/tiny", cache_dir=tmp_path / "d", local_files_only=True), "the client is content"
    for cache in ("c", "d"):
        with pytest.raises(MconvError, match="not completely"):
            resolve("acme/tiny", cache_dir=tmp_path / cache, offline=True)


def test_offline_a_model_without_its_license_file_will_do(hub, published, tmp_path):
    (published / "LICENSE.txt").write_text("free")
    push(published, "acme/tiny", endpoint=hub.url)
    wanted = ["*.json", "*.safetensors"]
    got = snapshot_download("acme/tiny", endpoint=hub.url, cache_dir=tmp_path / "c", allow_patterns=wanted)
    assert str(resolve("acme/tiny", cache_dir=tmp_path / "c", offline=True)) == got
    assert (resolve("acme/tiny", cache_dir=tmp_path / "c", endpoint=hub.url) / "LICENSE.txt").is_file()


def test_offline_and_absent_says_what_to_type(tmp_path):
    with pytest.raises(MconvError, match=r"`hf download meta-llama/Llama-2-7b-hf`.*--from DIR") as caught:
        resolve("llama2", size="7", cache_dir=tmp_path / "c", offline=True)
    assert "\n" not in str(caught.value)


def test_no_network_is_one_line(impatient, tmp_path):
    with pytest.raises(MconvError, match="cannot download: the Hub did not answer") as caught:
        resolve("acme/tiny", cache_dir=tmp_path / "c", endpoint="http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "status", "code", "message"),
    [
        ("/resolve/", 403, "GatedRepo", "access is granted on request; ask on the page of acme/tiny"),
        ("/api/models", 401, "GatedRepo", "access is granted on request"),
        ("/api/models", 401, "", "set HF_TOKEN or run `hf auth login`"),
        ("/resolve/", 403, "", "the token has no right to do this"),
        ("/api/models", 404, "RepoNotFound", "no such repository or revision"),
        ("/api/models", 500, "", "the Hub failed; try again later"),
    ],
)
def test_refusals_are_one_line(hub, published, impatient, tmp_path, part, status, code, message):
    hub.fail_next(part, status=status, times=99, code=code)
    with pytest.raises(MconvError, match=message) as caught:
        resolve("acme/tiny", cache_dir=tmp_path / "c", endpoint=hub.url)
    assert "\n" not in str(caught.value)


def test_pickles_are_not_fetched(hub, published, tmp_path):
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.url)
    for name in ("pytorch_model.bin", "modeling_evil.py", "original/params.json"):
        api.upload_file(repo_id="acme/tiny", path_in_repo=name, path_or_fileobj=b"x")
    got = resolve("acme/tiny", cache_dir=tmp_path / "c", endpoint=hub.url)
    shards = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert {p.name for p in got.iterdir()} == {
        "README.md", "config.json", "tokenizer.json", "model.safetensors.index.json", "modeling_evil.py", *shards,
    }  # fmt: skip


def test_a_repository_without_safetensors(hub, tmp_path):
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.url)
    api.create_repo("pickled")
    api.upload_file(repo_id="tester/pickled", path_in_repo="config.json", path_or_fileobj=b"{}")
    with pytest.raises(FormatError, match=r"has no model\.safetensors"):
        resolve("tester/pickled", cache_dir=tmp_path / "c", endpoint=hub.url)


@pytest.mark.parametrize(
    ("source", "size", "message"),
    [
        ("llama2", None, r"needs a size; known sizes: 7, 13, 70"),
        ("llama2", "30", r"has no size '30'; known sizes: 7, 13, 70"),
        ("gpt2", None, "neither a folder nor a repository ORG/NAME nor a family"),
        ("lama2", "7", "did you mean llama2"),
        ("mistal", None, "did you mean mistral"),
        ("flacon", "7", "did you mean falcon"),
        ("Llama-31", "8", "did you mean llama3.1"),
        ("falcon", None, "falcon needs a size; known sizes: 7, 11, 40, 180"),
        ("./missing", None, "no such folder"),
        ("a/b/c", None, "no such folder"),
        ("a b/c", None, "write ORG/NAME"),
    ],
)
def test_unknown_names(source, size, message):
    with pytest.raises(ConfigError, match=message):
        repository(source, size=size)


def test_the_table():
    assert repository("Llama-2", size="7B") == "meta-llama/Llama-2-7b-hf"
    assert repository("llama3.1", size="405") == "meta-llama/Llama-3.1-405B"
    assert expected_parameters("codellama", "34") == 33.74
    assert repository("falcon", size="180b") == "tiiuae/falcon-180B"
    assert repository("Falcon-RW", size="1B") == "tiiuae/falcon-rw-1b"
    for (_, size), known in REPOSITORIES.items():
        assert 0.9 < known.billions / float(size) < (1.25 if float(size) > 1 else 1.7)


@pytest.mark.parametrize(
    ("name", "size", "repo"),
    [
        ("mistral", None, "mistralai/Mistral-7B-v0.1"),
        ("Mistral", "7b", "mistralai/Mistral-7B-v0.1"),
        ("Llama-3-1", "8", "meta-llama/Llama-3.1-8B"),
        ("llama-3.2", "1B", "meta-llama/Llama-3.2-1B"),
        ("LLaMA", "30", "huggyllama/llama-30b"),
        ("code_llama", "34", "codellama/CodeLlama-34b-hf"),
        ("falcon2", "11", "tiiuae/falcon-11B"),
        ("falcon-rw", "1", "tiiuae/falcon-rw-1b"),
        ("Falcon3", "10", "tiiuae/Falcon3-10B-Base"),
    ],
)
def test_names_as_people_write_them(name, size, repo):
    assert repository(name, size=size) == repo


@pytest.mark.parametrize(
    ("billions", "size", "family", "says"),
    [
        (6.74, "7", "llama2", None),
        (6.93, "7B", "Llama-2", None),  # a finetune with a larger vocabulary
        (13.02, "7", "llama2", "13 billion parameters; it should have 6.74"),
        (7.24, "7", "llama2", "it should have 6.74"),  # a Mistral
        (1.67, "1", "falcon3", None),  # its name is rounded far down
        (32.5, "30", "llama", None),
        (7.6, "7", None, None),
        (1.0, "7", None, "its config.json describes 1 billion"),
        (7.0, "seven", None, "not a number of billions"),
        (7.0, "nan", None, "billion"),
        (7.0, "8", "llama2", "has no size '8'"),
    ],
)
def test_the_size_is_checked_against_the_config(billions, size, family, says):
    with nullcontext() if says is None else pytest.raises(ConfigError, match=says):
        check_size(int(billions * 1e9), size=size, family=family)


def test_pull(hub, published, tmp_path):
    out = tmp_path / "out"
    assert pull("acme/tiny", out, endpoint=hub.url) == out
    for file in published.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(FormatError, match="--overwrite"):
        pull("acme/tiny", tmp_path / "full", endpoint=hub.url)
    assert pull("acme/tiny", tmp_path / "full", endpoint=hub.url, overwrite=True) == tmp_path / "full"


def test_pull_notices_damage(hub, published, tmp_path):
    """What arrives is what the Hub has, and the Hub has a shard that is cut off."""
    from huggingface_hub import HfApi

    shard = "model-00001-of-00002.safetensors"
    cut = (published / shard).read_bytes()[:-4]
    HfApi(endpoint=hub.url).upload_file(repo_id="acme/tiny", path_in_repo=shard, path_or_fileobj=cut)
    with pytest.raises(FormatError, match="truncated or damaged"):
        pull("acme/tiny", tmp_path / "out", endpoint=hub.url)


def pickled_repository(hub, make_model, tmp_path, *, shards=1):
    """acme/pickled on the loopback Hub: weights in .bin alone."""
    import json

    import torch
    from huggingface_hub import HfApi
    from safetensors.torch import load_file

    source = make_model("pickled")
    state = {k: v for file in source.glob("*.safetensors") for k, v in load_file(file).items()}
    api = HfApi(endpoint=hub.url)
    api.create_repo("pickled")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    names = (
        ["pytorch_model.bin"]
        if shards == 1
        else [f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin" for i in range(shards)]
    )
    where = {key: names[i % len(names)] for i, key in enumerate(state)}
    for name in names:
        torch.save({key: state[key] for key in state if where[key] == name}, folder / name)
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    api.upload_folder(repo_id="tester/pickled", folder_path=folder)
    return folder, names


@pytest.mark.parametrize("shards", [1, 2])
def test_pickles_are_fetched_where_there_is_nothing_else(hub, make_model, tmp_path, shards):
    folder, names = pickled_repository(hub, make_model, tmp_path, shards=shards)
    got = resolve("tester/pickled", cache_dir=tmp_path / "c", endpoint=hub.url)
    assert {p.name for p in got.iterdir()} == {p.name for p in folder.iterdir()} and missing(got) == []
    asked = len(hub.log)
    assert resolve("tester/pickled", cache_dir=tmp_path / "c", endpoint=hub.url, offline=True) == got
    assert len(hub.log) == asked
    assert pull("tester/pickled", tmp_path / "out", endpoint=hub.url) == tmp_path / "out"
    (got / names[0]).unlink()
    assert missing(got) == ([names[0]] if shards > 1 else ["model.safetensors"])
    with pytest.raises(MconvError, match="not completely"):
        resolve("tester/pickled", cache_dir=tmp_path / "c", offline=True)


def test_a_damaged_pickle_does_not_pass_for_a_model(hub, make_model, tmp_path):
    from huggingface_hub import HfApi

    folder, names = pickled_repository(hub, make_model, tmp_path)
    cut = (folder / names[0]).read_bytes()[:-100]
    HfApi(endpoint=hub.url).upload_file(repo_id="tester/pickled", path_in_repo=names[0], path_or_fileobj=cut)
    with pytest.raises(FormatError, match="truncated"):
        pull("tester/pickled", tmp_path / "out", endpoint=hub.url)


def test_pickles_are_still_never_published(hub, make_model, tmp_path):
    folder, _ = pickled_repository(hub, make_model, tmp_path)
    with pytest.raises(FormatError, match="a pickle, which runs code when loaded"):
        push(folder, "acme/again", endpoint=hub.url)


@pytest.mark.parametrize("whither", ["folder", "cache"])
def test_a_disk_without_room_is_found_before_the_first_byte(hub, published, tmp_path, monkeypatch, whither):
    """Room is needed for what is still to come: what an earlier, interrupted download has left counts."""
    sizes = [path.stat().st_size for path in published.iterdir() if path.name != "README.md"]

    def fetch():
        if whither == "folder":
            return pull("acme/tiny", tmp_path / "out", endpoint=hub.url)
        return resolve("acme/tiny", cache_dir=tmp_path / "c", endpoint=hub.url)

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=sum(sizes) - 1))
    with pytest.raises(MconvError, match=r"acme/tiny: .* are still to be downloaded, but .* free; make room there, or"):
        fetch()
    assert not any("/resolve/" in line.path for line in hub.log) and not (tmp_path / "out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    folder = fetch()
    (folder / "config.json").unlink()
    size = (published / "config.json").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size + 4000))  # the card
    if whither == "folder":
        assert (fetch() / "config.json").is_file()


def test_a_folder_that_cannot_be_made_is_found_before_the_hub_is_asked(hub, published, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MconvError, match=r"file is a file, so .*/out cannot be made"):
        pull("acme/tiny", tmp_path / "file" / "out", endpoint=hub.url)
    assert hub.log == []


def test_an_interrupted_pull_is_known_for_one_until_it_is_completed(hub, published, tmp_path, monkeypatch):
    """And one that failed before its first file leaves nothing."""
    import huggingface_hub

    out, real = tmp_path / "out", huggingface_hub.snapshot_download

    def broken(*args, **options):
        real(*args, **{**options, "allow_patterns": ["config.json", "model-00001*"]})
        raise KeyboardInterrupt

    def refused(*args, **options):
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", refused)
        with pytest.raises(MconvError, match="cannot download: no"):
            pull("acme/tiny", out, endpoint=hub.url)
        assert not out.exists()
        patch.setattr(huggingface_hub, "snapshot_download", broken)
        with pytest.raises(KeyboardInterrupt):
            pull("acme/tiny", out, endpoint=hub.url)
    found = what_is(out)
    assert found.kind == "unfinished" and f"`mconv pull acme/tiny {out}` completes it" in found.advice
    assert re.search(r"an unfinished download of acme/tiny \(\d\d % there\)", found.text)
    assert what_is(pull("acme/tiny", out, endpoint=hub.url)).kind == "hf"
