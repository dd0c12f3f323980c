"""`mconv data prepare` and `data shuffle`: a corpus from raw files to tokens in one go."""

import json as jsonlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv import extras
from mconv.cli import choose, located
from mconv.cli import options as o
from mconv.cli.data_dedup import counts
from mconv.cli.terminal import before_slow, progress
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.train.data.preparing.config import Preparation
    from mconv.train.data.preparing.steps import Step

MEGA = 10**6


def prepare(config: Path, /, *, dry_run: o.Flag = False, json: o.Json = False) -> None:
    """Collect, deduplicate, shuffle, tokenize and mix texts in one go, as a YAML file says.

    A step whose inputs, settings and outputs have not changed since it was done is not done again. After a crash the same
    command goes on.

    Parameters
    ----------
    config
        A YAML file with out, tokenizer, sets, and the sections dedup, shuffle, tokenize and mix.
    dry_run
        Print the steps and which of them are done; do nothing.
    """
    from mconv.train.data.preparing.config import read_yaml

    asked = read_yaml(config)
    extras.need("data", "transformers", to="mconv data")
    if asked.dedup:
        extras.need("dedup", "rensa", to="dedup", without="without that section duplicates stay")
    from mconv.train.data.preparing import prepare as preparing
    from mconv.train.data.preparing.steps import Ledger, plan

    path = Path(asked.top.tokenizer)
    todo = preparing.steps(asked, path if path.is_file() else located.tokenizer(path), _shown, counts())
    if dry_run:
        reasons = plan(todo, Ledger(Path(asked.top.out)))
        _list([_facts(step, reason) for step, reason in zip(todo, reasons, strict=True)], json=json)
        return
    done: list[dict[str, Any]] = []

    def tell(step: "Step", reason: str | None, said: str | None) -> None:
        if said is None and reason:
            before_slow(f"{step.name} ({reason})")
            return
        done.append(_facts(step, reason) | {"said": said})
        if not json:
            print(f"{step.name}: {said or 'done before'}", flush=True)

    preparing.prepare(asked, todo, tell=tell)
    if json:
        print(jsonlib.dumps(done, indent=1))
    else:
        choose.next_training(data=_results(asked))


def shuffle(
    *sources: Path,
    out: Path,
    seed: int = 1234,
    buffer: float = 500,
    overwrite: o.Flag = False,
) -> None:
    """Shuffle the lines of text files, however large they are.

    Each line gets a random number, and they are sorted by it on the disk. The order depends on the seed and the input
    alone, and every order is equally likely.

    Parameters
    ----------
    sources
        Files of lines (.jsonl or .txt, also .gz, .xz, .zst), folders or patterns, all of one kind.
    out
        The file to write: .jsonl or .txt, packed if it ends in .gz, .xz or .zst.
    seed
        Seed of the order.
    buffer
        Memory to sort in, in MB. More files need as much room beside --out as the input has, for the time of the run.
    overwrite
        Replace the output of an earlier run.
    """
    if not sources:
        raise MconvError("give at least one file to shuffle: mconv data shuffle text.jsonl --out shuffled.jsonl")
    if not 0 < buffer < float("inf") or seed < 0:
        raise MconvError(f"--buffer is {buffer:g} and --seed {seed}; they must be more than 0, and 0 or more")
    if out.is_dir() or (out.exists() and not overwrite):
        raise MconvError(f"{out} is there already; {'name a file' if out.is_dir() else 'pass --overwrite'}")
    from mconv.train.data.preparing import lines
    from mconv.train.data.reading.inputs import files

    paths = files(sources)
    if out.resolve() in {path.resolve() for path in paths}:
        raise MconvError(f"--out {out} is one of the sources; choose another file")
    with progress(sum(path.stat().st_size for path in paths), "shuffling") as shown:
        count = lines.shuffle(paths, out, seed=seed, buffer=int(buffer * MEGA), progress=shown)
    print(f"{out}: {count:,} lines of {len(paths)} file{'s' * (len(paths) > 1)}")


@contextmanager
def _shown(name: str, size: int) -> Iterator[Any]:
    """Show a step's progress on a terminal."""
    with progress(size, name) as shown:
        yield shown


def _facts(step: "Step", reason: str | None) -> dict[str, Any]:
    return {"step": step.name, "done": reason is None, "why": reason, "outputs": [str(path) for path in step.outputs]}


def _list(facts: list[dict[str, Any]], *, json: bool) -> None:
    """Print the steps of a dry run."""
    if json:
        print(jsonlib.dumps(facts, indent=1))
        return
    for one in facts:
        print(f"{'done' if one['done'] else 'to do':<6} {one['step']}" + (f" ({one['why']})" if one["why"] else ""))


def _results(asked: "Preparation") -> list[str]:
    """Return what a run takes as its data: the mixture, or the tokens of each set."""
    out = Path(asked.top.out)
    return [str(out / "mixture")] if asked.weights else [str(out / "tokens" / name) for name in asked.sets]
