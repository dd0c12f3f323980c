"""`mconv lora merge` of several adapters: their weighted sum, in fp64 and rounded once, proven by verify."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from mconv.cli.app import run

SMALL = {"num_hidden_layers": 2}
Q, UP = "model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.up_proj"


def adapter(folder, base, modules, *, rank, alpha, seed, **config):
    """An adapter's folder, written without mconv and without PEFT."""
    weights, random, made = tiny.tensors(base), torch.Generator().manual_seed(seed), {}
    for module in (name.format(layer) for name in modules for layer in range(2)):
        m, n = weights[f"{module}.weight"].shape
        made[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, n, generator=random)
        made[f"base_model.model.{module}.lora_B.weight"] = torch.randn(m, rank, generator=random)
    folder.mkdir(parents=True)
    save_file(made, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "bias": "none"}
    plain |= {"target_modules": [name.rpartition(".")[2] for name in modules], "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, an adapter of its queries, and a rank-stabilized one of queries and up-projections."""
    root = tmp_path_factory.mktemp("weighted")
    base = tiny.make_llama(root / "base", **SMALL)
    adapter(root / "one", base, (Q,), rank=3, alpha=6, seed=1)
    adapter(root / "two", base, (Q, UP), rank=4, alpha=2, seed=2, use_rslora=True)
    return root


def oracle(root, weights):
    """Every tensor of the merge, by plain fp64 arithmetic."""
    out = tiny.tensors(root / "base")
    wide = {key: value.double() for key, value in out.items()}
    for name, scale, weight in zip(("one", "two"), (2.0, 1.0), weights, strict=True):
        factors = load_file(root / name / "adapter_model.safetensors")
        for key in (key for key in factors if ".lora_A." in key):
            delta = factors[key.replace("lora_A", "lora_B")].double() @ factors[key].double()
            wide[key.removeprefix("base_model.model.").replace("lora_A.", "")] += weight * scale * delta
    return {key: value.to(out[key].dtype) for key, value in wide.items()}


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -0.5), None], ids=str)
def test_the_weighted_sum_is_merged(made, tmp_path, weights):
    argv = ["--weights", ",".join(map(str, weights))] if weights else []
    assert run(["lora", "merge", str(made / "one"), str(made / "two"), "--out", str(tmp_path / "out"), *argv]) == 0
    found, wanted = tiny.tensors(tmp_path / "out"), oracle(made, weights or (1.0, 1.0))
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[key], wanted[key], rtol=1e-7, atol=0) for key in found)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own, of this transformers
def test_peft_makes_the_same_sum(made, tmp_path):
    import peft
    import transformers

    argv = [str(made / "one"), str(made / "two"), "--weights", "0.7,0.3", "--out", str(tmp_path / "out")]
    assert run(["lora", "merge", *argv]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(made / "base")
    theirs = peft.PeftModel.from_pretrained(model, made / "one", adapter_name="one")
    theirs.load_adapter(made / "two", adapter_name="two")
    theirs.add_weighted_adapter(["one", "two"], [0.7, 0.3], adapter_name="sum", combination_type="cat")
    theirs.set_adapter("sum")
    whole, found = theirs.merge_and_unload().state_dict(), tiny.tensors(tmp_path / "out")
    assert all(torch.allclose(found[key], whole[key], rtol=1e-4, atol=1e-5) for key in found)


def test_verify_merges_all_of_them_again(made, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [str(made / "one"), str(made / "two"), "--weights", "0.7,0.3", "--out", str(out)]
    assert run(["lora", "merge", *argv, "--format", "torch_dist", "--tp", "2"]) == 0
    assert run(["meg2hf", str(out), "--out", str(tmp_path / "hf")]) == 0
    capsys.readouterr()
    for folder in (out, tmp_path / "hf"):
        assert run(["verify", str(folder), "--digests"]) == 0
        assert "merged anew with" in capsys.readouterr().err
    path = tmp_path / "hf" / "mconv.json"
    path.write_text(path.read_text().replace("0.7", "0.6"))
    assert run(["verify", str(tmp_path / "hf"), "--digests"]) == 1
    assert "q_proj" in (said := capsys.readouterr().out) or "qkv" in said


def test_adapters_of_two_bases_are_refused(made, tmp_path, capsys):
    other = tiny.make_llama(tmp_path / "other", **SMALL, seed=1)
    adapter(tmp_path / "three", other, (Q,), rank=2, alpha=2, seed=3)
    argv = ["lora", "merge", str(made / "one"), str(tmp_path / "three"), "--out", str(tmp_path / "out")]
    assert run(argv) == 2
    assert "the adapters are of different bases; --base says which" in capsys.readouterr().err
    assert run([*argv, "--base", str(made / "base")]) == 0


def test_what_replaces_a_tensor_cannot_be_weighted(made, tmp_path, capsys):
    saved = adapter(tmp_path / "saved", made / "base", (Q,), rank=2, alpha=2, seed=4, modules_to_save=["norm"])
    tensors = load_file(saved / "adapter_model.safetensors")
    tensors["base_model.model.model.norm.weight"] = torch.full((48,), 3.0)
    save_file(tensors, saved / "adapter_model.safetensors")
    argv = ["lora", "merge", str(made / "one"), str(saved), "--out", str(tmp_path / "out")]
    assert run([*argv, "--weights", "1,0.5"]) == 2
    assert "model.norm.weight replaces the base's tensor" in capsys.readouterr().err
    assert run([*argv, "--weights", "0.5,1"]) == 0
    assert torch.equal(tiny.tensors(tmp_path / "out")["model.norm.weight"], torch.full((48,), 3.0))


BAD = {
    "0.5": "for each of the 2 adapters",
    "1,x": "give a number",
    "1,nan": "finite number",
    "1,2,3": "for each of the 2",
}


@pytest.mark.parametrize("weights, why", BAD.items(), ids=BAD)
def test_bad_weights_are_refused(made, tmp_path, weights, why, capsys):
    argv = ["lora", "merge", str(made / "one"), str(made / "two"), "--out", str(tmp_path / "out"), "--weights", weights]
    assert run(argv) == 2 and why in capsys.readouterr().err
