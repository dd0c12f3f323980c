"""LoRA: PEFT's adapters on fused and cut linears, the same at every layout; saved, exported, merged."""

import json
import re
import warnings
from pathlib import Path

import jobs
import lora_jobs
import pytest
import tiny
import torch

from mconv.cli import app
from mconv.errors import ConfigError, FormatError

HERE = Path(__file__)
GOLDEN = HERE.parents[3] / "shared" / "golden" / "peft" / "lora-r4"

LAYOUTS = {
    "tp2 pp2": {"tp": 2, "pp": 2},
    "tp2 sp dp2 distopt": {"tp": 2, "sequence_parallel": True, "distributed_optimizer": True},
    "tp4": {"tp": 4},  # more ranks than query groups
    "tp4 sp": {"tp": 4, "sequence_parallel": True},
}
SOME = ["q_proj", "v_proj", "up_proj", "down_proj"]
"""Of each fused linear a part has none."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The fields of a run that every test shares: a tiny HF model, an adapter of it, and real tokenized text."""
    folder = tmp_path_factory.mktemp("run")
    made = jobs.fields(folder, train_iters=3, lr=5e-3, lr_decay_style="constant", seq_length=32)
    return made | {"lora_load": str(lora_jobs.adapter_folder(folder / "adapter", folder / "hf"))}


@pytest.fixture(scope="module")
def alone(run):
    """The run at tp 1, pp 1, dp 1."""
    return jobs.train(**run)


@pytest.fixture(scope="module")
def fresh(run):
    """A run that makes its own adapter, saved at steps 2 and 3."""
    fields = {k: v for k, v in run.items() if k != "lora_load"}
    return fields | {"lora_rank": 4, "lora_alpha": 16.0, "lora_targets": SOME, "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def saved(fresh, tmp_path_factory):
    """Its folder, and what came of it."""
    folder = tmp_path_factory.mktemp("saved")
    return folder, jobs.train(**fresh, save=str(folder))


def far(ours, theirs):
    """The largest difference of two runs' losses and gradient norms."""
    assert len(ours["losses"]) == len(theirs["losses"])
    pairs = [pair for name in ("losses", "grad_norms") for pair in zip(ours[name], theirs[name], strict=True)]
    return max(abs(a - b) for a, b in pairs)


# ---------------------------------------------------------------- PEFT's
def transformers_model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def with_peft(model, adapter):
    peft = pytest.importorskip("peft", reason="needs the package peft")
    wrapped = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
    return wrapped, [p for p in wrapped.parameters() if p.requires_grad]


OTHERS = {"falcon": "falcon-40b-biases", "gpt2": "gpt2-untied", "qwen3": "qwen3-gqa"}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's, about transformers
@pytest.mark.parametrize("family", ["llama", *OTHERS, "uneven"])
@pytest.mark.parametrize("judge", ["by hand", "peft"])
def test_losses_are_those_of_a_model_with_the_adapter_on_it(judge, family, run, alone, tmp_path, monkeypatch):
    """Three steps from the same adapter on the same batches: outputs, gradients and updates are PEFT's."""
    from mconv.train.loop import feed

    seen, batches = [], feed.batches
    monkeypatch.setattr(feed, "batches", lambda *a, **k: (seen.append(b) or b for b in batches(*a, **k)))
    if family in OTHERS:
        tiny.make_model(OTHERS[family], tmp_path / "hf")
        run = run | {"load": str(tmp_path / "hf")}
        run["lora_load"] = str(lora_jobs.adapter_folder(tmp_path / "adapter", tmp_path / "hf"))
    elif family == "uneven":
        run = run | {"lora_load": str(lora_jobs.uneven_folder(tmp_path / "adapter", Path(run["load"])))}
    ours = jobs.train(**run)["losses"]
    model, adapter = transformers_model(run["load"]), Path(run["lora_load"])
    if judge == "peft":
        model, factors = with_peft(model, adapter)
    else:
        factors = lora_jobs.by_hand(model, adapter, **({"scale": lora_jobs.uneven_scale} if family == "uneven" else {}))
    theirs = lora_jobs.losses_of(model, factors, seen, lr=run["lr"], each=run["global_batch_size"])
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    assert abs(theirs[0] - theirs[-1]) > 1e-3  # there is something to agree on


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"needs {GOLDEN}")
def test_the_real_peft():
    """An adapter that PEFT wrote: logits with it, and the weights that PEFT merged."""
    from safetensors.torch import load_file

    from mconv.convert.checkpoint import adapted
    from mconv.convert.checkpoint import adapter_folder as peft_adapter
    from mconv.convert.checkpoint.open import open_checkpoint
    from mconv.convert.sources.source import dims_of
    from mconv.train.model import engine, forward, lora, weights

    base, parallel = open_checkpoint(GOLDEN / "base"), engine.Parallel()
    engine.init(parallel)
    model = engine.build(base.spec, padded_vocab_size=256, parallel=parallel, dtype=torch.float32)
    weights.fill(model, base.source, parallel, padded_vocab_size=256)
    expected = load_file(GOLDEN / "expected.safetensors")
    adapter = peft_adapter.read(GOLDEN / "adapter", family=base.family, spec=base.spec)
    lora.attach(
        model, adapter.settings, family=base.family, spec=base.spec,
        start=lambda linear, layer, factor: adapter.factors[linear.key(layer, factor)],
    )  # fmt: skip
    found = forward.logits(model, expected["input_ids"], parallel=parallel)
    torch.testing.assert_close(found, expected["logits"], atol=2e-5, rtol=0)
    ours, theirs = adapted.with_base(GOLDEN / "adapter", None).source, open_checkpoint(GOLDEN / "merged").source
    for logical in base.family.logicals(base.spec):
        box = tuple((0, n) for n in dims_of(ours, logical))
        torch.testing.assert_close(ours.pull(logical, box), theirs.pull(logical, box), atol=2e-7, rtol=0)


