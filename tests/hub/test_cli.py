"""`mconv push` and `mconv pull` as a user types them."""

import json
import subprocess
import sys

import pytest
from cyclopts import App

from mconv.cli.hub import pull, push


@pytest.fixture
def app():
    app = App(result_action="return_value")
    app.command(push)
    app.command(pull)
    return app


def test_dry_run_shows_all_and_contacts_nobody(app, hub, make_model, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = make_model()
    (folder / "notes.log").write_text("private")
    app(["push", str(folder), "acme/tiny", "--dry-run", "--unverified"])
    out = capsys.readouterr().out
    for said in ("model.safetensors", "would go to acme/tiny", "left out: notes.log", "library_name: transformers"):
        assert said in out
    assert hub.log == []


def test_push_and_pull(app, hub, make_model, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = make_model()
    app(["push", str(folder), "acme/tiny", "--private", "--json", "--unverified"])
    assert json.loads(capsys.readouterr().out)["repo"] == "acme/tiny"
    app(["push", str(folder), "acme/tiny", "--unverified"])
    assert f"{hub.url}/acme/tiny" in capsys.readouterr().out
    app(["pull", "acme/tiny", str(tmp_path / "out")])
    assert "whole" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_dry_run_as_json(app, make_model, capsys):
    folder = make_model()
    app(["push", str(folder), "acme/tiny", "--dry-run", "--json", "--unverified"])
    shown = json.loads(capsys.readouterr().out)
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
