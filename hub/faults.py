"""Errors of the Hub's client in one line, with what to do."""

import contextlib
import re
from collections.abc import Iterator

from mconv.errors import ConfigError, MconvError

LOGIN = "set HF_TOKEN or run `hf auth login`"
_TOKEN = re.compile(r"hf_[A-Za-z0-9]+|Bearer\s+\S+")


@contextlib.contextmanager
def one_line(repo: str, *, doing: str) -> Iterator[None]:
    """Raise an MconvError in place of an error of the network or the Hub; other exceptions pass unchanged."""
    from huggingface_hub.errors import HfHubHTTPError

    # HTTPError of the client's HTTP library, whichever that is in this version.
    any_http: type[Exception] = HfHubHTTPError.__mro__[1]
    try:
        yield
    except MconvError:
        raise
    except (any_http, OSError, ValueError, RuntimeError) as error:
        raise MconvError(f"{repo}: {doing}: {explain(error, repo=repo)}") from error


def explain(error: BaseException, *, repo: str) -> str:
    """Return the cause of an error and what to do, in one line without secrets."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, GatedRepoError):
            return f"access is granted on request; ask on the page of {repo}, then {LOGIN}"
        if isinstance(cause, LocalTokenNotFoundError):
            return f"not logged in; {LOGIN}"
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set; unset it to reach the Hub"
        if isinstance(cause, HfHubHTTPError):
            return clean(_status(cause))
        if isinstance(cause, ConnectionError) or "connect" in type(cause).__name__.lower():
            return clean(f"the Hub did not answer ({cause}); check the network and HF_ENDPOINT")
    return clean(f"{chain[0]}" + (f" ({chain[-1]})" if len(chain) > 1 else ""))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: object) -> str:
    """Return the meaning of an HTTP error of the Hub, and what to do."""
    status = error.response.status_code  # type: ignore[attr-defined]
    said = getattr(error, "server_message", None) or ""
    advice = {
        400: "the Hub refused the request as invalid",
        401: f"the Hub does not accept the token, or hides the repository from it; {LOGIN}",
        403: "the token has no right to do this; use one that has, or ask for access",
        404: "no such repository or revision, or the token may not see it; check the name",
        409: "the repository is busy or was made meanwhile; try again",
        412: "someone else changed the repository meanwhile; push again",
        413: "the upload is too large for the Hub",
        429: "too many requests; wait some minutes and try again",
    }.get(status, "the Hub failed; try again later" if status >= 500 else "the Hub refused")
    return f"{advice} (HTTP {status}{', ' + said if said else ''})"


def clean(text: str) -> str:
    """Return a text as one printable line without tokens, of 400 characters at most."""
    text = _TOKEN.sub("[token]", " ".join(text.split()))
    return "".join(c for c in text if c.isprintable())[:400]


def check_repo_id(repo: str) -> None:
    """Raise ConfigError if the Hub could not have a repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        why = clean(str(error)).partition(" Use `repo_type`")[0]  # an argument of Python's
        raise ConfigError(f"{clean(repo)!r} is not a repository name; write ORG/NAME ({why})") from None
