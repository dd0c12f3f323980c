"""How long and how much memory a conversion takes, against `cp -r` of the same bytes just before it.

    python benchmarks/convert.py [--model 7b] [--folder DIR] [--repeat 1]

Makes a LLaMA of random bf16 weights, sharded as the hub has it, and converts it to each format and back. Each step is a
process of its own; its clock starts when its imports are done. Both it and `cp` end with the bytes on the disk (`cp` by
`sync -f`, we by fsync), and both find of the source in the page cache what the step before has left there. Anonymous
memory is what the machine must hold, over that of a process which only imports; mapped pages are the page cache's.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from models import MODELS, make

WATCH = """
import resource, sys, threading, time
def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
peak = [0, 0]
def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return [int(lines[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile")]
def watch():
    while True:
        peak[:] = map(max, peak, memory())
        time.sleep(0.01)
{imports}
base, spent = memory(), cpu()
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
{work}
print("MEASURED", time.perf_counter() - start, cpu() - spent, *(max(p, n) - b for p, n, b in zip(peak, memory(), base)))
"""
CONVERT = """from pathlib import Path
from mconv.convert.engine import plan, rewrite
from mconv.convert.checkpoint.open import open_checkpoint"""


def convert(source: Path, out: Path, **options: object) -> tuple[str, str]:
    """(imports, work) of one conversion."""
    planned = f"plan.make(open_checkpoint(Path({str(source)!r})), Path({str(out)!r}), **{options!r})"
    return CONVERT, f"rewrite.rewrite({planned}, step='bench')"


def measure(imports: str, work: str) -> list[float]:
    """Seconds, processor seconds, MiB of anonymous and of mapped memory of one step, in a process of its own."""
    code = WATCH.format(imports=imports, work=work)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    _, *numbers = next(line for line in done.stdout.splitlines() if line.startswith("MEASURED")).split()
    return [float(number) for number in numbers]


def copy(source: Path, out: Path) -> tuple[float, float, float]:
    """Seconds of `cp -r`, then of `cp -r` with `sync -f`, and processor seconds of both. The copy is removed."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    copied = time.perf_counter() - start
    subprocess.run(["sync", "-f", str(out)], check=True)
    synced, after = time.perf_counter() - start, os.times()
    shutil.rmtree(out)
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return copied, synced, used


def steps(folder: Path) -> Iterator[tuple[str, Path, Path, dict[str, object]]]:
    """Name, source, target and options of each conversion."""
    source, dist, ranks = folder / "hf", folder / "torch_dist", folder / "mp_rank"
    yield "HF -> torch_dist", source, dist, {"format": "torch_dist"}
    yield "torch_dist -> HF", dist, folder / "back", {"format": "hf"}
    yield "HF -> mp_rank tp 2 x pp 2", source, ranks, {"format": "mp_rank", "tp": 2, "pp": 2}
    yield "mp_rank tp 2 x pp 2 -> HF", ranks, folder / "back", {"format": "hf"}
    yield "mp_rank tp 2 x pp 2 -> torch_dist tp 4", ranks, folder / "wide", {"format": "torch_dist", "tp": 4}


def run(folder: Path, model: str, repeat: int) -> None:
    size = make(folder / "hf", model)
    print(f"llama {model}: {size / 1e9:.2f} GB in bf16")
    print(f"{'':<40}{'cp':>8}{'cp+sync':>8}{'mconv':>8}{'ratio':>7}{'GB/s':>6}{'cpu cp':>8}{'mconv':>7}{'anon MiB':>10}"
          f"{'mapped':>8}")  # fmt: skip
    for _ in range(repeat):
        for name, source, target, options in steps(folder):
            copied, synced, cpu = copy(source, folder / "copy")
            seconds, ours, anonymous, mapped = measure(*convert(source, target, **options))
            times = f"{copied:8.2f}{synced:8.2f}{seconds:8.2f}{seconds / synced:7.2f}{size / seconds / 1e9:6.2f}"
            print(f"{name:<40}{times}{cpu:8.2f}{ours:7.2f}{anonymous:10.0f}{mapped:8.0f}", flush=True)
            for spent in {"back": [target], "wide": [target, source], "torch_dist": [], "mp_rank": []}[target.name]:
                shutil.rmtree(spent)
            if source.name == "torch_dist":
                shutil.rmtree(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="7b", help="13b needs 60 GB of disk, 7b 30")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    parser.add_argument("--repeat", type=int, default=1)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mconv-bench-", dir=given.folder))
    try:
        run(folder, given.model, given.repeat)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
