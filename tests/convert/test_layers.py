"""`mconv layers`: layers left out, repeated, reordered, heads tied and untied, from any format into any."""

import json

import pytest
import torch
from interrupts import stop_after
from tiny import edit_json, make_llama, make_model, same, tensors
from whole import relayered

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders import manifest
from mconv.convert.surgery import depth
from mconv.errors import MconvError

KINDS = {
    "hf": {"format": "hf"},
    "torch_dist": {"format": "torch_dist", "tp": 2, "pp": 2},
    "mp_rank": {"format": "mp_rank", "tp": 2, "pp": 2},
    "nvidia-legacy": {"format": "mp_rank", "tp": 2, "dialect": "nvidia-legacy"},
    "megatron-llm": {"format": "mp_rank", "pp": 2, "dialect": "megatron-llm"},
}
NAMES = ("llama-gqa", "falcon-7b", "gpt2-tied", "qwen3-tied")
HEADS = {
    "llama": ("lm_head.weight", "model.embed_tokens.weight"), "qwen2": ("lm_head.weight", "model.embed_tokens.weight"),
    "falcon": ("lm_head.weight", "transformer.word_embeddings.weight"),
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
}  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Each model in each format, made when first asked for."""
    root = tmp_path_factory.mktemp("models")

    def find(name, kind="hf"):
        hf, out = root / name / "hf", root / name / kind
        if not hf.exists():
            make_model(name, hf)
        if not out.exists():
            rewrite(plan.make(open_checkpoint(hf), out, **KINDS[kind]), step="test")
        return out

    return find


def written(source, out, layers=None, *, tied=None, **kind):
    made = depth.relayered(open_checkpoint(source), layers, tied=tied)
    rewrite(plan.make(made, out, **{"format": "hf", **kind}), step="layers")
    return out


def exported(root):
    """The tensors of a checkpoint of any format as Hugging Face has them, and its manifest's last recipe."""
    found = open_checkpoint(root)
    recipe = found.manifest["history"][-1]["detail"]["recipe"]
    if found.format == "hf":
        return tensors(root), recipe
    rewrite(plan.make(found, root.parent / f"{root.name}-hf", format="hf"), step="test")
    return tensors(root.parent / f"{root.name}-hf"), recipe


@pytest.mark.parametrize("to", ["hf", "torch_dist", "mp_rank"])
@pytest.mark.parametrize("kind", KINDS)
def test_from_every_format_into_every_other(stored, tmp_path, kind, to):
    source = stored("llama-gqa", kind)
    found, recipe = exported(written(source, tmp_path / "out", (0, 1, 2, 1, 2, 3), **KINDS[to]))
    held = tensors(stored("llama-gqa"))
    assert recipe["layers"] == "0-2,1-3" and len(found) == len(held) + 2 * 9
    assert same(found, relayered(held, recipe, head="", embedding=""))
    for new, old in enumerate((0, 1, 2, 1, 2, 3)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(found[name.format(new)], held[name.format(old)])


@pytest.mark.parametrize("name", NAMES)
def test_of_every_kind_of_family(stored, tmp_path, name):
    for to in ("hf", "torch_dist"):
        found, recipe = exported(written(stored(name, "torch_dist"), tmp_path / to, (3, 1), **KINDS[to]))
        held = tensors(stored(name))
        assert same(found, relayered(held, recipe, head="", embedding="")) and len(found) < len(held)


@pytest.mark.parametrize(
    "name, layers", [("llama-gqa", (0, 1, 1, 2, 3)), ("qwen2-window", (3, 0)), ("mistral-window", (1,))]
)
def test_transformers_computes_with_these_layers(stored, tmp_path, name, layers):
    """config.json is true of the new depth too, `layer_types` of every layer: the logits are those of the old layers."""
    import transformers

    source = stored(name)
    written(source, tmp_path / "out", layers)
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert len(found.model.layers) == len(layers) == found.config.num_hidden_layers
    ids = torch.arange(40)[None] % 151
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in layers)
        model.config.num_hidden_layers = len(layers)
        logits = found(ids, use_cache=False).logits
        assert torch.equal(logits, model(ids, use_cache=False).logits) and not torch.allclose(logits, before)


@pytest.mark.parametrize("name", ["llama-tied", "falcon-7b", "gpt2-tied"])
@pytest.mark.parametrize("kind", ["hf", "mp_rank"])
def test_a_head_is_untied_and_tied_again(stored, tmp_path, name, kind):
    source, held = stored(name, kind), tensors(stored(name))
    head, embedding = HEADS[name.split("-")[0]]
    written(source, tmp_path / "untied", tied=False, **KINDS[kind])
    found, recipe = exported(tmp_path / "untied")
    assert same(found, relayered(held, recipe, head=head, embedding=embedding)) and head in found
    assert not open_checkpoint(tmp_path / "untied").spec.tied_embeddings
    written(tmp_path / "untied", tmp_path / "tied", tied=True, **KINDS[kind])
    assert same(exported(tmp_path / "tied")[0], {k: v for k, v in held.items() if k != head})
    with pytest.raises(MconvError, match="tied already"):
        depth.relayered(open_checkpoint(tmp_path / "tied"), None, tied=True)


