"""`mconv inspect --plot` and previews of a layout: the picture's slices are those that the ranks' files have."""

import json
import re

import pytest
import torch
from tiny import make_llama

from mconv.cli import picture
from mconv.cli.app import run
from mconv.convert.checkpoint.model import target_layout
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    make_llama(root / "hf")
    rewrite(plan.make(open_checkpoint(root / "hf"), root / "mp", format="mp_rank", tp=2, pp=2, vpp=2), step="test")
    return root


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_runs_cover_each_bar_once_and_are_what_a_rank_stores(made, tp):
    c = open_checkpoint(made / "hf")
    layout = target_layout(c.spec, c.family, tp=tp, pp=1)
    bars = {label.split()[0]: (length, runs) for label, length, runs in picture._bars(c, layout)}
    assert set(bars) == {"embed.weight", "final_norm.weight", "head.weight", *(f"layer.*.{n}.weight" for n in (
        "attn_norm", "qkv", "attn_out", "mlp_norm", "mlp_in", "mlp_out"))}  # fmt: skip
    for length, runs in bars.values():
        edges = sorted((start, stop) for start, stop, *_ in runs)
        assert [a for a, _ in edges] == [0, *(b for _, b in edges[:-1])] and edges[-1][1] == length
    length, runs = bars["embed.weight"]
    assert sum(b - a for a, b, _, kind in runs if kind == "pad") == length - 151
    per_rank = [sum(b - a for a, b, rank, _ in bars["layer.*.mlp_in.weight"][1] if rank == r) for r in range(tp)]
    assert per_rank == [128 // tp] * tp
    assert {kind for *_, kind in bars["layer.*.qkv.weight"][1]} == {"q", "k", "v"}
    assert len({rank for *_, rank, _ in bars["layer.*.qkv.weight"][1]}) == tp


def test_bytes_of_a_rank_are_those_of_its_file(made):
    c = open_checkpoint(made / "mp")
    assert c.layout is not None
    for stage, said in enumerate(picture.per_rank(c, c.layout)):
        state = torch.load(made / f"mp/release/mp_rank_01_{stage:03d}/model_optim_rng.pt", weights_only=False)
        held = [t for chunk in ("model0", "model1") for t in state[chunk].values() if isinstance(t, torch.Tensor)]
        assert said == sum(t.nbytes for t in held)


@pytest.mark.parametrize(
    "ending, starts", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!doctype"), ("pdf", b"%PDF")]
)
def test_the_picture_is_written(made, tmp_path, capsys, ending, starts):
    file = tmp_path / "new" / f"plot.{ending}"
    assert run(["inspect", str(made / "mp"), "--plot", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plot"] == str(file)
    assert file.read_bytes().startswith(starts)
    if ending in ("svg", "html"):
        words = re.findall(r">([^<>]+)</text>", file.read_text())
        assert {"stage 0", "stage 1", "tp 1", "every rank", "gate", "up", "layer 3", "embed", "norm, head"} <= set(words)
        assert not re.search(r"(src|href)=\"http", file.read_text()), "it needs nothing from elsewhere"


def test_a_layout_can_be_previewed_without_a_plan(made, capsys):
    assert run(["inspect", str(made / "hf"), "--tp", "4", "--pp", "2", "--json"]) == 0
    preview = json.loads(capsys.readouterr().out)["preview"]
    assert (preview["tp"], preview["pp"], preview["padded_vocab"]) == (4, 2, 512) and len(preview["bytes_per_rank"]) == 2
    assert run(["inspect", str(made / "mp"), "--tp", "1"]) == 0
    assert "preview                  tp 1, pp 2, vpp 2" in capsys.readouterr().out


@pytest.mark.parametrize("options, says", [("--tp 3", "tp can be"), ("--plot x.gif", ".png"), ("--pp 0", "at least 1")])
def test_what_cannot_be_drawn(made, capsys, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    assert run(["inspect", str(made / "hf"), *options.split()]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_without_matplotlib_it_says_what_to_install(made, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert run(["inspect", str(made / "hf"), "--plot", "x.png"]) == 2
    assert "pip install 'mconv[plot]'" in capsys.readouterr().err
