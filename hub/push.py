"""Publishing of a model folder: checked first, then sent as one commit."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mconv.convert.folders.sidecar import LeftOut
from mconv.errors import MconvError
from mconv.hub import adapter
from mconv.hub import card as cards
from mconv.hub.faults import check_repo_id, one_line
from mconv.hub.folder import CARD, MANIFEST, SOURCE_CARD, check, survey
from mconv.hub.ready import Wanted, look

_MESSAGE = "Upload model with mconv"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushFile:
    """One file to publish: `content` if it differs from the file in the folder, else the file itself."""

    name: str
    size: int
    content: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPlan:
    """Files that a push sends. The push changes nothing in the folder."""

    folder: Path
    repo: str
    files: tuple[PushFile, ...]
    left_out: tuple[LeftOut, ...]
    card: str
    card_is_ours: bool
    """True if mconv wrote the card; a card of the user's is sent unchanged."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """Repository, commit and files of a finished push."""

    repo: str
    url: str
    commit: str
    files: tuple[str, ...]
    deleted: tuple[str, ...]
    kept: tuple[str, ...]
    """Files of the repository that were left unchanged because a person wrote them."""


def plan(
    folder: Path,
    repo: str,
    *,
    overwrite_card: bool = False,
    license: str | None = None,
    verified: Sequence[Mapping[str, Any]] | None = None,
) -> PushPlan:
    """Check `folder` and return what a push to `repo` would send, without asking the Hub.

    A README.md that a person wrote or edited is kept unless `overwrite_card`; otherwise the card is made from
    `mconv.json`, and a card copied from the source is sent as SOURCE_README.md. `verified` are verdicts to publish
    instead of those in `mconv.json`. Raises FormatError with every fault of the folder, ConfigError for a bad `repo` or
    `license`.
    """
    check_repo_id(repo)
    if adapter.is_adapter(folder):
        return _plan_of_adapter(folder, repo, overwrite_card=overwrite_card, license=license)
    check(folder)
    names, left_out = survey(folder)
    manifest = cards.read_manifest(folder)
    facts = cards.published(manifest, verified=verified)
    written = _text(folder / CARD) if CARD in names else None
    sealed = written is not None and cards.is_ours(written)
    sources = not sealed and cards.is_the_sources(manifest, folder / CARD)
    ours = overwrite_card or written is None or sources or sealed
    beside = SOURCE_CARD if sources or SOURCE_CARD in names else None
    card = cards.render(facts, repo=repo, license=license, source=beside) if ours or written is None else written
    made = {CARD: card.encode()} if ours else {}
    if sources and SOURCE_CARD not in names:
        made[SOURCE_CARD] = (folder / CARD).read_bytes()
    elif sources:
        left_out.append(LeftOut(name=CARD, why=f"it is the source's card, and {SOURCE_CARD} exists already"))
    if manifest and facts != manifest:
        made[MANIFEST] = (json.dumps(facts, indent=2) + "\n").encode()
    files = tuple(_file(folder, name, content=made.get(name)) for name in sorted({*names, *made}))
    return PushPlan(folder=folder, repo=repo, files=files, left_out=tuple(left_out), card=card, card_is_ours=ours)


def _plan_of_adapter(folder: Path, repo: str, *, overwrite_card: bool, license: str | None) -> PushPlan:
    """Return the plan of an adapter's folder: only its own files, and a card made from them."""
    adapter.check(folder)
    names, left_out = adapter.survey(folder)
    written = _text(folder / CARD) if CARD in names else None
    ours = overwrite_card or written is None or cards.is_ours(written) or adapter.is_template(written)
    card = adapter.render(folder, repo=repo, license=license) if ours or written is None else written
    made = {CARD: card.encode()} if ours else {}
    if (config := adapter.published_config(folder)) is not None:
        made[adapter.CONFIG] = config
    if MANIFEST in names:
        made[MANIFEST] = (json.dumps(cards.published(cards.read_manifest(folder)), indent=2) + "\n").encode()
    files = tuple(_file(folder, name, content=made.get(name)) for name in sorted({*names, *made}))
    return PushPlan(folder=folder, repo=repo, files=files, left_out=tuple(left_out), card=card, card_is_ours=ours)


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    overwrite_card: bool = False,
    license: str | None = None,
    verified: Sequence[Mapping[str, Any]] | None = None,
    endpoint: str | None = None,
    message: str = _MESSAGE,
) -> PushResult:
    """Publish `folder` as `repo` on branch `revision` (main) and return where it is.

    All files go in one commit, so that the repository is never half written. Old weights that would remain beside the new
    ones are an error, or with `overwrite` are deleted in the same commit. The token is the client's own: HF_TOKEN, or the
    login. Raises MconvError.
    """
    from huggingface_hub import HfApi

    options: dict[str, Any] = {"overwrite_card": overwrite_card, "license": license, "verified": verified}
    planned = plan(folder, repo, **options)
    branch = revision or "main"
    wanted = Wanted(
        repo=repo, branch=branch, private=private, overwrite=overwrite, files=frozenset(f.name for f in planned.files)
    )
    ready = look(wanted, endpoint=endpoint).require()
    name, api = ready.repo, HfApi(endpoint=endpoint, library_name="mconv")
    if name != repo:
        planned = plan(folder, name, **options)  # the card names it in full
    files, kept = _without_kept_card(api, planned, ready.files, repo=name, branch=branch, overwrite_card=overwrite_card)
    with one_line(name, doing="cannot make the repository"):
        head = ready.head or _make(api, name, branch=branch, private=private)
    with one_line(name, doing="cannot upload"):
        done = _commit(api, planned, files, ready.stale, repo=name, branch=branch, head=head, message=message)
    sent = tuple(file.name for file in files)
    url = f"{api.endpoint}/{name}" + (f"/tree/{branch}" if revision else "")
    return PushResult(repo=name, url=url, commit=done, files=sent, deleted=ready.stale, kept=kept)


