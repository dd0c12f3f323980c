"""One request to the loopback Hub and its answer, without sockets."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mconv.hub.loopback.store import HubFault


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, its body already read."""

    hub: Any
    """The LoopbackHub, whose module imports this one."""
    method: str
    path: str
    query: dict[str, str]
    range: str
    authorised: bool
    body: IO[bytes]
    size: int

    def json(self) -> Any:
        """Return the body as JSON; raises HubFault 400."""
        try:
            return json.load(self.body)
        except ValueError as error:
            raise HubFault(400, f"the body is no JSON: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer; `body` is sent from byte `start` on."""

    status: int = 200
    body: bytes | Path = b"{}"
    start: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the whole body, skipped ones included."""
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)


def reply(value: object, *, status: int = 200) -> Response:
    """Return `value` as a JSON response."""
    return Response(status=status, body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def fault(error: HubFault) -> Response:
    """Return an error in the Hub's form: a JSON body and two headers."""
    headers = {"Content-Type": "application/json", "X-Error-Message": error.message.splitlines()[0]}
    if error.code:
        headers["X-Error-Code"] = error.code
    return Response(status=error.status, body=json.dumps({"error": error.message}).encode(), headers=headers)
