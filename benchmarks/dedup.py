"""Deduplication of one planted corpus by mconv and by the programs that people use: what each finds, and how fast.

    python benchmarks/dedup.py [--documents 20000] [--text-dedup PYTHON] [--datatrove PYTHON] [--datasketch PYTHON]

Each PYTHON is one that has that program (datasketch's also rensa); what is not given is left out. Planted among unrelated
documents: 15 % near duplicates of others, with a few words replaced, a sentence left out or added (5-gram Jaccard
similarity 0.84 to 1), and 8 % heavily edited ones, a fifth of their words replaced. Times are of whole commands with two
processes (datasketch and rensa: one), for text-dedup without turning JSON lines into a data set and back. CPU seconds
count all processes, so that they say more than seconds where other work shares the machine.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PEERS = Path(__file__).with_name("dedup_peers.py")
DEDUP = [sys.executable, "-m", "mconv", "data", "dedup"]
VOCABULARY = [f"{first}{second}{third}" for first in "bdfgklmnprst" for second in "aeiou" for third in range(400)]


class Planted(NamedTuple):
    """A corpus, and the pairs of records in it."""

    near: list[tuple[int, int]]
    heavy: list[tuple[int, int]]
    similarities: list[float]
    documents: int


class Result(NamedTuple):
    """The records that a program keeps, and what that took."""

    kept: set[int]
    seconds: float
    cpu: float | None = None
    """CPU seconds; None of datatrove, which does not wait for its processes to end."""
    mib: float | None = None


def plant(path: Path, documents: int) -> Planted:
    """Write the corpus as JSON lines in mixed order."""
    rng = random.Random(7)
    near, heavy = int(0.15 * documents), int(0.08 * documents)
    base = [[rng.choice(VOCABULARY) for _ in range(rng.randint(100, 500))] for _ in range(documents - near - heavy)]
    made = [(words, number, "") for number, words in enumerate(base)]
    made += [(slightly(rng, base[number]), number, "near") for number in range(near)]
    made += [(replaced(rng, base[near + number], 0.19), near + number, "heavy") for number in range(heavy)]
    rng.shuffle(made)
    with path.open("w") as file:
        file.writelines(json.dumps({"id": at, "text": " ".join(words)}) + "\n" for at, (words, _, _) in enumerate(made))
    place = {number: at for at, (_, number, kind) in enumerate(made) if not kind}
    pairs = {
        kind: [(place[number], at) for at, (_, number, own) in enumerate(made) if own == kind]
        for kind in ("near", "heavy")
    }
    similarities = [jaccard(made[a][0], made[b][0]) for a, b in pairs["near"]]
    return Planted(pairs["near"], pairs["heavy"], similarities, len(made))


def slightly(rng: random.Random, words: list[str]) -> list[str]:
    """Return an edit that leaves a 5-gram similarity of at least about 0.84."""
    share = rng.uniform(0, 0.08)
    cut = int(share * len(words))
    at = rng.randrange(len(words))
    kind = rng.randrange(3)
    if kind == 0:
        return replaced(rng, words, share / 5)
    return [*words[:at], *words[at + cut :]] if kind == 1 else [*words[:at], *replaced(rng, words[:cut], 1), *words[at:]]


def replaced(rng: random.Random, words: list[str], share: float) -> list[str]:
    """Return the words with a share of them replaced."""
    chosen = {*rng.sample(range(len(words)), round(share * len(words)))}
    return [rng.choice(VOCABULARY) if at in chosen else word for at, word in enumerate(words)]


def jaccard(one: list[str], other: list[str]) -> float:
    """Return the 5-gram similarity of two documents."""
    first, second = ({tuple(words[at : at + 5]) for at in range(len(words) - 4)} for words in (one, other))
    return len(first & second) / len(first | second)


def ids(*paths: Path) -> set[int]:
    """Return the ids of the records in some files. datatrove leaves out an id of 0."""
    return {int(json.loads(line).get("id", 0)) for path in paths for line in path.open()}


def measured(command: list[str]) -> tuple[float, float, float]:
    """Run a command; returns seconds, CPU seconds of all its processes, and the largest one's memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed; run it by itself")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def dedup(source: Path, out: Path, *options: str) -> list[str]:
    """Return the command line of `mconv data dedup`."""
    return [*DEDUP, str(source), "--out", str(out), *options]


