"""Every arg of a checkpoint is claimed by a table, says nothing, or stops; a user lets it pass by name."""

import ast
import dataclasses
import importlib.util
import json
import types
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from tiny import make_llama

from mconv.cli.app import run
from mconv.convert.checkpoint import bridge
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.dialects import DIALECTS, mcore
from mconv.convert.dialects import bridge as run_config
from mconv.convert.dialects.arguments import BRIDGE, MEGATRON_LLM, MEGATRON_LM, check
from mconv.convert.dialects.arguments.function import OPEN
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders import manifest
from mconv.convert.folders.ignored import ignored
from mconv.convert.formats.dtype import FLOAT32
from mconv.convert.formats.unpickle import StandIn, stand_in
from mconv.convert.spelling.values import says_nothing
from mconv.errors import ConfigError, MconvError
from mconv.shard.layout import Layout
from mconv.shard.stages import Uneven
from mconv.spec import ModelSpec, Rope
from mconv.train.checkpoints.same_args import SAVED

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
TABLES = [MEGATRON_LM, MEGATRON_LLM, BRIDGE]
SPEC = ModelSpec(
    family="llama", num_layers=4, hidden_size=48, ffn_hidden_size=64, num_attention_heads=8, num_query_groups=4,
    kv_channels=6, vocab_size=151, max_position_embeddings=256, norm_epsilon=1e-5,
)  # fmt: skip
ALIAS = {"num_moe_experts": "num_experts"}
"""Fields of megatron-core's config that an arg of another name fills."""


def of(dialect, **changes):
    """The args of a plain model, with some of them changed."""
    args = vars(DIALECTS[dialect].args_of(SPEC, Layout(padded_vocab=256), dtype="float32"))
    return args | changes


def looped():
    """A list that holds itself."""
    value = []
    value.append(value)
    return value


def laughs():
    """A list whose text would fill the memory."""
    value = ["ha"]
    for _ in range(40):
        value = [value] * 10
    return value


def uncalled():
    """An object of a class that we do not import, made without a call: it has no arguments."""
    return stand_in("megatron.core.enums", "dict").__new__(StandIn)


TELLING = {
    "frobnicate": 30.0, "attn_logit_softclapping": 30.0, "moe_of_tomorrow": 2, "mla_novelty": True,
    "rotary_twist": "left",
    "new_norm": "SpecialNorm", "layer_scale": [0.1, 0.2], "per_layer": {"0": "x"}, "fp128": "e99m28", "negative": -1,
    "not_a_number": float("nan"), "endless": float("inf"), "spec": ["my.module", "layer_spec"], "space": " ",
    "activation_func": "relu", "gated_linear_unit": True, "modelopt_enabled": True, "bytes": b"\0", "huge": 10**5000,
    "a_set": {1}, "a_tuple": (None,), "a_dtype": FLOAT32, "namespace": Namespace(a=looped()), "looped": looped(),
    "laughs": laughs(), "module": types, "stand_in": stand_in("megatron.core.enums", "Novel")(3), "uncalled": uncalled(),
    "lora": True, "with-a-hyphen": 1, "\x1b[31mred": 1, "name with spaces": 1, "ünicode": 1, 5: 1,
}  # fmt: skip
SILENT = [None, False, 0, 0.0, -0.0, "", b"", [], (), {}, set()]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", TELLING, ids=repr)
def test_an_arg_that_no_row_claims_stops_with_its_name_and_the_way_out(dialect, name):
    values, table = of(dialect) | {name: TELLING[name]}, DIALECTS[dialect].arguments
    with pytest.raises(ConfigError) as caught:
        check(values, table)
    text = str(caught.value)
    assert "--ignore-arg" in text and len(text) < 500 and text.isprintable()
    if str(name).isidentifier() and str(name).isascii():
        assert f"{name}=" in text and f"--ignore-arg {name}" in text
    if not isinstance(name, str):
        return
    names = ignored(args=[name]).args
    passed = check(values, table, ignore=names)
    assert passed.keys() == {name} and check(values, table, recorded=passed) == passed
    with pytest.raises(ConfigError, match="--ignore-arg"):
        check(values, table, recorded={name: "another value"})
    manifest.make(SPEC, format="hf", dialect=None, layout=None, dtype="float32", source={}, digests={}, history=[],
                  ignored={"args": {"x": passed[name]}})  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_arg_that_says_nothing_passes(dialect):
    values = of(dialect) | {f"novel_{n}": value for n, value in enumerate(SILENT)}
    assert check(values, DIALECTS[dialect].arguments) == {}
    assert all(map(says_nothing, SILENT)) and not any(map(says_nothing, TELLING.values()))


