"""`mconv data stats` and `data discover`: what token data holds, and where it is."""

import dataclasses
import json as jsonlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from mconv.cli import bars, facts, located
from mconv.cli import options as o
from mconv.cli.terminal import progress
from mconv.errors import MconvError

Values = dict[str, Any]
SHORT = 12
"""Largest number of frequent tokens in text and pictures."""


def stats(
    *paths: Path,
    tokenizer: Path | None = None,
    top: int = 50,
    plot: Annotated[Path | None, Parameter(name=["--plot", "--html"])] = None,
    json: o.Json = False,
) -> None:
    """Measure token data completely: documents, lengths, how documents end, how much of the vocabulary is used.

    All tokens are read, in parts; memory grows with the documents (about 40 bytes each) and the vocabulary alone.
    `mconv inspect` takes a quick look at samples.

    Parameters
    ----------
    paths
        Prefixes, or folders that are searched for them.
    tokenizer
        A folder with the tokenizer, to show the most frequent tokens as text.
    top
        Number of the most frequent tokens that --json lists; text and pictures show 12 at most.
    plot
        Draw the lengths and the most frequent tokens: a .png, .svg, .pdf or .html file.
    """
    if not paths:
        raise MconvError("give prefixes or folders of token data: mconv data stats data/text")
    if top < 0:
        raise MconvError(f"--top is {top}; it must be 0 or more")
    if plot:
        bars.check(plot)
    names = [str(path) for path in paths]
    folder = located.tokenizer(tokenizer) if tokenizer else None
    parts, total = _measured(paths, top)
    if folder:
        _spell([*parts, total], folder)
    if plot:
        about = "\n".join(_lines(total))
        bars.draw(list(_charts(total)), plot, title=", ".join(names), about=about)
    if json:
        print(jsonlib.dumps({"prefixes": parts, "total": total}, indent=1))
        return
    if len(parts) > 1:
        print("\n".join(map(_line, parts)), end="\n\n")
    print("\n".join([*_lines(total), "", *(line for chart in _charts(total) for line in bars.lines(chart))]))


def discover(
    *folders: Path,
    paths: Annotated[str | None, Parameter(name=["--paths", "-p"])] = None,
    weights: Literal["tokens", "sequences", "documents", "none"] = "tokens",
    seq_length: int | None = None,
    comma: o.Flag = False,
    lines: o.Flag = False,
    json: o.Json = False,
) -> None:
    """Print the prefixes in folders with their weights, as `mconv train --data` and Megatron's --data-path take them.

    Folders are searched to the bottom, links followed, in the order of their names. `--data $(mconv data discover A B)`.

    Parameters
    ----------
    folders
        Folders to search, or prefixes.
    paths
        Folders with commas between them, as swiss-ai's create_data_config.py takes them: another way to write FOLDERS.
    weights
        What a prefix's weight is in proportion to; none prints paths alone, as create_data_config.py does.
    seq_length
        Leave out prefixes that are too short for one sample of this length.
    comma
        Put commas between the words instead of spaces.
    lines
        Print a line for each prefix.
    """
    given = [*folders, *(Path(name.strip()).expanduser() for name in (paths or "").split(",") if name.strip())]
    if not given:
        raise MconvError("give folders to search: mconv data discover data/a data/b")
    if seq_length is not None and seq_length < 1:
        raise MconvError(f"--seq-length is {seq_length}; it must be at least 1")
    from mconv.train.data.mixing.discover import discover as search

    found = search(given, by="tokens" if weights == "none" else weights, seq_length=seq_length)
    for prefix in found.too_short:
        print(f"left out, too short for one sample: {prefix}", file=sys.stderr)
    if json:
        entries = [dataclasses.asdict(one) | {"prefix": str(one.prefix)} for one in found.entries]
        print(jsonlib.dumps(entries, indent=1))
        return
    pairs = [([] if weights == "none" else [f"{one.weight:.8g}"]) + [str(one.prefix)] for one in found.entries]
    if lines:
        print("\n".join(" ".join(pair) for pair in pairs))
    else:
        print(("," if comma else " ").join(word if comma else shlex.quote(word) for pair in pairs for word in pair))


