"""A plain install: what each extra adds is one table, and without it a command says which extra it wants."""

import ast
import re
import sys
from pathlib import Path

import pytest

from mconv import extras
from mconv.errors import MconvError
from mconv.train.data.reading import formats

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = re.compile(r"mconv\[(.*)\]")


def packages(extra):
    """Return the packages of an extra with their ranges, those of the extras that it takes in among them."""
    found = {}
    for requirement in PROJECT["optional-dependencies"][extra]:
        if taken := OURS.fullmatch(requirement):
            found |= {name: span for part in taken[1].split(",") for name, span in packages(part).items()}
        else:
            name, span = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
            found[name] = span
    return found


@pytest.mark.parametrize("extra", extras.EXTRAS)
def test_the_table_of_extras_is_pips(extra):
    assert {extras.NAMES.get(module, module) for module in extras.EXTRAS[extra]} == packages(extra).keys()


def test_the_ranges_are_pips():
    spans = {name: span for extra in extras.EXTRAS for name, span in packages(extra).items()}
    for module, (low, high) in extras.RANGES.items():
        assert spans[extras.NAMES.get(module, module)] == f">={low},<{high}"


def test_what_a_command_asks_for_is_in_the_extra_that_it_names():
    """Calls of `need` with names in their text, and those that it is asked for by a table of their own."""
    asked = set()
    for path in (path for part in ("cli", "train", "verify", "hub") for path in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "extras.need":
                names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                asked |= {(names[0], module) for module in names[1:] or extras.EXTRAS[names[0]]}
    assert {("train", "psutil"), ("data", "transformers"), ("hub", "huggingface_hub"), ("plot", "matplotlib")} <= asked
    assert [pair for pair in asked if pair[1] not in extras.EXTRAS[pair[0]]] == []
    assert formats.packages() <= {*extras.EXTRAS["data"]}


def test_a_plain_install_has_none_of_them():
    """But for the Hub's client, of which an extra asks for more."""
    plain = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert "torch" in plain and not plain & {name for extra in {*extras.EXTRAS} - {"hub"} for name in packages(extra)}


def test_all_that_is_missing_is_one_sentence(monkeypatch):
    monkeypatch.setattr(extras, "found", lambda module: module != "psutil" and module != "megatron.core")
    said = "comparing logits needs megatron-core and psutil: pip install 'mconv[train]'"
    with pytest.raises(MconvError, match=re.escape(said)):
        extras.need("train", "megatron.core", "psutil", "transformers", to="comparing logits")
    extras.need("train", "transformers", to="comparing logits")


@pytest.mark.parametrize("here", ["4.57.1", "6.0"])
def test_a_package_of_another_version_is_named_with_both(monkeypatch, here):
    monkeypatch.setattr(extras, "version", lambda package: here)
    said = f"comparing logits needs transformers>=5,<6 ({here} is installed): pip install 'mconv[train]'"
    with pytest.raises(MconvError, match=re.escape(said)):
        extras.need("train", "transformers", to="comparing logits")


@pytest.mark.parametrize("here", ["5.0.0", "5.24.0.dev0"])
def test_a_package_of_a_fitting_version_is_none_to_name(monkeypatch, here):
    monkeypatch.setattr(extras, "version", lambda package: here)
    extras.need("train", "transformers", to="comparing logits")


def test_a_module_of_a_package_that_is_not_there_is_not_found():
    assert extras.found("email.mime") and not extras.found("no_such.module") and not extras.found("no_such")
