"""Fetches models from the Hub: a folder, `ORG/NAME`, or a family and a size becomes a local folder."""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mconv import extras
from mconv.convert.folders import unfinished
from mconv.convert.folders.recognize import explain, shown
from mconv.convert.folders.sidecar import LeftOut, judge
from mconv.convert.folders.staging import PULL
from mconv.errors import FormatError, MconvError
from mconv.hub import adapter, room
from mconv.hub.adapter import missing
from mconv.hub.catalog import repository
from mconv.hub.faults import one_line
from mconv.hub.folder import MANIFEST, check_weights

KINDS: tuple[tuple[str, ...], ...] = (
    ("*.safetensors", "*.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model*.bin.index.json"),
)
"""Name patterns of a model's weights. A repository often has both kinds; the first one found is downloaded."""
OWN: tuple[tuple[str, ...], ...] = (
    ("consolidated*.safetensors", "consolidated*.safetensors.index.json", "params.json"),
    ("consolidated.*.pth", "params.json"),
)
"""Name patterns of weights in Mistral's and Meta's own files, used if a repository has no others."""
NOT_IT = ("consolidated*", "adapter_*", "*.fp16*", "*.bf16*", "*.fp32*", "*.int8*", "*.non_ema*")
"""Files to skip though they match those patterns: copies in another format or precision, and adapters."""
Tell = Callable[[Sequence[LeftOut]], None]
"""A callback for the files of a repository that are not downloaded."""


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
    """Return the folder of `source`: a local folder, else the Hub's local cache, else a download.

    `source` is a folder, `ORG/NAME`, or a family (with `size`). A download fetches weights (safetensors, else `.bin`) and
    the files beside them that `convert/folders/sidecar.py` chooses; no code is ever run. `tell` is called with the files
    left out. Raises ConfigError on an unknown name, MconvError if the download fails.
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
            f"{repo} is not completely in the local cache, and --offline forbids a download; on a machine with "
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
    """Download `source` into the folder `out` and check that the model is complete. An interrupted pull is resumed.

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


def wanted(sizes: Mapping[str, int | None]) -> tuple[list[str], list[LeftOut]]:
    """Return the files of a repository to download, and those left out and why. `sizes`: name -> bytes or None.

    The files beside the weights are chosen by the same rule in every command; of the weights, one kind is taken.
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
    """Return the snapshot in the local cache if it is complete; with `essential`, config and weights are enough."""
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
    """Return a repository's files from the client's records, None if it has none (clients before version 2)."""
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
    """Return the names of the files to download, or None for all files if the repository's list is unknown."""
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
