"""Write a mixture as a folder: links to prefixes or copies of them, what had to be cut, and its summary."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mconv.convert.folders.staging import Staging, remove, sync
from mconv.errors import MconvError
from mconv.train.data.index import with_ending
from mconv.train.data.mixing import records
from mconv.train.data.mixing.join import join
from mconv.train.data.mixing.mix import DataSet, Mixture, Taken
from mconv.train.data.mixing.prefixes import PAIR, RECORD

SUMMARY, FACTS = "dataset_mixture_summary.txt", "dataset_mixture.json"
Progress = Callable[[int], None]


def write(
    mix: Mixture, out: Path, *, copy: bool = False, overwrite: bool = False, progress: Progress = lambda n: None
) -> None:
    """Make the folder `out`: SET/NAME.bin and so on as absolute symbolic links, or as copies, and the summary.

    It appears when it is whole. Raises MconvError where something else than an earlier mixture is in its place.
    """
    check_place(out, overwrite=overwrite)
    staging = Staging.of(Path(os.path.abspath(out)))  # noqa: PTH100 (a link at `out` stays one)
    with staging.alone():
        staging.clear()
        try:
            for group, taken in zip(mix.sets, mix.taken, strict=True):
                for one in taken:
                    _place(group, one, staging.partial / group.name / group.place(one.prefix), copy, progress)
            (staging.partial / FACTS).write_text(json.dumps(facts(mix, out, copy=copy), indent=1) + "\n")
            (staging.partial / SUMMARY).write_text(f"{summary(mix, out)}\n")
            for path in (staging.partial / FACTS, staging.partial / SUMMARY, staging.partial):
                sync(path)
            staging.swap()
        finally:
            staging.clear()
        remove(staging.old)


def check_place(out: Path, *, overwrite: bool) -> None:
    """Raise MconvError unless `out` is free, or an earlier mixture that may be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    ours = out.is_dir() and not out.is_symlink() and ((out / FACTS).is_file() or not any(out.iterdir()))
    if not ours:
        raise MconvError(f"{out} is there already and is no mixture; choose another --out")
    if not overwrite and any(out.iterdir()):
        raise MconvError(f"{out} is there already; pass --overwrite to replace the mixture, or choose another --out")


def _place(group: DataSet, one: Taken, target: Path, copy: bool, progress: Progress) -> None:
    """Link or copy a prefix's files to the names that `target` begins, or write its first documents there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not one.whole:
        _cut(one, target, progress)
        return
    for file in one.prefix.files:
        place = with_ending(target, one.prefix.ending(file))
        if not copy:
            place.symlink_to(file.resolve())
            continue
        shutil.copyfile(file, place)
        sync(place)
        progress(place.stat().st_size * file.name.endswith(".bin"))


def _cut(one: Taken, target: Path, progress: Progress) -> None:
    """Write the first documents of a prefix, with a record of their own."""
    for head in one.heads:
        kind = one.prefix.ending(head.prefix)
        data, index = (with_ending(target, f"{kind}{ending}") for ending in PAIR)
        join([head], data, index, progress)
        for path in (data, index):
            sync(path)
    if record := records.of_head(one.prefix, one.documents, one.tokens):
        kind = one.prefix.ending(one.prefix.text.prefix)
        text = json.dumps(dataclasses.asdict(record), indent=2)
        with_ending(target, f"{kind}{RECORD}").write_text(f"{text}\n")


def facts(mix: Mixture, out: Path, *, copy: bool) -> dict[str, Any]:
    """Return the mixture as plain values: the wanted and the resulting shares, tokens, and every prefix."""
    total, available = sum(mix.tokens), sum(one.tokens for one in mix.sets)
    return {
        "out": str(out), "seed": mix.seed, "exact": mix.exact, "copied": copy,
        "tokens": total, "prefixes": sum(map(len, mix.taken)),
        "bytes": sum(one.bytes for taken in mix.taken for one in taken),
        "used_up": mix.used_up,
        "sets": [
            {
                "name": group.name, "source": str(group.source), "wanted": round(float(group.weight), 6),
                "share": round(tokens / total, 6), "natural_share": round(group.tokens / available, 6),
                "tokens": tokens, "documents": sum(one.documents for one in taken), "prefixes": len(taken),
                "bytes": sum(one.bytes for one in taken),
                "available": {"tokens": group.tokens, "prefixes": len(group.prefixes)},
                "files": [
                    {"prefix": str(one.prefix.path), "at": str(Path(group.name, group.place(one.prefix))),
                     "tokens": one.tokens, "documents": one.documents, "cut": not one.whole}
                    for one in taken
                ],
            }
            for group, tokens, taken in zip(mix.sets, mix.tokens, mix.taken, strict=True)
        ],
    }  # fmt: skip


def written(mix: Mixture, *, copy: bool) -> int:
    """Return how many bytes of tokens are written, and not linked."""
    return sum(one.bytes for taken in mix.taken for one in taken if copy or not one.whole)


def summary(mix: Mixture, out: Path) -> str:
    """Return the mixture in words: the line of create_data_mixture.py's summary, then exact numbers for each set."""
    known = facts(mix, out, copy=False)
    shares = {str(out / one["name"]): round(one["share"], 4) for one in known["sets"]}
    counts = [one["prefixes"] for one in known["sets"]]
    lines = [
        f"Dataset mixture created in {out} | {known['prefixes']} files ({counts}) | {known['bytes'] / 1e12:.2f} TB | "
        f"{known['tokens'] / 1e9:.2f} Billion Tokens | Resulting mixture is {dict(sorted(shares.items()))}",
        f"{known['tokens']:,} tokens, {known['bytes']:,} bytes, seed {mix.seed}; used up: "
        f"{', '.join(mix.used_up) or 'none'}",
    ]
    return "\n".join([*lines, *map(_of_set, known["sets"])])


def _of_set(one: dict[str, Any]) -> str:
    """Return what the summary says of a set."""
    there = one["available"]
    return (
        f"  {one['name']}: {one['share']:.2%} (wanted {one['wanted']:.2%}, {one['natural_share']:.2%} of all there is), "
        f"{one['tokens']:,} of {there['tokens']:,} tokens, {one['prefixes']} of {there['prefixes']} prefixes, "
        f"{one['bytes']:,} bytes"
    )
