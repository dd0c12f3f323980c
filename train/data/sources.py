"""Parse `data` as the user writes it: prefixes, folders of prefixes, and weights before either."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mconv.errors import ConfigError, FormatError, refuse
from mconv.train.config import TrainConfig
from mconv.train.data.index import ROLE, TEXT, missing, open_index, with_ending

PLAIN = "running text: leave --data-type instruction out (mconv data instruct writes conversations)"
TALKS = "conversations of mconv data instruct: give --data-type instruction"


@dataclass(frozen=True, slots=True)
class Blend:
    """Prefixes and, where the user gave them, the share of samples that each is to have."""

    prefixes: list[Path]
    weights: list[float] | None


def blend(entries: Sequence[str], weights: Sequence[float] | None = None, *, instruction: bool = False) -> Blend:
    """Return every prefix that `entries` name, folders searched, with its weight.

    An entry is a prefix, a folder, or either behind a weight: "0.3 data/a", or "0.3", "data/a" as Megatron-LM has it.
    A folder's weight is shared by its prefixes in proportion to their tokens. Instruction data is named by the prefix
    of its two pairs, without -text and -role. Raises ConfigError or FormatError on all that cannot be, at once.
    """
    names, said = weighed(entries)
    if said is not None and weights is not None:
        raise ConfigError("data holds weights already; leave data_weights out, or give it alone")
    shares = list(weights) if weights is not None else said
    found = [_prefixes(Path(name), instruction) for name in names]
    refuse(_twice([path for group in found for path in group]), doing="reading data", kind=ConfigError)
    wrong = [text for group in found for path in group if (text := _of_the_other_type(path, instruction))]
    refuse(wrong, doing="reading data", kind=FormatError)
    if shares is None:
        return Blend([path for group in found for path in group], None)
    split = [share for group, weight in zip(found, shares, strict=True) for share in _shared(group, weight, instruction)]
    return Blend([path for group in found for path in group], split)


def check_present(config: TrainConfig) -> None:
    """Look for the files of all data before anything is started. Raises ConfigError or FormatError on what is missing."""
    talks = config.data_type == "instruction"
    ends = (TEXT, ROLE) if talks else ("",)
    given = [blend(config.data, config.data_weights, instruction=talks)] if config.data else []
    apart = (config.train_data, config.valid_data, config.test_data)
    given += [blend(names, instruction=talks) for names in apart if names]
    prefixes = dict.fromkeys(prefix for mix in given for prefix in mix.prefixes)
    bad = [text for prefix in prefixes for end in ends for text in missing(with_ending(prefix, end))[:1]]
    refuse(bad, doing="looking for data", kind=FormatError)


def weighed(entries: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Return (names, their weights or None), in any of the notations. Raises ConfigError if only some have one."""
    words = [word for entry in entries for word in _split(entry)]
    numbers = [_number(word) for word in words]
    if not any(number is not None for number in numbers):
        return words, None
    pairs = list(zip(numbers[::2], words[1::2], strict=False))
    if len(words) % 2 or any(weight is None or _number(name) is not None for weight, name in pairs):
        raise ConfigError(f"data is {list(entries)}: some prefixes have a weight before them and some have none")
    weights = [float(weight or 0) for weight, _ in pairs]
    if not all(0 < weight < math.inf for weight in weights):
        raise ConfigError(f"data is {list(entries)}: weights must be positive numbers")
    return [name for _, name in pairs], weights


def _split(entry: str) -> list[str]:
    """Return weight and name of an entry ("0.3 my data/a"), or its name alone; a name may hold spaces."""
    head, _, rest = entry.strip().partition(" ")
    return [head, rest.strip()] if rest and _number(head) is not None else [entry.strip()]


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _prefixes(path: Path, instruction: bool) -> list[Path]:
    """Return the path itself, or all prefixes in the folder that it is."""
    if not path.is_dir():
        return [path]
    found, talks = search(path)
    chosen, others = (talks, found) if instruction else (found, talks)
    if not chosen:
        hint = f", but there is {PLAIN if instruction else TALKS}" if others else ""
        kind = f"{TEXT} and {ROLE} pairs" if instruction else ".bin and .idx"
        raise FormatError(f"{path}: no prefix with {kind} in this folder or under it{hint}")
    return chosen


def search(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the prefixes of running text and those of conversations, in a folder and under it, sorted.

    Links are followed. Raises FormatError where a file lacks its other half, or the folder is not there.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    pairs, bad = _search(folder)
    refuse(bad, doing=f"searching {folder}", kind=FormatError)
    roles = {prefix for prefix in pairs if prefix.name.endswith(ROLE) and _twin(prefix) in pairs}
    texts = pairs - roles - {_twin(role) for role in roles}
    return sorted(texts), sorted(role.with_name(role.name.removesuffix(ROLE)) for role in roles)


def _of_the_other_type(prefix: Path, instruction: bool) -> str | None:
    """Return what to give instead, where a prefix has the files of the other data_type; None where it has not."""
    plain, talks = (with_ending(prefix, f"{end}.bin").is_file() for end in ("", TEXT))
    if instruction and not talks and prefix.name.endswith((TEXT, ROLE)):
        return f"{prefix}: give the prefix without {TEXT} or {ROLE}: {prefix.with_name(prefix.name[: -len(TEXT)])}"
    if instruction and plain and not talks:
        return f"{prefix}{TEXT}.bin: no such file, but there is {prefix}.bin, {PLAIN}"
    if not instruction and talks and not plain:
        return f"{prefix}.bin: no such file, but there is {prefix}{TEXT}.bin, {TALKS}"
    return None


def _twin(role: Path) -> Path:
    return role.with_name(role.name.removesuffix(ROLE) + TEXT)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and under it. Links are followed, and each folder is entered once."""
    entered: set[str] = set()
    for at, below, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        if real in entered:
            below.clear()
            continue
        entered.add(real)
        below.sort()  # so that of two links to one folder the same is taken on every rank
        yield from (Path(at, name) for name in files)


def _search(folder: Path) -> tuple[set[Path], list[str]]:
    """Return (prefixes with both files, problems)."""
    halves: dict[str, set[Path]] = {".bin": set(), ".idx": set()}
    for path in files_below(folder):
        if path.suffix in halves:
            halves[path.suffix].add(path.with_suffix(""))
    alone = [(prefix, ".bin", ".idx") for prefix in sorted(halves[".bin"] - halves[".idx"])]
    alone += [(prefix, ".idx", ".bin") for prefix in sorted(halves[".idx"] - halves[".bin"])]
    return halves[".bin"] & halves[".idx"], [f"{p}{has} is there without {p.name}{lacks}" for p, has, lacks in alone]


def _twice(prefixes: list[Path]) -> list[str]:
    counts = Counter(path.absolute() for path in prefixes)
    return [f"{path} is named twice; give it once, with a weight" for path, count in counts.items() if count > 1]


def _shared(prefixes: list[Path], weight: float, instruction: bool) -> list[float]:
    """Return a folder's weight divided among its prefixes by their tokens."""
    if len(prefixes) == 1:
        return [weight]
    ends = TEXT if instruction else ""
    tokens = [len(open_index(with_ending(prefix, ends)).tokens) for prefix in prefixes]
    return [weight * count / sum(tokens) for count in tokens]
