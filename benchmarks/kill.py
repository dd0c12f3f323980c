"""Kill a conversion at random moments: is what is left absent, the old state, or finished by --resume, byte for byte?

    python benchmarks/kill.py [--kills 200] [--model small] [--seed 0] [--folder DIR]

The moments are calls that change the disk: each write of tensor bytes, each flush, journal line, rename and removal.
Every run is killed (SIGKILL) just before or after one of them; half of the resumed runs are killed once more.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint  # noqa: F401  # imported once, before the forks
from models import MODELS, make

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import companions, journal, plan, rewrite, stream
from mconv.convert.folders.kinds import TRACKER
from mconv.convert.folders.staging import PARTIAL, Staging
from mconv.convert.sources import read
from mconv.errors import MconvError

os.environ.setdefault("SOURCE_DATE_EPOCH", "1790000000")  # results are compared byte for byte, their time too
HOOKS: list[tuple[Any, str]] = [
    (os, "pwrite"), (os, "fsync"), (os, "fdatasync"), (Path, "rename"), (Path, "replace"), (Path, "mkdir"),
    (Path, "write_text"), (Path, "write_bytes"), (shutil, "rmtree"), (shutil, "copyfile"), (journal, "record"),
]  # fmt: skip
JOBS: dict[str, dict[str, Any]] = {
    "torch_dist": {"format": "torch_dist", "tp": 2, "pp": 1},
    "mp_rank over an older one": {"format": "mp_rank", "tp": 2, "pp": 2, "overwrite": True},
    "hf, cast, over an older one": {"format": "hf", "dtype": "fp32", "shard_bytes": 2_000_000, "overwrite": True},
}


class Moments:
    """Counts the calls of the hooks in this process, and dies at one of them."""

    def __init__(self, at: int | None) -> None:
        self.count, self.at, self.names = 0, at, []

    def hook(self, owner: Any, name: str, *, sync: bool) -> None:
        real = getattr(owner, name)

        def called(*args: Any, **options: Any) -> Any:
            self.tick(name)
            done = None if name in ("fsync", "fdatasync") and not sync else real(*args, **options)
            self.tick(name)
            return done

        setattr(owner, name, called)

    def tick(self, name: str) -> None:
        self.names.append(name)
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def vouch_early() -> None:
    """A fault to be caught: the journal says that tensors are there which are only written at the end."""
    late: list[tuple[Path, int, bytes]] = []
    finish = rewrite._finish

    def put(self: Any, at: int, data: memoryview) -> None:
        self.runs.append((at, len(data), zlib.crc32(data)))
        late.append((self.path, self.start + at, bytes(data)))

    def finish_late(*args: Any, **options: Any) -> Any:
        for path, at, data in late:
            with path.open("r+b") as file:
                os.pwrite(file.fileno(), data, at)
        return finish(*args, **options)

    stream._Writer._put, rewrite._finish = put, finish_late


def tracker_first() -> None:
    """A fault to be caught: the folder takes its place before its tensors are in it."""
    real = rewrite._stream_all

    def stream_all(plan: Any, files: Any, staging: Staging, *args: Any, **options: Any) -> Any:
        files.finish(staging.partial, dict.fromkeys(files.extents, 0))
        companions.write_side_files(plan, staging.partial)
        shutil.copytree(staging.partial, staging.folder, dirs_exist_ok=True)
        if plan.format != "hf":
            (plan.out / TRACKER).write_text("release")
        return real(plan, files, staging, *args, **options)

    rewrite._stream_all = stream_all


PLANTS: dict[str, Callable[[], None]] = {"vouch-early": vouch_early, "tracker-first": tracker_first}


def run(source: Path, out: Path, options: dict[str, Any], *, at: int | None, resume: bool, sync: bool) -> tuple[int, str]:
    """Convert in a child that dies at a moment. Its moments if it did not, and the name of that at which it did."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            moments = Moments(at)
            for owner, name in HOOKS:
                moments.hook(owner, name, sync=sync)
            rewrite.rewrite(plan.make(open_checkpoint(source), out, resume=resume, **options), step="kill")
            os.write(writing, str(moments.count).encode())
            code = 0
        except MconvError as error:
            print(f"refused: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    said = os.read(reading, 100).decode()
    os.close(reading)
    if os.WIFSIGNALED(status):
        return 0, "killed"
    return (int(said), "done") if said else (0, "failed")


def state(root: Path) -> dict[str, bytes]:
    """All that a reader can see."""
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if PARTIAL not in name}


