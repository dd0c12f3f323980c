"""How long and how much memory a merge takes, beside mergekit on the same recipe and the same cores.

    MCONV_MERGEKIT=PYTHON python benchmarks/blend.py [--model llama3.2-1b] [--methods linear,slerp,ties] [--repeat 3]

PYTHON has mergekit 0.1.5 (`make .venv-peers/mergekit/installed` makes .venv-peers/mergekit/bin/python). A LLaMA of random
bf16 weights and two finetunes of it are made, and each recipe is merged by either program in turn, as a user starts it:
imports count, and so does a `sync -f` of what it wrote. Memory is the peak of the process and its children, sampled a
hundred times a second: anonymous memory, which the machine must hold, in all and over that of a process which only
imports; and resident memory, in which mapped pages of the models count too. What either makes is compared.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from models import MODELS, make

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"own": {"weight": 1.0}, "models": "ab"},
    "slerp": {"shared": {"t": 0.4}, "models": "ab", "base_model": "a"},
    "ties": {"own": {"weight": 0.5, "density": 0.5}, "models": "ab", "base_model": "base"},
}
"""Method -> the models that it merges, their parameters and those of the whole merge."""
OURS = "import mconv.cli.blend, mconv.convert.blend.arithmetic, mconv.convert.blend.models, mconv.convert.engine.rewrite"
THEIRS = "import mergekit.scripts.run_yaml"


@dataclass(frozen=True, slots=True)
class Used:
    """What a process and its children took: seconds, processor seconds, and peaks of memory in MiB."""

    seconds: float
    cpu: float
    anonymous: float
    resident: float


def tree(pid: int) -> Iterator[int]:
    """Yield a process and its children, and theirs."""
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))
    except OSError:  # it has ended
        return


def memory(pid: int) -> tuple[float, float]:
    """Return the anonymous and the resident memory of a process and its children, in MiB."""
    anonymous = resident = 0
    for one in tree(pid):
        try:
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines())
        except OSError:
            continue
        anonymous += int(lines.get("RssAnon", "0").split()[0])
        resident += int(lines.get("VmRSS", "0").split()[0])
    return anonymous / 1024, resident / 1024


def measure(argv: list[str], log: Path, out: Path | None = None) -> Used:
    """Run a command, and have what it wrote to `out` on the disk; return what that took."""
    before, start = os.times(), time.perf_counter()
    peaks = [0.0, 0.0]
    with log.open("w") as said:
        running = subprocess.Popen(argv, stdout=said, stderr=said, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        while running.poll() is None:
            peaks = list(map(max, peaks, memory(running.pid)))
            time.sleep(0.01)
    if running.returncode:
        sys.exit(f"{' '.join(argv)} exited with {running.returncode}:\n{log.read_text()[-2000:]}")
    if out:
        subprocess.run(["sync", "-f", str(out)], check=True)
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Used(seconds, cpu, *peaks)


def recipe(folder: Path, method: str) -> Path:
    """Write mergekit's YAML for a method, and return its file."""
    row = METHODS[method]
    models = [{"model": str(folder / name), "parameters": row.get("own", {})} for name in row["models"]]
    document = {"merge_method": method, "models": models, "parameters": row.get("shared", {}), "dtype": "bfloat16"}
    if "base_model" in row:
        document["base_model"] = str(folder / row["base_model"])
    file = folder / f"{method}.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@dataclass(frozen=True, slots=True)
class Program:
    """A program that merges: how it is started, and a process that imports what it imports."""

    name: str
    start: list[str]
    options: list[str]
    imports: list[str]

    def merge(self, file: Path, out: Path) -> Used:
        """Merge a recipe; return what that took."""
        return measure([*self.start, str(file), *self.options, str(out)], out.with_suffix(".log"), out)


def programs(python: str) -> list[Program]:
    """Return mergekit, which `python` has, and mconv."""
    quiet = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    return [
        Program("mergekit", [str(Path(python).with_name("mergekit-yaml"))], quiet, [python, "-c", _held(THEIRS)]),
        Program("mconv", [sys.executable, "-m", "mconv", "blend"], ["--out"], [sys.executable, "-c", _held(OURS)]),
    ]


def _held(imports: str) -> str:
    """Return a program that imports and stays long enough for its memory to be seen."""
    return f"{imports}\nimport time; time.sleep(0.2)"


def differ(a: Path, b: Path) -> float:
    """Return the share of elements in which two merges differ."""
    from safetensors import safe_open

    different = total = 0
    for file in sorted(a.glob("*.safetensors")):
        with safe_open(file, "pt") as one:
            for key in one.keys():  # noqa: SIM118  # it is no dict
                ours = one.get_tensor(key)
                different += int((ours != _tensor(b, key)).sum())
                total += ours.numel()
    return different / total


def _tensor(folder: Path, key: str) -> "torch.Tensor":
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as one:
            if key in one.keys():  # noqa: SIM118
                return one.get_tensor(key)
    sys.exit(f"{folder} has no {key}")


def run(folder: Path, model: str, methods: list[str], repeat: int, both: list[Program]) -> None:
    """Make the models, merge them and print what that took."""
    sizes = [make(folder / name, model, tuned) for tuned, name in enumerate(("base", "a", "b"))]
    print(f"llama {model}: {sizes[0] / 1e9:.2f} GB in bf16 each")
    base = {each.name: measure(each.imports, folder / "imports.log").anonymous for each in both}
    print(f"{'':<20}{'seconds':>9}{'cpu':>8}{'anon MiB':>10}{'imports':>9}{'over':>8}{'resident':>10}")
    for method in methods:
        file, taken = recipe(folder, method), {each.name: [] for each in both}
        for _ in range(repeat):
            for each in both:
                shutil.rmtree(folder / each.name, ignore_errors=True)
                taken[each.name].append(each.merge(file, folder / each.name))
                show(f"{method}, {each.name}", taken[each.name][-1], base[each.name])
        median = {name: statistics.median(one.seconds for one in all) for name, all in taken.items()}
        peak = {name: max(one.anonymous for one in all) for name, all in taken.items()}
        print(
            f"{method}: mconv takes {median['mconv'] / median['mergekit']:.2f} of mergekit's time (medians), "
            f"{peak['mconv'] / peak['mergekit']:.2f} of its anonymous memory, over the imports "
            f"{(peak['mconv'] - base['mconv']) / (peak['mergekit'] - base['mergekit']):.3f}; "
            f"{differ(folder / 'mconv', folder / 'mergekit'):.2%} of the elements differ",
            flush=True,
        )


def show(name: str, used: Used, imports: float) -> None:
    memory = f"{used.anonymous:10.0f}{imports:9.0f}{used.anonymous - imports:8.0f}{used.resident:10.0f}"
    print(f"{name:<20}{used.seconds:9.2f}{used.cpu:8.2f}{memory}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="llama3.2-1b", help="a 7b takes 70 GB of disk")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--mergekit", default=os.environ.get("MCONV_MERGEKIT"), help="a Python that has mergekit")
    given = parser.parse_args()
    if not given.mergekit:
        parser.error("name a Python that has mergekit: --mergekit, or MCONV_MERGEKIT")
    folder = Path(tempfile.mkdtemp(prefix="mconv-blend-", dir=given.folder))
    try:
        run(folder, given.model, given.methods.split(","), given.repeat, programs(given.mergekit))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
