"""The printed flags are complete: with them, each program ends up with the args of the model, or mconv warns.

The programs are played from facts of their source (`megatron_facts.json`): defaults, then flags, then what they take out
of a checkpoint's args, then what their builder never reads.
"""

import argparse
import importlib
import importlib.util
import json
import shlex
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import transformers
from tiny import BASE, FALCON, GPT2, MODELS

from mconv.convert.dialects import DIALECTS, flags_megatron, flags_megatron_llm
from mconv.convert.dialects.arguments import MEGATRON_LM
from mconv.convert.dialects.arguments.function import OPEN
from mconv.convert.dialects.flags import Case
from mconv.convert.families import family_of
from mconv.errors import LayoutError
from mconv.shard.layout import Layout
from mconv.shard.stages import EVEN, Uneven, stage_layers

FACTS = json.loads(Path(__file__).with_name("megatron_facts.json").read_text())
PROGRAMS = {
    **{("mcore", name): facts for name, facts in FACTS.items() if name.startswith("core_")},
    **{("nvidia-legacy", name): facts for name, facts in FACTS.items() if "older_model" in list(facts)},
    ("megatron-llm", "Megatron-LLM"): FACTS["Megatron-LLM"],
}
ROWS = {
    "mcore": flags_megatron.MCORE, "nvidia-legacy": flags_megatron.LEGACY, "megatron-llm": flags_megatron_llm.ROWS,
}  # fmt: skip
LAYOUTS = {
    "one": {},
    "tp-pp": {"tp": 2, "pp": 2},
    "vpp": {"pp": 2, "vpp": 2},
    "first": {"pp": 2, "uneven": Uneven(first=1)},
    "first-last-vpp": {"pp": 3, "vpp": 1, "uneven": Uneven(first=1, last=1)},
    "ends": {"pp": 3, "uneven": Uneven(embedding=True, loss=True)},
    "ends-vpp": {"pp": 3, "vpp": 2, "uneven": Uneven(embedding=True, loss=True)},
}
BUILT_WITH = ("rotary_base", "rotary_seq_len_interpolation_factor", "rope_scaling_factor", "use_rope_scaling")
"""Args that count only where the builder reads them: none is a field of megatron-core's config."""
ELSEWHERE = {
    "experimental_attention_variant", "fp16_lm_cross_entropy", "heterogeneous_layers_config_path", "moe_grouped_gemm",
    "moe_use_legacy_grouped_gemm", "mtp_num_layers", "multi_latent_attention", "num_experts", "qk_l2_norm",
    "spec", "yaml_cfg", "vocab_size", "make_vocab_size_divisible_by",
}  # fmt: skip
"""What a builder reads beyond the table: kinds of models that mconv refuses, and what `padded_vocab_size` settles."""


@pytest.fixture(scope="module")
def specs():
    """The architecture of every tiny model, from its config alone."""
    found = {}
    for name, (make, variant) in MODELS.items():
        kind = make.__name__.removeprefix("make_")  # transformers' model_type
        base = {"falcon": FALCON, "gpt2": GPT2}.get(kind, BASE)
        config = transformers.AutoConfig.for_model(kind, **{**base, **variant})
        values = json.loads(config.to_json_string(use_diff=False)) | {"architectures": None}
        found[name] = family_of(values).read_config(values)
    return found


def ended_with(dialect, facts, case):
    """The args with which a program builds the model: defaults, flags, the checkpoint's, and less what is never read."""
    args = dict(facts["options"].values())
    words = shlex.split(" ".join(DIALECTS[dialect].flags(case)[0]))
    while words:
        dest, default = facts["options"][words.pop(0)]
        plain = isinstance(default, bool)
        args[dest] = not default if plain else number(words.pop(0))
    saved = vars(DIALECTS[dialect].args_of(case.spec, case.layout, dtype=case.dtype))
    for name, force in facts["restored"].items():
        if saved.get(name) is not None and (force or args.get(name) is None):
            args[name] = saved[name]
    read = facts.get("older_model") if dialect == "nvidia-legacy" else facts.get("builder")
    if read is not None:
        unread = [name for name in BUILT_WITH if name not in read]
        args |= {name: saved.get("_", {"rotary_base": 10000, "rope_scaling_factor": 8.0}.get(name)) for name in unread}
    return args


