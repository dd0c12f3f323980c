"""Requirements of a push on the Hub (login, rights, state of the repository), checked without writing anything."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mconv.convert.folders.tokens import is_tokenizer
from mconv.errors import MconvError, refuse
from mconv.hub.faults import LOGIN, check_repo_id, clean, explain, one_line
from mconv.hub.folder import MANIFEST, STALE, matches

MAY_WRITE = ("write", "admin", "god")
"""Roles of a token that may write wherever its owner may."""
NO_WRITE = ("read", "no_access")
"""Roles of an organisation's members who may write nothing there. A contributor may make repositories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One requirement of a push."""

    name: str
    passed: bool | None
    """None if it could not be found out, which does not stop a push."""
    text: str
    """Finding, and what to do about it if it stops the push."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The push that is asked for, as far as the repository decides about it."""

    repo: str
    """ORG/NAME, or NAME for a repository of the token's owner."""
    branch: str = "main"
    private: bool = False
    overwrite: bool = False
    files: frozenset[str] = frozenset()
    """Names of the files to send; empty where the folder cannot be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Result of the checks, and the state of the repository."""

    repo: str
    """ORG/NAME, or the given name if the token's owner is not known."""
    checks: tuple[Check, ...]
    head: str | None = None
    """Commit of the branch; None if the repository or the branch must be made."""
    files: frozenset[str] = frozenset()
    """Files of the branch."""
    stale: tuple[str, ...] = ()
    """Files of the branch that the push deletes."""

    @property
    def problems(self) -> list[str]:
        """Reasons why the push cannot go ahead."""
        return [f"{self.repo}: {check.text}" for check in self.checks if check.passed is False]

    def require(self) -> "Readiness":
        """Return self. Raises MconvError with every problem if there is one."""
        refuse(self.problems, doing=f"{self.repo} cannot be pushed to")
        return self


@dataclass(slots=True)
class _Look:
    """Findings so far, check by check: each check builds on those before it."""

    api: Any
    wanted: Wanted
    repo: str
    checks: list[Check] = field(default_factory=list)
    user: Mapping[str, Any] | None = None
    """Hub's answer on whose token it is."""
    head: str | None = None
    files: frozenset[str] = frozenset()
    stale: tuple[str, ...] = ()
    exists: bool | None = None
    writable: bool | None = None
    """Hub's answer for an existing repository; None if it gives none."""

    def add(self, name: str, passed: bool | None, text: str) -> None:
        self.checks.append(Check(name=name, passed=passed, text=text))


def look(wanted: Wanted, *, endpoint: str | None = None) -> Readiness:
    """Return whether a push can go ahead. Reads from the Hub only; raises nothing for what it finds."""
    from huggingface_hub import HfApi

    found = _Look(HfApi(endpoint=endpoint, library_name="mconv"), wanted, wanted.repo)
    for step in (_login, _name, _repository, _rights):
        step(found)
    return Readiness(repo=found.repo, checks=tuple(found.checks), head=found.head, files=found.files, stale=found.stale)


def _login(found: _Look) -> None:
    """Check that there is a token, that the Hub answers, and that it accepts the token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    if not get_token():
        found.add("token", False, f"no Hugging Face login was found; {LOGIN}")
        return
    try:
        with one_line(found.repo, doing="cannot log in"):
            found.user = found.api.whoami()
    except MconvError as error:
        cause = error.__cause__ or error
        found.add("token" if isinstance(cause, HfHubHTTPError) else "network", False, explain(cause, repo=found.repo))
        return
    found.add("token", True, f"the Hub at {found.api.endpoint} accepts it as {clean(str(found.user.get('name')))}'s")


def _name(found: _Look) -> None:
    """Check that the name is a repository's, and find its owner."""
    if found.user and "/" not in found.repo:
        found.repo = f"{clean(str(found.user.get('name')))}/{found.repo}"
    try:
        check_repo_id(found.repo)
    except MconvError as error:
        found.add("name", False, str(error))
        found.repo, found.user = found.wanted.repo, None
        return
    owned = "/" in found.repo
    found.add("name", True if owned else None, "valid" if owned else "its owner is not known without a login")


def _repository(found: _Look) -> None:
    """Check that the repository can take the files."""
    if found.user is None:
        return
    wanted = found.wanted
    try:
        with one_line(found.repo, doing="cannot look at the repository"):
            found.exists = _read(found)
        found.stale = stale(wanted.files, found.files, overwrite=wanted.overwrite) if wanted.files else ()
    except MconvError as error:
        found.add("repository", False, str(error).removeprefix(f"{found.repo}: "))
        return
    if not found.exists:
        found.add(
            "repository",
            True,
            f"{found.repo} does not exist; the push makes it, {'private' if wanted.private else 'public'}",
        )
        return
    gone = f"; the push deletes {len(found.stale)} of its files" if found.stale else ""
    made = f"; the push makes the branch {wanted.branch}" if found.head is None else ""
    found.add("repository", True, f"{found.repo} exists, {len(found.files)} files{gone}{made}")


