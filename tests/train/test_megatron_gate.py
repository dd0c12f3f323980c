"""megatron-core missing, too old, too new, broken or mixed: one sentence and exit code 2, for every command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from judge import convert
from tiny import make_llama

from mconv.train.estimate import machine
from mconv.train.megatron import gate
from mconv.train.megatron.gate import UnfitCore

pytestmark = pytest.mark.once

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = pytest.importorskip("tomli")

PACKAGE = 'MAJOR = {}\nMINOR = {}\nPATCH = {}\nPRE_RELEASE = "{}"\nraise SystemExit("package_info.py was run")\n'


def fake(folder, version="0.18.2", *, pre="", code="", metadata=None):
    """A megatron-core of some version on disk, whose import runs `code`; with `metadata`, as if pip had installed it."""
    core = folder / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "package_info.py").write_text(PACKAGE.format(*version.split("."), pre))
    (core / "__init__.py").write_text(code)
    if metadata:
        info = folder / f"megatron_core-{metadata}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: megatron-core\nVersion: {metadata}\n")
    return folder


def unload(monkeypatch):
    """As if no test of this process had imported megatron-core: a loaded module is found where it was loaded from."""
    for name in [name for name in sys.modules if name.split(".")[0] == "megatron"]:
        monkeypatch.delitem(sys.modules, name)


def mconv(*argv, path, **env):
    """(exit code, stdout and stderr) of a command of mconv's that finds `path` before all else."""
    code = "import sys; from mconv.cli.app import run; sys.exit(run(sys.argv[1:]))"
    around = {name: value for name, value in os.environ.items() if name != gate.ANY}
    ours = os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**around, "PYTHONPATH": ours, **env}
    ran = subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, env=env)
    return ran.returncode, ran.stdout + ran.stderr


def only_sentence(output):
    """The one line with which mconv ended; fails at a traceback."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if line.startswith("mconv: ")]
    assert len(lines) == 1 and output.splitlines()[-1] == lines[0], output
    return lines[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model of Hugging Face and its conversion."""
    folder = tmp_path_factory.mktemp("pair")
    return make_llama(folder / "hf"), convert(folder / "hf", folder / "m", tp=2)


VERSIONS = {
    ("0.16.0", ""): "older than what mconv runs on, >=0.16.1,<0.20: pip install 'megatron-core>=0.16.1,<0.20'",
    ("0.9.2", ""): "older than",
    ("0.16.1", ""): None,
    ("0.17.0", "rc2"): None,
    ("0.19.9", ""): None,
    ("0.20.0", "rc0"): "newer than what mconv is tested with, >=0.16.1,<0.20: .*or set MCONV_ANY_CORE=1 to try it",
    ("1.0.0", ""): "newer than",
}


@pytest.mark.parametrize("version, pre", VERSIONS, ids=str)
def test_a_version_is_judged_by_its_release(tmp_path, monkeypatch, version, pre):
    monkeypatch.delenv(gate.ANY, raising=False)
    problem = gate.unfit(gate.Core(version + pre, tmp_path))
    wanted = VERSIONS[version, pre]
    assert (
        problem is None if wanted is None else re.search(wanted, problem) and f"megatron-core {version}{pre}" in problem
    )


@pytest.mark.parametrize("version", ["0.18.0+abc123", "0.18.0.dev3", "0.18"])
def test_what_follows_the_release_does_not_count(tmp_path, version):
    assert gate.unfit(gate.Core(version, tmp_path)) is None


def test_a_newer_one_may_be_tried_and_an_older_one_not(tmp_path, monkeypatch):
    monkeypatch.setenv(gate.ANY, "1")
    assert gate.unfit(gate.Core("0.21.0", tmp_path)) is None
    assert "older" in gate.unfit(gate.Core("0.15.0", tmp_path))


def test_the_version_is_that_of_the_code_that_would_be_imported(tmp_path, monkeypatch):
    """A checkout has no metadata, and comes first; nothing of it is run."""
    monkeypatch.syspath_prepend(fake(tmp_path / "checkout", "0.17.0", pre="rc2"))
    unload(monkeypatch)
    assert gate.found() == gate.Core("0.17.0rc2", tmp_path / "checkout/megatron/core")


def test_the_range_is_that_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = [one for extra in project["optional-dependencies"].values() for one in extra if "megatron-core" in one]
    assert wanted and all(one == f"megatron-core{gate.RANGE}" for one in wanted)


