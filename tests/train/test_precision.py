"""The precision of a run: that of its weights unless another is asked for, and what an export then says."""

import json
from pathlib import Path

import jobs
import pytest
import torch
from tiny import edit_json, make_llama, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.formats.dtype import BY_NAME, of_torch
from mconv.convert.spelling import dtypes
from mconv.errors import ConfigError
from mconv.train.config import make, merged
from mconv.train.model import architecture
from mconv.train.model.precision import dtype_of, precision_of, resolved

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BASE = {"data": ["x"], "lr": 1e-3, "train_iters": 1}


def mixed(folder):
    """Make a model whose norms, few elements, are fp32 and whose other weights are bf16."""
    from safetensors.torch import save_file

    made = tensors(make_llama(folder, dtype=torch.bfloat16, num_hidden_layers=1))
    made = {name: x.float() if "norm" in name else x for name, x in made.items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """A model of each dtype in each format."""
    root, found = tmp_path_factory.mktemp("precision"), {}
    for name in (*DTYPES, "mixed"):
        hf = root / name
        if name == "mixed":
            mixed(hf)
        else:
            make_llama(hf, dtype=DTYPES[name], num_hidden_layers=1)
        found[name, "hf"] = hf
        for format in ("torch_dist", "mp_rank"):
            found[name, format] = root / f"{name}-{format}"
            rewrite(plan.make(open_checkpoint(hf), found[name, format], format=format, tp=1), step="hf2meg")
    return found


def precision(load, **fields):
    config = make({**BASE, "load": str(load), **fields})
    return precision_of(config, architecture.origin(config))


# ---- the rule --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("format", ["hf", "torch_dist", "mp_rank"])
@pytest.mark.parametrize("weights", ["bf16", "fp16", "fp32", "mixed"])
def test_the_default_is_the_precision_of_the_weights(made, weights, format):
    found = precision(made[weights, format])
    name = open_checkpoint(made[weights, format]).name
    if weights == "mixed":
        assert found.line == (
            f"precision: bf16, as most weights of {name} are (it holds bfloat16, float32); --fp32 trains in fp32"
        )
    else:
        other = "--bf16 trains in bf16 with fp32 main weights" if weights == "fp32" else "--fp32 trains in fp32"
        assert found.line == f"precision: {weights}, as the weights of {name} are; {other}"


ASKED = [
    ("bf16", {"fp32": True}, "fp32", "as asked for; without --fp32 it would be bf16, as the weights of bf16 are"),
    ("bf16", {"bf16": True}, "bf16", "as asked for"),
    ("fp32", {"fp16": True}, "fp16", "as asked for; without --fp16 it would be fp32, as the weights of fp32 are"),
    ("bf16", {"bf16": False}, "fp32", "since bf16 is false; without that it would be bf16, as the weights of bf16 are"),
    ("fp16", {"fp16": False}, "fp32", "since fp16 is false; without that it would be fp16, as the weights of fp16 are"),
    ("fp16", {"bf16": False}, "fp16", "as the weights of fp16 are; --fp32 trains in fp32"),
    ("bf16", {"fp32": False}, "bf16", "as the weights of bf16 are; --fp32 trains in fp32"),
]


@pytest.mark.parametrize("weights, fields, name, why", ASKED)
def test_what_is_asked_for_counts_and_false_is_not_ignored(made, weights, fields, name, why):
    found = precision(made[weights, "hf"], **fields)
    assert (found.name, found.why) == (name, why)


def test_resolved_says_each_precision_and_the_dtype_follows(made):
    config = make({**BASE, "load": str(made["bf16", "hf"])})
    with pytest.raises(ConfigError, match="not resolved"):
        dtype_of(config)
    settled, _ = resolved(config, architecture.origin(config))
    assert (settled.fp32, settled.bf16, settled.fp16) == (False, True, False)
    assert dtype_of(settled) == BY_NAME["bfloat16"]


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"fp32": True, "bf16": True}, "fp32 and bf16 are two precisions"),
        ({"fp32": False, "bf16": False, "fp16": False}, "all false"),
        ({"fp32": True, "loss_scale": 2.0}, "loss_scale is for fp16"),
        ({"fp16": False, "loss_scale": 2.0}, "loss_scale is for fp16"),
    ],
)
def test_contradictions_are_refused(fields, says):
    with pytest.raises(ConfigError, match=says):
        make({**BASE, "load": "x", **fields})