def test_all_that_is_wrong_is_told_at_once_and_no_secret():
    values = of("mcore", novel=1, other_novel="x", my_api_key="hunter2", openai_secret_thing="hunter2")
    with pytest.raises(ConfigError, match=r"novel=1.*other_novel='x'.*my_api_key=\(hidden\)") as caught:
        check(values, MEGATRON_LM)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str(check(values, MEGATRON_LM, ignore=frozenset(values.keys() - of("mcore").keys())))


CHANGES = {
    "mcore": {
        "attn_logit_softcapping": [30.0, 0.0, "x", [], laughs()],
        "softmax_type": ["off-by-one", "learnable", "", None, 0],
        "qk_layernorm": ["yes", [1]], "num_experts": [8, "8", True, [8]], "multi_latent_attention": [True],
        "mtp_num_layers": [1], "rotary_percent": [0.5, 0.0, None, "", True], "no_rope_freq": [4, [0, 1]],
        "window_attn_skip_freq": [2], "apply_layernorm_1p": [True], "squared_relu": [True], "quick_geglu": [True],
        "hybrid_layer_pattern": ["*-*-", "M"], "is_hybrid_model": [True], "softmax_scale": [0.1, 0], "use_mup": [True],
        "glu_linear_offset": [1.0, None, ""], "activation_func_clamp_value": [7.0], "attention_output_gate": [True],
        "experimental_attention_variant": ["gated_delta_net"], "rope_type": ["yarn"], "mrope_section": [[16, 24, 24]],
        "heterogeneous_layers_config_path": ["/x"], "heterogeneous_layers_config_encoded_json": ["{}"],
        "flextron": [True],
        "enable_gpt_oss": [True], "enable_mhc_connections": [True], "retro_add_retriever": [True], "onnx_safe": [True],
        "export_model_type": ["MambaModel"], "export_num_medusa_heads": [2], "decoder_num_layers": [2],
        "position_embedding_type": ["yarn", "none", None, ["rope"], {}, stand_in("megatron", "X")(1)],
        "normalization": [["RMSNorm"], {}, 5, "Other"], "swiglu": ["False", [], 5, laughs()], "add_bias_linear": ["no"],
        "window_size": [laughs(), "x", [16, 16]], "rotary_base": [laughs(), True], "num_layers": [{}, True],
        "untie_embeddings_and_output_weights": ["0"], "group_query_attention": ["True"],
    },
    "megatron-llm": {
        "use_post_ln": [True], "num_experts": [4], "glu_activation": ["geglu", ["swiglu"], {}], "onnx_safe": [True],
        "position_embedding_type": ["absolute", ["rotary"], {}, laughs(), uncalled()], "use_rms_norm": ["yes", False],
        "layernorm_epsilon": ["x", [1]], "rope_theta": ["x", {}], "rope_scaling_factor": ["y"], "model_name": [[1], {}],
        "sliding_window_size": ["z", laughs()], "num_layers": [laughs(), True], "use_bias": ["no", 2],
        "true_vocab_size": ["151"], "parallel_attn": ["no"], "tie_embed_logits": [[]],
    },
}  # fmt: skip
CHANGES["nvidia-legacy"] = CHANGES["mcore"]


def spec_of(dialect, values):
    """What a dialect reads from args, after its table has looked at them."""
    made = DIALECTS[dialect]
    check(values, made.arguments)
    return made.spec_of(Namespace(**values), tensors={}, vocab_size=151)