def _measured(paths: Sequence[Path], top: int) -> tuple[list[Values], Values]:
    """Return the values of each prefix, and of all together."""
    from mconv.train.data.mixing import stats as measuring
    from mconv.train.data.mixing.prefixes import open_all, refuse_overlaps, under

    groups = [under(path) for path in paths]
    refuse_overlaps(groups, "measuring")
    found = open_all(path for group in groups for path in group)
    with progress(sum(one.bytes for one in found), "measuring") as shown:
        parts = [measuring.measure(one, shown) for one in found]
    values = [measuring.values(one, top=top) for one in parts]
    return values, measuring.values(measuring.together(parts), top=top) if len(parts) > 1 else values[0]


def _spell(found: Sequence[Values], folder: Path) -> None:
    """Add the text of each frequent token."""
    from mconv.train.data.tokenizers.huggingface import read

    tokenizer = read(folder)
    for token in (token for values in found for token in values["vocabulary"]["top"]):
        token["text"] = tokenizer.decode([token["id"]])


def _line(values: Values) -> str:
    """Return a prefix in a line."""
    unused = values["vocabulary"]["unused_share"]
    rest = "" if unused is None else f", {unused:.1%} of the vocabulary unused"
    return f"{values['prefix']}: {values['documents']:,} documents, {values['tokens']:,} tokens, {values['dtype']}{rest}"


def _lines(values: Values) -> Iterator[str]:
    """Yield the numbers of a prefix, or of all together, in words."""
    of = values["lengths"]
    sequences = f" ({values['sequences']:,} sequences)" if values["sequences"] != values["documents"] else ""
    yield from facts.lines({
        "prefix": values["prefix"], "documents": f"{values['documents']:,}{sequences}", "tokens": f"{values['tokens']:,}",
        "dtype": values["dtype"], "bytes": f"{values['bytes']:,}",
        "tokens_of_a_document": f"{of['min']:,} to {of['max']:,}, mean {of['mean']:,}, median {of['p50']:,.12g}, "
        f"95 % below {of['p95']:,.12g}",
        "ends": _ends(values), "vocabulary": _vocabulary(values["vocabulary"]), "roles": _roles(values["roles"]),
        "tokenizer": values["record"]["tokenizer"] if values["record"] else None,
    })  # fmt: skip


def _ends(values: Values) -> str:
    eod = values["eod"]
    by = "recorded as the end of a document" if eod["recorded"] else "the most frequent last token"
    inside = f"; it is within documents {eod['inside']:,} times" if eod["inside"] else ""
    return f"{eod['share']:.2%} of the documents end in token {eod['token']}, {by}{inside}"


def _vocabulary(found: Values) -> str:
    used = f"{found['used']:,} ids are used, the largest is {found['largest_id']:,}"
    return used if found["size"] is None else f"{used}; of {found['size']:,}, {found['unused_share']:.2%} are not"


def _roles(roles: Values | None) -> str | None:
    shares = [f"{name} {share:.2%}" for name, share in (roles or {}).items() if name != "looked_at"]
    return ", ".join(shares) or None


def _charts(values: Values) -> Iterator[bars.Chart]:
    """Yield the charts of lengths and of the most frequent tokens."""
    titles = {"documents": "Documents by their length in tokens", "tokens": "Tokens by the length of their document"}
    for what, title in titles.items():
        rows = [
            bars.Bar(
                f"{one['from']:,}" if one["from"] == one["to"] else f"{one['from']:,} to {one['to']:,}",
                (one[what],),
                f"{one[what]:,} ({one[what] / max(values[what], 1):.1%})",
            )
            for one in values["histogram"]
        ]
        yield bars.Chart(title, tuple(rows))
    rows = [
        bars.Bar(
            f"{one['id']}" + (f" {one['text']!r}" if "text" in one else ""),
            (one["count"],),
            f"{one['count']:,} ({one['share']:.2%})",
        )
        for one in values["vocabulary"]["top"][:SHORT]
    ]
    yield bars.Chart("Most frequent tokens", tuple(rows))