def test_what_depends_on_the_weights_is_refused_when_they_are_known(made):
    with pytest.raises(ConfigError, match="fp32 is false, but the run would be in fp32, as the weights of fp32 are"):
        precision(made["fp32", "hf"], fp32=False)
    with pytest.raises(ConfigError, match=r"fp32 and bf16 are false.*set fp16"):
        precision(made["bf16", "hf"], fp32=False, bf16=False)
    config = make({**BASE, "load": str(made["bf16", "hf"]), "loss_scale": 2.0})
    with pytest.raises(ConfigError, match="loss_scale is for fp16"):
        resolved(config, architecture.origin(config))


def test_random_weights_are_fp32_unless_a_config_says_otherwise(made, tmp_path):
    def random(**fields):
        config = make({**BASE, "init": "random", **fields})
        return precision_of(config, architecture.origin(config))

    assert random(preset="gpt3-7.5b").why == "as random weights are drawn; --bf16 trains in bf16 with fp32 main weights"
    file = made["bf16", "hf"] / "config.json"
    assert random(model=str(file.parent)).line == f"precision: bf16, as the dtype in {file} is; --fp32 trains in fp32"
    assert random(model=str(file), bf16=False).name == "fp32"


def test_a_plan_says_and_counts_the_same(made, capsys):
    from mconv.cli.app import run

    assert run(["plan", "--load", str(made["bf16", "hf"])]) == 0
    assert "precision   bf16, as the weights of bf16 are; --fp32 trains in fp32" in capsys.readouterr().out
    counted = {}
    for asked in ([], ["--fp32"]):
        assert run(["plan", "--load", str(made["bf16", "hf"]), "--json", *asked]) == 0
        told = json.loads(capsys.readouterr().out)
        counted[told["precision"]["name"]] = told["ranks"][0]["weights"]
    assert counted["fp32"] == 2 * counted["bf16"]


def test_a_flag_takes_the_place_of_another_precision_of_the_file():
    file = {"bf16": True, "lr": 1.0}
    assert merged(file, {}, {"fp32": True}) == {"lr": 1.0, "fp32": True}
    assert merged(file, {"fp16": True}, {"lr": 2.0}) == {"fp16": True, "lr": 2.0}
    assert merged(file, {"bf16": False}) == {"bf16": False, "lr": 1.0}
    with pytest.raises(ConfigError, match="two precisions"):
        make({**BASE, "load": "x", **merged({"bf16": True, "fp32": True}, {})})


# ---- the run, its checkpoint and its export --------------------------------------------------------------------------
@pytest.mark.parametrize("asked, dtype", [({}, "bfloat16"), ({"fp32": True}, "float32")], ids=["default", "fp32"])
def test_a_bf16_checkpoint_trains_and_exports_as_it_says(made, asked, dtype, tmp_path):
    """The run, its args, the config beside its checkpoint, its export and its resume: all of one dtype."""
    from mconv.train.loop import train

    fields = {
        "load": str(made["bf16", "hf"]), "mock_data": True, "lr": 1e-3, "train_iters": 1, "seq_length": 16,
        "global_batch_size": 1, "save": str(tmp_path / "run"), **asked,
    }  # fmt: skip
    said: list[str] = []
    train(make(fields), say=said.append)
    short = {"bfloat16": "bf16", "float32": "fp32"}[dtype]
    assert [line for line in said if line.startswith(f"precision: {short}, ")]
    saved = open_checkpoint(tmp_path / "run")
    args = saved.common["args"]
    assert saved.dtype == BY_NAME[dtype] == args.params_dtype
    assert (args.bf16, args.fp16) == (short == "bf16", False)
    assert saved.manifest is not None and saved.manifest["dtype"] == dtype
    assert dtypes.said(json.loads((saved.path / "hf" / "config.json").read_text())) == {dtype}
    rewrite(plan.make(saved, tmp_path / "back", format="hf"), step="meg2hf")
    agrees(tmp_path / "back", dtype)
    resumed: list[str] = []
    train(make({**fields, "train_iters": 2} | dict.fromkeys(asked)), say=resumed.append)
    assert f"precision: {short}, as the weights of run/iter_0000001 are" in "\n".join(resumed)
    assert not [line for line in resumed if "bf16" in line and "other settings" in line]