def wrong(root: Path, old: dict[str, bytes], new: dict[str, bytes]) -> str | None:
    """What is wrong with what a killed run has left: it opens, but is neither the old state nor the new one."""
    try:
        open_checkpoint(root)
    except MconvError:
        return None
    found = state(root)
    return None if found in (old, new) else "something opens that is neither the old checkpoint nor the new one"


def trial(job: str, folder: Path, older: Path, want: dict[str, bytes], at: list[int], *, sync: bool) -> str | None:
    """Kill at the first moment, then resume and kill at each further one, then resume to the end. What was wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    options, root = JOBS[job], folder / "out"
    folder.mkdir()
    if options.get("overwrite"):
        shutil.copytree(older, root)
    old = state(root)
    for number, moment in enumerate([*at, None]):
        _, end = run(folder.parent / f"{job} source", root, options, at=moment, resume=number > 0, sync=sync)
        if end == "failed":  # right if it was killed while it cleaned up, and so had nothing left to resume
            return None if state(root) == want else "a resumed run was refused"
        if moment is None and state(root) != want:
            return "the resumed result is not that of an unbroken run"
        if problem := wrong(root, old, want):
            return problem
    left = [path.name for path in folder.rglob("*") if PARTIAL in path.name]
    return f"{left} are left" if left else None


def prepare(folder: Path, model: str) -> None:
    """The source of each job."""
    make(folder / "hf", model)
    for name, options in JOBS.items():
        if options["format"] == "hf":
            made = plan.make(open_checkpoint(folder / "hf"), folder / f"{name} source", format="torch_dist", tp=2)
            rewrite.rewrite(made, step="source")
        else:
            (folder / f"{name} source").symlink_to(folder / "hf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    parser.add_argument("--no-sync", action="store_true", help="only count flushes: SIGKILL does not test them")
    parser.add_argument("--plant", choices=PLANTS, help="a fault that must be caught")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mconv-kill-", dir=given.folder))
    try:
        sys.exit(kill(folder, given))
    finally:
        shutil.rmtree(folder)


def kill(folder: Path, given: argparse.Namespace) -> int:
    """All trials; 0 if nothing was wrong."""
    random.seed(given.seed)
    start, sync = time.perf_counter(), not given.no_sync
    read.SLAB_BYTES = 16 << 10 if given.model == "tiny" else 256 << 10
    prepare(folder, given.model)
    problems: Counter[str] = Counter()
    kills = 0
    for number, (job, options) in enumerate(JOBS.items()):
        older, whole, from_ = (folder / f"{job} {word}" for word in ("older", "whole", "source"))
        root = whole / "out"  # as deep as the trials': a manifest says where the source lies, as seen from there
        if options.get("overwrite"):
            run(from_, older, {**options, "dtype": "fp16"}, at=None, resume=False, sync=sync)
            shutil.copytree(older, root)
        count, _ = run(from_, root, options, at=None, resume=False, sync=sync)
        want = state(root)
        if given.plant:
            PLANTS[given.plant]() if number == 0 else None
        share = given.kills // len(JOBS)
        tail = list(range(count - share // 3, count + 1))  # the renames and the tracker are at the end
        early = random.sample(range(1, count - len(tail)), share - len(tail))
        for moment in sorted([*early, *tail]):
            at = [moment] + ([random.randrange(1, count // 2)] if random.random() < 0.5 else [])
            kills += len(at)
            if problem := trial(job, folder / "trial", older, want, at, sync=sync):
                problems[f"{job}: {problem}"] += 1
        print(f"{job}: {count} moments, {share} runs killed", flush=True)
    for problem, times in problems.items():
        print(f"WRONG {times} times: {problem}")
    print(f"{kills} kills in {time.perf_counter() - start:.0f} s, {sum(problems.values())} wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    main()
