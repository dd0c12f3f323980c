"""Storage of the loopback Hub: repositories of commits, branches and content-addressed files in one folder."""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,94}")
_CHUNK = 1 << 20


@runtime_checkable
class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end."""
        ...


class HubFault(Exception):
    """An answer other than success: HTTP status, message, and the code that the Hub's client looks at."""

    def __init__(self, status: int, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of one commit."""

    sha256: str
    git_oid: str
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        """Hub's id of the content: sha256 of an LFS file, git's blob id of any other."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One state of a repository."""

    id: str
    parent: str | None
    title: str
    files: dict[str, Entry]


Change = Callable[[dict[str, Entry]], None]
"""Edits the files of the next commit in place."""


def check_path(path: str) -> str:
    """Return `path` if it names a file inside a repository; raise HubFault otherwise."""
    parts = path.split("/")
    if not path or "\\" in path or any(ord(c) < 32 for c in path) or any(p in ("", ".", "..", ".git") for p in parts):
        raise HubFault(400, f"invalid path in repository: {path!r}")
    return path


def git_oid(content: bytes) -> str:
    """Return git's id of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _copy_hashed(stream: Readable, path: Path) -> str:
    """Write `stream` to `path`; return its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()


class Store:
    """Repositories under `root`; every method is safe to call from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.RLock()

    def folder(self, repo: str) -> Path:
        """Return the folder of an existing `repo`; raises HubFault 404."""
        folder = self._place(repo)
        if not (folder / "repo.json").is_file():
            raise HubFault(404, "Repository not found", code="RepoNotFound")
        return folder

    def _place(self, repo: str) -> Path:
        names = repo.split("/")
        if len(names) != 2 or not all(_NAME.fullmatch(n) and ".." not in n for n in names):
            raise HubFault(404, "Repository not found", code="RepoNotFound")
        return self.root / names[0] / names[1]

    def create(self, repo: str, *, private: bool) -> None:
        """Make `repo` with its first commit; raises HubFault 409 if it is there."""
        with self._lock:
            folder = self._place(repo)
            if (folder / "repo.json").exists():
                raise HubFault(409, "You already created this model repo")
            for name in ("blobs", "commits", "refs"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            first = self._write(folder, parent=None, title="initial commit", files={})
            self._point(folder, branch="main", commit=first)
            (folder / "repo.json").write_text(json.dumps({"private": private}))

    def private(self, repo: str) -> bool:
        """Return whether reading `repo` needs the token."""
        return bool(json.loads((self.folder(repo) / "repo.json").read_text())["private"])

    def branches(self, repo: str) -> dict[str, str]:
        """Return commit ids by branch."""
        refs = self.folder(repo) / "refs"
        return {bytes.fromhex(p.name).decode(): p.read_text() for p in sorted(refs.iterdir())}

    def commit_at(self, repo: str, revision: str) -> Commit:
        """Return the commit that a branch or a full commit id names; raises HubFault 404."""
        commit = self.branches(repo).get(revision, revision)
        path = self.folder(repo) / "commits" / f"{commit}.json"
        if not re.fullmatch(r"[0-9a-f]{40}", commit) or not path.is_file():
            raise HubFault(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        raw = json.loads(path.read_text())
        return Commit(**{**raw, "files": {name: Entry(**e) for name, e in raw["files"].items()}})

    def add_branch(self, repo: str, branch: str, *, start: str = "main") -> None:
        """Make `branch` at `start`; raises HubFault 409 if it is there."""
        with self._lock:
            if branch in self.branches(repo):
                raise HubFault(409, f"Reference already exists: {branch}")
            self._point(self.folder(repo), branch=branch, commit=self.commit_at(repo, start).id)

    def commit(self, repo: str, branch: str, *, title: str, parent: str | None, changes: list[Change]) -> Commit:
        """Apply every change or none; raises HubFault 412 if `branch` is no longer at `parent`."""
        with self._lock:
            if branch not in self.branches(repo):
                raise HubFault(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
            old = self.commit_at(repo, branch)
            if parent not in (None, old.id):
                raise HubFault(412, f"A commit has happened since {parent}. Please refresh and try again.")
            files = dict(old.files)
            for change in changes:
                change(files)
            new = self._write(self.folder(repo), parent=old.id, title=title, files=files)
            self._point(self.folder(repo), branch=branch, commit=new)
            return self.commit_at(repo, new)

    def add_blob(self, repo: str, stream: Readable, *, size: int, sha256: str | None = None) -> str:
        """Keep a file and return its sha256; raises HubFault 400 if it is not what `size` and `sha256` declare."""
        partial = self.folder(repo) / f"incoming-{threading.get_ident()}"
        try:
            sha = _copy_hashed(stream, partial)
            if partial.stat().st_size != size:
                raise HubFault(400, f"{partial.stat().st_size} bytes were sent, {size} were declared")
            if sha256 not in (None, sha):
                raise HubFault(400, f"the content has sha256 {sha}, {sha256} was declared")
            shutil.move(partial, self.blob(repo, sha))
            return sha
        finally:
            partial.unlink(missing_ok=True)

    def blob(self, repo: str, sha256: str) -> Path:
        """Return the path of the content with this digest, existing or not."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise HubFault(400, f"{sha256!r} is no sha256")
        return self.folder(repo) / "blobs" / sha256

    def _write(self, folder: Path, *, parent: str | None, title: str, files: dict[str, Entry]) -> str:
        body = {"parent": parent, "title": title, "files": {name: asdict(e) for name, e in sorted(files.items())}}
        commit = hashlib.sha1(json.dumps(body).encode(), usedforsecurity=False).hexdigest()
        (folder / "commits" / f"{commit}.json").write_text(json.dumps({"id": commit, **body}))
        return commit

    def _point(self, folder: Path, *, branch: str, commit: str) -> None:
        # Hex, so that a branch name with a slash or with dots is one harmless file name.
        (folder / "refs" / branch.encode().hex()).write_text(commit)


def as_json(commit: Commit) -> dict[str, Any]:
    """Return the fields of the Hub's model info that come from a commit."""
    return {"sha": commit.id, "siblings": [{"rfilename": name} for name in sorted(commit.files)]}
