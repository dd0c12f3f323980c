"""Before a proof of minutes `mconv push` finds out what would stop it: login, rights, names, the repository."""

import json

import pytest
from huggingface_hub import HfApi

from mconv.cli.app import run
from mconv.errors import MconvError
from mconv.hub.loopback import LoopbackHub
from mconv.hub.push import push
from mconv.hub.ready import Wanted, look


def fine(*scopes, kind="user", permissions=("repo.content.read", "repo.write")):
    """Return a fine-grained token that may write to the repositories of these names."""
    scoped = [{"entity": {"type": kind, "name": name}, "permissions": list(permissions)} for name in scopes]
    return {"role": "fineGrained", "displayName": "laptop", "fineGrained": {"scoped": scoped, "global": []}}


READ = {"role": "read", "displayName": "laptop"}
RIGHTS = {
    "a token that may write": ({"role": "write"}, "tester/new", True, "may write"),
    "an organisation's": ({"role": "write"}, "acme/new", True, "may write"),
    "a token that may read": (READ, "tester/new", False, "the token 'laptop' may only read; make one that may write at"),
    "a token that may read, an existing repository": (READ, "acme/old", False, "may only read"),
    "fine-grained, the user's": (fine("Tester"), "tester/new", True, "may write"),
    "fine-grained, the user's for an organisation": (
        fine("tester"), "acme/new", False, "fine-grained and may write to tester: give it write access to the "
        "repositories of acme"),
    "fine-grained, an organisation's": (fine("acme", kind="org"), "acme/new", True, "may write"),
    "fine-grained, reads": (fine("acme", kind="org", permissions=["repo.content.read"]), "acme/new", False, "nothing"),
    "fine-grained, one repository": (fine("acme/old", kind="model"), "acme/old", True, "may write"),
    "fine-grained, one repository that is not there": (
        fine("acme/gone", kind="model"), "acme/gone", False, "but not create it: create it on the Hub first"),
    "a role that nobody knows": ({"role": "wizard"}, "acme/new", None, "does not say"),
    "a Hub that says nothing of tokens": ({"odd": 1}, "acme/new", None, "does not say"),
    "somebody else's": ({"role": "write"}, "other/new", False, "tester is not a member of other; push to a repository of "
                        "tester, acme, readers"),
    "an organisation to read in": ({"role": "write"}, "readers/new", False, "your role in readers is 'read'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory):
    with LoopbackHub(tmp_path_factory.mktemp("hub"), token="hf_" + "loopbackTest" * 3, orgs=("acme", "readers")) as hub:
        hub.org_roles = {"readers": "read"}
        hub.store.create("acme/old", private=False)
        yield hub


@pytest.mark.parametrize("ask", [True, False], ids=["a Hub that knows auth-check", "an older one"])
@pytest.mark.parametrize("case", RIGHTS)
def test_who_may_write_where(somewhere, case, ask, monkeypatch):
    access, repo, passed, says = RIGHTS[case]
    monkeypatch.setattr(somewhere, "access", access)
    if not ask:
        somewhere.fail_next("auth-check", status=404)
    found = {check.name: check for check in look(Wanted(repo=repo), endpoint=somewhere.url).checks}
    somewhere._planted.clear()
    assert found["rights"].passed is passed and says in found["rights"].text
    assert found["token"].passed and found["repository"].passed


def test_a_token_that_may_read_is_refused_by_the_hub_too(hub, make_model):
    """What is found out beforehand is what would happen."""
    hub.access = READ
    with pytest.raises(MconvError, match="may only read"):
        push(make_model(), "acme/tiny", endpoint=hub.url)
    with pytest.raises(Exception, match="403"):
        HfApi(endpoint=hub.url).create_repo("acme/tiny")


def token_gone(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def token_wrong(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 7)


def token_reads(hub, monkeypatch):
    hub.access = READ


def nobody_answers(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def other_weights(hub, monkeypatch):
    hub.store.create("acme/tiny", private=False)
    HfApi(endpoint=hub.url).upload_file(repo_id="acme/tiny", path_in_repo="other.safetensors", path_or_fileobj=b"x")
    hub.log.clear()


def nothing(hub, monkeypatch):
    pass


MISSING = {
    "token": (token_gone, [], "no Hugging Face login was found; set HF_TOKEN or run `hf auth login`"),
    "token, refused": (token_wrong, [], "does not accept the token"),
    "rights": (token_reads, [], "may only read"),
    "network": (nobody_answers, [], "check the network and HF_ENDPOINT"),
    "repository": (other_weights, [], "would be left beside the new ones: other.safetensors"),
    "repository, public": (other_weights, ["--private", "--overwrite"], "--private would not hide it"),
    "rights, another's": (nothing, ["other/tiny"], "tester is not a member of other"),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_said_before_the_proof(hub, make_model, monkeypatch, capsys, case):
    """A folder that nothing vouches for: the proof would be refused too, and is not reached."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    spoil, options, says = MISSING[case]
    spoil(hub, monkeypatch)
    folder = str(make_model())
    repo = [] if options and "/" in options[0] else ["acme/tiny"]
    assert run(["push", folder, *repo, *options]) == 2
    error = capsys.readouterr().err
    assert says in error and "--unverified" not in error, "the proof is not reached"
    assert run(["push", folder, *repo, *options, "--dry-run"]) == 2
    seen = capsys.readouterr()
    assert f"NO  {case.partition(',')[0]:<11} " in seen.out and says in seen.out
    assert "NO  proof" in seen.out and f"see {case.partition(',')[0]}, proof above" in seen.err
    assert {line.method for line in hub.log} <= {"GET"}
    assert "hf_" not in seen.out + seen.err + error


def test_a_dry_run_of_a_folder_that_is_not_whole_says_all(hub, make_model, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = make_model()
    (folder / "config.json").unlink()
    hub.access = READ
    assert run(["push", str(folder), "acme/tiny", "--dry-run", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert [check["name"] for check in told["checks"] if check["passed"] is False] == ["folder", "rights"]
    assert told["ready"] is False
