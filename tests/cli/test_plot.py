"""`mconv plot`: the curves of mconv's and Megatron-LM's logs, as numbers, pictures and a page."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from mconv.cli import curves
from mconv.cli.app import run
from mconv.train.logs import series

pytestmark = pytest.mark.once

LOGS = Path(__file__).resolve().parents[3] / "shared" / "golden" / "megatron-lm" / "train-logs"


@pytest.fixture
def saved(tmp_path):
    """A save folder: 300 steps, of which 200 to 210 were taken twice, one was skipped and one line was cut short."""
    folder = tmp_path / "<first> & run"
    folder.mkdir()
    taken = [*range(1, 211), *range(200, 301)]
    rows = [{"iteration": i, "loss": 5 / i, "lr": 1e-4, "grad_norm": None if i == 7 else 1.0, "skipped": int(i == 9),
             "tokens_per_second": 100.0 + (n >= 210)} for n, i in enumerate(taken)]  # fmt: skip
    rows += [{"iteration": 100, "validation_loss": 0.5}, {"iteration": 200, "validation_loss": 0.25}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"iteration": 301, "lo')
    return folder


def test_the_numbers(saved, capsys):
    assert run(["plot", str(saved), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["name"] == saved.name and found["validation_loss"] == [[100, 0.5], [200, 0.25]]
    assert [at for at, _ in found["loss"]] == [i for i in range(1, 301) if i != 9]
    assert [at for at, _ in found["grad_norm"]] == [i for i in range(1, 301) if i != 7]
    rates = dict(map(tuple, found["tokens_per_second"]))
    assert (rates[199], rates[205], rates[300]) == (100.0, 101.0, 101.0)  # the later of two counts
    assert not Path("plot.png").exists()


@pytest.mark.skipif(not LOGS.is_dir(), reason="the logs of Megatron-LM are not here")
def test_the_numbers_of_a_megatron_log():
    found = series.read(LOGS / "plain.log").curves
    assert dict(found["loss"])[2] == pytest.approx(2 * 5.389486 - 5.559654)  # printed over both windows
    assert found["validation_loss"] == [(5, 4.398962), (10, 4.105324)] and len(found["loss"]) == 10
    assert dict(found["tokens_per_second"])[3] == pytest.approx(8 * 64 / 0.0516)
    skips = series.read(LOGS / "fp16-skips.log").curves
    assert len(skips["loss"]) < len(skips["lr"]) == 16
    assert [at for at, _ in series.read(LOGS / "nan.log").curves["grad_norm"]] == [1]


def test_what_mconv_prints_is_read_too(tmp_path):
    text = (
        " iteration {:8d}/      10 | elapsed time per iteration (ms): 500.0 | global batch size: 4 | lm loss: 2.0E+00 |\n"
    )
    (tmp_path / "job.out").write_text("hello\n" + "".join(text.format(i) for i in (1, 2)))
    assert series.read(tmp_path / "job.out").curves == {
        "loss": [(1, 2.0), (2, 2.0)], "samples_per_second": [(1, 8.0), (2, 8.0)]
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture(kind, saved, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / "new" / f"x.{kind}"
    (other := tmp_path / "_$\\frac a$").mkdir()
    (other / "train.jsonl").write_text('{"iteration": 1, "loss": 1.0, "validation_loss": 2.0}')
    assert run(["plot", str(saved), str(other), "--out", str(file)]) == 0
    assert "loss 5.0000 at 1 to 0.0167 at 300, best validation loss 0.2500 at 200" in capsys.readouterr().out
    if kind == "svg":
        text = file.read_text()
        assert text.count("_$\\frac a$") == 2  # neither a formula, nor left out of the legend
        assert all(title in text for title in ("learning rate", "gradient norm", "tokens per second", ", validation"))
        assert "samples per second" not in text
    else:
        assert file.read_bytes().startswith(b"\x89PNG")


def test_a_page_has_every_point_in_its_place(saved, tmp_path):
    """The markup is whole, names are text, and the curve of 5 / i falls from the frame's top to its bottom."""
    assert run(["plot", str(saved), str(saved), "--out", str(tmp_path / "x.html"), "--smooth", "1"]) == 0
    text = (tmp_path / "x.html").read_text()
    assert "<script" not in text and "<first>" not in text and "&lt;first&gt; &amp; run" in text
    assert "http" not in text.replace("http-equiv", "")
    pictures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.S)]
    assert len(pictures) == 4 and [len(p.findall("circle")) for p in pictures] == [4, 0, 0, 0]
    line = pictures[0].findall("polyline")[0].get("points").split()
    points = [tuple(map(float, point.split(","))) for point in line]
    assert len(points) == 299 and points[0][0] == 70.0 and points[-1][0] == 684.0
    heights = [y for _, y in points]
    assert heights == sorted(heights) and heights[0] < 30 and 230 < heights[-1] < 252
    labels = [t.text for t in pictures[0].findall("text")]
    assert {"0", "2", "4", "100", "iteration"} <= set(labels)


def test_one_step_of_many_is_still_seen(tmp_path):
    """A spike is not averaged away where a page has fewer points than the run, and a run of one step is a dot."""
    losses = [2.0 + 0.1 * (i % 2) + 6.0 * (i == 4_123) for i in range(10_000)]
    for name, taken in {"long": losses, "one": [5.0]}.items():
        (tmp_path / name).mkdir()
        rows = (json.dumps({"iteration": i + 1, "loss": loss}) for i, loss in enumerate(taken))
        (tmp_path / name / "train.jsonl").write_text("\n".join(rows))
    page = curves.page(series.several([tmp_path / "long", tmp_path / "one"]), smooth=None)
    heights = [float(y) for y in re.findall(r",([\d.]+)", re.search(r'"faint"[^>]*points="([^"]*)"', page)[1])]
    assert min(heights) < 30 and len(heights) < 1500 and sum(y < 150 for y in heights) == 1
    assert "one, training loss at 1: 5" in page and "dots are of validation" not in page
    assert re.findall(r">([\d,.]+)</text>", page)[-5:] == ["2,000", "4,000", "6,000", "8,000", "10,000"]


def test_means_do_not_move_a_curve():
    curve = [(i, float(i % 2)) for i in range(1, 1001)]
    assert {round(y, 6) for _, y in series.smooth(curve, over=10)[10:-10]} == {0.5}
    assert len(series.thin(curve, most=100)) == 100 and sum(y for _, y in series.thin(curve, most=100)) == 50.0
    assert series.smooth(curve, over=1) == curve == series.thin(curve, most=1000)


REFUSED = {
    "nothing there": (["{tmp}/none"], "does not exist"),
    "no step": (["{tmp}/empty.log"], "it contains no training step"),
    "kind": (["{run}", "--out", "x.bmp"], "give a name that ends in .png"),
    "smooth": (["{run}", "--smooth", "0"], "at least 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, saved, tmp_path, capsys):
    words, message = REFUSED[name]
    (tmp_path / "empty.log").write_text("nothing happened\n")
    assert run(["plot", *(word.format(tmp=tmp_path, run=saved) for word in words)]) == 2
    assert message in capsys.readouterr().err
