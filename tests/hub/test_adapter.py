"""A PEFT adapter: pushed, pulled, looked at, and beside a whole model."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file

from mconv.cli import app
from mconv.errors import FormatError, MconvError
from mconv.hub import adapter
from mconv.hub.fetch import pull
from mconv.hub.push import plan, push

KEYS = {"lora_A": (4, 48), "lora_B": (48, 4)}
PEFT_CARD = "---\nlibrary_name: peft\n---\n# Model Card for Model ID\n" + "- **By:** [More Information Needed]\n" * 40


def make(folder, *, base="acme/base", **config):
    """An adapter's folder, as a training leaves it."""
    random = torch.Generator().manual_seed(1)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{name}.{part}.weight": torch.randn(shape, generator=random)
        for layer in (0, 1) for name in ("q_proj", "o_proj") for part, shape in KEYS.items()
    }  # fmt: skip
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": 4, "lora_alpha": 16,
             "target_modules": ["q_proj", "o_proj"], "bias": "none"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    return folder


def test_push_and_pull_of_an_adapter(hub, tmp_path, monkeypatch, capsys):
    """Its files alone travel; the card says base, rank, alpha and targets; what is pulled is what was pushed."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = make(tmp_path / "adapter", eva_config={"cache": "/home/someone/cache.bin", "rho": 2})
    for name in ("optimizer.pt", "training_args.bin", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text(PEFT_CARD)
    assert app.run(["push", str(folder), "acme/small", "--license", "llama2"]) == 0
    assert "there is nothing to verify it against" in capsys.readouterr().out
    assert app.run(["pull", "acme/small", str(tmp_path / "out")]) == 0
    assert "3 files, complete, a PEFT adapter\nnext: mconv lora merge" in capsys.readouterr().out
    found = {p.name for p in (tmp_path / "out").iterdir() if p.is_file()}
    assert found == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert tiny.same(*(load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "out")))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["eva_config"] == {"cache": "cache.bin", "rho": 2} and config["r"] == 4
    _, head, body = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "peft", "pipeline_tag": "text-generation", "license": "llama2", "base_model": "acme/base",
        "base_model_relation": "adapter", "tags": ["mconv", "lora"],
    }  # fmt: skip
    told = ["| base model | acme/base |", "| rank | 4 |", "| alpha | 16 |", "o\\_proj, q\\_proj", 'base = "acme/base"',
            'from_pretrained(base), "acme/small")', "mconv lora merge ADAPTER --base acme/base"]  # fmt: skip
    assert [said for said in told if said not in body] == []
    assert app.run(["push", str(tmp_path / "out"), "acme/small"]) == 0, "its own card, and what came back, go again"


def test_a_dry_run_shows_the_adapter_and_sends_nothing(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    folder = make(tmp_path / "adapter")
    (folder / "notes.txt").write_text("x")
    assert app.run(["push", str(folder), "acme/small", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {file["name"] for file in told["files"]} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert told["left_out"] == [{"name": "notes.txt", "why": "not a file of an adapter"}]
    assert told["verification"]["state"] == "adapter" and {r.method for r in hub.log} == {"GET"}
    assert app.run(["push", str(folder), "acme/small", "--record"]) == 2
    assert "cannot be verified against anything" in capsys.readouterr().err


def test_a_card_of_a_person_is_kept(tmp_path):
    folder = make(tmp_path / "adapter")
    (folder / "README.md").write_text("# Mine\n")
    assert not plan(folder, "acme/small").card_is_ours
    assert "| rank | 4 |" in plan(folder, "acme/small", overwrite_card=True).card


def named(folder, base):
    """Write another base into an adapter's config."""
    tiny.edit_json(folder / "adapter_config.json", base_model_name_or_path=base)


