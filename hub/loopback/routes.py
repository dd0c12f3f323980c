"""The part of the Hub's HTTP API that its Python client uses for models, as one table of routes."""

import base64
import binascii
import fnmatch
import hmac
import io
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from mconv.hub.loopback.store import Change, Commit, Entry, HubFault, as_json, check_path, git_oid
from mconv.hub.loopback.wire import Request, Response, reply

_LFS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.model", "*.gguf", "*.h5", "*.msgpack")
"""Always LFS, as in the `.gitattributes` that the Hub gives a new model."""


def route(request: Request) -> Response:
    """Answer one request; raises HubFault."""
    for method, pattern, needs, serve in ROUTES:
        match = pattern.fullmatch(request.path)
        if match and request.method in method.split():
            groups = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
            _admit(request, groups.get("repo"), needs=needs)
            return serve(request, **groups)
    raise HubFault(404, f"no such route here: {request.method} {request.path}")


def _admit(request: Request, repo: str | None, *, needs: str) -> None:
    """Let the request through, or answer like the Hub, which does not distinguish a private model from a missing one."""
    if needs == "token" and not request.authorised:
        raise HubFault(401, "Invalid credentials in Authorization header")
    if needs == "token" and request.method == "POST" and request.hub.access.get("role") == "read":
        raise HubFault(403, "this token may not write")
    if needs == "read" and repo and not request.authorised:
        try:
            private = request.hub.store.private(repo)
        except HubFault:
            private = True
        if private:
            raise HubFault(401, "Repository not found", code="RepoNotFound")


def _whoami(request: Request) -> Response:
    hub = request.hub
    orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": hub.org_roles.get(name, "write")}
            for name in hub.orgs]  # fmt: skip
    auth = {"type": "access_token", "accessToken": hub.access}
    return reply({"type": "user", "name": hub.user, "fullname": hub.user, "orgs": orgs, "auth": auth})


def _may_write(request: Request, repo: str) -> Response:
    """Answer whether the token may write to a repository."""
    request.hub.store.folder(repo)
    owner = repo.partition("/")[0]
    role = "write" if owner == request.hub.user else request.hub.org_roles.get(owner, "write")
    if request.hub.access.get("role") == "read" or role == "read" or owner not in (request.hub.user, *request.hub.orgs):
        raise HubFault(403, "this token may not write")
    return reply({})


def _create(request: Request) -> Response:
    wanted = request.json()
    owner = wanted.get("organization") or request.hub.user
    if owner not in (request.hub.user, *request.hub.orgs):
        raise HubFault(403, f"You don't have the rights to create a model under the namespace {owner!r}")
    repo = f"{owner}/{wanted['name']}"
    answer = {"url": f"{request.hub.url}/{repo}", "name": repo}
    try:
        request.hub.store.create(repo, private=bool(wanted.get("private") or wanted.get("visibility") == "private"))
    except HubFault as error:
        if error.status != 409:
            raise
        return reply({**answer, "error": error.message}, status=409)
    return reply(answer)


def _validate_yaml(request: Request) -> Response:
    import yaml

    parts = str(request.json()["content"]).split("---\n")
    try:
        valid = len(parts) < 3 or isinstance(yaml.safe_load(parts[1]), dict)
    except yaml.YAMLError:
        valid = False
    errors = [] if valid else [{"message": "the metadata is not valid YAML"}]
    return reply({"errors": errors, "warnings": []}, status=200 if valid else 400)


def _info(request: Request, repo: str, rev: str = "main") -> Response:
    commit = request.hub.store.commit_at(repo, rev)
    private = request.hub.store.private(repo)
    return reply({"_id": repo, "id": repo, "modelId": repo, "private": private, "tags": [], **as_json(commit)})


def _refs(request: Request, repo: str) -> Response:
    branches = request.hub.store.branches(repo).items()
    shown = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in branches]
    return reply({"branches": shown, "tags": [], "converts": []})


def _branch(request: Request, repo: str, branch: str) -> Response:
    request.hub.store.add_branch(repo, branch, start=request.json().get("startingPoint") or "main")
    return reply({})


