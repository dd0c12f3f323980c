"""PEFT adapters of every kind: merged as PEFT merges them, or refused by name."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from mconv.cli import app
from mconv.convert.checkpoint import adapter_folder as peft_adapter
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.peft import config_keys as peft_keys
from mconv.errors import FormatError

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "peft" / "lora-r4"
A, M = "model.layers.{}.self_attn.", "model.layers.{}.mlp."
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
EVERY = [A.format(i) + name for i in (0, 1) for name in ATTENTION] + [M.format(i) + n for i in (0, 1) for n in MLP]
F, G = "transformer.h.{}.", "transformer.h.{}."


def on(*modules, rank=4, alpha=8.0):
    """The same rank and alpha for each of some modules."""
    return dict.fromkeys(modules, (rank, alpha))


# model, modules with rank and alpha, keys of the config, whole tensors that the file holds
VARIANTS = {
    "plain": ("llama-gqa", on(*EVERY), {"target_modules": [*ATTENTION, *MLP]}, ()),
    "all-linear": ("llama-gqa", on(*EVERY), {"target_modules": "all-linear"}, ()),
    "rank-stabilized": ("llama-gqa", on(*EVERY), {"target_modules": "all-linear", "use_rslora": True}, ()),
    "patterns": (
        "llama-gqa",
        on(*EVERY) | on(*(A.format(i) + "q_proj" for i in (0, 1)), rank=2) | on(M.format(1) + "up_proj", alpha=5)
        | on(A.format(0) + "v_proj", rank=3, alpha=1.5),
        {"target_modules": [*ATTENTION, *MLP], "rank_pattern": {"q_proj": 2, r"^model\.layers\.0\..*v_proj": 3},
         "alpha_pattern": {"layers.1.mlp.up_proj": 5, "model.layers.0.self_attn.v_proj": 1.5}}, (),
    ),
    "patterns, rank-stabilized": (
        "llama-gqa", on(*EVERY) | on(A.format(1) + "k_proj", rank=9, alpha=7),
        {"target_modules": [*ATTENTION, *MLP], "use_rslora": True, "rank_pattern": {A.format(1) + "k_proj": 9},
         "alpha_pattern": {A.format(1) + "k_proj": 7}}, (),
    ),
    "one layer": ("mistral-window", on(A.format(1) + "q_proj", M.format(1) + "down_proj"),
                  {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1, "layers_pattern": "layers"}, ()),
    "a list of layers": ("llama-mha", on(A.format(0) + "k_proj"),
                         {"target_modules": ["k_proj"], "layers_to_transform": [0]}, ()),
    "a pattern of modules": ("llama-gqa", on(A.format(1) + "q_proj", A.format(1) + "v_proj"),
                             {"target_modules": r".*\.(?:1|7)\.self_attn\.(q|v)_proj"}, ()),
    "all but some": ("llama-gqa", on(*(m for m in EVERY if "v_proj" not in m and m != M.format(0) + "up_proj")),
                     {"target_modules": "all-linear", "exclude_modules": ["v_proj", "layers.0.mlp.up_proj"]}, ()),
    "eva": ("llama-gqa", on(A.format(0) + "q_proj", A.format(1) + "q_proj"),
            {"target_modules": ["q_proj"], "init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}}, ()),
    "head and embedding": ("llama-gqa", on("lm_head", "model.embed_tokens", *(A.format(i) + "q_proj" for i in (0, 1))),
                           {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}, ()),
    "whole modules": (
        "llama-gqa", on(A.format(0) + "q_proj", A.format(1) + "q_proj"),
        {"target_modules": ["q_proj"],
         "modules_to_save": ["embed_tokens", "lm_head", "post_attention_layernorm", "k_proj"]},
        ("model.embed_tokens.weight", "lm_head.weight",
         *(name for i in (0, 1) for name in (A.format(i) + "k_proj.weight",
                                             f"model.layers.{i}.post_attention_layernorm.weight"))),
    ),
    "biases": ("llama-all-biases", on(A.format(0) + "q_proj", A.format(1) + "q_proj"),
               {"target_modules": ["q_proj"], "bias": "lora_only"}, tuple(A.format(i) + "q_proj.bias" for i in (0, 1))),
    "falcon": ("falcon-40b-biases", on(*(F.format(i) + "self_attention.query_key_value" for i in (0, 1))),
               {"target_modules": ["query_key_value"]}, ()),
    "gpt2": (
        "gpt2-untied",
        on(*(G.format(i) + name for i in (0, 1) for name in ("attn.c_attn", "mlp.c_proj", "mlp.c_fc")))
        | on(*(G.format(i) + "attn.c_proj" for i in (0, 1)), rank=5) | on("transformer.wpe"),
        {"target_modules": ["c_attn", "c_proj", "c_fc", "wpe"], "fan_in_fan_out": True,
         "rank_pattern": {"attn.c_proj": 5}}, (),
    ),
}  # fmt: skip


def embedding(module):
    """Whether PEFT's factors of a module are those of an embedding."""
    return module.endswith(("embed_tokens", "wpe"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models of two layers, made once each."""
    made = {}

    def make(name):
        if name not in made:
            layers = {"n_layer" if name.startswith("gpt2") else "num_hidden_layers": 2}
            made[name] = tiny.make_model(name, tmp_path_factory.mktemp("model") / name, **layers)
        return made[name]

    return make


def build(folder, base, modules, config, wholes=(), *, rename=lambda key: key, bin=False):
    """An adapter's folder, written without mconv and without PEFT: factors and whole tensors are random."""
    weights, random = tiny.tensors(base), torch.Generator().manual_seed(7)
    made = {}
    for module, (rank, _) in modules.items():
        shape = weights[f"{module}.weight"].shape
        rows, columns = shape[::-1] if ".c_" in module or embedding(module) else shape
        names = ("lora_embedding_A", "lora_embedding_B") if embedding(module) else ("lora_A.weight", "lora_B.weight")
        made[f"{module}.{names[0]}"] = torch.randn(rank, columns, generator=random)
        made[f"{module}.{names[1]}"] = torch.randn(rows, rank, generator=random)
    for name in wholes:
        module, _, leaf = name.rpartition(".")
        inner = ".base_layer" * (module in modules)  # of a module that has an adapter too
        made[f"{module}{inner}.{leaf}"] = torch.randn(weights[name].shape, generator=random)
    made = {rename(f"base_model.model.{key}"): value for key, value in made.items()}
    folder.mkdir(parents=True)
    torch.save(made, folder / "adapter_model.bin") if bin else save_file(made, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, "base_model_name_or_path": str(base), **config}))
    return folder