def agrees(folder: Path, dtype: str) -> None:
    """The config of a Hugging Face folder names the dtype that most of its elements have."""
    held = tensors(folder).values()
    assert dtypes.most((of_torch(x.dtype), x.numel()) for x in held).name == dtype
    assert dtypes.said(json.loads((folder / "config.json").read_text())) == {dtype}


# ---- every route to a config.json ------------------------------------------------------------------------------------
def convert(source, out, **options):
    rewrite(plan.make(open_checkpoint(source), out, **options), step="test")
    return out


ROUTES = {
    "there and back": [{"format": "torch_dist"}, {"format": "hf"}],
    "cast on the way there": [{"format": "torch_dist", "dtype": "CAST"}, {"format": "hf"}],
    "cast on the way back": [{"format": "mp_rank"}, {"format": "hf", "dtype": "CAST"}],
    "cast at a reshard": [{"format": "torch_dist"}, {"format": "mp_rank", "dtype": "CAST", "tp": 2}, {"format": "hf"}],
    "Hugging Face to Hugging Face": [{"format": "hf", "dtype": "CAST"}],
}


SPELLINGS = [
    ("bf16", ("dtype",)), ("fp32", ("torch_dtype",)), ("mixed", ("dtype", "torch_dtype")), ("bf16", ()), ("fp32", ()),
]  # fmt: skip


@pytest.mark.parametrize("weights, keys", SPELLINGS, ids=str)
def test_every_route_exports_the_stored_dtype(weights, keys, tmp_path):
    """Also from a config that named another dtype than its weights had, and under the key that it used."""
    source = mixed(tmp_path / "model") if weights == "mixed" else make_llama(
        tmp_path / "model", dtype=DTYPES[weights], num_hidden_layers=1
    )  # fmt: skip
    own, cast = ("float32", "bf16") if weights == "fp32" else ("bfloat16", "fp32")
    edit_json(source / "config.json", **{**dict.fromkeys(dtypes.KEYS), **dict.fromkeys(keys, "float16")})
    for number, steps in enumerate(ROUTES.values()):
        at = source
        for step, options in enumerate(steps):
            given = {name: cast if value == "CAST" else value for name, value in options.items()}
            at = convert(at, tmp_path / f"{number}-{step}", **given)
        ends = own if "CAST" not in str(steps) else {"bf16": "bfloat16", "fp32": "float32"}[cast]
        agrees(at, ends)
        if keys:
            assert {key for key in dtypes.KEYS if key in json.loads((at / "config.json").read_text())} == set(keys)


def test_a_config_that_is_right_stays_byte_for_byte(made, tmp_path):
    hf = made["bf16", "hf"]
    back = convert(convert(hf, tmp_path / "m", format="torch_dist"), tmp_path / "hf", format="hf")
    assert (back / "config.json").read_bytes() == (hf / "config.json").read_bytes()


def test_a_config_that_names_another_dtype_is_pointed_out(tmp_path):
    hf = make_llama(tmp_path / "hf", num_hidden_layers=1)
    assert not open_checkpoint(hf).notes
    for keys in ({"dtype": "bfloat16"}, {"dtype": None, "torch_dtype": "bfloat16"}):
        edit_json(hf / "config.json", **keys)
        (note,) = open_checkpoint(hf).notes
        assert note.endswith("names the dtype bfloat16, which transformers casts to; most weights are float32")
    edit_json(hf / "config.json", torch_dtype="auto")
    assert not open_checkpoint(hf).notes


def test_a_merged_adapter_is_written_in_the_dtype_that_its_config_names(made, tmp_path):
    """The base's config names another dtype than its weights have."""
    import lora_jobs

    from mconv.convert.checkpoint import adapted

    base = jobs.hf_folder(tmp_path / "base", jobs.SMALL)
    edit_json(base / "config.json", dtype="bfloat16", torch_dtype=None)
    adapter = lora_jobs.adapter_folder(tmp_path / "adapter", base)
    for cast, dtype in ((None, "float32"), ("fp16", "float16")):
        source = adapted.with_base(adapter, base)
        rewrite(plan.make(source, tmp_path / dtype, format="hf", dtype=cast), step="lora merge")
        agrees(tmp_path / dtype, dtype)
