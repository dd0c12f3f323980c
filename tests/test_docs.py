"""Every `mconv` command in the documents and the examples is one that the command line takes."""

import ast
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mconv.cli.app import app

ROOT = Path(__file__).parents[1]
PARTS = ["shard", "convert", "train", "verify", "hub", "cli"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OUTSIDE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]
"""Pages that are not of the site, whose links `mkdocs build --strict` does not check."""


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


def unspaced(text):
    """Return the numbers of the lines that begin a list or a table without an empty line above: they render as text."""
    lines = ["", *re.sub(r"```.*?```", lambda found: "\n" * found[0].count("\n"), text, flags=re.S).splitlines()]
    starts = {"list": re.compile(r"([-*]|\d+\.) "), "table": re.compile(r"\|")}
    return [
        number
        for number, (above, line) in enumerate(itertools.pairwise(lines), 1)
        for start in starts.values()
        if start.match(line) and above.strip() and not re.match(r"\s|<!--", above) and not start.match(above)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_lists_and_tables_stand_after_an_empty_line(page):
    assert unspaced(page.read_text()) == []


def test_a_list_and_a_table_right_below_a_text_are_found():
    assert unspaced("Text:\n- a\n- b\n\nText:\n| a |\n| --- |\n\nText\n\n1. a\n   more\n2. b\n") == [2, 6]


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda p: p.parent.name + "/" + p.name)
def test_the_links_of_a_page_outside_the_site_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_option_tables_are_those_of_the_code():
    """docs/from-megatron-lm.md and docs/option-names.md are what `python docs/options.py` makes of them."""
    loaded = importlib.util.spec_from_file_location("options_page", ROOT / "docs" / "options.py")
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    pages = [page.read_text() for page in module.PAGES]
    assert [module.filled(page) for page in pages] == pages, "run `python docs/options.py` and commit what it writes"
    assert "".join(pages).count("<!-- end -->") == 7


def test_the_recipes_are_what_plan_suggests():
    """docs/which-layout.md is what `python docs/layouts.py` makes of it."""
    loaded = importlib.util.spec_from_file_location("layouts_page", ROOT / "docs" / "layouts.py")
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    page = module.PAGE.read_text()
    assert module.filled(page) == page, "run `python docs/layouts.py` and commit what it writes"
    assert page.count("<!-- end -->") == 2 and "| 70B | 64 x 80 GB |" in page


def messages():
    """Return every text of the program's code, `...` in place of what is filled in."""
    for file in (file for part in PARTS for file in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def quoted(page):
    """Return the messages that a page of troubles quotes: the code in the first column of its tables."""
    first = [row.split(" | ")[0] for row in page.splitlines() if row.startswith("| `")]
    return [text for cell in first for text in re.findall(r"`([^`]+)`", cell)]


def unknown(quotes, texts):
    """Return the quotes of which the parts between `...` are in no text, in their order."""
    return [quote for quote in quotes if not any(in_order(quote.split("..."), text) for text in texts)]


def in_order(parts, text):
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_the_messages_under_troubleshooting_are_the_programs():
    """Where a message was changed on purpose, docs/troubleshooting.md follows it."""
    quotes = quoted((ROOT / "docs" / "troubleshooting.md").read_text())
    assert len(quotes) > 40 and unknown(quotes, list(messages())) == []


def test_a_message_that_no_code_has_is_found():
    texts = ["... is not empty; name ...", "no room"]
    assert unknown(["... is not empty", "no roof", "name ... is not empty"], texts) == [
        "no roof",
        "name ... is not empty",
    ]


STUBS = """
mconv() { printf '%s\\n' "$@" '--end--' >> "$COMMANDS"; }
python() { :; }; grep() { :; }; kill() { :; }
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


def test_the_commands_of_the_readme_are_what_ci_runs():
    ci, readme = (ROOT / ".ci" / "run").read_text(), (ROOT / "README.md").read_text()
    assert {"make demo", "make test", "make test-stack"} <= {*ci.splitlines()} and "\nmake check docs & checks=$!\n" in ci
    assert all(f"\n{command} " in readme for command in ("make demo", "make test", "make test-stack"))