def test_layers_that_are_computed_again_give_the_same_gradients(run):
    """megatron-core's checkpointing gives none at all to layers whose input, here a frozen embedding, asks for none."""
    from mconv.convert.checkpoint import adapter_folder as peft_adapter
    from mconv.convert.checkpoint.open import open_checkpoint
    from mconv.train.megatron.imports import quiet
    from mconv.train.model import engine, lora, weights

    base, parallel, tokens, found = open_checkpoint(run["load"]), engine.Parallel(), jobs.tokens(), []
    engine.init(parallel)
    adapter = peft_adapter.read(Path(run["lora_load"]), family=base.family, spec=base.spec)
    again = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    for more in ({}, again):
        model = engine.build(base.spec, padded_vocab_size=jobs.PADDED, parallel=parallel, dtype=torch.float32, **more)
        weights.fill(model, base.source, parallel, padded_vocab_size=jobs.PADDED)
        lora.attach(
            model, adapter.settings, family=base.family, spec=base.spec,
            start=lambda linear, layer, factor: adapter.factors[linear.key(layer, factor)],
        )  # fmt: skip
        model.train()
        with quiet():
            model(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None, labels=tokens).mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert len(found[0]) == 2 * 7 * jobs.SPEC.num_layers
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- layouts
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_do_not_depend_on_the_layout(layout, run, alone, world):
    assert far(world.run(jobs.train, **run, **LAYOUTS[layout])[0], alone) < 1e-4


@pytest.mark.parametrize("fault", ["q on k's rows", "gate and up swapped", "alpha/r forgotten"])
def test_an_adapter_in_the_wrong_place_is_seen(fault, run, alone):
    assert far(lora_jobs.train_with(fault, **run), alone) > 1e-3


@pytest.mark.parametrize(("fault", "sp"), [("gradients of A not summed", False), ("no marks", True)])
def test_a_gradient_that_is_not_summed_over_ranks_is_seen(fault, sp, run, alone, world):
    found = world.run(lora_jobs.train_with, fault=fault, **run, tp=2, sequence_parallel=sp)[0]
    assert far(found, alone) > 1e-3


def test_nothing_but_the_adapter_is_trained(run, fresh):
    """The first forward is the base's own, whatever the rank; and the adapter starts alike at every layout."""
    base = {k: v for k, v in run.items() if k != "lora_load"} | {"train_iters": 1}
    assert jobs.train(**fresh | {"train_iters": 1, "lora_dropout": 0.0})["losses"] == jobs.train(**base)["losses"]


# ---------------------------------------------------------------- checkpoints
def test_resumed_is_bit_equal(fresh, saved, tmp_path):
    """With dropout, whose random states resume too. The run names its checkpoint, not just the base."""
    from mconv.train.config import make
    from mconv.train.loop import train

    _, whole = saved
    first = jobs.train(**fresh, save=str(tmp_path), exit_after=2)
    said = []
    second = train(make({**fresh, "save": str(tmp_path)}), say=said.append)
    assert [
        line for line in said if line.startswith(f"resuming from {tmp_path}/iter_0000002 (adapter) on base hf: llama")
    ]
    assert [line for line in said if re.match(rf"  iteration \.+ 2  \({tmp_path}/iter_0000002\)", line)]
    assert first["losses"] + second["losses"] == whole["losses"]
    assert first["grad_norms"] + second["grad_norms"] == whole["grad_norms"]


