"""A model folder to the loopback Hub and back, with the real client, and all that must not happen on the way."""

import json
import logging
import os
import re
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, snapshot_download

from mconv.errors import ConfigError, FormatError, MconvError
from mconv.hub.faults import explain
from mconv.hub.push import plan, push


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pulled(hub, repo: str, to: Path, revision: str = "main") -> dict[str, bytes]:
    return contents(Path(snapshot_download(repo, endpoint=hub.url, cache_dir=to, revision=revision)))


def writes(hub) -> list[str]:
    return [f"{r.method} {r.path}" for r in hub.log if r.method in ("POST", "PUT")]


@pytest.mark.parametrize("shards", [1, 3])
def test_push_then_download_is_identity(hub, make_model, tmp_path, shards):
    folder = make_model(shards=shards)
    before = contents(folder)
    done = push(folder, "acme/tiny", endpoint=hub.url)
    assert contents(folder) == before, "the user's folder is not touched"
    got = pulled(hub, "acme/tiny", tmp_path / "c")
    assert b"pipeline" in got.pop("README.md")
    assert got == before
    assert done.url == f"{hub.url}/acme/tiny"
    assert HfApi(endpoint=hub.url).model_info("acme/tiny").sha == done.commit
    assert len([w for w in writes(hub) if "/commit/" in w]) == 1


def test_name_alone_is_the_users_own(hub, make_model, tmp_path):
    assert push(make_model(), "tiny", endpoint=hub.url).repo == "tester/tiny"
    assert b'model="tester/tiny"' in pulled(hub, "tester/tiny", tmp_path / "c")["README.md"]


def test_second_push_overwrites_and_third_changes_nothing(hub, make_model, tmp_path):
    push(make_model("a", seed=1), "tiny", endpoint=hub.url)
    second = push(make_model("b", seed=2), "tiny", endpoint=hub.url)
    got = pulled(hub, "tester/tiny", tmp_path / "c")
    assert got["model.safetensors"] == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert push(tmp_path / "b", "tiny", endpoint=hub.url).commit == second.commit


def test_stale_shards_are_refused_or_deleted(hub, make_model, tmp_path):
    push(make_model("three", shards=3), "tiny", endpoint=hub.url)
    head = HfApi(endpoint=hub.url).model_info("tester/tiny").sha
    single = make_model("single")
    with pytest.raises(MconvError, match=r"model-00001-of-00003\.safetensors.*--overwrite") as caught:
        push(single, "tiny", endpoint=hub.url)
    assert "\n" not in str(caught.value)
    assert HfApi(endpoint=hub.url).model_info("tester/tiny").sha == head
    done = push(single, "tiny", endpoint=hub.url, overwrite=True)
    assert len(done.deleted) == 4
    assert set(pulled(hub, "tester/tiny", tmp_path / "c")) == {*contents(single), "README.md"}


def test_a_manifest_of_the_weights_before_is_deleted(hub, make_model, tmp_path):
    """mconv.json would claim of the new weights what was true of the old ones, so it goes without --overwrite."""
    with_manifest = make_model("with", seed=1)
    (with_manifest / "mconv.json").write_text("{}")
    push(with_manifest, "tiny", endpoint=hub.url)
    done = push(make_model("without", seed=2), "tiny", endpoint=hub.url)
    assert done.deleted == ("mconv.json",)
    assert "mconv.json" not in pulled(hub, "tester/tiny", tmp_path / "c")


def test_revision_makes_a_branch(hub, make_model, tmp_path):
    push(make_model("a", seed=1), "tiny", endpoint=hub.url)
    done = push(make_model("b", seed=2), "tiny", endpoint=hub.url, revision="try/2")
    assert done.url.endswith("/tree/try/2")
    on_main, on_branch = (pulled(hub, "tester/tiny", tmp_path / "c", revision=r) for r in ("main", "try/2"))
    assert on_main["model.safetensors"] != on_branch["model.safetensors"]


def test_private(hub, make_model):
    push(make_model(), "secret", private=True, endpoint=hub.url)
    assert HfApi(endpoint=hub.url).model_info("tester/secret").private
    HfApi(endpoint=hub.url).create_repo("open")
    with pytest.raises(MconvError, match="exists and is public, and --private would not hide it"):
        push(make_model("b"), "open", private=True, endpoint=hub.url)


