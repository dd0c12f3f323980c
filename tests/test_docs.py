"""Every `mconv` command in the documents and the examples is one that the command line takes."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mconv.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    """The `mconv` lines of a page's shell blocks, continuations joined, comments dropped."""
    for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "mconv" in words[:6]:
                yield words[words.index("mconv") + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_commands_of_a_page_parse(page):
    found = list(commands(page))
    assert found, f"{page.name} shows no command"
    for argv in found:
        app.parse_args(argv, exit_on_error=False, print_error=False)


STUBS = """
mconv() { printf '%s\\n' "$@" '--end--' >> "$COMMANDS"; }
python() { :; }; grep() { :; }; kill() { :; }; wait() { :; }
"""


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.sh")), ids=lambda p: p.stem)
def test_the_commands_of_an_example_parse(script, tmp_path):
    """The script runs to its end, with stand-ins for what it calls: what it would run is what is looked at."""
    (tmp_path / "stubs").write_text(STUBS)
    env = {**os.environ, "BASH_ENV": str(tmp_path / "stubs"), "COMMANDS": str(tmp_path / "commands")}
    subprocess.run(["bash", script, tmp_path / "out"], check=True, env=env, stdout=subprocess.DEVNULL)
    found = (tmp_path / "commands").read_text().split("--end--\n")[:-1]
    assert len(found) >= 5
    for argv in found:
        app.parse_args(argv.splitlines(), exit_on_error=False, print_error=False)


def test_the_test_command_of_the_readme_is_what_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in (ROOT / "README.md").read_text() and "make test" in ci and "make check" in ci
