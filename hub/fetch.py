"""A name to a local folder: a folder itself, `ORG/NAME`, or a family and a size."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mconv import extras
from mconv.convert import unfinished
from mconv.convert.recognize import explain, shown
from mconv.convert.sidecar import LeftOut, judge
from mconv.convert.staging import PULL
from mconv.errors import ConfigError, FormatError, MconvError
from mconv.hub import adapter, room
from mconv.hub.adapter import missing
from mconv.hub.faults import check_repo_id, one_line
from mconv.hub.folder import MANIFEST, check_weights

KINDS: tuple[tuple[str, ...], ...] = (
    ("*.safetensors", "*.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model*.bin.index.json"),
)
"""The model's own weights: the first kind that a repository has. It often has them twice."""
OWN: tuple[tuple[str, ...], ...] = (
    ("consolidated*.safetensors", "consolidated*.safetensors.index.json", "params.json"),
    ("consolidated.*.pth", "params.json"),
)
"""Weights in Mistral's and Meta's own files, where a repository has no others."""
NOT_IT = ("consolidated*", "adapter_*", "*.fp16*", "*.bf16*", "*.fp32*", "*.int8*", "*.non_ema*")
"""Copies of the weights in another format or precision, and what is no model, under names that fit those."""
Tell = Callable[[Sequence[LeftOut]], None]
"""A callback for the files of a repository that are not downloaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A model's repository, and its true size."""

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


def silent(left_out: Sequence[LeftOut]) -> None:
    """Ignore the files that are not downloaded."""


def resolve(
    source: str,
    *,
    size: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    tell: Tell = silent,
) -> Path:
    """Return the folder of `source`: a local folder first, then the local cache of the Hub, then a download.

    `source` is a folder, `ORG/NAME`, or a family (with `size`). Fetched are weights (safetensors, or `.bin` where there
    are none) and what stands beside them by the rule of `convert/sidecar.py`; no code is ever run. `tell` is
    called with what was not. Raises ConfigError on an unknown name, MconvError if the download fails.
    """
    if (folder := Path(source).expanduser()).is_dir():
        return folder
    if unfinished.at(folder):
        raise FormatError(explain(folder))
    repo = repository(source, size=size)
    if cached := _cached(repo, cache_dir=cache_dir, revision=revision, essential=offline):
        return cached
    if offline:
        raise MconvError(
            f"{repo} is not, or not wholly, in the local cache and --offline forbids a download; on a machine with "
            f"network run `hf download {repo}`, or give a folder with --from DIR"
        )
    return _download(repo, cache_dir=cache_dir, local_dir=None, revision=revision, endpoint=endpoint, tell=tell)


def pull(
    source: str,
    out: Path,
    *,
    size: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    endpoint: str | None = None,
    tell: Tell = silent,
) -> Path:
    """Download `source` into the folder `out` and check that the model is whole; an interrupted pull is resumed.

    `tell` is called with the files that were not downloaded, and why.

    Raises FormatError if `out` holds other files (unless `overwrite`) or if what arrived is damaged.
    """
    repo = repository(source, size=size)
    resumable = (out / PULL).parent.is_dir()
    if out.exists() and not out.is_dir():
        raise FormatError(f"{out} is a file; name a folder")
    if out.exists() and any(out.iterdir()) and not resumable and not overwrite:
        raise FormatError(f"{out} is not an empty folder; name another one, or give --overwrite")
    room.check_writable(out)
    folder = _download(repo, cache_dir=None, local_dir=out, revision=revision, endpoint=endpoint, tell=tell)
    adapter.check_tensors(folder) if adapter.is_adapter(folder) else check_weights(folder)
    return folder


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
"""Other names of a family; Falcon2 is one more size of falcon."""


