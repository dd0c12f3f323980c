"""`mconv verify` of what `mconv layers` and `mconv resize` made: by their recipes, with planted faults that it names."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import save_file
from test_resize import tokenizer
from tiny import edit_json, make_llama, tensors

import mconv
from mconv.cli.app import run

pytestmark = pytest.mark.once
SCHEMA = json.loads((Path(mconv.__file__).parent / "verify" / "report.schema.json").read_text())
WORDS = [f"w{i}" for i in range(148)]
SMALL = {"num_hidden_layers": 3, "max_position_embeddings": 64}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP, GATE, OUTPUT = (f"model.layers.1.{name}.weight" for name in ("mlp.up_proj", "mlp.gate_proj", "self_attn.o_proj"))


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return tokenizer(make_llama(tmp_path_factory.mktemp("made") / "hf", **SMALL), WORDS)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A folder with another tokenizer: two tokens gone, three new, the others in another order."""
    return tokenizer(tmp_path_factory.mktemp("made") / "other", [*reversed(WORDS[2:]), "x1", "x2", "x3"])


@pytest.fixture
def made(hf, other, tmp_path, monkeypatch):
    """Return a function that makes a model of `hf` and returns its folder."""
    monkeypatch.chdir(tmp_path)

    def make(line, source=hf):
        command, *words = line.replace("OTHER", str(other)).split()
        assert run([command, str(source), "--out", str(tmp_path / "out"), *words]) == 0
        return tmp_path / "out"

    return make


def verify(capsys, folder, *options, code):
    """Return what `mconv verify` says of a folder."""
    capsys.readouterr()
    assert run(["verify", str(folder), *options]) == code
    said = capsys.readouterr()
    return said.out + said.err


def plant(folder, change):
    """Change the tensors of a folder in place: `change` gets them all and returns those that are other ones."""
    found = tensors(folder)
    save_file({**found, **change(found)}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "line, said",
    [
        ("layers --order 2,0,0,1", "is the hf with layers 2,0,0-1: all 39 tensors compared with the base's, bit for bit"),
        ("layers --keep 0,2 --format torch_dist --tp 2 --dtype bf16", "with layers 0,2: all 21 tensors"),
        ("resize --vocab-size 160 --init normal --seed 3", "vocabulary of 160 rows (new ones: normal)"),
        ("resize --vocab-size 155 --format mp_rank --tp 2 --dtype bf16", "new rows within rounding of their rule"),
        ("resize --tokenizer OTHER --init zeros", "vocabulary of 152 rows"),
        ("resize --tokenizer OTHER --tokens <a>,<b> --init subword-mean --format torch_dist", "154 rows"),
        ("resize --tokens <a>,<b> --init copy:w7", "153 rows"),
    ],
)
def test_a_result_is_what_its_recipe_makes(made, capsys, line, said):
    out = made(line)
    assert said in verify(capsys, out, code=0)
    assert "4 of " in verify(capsys, out, "--sample", "4", code=0)


@pytest.mark.parametrize(
    "options, said", [("--untie", "head untied"), ("--order 1,0 --untie", "layers 1,0, head untied")]
)
def test_heads(tmp_path, capsys, options, said):
    hf = make_llama(tmp_path / "hf", **SMALL, tie_word_embeddings=True)
    assert run(["layers", str(hf), "--out", str(tmp_path / "out"), *options.split()]) == 0
    assert said in verify(capsys, tmp_path / "out", code=0)
    assert run(["layers", str(tmp_path / "out"), "--out", str(tmp_path / "back"), "--tie"]) == 0
    assert "head tied" in verify(capsys, tmp_path / "back", code=0)
    plant(tmp_path / "out", lambda held: {HEAD: held[HEAD] + 1})
    assert HEAD in verify(capsys, tmp_path / "out", code=1)
    assert "head.weight) have changed since" in verify(capsys, tmp_path / "back", code=2)


# ---- planted faults --------------------------------------------------------------------------------------------------
def exchanged(held):
    """Layers 1 and 2, each in the other's place."""
    return {key.replace(f"layers.{one}.", f"layers.{two}."): held[key]
            for one, two in ((1, 2), (2, 1)) for key in held if f"layers.{one}." in key}  # fmt: skip


def repeated(held):
    return {key.replace("layers.0.", "layers.1."): held[key].clone() for key in held if "layers.0." in key}


