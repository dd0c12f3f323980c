"""Known models: repository and number of parameters by family and size."""

import difflib
import re
from dataclasses import dataclass

from mconv.errors import ConfigError
from mconv.hub.faults import check_repo_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Repository and true size of a model."""

    repo: str
    billions: float


def _known(repo: str, billions: float) -> Known:
    return Known(repo=repo, billions=billions)


# fmt: off
REPOSITORIES: dict[tuple[str, str], Known] = {
    ("llama", "7"):      _known("huggyllama/llama-7b", 6.74),
    ("llama", "13"):     _known("huggyllama/llama-13b", 13.02),
    ("llama", "30"):     _known("huggyllama/llama-30b", 32.53),
    ("llama", "65"):     _known("huggyllama/llama-65b", 65.29),
    ("llama2", "7"):     _known("meta-llama/Llama-2-7b-hf", 6.74),
    ("llama2", "13"):    _known("meta-llama/Llama-2-13b-hf", 13.02),
    ("llama2", "70"):    _known("meta-llama/Llama-2-70b-hf", 68.98),
    ("codellama", "7"):  _known("codellama/CodeLlama-7b-hf", 6.74),
    ("codellama", "13"): _known("codellama/CodeLlama-13b-hf", 13.02),
    ("codellama", "34"): _known("codellama/CodeLlama-34b-hf", 33.74),
    ("codellama", "70"): _known("codellama/CodeLlama-70b-hf", 68.98),
    ("llama3", "8"):     _known("meta-llama/Meta-Llama-3-8B", 8.03),
    ("llama3", "70"):    _known("meta-llama/Meta-Llama-3-70B", 70.55),
    ("llama3.1", "8"):   _known("meta-llama/Llama-3.1-8B", 8.03),
    ("llama3.1", "70"):  _known("meta-llama/Llama-3.1-70B", 70.55),
    ("llama3.1", "405"): _known("meta-llama/Llama-3.1-405B", 405.85),
    ("llama3.2", "1"):   _known("meta-llama/Llama-3.2-1B", 1.24),
    ("llama3.2", "3"):   _known("meta-llama/Llama-3.2-3B", 3.21),
    ("mistral", "7"):    _known("mistralai/Mistral-7B-v0.1", 7.24),
    ("falcon", "7"):     _known("tiiuae/falcon-7b", 6.92),
    ("falcon", "11"):    _known("tiiuae/falcon-11B", 11.10),
    ("falcon", "40"):    _known("tiiuae/falcon-40b", 41.30),
    ("falcon", "180"):   _known("tiiuae/falcon-180B", 178.56),
    ("falconrw", "1"):   _known("tiiuae/falcon-rw-1b", 1.31),
    ("falconrw", "7"):   _known("tiiuae/falcon-rw-7b", 7.52),
    ("falcon3", "1"):    _known("tiiuae/Falcon3-1B-Base", 1.67),
    ("falcon3", "3"):    _known("tiiuae/Falcon3-3B-Base", 3.23),
    ("falcon3", "7"):    _known("tiiuae/Falcon3-7B-Base", 7.46),
    ("falcon3", "10"):   _known("tiiuae/Falcon3-10B-Base", 10.31),
    ("qwen2", "0.5"):    _known("Qwen/Qwen2-0.5B", 0.49),
    ("qwen2", "1.5"):    _known("Qwen/Qwen2-1.5B", 1.54),
    ("qwen2", "7"):      _known("Qwen/Qwen2-7B", 7.62),
    ("qwen2", "72"):     _known("Qwen/Qwen2-72B", 72.71),
    ("qwen2.5", "0.5"):  _known("Qwen/Qwen2.5-0.5B", 0.49),
    ("qwen2.5", "1.5"):  _known("Qwen/Qwen2.5-1.5B", 1.54),
    ("qwen2.5", "3"):    _known("Qwen/Qwen2.5-3B", 3.09),
    ("qwen2.5", "7"):    _known("Qwen/Qwen2.5-7B", 7.62),
    ("qwen2.5", "14"):   _known("Qwen/Qwen2.5-14B", 14.77),
    ("qwen2.5", "32"):   _known("Qwen/Qwen2.5-32B", 32.76),
    ("qwen2.5", "72"):   _known("Qwen/Qwen2.5-72B", 72.71),
    ("qwen3", "0.6"):    _known("Qwen/Qwen3-0.6B", 0.60),
    ("qwen3", "1.7"):    _known("Qwen/Qwen3-1.7B", 1.72),
    ("qwen3", "4"):      _known("Qwen/Qwen3-4B", 4.02),
    ("qwen3", "8"):      _known("Qwen/Qwen3-8B", 8.19),
    ("qwen3", "14"):     _known("Qwen/Qwen3-14B", 14.77),
    ("qwen3", "32"):     _known("Qwen/Qwen3-32B", 32.76),
}
# fmt: on
"""Repository and parameters by family and size. The architecture comes from the repository's config."""