def _normal(family: str) -> str:
    """Return the table's name of a family: `Llama-2` and `llama 2` are `llama2`, `Llama-3-1` is `llama3.1`."""
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
    """Compare a model's parameters with the size that was asked for. Raises ConfigError if they do not fit.

    Of a known family and size the parameters are known, up to rows that a finetune added to the vocabulary; else the size
    is a round number of billions.
    """
    try:
        said = float(size.lower().removesuffix("b"))
    except ValueError:
        raise ConfigError(f"--size {size} is not a number of billions, such as 7") from None
    known = _pick(family, size) if family and is_family(family) else None
    low, high = (known.billions * 0.95, known.billions * 1.05) if known else (0.7 * said, 1.3 * said)
    if not low <= parameters / 1e9 <= high:
        of = f" of {family}" if family else ""
        expected = f"; it should have {known.billions:g}" if known else ""
        raise ConfigError(f"--size {size}{of}, but its config.json describes {_count(parameters)} parameters{expected}")


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.3g} billion" if parameters >= 1e8 else f"{parameters:,}"


def wanted(sizes: Mapping[str, int | None]) -> tuple[list[str], list[LeftOut]]:
    """Return which files of a repository are fetched, and what is not and why. `sizes`: name -> bytes, None if unknown.

    What stands beside the weights is chosen by the rule that every command goes by; of the weights one kind is taken.
    """
    beside, left_out = judge(sizes)
    own: list[str] = []
    for kind in KINDS:
        own = own or [name for name in sizes if "/" not in name and _fits(name, kind) and not _fits(name, NOT_IT)]
    for kind in OWN if "params.json" in sizes else ():
        found = [name for name in sizes if "/" not in name and _fits(name, kind)]
        own = own or (found if any(_fits(name, kind[:1]) for name in found) else [])
    own = own or adapter.of_a_repository(sizes)
    mine = [name for name in (MANIFEST,) if name in sizes]
    return sorted({*beside, *own, *mine}), [item for item in left_out if item.name not in own]


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _cached(repo: str, *, cache_dir: Path | None, revision: str | None, essential: bool) -> Path | None:
    """Return the snapshot in the local cache if it is whole; with `essential`, if it has config and weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    where: dict[str, Any] = {"cache_dir": cache_dir, "revision": revision}
    try:
        chosen = _chosen(_known_tree(repo, **where))
        found: str | None = snapshot_download(repo, **where, local_files_only=True, allow_patterns=chosen)
    except LocalEntryNotFoundError as error:
        found = getattr(error, "snapshot_path", None) if essential else None
    return Path(found) if found and not missing(Path(found)) else None


def _known_tree(repo: str, **where: Any) -> dict[str, int | None] | None:
    """Return the files of a repository from the client's records, None without them (clients before version 2)."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:
        return None
    try:
        return {file.path: file.size for file in get_cached_repo_tree(repo, **where)}
    except CachedRepoTreeNotFoundError:
        return None


def _chosen(sizes: Mapping[str, int | None] | None) -> list[str] | None:
    """Return the names of the files to download, or None for all, where the repository's list is not known."""
    return None if sizes is None else [re.sub(r"([*?[])", r"[\1]", name) for name in wanted(sizes)[0]]


def _download(
    repo: str, *, cache_dir: Path | None, local_dir: Path | None, revision: str | None, endpoint: str | None, tell: Tell
) -> Path:
    extras.need("hub", "huggingface_hub", to=f"downloading {repo}")
    from huggingface_hub import HfApi, snapshot_download

    with one_line(repo, doing="cannot download"):
        listed = HfApi(endpoint=endpoint).list_repo_tree(repo, revision=revision, recursive=True)
        sizes = {entry.path: entry.size for entry in listed if hasattr(entry, "size")}
        coming = {name: sizes[name] or 0 for name in wanted(sizes)[0]}
        room.check(repo, coming, cache_dir=cache_dir, local_dir=local_dir)
        with room.begun(local_dir, {"repo": repo, "revision": revision, "files": coming}):
            found = snapshot_download(
                repo, cache_dir=cache_dir, local_dir=local_dir, revision=revision, endpoint=endpoint,
                allow_patterns=_chosen(sizes),
            )  # fmt: skip
    folder = Path(found)
    if absent := missing(folder):
        raise FormatError(
            f"{repo}: has no {absent[0]}; mconv reads models with config.json and weights in safetensors or "
            f"pytorch_model.bin, Meta's and Mistral's own files, and PEFT adapters (it has {shown(sorted(sizes))})"
        )
    tell(wanted(sizes)[1])
    return folder