def repository_name(folder: Path) -> str:
    """Return the default name of a folder's repository: the folder's name, with characters that the Hub allows."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name)
    plain = re.sub(r"\.git$|\.ipynb$", "", re.sub(r"([.-])[.-]+", r"\1", plain))[:96].strip(".-")
    if not plain:
        raise MconvError(f"{folder}: the folder's name cannot be made a repository name; give ORG/NAME")
    return plain


def _file(folder: Path, name: str, *, content: bytes | None) -> PushFile:
    size = (folder / name).stat().st_size if content is None else len(content)
    return PushFile(name=name, size=size, content=content)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _make(api: Any, repo: str, *, branch: str, private: bool) -> str:
    """Make the repository and the branch where they are missing; return the branch's commit."""
    api.create_repo(repo, private=private, exist_ok=True)
    if branch != "main":
        api.create_branch(repo, branch=branch, exist_ok=True)
    return api.model_info(repo, revision=branch).sha


def _without_kept_card(
    api: Any, planned: PushPlan, remote: frozenset[str], *, repo: str, branch: str, overwrite_card: bool
) -> tuple[tuple[PushFile, ...], tuple[str, ...]]:
    """Return (files to send, files kept): a card that somebody edited on the Hub is not replaced."""
    if overwrite_card or not planned.card_is_ours or CARD not in remote:
        return planned.files, ()
    with one_line(repo, doing="cannot read its README.md"):
        there = _text(Path(api.hf_hub_download(repo, CARD, revision=branch)))
    if cards.is_ours(there):
        return planned.files, ()
    return tuple(file for file in planned.files if file.name != CARD), (CARD,)


def _commit(
    api: Any,
    planned: PushPlan,
    files: tuple[PushFile, ...],
    stale: tuple[str, ...],
    *,
    repo: str,
    branch: str,
    head: str,
    message: str,
) -> str:
    # Not upload_folder: with Xet it sends several commits, and a reader would see the weights without their index.
    # `parent_commit` makes the Hub refuse if the repository has changed since it was looked at.
    rest: dict[str, Any] = {"repo_id": repo, "revision": branch, "parent_commit": head, "commit_message": message}
    try:
        return api.create_commit(operations=_operations(planned, files, stale, opened={}), **rest).oid
    except ConnectionError as error:
        if "xet-write-token" not in str(error) or "404" not in str(error):
            raise
    # A Hub without Xet storage. The client has no switch for one call, but sends open files by plain LFS.
    with contextlib.ExitStack() as stack:
        opened = {f.name: stack.enter_context((planned.folder / f.name).open("rb")) for f in files if f.content is None}
        return api.create_commit(operations=_operations(planned, files, stale, opened=opened), **rest).oid


def _operations(
    planned: PushPlan, files: tuple[PushFile, ...], stale: tuple[str, ...], *, opened: Mapping[str, BinaryIO]
) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def add(file: PushFile) -> Any:
        source = file.content or opened.get(file.name) or planned.folder / file.name
        return CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=source)

    return [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in stale] + [add(f) for f in files]


@contextlib.contextmanager
def progress(*, shown: bool) -> Iterator[None]:
    """Show or hide the client's own progress bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def as_json(value: PushPlan | PushResult) -> dict[str, Any]:
    """Return plain JSON values for `--json`."""
    if isinstance(value, PushResult):
        return dataclasses.asdict(value)
    return {
        "repo": value.repo,
        "total_bytes": value.total_bytes,
        "files": [{"name": file.name, "size": file.size} for file in value.files],
        "left_out": [dataclasses.asdict(item) for item in value.left_out],
        "card_is_ours": value.card_is_ours,
        "card": value.card,
    }
