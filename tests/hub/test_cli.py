"""`mconv push` and `mconv pull` as a user types them."""

import io
import json
import subprocess
import sys

import pytest
from cyclopts import App

from mconv.cli.hub import pull, push
from mconv.errors import MconvError
from mconv.hub.faults import check_repo_id
from mconv.hub.push import repository_name

TOKEN = "hf_" + "loopbackTest" * 3


@pytest.fixture
def app():
    app = App(result_action="return_value")
    app.command(push)
    app.command(pull)
    return app


def test_dry_run_shows_all_and_sends_nothing(app, hub, make_model, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = make_model()
    (folder / "notes.log").write_text("private")
    assert app(["push", str(folder), "acme/tiny", "--dry-run", "--unverified"]) == 0
    out = capsys.readouterr().out
    for said in ("model.safetensors", "would go to acme/tiny", "left out: notes.log", "library_name: transformers",
                 "ok  token", "ok  rights", "acme/tiny does not exist; the push makes it, public"):  # fmt: skip
        assert said in out
    assert {line.method for line in hub.log} == {"GET"}
    assert TOKEN not in out


def test_push_and_pull(app, hub, make_model, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = make_model()
    app(["push", str(folder), "acme/tiny", "--private", "--json", "--unverified"])
    assert json.loads(capsys.readouterr().out)["repo"] == "acme/tiny"
    app(["push", str(folder), "acme/tiny", "--unverified"])
    assert f"{hub.url}/acme/tiny" in capsys.readouterr().out
    app(["pull", "acme/tiny", str(tmp_path / "out")])
    assert "complete" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


class Terminal(io.StringIO):
    """A terminal at which somebody types."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("typed", "options", "sent"),
    [("y\n", (), True), ("yes\n", (), True), ("\n", (), False), ("n\n", (), False), ("", (), False),
     (None, ("--yes",), True), (None, (), False)],
)  # fmt: skip
def test_a_name_that_nobody_gave_is_the_owners_and_the_folders_and_must_be_confirmed(
    app, hub, make_model, capsys, monkeypatch, typed, options, sent
):
    """`typed`: at a terminal; None: there is none."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n") if typed is None else Terminal(typed))
    folder = make_model("my model!")
    push = ["push", str(folder), "--unverified", *options]
    if sent:
        app(push)
        assert f"{hub.url}/tester/my-model " in capsys.readouterr().out
    else:
        with pytest.raises(
            MconvError, match="not confirmed, and nothing was sent" if typed is not None else "give ORG/NAME"
        ):
            app(push)
    assert any("create" in str(line) or "commit" in str(line) for line in hub.log) == sent
    if typed is None and not sent:
        assert hub.log == [], "nobody could confirm: nobody is contacted"


def test_a_dry_run_shows_the_name_that_would_be_proposed(app, hub, make_model, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = make_model()
    app(["push", str(folder), "--dry-run", "--unverified"])
    assert "would go to tester/model" in capsys.readouterr().out
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MconvError, match="would be refused, and nothing was sent: see network above"):
        app(["push", str(folder), "--dry-run", "--unverified"])
    assert "would go to model" in (out := capsys.readouterr().out) and "its owner is not known" in out
    assert "NO  network     the Hub did not answer" in out


@pytest.mark.parametrize(
    ("folder", "name"),
    [("a b", "a-b"), ("--x..y", "x.y"), ("x.git", "x"), ("m" * 200, "m" * 96), ("llama2-7b-run-iter_500-hf", None)],
)
def test_a_folder_name_becomes_one_that_the_hub_takes(tmp_path, folder, name):
    found = repository_name(tmp_path / folder)
    check_repo_id(found)
    assert found == (name or folder)


def test_dry_run_as_json(app, hub, make_model, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = make_model()
    assert app(["push", str(folder), "acme/tiny", "--dry-run", "--json", "--unverified"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ready"] and {check["name"]: check["passed"] for check in shown["checks"]} == dict.fromkeys(
        ("folder", "token", "name", "repository", "rights", "proof"), True
    )
    assert shown["total_bytes"] == sum(file["size"] for file in shown["files"])
    assert {file["name"] for file in shown["files"]} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip


def test_the_token_is_no_argument(app, capsys):
    for command in ("push", "pull"):
        app([command, "--help"])
        assert "--token" not in capsys.readouterr().out


def test_start_is_light():
    code = "import sys, mconv.cli.hub; print([m for m in ('torch', 'huggingface_hub', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
