"""What `make wheel` builds: whole, without what is of a checkout alone, and installed it leaves a container as it was."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import tiny

import mconv
from mconv import extras

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent
NOT_SHIPPED = {"hub/loopback"}
PARTS = ("shard", "convert", "train", "verify", "hub", "cli")
SITES = [Path(p) for p in sys.path if p.endswith("site-packages") and not (Path(p) / "mconv").exists()]
"""Where the packages are that this interpreter sees, but for mconv."""
OTHERS = ("PYTHON", "MAKE", "PIP_")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
ENVIRONMENT["PIP_CONFIG_FILE"] = os.devnull  # no index, and no folder of wheels, but what a test names


def run(*argv, **options):
    """Run a program that must succeed; return what it printed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=ENVIRONMENT, **options)
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(python, *argv):
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, *argv)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Build the wheel and the sdist by the Makefile, with this interpreter; return their folder."""
    folder = tmp_path_factory.mktemp("built") / "dist"
    run("make", "-s", "wheel", "-o", ".venv/test", f"BIN={SCRIPTS}", f"DIST={folder}", cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def files(dist, wheel):
    """Return what the wheel and the sdist hold: name -> bytes."""
    (sdist,) = dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(sdist) as archive:
        members = {os.path.normpath(m.name): m for m in archive.getmembers() if m.isfile()}
        return {"wheel": inside, "sdist": {name: archive.extractfile(m).read() for name, m in members.items()}}


def sources():
    """Return the modules and data files of the packages, by their place below the root."""
    found = [path for part in PARTS for path in (ROOT / part).rglob("*") if path.suffix in (".py", ".jinja", ".json")]
    names = {path.relative_to(ROOT).as_posix() for path in (*found, *ROOT.glob("*.py"), ROOT / "py.typed")}
    return {name for name in names if not name.startswith(tuple(f"{part}/" for part in NOT_SHIPPED))}


def test_the_wheel_holds_the_packages_and_nothing_else(files):
    own = {name for name in files["wheel"] if ".dist-info/" not in name}
    assert own == {f"mconv/{name}" for name in sources()} and "mconv/verify/report.schema.json" in own
    rest = {name.split("/", 1)[1] for name in files["wheel"]} - {name.split("/", 1)[1] for name in own}
    assert rest == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


def test_the_sdist_holds_what_builds_the_wheel_and_nothing_else(files):
    names = {name.split("/", 1)[1] for name in files["sdist"]}
    beside = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert {name for name in names if not name.startswith("mconv.egg-info/")} == sources() | beside


@pytest.mark.parametrize("which", ["wheel", "sdist"])
def test_no_server_no_test_data_and_no_path_of_this_machine_is_in_it(files, which):
    assert len(files[which]) > 200
    assert [name for name in files[which] if re.search(r"loopback|golden|(^|/)(tests?|benchmarks|examples)/", name)] == []
    here = [str(ROOT), str(ROOT.resolve()), str(Path.home()), sys.prefix]
    assert [(name, path) for name, data in files[which].items() for path in here if path.encode() + b"/" in data] == []
    served = re.compile(rb"class \w+\(.*HTTPServer|ThreadingHTTPServer\(")
    assert [name for name, data in files[which].items() if served.search(data)] == []


def test_the_metadata_say_what_pyproject_says(files):
    (text,) = (data for name, data in files["wheel"].items() if name.endswith("/METADATA"))
    found = Parser().parsestr(text.decode())
    plain = [need for need in found.get_all("Requires-Dist") if "extra ==" not in need]
    assert found["Version"] == mconv.__version__ and found["Requires-Python"] == "<3.14,>=3.10"
    assert not [need for need in plain if re.match(r"megatron|transformers|sentencepiece|protobuf|psutil", need)]
    assert {"train", "data", "log", "plot"} <= {*found.get_all("Provides-Extra")}


# ---- installed -------------------------------------------------------------------------------------------------------
def environment(folder):
    """Make a virtual environment without pip; return its interpreter and its site-packages."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/*/site-packages")
    return folder / "bin" / "python", site