def number(word):
    """A flag's value as a parser makes it."""
    try:
        return tuple(map(int, word.split(","))) if "," in word else json.loads(word)
    except ValueError:
        return word


def chunked(args, spec):
    """What `validate_args` makes of the two flags for virtual stages."""
    per_chunk, chunks = (
        args.get("num_layers_per_virtual_pipeline_stage"),
        args.get("num_virtual_stages_per_pipeline_rank"),
    )
    if per_chunk:
        chunks = spec.num_layers // args["pipeline_model_parallel_size"] // per_chunk
    return {**args, "virtual_pipeline_model_parallel_size": chunks}


@pytest.mark.parametrize("program", PROGRAMS, ids="-".join)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_printed_line_leaves_no_gap(specs, program, layout):
    """Every tiny model at this layout: with the printed flags the program has its architecture, or a warning says so."""
    dialect, facts, warned = DIALECTS[program[0]], PROGRAMS[program], set()
    for name, spec in specs.items():
        for dtype in ("float32", "bfloat16"):
            asked = Layout(padded_vocab=256, **LAYOUTS[layout])
            case = Case(spec=spec, layout=asked, load="some where", dtype=dtype, format="mp_rank")
            if dialect.refusals(spec, asked):
                continue
            args = chunked(ended_with(program[0], facts, case), spec)
            warnings = [w for w in dialect.flags(case)[1] if program[1] != "core_v0.19.0" or "core 0.16 to 0.18" not in w]
            # of a class that need not be taken, and of a program that stops: both have the right args
            warnings = [w for w in warnings if "one key more" not in w and "an error of view()" not in w]
            ended = dialect.spec_of(Namespace(**args), vocab_size=spec.vocab_size, settled=True).to_dict()
            wanted = dialect.stored_spec(spec).to_dict()
            same = {**ended, "family": None} == {**wanted, "family": None}
            placed = dialect.layout_of(Namespace(**args), {})
            same = same and (placed.tp, placed.pp, placed.vpp, placed.uneven) == (
                asked.tp,
                asked.pp,
                asked.vpp,
                asked.uneven,
            )
            same = same and args["load"] == "some where" and args["bf16"] == (dtype == "bfloat16")
            same = same and args["seq_length"] == spec.max_position_embeddings
            unknown = spec.parallel_attention or spec.position == "alibi"  # no arg of theirs says it
            assert same != bool(warnings) or (unknown and warnings and program[0] != "megatron-llm"), (name, warnings)
            warned |= {name} if warnings else set()
    assert warned or program[0] == "megatron-llm"


@pytest.mark.parametrize("program", PROGRAMS, ids="-".join)
def test_the_table_is_what_the_source_says(program):
    """Flags exist under the args named, and args are restored as the table has it."""
    facts = PROGRAMS[program]
    defaults = dict(facts["options"].values())
    for row in ROWS[program[0]]:
        assert not row.flag or not row.args or facts["options"][row.flag][0] in row.args, row.flag
        for name in row.args:
            force = facts["restored"].get(name)
            taken = "always" if force else "no" if force is None or defaults.get(name) is not None else "default"
            assert taken == row.restored, name


@pytest.mark.parametrize("version", [name for name in FACTS if name.startswith("core_")])
def test_the_table_has_all_that_the_builder_reads(version):
    named = {name for row in (*flags_megatron.MCORE, *flags_megatron.LEGACY) for name in row.args}
    assert set(FACTS[version]["builder"]) <= named | ELSEWHERE