@pytest.mark.parametrize("dialect, name", [(d, n) for d, names in CHANGES.items() for n in names])
def test_a_claimed_arg_with_another_value_is_refused_by_name_and_cannot_be_ignored(dialect, name):
    assert spec_of(dialect, of(dialect)).num_layers == 4
    for value in CHANGES[dialect][name]:
        values = of(dialect) | {name: value}
        with pytest.raises(MconvError, match=name) as caught:
            spec_of(dialect, values)
        assert len(str(caught.value)) < 800
        with pytest.raises(MconvError, match=rf"{name}.*--ignore-arg|--ignore-arg {name}"):
            check(values, DIALECTS[dialect].arguments, ignore=frozenset({name}))


def test_a_fused_gelu_of_megatron_llm_is_another_function():
    """Its fusion is the tanh form, where a bias is and no gate; elsewhere it is not reached."""
    plain = {"glu_activation": None, "use_rms_norm": False, "use_bias": True}
    assert spec_of("megatron-llm", of("megatron-llm", **plain)).activation == "gelu"
    with pytest.raises(ConfigError, match="bias_gelu_fusion"):
        spec_of("megatron-llm", of("megatron-llm", **plain, bias_gelu_fusion=True))
    spec_of("megatron-llm", of("megatron-llm", bias_gelu_fusion=True))


def test_positions_before_they_had_a_name():
    """Megatron-LM of 23.04 and 23.06 has two switches: without both there are no positions at all."""
    values = of("mcore", use_rotary_position_embeddings=False, add_position_embedding=False)
    del values["position_embedding_type"]
    with pytest.raises(ConfigError, match="position_embedding_type is None"):
        spec_of("mcore", values)
    assert spec_of("mcore", values | {"use_rotary_position_embeddings": True}).position == "rope"


def test_args_of_a_kind_of_layer_matter_where_it_is_on():
    """The router's args are in every checkpoint; num_experts rules them out, and where it is missing nothing does."""
    experts = {"moe_router_topk": 2, "moe_layer_freq": 1, "moe_router_score_function": "softmax"}
    assert check(of("mcore", **experts), MEGATRON_LM) == {}
    with pytest.raises(ConfigError, match=r"num_experts is 8$"):
        check(of("mcore", **experts, num_experts=8), MEGATRON_LM)
    without = of("mcore", **experts)
    del without["num_experts"]
    with pytest.raises(ConfigError, match="moe_router_topk is 2, and no num_experts says"):
        check(without, MEGATRON_LM)
    assert check(without | dict.fromkeys(experts, 0), MEGATRON_LM) == {}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.program)
def test_what_rules_args_out_is_checked_itself(table):
    """A switch of a condition has a row: else an arg would be ruled out by something that nobody looks at."""
    known = table.neutral.keys() | table.fields | {key.key for key in run_config.TABLE if hasattr(key, "key")}
    for row in table.conditions:
        switches = set(row.unless) & (table.names() | known)
        assert switches <= known and (switches or table is BRIDGE), row.unless
    claims = [table.fields, table.neutral.keys(), table.inert, *(row.names for row in table.conditions)]
    assert sum(map(len, claims)) == len(table.names()), "a name that two rows claim"
    assert not table.names() & set(OPEN)


# ---- who claims what -------------------------------------------------------------------------------------------------
def config_fields():
    """The fields of the installed megatron-core's TransformerConfig, read from its source."""
    root = Path(importlib.util.find_spec("megatron.core").submodule_search_locations[0])
    for file, name in (
        ("model_parallel_config.py", "ModelParallelConfig"),
        ("transformer/transformer_config.py", "TransformerConfig"),
    ):
        tree = ast.parse((root / file).read_text())
        body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
        yield from (node.target.id for node in body if isinstance(node, ast.AnnAssign))


def bridge_names():
    """Every key that a row of the model section claims."""
    rows = {name for key in run_config.TABLE for name in _written(key)}
    return BRIDGE.names() | rows | {key.key for key in run_config.TABLE if hasattr(key, "key")}


def _written(key):
    out = {}
    key.write(SPEC, out)
    return out