def test_a_hub_without_xet_is_served_by_lfs(hub, make_model, tmp_path, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    folder = make_model(shards=2)
    push(folder, "tiny", endpoint=hub.url)
    assert any("xet-write-token" in r.path for r in hub.log), "the client must have tried"
    got = pulled(hub, "tester/tiny", tmp_path / "c")
    assert {k: v for k, v in got.items() if k != "README.md"} == contents(folder)


def test_only_model_files_go(hub, make_model):
    folder = make_model()
    for name in (".env", ".git/config", "notes.txt", "logs/x.safetensors", "model.safetensors.tmp", "optimizer.npz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    (folder / "tokenizer_config.json").symlink_to(folder / "nowhere")
    planned = plan(folder, "acme/tiny")
    left_out = {item.name: item.why for item in planned.left_out}
    assert left_out == {
        ".env": "hidden",
        ".git/": "hidden",
        "logs/": "a log",
        "model.safetensors.tmp": "unfinished",
        "optimizer.npz": "other weights, or their config",
        "tokenizer_config.json": "not a regular file",
    }
    push(folder, "tiny", endpoint=hub.url)
    sent = set(HfApi(endpoint=hub.url).list_repo_files("tester/tiny"))
    assert sent == {"README.md", "config.json", "model.safetensors", "notes.txt", "tokenizer.json"}


def truncate(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def append(folder: Path) -> None:
    with (folder / "model-00002-of-00003.safetensors").open("ab") as file:
        file.write(b"x")


def swap(folder: Path) -> None:
    a, b = (folder / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    held = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(held)


def escape(folder: Path) -> None:
    index = {"weight_map": {"w": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FAULTS = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not readable as JSON"),
    "empty config": (lambda f: (f / "config.json").write_text("{}"), r"config\.json: has no 'model_type'"),
    "no shard": (lambda f: (f / "model-00002-of-00003.safetensors").unlink(), r"00002-of-00003\.safetensors: missing"),
    "truncated": (truncate, r"00002-of-00003\.safetensors: truncated or damaged"),
    "too long": (append, r"00002-of-00003\.safetensors: truncated or damaged"),
    "swapped": (swap, r"the file disagree about layer\.0\.weight"),
    "extra shard": (lambda f: (f / "model-00004-of-00004.safetensors").write_bytes(b""), r"not named by"),
    "no index": (lambda f: (f / "model.safetensors.index.json").unlink(), r"there is no model\.safetensors"),
    "index out of the folder": (escape, r"names the shard '\.\./model\.safetensors'"),
    "pickle": (lambda f: (f / "pytorch_model.bin").write_bytes(b""), r"pytorch_model\.bin: a pickle"),
    "token": (lambda f: (f / "tokenizer.json").write_text('"hf_' + "a" * 34 + '"'), r"holds a Hugging Face token"),
    "key": (
        lambda f: (f / "s.json").write_text('"-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkq'),
        r"holds a private key",
    ),
    "cloud": (
        lambda f: (f / "notes.txt").write_text("AKIA" + "Q" * 16),
        r"notes\.txt: holds what looks like an access token",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_incomplete_folder_is_refused_before_anything_is_sent(hub, make_model, fault):
    folder = make_model(shards=3)
    plan(folder, "acme/tiny")
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(FormatError, match=message):
        push(folder, "acme/tiny", endpoint=hub.url)
    assert hub.log == []


@pytest.mark.parametrize("repo", ["a/b/c", "../x", "a b", "", "a--b", "x.git"])
def test_bad_repository_names(make_model, repo):
    with pytest.raises(ConfigError, match="write ORG/NAME"):
        plan(make_model(), repo)


def test_no_login(hub, make_model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(MconvError, match=r"set HF_TOKEN or run `hf auth login`"):
        push(make_model(), "acme/tiny", endpoint=hub.url)
    assert writes(hub) == []


def test_bad_token(hub, make_model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 7)
    with pytest.raises(MconvError, match=r"does not accept the token.*HTTP 401") as caught:
        push(make_model(), "acme/tiny", endpoint=hub.url)
    assert "wrong" not in str(caught.value)
    assert writes(hub) == []


def test_nobody_answers(make_model):
    with pytest.raises(MconvError, match=r"the Hub did not answer.*HF_ENDPOINT"):
        push(make_model(), "acme/tiny", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("whoami", 500, "the Hub failed; try again later"),
        ("repos/create", 403, "the token has no right to do this"),
        ("preupload", 404, "no such repository or revision"),
        ("objects/batch", 403, "the token has no right to do this"),
        ("/storage/", 403, "the token has no right to do this"),
        ("lfs/verify", 404, "no such repository"),
        ("/commit/", 500, "the Hub failed; try again later"),
        ("/commit/", 412, "someone else changed the repository"),
    ],
)
def test_failures_of_the_hub_are_one_line(hub, make_model, part, status, message):
    hub.fail_next(part, status=status, times=99)
    with pytest.raises(MconvError, match=message) as caught:
        push(make_model(), "acme/tiny", endpoint=hub.url)
    text = str(caught.value)
    assert "\n" not in text
    assert f"HTTP {status}" in text
    assert os.environ["HF_TOKEN"] not in text
    made = (hub.store.root / "acme" / "tiny" / "repo.json").exists()
    assert not made or hub.store.commit_at("acme/tiny", "main").files == {}, "nothing half published"


def test_a_passing_failure_is_survived(hub, make_model):
    hub.fail_next("preupload", status=503)
    assert push(make_model(), "acme/tiny", endpoint=hub.url).commit


def test_a_change_in_between_is_not_overwritten(hub, make_model, monkeypatch):
    """Somebody else commits after the look and before the commit."""
    HfApi(endpoint=hub.url).create_repo("tiny")
    real = HfApi.create_commit

    def late(self, *args, **kwargs):
        hub.store.commit("tester/tiny", "main", title="theirs", parent=None, changes=[])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(MconvError, match="push again"):
        push(make_model(), "tiny", endpoint=hub.url)


def test_cards_that_people_wrote_are_kept(hub, make_model, tmp_path):
    folder = make_model()
    push(folder, "tiny", endpoint=hub.url)
    generated = pulled(hub, "tester/tiny", tmp_path / "c")["README.md"]
    (folder / "README.md").write_bytes(generated)
    assert plan(folder, "acme/other").card_is_ours, "a card of ours that nobody edited is made anew"
    assert "acme/other" in plan(folder, "acme/other").card
    (folder / "README.md").write_bytes(generated + b"\nmine\n")
    assert not plan(folder, "acme/other").card_is_ours
    push(folder, "tiny", endpoint=hub.url)
    assert pulled(hub, "tester/tiny", tmp_path / "c")["README.md"] == generated + b"\nmine\n"
    assert plan(folder, "acme/other", overwrite_card=True).card_is_ours


def test_a_card_edited_on_the_hub_is_kept(hub, make_model, tmp_path):
    folder = make_model()
    HfApi(endpoint=hub.url).create_repo("tiny")
    HfApi(endpoint=hub.url).upload_file(repo_id="tester/tiny", path_in_repo="README.md", path_or_fileobj=b"# theirs\n")
    assert push(folder, "tiny", endpoint=hub.url).kept == ("README.md",)
    assert pulled(hub, "tester/tiny", tmp_path / "c")["README.md"] == b"# theirs\n"
    assert push(folder, "tiny", endpoint=hub.url, overwrite_card=True).kept == ()
    assert b"pipeline" in pulled(hub, "tester/tiny", tmp_path / "c")["README.md"]


def test_paths_of_this_machine_are_not_published(hub, make_model, tmp_path):
    folder = make_model()
    manifest = {"mconv": "1", "source": {"name": str(tmp_path / "src")}, "history": [{"step": "merge", "detail": {}}]}
    (folder / "mconv.json").write_text(json.dumps(manifest))
    push(folder, "tiny", endpoint=hub.url)
    got = pulled(hub, "tester/tiny", tmp_path / "c")
    assert json.loads(got["mconv.json"])["source"] == {"name": "src"}
    assert str(tmp_path).encode() not in b"".join(got.values())


def test_the_token_is_nowhere(hub, make_model, caplog, capfd, tmp_path):
    caplog.set_level(logging.DEBUG, logger="mconv")
    done = push(make_model(), "tiny", endpoint=hub.url)
    hub.fail_next("/commit/", status=500)
    with pytest.raises(MconvError) as caught:
        push(make_model("b", seed=2), "tiny", endpoint=hub.url)
    out, err = capfd.readouterr()
    seen = " ".join([out, err, caplog.text, repr(hub.log), repr(done), str(caught.value)])
    seen += repr(pulled(hub, "tester/tiny", tmp_path / "c"))
    assert not re.search(r"hf_[A-Za-z0-9]{10}", seen)
    assert out == "", "only the command line prints"


def test_a_message_that_repeats_the_token_is_cleaned(make_model):
    error = RuntimeError(f"Error while\nuploading with Authorization: Bearer {os.environ['HF_TOKEN']} and hf_abc")
    assert explain(error, repo="a/b") == "Error while uploading with Authorization: [token] and [token]"