def test_rope_scaling_is_heeded_where_the_source_passes_it_on():
    read = {name: set(facts["builder"]) for name, facts in FACTS.items() if name.startswith("core_")}
    assert [n for n, names in read.items() if "rotary_seq_len_interpolation_factor" in names] == ["core_v0.19.0"]
    assert not any("rope_scaling_factor" in names for names in read.values())
    assert all("use_rope_scaling" in names for names in read.values())
    older = FACTS["core_v0.16.1"]["older_model"]
    assert "rotary_seq_len_interpolation_factor" in older and "rotary_base" not in older


def test_what_depends_on_the_format_and_the_tracker(specs):
    spec, layout = specs["llama-gqa"], Layout(padded_vocab=256)
    lines = {
        format: DIALECTS["mcore"].flags(Case(spec=spec, layout=layout, load="x", format=format, numbered=numbered))[0]
        for format, numbered in (("mp_rank", False), ("torch_dist", True))
    }
    only = {"--ckpt-format torch", "--transformer-impl local", "--no-persist-layer-norm"}
    assert set(lines["mp_rank"]) - set(lines["torch_dist"]) == only
    assert set(lines["torch_dist"]) - set(lines["mp_rank"]) == {"--finetune"}


@pytest.mark.parametrize(
    ("dialect", "layout", "warned"),
    [
        ("mcore", {"pp": 3, "uneven": Uneven(last=0)}, "holds no layers"),
        ("nvidia-legacy", {"tp": 2}, "2 query groups on a rank"), ("nvidia-legacy", {"tp": 4}, None),
    ],
)  # fmt: skip
def test_what_the_program_refuses_is_warned_of(specs, dialect, layout, warned):
    """As Megatron-LM 0.16.1 itself said of such checkpoints."""
    case = Case(spec=specs["llama-gqa"], layout=Layout(padded_vocab=256, **layout), load="x", format="mp_rank")
    warnings = DIALECTS[dialect].flags(case)[1]
    assert [warned in text for text in warnings] == [True] if warned else not warnings


@pytest.fixture(scope="module")
def parser():
    """The parser of the installed megatron.training, which the wheels have from 0.17 on."""
    importlib.import_module("mconv.train.megatron.imports")  # first: it imports megatron-core quietly
    if importlib.util.find_spec("megatron.training") is None:
        pytest.skip("the installed megatron-core has no megatron.training")
    made = argparse.ArgumentParser(allow_abbrev=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 3.12 about argparse, and of what it imports
        importlib.import_module("megatron.training.arguments").add_megatron_arguments(made)
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", ["mp_rank", "torch_dist"])
def test_the_installed_parser_takes_the_printed_line(parser, specs, layout, format):
    """Ready to paste: no flag is unknown to it, each sets the arg of its row, and no arg of it is unknown to mconv."""
    for spec in specs.values():
        asked = Layout(padded_vocab=256, **LAYOUTS[layout])
        case = Case(spec=spec, layout=asked, load="some where", dtype="bfloat16", format=format, numbered=True)
        args = vars(parser.parse_args(shlex.split(" ".join(DIALECTS["mcore"].flags(case)[0]))))
        assert args["load"] == "some where" and args["bf16"] is True and args["finetune"] is True
        assert args["tensor_model_parallel_size"] == asked.tp and args["layernorm_epsilon"] == spec.norm_epsilon
        assert args.keys() - MEGATRON_LM.names() <= set(OPEN) and MEGATRON_LM.unclaimed(args) == {}


def test_layouts_of_the_test_are_possible():
    for layout in LAYOUTS.values():
        try:
            stage_layers(4, pp=layout.get("pp", 1), vpp=layout.get("vpp", 1), uneven=layout.get("uneven", EVEN))
        except LayoutError as error:
            raise AssertionError(layout) from error


def test_the_page_has_the_tables():
    """docs/flags.md is what `python docs/flags.py` makes of it."""
    script = Path(__file__).parents[2] / "docs" / "flags.py"
    loaded = importlib.util.spec_from_file_location("flags_page", script)
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    page = script.with_suffix(".md").read_text()
    assert module.filled(page) == page and page.count("<!-- end -->") == 3