def test_every_field_of_megatron_core_is_claimed():
    """Args are made of the fields, and Bridge's model section is their list: a later version must not slip in."""
    found = list(config_fields())
    assert len(found) > 200
    assert {name for name in found if ALIAS.get(name, name) not in MEGATRON_LM.names()} <= set(OPEN)
    assert {name for name in found if name not in bridge_names()} <= set(OPEN)


def test_what_we_write_is_claimed_name_by_name(tmp_path):
    """Every arg and every key of ours has a row, also those that say nothing."""
    ropes = [Rope(), Rope(kind="linear", factor=4.0), Rope(kind="llama3", factor=8.0)]
    layouts = [Layout(padded_vocab=256), Layout(tp=2, pp=2, vpp=2, padded_vocab=256),
               Layout(pp=2, padded_vocab=256, uneven=Uneven(first=1))]  # fmt: skip
    for dialect in DIALECTS.values():
        for layout in layouts:
            values = vars(dialect.args_of(SPEC, layout, dtype="bfloat16", iteration=3))
            assert values.keys() - dialect.arguments.names() <= {"spec"} and values.get("spec") is None
            assert check(values, dialect.arguments) == {}
    for rope in ropes:
        text = bridge.run_config(dataclasses.replace(SPEC, rope=rope), layouts[2], dtype="bfloat16")
        config = yaml.safe_load(text)
        assert config["model"].keys() <= bridge_names()
        assert run_config.read(config["model"])[1] == {}


def test_every_arg_that_megatron_lm_has_is_claimed():
    """The facts beside this file were read from the programs' sources, apart from the tables."""
    facts = json.loads(Path(__file__).with_name("megatron_facts.json").read_text())
    versions = {name: found for name, found in facts.items() if name != "about"}
    assert len(versions) > 3
    for name, found in versions.items():
        table = MEGATRON_LLM if "llm" in name.lower() else MEGATRON_LM
        names = {*found.get("names", []), *found["restored"], *(dest for dest, *_ in found["options"].values())}
        assert names - table.names() <= {*OPEN, "help"}, name


def test_what_training_writes_is_claimed():
    """Args that a run adds to those of a conversion."""
    added = {*SAVED, "use_distributed_optimizer", "transformer_impl", "sequence_parallel", "world_size"}
    assert added <= MEGATRON_LM.names()


def test_written_args_are_those_that_change_nothing():
    """What args of ours say of the function is what the table allows."""
    assert mcore.WRITTEN.keys() <= of("mcore").keys()
    assert all(of("mcore")[name] == allowed[0] for name, allowed in mcore.WRITTEN.items())


# ---- from the door to the manifest -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One small checkpoint per dialect, whose args have a name that nobody has heard of, and no manifest."""
    root = tmp_path_factory.mktemp("args")
    hf = make_llama(root / "hf", num_hidden_layers=2)
    for dialect in DIALECTS:
        rewrite(plan.make(open_checkpoint(hf), root / dialect, format="mp_rank", dialect=dialect, tp=2), step="test")
        for file in (root / dialect).rglob("model_optim_rng.pt"):
            state = torch.load(file, weights_only=False)
            state["args"].novelty = 30.0
            torch.save(state, file)
        next((root / dialect).rglob("mconv.json")).unlink()
    return root


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_unknown_arg_is_ignored_by_name_kept_and_inherited(made, tmp_path, capsys, dialect):
    source, out = str(made / dialect), tmp_path / "out"
    command = ["reshard", source, "--out", str(out), "--tp", "1", "--format", "mp_rank"]
    command += ["--vocab-size", "151"] if dialect == "megatron-llm" else []
    assert run(command) == 2 and not out.exists()
    assert "novelty=30.0" in (said := capsys.readouterr().err) and "--ignore-arg novelty" in said
    assert run([*command, "--ignore-arg", "novelty", "--ignore-arg", "num_layers"]) == 2
    assert "--ignore-arg num_layers" in capsys.readouterr().err
    assert run([*command, "--ignore-arg", "novelty"]) == 0
    assert manifest.read(out / "release")["ignored"] == {"args": {"novelty": 30.0}}
    assert run(["meg2hf", str(out), "--out", str(tmp_path / "hf")]) == 0
    assert manifest.read(tmp_path / "hf")["ignored"] == {"args": {"novelty": 30.0}}
    assert run(["inspect", str(out)]) == 0 and "novelty = 30.0" in capsys.readouterr().out