FAULTS = {
    "a base on this machine": (lambda f: named(f, "/home/me/llama"), "is '/home/me/llama', which nobody else has"),
    "a base beside it": (lambda f: (named(f, "base"), (f.parent / "base").mkdir()), "which nobody else has"),
    "no base": (lambda f: named(f, None), "is None, which nobody else has"),
    "a secret": (lambda f: (f / "README.md").write_text("hf_" + "abcdefghij" * 4), "a Hugging Face token"),
    "a pickle": (lambda f: torch.save({}, f / "adapter_model.bin"), "a pickle, which runs code when loaded"),
    "cut short": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"12"), "truncated"),
    "half of it": (lambda f: save_file({"x.lora_A.weight": torch.ones(4, 8)}, f / "adapter_model.safetensors"),
                   "its other factor x.lora_B.weight is missing"),
    "NaN": (lambda f: save_file({"x.lora_A.weight": torch.ones(2, 2) * float("nan"),
                                 "x.lora_B.weight": torch.ones(2, 2)}, f / "adapter_model.safetensors"), "NaN"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_must_not_be_published(name, tmp_path):
    spoil, message = FAULTS[name]
    folder = make(tmp_path / "adapter")
    spoil(folder)
    with pytest.raises(FormatError, match=message):
        plan(folder, "acme/small")


def test_an_adapter_does_not_stay_beside_a_model_on_the_hub(hub, make_model, tmp_path):
    """transformers would apply it to the model that is pushed over it."""
    push(make(tmp_path / "adapter"), "tiny", endpoint=hub.url)
    with pytest.raises(MconvError, match=r"adapter_config\.json.*--overwrite"):
        push(make_model(), "tiny", endpoint=hub.url)
    done = push(tmp_path / "model", "tiny", endpoint=hub.url, overwrite=True)
    assert set(done.deleted) == {"adapter_config.json", "adapter_model.safetensors"}


def test_an_old_adapter_is_pulled_and_a_broken_one_is_not(hub, tmp_path):
    from huggingface_hub import HfApi

    folder = make(tmp_path / "adapter")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    api = HfApi(endpoint=hub.url)
    api.create_repo("acme/old")
    api.upload_folder(repo_id="acme/old", folder_path=folder)
    assert (pull("acme/old", tmp_path / "out", endpoint=hub.url) / "adapter_model.bin").is_file()
    api.delete_file("adapter_model.bin", repo_id="acme/old")
    with pytest.raises(FormatError, match="mconv reads models with"):
        pull("acme/old", tmp_path / "none", endpoint=hub.url)


# ---------------------------------------------------------------- looked at
def test_inspect_names_an_adapter(tmp_path, capsys):
    """Also where a config.json lies beside it, as some trainers leave it; and what it could not be merged for."""
    folder = make(tmp_path / "adapter", alpha_pattern={"0.self_attn.q_proj": 3}, use_rslora=True, use_dora=True)
    (folder / "config.json").write_text("{}")
    assert app.run(["inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] == "a PEFT adapter, not a model" and found["base"] == "acme/base"
    assert (found["rank"], found["alpha"], found["modules"]) == (4, [16, 3], 4)
    assert (found["targets"], found["parameters"]) == (["o_proj", "q_proj"], 4 * 2 * 48 * 4)
    assert found["scale"] == "alpha / sqrt(rank)" and found["problems"][0].startswith("use_dora is True")
    assert app.run(["inspect", str(folder)]) == 0
    assert "problems                 use_dora is True" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["hf2meg", "meg2hf", "reshard", "merge", "verify"])
def test_a_command_that_takes_models_names_lora_merge(command, tmp_path, capsys):
    folder = make(tmp_path / "adapter")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    rest = {"verify": [str(folder)]}.get(command, ["--out", str(tmp_path / "out")])
    assert app.run([command, str(folder), *rest]) == 2
    assert "is a PEFT adapter" in (told := capsys.readouterr().err) and "`mconv lora merge" in told


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_beside_a_model_is_a_note_and_changes_nothing(tmp_path, capsys):
    """Converted, verified and inspected as the model alone, whether or not transformers would apply the adapter."""
    folder = tiny.make_llama(tmp_path / "hf", num_hidden_layers=2)
    for path in make(tmp_path / "adapter").iterdir():
        shutil.copy(path, folder)
    note = "a PEFT adapter lies beside the weights; it is not applied here"
    assert app.run(["hf2meg", str(folder), "--out", str(tmp_path / "meg")]) == 0
    assert note in "".join(capsys.readouterr())
    assert app.run(["verify", str(folder), str(tmp_path / "meg")]) == 0
    assert note in "".join(capsys.readouterr())
    assert app.run(["inspect", str(folder)]) == 0
    assert note in "".join(capsys.readouterr())
    with pytest.raises(FormatError, match="neither"):
        shutil.copytree(tmp_path / "adapter", tmp_path / "none")
        (tmp_path / "none" / "adapter_model.safetensors").unlink()
        adapter.check_tensors(Path(tmp_path / "none"))
