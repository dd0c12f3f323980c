"""The house: every package is listed, imports point one way, and converting never imports megatron."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "shard": {"shard"},
    "convert": {"shard", "convert"},
    "train": {"shard", "convert", "train"},
    "verify": {"shard", "convert", "train", "verify"},
    "hub": {"shard", "convert", "hub"},
    "cli": {"shard", "convert", "train", "verify", "hub", "cli"},
}
# Within convert/ and train/, from the ground up: each may use those before it, and what is not named here may use all.
CONVERT_FLOORS = [
    "formats",
    "folders",
    "spelling",
    "families dialects",
    "peft",
    "sources",
    "checkpoint",
    "extraction",
    "engine surgery",
    "blend",
]
FLOORS = ["config", "megatron", "launch", "model", "optim", "estimate", "logs", "data", "checkpoints", "loop", "clusters"]
DATA_FLOORS = ["bad_records", "reading tokenizers", "*", "writing", "dedup mixing", "preparing"]
"""`*`: the modules that are not named."""
ANYONE = {"errors", "extras", "spec"}
ONLY = {"megatron": {"train"}, "cyclopts": {"cli"}, "rich": {"cli", "train", "hub"}}


def modules():
    return [(room, path) for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = (
                [alias.name for alias in node.names] if node.module in ("mconv", "mconv.train", "mconv.convert") else [""]
            )
            yield from ((node.lineno, f"{node.module}.{name}".rstrip(".")) for name in names)


def test_every_package_is_listed():
    """All but the loopback Hub, which is of a checkout alone."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(("mconv", *path.parent.relative_to(ROOT).parts)) for _, path in modules()} | {"mconv"}
    assert listed == found - {"mconv.hub.loopback"} < found
    assert all((ROOT / Path(*name.split(".")[1:]) / "__init__.py").is_file() for name in listed)


def test_imports_point_one_way():
    wrong = []
    for room, path in modules():
        for line, name in imports(path):
            top, *rest = name.split(".")
            if top == "mconv" and rest and rest[0] not in MAY_IMPORT[room] | ANYONE:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
            if top in ONLY and room not in ONLY[top]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
            if top == "megatron" and path.parent != ROOT / "train" / "megatron":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name} past train/megatron")
    assert wrong == []


def test_train_is_made_of_rooms_alone():
    assert [path.name for path in (ROOT / "train").glob("*.py")] == ["__init__.py"]


@pytest.mark.parametrize("room, floors", [("convert", CONVERT_FLOORS), ("train", FLOORS), ("train/data", DATA_FLOORS)])
def test_floors_rest_on_those_below(room, floors):
    height = {name: floor for floor, names in enumerate(floors) for name in names.split()}
    others = height.get("*", len(floors))
    start = f"mconv.{room.replace('/', '.')}."
    assert {path.name for path in (ROOT / room).iterdir() if (path / "__init__.py").is_file()} <= height.keys()
    wrong = []
    for path in sorted((ROOT / room).rglob("*.py")):
        own = height.get(path.relative_to(ROOT / room).parts[0].removesuffix(".py"), others)
        for line, name in imports(path):
            module = name.removeprefix(start).split(".")[0]
            if name.startswith(start) and height.get(module, others) > own:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert wrong == []


def test_only_cli_prints_or_exits():
    wrong = []
    for room, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if room != "cli" and name in ("print", "exit", "quit"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {name}")
    assert wrong == []


def loaded(code):
    """The top-level modules that are loaded after running `code` in a new interpreter."""
    script = f"import sys\n{code}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_converting_never_imports_megatron_or_transformers():
    rooms = [p for room, p in modules() if room in ("shard", "convert")]
    names = [".".join(("mconv", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__") for p in rooms]
    assert not {"megatron", "transformers"} & loaded("import " + ", ".join(names))


MISUSE = [["--help"], ["verify", "--help"], ["train", "--help"], ["hf2meg", "--frob"], ["frob"], []]


@pytest.mark.parametrize("argv", MISUSE, ids=str)
def test_help_and_misuse_import_no_torch(argv):
    quiet = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    code = f"{quiet}  from mconv.cli.app import run\n  run({argv})"
    assert not {"torch", "transformers", "megatron"} & loaded(code)


def test_both_stacks_are_pinned_in_one_file():
    """constraints.txt: megatron-core's oldest and newest version by Python, and not another package twice."""
    pins = re.findall(r"^([\w.-]+)==([\w.]+)(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    names = [name for name, _, _ in pins]
    assert [name for name in {*names} if names.count(name) > 1] == ["megatron-core"]
    ours = {version: marker for name, version, marker in pins if name == "megatron-core"}
    assert ours == {"0.16.1": '; python_version < "3.12"', "0.19.2": '; python_version >= "3.12"'}
    page = (ROOT / "docs" / "install.md").read_text()
    assert all(f"\n| {version} | {python} | " in page for version, python in (("0.16.1", "3.11"), ("0.19.2", "3.12")))
