"""A Hub on 127.0.0.1 that the real `huggingface_hub` client pushes to and pulls from: no account, no network."""

import contextlib
import hmac
import io
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from mconv.hub.loopback.routes import route
from mconv.hub.loopback.store import HubFault, Store
from mconv.hub.loopback.wire import Request, Response, fault

_CHUNK = 1 << 20
_IN_MEMORY = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """One request as it came in: never its query, its headers or its body, which carry secrets."""

    method: str
    path: str
    authorised: bool


@dataclass(slots=True, kw_only=True)
class Planted:
    """A failure to answer with, instead of serving."""

    part: str
    status: int
    times: int
    code: str


class LoopbackHub:
    """A Hub for one user, for tests and rehearsals.

    with LoopbackHub(folder, token="hf_...") as hub:
        HfApi(endpoint=hub.url, token="hf_...").create_repo("tester/model")

    `access` describes the token as the Hub's `whoami` does: a role and, for a fine-grained token, its scopes. A token
    with the role `read` may write nothing; scopes are not enforced.

    It has no Xet storage, and a server cannot tell the client so. If `hf_xet` is installed, `mconv push` finds out and
    sends plain LFS; other programs upload only if started with `environ` (`HF_HUB_DISABLE_XET=1`).
    """

    def __init__(
        self,
        root: Path,
        *,
        token: str,
        user: str = "tester",
        orgs: tuple[str, ...] = (),
        access: Mapping[str, Any] | None = None,
        lfs_threshold: int = 10_000_000,
    ) -> None:
        self.store = Store(root)
        self.user, self.orgs, self.lfs_threshold = user, orgs, lfs_threshold
        self.access = dict(access or {"role": "write", "displayName": "loopback"})
        self.org_roles: dict[str, str] = {}
        self.log: list[Logged] = []
        self._token = token
        self._secret = secrets.token_bytes(16)
        self._planted: list[Planted] = []
        self._lock = threading.Lock()

    def __enter__(self) -> "LoopbackHub":
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="loopback-hub")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.close_connections()  # or an idle client would hold its thread until the time limit
        self._server.server_close()
        self._thread.join()
        if self._server.crashes and exc[0] is None:
            raise RuntimeError("the loopback Hub has a bug") from self._server.crashes[0]

    @property
    def url(self) -> str:
        """The endpoint, e.g. http://127.0.0.1:40321."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables that a client process needs, except the token."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1"}

    def fail_next(self, part: str, *, status: int, times: int = 1, code: str = "") -> None:
        """Answer `status` to the next `times` requests with `part` in their path; `code` is the Hub's X-Error-Code."""
        with self._lock:
            self._planted.append(Planted(part=part, status=status, times=times, code=code))

    def may_sign(self, authorization: str) -> bool:
        """Return whether this header carries the token."""
        return hmac.compare_digest(authorization.encode(), f"Bearer {self._token}".encode())

    def signature(self, *parts: object) -> str:
        """Return a signature for an upload address, as the storage behind the Hub does."""
        return hmac.new(self._secret, repr(parts).encode(), "sha256").hexdigest()

    def answer(self, request: Request) -> Response:
        """Serve one request: log it, then fail it if a failure is planted, else route it."""
        with self._lock:
            self.log.append(Logged(method=request.method, path=request.path, authorised=request.authorised))
            planted = next((p for p in self._planted if p.times > 0 and p.part in request.path), None)
            if planted:
                planted.times -= 1
        if planted:
            return fault(HubFault(planted.status, f"planted failure {planted.status}", code=planted.code))
        try:
            return route(request)
        except HubFault as error:
            return fault(error)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # closing joins them, so that no test leaves a thread behind
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()
        self.crashes: list[BaseException] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error and not isinstance(error, (ConnectionError, TimeoutError)):  # a client that hangs up is no news
            self.crashes.append(error)


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def _serve(self) -> None:
            # The whole body is read before the answer, also before a refusal: a client that is still sending when the
            # connection closes reports a broken pipe instead of our answer.
            with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as body:
                size = _read_body(self, body)
                body.seek(0)
                _send(self, hub.answer(_request(hub, self, body, size)))

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing; requests are kept in `hub.log`."""

    return Handler


def _request(hub: LoopbackHub, handler: BaseHTTPRequestHandler, body: IO[bytes], size: int) -> Request:
    url = urlsplit(handler.path)
    return Request(
        hub=hub,
        method=handler.command,
        path=url.path,
        query={unquote(k): v for k, v in parse_qsl(url.query)},
        range=handler.headers.get("Range", ""),
        authorised=hub.may_sign(handler.headers.get("Authorization", "")),
        body=body,
        size=size,
    )


def _read_body(handler: BaseHTTPRequestHandler, into: IO[bytes]) -> int:
    """Copy the request's body, of known length or chunked; return its size."""
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return _copy(handler.rfile, into, count=int(handler.headers.get("Content-Length", 0)))
    total = 0
    while count := int(handler.rfile.readline().split(b";")[0] or b"0", 16):
        total += _copy(handler.rfile, into, count=count)
        handler.rfile.readline()
    handler.rfile.readline()
    return total


def _copy(source: Any, into: Any, *, count: int) -> int:
    left = count
    while left and (chunk := source.read(min(left, _CHUNK))):
        into.write(chunk)
        left -= len(chunk)
    return count - left


def _send(handler: BaseHTTPRequestHandler, response: Response) -> None:
    handler.send_response(response.status)
    for name, value in response.headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(response.size - response.start))
    handler.send_header("Connection", "close")  # a kept connection would outlive the hub in the client's pool
    handler.end_headers()
    if handler.command == "HEAD":
        return
    with response.body.open("rb") if isinstance(response.body, Path) else io.BytesIO(response.body) as stream:
        stream.seek(response.start)
        _copy(stream, handler.wfile, count=response.size - response.start)