def by_hand(folder, base, modules, config):
    """Every weight of the merged model, in fp64 by the rule as published: W + scale * B A."""
    file, found = load_file(folder / "adapter_model.safetensors"), {k: v.double() for k, v in tiny.tensors(base).items()}
    file = {
        key.removeprefix("base_model.model.").replace(".base_layer", ""): value.double() for key, value in file.items()
    }
    found |= {key: value for key, value in file.items() if key in found}
    for module, (rank, alpha) in modules.items():
        names = ("lora_embedding_A", "lora_embedding_B") if embedding(module) else ("lora_A.weight", "lora_B.weight")
        delta = file[f"{module}.{names[1]}"] @ file[f"{module}.{names[0]}"]
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        found[f"{module}.weight"] += scale * (delta.t() if embedding(module) or ".c_" in module else delta)
    return found


def by_peft(folder, base):
    """Every weight of the merged model, as PEFT itself merges it."""
    package = pytest.importorskip("peft", reason="needs the package peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = package.PeftModel.from_pretrained(model, folder).merge_and_unload()
    return dict(merged.state_dict())


def merge(folder, out, *more):
    """The weights of what `mconv lora merge` writes."""
    assert app.run(["lora", "merge", str(folder), "--out", str(out), *more]) == 0
    return tiny.tensors(out)


# ---------------------------------------------------------------- merged
@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")
@pytest.mark.parametrize("judge", ["by hand", "peft"])
@pytest.mark.parametrize("name", VARIANTS)
def test_an_adapter_is_merged_as_peft_merges_it(name, judge, models, tmp_path):
    model, modules, config, wholes = VARIANTS[name]
    base = models(model)
    folder = build(tmp_path / "adapter", base, modules, config, wholes)
    expected = by_hand(folder, base, modules, config) if judge == "by hand" else by_peft(folder, base)
    found, before = merge(folder, tmp_path / "merged"), tiny.tensors(base)
    assert found.keys() == before.keys()
    for key, value in found.items():
        torch.testing.assert_close(
            value.double(), expected[key].double(), atol=4e-6, rtol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
        )
    changed = {f"{module}.weight" for module in modules} | set(wholes)
    assert {key for key in found if not torch.equal(found[key], before[key])} == changed


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"needs {GOLDEN}")
def test_the_real_peft_through_a_pickle_and_a_megatron_checkpoint(tmp_path, capsys):
    """`adapter_model.bin`, merged at tp 2 and exported, is what PEFT merged of the safetensors."""
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "adapter", folder)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    where = ["--base", str(GOLDEN / "base"), "--out", str(tmp_path / "meg"), "--format", "torch_dist", "--tp", "2"]
    assert app.run(["lora", "merge", str(folder), *where]) == 0
    assert app.run(["meg2hf", str(tmp_path / "meg"), "--out", str(tmp_path / "hf")]) == 0
    found, expected = tiny.tensors(tmp_path / "hf"), tiny.tensors(GOLDEN / "merged")
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) < 2e-7


