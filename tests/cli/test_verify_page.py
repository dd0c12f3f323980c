"""`mconv verify --html`: the page is of this run, whole, and never in place of something else."""

import pytest
from tiny import make_llama

from mconv.cli.app import run
from mconv.verify import page

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("page")
    return str(make_llama(tmp / "a")), str(make_llama(tmp / "b", seed=1))


def test_a_page_is_written_and_written_again(pair, tmp_path, capfd):
    out = tmp_path / "report.html"
    a, b = pair
    assert run(["verify", a, a, "--digests", "--html", str(out)]) == 0
    assert page.is_ours(out) and "<h1>PASS</h1>" in out.read_text("utf-8")
    assert run(["verify", a, b, "--digests", "--html", str(out)]) == 1
    assert "<h1>FAIL</h1>" in out.read_text("utf-8") and capfd.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_old_verdict_is_not_left_where_this_run_has_none(pair, tmp_path):
    out = tmp_path / "report.html"
    a, _ = pair
    assert run(["verify", a, a, "--digests", "--html", str(out)]) == 0
    assert run(["verify", a, a, "--batch", "0", "--html", str(out)]) == 2
    assert not out.exists()


def test_logits_have_their_page_too(pair, tmp_path, capfd):
    out = tmp_path / "report.html"
    assert run(["verify", *pair, "--length", "16", "--html", str(out), "--json"]) == 1
    assert "Error by layer" in out.read_text("utf-8") and capfd.readouterr().out.startswith("{")


@pytest.mark.parametrize("what", ["a file", "a folder", "no parent", "a file for a parent", "overwrite alone"])
def test_refused_before_the_work(pair, tmp_path, capfd, what):
    out, options = tmp_path / "report.html", []
    if what == "a file":
        out.write_text("<html>mine</html>")
    elif what == "a folder":
        out.mkdir()
        options = ["--overwrite"]
    elif what == "no parent":
        out = tmp_path / "no" / "report.html"
    elif what == "a file for a parent":
        (tmp_path / "file").write_text("")
        out = tmp_path / "file" / "report.html"
    missing = ["verify", "no-such-folder-a", "no-such-folder-b", "--digests"]
    html = ["--overwrite"] if what == "overwrite alone" else ["--html", str(out), *options]
    assert run([*missing, *html]) == 2
    error = capfd.readouterr().err
    assert error.startswith("mconv: --") and "no-such-folder" not in error
    if what == "a file":
        assert out.read_text() == "<html>mine</html>" and "--overwrite" in error
        assert run(["verify", pair[0], pair[0], "--digests", *html, "--overwrite"]) == 0 and page.is_ours(out)