def test_a_manifest_lets_no_claimed_arg_pass(made, tmp_path):
    """What it records was not claimed when it was written; a row that is there now decides."""
    with pytest.raises(ConfigError, match="num_experts is 8"):
        check(of("mcore", num_experts=8), MEGATRON_LM, recorded={"num_experts": 8})
    assert check(of("mcore"), MEGATRON_LM, recorded={"num_experts": 0, "absent": 1}) == {}
    assert check(of("mcore"), MEGATRON_LM, ignore=frozenset({"absent"})) == {}


def test_training_and_the_verifier_go_through_the_same_door(made, capsys):
    """A foreign run with an unknown arg is not trained on, and not judged, in silence."""
    from mconv.train.config import TrainConfig
    from mconv.train.model.architecture import origin

    load = str(made / "mcore")
    asked = {"load": load, "resume": True, "mock_data": True, "train_iters": 1, "lr": 1e-3}
    with pytest.raises(ConfigError, match="--ignore-arg novelty"):
        origin(TrainConfig(**asked))
    assert origin(TrainConfig(**asked, ignore_arg=["novelty"])).ignored == {"args": {"novelty": 30.0}}
    assert run(["verify", str(made / "hf"), load, "--digests"]) == 2
    assert "--ignore-arg novelty" in capsys.readouterr().err
    assert run(["verify", str(made / "hf"), load, "--digests", "--ignore-arg", "novelty"]) == 0


# ---- run_config.yaml -------------------------------------------------------------------------------------------------
@pytest.fixture
def bridged(tmp_path):
    """A checkpoint as Megatron-Bridge would have left it, whose run_config.yaml a test may change."""
    hf = make_llama(tmp_path / "hf", num_hidden_layers=2)
    rewrite(plan.make(open_checkpoint(hf), tmp_path / "m", format="torch_dist", emit="megatron-bridge"), step="test")
    folder = tmp_path / "m" / "iter_0000000"
    common = torch.load(folder / "common.pt", weights_only=False)
    del common["args"]
    torch.save(common, folder / "common.pt")
    (folder / "mconv.json").unlink()
    text = (folder / bridge.RUN_CONFIG).read_text()

    def change(model=None, **sections):
        config = yaml.safe_load(text)
        config["model"] |= model or {}
        (folder / bridge.RUN_CONFIG).write_text(yaml.safe_dump({**config, **sections}))
        return tmp_path / "m"

    return change


BLESSED = (
    "moe_novel", "mamba_novel", "linear_novel", "dsa_novel", "fp8_novel", "cuda_graph_novel", "recompute_novel",
    "mtp_novel", "yarn_novel", "mup_novel", "num_layers_novel", "grad_novel", "init_novel", "use_te_novel", "bias_novel",
    "qk_clip_novel", "attention_softmax_novel", "hidden_dropout_novel", "_novel", "pipeline_novel", "expert_novel",
)  # fmt: skip
"""Names that begin as harmless ones do."""


def test_no_beginning_of_a_name_is_blessed_in_a_run_config(bridged):
    root = bridged(dict.fromkeys(BLESSED, 2))
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(root)
    text = str(caught.value)
    assert bridge.RUN_CONFIG in text and "and 1 more" in text
    assert sum(f"--ignore-arg {name}" in text for name in BLESSED) == 20
    found = open_checkpoint(root, ignore=ignored(args=BLESSED))
    assert found.ignored == {"args": dict.fromkeys(BLESSED, 2)}
    assert open_checkpoint(bridged(dict.fromkeys(BLESSED))).ignored == {}