def _tree(request: Request, repo: str, rev: str, under: str = "") -> Response:
    files = request.hub.store.commit_at(repo, rev).files
    inside = f"{under}/" if under else ""
    names = [name for name in sorted(files) if name.startswith(inside)]
    if request.query.get("recursive", "").lower() not in ("true", "1"):
        names = [name for name in names if "/" not in name[len(inside) :]]
    return reply([_listed(name, files[name]) for name in names])


def _listed(name: str, entry: Entry) -> dict[str, Any]:
    lfs = {"lfs": {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}} if entry.lfs else {}
    return {"type": "file", "path": name, "size": entry.size, "oid": entry.git_oid, **lfs}


def _preupload(request: Request, repo: str, rev: str) -> Response:
    files = request.hub.store.commit_at(repo, rev).files
    answers = []
    for asked in request.json()["files"]:
        name, size = check_path(asked["path"]), int(asked["size"])
        lfs = size > request.hub.lfs_threshold or any(fnmatch.fnmatch(name, p) for p in _LFS)
        oid = files[name].etag if name in files else None
        answers.append({"path": name, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid})
    return reply({"files": answers})


def _batch(request: Request, repo: str) -> Response:
    wanted = request.json()
    if wanted.get("operation") != "upload":
        raise HubFault(400, "only uploads go through the batch route")
    return reply({"transfer": "basic", "objects": [_offer(request, repo, item) for item in wanted["objects"]]})


def _offer(request: Request, repo: str, item: dict[str, Any]) -> dict[str, Any]:
    oid, size, hub = str(item["oid"]), int(item["size"]), request.hub
    known = {"oid": oid, "size": size}
    if hub.store.blob(repo, oid).is_file():
        return known
    address = f"{hub.url}/storage/{repo}/{oid}?size={size}&signature={hub.signature(repo, oid, size)}"
    verify = {"href": f"{hub.url}/{repo}.git/info/lfs/verify", "header": {}}
    return {**known, "actions": {"upload": {"href": address, "header": {}}, "verify": verify}}


def _store(request: Request, repo: str, oid: str) -> Response:
    size = int(request.query.get("size", -1))
    # The client sends no token to storage: the signed address stands for it.
    if not hmac.compare_digest(request.query.get("signature", ""), request.hub.signature(repo, oid, size)):
        raise HubFault(403, "this upload address was not handed out")
    request.hub.store.add_blob(repo, request.body, size=size, sha256=oid)
    return reply({})


def _verify(request: Request, repo: str) -> Response:
    wanted = request.json()
    blob = request.hub.store.blob(repo, str(wanted["oid"]))
    if not blob.is_file() or blob.stat().st_size != wanted["size"]:
        raise HubFault(404, "no such object, or of another size")
    return reply({})


