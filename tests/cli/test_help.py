"""`--help` of train and plan: an overview, one section, one option, everything."""

import re
import subprocess
import sys

import pytest

from mconv.cli import sections
from mconv.cli.app import app, run
from mconv.train.config import SECTIONS, help_of

pytestmark = pytest.mark.once


@pytest.fixture
def helped(capsys, monkeypatch):
    """The text that a command line prints; its exit code must be 0."""
    monkeypatch.setenv("COLUMNS", "122")

    def text(line: str) -> str:
        assert run(line.split()) == 0
        return capsys.readouterr().out

    return text


@pytest.mark.parametrize("command", ["train", "plan", "bench"])
def test_the_overview_fits_on_two_screens_and_names_every_section(command, helped):
    text = helped(f"{command} --help")
    assert all(f"\n  {name} " in text for name in sections.BY_NAME) and len(text.splitlines()) < 90
    assert "--tp N" in text and "--hysteresis" not in text and f"mconv {command} --help data" in text
    assert helped(f"{command} run.yaml --lr 1 -h") == text


def test_examples_of_the_overview_parse():
    for lines in sections.EXAMPLES.values():
        for line in lines:
            app.parse_args(line.split()[1:], exit_on_error=False, print_error=False)


def test_the_common_options_are_options():
    assert {name for names in sections.COMMON.values() for name in names.split()} <= {*help_of()}


def test_every_option_is_in_one_section_and_everything_has_all(helped):
    found = [helped(f"train --help {name}") for name in sections.BY_NAME]
    flags = {f"--{name.replace('_', '-')}" for name in help_of()}
    for flag in flags:
        assert sum(bool(re.search(rf"\n  {flag}[\s,]", text)) for text in found) == 1, flag
    assert len(found) == len(SECTIONS)
    everything = helped("train --help all")
    assert not [flag for flag in flags if flag[:24] not in everything]  # a narrow terminal breaks longer ones
    assert "--presets" in helped("plan --help all")


def test_one_section_is_that_section_alone(helped):
    text = helped("train --help data")
    assert (
        text.startswith("data: files") and "--seq-length N" in text and "gpt|instruction" in text and "--lr" not in text
    )
    assert "--lora-rank" in (both := helped("plan --help data lora --json")) and both.startswith("data: files")
    assert helped("train --help seq-length") == helped("plan --help seq_length") and "--data" not in helped(
        "train --help lr"
    )


def test_the_plans_own_options_are_in_its_overview(helped):
    text = helped("plan --help")
    assert all(
        flag in text
        for flag in ("--world-size, --gpus N", "--gpu-memory X", "--suggest ", "--tflops X", "--presets ", "--json ")
    )


def test_an_unknown_section_is_answered_with_the_list(capsys):
    assert run(["train", "--help", "scedule"]) == 2
    said = capsys.readouterr()
    assert "no section 'scedule'; did you mean schedule? sections: start, model, data" in said.err and not said.out


def test_help_of_other_commands_is_as_it_was(helped):
    assert "Usage: mconv hf2meg" in helped("hf2meg --help") and "--out" in helped("meg2hf --help")
    assert sections.asked(["train", "run.yaml"]) is None and sections.asked(["train", "--", "--help"]) is None


def test_help_needs_neither_torch_nor_rich():
    code = (
        "import sys; from mconv.cli.app import run; assert run(['train', '--help', 'data']) == 0; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