@pytest.mark.parametrize(
    "model, says",
    [
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is 30.0"),
        ({"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0"),
        ({"enable_mhc_connections": True}, "enable_mhc_connections"),
        ({"num_moe_experts": 8, "moe_router_topk": 2, "softmax_type": "learnable"}, "num_moe_experts is 8"),
        ({"rotary_percent": True}, "rotary_percent is True"),
        ({"use_arbitrary_attention_mask": True}, "--ignore-arg use_arbitrary_attention_mask"),
        ({"num_layers": laughs()}, "num_layers"),
        ({"window_size": laughs()}, "window_size"),
        ({"qk_layernorm": laughs()}, "qk_layernorm"),
        ({"novel": laughs()}, "novel"),
    ],
)
def test_keys_of_a_run_config_that_change_the_function(bridged, model, says):
    with pytest.raises(ConfigError, match=says) as caught:
        open_checkpoint(bridged(model))
    assert len(str(caught.value)) < 800
    if "--ignore-arg" not in says and "novel" not in model:
        with pytest.raises(ConfigError, match=rf"(?s){says}.*--ignore-arg does not let it pass"):
            open_checkpoint(bridged(model), ignore=ignored(args=model))


@pytest.mark.parametrize("key", run_config.ALWAYS)
def test_a_key_that_is_not_there_is_not_guessed(bridged, key):
    """A provider's class has a default of its own for it: GELU, LayerNorm, another rope base."""
    root = bridged()
    file = root / "iter_0000000" / bridge.RUN_CONFIG
    config = yaml.safe_load(file.read_text())
    del config["model"][key]
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=rf"model\.{key} is not there"):
        open_checkpoint(root)


def test_sections_of_a_run_config(bridged):
    """One of an adapter is no model; one that nobody knows may change it."""
    lora = {"_target_": "megatron.bridge.peft.lora.LoRA", "dim": 8}
    for ignore in ((), ("peft",)):
        with pytest.raises(ConfigError, match=r"peft is 'megatron\.bridge\.peft\.lora\.LoRA'.*merge it"):
            open_checkpoint(bridged(peft=lora), ignore=ignored(args=ignore))
    with pytest.raises(ConfigError, match=r"surgery=\{'layers': 2\}.*--ignore-arg surgery"):
        open_checkpoint(bridged(surgery={"layers": 2}))
    assert open_checkpoint(bridged(surgery={"layers": 2}), ignore=ignored(args=["surgery"])).ignored
    assert open_checkpoint(bridged(peft=None, surgery={}, train={"train_iters": 5}, env_vars={"A": "1"})).ignored == {}


GOLDENS = {
    "megatron-core-hybrid/llama-gqa-untied-bf16/gpt/iter_0000001": "",
    "megatron-core-hybrid/llama-gqa-untied-bf16/hybrid/iter_0000001": "is '\\*-.*saved by pretrain_hybrid",
    "megatron-core-hybrid/mixtral-4x2-bf16/hybrid-ep2/iter_0000001": "num_experts is 4",
    "megatron-core-moe/olmoe-8x2-bf16/megatron/iter_0000000": "num_moe_experts is 8",
    "megatron-core-moe/qwen3moe-8x2-bf16/megatron-ep2/iter_0000000": "num_moe_experts is 8",
    "megatron-core-moe/qwen3moe-8x2-bf16/mprank-ep2/iter_0000000": "num_experts is 8",
    "megatron-bridge-qwen/qwen3-tied-bf16/megatron/iter_0000000": "",
    "megatron-bridge-qwen/qwen2-tied-bf16/megatron-pp2/iter_0000000": "",
}  # fmt: skip


@pytest.mark.parametrize("case", GOLDENS)
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout")
def test_what_later_programs_wrote_opens_or_is_refused_for_what_it_is(case):
    """megatron-core 0.19 (821 args) and Megatron-Bridge 0.6: no arg of theirs is unknown."""
    if not GOLDENS[case]:
        assert open_checkpoint(GOLDEN / case).ignored == {}
        return
    with pytest.raises(ConfigError, match=GOLDENS[case]) as caught:
        open_checkpoint(GOLDEN / case)
    assert "--ignore-arg" not in str(caught.value)
