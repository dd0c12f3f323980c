"""The loopback Hub against the real client, and against clients that cheat."""

import hashlib
import http.client
import json
import os
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from mconv.hub.loopback import LoopbackHub


def ask(hub: LoopbackHub, method: str, path: str, body: bytes = b"", token: str | None = "", **headers: str):
    """(status, headers, body) of one raw request."""
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
    try:
        if token is not None:
            headers["Authorization"] = f"Bearer {token or os.environ['HF_TOKEN']}"
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def offer(hub: LoopbackHub, content: bytes, *, size: int | None = None) -> str:
    """The upload address for `content` in tester/m, as path and query."""
    item = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content) if size is None else size}
    body = json.dumps({"operation": "upload", "objects": [item]}).encode()
    status, _, answer = ask(hub, "POST", "/tester/m.git/info/lfs/objects/batch", body)
    assert status == 200
    return json.loads(answer)["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.url)


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    api = HfApi(endpoint=hub.url)
    api.create_repo("m")
    return api


def test_upload_folder_then_snapshot_download_is_identity(hub: LoopbackHub, api: HfApi, tmp_path: Path):
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    files = {
        "empty.txt": b"",
        "deep/er/ünï code.txt": "ä\r\n".encode(),
        "big.dat": bytes(range(256)) * 50_000,  # 12.8 MB: beyond the threshold for regular files
        "model.safetensors": b"small, but always LFS",
    }
    for name, content in files.items():
        (source / name).write_bytes(content)
    api.upload_folder(repo_id="tester/m", folder_path=source)
    got = Path(snapshot_download("tester/m", endpoint=hub.url, cache_dir=tmp_path / "c"))
    assert {str(p.relative_to(got)): p.read_bytes() for p in got.rglob("*") if p.is_file()} == files
    lfs = {f.path for f in api.list_repo_tree("tester/m", recursive=True) if f.lfs}
    assert lfs == {"big.dat", "model.safetensors"}


def test_create_repo_twice(api: HfApi):
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("m")
    assert api.create_repo("m", exist_ok=True).repo_id == "tester/m"
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("strangers/m")


@pytest.mark.parametrize("token", ["hf_wrong", None])
def test_every_write_needs_the_token(hub: LoopbackHub, api: HfApi, token: str | None):
    before = api.model_info("tester/m").sha
    for path in (
        "/api/repos/create",
        "/api/models/tester/m/preupload/main",
        "/api/models/tester/m/commit/main",
        "/api/models/tester/m/branch/b",
        "/tester/m.git/info/lfs/objects/batch",
        "/tester/m.git/info/lfs/verify",
    ):
        status, headers, body = ask(hub, "POST", path, b"{}", token=token)
        assert (status, json.loads(body)["error"]) == (401, "Invalid credentials in Authorization header")
        assert headers["X-Error-Message"] == "Invalid credentials in Authorization header"
    assert api.model_info("tester/m").sha == before
    assert all(not entry.authorised for entry in hub.log[-7:-1])


def test_upload_is_held_to_its_declaration(hub: LoopbackHub, api: HfApi):
    address = offer(hub, b"declared")
    assert ask(hub, "PUT", address, b"changed!", token=None)[0] == 400
    assert ask(hub, "PUT", address, b"declared, and more", token=None)[0] == 400
    assert ask(hub, "PUT", address.replace("signature=", "signature=0"), b"declared", token=None)[0] == 403
    assert list((hub.store.folder("tester/m") / "blobs").iterdir()) == []
    assert ask(hub, "PUT", address, b"declared", token=None)[0] == 200


def test_wrong_size_is_rejected(hub: LoopbackHub, api: HfApi):
    status, _, body = ask(hub, "PUT", offer(hub, b"declared", size=7), b"declared", token=None)
    assert (status, b"8 bytes were sent, 7 were declared" in body) == (400, True)


def commit(hub: LoopbackHub, *lines: dict, parent: str | None = None) -> tuple[int, bytes]:
    head = {"key": "header", "value": {"summary": "s", **({"parentCommit": parent} if parent else {})}}
    body = "\n".join(json.dumps(line) for line in (head, *lines)).encode()
    status, _, answer = ask(hub, "POST", "/api/models/tester/m/commit/main", body)
    return status, answer


def file(path: str) -> dict:
    return {"key": "file", "value": {"path": path, "content": "aGk=", "encoding": "base64"}}


@pytest.mark.parametrize("path", ["../x", "a/../../x", "a//b", "/x", ".git/config", "a\\..\\x", "", "."])
def test_paths_out_of_the_repository_are_rejected(hub: LoopbackHub, api: HfApi, path: str):
    before = api.model_info("tester/m").sha
    assert commit(hub, file("good.txt"), file(path))[0] == 400
    assert ask(hub, "GET", "/tester/m/resolve/main/%2e%2e/%2e%2e/repo.json")[0] == 400
    assert api.model_info("tester/m").sha == before, "one bad path, and nothing at all is committed"


def test_commit_of_an_lfs_file_that_never_came(hub: LoopbackHub, api: HfApi):
    value = {"path": "w.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}
    assert commit(hub, {"key": "lfsFile", "value": value})[0] == 400


def test_commit_on_an_old_parent(hub: LoopbackHub, api: HfApi):
    first = api.model_info("tester/m").sha
    assert commit(hub, file("a.txt"), parent=first)[0] == 200
    assert commit(hub, file("b.txt"), parent=first)[0] == 412
    assert api.list_repo_files("tester/m") == ["a.txt"]


def test_revisions_and_branches(hub: LoopbackHub, api: HfApi):
    commit(hub, file("a.txt"))
    old = api.model_info("tester/m").sha
    api.create_branch("tester/m", branch="side/b", revision=old)
    commit(hub, file("b.txt"))
    assert api.list_repo_files("tester/m", revision="side/b") == api.list_repo_files("tester/m", revision=old)
    assert api.list_repo_files("tester/m") == ["a.txt", "b.txt"]
    with pytest.raises(RevisionNotFoundError):
        api.model_info("tester/m", revision="nowhere")


def test_private_needs_the_token_to_read(hub: LoopbackHub):
    HfApi(endpoint=hub.url).create_repo("secret", private=True)
    assert HfApi(endpoint=hub.url).model_info("tester/secret").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info("tester/secret")


def test_range_continues_a_download(hub: LoopbackHub, api: HfApi):
    commit(hub, file("a.txt"))
    status, headers, body = ask(hub, "GET", "/tester/m/resolve/main/a.txt", Range="bytes=1-")
    assert (status, body, headers["Content-Range"]) == (206, b"i", "bytes 1-1/2")


def test_chunked_body(hub: LoopbackHub, api: HfApi):
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
    address = offer(hub, b"in two pieces")
    connection.request("PUT", address, body=iter([b"in two ", b"pieces"]), encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()


def test_planted_failures_end(hub: LoopbackHub, api: HfApi):
    hub.fail_next("/tester/m", status=503, times=2, code="Odd")
    answers = [ask(hub, "GET", "/api/models/tester/m") for _ in range(3)]
    assert [status for status, _, _ in answers] == [503, 503, 200]
    assert answers[0][1]["X-Error-Code"] == "Odd"


def test_closing_leaves_no_thread_and_survives_an_idle_client(tmp_path: Path):
    before = threading.active_count()
    with LoopbackHub(tmp_path / "h", token=os.environ["HF_TOKEN"]) as hub:
        idle = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
        idle.connect()
        ask(hub, "GET", "/api/whoami-v2")
    idle.close()
    assert threading.active_count() == before


def test_contents_outlive_the_server(hub: LoopbackHub, api: HfApi):
    commit(hub, file("a.txt"))
    with LoopbackHub(hub.store.root, token=os.environ["HF_TOKEN"]) as again:
        assert HfApi(endpoint=again.url).list_repo_files("tester/m") == ["a.txt"]


def test_the_log_holds_no_secret(hub: LoopbackHub, api: HfApi):
    ask(hub, "PUT", offer(hub, b"x"), b"x", token=None)
    assert os.environ["HF_TOKEN"] not in repr(hub.log)
    assert "signature" not in repr(hub.log)