def test_resumed_at_another_layout(run, alone, world, tmp_path):
    """And what was saved by cut ranks is, whole, what one rank saves."""
    from mconv.convert.checkpoint import adapted

    fields = run | {"save": str(tmp_path / "cut"), "distributed_optimizer": True}
    first = world.run(jobs.train, **fields, tp=2, pp=2, exit_after=2)[0]
    second = jobs.train(**fields)
    assert far({k: first[k] + second[k] for k in ("losses", "grad_norms")}, alone) < 1e-4
    jobs.train(**fields | {"save": str(tmp_path / "one")}, exit_after=2)
    ours, theirs = (adapted.open_run(tmp_path / name, 2).adapter.factors for name in ("cut", "one"))
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in theirs) < 1e-4


def test_a_plan_counts_the_adapter_alone(run):
    from mconv.train.config import make
    from mconv.train.estimate.plan import plan

    (rank,) = plan(make(run)).ranks
    assert rank.trained == sum(tensor.numel() for tensor in tiny.tensors(Path(run["lora_load"])).values())


def test_a_checkpoint_holds_the_adapter_alone(saved):
    from mconv.convert.formats import torch_dist

    tensors, common = torch_dist.open_folder(saved[0] / "iter_0000003")
    assert {key.rpartition(".")[0] for key in tensors} == {f"decoder.layers.lora.{name}" for name in SOME}
    assert common["args"].lora["base"]["digest"].startswith("xxh3-128 ")


def test_another_run_is_refused(fresh, saved, tmp_path):
    folder, _ = saved
    jobs.hf_folder(tmp_path / "other", jobs.SPEC, seed=1)
    on = fresh | {"save": str(folder), "train_iters": 4}
    refused = {
        "lora_rank is 2, but the run in": {"lora_rank": 2},
        r"lora_targets is \['q_proj'\], but": {"lora_targets": ["q_proj"]},
        "distributed_optimizer is True, but the run in .* has False": {"distributed_optimizer": True},
        "was trained with fp32, and a LoRA run cannot change its precision: give --fp32": {"bf16": True},
        "does not have the weights that the adapter in": {"load": str(tmp_path / "other")},
        "holds the adapter of a LoRA run": {
            "lora_rank": None,
            "lora_alpha": None,
            "lora_targets": None,
            "lora_dropout": 0.0,
        },
    }
    for message, change in refused.items():
        with pytest.raises((ConfigError, FormatError), match=message):
            jobs.train(**on | change)
    full = {k: v for k, v in fresh.items() if not k.startswith("lora")} | {
        "save": str(tmp_path / "full"),
        "train_iters": 1,
    }
    jobs.train(**full)
    with pytest.raises(FormatError, match="is of a run without LoRA"):
        jobs.train(**fresh | {"save": str(tmp_path / "full")})