def test_a_tied_head_that_is_stored_twice_is_untied(tmp_path):
    from safetensors.torch import save_file

    hf = make_llama(tmp_path / "hf", tie_word_embeddings=True)
    held = tensors(hf)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    save_file(held, hf / "model.safetensors", metadata={"format": "pt"})
    written(hf, tmp_path / "untied", (1, 0), tied=False)
    assert tensors(tmp_path / "untied").keys() == {name for name in held if ".2." not in name and ".3." not in name}
    assert manifest.read(tmp_path / "untied")["copies"] == []
    written(hf, tmp_path / "tied", (1, 0))
    assert "lm_head.weight" in tensors(tmp_path / "tied")


def test_a_head_that_differs_is_not_tied(stored, tmp_path):
    hf = make_llama(tmp_path / "hf")
    held = tensors(hf)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    held["lm_head.weight"][77, 5] += 1
    from safetensors.torch import save_file

    save_file(held, hf / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MconvError, match="differ, first in row 77"):
        depth.relayered(open_checkpoint(hf), None, tied=True)


def test_a_fault_in_one_tensor_is_seen_by_the_second_evaluation(stored, tmp_path):
    held = tensors(stored("llama-gqa"))
    found, recipe = exported(written(stored("llama-gqa"), tmp_path / "out", (0, 2, 1)))
    again = relayered(held, recipe, head="", embedding="")
    names = [f"model.layers.{i}.self_attn.o_proj.weight" for i in (1, 2)]
    swapped = {**found, names[0]: found[names[1]], names[1]: found[names[0]]}
    assert same(found, again)
    assert [name for name in again if not torch.equal(swapped[name], again[name])] == names


def test_an_interrupted_run_is_taken_up(stored, tmp_path, monkeypatch):
    source, out = stored("llama-gqa", "torch_dist"), tmp_path / "out"
    line = f"layers {source} --keep 0-2,1-3 --out {out} --format mp_rank --tp 2 --pp 1"
    assert run(line.replace("out --f", "whole --f").split()) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 40)
        assert run(line.split()) == 130
    other = line.replace("0-2,1-3", "0-3,2-3")
    assert not (out / "release").exists() and run([*other.split(), "--resume"]) == 2
    assert run([*line.split(), "--resume"]) == 0
    for file in (tmp_path / "whole").rglob("*.pt"):
        assert file.read_bytes() == (out / file.relative_to(tmp_path / "whole")).read_bytes()


def test_the_manifest_says_what_was_made_of_what(stored, tmp_path):
    source = stored("llama-gqa", "torch_dist")
    made = manifest.read(written(source, tmp_path / "out", (0, 3), dtype="bf16"))
    recipe = made["history"][-1]["detail"]["recipe"]
    assert recipe["layers"] == "0,3" and recipe["of"][0]["digest"].startswith("xxh3")
    assert made["made_from"] == [] and len(made["history"]) == 2
    assert (tmp_path / "out" / made["ancestors"][-1]).resolve() == (source / "release").resolve()
    before = manifest.read(source / "release")["digests"]
    kept = manifest.read(written(source, tmp_path / "kept", (3, 0)))["digests"]
    assert kept["layer.0.qkv.weight"] == before["layer.3.qkv.weight"]


def test_sizes_of_a_toy():
    assert depth.few(4, depth=32) == (0, 10, 20, 31) and depth.few(1, depth=32) == (0,)
    assert depth.few(2, depth=80) == (0, 79) and depth.few(9, depth=4) == (0, 1, 2, 3)
    assert depth.repeated("1-2,3", depth=5) == (0, 1, 2, 1, 2, 3, 3, 4)
    assert depth.chosen(9, order="8,0-2,0") == (8, 0, 1, 2, 0) and depth.chosen(9) is None


WRONG = [
    ("--keep 0-4", "no layer 4; its layers are 0 to 3"),
    ("--keep 2-1", "runs backwards"),
    ("--keep ,", "neither a layer nor a range"),
    ("--keep=", "neither a layer nor a range"),
    ("--order 0,x", "'x'"),
    ("--order=-1", "neither"),
    (f"--order {'9' * 400}", "neither"),
    ("--keep 999999999-999999999", "no layer"),
    ("--repeat 0-2,1-3", "overlap in layer 1"),
    ("--keep 0 --toy", "not several"),
    ("--toy 0", "at least one layer"),
    ("--toy x", "x"),
    ("", "--keep 0-15,20-31"),
    ("--tie --untie", "not both"),
    ("--tie", "differ, first in row 0"),
    ("--untie", "untied already"),
    ("--keep 0-2 --format torch_dist --pp 2", "pp 2"),
    ("--keep 0-2 --format torch_dist --tp 3", "tp"),
    ("--keep 0-2 --tp 2", "tp and pp do not apply"),
    ("--keep 0-2 --iteration 5", "no iterations"),
]


@pytest.mark.parametrize("words, says", WRONG, ids=lambda v: v[:40])
def test_a_mistake_is_one_message_and_exit_code_2(stored, tmp_path, capsys, words, says):
    assert run(["layers", str(stored("llama-gqa")), "--out", str(tmp_path / "o"), *words.split()]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_adapters_and_other_folders_are_refused(tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    for name in ("adapter", "nowhere"):
        assert run(["layers", str(tmp_path / name), "--toy", "--out", str(tmp_path / "o")]) == 2
        assert name in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_keys_that_no_row_knows_stay_in_the_config(tmp_path):
    hf = make_llama(tmp_path / "hf")
    edit_json(hf / "config.json", odd=5, layer_types=["full_attention"] * 4)
    assert run(["layers", str(hf), "--toy", "2", "--out", str(tmp_path / "o"), "--ignore-config-key", "odd"]) == 0
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert (config["odd"], config["layer_types"], config["num_hidden_layers"]) == (5, ["full_attention"] * 2, 2)