TRAIN = "train --load {hf} --mock-data --seq-length 16 --train-iters 1 --micro-batch-size 1 --global-batch-size 1 --lr 1"
COMMANDS = {
    "train": TRAIN,
    "train on two ranks": f"{TRAIN} --tp 2",
    "verify": "verify {hf} {m} --logits",
}


def words(command, pair, out):
    return COMMANDS[command].format(hf=pair[0], m=pair[1], out=out).split()


@pytest.mark.parametrize("command", ["train", "verify"])
def test_an_old_one_is_one_sentence_before_anything_is_imported(tmp_path, pair, command):
    path = fake(tmp_path / "old", "0.15.3", code="raise SystemExit('was imported')")
    code, output = mconv(*words(command, pair, tmp_path / "out"), path=path)
    said = f"({path}/megatron/core) is older than what mconv runs on, {gate.RANGE}: {gate.INSTALL}"
    assert (code, only_sentence(output)) == (2, f"mconv: megatron-core 0.15.3 {said}")


BROKEN = {
    "import no_such_package": "it needs the package no_such_package, which is not installed: pip install no_such_package",
    "import megatron_nowhere": "No module named 'megatron_nowhere'; its files do not fit",
    "from os import no_such_name": "ImportError: cannot import name 'no_such_name' from 'os'",
    "import os; os.no_such_name": "AttributeError: module 'os' has no attribute",
    "raise OSError('libcudart.so.12: cannot open')": "OSError: libcudart.so.12: cannot open",
}
"""What its import runs into: a missing dependency, halves of an upgrade, a library that does not load."""


@pytest.mark.parametrize("fault", BROKEN)
def test_one_that_cannot_be_imported_names_what_failed(tmp_path, fault):
    with pytest.raises(UnfitCore, match=re.escape(BROKEN[fault])) as error, gate.importing(gate.Core("0.18.2", tmp_path)):
        exec(fault, {})
    assert f"megatron-core 0.18.2 ({tmp_path}) cannot be imported: " in str(error.value) and "\n" not in str(error.value)


def test_a_newer_one_that_is_tried_and_fails_says_which_are_tested(tmp_path):
    newer = gate.Core("0.21.0", tmp_path)
    with pytest.raises(UnfitCore, match="newer than what mconv is tested with") as error, gate.importing(newer):
        exec("from os import no_such_name", {})
    assert "no_such_name" in str(error.value) and str(error.value).endswith(gate.INSTALL)


def test_a_half_finished_upgrade_is_known_by_its_metadata(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(fake(tmp_path / "mixed", "0.19.2", metadata="0.18.2"))
    said = "is a mixture: its metadata says 0.18.2, its code 0.19.2; install it anew: pip install --force-reinstall"
    assert said in gate.unfit(gate.Core("0.19.2", tmp_path / "mixed/megatron/core"))
    assert gate.unfit(gate.Core("0.19.2", tmp_path / "checkout/megatron/core")) is None  # whose metadata is another's


@pytest.mark.parametrize("command", ["verify", "train on two ranks"])
def test_a_command_that_cannot_import_it_says_so_from_its_ranks_too(tmp_path, pair, command):
    path = fake(tmp_path / "broken", "0.18.2", code="import no_such_package")
    code, output = mconv(*words(command, pair, tmp_path), path=path)
    assert code == 2 and "it needs the package no_such_package, which is not installed" in only_sentence(output)


@pytest.mark.parametrize("command", ["train", "verify"])
def test_without_it_the_extra_is_named(tmp_path, pair, command):
    """`megatron` is there, but no `megatron.core` in it: as in an install that has none, whatever this one has."""
    (tmp_path / "none" / "megatron").mkdir(parents=True)
    (tmp_path / "none" / "megatron" / "__init__.py").write_text("")
    code, output = mconv(*words(command, pair, tmp_path / "out"), path=tmp_path / "none")
    assert code == 2 and re.search(r" needs megatron-core: pip install 'mconv\[train\]'", only_sentence(output))


def test_comparing_tensors_needs_none(tmp_path, pair):
    path = fake(tmp_path / "old", "0.15.3", code="raise SystemExit('was imported')")
    code, output = mconv("verify", *pair, "--digests", path=path)
    assert code == 0, output


def test_doctor_tells_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(fake(tmp_path / "old", "0.15.3"))
    unload(monkeypatch)
    assert re.search("megatron-core 0.15.3 .* is older than", machine.core_problem())