@pytest.fixture(scope="module")
def plain(wheel, tmp_path_factory):
    """Return the programs of an environment with the wheel and what it needs, and with none of what an extra brings."""
    folder = tmp_path_factory.mktemp("plain")
    python, site = environment(folder / "venv")
    (folder / "packages").mkdir()
    brought = {
        extras.NAMES.get(module, module).lower()
        for extra, modules in extras.EXTRAS.items()
        for module in modules
        if extra != "hub"
    }
    hidden = re.compile(rf"({'|'.join(brought)}|google|megatron)\b|__editable__|.*\.(pth|egg-link)$|_?_?mconv")
    for path in (path for folder_ in SITES for path in folder_.iterdir()):
        if not hidden.match(path.name.lower().replace("_", "-").replace("--editable--", "__editable__")):
            link = folder / "packages" / path.name
            if not link.exists():
                link.symlink_to(path)
    (site / "packages.pth").write_text(f"{folder / 'packages'}\n")
    pip(python, "install", "--quiet", "--no-index", str(wheel))  # all that it needs is there, or this fails
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    tiny.make_llama(folder / "hf")
    return folder


def test_the_installed_program_is_the_wheels(plain, work):
    assert run(plain / "mconv", "--version", cwd=work).strip() == mconv.__version__
    code = "import mconv, sys; print(mconv.__file__); print(*sys.path, sep='\\n')"
    file, *paths = run(plain / "python", "-c", code, cwd=work).splitlines()
    assert Path(file).is_relative_to(plain.parent) and str(ROOT) not in paths


def test_the_installed_program_converts_and_verifies(plain, work):
    program = plain / "mconv"
    assert "torch_dist tp 2" in run(program, "hf2meg", "hf", "--out", "meg", "--tp", "2", cwd=work)
    assert run(program, "verify", "hf", "meg", "--digests", cwd=work).startswith("SAME: hf (hf) and meg/release")


def test_the_installed_program_says_what_more_it_needs(plain, work):
    done = subprocess.run(
        [plain / "mconv", "train", "--load", "hf", "--data", "d", "--train-iters", "1", "--lr", "1"],
        capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=work,
    )  # fmt: skip
    needs = "mconv: mconv train needs megatron-core and psutil: pip install 'mconv[train]'\n"
    assert (done.returncode, done.stderr) == (2, needs)


# ---- in a container --------------------------------------------------------------------------------------------------
CONTAINER = {"torch": "2.9.0a0+50eac811a6.nv25.9", "megatron-core": "0.18.2"}
"""Versions as NVIDIA's containers have them: a torch that calls itself a pre-release."""


def noted(site, versions):
    """Note packages as installed, without their code: pip reads no more of them."""
    for name, version in versions.items():
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (folder / "INSTALLER").write_text("pip\n")
        (folder / "RECORD").write_text("")


def needed(wheel, extra):
    """Return what the wheel needs, with an extra, as this environment has it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        needs = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist")
    wanted = {"", extra, "hf" if extra == "train" else extra}
    parts = [re.match(r"([\w-]+)([^;]*)(?:; extra == \"(\w+)\")?", need).groups() for need in needs]
    names = {name for name, _, brought in parts if (brought or "") in wanted and name != "mconv"}
    return {name: importlib.metadata.version(name) for name in names}


@pytest.mark.parametrize("extra", ["", "train"])
def test_an_install_in_a_container_changes_nothing_there(wheel, extra, tmp_path):
    python, site = environment(tmp_path / "venv")
    noted(site, {**needed(wheel, extra), **CONTAINER})
    ask = f"{wheel}[{extra}]" if extra else str(wheel)
    report = tmp_path / "report.json"
    pip(python, "install", "--no-index", "--dry-run", "--report", str(report), ask)
    brought = [step["metadata"]["name"] for step in json.loads(report.read_text())["install"]]
    assert brought == ["mconv"]


@pytest.mark.parametrize(("change", "extra"), [({"torch": "2.5.1"}, ""), ({"transformers": "4.57.1"}, "train")])
def test_a_container_with_older_packages_is_not_left_as_it_was(wheel, change, extra, tmp_path):
    """What the test above holds can fail: here pip looks for another version, of which there is none at hand."""
    python, site = environment(tmp_path / "venv")
    noted(site, {**needed(wheel, "train"), **CONTAINER, **change})
    ask = f"{wheel}[{extra}]" if extra else str(wheel)
    argv = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--dry-run", ask]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 1 and f"No matching distribution found for {next(iter(change))}" in done.stderr