# ---------------------------------------------------------------- export, merge
def _in_peft(adapter, model, tokens, *, merged):
    """PEFT loads the exported adapter on the base that its config names, and computes what the merged model does."""
    import copy

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, of this transformers
        on = PeftModel.from_pretrained(copy.deepcopy(model), str(adapter))
    expected = transformers_model(merged)(tokens).logits
    torch.testing.assert_close(on(tokens).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.once
def test_an_exported_adapter_is_known_by_what_it_was_made_of(saved, run, tmp_path, capsys, monkeypatch):
    """`status` shows it beneath its run, `lora merge` finds its base, `push` its gate; another name is taken as given."""
    folder, _ = saved
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(folder)
    assert app.run(["lora", "export", "run", "--base-model", "acme/tiny", "--out", "adapter"]) == 0
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "acme/tiny"
    made = json.loads((tmp_path / "adapter/mconv.json").read_text())
    assert made["history"][-1]["step"] == "lora export" and made["source"] == {"name": "acme/tiny", "format": "hf"}
    assert app.run(["lora", "merge", "adapter", "--out", "one"]) == 0, "the base that the run had"
    assert app.run(["lora", "merge", "run", "--out", "two"]) == 0
    assert tiny.same(tiny.tensors(tmp_path / "one"), tiny.tensors(tmp_path / "two"))
    capsys.readouterr()
    assert app.run(["status"]) == 0
    assert re.search(r"└─ adapter\n.*a PEFT adapter.*\n.*made by lora export", capsys.readouterr().out)
    from mconv.hub.push import plan

    planned = plan(tmp_path / "adapter", "acme/adapter")
    assert {file.name for file in planned.files} >= {"mconv.json", "adapter_config.json"}
    sent = next(file.content for file in planned.files if file.name == "mconv.json")
    assert b"ancestors" not in sent and str(tmp_path).encode() not in sent


@pytest.mark.once
def test_exported_and_merged(saved, run, tmp_path, capsys):
    """Logits of the merged model are those of the base with the exported adapter on it."""
    folder, _ = saved
    assert app.run(["lora", "export", str(folder), "--out", str(tmp_path / "adapter")]) == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path(run["load"]).resolve())
    assert app.run(["lora", "merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
    assert app.run(["lora", "merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "meg"), "--tp", "2",
                    "--format", "torch_dist"]) == 0  # fmt: skip
    assert app.run(["meg2hf", str(tmp_path / "meg"), "--out", str(tmp_path / "back")]) == 0
    capsys.readouterr()
    assert tiny.same(tiny.tensors(tmp_path / "merged"), tiny.tensors(tmp_path / "back"))
    with torch.no_grad():
        tokens, model = jobs.tokens(), transformers_model(run["load"])
        before = model(tokens).logits
        _in_peft(tmp_path / "adapter", model, tokens, merged=tmp_path / "merged")
        lora_jobs.by_hand(model, tmp_path / "adapter")
        merged = transformers_model(tmp_path / "merged")(tokens).logits
        torch.testing.assert_close(merged, model(tokens).logits, atol=1e-5, rtol=0)
    assert (merged - before).abs().max() > 1e-3


def test_an_adapter_that_is_uneven_through_a_run(run, world, tmp_path, capsys):
    """Ranks, alphas and modules of its own: the same at another layout, and what comes out is on what went in."""
    from safetensors.torch import load_file

    from mconv.convert.checkpoint import adapted

    folder = lora_jobs.uneven_folder(tmp_path / "adapter", Path(run["load"]))
    fields = run | {"lora_load": str(folder), "train_iters": 2}
    alone = jobs.train(**fields)
    cut = world.run(jobs.train, **fields, tp=2, pp=2, save=str(tmp_path / "run"))[0]
    assert far(cut, alone) < 1e-4
    assert app.run(["lora", "export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert app.run(["lora", "merge", str(tmp_path / "run"), "--out", str(tmp_path / "one")]) == 0
    assert app.run(["lora", "merge", str(tmp_path / "out"), "--out", str(tmp_path / "two")]) == 0
    before, after = (load_file(f / "adapter_model.safetensors") for f in (folder, tmp_path / "out"))
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    assert all(float((before[key] - after[key]).abs().max()) > 1e-4 for key in before)
    assert tiny.same(tiny.tensors(tmp_path / "one"), tiny.tensors(tmp_path / "two"))
    assert "ranks 1 to 6, alpha 8, on q_proj, v_proj, down_proj, rank-stabilized" in capsys.readouterr().out
    settings = adapted.open_run(tmp_path / "run").adapter.settings
    with pytest.raises(ConfigError, match="ranks and alphas of single modules"):
        tiny.edit_json(folder / "adapter_config.json", alpha_pattern={})
        jobs.train(**fields | {"save": str(tmp_path / "run"), "train_iters": 3})
    assert settings.own["model.layers.1.self_attn.v_proj"][0] == 0


def test_gpt2_whose_rows_are_stored_in_another_order(run, world, tmp_path):
    """A new adapter on all its linears: the same at tp 2, and PEFT's order again in what is exported and merged."""
    hf = tiny.make_model("gpt2-untied", tmp_path / "hf")
    fields = {k: v for k, v in run.items() if k != "lora_load"} | {"load": str(hf), "lora_rank": 3, "train_iters": 2}
    alone = jobs.train(**fields)
    cut = world.run(jobs.train, **fields, tp=2, save=str(tmp_path / "run"))[0]
    assert far(cut, alone) < 1e-4
    assert app.run(["lora", "export", str(tmp_path / "run"), "--out", str(tmp_path / "adapter")]) == 0
    assert app.run(["lora", "merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]) == 0
    from safetensors.torch import load_file

    factors, found = load_file(tmp_path / "adapter" / "adapter_model.safetensors"), tiny.tensors(tmp_path / "merged")
    for name in ("transformer.h.1.attn.c_attn", "transformer.h.2.attn.c_proj", "transformer.h.0.mlp.c_proj"):
        a, b = (factors[f"base_model.model.{name}.lora_{factor}.weight"].double() for factor in "AB")
        expected = tiny.tensors(hf)[f"{name}.weight"].double() + (b @ a).t()
        torch.testing.assert_close(found[f"{name}.weight"].double(), expected, atol=1e-6, rtol=0)
        assert b.abs().max() > 1e-4


def test_what_is_not_zero_past_a_rank_is_seen(run):
    """The zeros that fill a lower rank up are part of a checkpoint: others are of another adapter."""
    from mconv.convert.checkpoint.open import open_checkpoint
    from mconv.convert.peft import adapter, lora

    base = open_checkpoint(run["load"])
    known, settings = (
        lora.linears(base.family, base.spec),
        lora.Settings(rank=2, alpha=2.0, targets=("q_proj",), own={"model.layers.0.self_attn.q_proj": (1, 2.0)}),
    )
    full = {
        lora.stacked_key(known["q_proj"], factor): torch.ones(
            base.spec.num_layers, *known["q_proj"].shape(factor, rank=2, sizes=base.spec.sizes)
        )
        for factor in "AB"
    }
    with pytest.raises(FormatError, match="it is not zero past its rank of 1"):
        adapter.unstacked(settings, base.family, base.spec, full)


@pytest.mark.once
def test_more_than_a_run_trains_is_refused(run, tmp_path):
    """Whole modules and adapters outside the layers can be merged, and not trained."""
    from safetensors.torch import load_file, save_file

    folder = lora_jobs.uneven_folder(tmp_path / "adapter", Path(run["load"]))
    head = load_file(Path(run["load"]) / "model.safetensors")["lm_head.weight"]
    made = load_file(folder / "adapter_model.safetensors")
    save_file(made | {"base_model.model.lm_head.weight": head}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"holds all of head\.weight, and a run trains adapters of the layers' linears"):
        jobs.train(**run | {"lora_load": str(folder)})


@pytest.mark.once
def test_what_the_commands_say(saved, run, tmp_path, capsys):
    folder, _ = saved
    assert app.run(["inspect", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rank"], facts["targets"], facts["base"]) == (4, ", ".join(SOME), "hf")
    assert (facts["training"]["optimizer_state"], facts["training"]["iteration"]) == ("by parameter", 3)
    assert app.run(["inspect", str(folder)]) == 0
    assert "under the parameters' names, whole" in (text := capsys.readouterr().out)
    assert not re.search("None|True|False|[{}]", text)
    assert app.run(["meg2hf", str(folder), "--out", str(tmp_path / "x")]) == 2
    assert "`mconv lora merge` merges the two into one model" in capsys.readouterr().err
    jobs.hf_folder(tmp_path / "other", jobs.SPEC, seed=1)
    other = ["--base", str(tmp_path / "other"), "--out", str(tmp_path / "x")]
    assert app.run(["lora", "merge", str(folder), *other]) == 2
    assert "does not have the weights that" in capsys.readouterr().err
    assert app.run(["lora", "export", run["load"], "--out", str(tmp_path / "x")]) == 2
    assert "is neither a LoRA run nor a PEFT adapter" in capsys.readouterr().err


REFUSED = {
    "unknown linear": (
        {"lora_rank": 4, "lora_targets": ["query_key_value"]},
        "no 'query_key_value'; it has q_proj, k_proj",
    ),
    "no rank": ({"lora_targets": ["q_proj"]}, "lora_targets needs lora_rank"),
    "frozen twice": ({"lora_rank": 4, "freeze": ["mlp"]}, "freeze names weights of the model"),
    "another optimizer": ({"lora_rank": 4, "resume": True}, "LoRA begins anew"),
    "rank 0": ({"lora_rank": 0}, "lora_rank is 0; it must be at least 1"),
    "another rank": ({"lora_rank": 2, "lora_load": "ADAPTER"}, "lora_rank is 2, but the adapter"),
    "no adapter": ({"lora_load": "/nowhere"}, "give the folder of a PEFT adapter"),
}


@pytest.mark.once
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, run):
    change, message = REFUSED[name]
    change = {k: run["lora_load"] if v == "ADAPTER" else v for k, v in change.items()}
    with pytest.raises((ConfigError, FormatError), match=message):
        jobs.train(**{k: v for k, v in run.items() if k != "lora_load"} | change)
