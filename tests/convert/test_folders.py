"""Folder variants: what transformers loads, mconv converts to the same; else it stops for the reason of the table.

The table is in `folder_rows.py`. For each row that converts, transformers' logits of the folder are those of the model
that it was made from, bit for bit, and so are the digests of what `hf2meg --tp 2` makes of both.
"""

import json
import re
import shutil

import pytest
import torch
from folder_rows import BASE, CASES, KINDS, Folder
from judge import report
from tiny import make_falcon, make_gpt2, make_llama, make_mistral, same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.checkpoint.wrappers import plain_names
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders.ignored import Ignored
from mconv.convert.sources.read import digests
from mconv.errors import FormatError, MconvError

pytestmark = pytest.mark.once

MAKE = {"llama": make_llama, "mistral": make_mistral, "falcon": make_falcon, "gpt2": make_gpt2}
OPTIONS = {"mistral": {"sliding_window": 16}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return a function: a kind and options -> the folder of that model, its logits, what it becomes at tp 2."""
    made = {}

    def get(kind, options):
        key = (kind, str(options))
        if key not in made:
            folder = tmp_path_factory.mktemp("plain") / "hf"
            layers = {"n_layer" if kind == "gpt2" else "num_hidden_layers": 2}
            MAKE[kind](folder, **{**OPTIONS.get(kind, {}), **layers, **options})
            made[key] = folder, logits(folder), converted(open_checkpoint(folder), folder.parent / "meg")
        return made[key]

    return get


def logits(folder):
    """transformers' logits of a folder; None where it has to draw a weight at random or cannot load it."""
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        with torch.no_grad():
            found = model(torch.randint(151, (1, 32), generator=torch.Generator().manual_seed(3))).logits
    except Exception:
        return None
    return None if info["missing_keys"] else found


def converted(checkpoint, out):
    """The digests of the logical tensors, and the spec, of what hf2meg makes at tp 2 (Falcon with one key: tp 1)."""
    tp = 1 if checkpoint.spec.num_query_groups == 1 else 2
    made = rewrite(plan.make(checkpoint, out, format="mp_rank", tp=tp), step="hf2meg")
    return made["digests"], made["spec"]


def read(checkpoint, out):
    """The same of the checkpoint itself, planned for tp 2 but not written."""
    plan.make(checkpoint, out, format="mp_rank", tp=1 if checkpoint.spec.num_query_groups == 1 else 2)
    return digests(checkpoint.source).stored, checkpoint.spec.to_dict()


@pytest.mark.parametrize(("kind", "row"), CASES, ids=[f"{kind}-{row.name}" for kind, row in CASES])
def test_folder(plain, tmp_path, kind, row):
    made, want, digests = plain(kind, row.options)
    folder = Folder(shutil.copytree(made, tmp_path / "hf"), kind)
    row.change(folder)
    if row.verdict == "refused":
        with pytest.raises(MconvError, match=row.says) as caught:
            opened = open_checkpoint(folder.path, ignore=Ignored(config_keys=frozenset(row.ignore)))
            converted(opened, tmp_path / "meg")
        assert not (tmp_path / "meg").exists()
        assert len(str(caught.value)) < 3000
        return
    opened = open_checkpoint(folder.path, ignore=Ignored(config_keys=frozenset(row.ignore)))
    assert bool(opened.notes) == (row.verdict == "note"), opened.notes
    assert re.search(row.says, " ".join(opened.notes))
    found = logits(folder.path)
    assert (found is not None and torch.equal(found, want)) == row.loads
    written = kind == "llama" or row.verdict == "note"  # else what would be written: its tensors, as they are read
    assert (converted(opened, tmp_path / "meg") if written else read(opened, tmp_path / "meg")) == digests


def test_the_table_is_long_enough():
    for kind in KINDS:
        rows = [row for of, row in CASES if of == kind]
        assert len(rows) >= 40 and {row.verdict for row in rows} == {"same", "note", "refused"}
        assert kind in BASE


def test_an_export_is_the_whole_model_under_its_own_names(plain, tmp_path):
    """Of a base model that DDP has wrapped: the result says what it is, and transformers loads it as it is."""
    made, want, _ = plain("llama", {"tie_word_embeddings": True})
    folder = Folder(shutil.copytree(made, tmp_path / "hf"), "llama")
    row = next(row for kind, row in CASES if row.name == "DDP of the base model")
    row.change(folder)
    rewrite(plan.make(open_checkpoint(folder.path), tmp_path / "meg", format="torch_dist", tp=2), step="hf2meg")
    rewrite(plan.make(open_checkpoint(tmp_path / "meg"), tmp_path / "back", format="hf"), step="meg2hf")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert torch.equal(logits(tmp_path / "back"), want)
    assert same(tensors(tmp_path / "back"), tensors(made))


JUDGED = (
    ("llama", "torch.compile"), ("llama", "tied, stored as the head only"), ("mistral", "cos_cached, sin_cached"),
    ("falcon", "DDP of the base model"), ("gpt2", "FSDP of the whole and of layers"),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), JUDGED, ids=[f"{kind}-{name}" for kind, name in JUDGED])
def test_verify_judges_a_variant_as_it_is(plain, tmp_path, kind, name):
    """By transformers' model with the weights under their own names, whole and streamed; a fault in them is seen."""
    row = next(row for of, row in CASES if (of, row.name) == (kind, name))
    made, _, _ = plain(kind, row.options)
    folder = Folder(shutil.copytree(made, tmp_path / "hf"), kind)
    row.change(folder)
    tp = 1 if kind == "falcon" else 2
    rewrite(plan.make(open_checkpoint(folder.path), tmp_path / "meg", format="torch_dist", tp=tp), step="hf2meg")
    for streamed in (False, True):
        assert report(folder.path, tmp_path / "meg", streamed=streamed)["passed"]
    state = tensors(folder.path)
    next(t for n, t in sorted(state.items()) if t.ndim == 2 and re.search(r"(layers|h)\.1\.", n))[0] += 1.0
    folder.save(state)
    assert not report(folder.path, tmp_path / "meg")["passed"]


def test_wrappers_at_places_that_no_model_has_are_refused_at_once():
    """Names come from elsewhere: each place of a wrapper is held against every name, so there are not many."""
    names = [f"x{i}.module.y" for i in range(20000)] + ["weight"]
    with pytest.raises(FormatError, match="at 20000 places"):
        plain_names(names, lambda name: name if name in ("weight", "x0.y") else None)
