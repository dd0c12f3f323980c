"""What is not proven is not published: `mconv push` verifies first, and sends nothing before."""

import json
import re
import shutil
from pathlib import Path

import lora_jobs
import pytest
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from tiny import edit_json, make_llama, tensors

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.hub import card as cards
from mconv.verify.origin import reference_for

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A LLaMA, its conversion, and the export of that."""
    tmp = tmp_path_factory.mktemp("gate")
    make_llama(tmp / "hf", max_position_embeddings=64)
    assert run(["hf2meg", str(tmp / "hf"), "--out", str(tmp / "megatron"), "--tp", "2"]) == 0
    assert run(["meg2hf", str(tmp / "megatron"), "--out", str(tmp / "export")]) == 0
    return tmp


@pytest.fixture
def place(tree, tmp_path, hub, monkeypatch):
    """A copy of the three that a test may spoil, and a Hub that would take them."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    shutil.copytree(tree, tmp_path / "place")
    return tmp_path / "place"


def push(place, *options):
    return run(["push", str(place / "export"), "acme/tiny", *map(str, options)])


def sent(hub):
    """Return the requests that change something on the Hub."""
    return [f"{r.method} {r.path}" for r in hub.log if r.method not in ("GET", "HEAD")]


def pulled(hub, tmp_path):
    return Path(snapshot_download("acme/tiny", endpoint=hub.url, cache_dir=tmp_path / "c"))


def change(folder, edit):
    """Write a model's weights anew, changed."""
    held = tensors(folder)
    edit(held)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def swap_gate_and_up(held):
    a, b = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
    held[a], held[b] = held[b], held[a]


def one_element(held):
    held["model.layers.2.self_attn.o_proj.weight"][3, 5] += 0.5


def forget_sources(place):
    shutil.rmtree(place / "hf")
    shutil.rmtree(place / "megatron")


def test_a_folder_is_judged_by_its_first_source_and_the_card_says_so(place, hub, tmp_path, capsys):
    assert reference_for(open_checkpoint(place / "export")) == place / "hf"
    before = (place / "export" / "mconv.json").read_bytes()
    assert push(place) == 0
    assert "PASS: hf (transformers) against export" in capsys.readouterr().out
    assert (place / "export" / "mconv.json").read_bytes() == before, "the user's folder is not touched"
    got = pulled(hub, tmp_path)
    verdict = json.loads((got / "mconv.json").read_text())["verified"][-1]
    assert (verdict["digests"], verdict["logits"], verdict["passed"]) == ("pass", "pass", True) and verdict["mconv"]
    assert "| hf | pass |" in (got / "README.md").read_text()
    assert "made\\_from" not in (got / "README.md").read_text()
    assert "made_from" not in (got / "mconv.json").read_text(), "where the source lies is nobody's business"
    (got / "mconv.json").unlink()
    assert push(place, "--against", place / "megatron") == 0, "any checkpoint can be the reference"


def test_a_verdict_travels_with_a_model_that_is_pulled_and_pushed_again(place, hub, tmp_path, capsys):
    assert push(place) == 0
    assert run(["pull", "acme/tiny", str(tmp_path / "again")]) == 0
    forget_sources(place)
    assert run(["push", str(tmp_path / "again"), "acme/other"]) == 0
    assert "verified against hf before" in capsys.readouterr().out


