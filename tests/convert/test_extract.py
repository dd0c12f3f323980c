"""`mconv lora extract`: a difference of low rank is found exactly, any other as well as its rank allows."""

import json
import math
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from mconv.cli.app import run
from mconv.convert.extraction import svd, write
from mconv.convert.folders import host

ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
SMALL = {"num_hidden_layers": 2}
PAD = "adapter_model.safetensors"


def planted(base, folder, *, rank, ends=(".weight",), also=()):
    """A copy of a model, each linear of which has something of a low rank added; `also` are changed elsewhere."""
    weights, random = tiny.tensors(base), torch.Generator().manual_seed(3)
    for key, weight in weights.items():
        if ("proj" in key or "c_" in key or "dense" in key or "query_key" in key) and key.endswith(".weight"):
            m, n = weight.shape
            added = torch.randn(m, rank, generator=random) @ torch.randn(rank, n, generator=random)
            weights[key] = (weight + 0.1 * added).to(weight.dtype)
        if key in also:
            weights[key] = weight * 1.25
    folder.mkdir()
    for file in base.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A LLaMA, and the same with a difference of rank 3 on each linear."""
    root = tmp_path_factory.mktemp("extract")
    base = tiny.make_llama(root / "base", **SMALL)
    return base, planted(base, root / "tuned", rank=3)


def extract(capsys, tuned, base, out, *argv):
    assert run(["lora", "extract", str(tuned), str(base), "--out", str(out), "--json", *map(str, argv)]) == 0
    return json.loads(capsys.readouterr().out)


def deltas(adapter):
    """B A of each module times its scale, by PEFT's own rule of matching names."""
    config, tensors = json.loads((adapter / "adapter_config.json").read_text()), load_file(adapter / PAD)
    found = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            module, a = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"), tensors[key].double()
            rank, alpha = (config[x].get(module, config[y])
                           for x, y in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")))  # fmt: skip
            assert rank == len(a)
            found[module] = tensors[key.replace("lora_A", "lora_B")].double() @ a * (alpha / rank)
    return found


def differences(base, tuned):
    a, b = tiny.tensors(base), tiny.tensors(tuned)
    return {key.removesuffix(".weight"): b[key].double() - a[key].double() for key in a}


def apart(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", ["llama-gqa", "falcon-40b", "gpt2-untied", "qwen3-gqa"])
def test_a_difference_of_low_rank_is_found_exactly_from_any_format(name, tmp_path, capsys):
    layers = {"n_layer" if name.startswith("gpt2") else "num_hidden_layers": 2}
    base = tiny.make_model(name, tmp_path / "base", **layers)
    tuned = planted(base, tmp_path / "tuned", rank=3)
    told = extract(capsys, tuned, base, tmp_path / "one", "--rank", 3)
    assert told["error"] < 3e-7 and told["energy"] > 1 - 1e-12 and not told["left_out"]
    found, wanted = deltas(tmp_path / "one"), differences(base, tuned)
    turned = {module: delta.t() if name.startswith("gpt2") else delta for module, delta in found.items()}
    assert {module for module, x in wanted.items() if x.any()} == turned.keys()
    assert all(apart(delta, wanted[module]) < 3e-7 for module, delta in turned.items())
    dialect = "mcore" if name[:4] in ("gpt2", "qwen") else "megatron-llm"
    for source, options in ((base, f"--format mp_rank --tp 2 --pp 2 --dialect {dialect}"), (tuned, "--tp 4")):
        assert run(["hf2meg", str(source), "--out", f"{source}-meg", *options.split()]) == 0
    capsys.readouterr()
    for number, (a, b) in enumerate(((f"{base}-meg", tuned), (base, f"{tuned}-meg"), (f"{base}-meg", f"{tuned}-meg"))):
        again = extract(capsys, b, a, tmp_path / str(number), "--rank", 3)
        assert again["kept"] == told["kept"]
        assert tiny.same(load_file(tmp_path / str(number) / PAD), load_file(tmp_path / "one" / PAD))


def test_a_full_difference_keeps_what_its_singular_values_say(tmp_path, capsys):
    base, tuned = tiny.make_llama(tmp_path / "base", **SMALL), tiny.make_llama(tmp_path / "tuned", **SMALL, seed=1)
    told = extract(capsys, tuned, base, tmp_path / "out", "--rank", 5)
    wanted, found = differences(base, tuned), deltas(tmp_path / "out")
    total, missed = 0.0, 0.0
    for one in told["kept"]:
        values = np.linalg.svd(wanted[one["module"]].numpy(), compute_uv=False)
        energy = (values[:5] ** 2).sum() / (values**2).sum()
        assert math.isclose(one["energy"], energy, rel_tol=1e-9)
        assert math.isclose(one["error"], math.sqrt(1 - energy), rel_tol=1e-6)
        assert math.isclose(one["error"], apart(found[one["module"]], wanted[one["module"]]), rel_tol=1e-6)
        total, missed = total + (values**2).sum(), missed + (values[5:] ** 2).sum()
    assert math.isclose(told["energy"], 1 - missed / total, rel_tol=1e-9)
    assert math.isclose(told["error"], math.sqrt(missed / total), rel_tol=1e-6)
    assert [one["name"] for one in told["layers"]] == ["layer 0", "layer 1"]
    left = {one["key"]: one["relative_norm"] for one in told["left_out"]}
    a, b = (tiny.tensors(x)["lm_head.weight"].double() for x in (base, tuned))
    assert math.isclose(left["lm_head.weight"], float((b - a).norm() / a.norm()), rel_tol=1e-12)
    assert left.keys() == {key for key in tiny.tensors(base) if "_proj" not in key and wanted[key[:-7]].any()}


def test_energy_gives_each_module_the_lowest_rank_that_keeps_it(tmp_path, capsys):
    base, tuned = tiny.make_llama(tmp_path / "base", **SMALL), tiny.make_llama(tmp_path / "tuned", **SMALL, seed=1)
    told = extract(capsys, tuned, base, tmp_path / "out", "--rank", 20, "--energy", 0.6)
    wanted, found = differences(base, tuned), deltas(tmp_path / "out")
    for one in told["kept"]:
        values = np.linalg.svd(wanted[one["module"]].numpy(), compute_uv=False) ** 2
        assert one["rank"] == int((values.cumsum() < 0.6 * values.sum()).sum()) + 1 and one["energy"] >= 0.6
        assert math.isclose(one["error"], apart(found[one["module"]], wanted[one["module"]]), rel_tol=1e-6)
    assert len({one["rank"] for one in told["kept"]}) > 1


def test_merged_again_it_is_the_tuned_model_to_the_error_told(pair, tmp_path, capsys):
    base, tuned = pair
    for rank, least, most in ((3, 0.0, 3e-7), (2, 0.2, 0.8)):
        told = extract(capsys, tuned, base, tmp_path / f"r{rank}", "--rank", rank)
        assert least <= told["error"] <= most
        assert run(["lora", "merge", str(tmp_path / f"r{rank}"), "--out", str(tmp_path / f"m{rank}")]) == 0
        capsys.readouterr()
        made, wanted, a = tiny.tensors(tmp_path / f"m{rank}"), tiny.tensors(tuned), tiny.tensors(base)
        for one in told["kept"]:
            key = f"{one['module']}.weight"
            missed = float((made[key].double() - wanted[key].double()).norm()) / one["norm"]
            assert math.isclose(missed, one["error"], rel_tol=1e-3, abs_tol=3e-7)
        assert all(torch.equal(made[key], a[key]) for key in a if "_proj" not in key)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own, of this transformers
@pytest.mark.parametrize("name, options", [("llama-gqa", "--energy 0.9"), ("gpt2-tied", ""),
                                           ("llama-gqa", "--target-modules q_proj,lm_head")])  # fmt: skip
def test_peft_loads_the_adapter_and_gives_the_logits(name, options, tmp_path, capsys):
    import peft
    import transformers

    layers = {"n_layer" if name.startswith("gpt2") else "num_hidden_layers": 2}
    base = tiny.make_model(name, tmp_path / "base", **layers)
    tuned = planted(base, tmp_path / "tuned", rank=3, also=("lm_head.weight",))
    extract(capsys, tuned, base, tmp_path / "adapter", "--rank", 3, *options.split())
    assert run(["lora", "merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    ids = torch.randint(0, 151, (2, 12), generator=torch.Generator().manual_seed(0))
    load = transformers.AutoModelForCausalLM.from_pretrained
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter")(ids).logits
        ours, plain = load(tmp_path / "merged")(ids).logits, load(base)(ids).logits
    scale = ours.square().mean().sqrt()
    assert float((theirs - ours).abs().max() / scale) < 1e-4 < float((plain - ours).abs().max() / scale)


def test_large_matrices_are_found_from_a_seed(pair, tmp_path, monkeypatch, capsys):
    base, tuned = pair
    monkeypatch.setattr(svd, "EXACT", 8)
    told = [extract(capsys, tuned, base, tmp_path / str(n), "--rank", 3, "--seed", seed)
            for n, seed in enumerate((0, 0, 1))]  # fmt: skip
    files = [load_file(tmp_path / str(n) / PAD) for n in range(3)]
    assert tiny.same(files[0], files[1]) and not tiny.same(files[0], files[2])
    assert all(one["error"] < 3e-6 for one in told)
    found, wanted = deltas(tmp_path / "0"), differences(base, tuned)
    assert all(apart(delta, wanted[module]) < 3e-6 for module, delta in found.items())


def test_what_it_needs_is_said_before_a_weight_is_read(pair, tmp_path, monkeypatch, capsys):
    base, tuned = pair
    argv = ["lora", "extract", str(tuned), str(base), "--rank", "3", "--out", str(tmp_path / "out")]
    assert run([*argv, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "extract: needs about" in said.err and "for the SVD of model.layers.0.mlp.gate_proj (64 x 48)" in said.err
    assert "would be rank 3" in said.out and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(write, "one_module", lambda *_: pytest.fail("it was read"))
    assert svd.memory((11008, 4096), 64) < 2**30 < 8 * 4 * 4096 * 11008


# ---- kills and changes -----------------------------------------------------------------------------------------------
def killed_at(monkeypatch, count):
    """Interrupt the extraction when `count` modules are done; return those that are begun."""
    begun, real = [], write.one_module

    def one_module(what, linear, layer):
        if len(begun) == count:
            raise KeyboardInterrupt
        begun.append(linear.at(layer))
        return real(what, linear, layer)

    monkeypatch.setattr(write, "one_module", one_module)
    return begun


def test_a_killed_extraction_is_resumed(pair, tmp_path, monkeypatch, capsys):
    base, tuned = pair
    extract(capsys, tuned, base, tmp_path / "whole", "--rank", 3)
    argv = ["lora", "extract", str(tuned), str(base), "--rank", "3", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        begun = killed_at(patch, 5)
        assert run(argv) == 130 and not (tmp_path / "out").exists()
        assert "--resume completes it" in capsys.readouterr().err
    assert run(["status", str(tmp_path)]) == 0
    found = capsys.readouterr().out
    assert re.search(r"out: an unfinished .*`mconv lora extract .*, 30 % written\); the same .* --resume", found), found
    with monkeypatch.context() as patch:
        rest = killed_at(patch, 99)
        assert run([*argv, "--resume"]) == 0
    assert len(begun) == 5 and len(rest) == 9 and not {*begun} & {*rest}
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["adapter_config.json", PAD, "mconv.json"]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_only_the_same_extraction_is_resumed(pair, tmp_path, monkeypatch, capsys):
    base, tuned = pair
    argv = ["lora", "extract", str(tuned), str(base), "--out", str(tmp_path / "out"), "--rank"]
    with monkeypatch.context() as patch:
        killed_at(patch, 5)
        assert run([*argv, "3"]) == 130
    assert run([*argv, "2", "--resume"]) == 2
    assert "begun with other models or options; leave out --resume" in capsys.readouterr().err
    assert run([*argv, "2"]) == 0


def test_a_model_that_changes_meanwhile_is_noticed(pair, tmp_path, monkeypatch, capsys):
    base = pair[0]
    tuned = planted(base, tmp_path / "tuned", rank=1)
    real = write.left_out

    def left_out(what):
        (tuned / "model.safetensors").touch()
        return real(what)

    monkeypatch.setattr(write, "left_out", left_out)
    assert run(["lora", "extract", str(tuned), str(base), "--rank", "1", "--out", str(tmp_path / "out")]) == 2
    assert "changed while it was read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


# ---- refusals --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def others(pair, tmp_path_factory):
    """Folders of models that are no finetunes of the base, and an adapter."""
    root = tmp_path_factory.mktemp("others")
    tiny.make_llama(root / "deep", num_hidden_layers=3)
    tiny.make_llama(root / "wide", **SMALL, intermediate_size=80)
    tiny.make_llama(root / "rope", **SMALL, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    tiny.make_llama(root / "words", **SMALL, vocab_size=160)
    spoilt = planted(pair[0], root / "spoilt", rank=1)
    weights = tiny.tensors(spoilt)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = math.inf
    save_file(weights, spoilt / "model.safetensors", {"format": "pt"})
    for name, folder in zip(("base", "tuned"), pair, strict=True):
        (root / name).symlink_to(folder)
    assert run(["lora", "extract", str(pair[1]), str(pair[0]), "--rank", "1", "--out", str(root / "adapter")]) == 0
    return root


BAD = {
    "base base --rank 2": "base and base do not differ in any of q_proj, k_proj",
    "tuned base --rank 0": "--rank is 0; it must be at least 1",
    "tuned base --rank 25": "--rank 25: k_proj is 24 x 48, so its rank is at most 24",
    "tuned base --rank 2 --energy 0": "--energy is 0; it is a share",
    "tuned base --rank 2 --energy 1.5": "--energy is 1.5; it is a share",
    "tuned base --rank 2 --target-modules q_proj,c_attn": "--target-modules: the model has no 'c_attn'; it has q_proj",
    "adapter base --rank 2": "is a PEFT adapter",
    "tuned adapter --rank 2": "is a PEFT adapter",
    "deep base --rank 2": "num_layers is 3 in the tuned model and 2 in the base",
    "wide base --rank 2": "ffn_hidden_size is 80 in the tuned model and 64 in the base",
    "rope base --rank 2": "rope is Rope(",
    "words base --rank 2 --target-modules lm_head": "lm_head: its rows are tokens, and the vocabularies differ",
    "spoilt base --rank 2": "model.layers.0.mlp.up_proj: the difference holds NaN or infinity",
    "nowhere base --rank 2": "nowhere",
}


@pytest.mark.parametrize("argv, why", BAD.items(), ids=BAD)
def test_bad_input_is_refused_and_nothing_is_left(others, argv, why, monkeypatch, capsys):
    monkeypatch.chdir(others)
    before = sorted(others.iterdir())
    assert run(["lora", "extract", *argv.split(), "--out", "made"]) == 2
    assert why in capsys.readouterr().err and sorted(others.iterdir()) == before


def test_a_full_folder_is_not_written_into(pair, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    argv = ["lora", "extract", str(pair[1]), str(pair[0]), "--rank", "1", "--out", str(tmp_path / "out")]
    assert run(argv) == 2 and "exists and is not empty; --overwrite" in capsys.readouterr().err
    assert run([*argv, "--overwrite"]) == 2 and "is not an adapter, so" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_overwrite_replaces_an_adapter_when_the_new_one_is_whole(pair, tmp_path, monkeypatch, capsys):
    extract(capsys, pair[1], pair[0], tmp_path / "out", "--rank", 3)
    argv = ["lora", "extract", str(pair[1]), str(pair[0]), "--rank", "2", "--out", str(tmp_path / "out"), "--overwrite"]
    with monkeypatch.context() as patch:
        killed_at(patch, 5)
        assert run(argv) == 130 and settings(tmp_path / "out")["r"] == 3
    assert run([*argv, "--resume"]) == 0 and settings(tmp_path / "out")["r"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def settings(adapter):
    return json.loads((adapter / "adapter_config.json").read_text())


def test_too_little_memory_is_told_before_a_weight_is_read(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host, "memory", lambda: {"size": 1 << 30, "free": 1000_000})
    monkeypatch.setattr(write, "one_module", lambda *_: pytest.fail("it was read"))
    assert run(["lora", "extract", str(pair[1]), str(pair[0]), "--rank", "1", "--out", str(tmp_path / "out")]) == 2
    assert "1.0 MB of memory are free, and this needs 10" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_larger_vocabulary_leaves_the_linears_to_be_extracted(others, capsys, tmp_path):
    told = extract(capsys, others / "words", others / "base", tmp_path / "out", "--rank", 2)
    assert {"key": "lm_head.weight", "relative_norm": None} in told["left_out"]


# ---- mergekit --------------------------------------------------------------------------------------------------------
@pytest.mark.skipif("MCONV_MERGEKIT" not in os.environ, reason="MCONV_MERGEKIT names no Python with mergekit 0.1.5")
def test_it_is_the_adapter_that_mergekit_extracts(pair, tmp_path, capsys):
    """mergekit-extract-lora takes the whole SVD in fp32; ours keeps as much of each difference, and the same of it."""
    base, tuned = pair
    extract(capsys, tuned, base, tmp_path / "ours", "--rank", 2)
    program = Path(os.environ["MCONV_MERGEKIT"]).with_name("mergekit-extract-lora")
    sides = ["--model", tuned, "--base-model", base, "--out-path", tmp_path / "theirs", "--max-rank", "2"]
    subprocess.run([program, *sides, "--no-copy-tokenizer"], check=True, capture_output=True)
    ours, theirs, whole = deltas(tmp_path / "ours"), deltas(tmp_path / "theirs"), differences(base, tuned)
    assert len(ours) == 14 and ours.keys() <= theirs.keys()
    for module, found in ours.items():
        assert apart(found, theirs[module]) < 1e-4, module
        assert apart(found, whole[module]) <= apart(theirs[module], whole[module]) * (1 + 1e-5)