def expected_parameters(family: str, size: str) -> float:
    """Return parameters in billions, tied embeddings counted once. Raises ConfigError on an unknown pair."""
    return _pick(family, size).billions


def repository(source: str, *, size: str | None = None) -> str:
    """Return `ORG/NAME`: that of a family and size, or `source` itself. Raises ConfigError."""
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ConfigError(f"{source}: no such folder")
    if is_family(source):
        return _pick(source, size).repo
    if "/" not in source:
        families = list(dict.fromkeys(family for family, _ in REPOSITORIES))
        near = difflib.get_close_matches(_normal(source), families, n=2, cutoff=0.7)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"{source!r} is neither a folder nor a repository ORG/NAME nor a family ({', '.join(families)}){meant}"
        )
    check_repo_id(source)
    return source


ALIASES = {"llama1": "llama", "llama3.0": "llama3", "mistralv0.1": "mistral", "falcon2": "falcon"}
"""Other names of a family. Falcon2 is one more size of falcon."""


def _normal(family: str) -> str:
    """Return a family's name in the table: `Llama-2` and `llama 2` become `llama2`, `Llama-3-1` becomes `llama3.1`."""
    plain = re.sub(r"(?<=\d)[-_ ](?=\d)", ".", family.strip().lower())
    plain = re.sub(r"[-_ ]", "", plain)
    return ALIASES.get(plain, plain)


def is_family(name: str) -> bool:
    """Return whether a name is a family of the table."""
    return any(family == _normal(name) for family, _ in REPOSITORIES)


def _pick(family: str, size: str | None) -> Known:
    """Return the model of a family and size; a family of one size needs none. Raises ConfigError."""
    sizes = [s for f, s in REPOSITORIES if f == _normal(family)]
    wanted = (size or "").lower().removesuffix("b") or (sizes[0] if len(sizes) == 1 else "")
    found = REPOSITORIES.get((_normal(family), wanted))
    if found is None:
        asked = f"has no size {size!r}" if size else "needs a size"
        raise ConfigError(f"{family} {asked}; known sizes: {', '.join(sizes) or 'none'} (--size), or give ORG/NAME")
    return found


def check_size(parameters: int, *, size: str, family: str | None = None) -> None:
    """Refuse a model whose number of parameters does not fit the given size. Raises ConfigError.

    For a known family and size the number is known, up to rows that a finetune added to the vocabulary; otherwise the
    size is a rounded number of billions.
    """
    try:
        billions = float(size.lower().removesuffix("b"))
    except ValueError:
        raise ConfigError(f"--size {size} is not a number of billions, such as 7") from None
    known = _pick(family, size) if family and is_family(family) else None
    low, high = (known.billions * 0.95, known.billions * 1.05) if known else (0.7 * billions, 1.3 * billions)
    if not low <= parameters / 1e9 <= high:
        of = f" of {family}" if family else ""
        expected = f"; it should have {known.billions:g}" if known else ""
        raise ConfigError(f"--size {size}{of}, but its config.json describes {_count(parameters)} parameters{expected}")


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.3g} billion" if parameters >= 1e8 else f"{parameters:,}"