PLANTED = {
    "gate and up swapped in the export": lambda place: change(place / "export", swap_gate_and_up),
    "one element of the export": lambda place: change(place / "export", one_element),
    "the source changed after the conversion": lambda place: change(place / "hf", one_element),
    "epsilon of the export": lambda place: edit_json(place / "export" / "config.json", rms_norm_eps=1e-4),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_fault_stops_the_push_before_anything_is_sent(place, hub, capsys, fault):
    PLANTED[fault](place)
    assert push(place) == 1
    out = capsys.readouterr().out
    assert out.startswith("FAIL: hf") and "nothing was sent" in out and sent(hub) == []
    assert push(place, "--dry-run", "--json") == 1
    assert json.loads(capsys.readouterr().out)["verification"]["passed"] is False and sent(hub) == []


def test_unverified_goes_all_the_same_and_the_card_says_so(place, hub, tmp_path):
    assert run(["verify", str(place / "hf"), str(place / "export"), "--length", "32", "--record"]) == 0
    swap = place / "export"
    change(swap, swap_gate_and_up)
    assert push(place, "--unverified") == 0
    got = pulled(hub, tmp_path)
    assert "No check of its logits is recorded." in (got / "README.md").read_text(), "that verdict is of other weights"
    assert json.loads((got / "mconv.json").read_text())["verified"] == []


def test_a_recorded_verdict_counts_while_the_weights_are_the_same(place, hub, capsys):
    assert run(["verify", str(place / "hf"), str(place / "export"), "--length", "32", "--record"]) == 0
    forget_sources(place)
    assert push(place, "--dry-run") == 0
    assert "verified against hf before" in capsys.readouterr().out and sent(hub) == []
    assert push(place) == 0 and sent(hub)


STALE = {
    "weights": lambda export: change(export, one_element),
    "architecture": lambda export: edit_json(export / "config.json", rms_norm_eps=1e-4),
    "said of something else": lambda export: edit_json(
        export / "mconv.json", verified=[{"against": "hf", "passed": True, "of": "xxh3-128 0"}]
    ),
    "says of what it is not": lambda export: edit_json(
        export / "mconv.json", verified=[{"against": "hf", "passed": True}]
    ),
}


@pytest.mark.parametrize("what", STALE)
def test_a_verdict_on_other_bytes_does_not_count(place, hub, capsys, what):
    assert run(["verify", str(place / "hf"), str(place / "export"), "--length", "32", "--record"]) == 0
    forget_sources(place)
    STALE[what](place / "export")
    assert push(place) == 2
    error = capsys.readouterr().err
    assert "it does not count" in error and "no longer exist" in error and sent(hub) == []


def test_a_recorded_failure_does_not_count_either(place, hub):
    other = make_llama(place / "other", max_position_embeddings=64, seed=1)
    verify = ["verify", str(other), str(place / "export"), "--length", "32", "--record", "--report-only"]
    assert run(verify) == 0
    assert push(place, "--dry-run") == 0, "its own source says more"
    forget_sources(place)
    assert push(place) == 2 and sent(hub) == []


def test_what_cannot_be_judged_is_refused_with_what_to_do(place, hub, capsys):
    forget_sources(place)
    for options in ([], ["--dry-run"]):
        assert push(place, *options) == 2
        seen = capsys.readouterr()
        for said in ("was made from", "hf", "no longer exist", "--record", "--unverified"):
            assert said in (seen.out if options else seen.err)
    (place / "export" / "mconv.json").unlink()
    assert push(place) == 2 and "mconv did not make it" in capsys.readouterr().err
    assert push(place, "--against", place / "nowhere") == 2
    assert sent(hub) == []


def test_another_model_does_not_pass_for_the_source(place, hub, capsys):
    other = make_llama(place / "other", max_position_embeddings=64, seed=1)
    assert push(place, "--against", other) == 1 and sent(hub) == []
    assert "nothing was sent" in capsys.readouterr().out


def test_record_keeps_the_verdict_for_the_next_push(place, hub, capsys):
    assert push(place, "--record", "--json") == 0
    assert json.loads(capsys.readouterr().out)["verification"]["state"] == "judged"
    assert push(place, "--json") == 0
    assert json.loads(capsys.readouterr().out)["verification"]["state"] == "recorded"


def test_a_cast_is_no_difference(place, hub, capsys):
    assert run(["meg2hf", str(place / "megatron"), "--out", str(place / "export"), "--dtype", "bf16", "--overwrite"]) == 0
    assert push(place, "--dry-run") == 0
    assert "SAME" in (said := capsys.readouterr().out) and "rounding" in said
    assert push(place) == 0
    assert "PASS" in capsys.readouterr().out


# ---- what a training made -------------------------------------------------------------------------------------------
@pytest.fixture
def merge(place):
    """An adapter's merge with its base, as a model folder and through Megatron."""
    adapter = lora_jobs.adapter_folder(place / "adapter", place / "hf")
    assert run(["lora", "merge", str(adapter), "--base", str(place / "hf"), "--out", str(place / "merged")]) == 0
    through = ["--base", str(place / "megatron"), "--format", "torch_dist", "--tp", "2", "--out", str(place / "meg")]
    assert run(["lora", "merge", str(adapter), *through]) == 0
    assert run(["meg2hf", str(place / "meg"), "--out", str(place / "back"), "--dtype", "bf16"]) == 0
    return place


@pytest.mark.parametrize("name", ["merged", "back"])
def test_a_merge_is_judged_by_one_made_anew_without_being_asked(merge, hub, tmp_path, capsys, name):
    capsys.readouterr()
    assert run(["push", str(merge / name), "acme/tiny"]) == 0
    assert "SAME" in capsys.readouterr().out
    got = pulled(hub, tmp_path)
    verdict = json.loads((got / "mconv.json").read_text())["verified"][-1]
    assert verdict["passed"] and verdict["digests"] == "pass" and " merged with adapter" in verdict["against"]
    assert not {"made_from", "merged_from", "ancestors"} & json.loads((got / "mconv.json").read_text()).keys()
    assert run(["verify", str(merge / name), "--record"]) == 0
    assert " merged anew with " in capsys.readouterr().err
    assert run(["verify", str(merge / name), "--logits"]) == 2
    assert "compared tensor by tensor" in capsys.readouterr().err


def test_another_merge_does_not_pass(merge, hub, capsys):
    change(merge / "merged", one_element)
    assert run(["push", str(merge / "merged"), "acme/tiny"]) == 1 and sent(hub) == []
    assert "nothing was sent" in capsys.readouterr().out
    assert run(["push", str(merge / "merged"), "acme/tiny", "--dry-run"]) == 1
    change(merge / "hf", one_element)  # the base of a PEFT adapter is known by its place alone
    assert run(["verify", str(merge / "back")]) == 0, "its base is another folder"
    shutil.rmtree(merge / "adapter")
    capsys.readouterr()
    assert run(["push", str(merge / "merged"), "acme/tiny"]) == 2 and sent(hub) == []
    assert "it is a merge, and " in (error := capsys.readouterr().err) and "adapter no longer exists" in error
    assert run(["push", str(merge / "back"), "acme/tiny"]) == 0, "what it was converted from is still there"


@pytest.mark.parametrize(
    "options", [["--unverified", "--record"], ["--unverified", "--against", "x"], ["--dry-run", "--record"]], ids=" ".join
)
def test_options_that_contradict_each_other(place, hub, options):
    assert push(place, *options) == 2 and sent(hub) == []


def test_a_folder_of_other_sizes_fails_and_can_be_recorded_so(place, hub, capsys):
    other = make_llama(place / "other", max_position_embeddings=64, num_hidden_layers=2)
    for command in (["push", str(place / "export"), "acme/tiny", "--against", str(other), "--record"],
                    ["verify", str(other), str(place / "export"), "--record"]):  # fmt: skip
        assert run(command) == 1
        assert "Traceback" not in capsys.readouterr().err
    assert [v["passed"] for v in open_checkpoint(place / "export").manifest["verified"]] == [False, False]
    assert sent(hub) == []


# ---- a blend ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def blend(place):
    """A TIES merge of two models with a base, as a model folder."""
    for seed, name in enumerate(("a", "b"), 1):
        make_llama(place / name, max_position_embeddings=64, seed=seed)
    models = [str(place / name) for name in ("a", "b")]
    options = ["--base", str(place / "hf"), "--method", "ties", "--weights", "0.6,0.4", "--density", "0.5"]
    assert run(["blend", *models, *options, "--out", str(place / "blend")]) == 0
    return place


def test_a_blend_is_judged_by_its_recipe(blend, hub, tmp_path, capsys):
    capsys.readouterr()
    assert run(["push", str(blend / "blend"), "acme/tiny"]) == 0
    assert "SAME: blend is the TIES of a, b, hf: all 39 tensors" in capsys.readouterr().out
    got = pulled(hub, tmp_path)
    made, card = json.loads((got / "mconv.json").read_text()), (got / "README.md").read_text()
    assert made["verified"][-1]["digests"] == "pass" and made["verified"][-1]["against"] == "ties of a, b, hf"
    assert not {"made_from", "merged_from", "ancestors"} & made.keys() and str(tmp_path) not in json.dumps(made) + card
    assert "| a | a | weight 0.6 | unknown | xxh3-128 " in card and "| hf | hf | the base | unknown | " in card
    assert "base_model_relation: merge" in card


def test_licenses_of_what_a_blend_is_made_of_are_on_its_card(place, hub, tmp_path):
    """Each as its model's card names it; where they differ, none is invented for the whole."""
    told = {"a": "license: llama2", "b": "license: other\nlicense_name: house-rules"}
    for seed, (name, line) in enumerate(told.items(), 1):
        folder = make_llama(place / name, max_position_embeddings=64, seed=seed)
        (folder / "README.md").write_text(f"---\n{line}\n---\n# {name}\n")
    models = [str(place / name) for name in (*told, "hf")]
    assert run(["blend", *models, "--out", str(place / "soup")]) == 0
    assert run(["layers", str(place / "soup"), "--keep", "0", "--out", str(place / "short")]) == 0
    assert run(["push", str(place / "short"), "acme/tiny"]) == 0
    card = (pulled(hub, tmp_path) / "README.md").read_text()
    assert "| soup | linear of a, b, hf |  | llama2, other (house-rules) | xxh3-128 " in card and "with layers 0." in card
    assert not re.search("^license:", card, re.MULTILINE)
    made = json.loads((place / "soup" / "mconv.json").read_text())
    blended = cards.render(made, repo="acme/soup")
    assert "| hf | hf | weight 1.0 | unknown | " in blended and "No license is known of hf." in blended
    assert "differ\\: llama2 (a); other (house-rules) (b)." in blended
    assert not re.search("^license:", blended, re.MULTILINE)


def test_a_model_of_other_layers_is_judged_by_its_recipe(place, hub, tmp_path, capsys):
    assert run(["layers", str(place / "hf"), "--order", "1,0,2", "--out", str(place / "odd")]) == 0
    assert run(["push", str(place / "odd"), "acme/tiny"]) == 0
    assert "SAME: odd is the hf with layers 1,0,2" in capsys.readouterr().out
    made = json.loads((pulled(hub, tmp_path) / "mconv.json").read_text())
    assert made["verified"][-1]["against"] == "hf with layers 1,0,2" and "merged_from" not in made
    change(place / "odd", one_element)
    assert run(["push", str(place / "odd"), "acme/tiny"]) == 1 and "nothing was sent" in capsys.readouterr().out


def test_another_blend_does_not_pass(blend, hub, capsys):
    change(blend / "blend", one_element)
    assert run(["push", str(blend / "blend"), "acme/tiny"]) == 1 and sent(hub) == []
    assert "nothing was sent" in capsys.readouterr().out
    change(blend / "b", one_element)
    assert run(["push", str(blend / "blend"), "acme/tiny"]) == 2 and sent(hub) == []
    assert "have changed since" in capsys.readouterr().err