def moved(held):
    return {EMBED: torch.cat([held[EMBED][:20], held[EMBED][19:20], held[EMBED][21:]])}


def changed(held):
    return {OUTPUT: held[OUTPUT].index_fill(0, torch.tensor([3]), 0.5)}


def swapped(held):
    return {UP: held[GATE], GATE: held[UP]}


def rolled(held):
    return {EMBED: held[EMBED].roll(1, 1)}


def unsized(held):
    """A head whose rows stand as in the base, though the embedding has them in the other tokenizer's order."""
    return {HEAD: held[HEAD].flip(0)}


FAULTS = [
    ("layers --keep 0-2", exchanged, ["layers 1 and 2 are exchanged", "9 tensors", "layer 1 is layer 2 of hf"]),
    ("layers --order 0,1,1,2", repeated, ["layer 1 is layer 0 of hf, where the recipe takes 1", "9 tensors"]),
    ("layers --keep 0-2", swapped, ["it is model.layers.1.mlp.gate_proj.weight of"]),
    ("layers --keep 0-2", changed, [f"{OUTPUT}: 48 of 2,304 elements are wrong"]),
    ("resize --vocab-size 155", moved, [EMBED, "row 20 is row 19 of the base, not row 20"]),
    ("resize --vocab-size 155", lambda held: {HEAD: held[HEAD].index_fill(0, torch.arange(151, 155), 0)},
     [HEAD, "rows 151-154 are zero, not as the rule says (mean)", "the head was not resized like the embedding"]),
    ("resize --tokenizer OTHER", unsized, [HEAD, "the head was not resized like the embedding"]),
    ("resize --vocab-size 155 --init normal", rolled, [EMBED, "rows 0-150 are not rows 0-150 of the base"]),
]  # fmt: skip


@pytest.mark.parametrize("line, change, said", FAULTS)
def test_a_planted_fault_is_named(made, capsys, line, change, said):
    out = made(line)
    plant(out, change)
    text = verify(capsys, out, code=1)
    assert all(words in text for words in said), text
    report = json.loads(verify(capsys, out, "--json", code=1).partition("\nverify")[0])
    jsonschema.validate(report, SCHEMA)
    assert {one["name"] for one in report["recipe"]["wrong"]} == set(change(tensors(out)))


def test_a_config_and_a_tokenizer_that_do_not_agree(made, capsys):
    out = made("resize --tokens <a>,<b>")
    edit_json(out / "config.json", rope_theta=5e5, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert "the architecture differs: rope.base 10000 / 500000" in (text := verify(capsys, out, code=1)), text
    vocab = json.loads((out / "tokenizer.json").read_text())
    vocab["added_tokens"] = [one for one in vocab["added_tokens"] if one["content"] != "<b>"]
    (out / "tokenizer.json").write_text(json.dumps(vocab))
    edit_json(out / "tokenizer_config.json", added_tokens_decoder={})
    assert "tokenizer: <b> has the id None, and 152 by the recipe" in verify(capsys, out, code=1)


# ---- what it was made of ---------------------------------------------------------------------------------------------
def test_a_base_that_has_changed_or_is_gone_is_no_judge(hf, made, tmp_path, capsys):
    base = shutil.copytree(hf, tmp_path / "base")
    out = made("layers --keep 0,2", source=base)
    plant(base, lambda held: {UP: held[UP] + 1})
    assert "SAME" in verify(capsys, out, code=0), "layer 1 is not in it"
    plant(base, lambda held: {UP.replace(".1.", ".2."): held[UP] + 1})
    assert "base: 1 tensors (layer.2." in verify(capsys, out, code=2)
    shutil.rmtree(base)
    said = verify(capsys, out, code=2)
    assert f"{out} was made of {base}, which is not there any more" in said and "REFERENCE" not in said


def test_a_conversion_of_it_is_judged_by_the_recipe_if_it_is_gone(made, tmp_path, capsys):
    out = made("resize --vocab-size 160 --init normal")
    assert run(["hf2meg", str(out), "--out", str(tmp_path / "meg"), "--tp", "2", "--dtype", "bf16"]) == 0
    assert "hold the same" in verify(capsys, tmp_path / "meg", "--digests", code=0)
    shutil.rmtree(out)
    assert "vocabulary of 160 rows" in verify(capsys, tmp_path / "meg", code=0)