def _read(found: _Look) -> bool:
    """Fill in the branch's commit and files; return whether the repository exists. Raises MconvError if it is unfit."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        about = found.api.model_info(found.repo)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return False
    if found.wanted.private and about.private is False:
        raise MconvError("exists and is public, and --private would not hide it; make it private on its page")
    if about.disabled:
        raise MconvError("the Hub has disabled it; its page says why, or push to another repository")
    try:
        info = found.api.model_info(found.repo, revision=found.wanted.branch)
    except RevisionNotFoundError:
        return True
    found.head, found.files = info.sha, frozenset(item.rfilename for item in info.siblings or ())
    return True


def stale(files: Iterable[str], remote: frozenset[str], *, overwrite: bool) -> tuple[str, ...]:
    """Return weights and tokenizer files that a push does not replace. Raises MconvError unless `overwrite` allows it.

    A manifest that the push does not replace is always deleted, because it describes the old weights.
    """
    left = tuple(sorted(name for name in remote - set(files) if matches(name, STALE) or is_tokenizer(name)))
    if left and not overwrite:
        shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        raise MconvError(
            f"it holds weights or tokenizer files that would be left beside the new ones: {shown}; "
            "delete them in the same commit with --overwrite, or push to another repository"
        )
    return (*left, *({MANIFEST} & (remote - set(files))))


# ---- rights ----------------------------------------------------------------------------------------------------------
def _rights(found: _Look) -> None:
    """Check that the token may write to the repository."""
    if found.user is None:
        return
    found.writable = _asked(found) if found.exists else None
    if found.writable is True:
        found.add("rights", True, "the token may write to it")
        return
    for rule in (_of_the_token, _of_the_owner):
        if (answer := rule(found)) is not None:
            found.add("rights", *answer)
            return
    if found.writable is False:
        found.add("rights", False, "the Hub says that this token may not write to it; ask its owner for write access")
    else:
        found.add("rights", True, "the token may write there")


Answer = tuple[bool | None, str]


def _asked(found: _Look) -> bool | None:
    """Ask the Hub whether the token may write to an existing repository; None where it does not know the question."""
    from huggingface_hub.errors import HfHubHTTPError

    check: Callable[..., None] = found.api.auth_check
    if "write" not in inspect.signature(check).parameters:  # older clients
        return None
    try:
        check(found.repo, write=True)
    except HfHubHTTPError as error:
        return False if error.response.status_code == 403 else None
    except (OSError, ValueError, RuntimeError):
        return None
    return True


def _of_the_token(found: _Look) -> Answer | None:
    """Return why the token itself forbids the push, or None."""
    token = _token(found.user)
    role, page = token.get("role"), f"{found.api.endpoint}/settings/tokens"
    called = f"the token {clean(str(token['displayName']))!r}" if token.get("displayName") else "the token"
    if role == "read":
        return False, f"{called} may only read; make one that may write at {page}"
    if role != "fineGrained":
        return None if role in MAY_WRITE else (None, "the Hub does not say what this token may do")
    spaces, models = _scopes(token, ("user", "org")), _scopes(token, ("model",))
    owner = found.repo.partition("/")[0]
    if owner.lower() in spaces:
        return None
    if found.repo.lower() in models:
        return None if found.exists else (
            False, f"{called} may write to this repository but not create it: create it on the Hub first, or let the "
            f"token write to all repositories of {owner} ({page})")  # fmt: skip
    may = ", ".join([*spaces, *models]) or "nothing"
    return False, (
        f"{called} is fine-grained and may write to {clean(may)}: give it write access to the repositories of {owner} at "
        f"{page}"
    )


def _of_the_owner(found: _Look) -> Answer | None:
    """Return why the token's owner may not write to the namespace, or None."""
    user, owner = found.user or {}, found.repo.partition("/")[0]
    roles = {
        str(org.get("name")).lower(): org.get("roleInOrg") for org in user.get("orgs") or () if isinstance(org, dict)
    }
    if owner.lower() in (str(user.get("name")).lower(), *_scopes(_token(user), ("org",))):
        return None
    if owner.lower() not in roles:
        mine = clean(", ".join([str(user.get("name")), *roles]))
        return False, f"{clean(str(user.get('name')))} is not a member of {owner}; push to a repository of {mine}"
    if roles[owner.lower()] in NO_WRITE:
        return False, f"your role in {owner} is {roles[owner.lower()]!r}, which may not write; ask for another one"
    return None


def _token(user: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the Hub's description of the token, {} if there is none."""
    auth = (user or {}).get("auth")
    token = auth.get("accessToken") if isinstance(auth, dict) else None
    return token if isinstance(token, dict) else {}


def _scopes(token: Mapping[str, Any], kinds: tuple[str, ...]) -> list[str]:
    """Return the names of users, organisations or models to whose repositories a fine-grained token may write."""
    fine = token.get("fineGrained")
    scoped = fine.get("scoped") if isinstance(fine, dict) else None
    names = []
    for scope in scoped if isinstance(scoped, list) else ():
        entity, may = (scope.get("entity"), scope.get("permissions")) if isinstance(scope, dict) else (None, None)
        if isinstance(entity, dict) and entity.get("type") in kinds and "repo.write" in (may or ()):
            names.append(str(entity.get("name")).lower())
    return names