NAMES = {
    "raw": (lambda key: re.sub(r"(lora_[AB])", r"\1.default", key), None),
    "compiled": (lambda key: key.replace("base_model.", "_orig_mod.base_model."), "_orig_mod"),
    "wrapped inside": (lambda key: key.replace("self_attn.", "_fsdp_wrapped_module.self_attn."), "_fsdp_wrapped_module"),
    "no prefix": (lambda key: key.removeprefix("base_model.model."), "begin with the module"),
    "doubled": (lambda key: "base_model.model." + key, "'base_model.model.base_model.model.'"),
    "of a model without a head": (lambda key: key.replace("base_model.model.model.", "base_model.model."), "PEFT itself"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_with_a_part_too_many_or_too_few(name, models, tmp_path, capsys):
    """The same model as from PEFT's own names; and what was passed over is said."""
    rename, said = NAMES[name]
    model, modules, config, _ = VARIANTS["a list of layers"]
    folder = build(tmp_path / "adapter", models(model), modules, config)
    odd = build(tmp_path / "odd", models(model), modules, config, rename=rename)
    expected = merge(folder, tmp_path / "one")
    capsys.readouterr()
    assert tiny.same(merge(odd, tmp_path / "two"), expected)
    told = capsys.readouterr()
    assert (said or "") in told.err + told.out and (said is not None) == ("names of the adapter" in told.err + told.out)


def test_an_adapter_beside_its_base(models, tmp_path):
    """The folder's own model is the base, whatever the config names."""
    model, modules, config, _ = VARIANTS["a list of layers"]
    folder = build(tmp_path / "adapter", models(model), modules, config)
    expected = merge(folder, tmp_path / "one")
    both = shutil.copytree(models(model), tmp_path / "both")
    shutil.copytree(folder, both, dirs_exist_ok=True)
    tiny.edit_json(both / "adapter_config.json", base_model_name_or_path="nobody/nothing")
    assert tiny.same(merge(both, tmp_path / "two"), expected)


# ---------------------------------------------------------------- refused
WHOLE = VARIANTS["whole modules"]
CONTRADICTIONS = {
    "a target without tensors": (
        {"target_modules": ["q_proj", "o_proj"]},
        "puts an adapter on model.layers.0.self_attn.o",
    ),
    "tensors without a target": ({"target_modules": ["v_proj"]}, "has an adapter of model.layers.0.self_attn.q_proj"),
    "a pattern that misses": ({"target_modules": ".*layers.0.*q_proj"}, "has an adapter of model.layers.1.self_attn.q"),
    "other layers": ({"layers_to_transform": [0]}, "has an adapter of model.layers.1.self_attn.q_proj"),
    "excluded": ({"exclude_modules": "model.*"}, "exclude_modules"),
    "another rank": ({"r": 8}, "factors are of rank 4, adapter_config.json says 8"),
    "another rank by pattern": ({"rank_pattern": {"1.self_attn.q_proj": 2}}, "factors are of rank 4, .* says 2"),
    "no whole module": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save has 'embed_tokens', but the file has no"),
    "layers of a pattern": ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "PEFT refuses both"),
    "alphas of two PEFTs": (
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"0.self_attn.q_proj": 3}},
        "its alpha is 3 as PEFT reads alpha_pattern since 0.14, and 8 as earlier ones read it",
    ),
    "no bias": ({"bias": "all"}, "q_proj.bias: bias is 'all'"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_config_that_contradicts_the_tensors(name, models, tmp_path, capsys):
    change, message = CONTRADICTIONS[name]
    modules = on(A.format(0) + "q_proj", A.format(1) + "q_proj")
    model = "llama-all-biases" if "bias" in change else "llama-gqa"
    folder = build(tmp_path / "adapter", models(model), modules, {"target_modules": ["q_proj"], **change})
    assert app.run(["lora", "merge", str(folder), "--out", str(tmp_path / "x")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "x").exists()


SAYS = {
    "use_dora": True, "lora_bias": True, "trainable_token_indices": [3], "target_parameters": ["experts.gate_up_proj"],
    "layer_replication": [[0, 2], [1, 2]], "use_qalora": True, "use_bdlora": {"nblocks": 2}, "kasa_config": {"beta": 1},
    "monteclora_config": {"num_samples": 2}, "arrow_config": {"top_k": 3}, "enable_lora": [True, False, True],
    "alora_invocation_tokens": [7],
}  # fmt: skip


def test_every_key_that_changes_the_function_is_refused_by_name():
    """And passes where it says nothing."""
    plain = {"peft_type": "LORA", "r": 4}
    assert SAYS.keys() == {**peft_keys.STOPS, **peft_keys.NEVER}.keys()
    for name, value in SAYS.items():
        (problem,) = peft_keys.problems({**plain, name: value})
        assert problem.startswith(f"{name} is {value!r}: ")
        assert peft_keys.problems({**plain, name: value}, ignore=[name]), f"{name} may not be ignored"
        assert not peft_keys.problems(plain | {name: type(value)()} | {name + "_": None})


STARTS = {
    "pissa": "PiSSA starts by changing the base's", "pissa_niter_16": "path_initial_model_for_weight_conversion",
    "olora": "OLoRA", "corda": "CorDA", "loftq": "save the base as LoftQ left it", "lora_ga": "LoRA-GA",
    "zeta": "not know",
}  # fmt: skip


def test_an_adapter_that_was_started_from_the_base_itself():
    plain = {"peft_type": "LORA", "r": 4}
    for value in (True, False, None, "gaussian", "eva", "orthogonal", "mica"):
        assert not peft_keys.problems({**plain, "init_lora_weights": value})
    for value, message in STARTS.items():
        (problem,) = peft_keys.problems({**plain, "init_lora_weights": value})
        assert message in problem
        assert ("save_pretrained" in problem) == (value not in ("loftq", "zeta"))


BAD = {
    "another kind": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "rank 0": ({"r": 0}, "r is 0"),
    "no rank": ({"r": True}, "r is True"),
    "no alpha": ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
    "a dropout of all": ({"lora_dropout": 1}, "lora_dropout is 1"),
    "a pattern of no rank": ({"rank_pattern": {"q_proj": "2"}}, "must map names or patterns of modules to positive"),
    "alphas in a list": ({"alpha_pattern": [1]}, "alpha_pattern is"),
    "modules that are no names": ({"target_modules": [1]}, "target_modules is"),
    "layers that are no numbers": ({"layers_to_transform": ["0"]}, "layers_to_transform is"),
    "biases of some kind": ({"bias": "some"}, "bias is 'some'"),
    "a scale of a kind": ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
}


def test_values_that_mean_nothing():
    for change, message in BAD.values():
        (problem,) = peft_keys.problems({"peft_type": "LORA", "r": 4} | change)
        assert message in problem


def test_a_key_that_no_rule_claims(models, tmp_path, capsys):
    """It stops, unless it says nothing or the user lets it pass; then the manifest keeps it."""
    model, modules, config, _ = VARIANTS["a list of layers"]
    folder = build(tmp_path / "adapter", models(model), modules, {**config, "use_zeta": 3, "zeta_config": None})
    assert app.run(["lora", "merge", str(folder), "--out", str(tmp_path / "x")]) == 2
    assert "use_zeta is 3" in (told := capsys.readouterr().err) and "--ignore-config-key use_zeta" in told
    merge(folder, tmp_path / "x", "--ignore-config-key", "use_zeta")
    assert json.loads((tmp_path / "x" / "mconv.json").read_text())["ignored"] == {"config_keys": {"use_zeta": 3}}


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"needs {GOLDEN}")
def test_every_key_that_the_real_peft_writes_is_claimed():
    """Those of the golden adapter, and of the PEFT that is installed, if one is."""
    names = set(json.loads((GOLDEN / "adapter" / "adapter_config.json").read_text()))
    try:
        from peft import LoraConfig
    except ImportError:
        pass
    else:
        names |= LoraConfig(r=4).to_dict().keys()
    tables = (peft_keys.READ, peft_keys.FREE, tuple(peft_keys.STOPS), tuple(peft_keys.NEVER))
    claimed = [name for table in tables for name in table]
    assert names <= set(claimed) and len(claimed) == len(set(claimed))


TENSORS = {
    "two adapters": (
        lambda made: made | {k.replace("lora_A", "lora_A.b"): v for k, v in made.items()}, "several adapters",
    ),
    "twice": (lambda made: made | {"_orig_mod." + k: v for k, v in made.items()}, "are both A of"),
    "DoRA's magnitudes": (
        lambda made: made | {"base_model.model.model.layers.0.self_attn.k_proj.lora_magnitude_vector": torch.ones(2)},
        "no module of this model has such a tensor",
    ),
    "half an adapter": (lambda made: {k: v for k, v in made.items() if "lora_A" in k}, "lora_B.weight is missing"),
    "factors of two ranks": (
        lambda made: {k: v[:3] if "lora_A" in k else v for k, v in made.items()}, "of rank 4, the other",
    ),
    "other inputs": (lambda made: {k: v[:, :4] for k, v in made.items()}, "has 48 inputs"),
    "numbers": (lambda made: {k: v.to(torch.int32) for k, v in made.items()}, "floating-point"),
    "one row": (lambda made: {k: v[0] for k, v in made.items()}, "a factor has two dimensions"),
    "no rows": (lambda made: {k: v[:0] for k, v in made.items()}, "a factor has two dimensions"),
    "8 bits": (lambda made: {k: v.to(torch.float8_e4m3fn) for k, v in made.items()}, "floating-point numbers of 16 bits"),
    "NaN": (lambda made: {k: v * float("nan") for k, v in made.items()}, "NaN"),
    "a whole tensor": (
        lambda made: made | {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight": torch.ones(48, 48)},
        "neither modules_to_save nor bias",
    ),
    "a vocabulary that grew": (
        lambda made: made | {"base_model.model.lm_head.weight": torch.ones(160, 48)}, "needs a base that has grown",
    ),
    "nothing": (lambda made: {}, "holds no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_of_no_adapter_of_this_model(name, models, tmp_path):
    change, message = TENSORS[name]
    model, modules, config, _ = VARIANTS["a list of layers"]
    folder, base = build(tmp_path / "adapter", models(model), modules, config), open_checkpoint(models(model))
    made = change(load_file(folder / "adapter_model.safetensors"))
    save_file({key: value.clone() for key, value in made.items()}, folder / "adapter_model.safetensors")
    with pytest.raises(FormatError, match=message):
        peft_adapter.read(folder, family=base.family, spec=base.spec)


def test_what_unties_a_tied_model(models, tmp_path):
    """Head and embedding that were saved alike are one tensor still."""
    base = models("llama-tied")
    modules, config = on(A.format(0) + "q_proj", A.format(1) + "q_proj"), {"target_modules": ["q_proj"]}
    whole = {**config, "modules_to_save": ["embed_tokens"]}
    folder = build(tmp_path / "one", base, modules, whole, ["model.embed_tokens.weight"])
    opened = open_checkpoint(base)
    with pytest.raises(FormatError, match="one tensor for embedding and head"):
        peft_adapter.read(folder, family=opened.family, spec=opened.spec)
    file = folder / "adapter_model.safetensors"
    made = load_file(file)
    head = made["base_model.model.model.embed_tokens.weight"]
    save_file(made | {"base_model.model.lm_head.weight": head.clone()}, file)
    assert torch.equal(merge(folder, tmp_path / "out")["model.embed_tokens.weight"], head)
    save_file(made | {"base_model.model.lm_head.weight": head + 1}, file)
    with pytest.raises(FormatError, match="one tensor for embedding and head"):
        peft_adapter.read(folder, family=opened.family, spec=opened.spec)
    on_head = build(tmp_path / "two", base, on("model.embed_tokens"), {"target_modules": ["embed_tokens"]})
    with pytest.raises(FormatError, match="one tensor for embedding and head"):
        peft_adapter.read(on_head, family=opened.family, spec=opened.spec)


WILD = [
    "(.*)*q_proj", "((a|b)*)+q", "(?:x+x+)+y", "(a|aa)+$", "(?:(?:a|aa))*$", "(.?.*){20}x", "(a|a){30}", "[", "(" * 60,
    ".*" * 6 + "x", "q{2,}" * 20, "(.*x|.*y).*.*.*.*.*z", "q" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("pattern", WILD)
def test_a_pattern_that_could_be_tried_for_ages(pattern, models, tmp_path):
    """It is a stranger's: refused before it is tried."""
    model, modules, _, _ = VARIANTS["a list of layers"]
    folder = build(tmp_path / "adapter", models(model), modules, {"target_modules": pattern})
    opened, start = open_checkpoint(models(model)), time.monotonic()
    with pytest.raises(FormatError, match=r"adapter_config.json"):
        peft_adapter.read(folder, family=opened.family, spec=opened.spec)
    assert time.monotonic() - start < 5


def test_a_pattern_as_trainers_write_it(models, tmp_path):
    """Long, with choices and lazy repeats, and harmless."""
    pattern = (
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|k_proj).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:k_proj)))"
    )
    model, _, _, _ = VARIANTS["a list of layers"]
    modules = on(A.format(0) + "k_proj", A.format(1) + "k_proj")
    merge(build(tmp_path / "adapter", models(model), modules, {"target_modules": pattern}), tmp_path / "out")