def _commit(request: Request, repo: str, rev: str) -> Response:
    try:
        lines = [json.loads(line) for line in request.body.read().splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        changes = [_change(request, repo, line["key"], line["value"]) for line in lines if line["key"] != "header"]
    except (ValueError, KeyError, StopIteration) as error:
        raise HubFault(400, f"malformed commit: {error}") from None
    parent = header.get("parentCommit")
    made = request.hub.store.commit(repo, rev, title=header["summary"], parent=parent, changes=changes)
    return reply({"success": True, "commitOid": made.id, "commitUrl": f"{request.hub.url}/{repo}/commit/{made.id}"})


def _change(request: Request, repo: str, key: str, value: dict[str, Any]) -> Change:
    name = check_path(value["path"].rstrip("/"))
    if key == "file":
        return _adding(name, _regular(request, repo, value))
    if key == "lfsFile":
        return _adding(name, _uploaded(request, repo, value))
    if key in ("deletedFile", "deletedFolder"):
        return _deleting(name, folder=key == "deletedFolder")
    raise HubFault(400, f"unknown operation {key!r} in commit")


def _adding(name: str, entry: Entry) -> Change:
    return lambda files: files.update({name: entry})


def _deleting(name: str, *, folder: bool) -> Change:
    def delete(files: dict[str, Entry]) -> None:
        gone = [f for f in files if f == name or (folder and f.startswith(name + "/"))]
        if not gone:
            raise HubFault(404, f"A file with this name doesn't exist: {name}", code="EntryNotFound")
        for f in gone:
            del files[f]

    return delete


def _regular(request: Request, repo: str, value: dict[str, Any]) -> Entry:
    try:
        content = base64.b64decode(value["content"], validate=True)
    except binascii.Error as error:
        raise HubFault(400, f"{value['path']}: {error}") from None
    sha = request.hub.store.add_blob(repo, io.BytesIO(content), size=len(content))
    return Entry(sha256=sha, git_oid=git_oid(content), size=len(content), lfs=False)


def _uploaded(request: Request, repo: str, value: dict[str, Any]) -> Entry:
    """Return the entry of a commit's LFS file, whose content must have arrived as declared."""
    blob = request.hub.store.blob(repo, str(value["oid"]))
    if not blob.is_file() or value.get("size") not in (None, blob.stat().st_size):
        raise HubFault(400, f"{value['path']}: no LFS object {value['oid']} of that size was uploaded")
    size = blob.stat().st_size
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{blob.name}\nsize {size}\n"
    return Entry(sha256=blob.name, git_oid=git_oid(pointer.encode()), size=size, lfs=True)


def _resolve(request: Request, repo: str, rev: str, name: str) -> Response:
    commit = request.hub.store.commit_at(repo, rev)
    entry = commit.files.get(check_path(name))
    if entry is None:
        raise HubFault(404, "Entry not found", code="EntryNotFound")
    wanted = re.fullmatch(r"bytes=(\d+)-", request.range)
    start = min(int(wanted[1]), entry.size) if wanted else 0
    headers = _headers(commit, entry)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{entry.size - 1}/{entry.size}"
    body = request.hub.store.blob(repo, entry.sha256)
    return Response(status=206 if wanted else 200, body=body, start=start, headers=headers)


def _headers(commit: Commit, entry: Entry) -> dict[str, str]:
    linked = {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.etag}"'} if entry.lfs else {}
    return {"ETag": f'"{entry.etag}"', "X-Repo-Commit": commit.id, "Accept-Ranges": "bytes", **linked}


_REPO = "(?P<repo>[^/]+/[^/]+)"
_API = f"/api/models/{_REPO}"
ROUTES: tuple[tuple[str, re.Pattern[str], str, Callable[..., Response]], ...] = tuple(
    (method, re.compile(pattern), needs, serve)
    for method, pattern, needs, serve in (
        ("GET", "/api/whoami-v2", "token", _whoami),
        ("POST", "/api/repos/create", "token", _create),
        ("POST", "/api/validate-yaml", "nothing", _validate_yaml),
        ("GET", _API, "read", _info),
        ("GET", f"{_API}/revision/(?P<rev>[^/]+)", "read", _info),
        ("GET", f"{_API}/auth-check/write", "token", _may_write),
        ("GET", f"{_API}/refs", "read", _refs),
        ("POST", f"{_API}/branch/(?P<branch>[^/]+)", "token", _branch),
        ("GET", f"{_API}/tree/(?P<rev>[^/]+)(?:/(?P<under>.*))?", "read", _tree),
        ("POST", f"{_API}/preupload/(?P<rev>[^/]+)", "token", _preupload),
        ("POST", f"/{_REPO}\\.git/info/lfs/objects/batch", "token", _batch),
        ("POST", f"/{_REPO}\\.git/info/lfs/verify", "token", _verify),
        ("PUT", f"/storage/{_REPO}/(?P<oid>[^/]+)", "signature", _store),
        ("POST", f"{_API}/commit/(?P<rev>[^/]+)", "token", _commit),
        ("GET HEAD", f"/{_REPO}/resolve/(?P<rev>[^/]+)/(?P<name>.+)", "read", _resolve),
    )
)