def mconv(source: Path, folder: Path, *options: str) -> Result:
    """Run `mconv data dedup`."""
    out = folder / "mconv.jsonl"
    found = measured(dedup(source, out, "--workers", "2", "--overwrite", *options))
    return Result(ids(out), *found)


def peer(python: str, name: str, source: Path, folder: Path) -> Result:
    """Run a program of dedup_peers.py."""
    out = folder / f"{name}.jsonl"
    done = subprocess.run([python, PEERS, name, source, out], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Result(ids(out), found["seconds"], found["cpu"])


def datatrove(python: str, source: Path, folder: Path, *options: str) -> Result:
    """Run the pipeline that `--render-datatrove` writes."""
    out, script = folder / "datatrove", folder / "pipeline.py"
    for path in (out, folder / ".datatrove.datatrove"):
        shutil.rmtree(path, ignore_errors=True)
    script.unlink(missing_ok=True)
    measured(dedup(source, out, "--render-datatrove", str(script), *options))
    seconds, _, _ = measured([python, str(script), "--workers", "2"])
    return Result(ids(*out.glob("*.jsonl")), seconds)


def rows(planted: Planted, runs: dict[str, Callable[[], Result]]) -> None:
    """Print a row for each program."""
    print(f"{'':<40}{'found':>8}{'of 0.85+':>10}{'false':>7}{'s':>9}{'CPU s':>9}{'docs/CPU s':>12}{'MiB':>7}")
    due = [pair for pair, similarity in zip(planted.near, planted.similarities, strict=True) if similarity >= 0.85]
    for name, run in runs.items():
        kept, seconds, cpu, mib = run()
        shares = [100 * sum(not {*pair} <= kept for pair in pairs) / len(pairs) for pairs in (planted.near, due)]
        unrelated = {*range(planted.documents)} - kept - {at for pair in planted.near for at in pair}
        costs = [("" if cost is None else f"{cost:.{digits}f}") for cost, digits in
                 ((cpu, 1), (cpu and planted.documents / cpu, 0), (mib, 0))]  # fmt: skip
        print(f"{name:<40}{shares[0]:7.1f}%{shares[1]:9.1f}%{len(unrelated):7}{seconds:9.1f}"
              f"{costs[0]:>9}{costs[1]:>12}{costs[2]:>7}", flush=True)  # fmt: skip


def programs(given: argparse.Namespace, source: Path, folder: Path) -> dict[str, Callable[[], Result]]:
    """Return what is compared, by the name of its row."""
    found: dict[str, Callable[[], Result]] = {
        "mconv (15 x 8)": lambda: mconv(source, folder),
        "mconv --recall 0.999 (18 x 7)": lambda: mconv(source, folder, "--recall", "0.999"),
        "mconv --num-perm 64 (4 x 15)": lambda: mconv(source, folder, "--num-perm", "64"),
        "mconv --num-perm 64 --no-verify": lambda: mconv(source, folder, "--num-perm", "64", "--no-verify"),
    }
    if given.text_dedup:
        found["text-dedup 0.4.0 (4 x 15)"] = lambda: peer(given.text_dedup, "text-dedup", source, folder)
    if given.datatrove:
        found["datatrove 0.10 (4 x 15)"] = lambda: datatrove(given.datatrove, source, folder, "--num-perm", "64")
        found["datatrove 0.10 (15 x 8)"] = lambda: datatrove(given.datatrove, source, folder)
    if given.datasketch:
        found["datasketch 2.0.0 (4 x 15)"] = lambda: peer(given.datasketch, "datasketch", source, folder)
        found["rensa 0.5.0 (8 x 8, estimated)"] = lambda: peer(given.datasketch, "rensa", source, folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    for name in ("text-dedup", "datatrove", "datasketch"):
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"a Python that has {name}")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mconv-dedup-"))
    try:
        source = folder / "corpus.jsonl"
        planted = plant(source, given.documents)
        low, mean = min(planted.similarities), sum(planted.similarities) / len(planted.similarities)
        size = source.stat().st_size / 1e6
        print(f"{planted.documents} documents, {size:.0f} MB; {len(planted.heavy)} heavily edited; "
              f"{len(planted.near)} near duplicates of similarity {low:.2f} to 1, mean {mean:.3f}")  # fmt: skip
        rows(planted, programs(given, source, folder))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
