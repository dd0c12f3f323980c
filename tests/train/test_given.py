"""What a run is told: a YAML file, variables and flags; mistakes in them, and in what makes a process a rank."""

import dataclasses
import re
from string import Formatter

import pytest
import torch

from mconv.cli import app
from mconv.errors import ConfigError, LayoutError, MconvError
from mconv.train.config import TrainConfig, aliases, make, read_environment, read_yaml
from mconv.train.data import index
from mconv.train.launch import ranks
from mconv.train.megatron import parallel

pytestmark = pytest.mark.once

LINES = """\
load: x
data: [0.3, a, 0.7, b]
lr: 3e-4
train_iters: 1_000
wandb_exp_name: 2024-01-01
wandb_project: 7
"""
MISTAKES = {
    "twice": (LINES + "lr: 1\n", ["c.yaml, line 7: lr is set twice"]),
    "twice, deeper": ("data: {a: 1, a: 2}\n", ["a is set twice"]),
    "octal": (LINES + "tp: 010\n", ["tp is '010'; it must be a whole number: Tensor parallel size: ranks that share"]),
    "sixties": (LINES + "exit_duration_in_mins: 1:30\nsave: s\n", ["is '1:30'; it must be a number", "minutes"]),
    "units": (LINES + "seq_length: 4k\n", ["seq_length is '4k'; it must be a whole number: Tokens in one sample"]),
    "choice": (LINES + "lr_decay_style: cosin\n", ["'cosin'; it must be one of cosine, linear, constant"]),
    "Megatron's": ("tensor_model_parallel_size: 2\nuse_checkpoint_args: true\n", ["here it is tp", "always comes from"]),
    "capitals": ("TRAIN_ITERS: 2\n", ["did you mean 'train_iters'?"]),
    "latin": (b"load: \xe9t\xe9\n", ["c.yaml:", "unacceptable character"]),
    "a list": ("- lr\n", ["expected `field: value` lines, found a list"]),
}


@pytest.fixture
def started(monkeypatch):
    """What `mconv train` would start ranks with, whatever there is to load."""
    seen = {}
    monkeypatch.setattr("mconv.cli.train.check_load", lambda config: None)
    monkeypatch.setattr("mconv.train.data.sources.check_present", lambda config: None)
    monkeypatch.setattr("mconv.train.logs.boards.check_installed", lambda config: None)  # of wandb, in LINES
    monkeypatch.setattr(
        ranks, "run", lambda target, payload, **how: seen.update(payload) or dict.fromkeys(("saved", "stopped"))
    )
    return seen


def test_yaml_is_read_as_people_mean_it(tmp_path):
    (tmp_path / "c.yaml").write_text(LINES + "packing: off\nadam_eps: 1E-8\nloss_scale: .5\n")
    found = dataclasses.asdict(make(read_yaml(tmp_path / "c.yaml") | {"fp16": True, "bf16": False}))
    assert (found["lr"], found["train_iters"], found["wandb_exp_name"]) == (3e-4, 1000, "2024-01-01")
    assert (found["data"], found["wandb_project"]) == (["0.3", "a", "0.7", "b"], "7")
    assert (found["packing"], found["adam_eps"], found["loss_scale"]) == (False, 1e-8, 0.5)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_file_is_named(name, tmp_path, capsys):
    text, messages = MISTAKES[name]
    (tmp_path / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert app.run(["train", str(tmp_path / "c.yaml")]) == 2
    said = capsys.readouterr()
    assert all(message in said.err for message in messages) and "Traceback" not in said.err and said.out == ""


@pytest.mark.parametrize("name", ["none.yaml", "."])
def test_what_is_no_file_is_said_to_be_the_config(name, tmp_path):
    with pytest.raises(ConfigError, match=r"(No such file|Is a directory)[^\n]*CONFIG, the argument without a flag"):
        read_yaml(tmp_path / name)


def test_other_programs_names_lead_to_fields(capsys):
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    named = {name for text in aliases.CONVERTED.values() for _, name, _, _ in Formatter().parse(text) if name}
    assert {*aliases.RENAMED.values(), *named} <= fields
    tables = (aliases.RENAMED, aliases.CONVERTED, aliases.NEEDLESS)
    assert not {name for table in tables for name in table} & fields
    assert sum(map(len, tables)) == len({name for table in tables for name in table})
    assert app.run(["train", "--use-distributed-optimizer"]) == 2
    assert (
        "train has no option --use-distributed-optimizer; here it is --distributed-optimizer" in capsys.readouterr().err
    )


CHUNKS = "num_layers_per_virtual_pipeline_stage: 2\n"


@pytest.mark.parametrize(
    "lines, says",
    [
        (CHUNKS, "with L layers on pp P, N layers in a chunk are vpp L/(P*N)"),
        (CHUNKS + "num_layers: 32\npp: 4\n", "32 layers on pp 4 with 2 in a chunk are vpp 4"),
        (CHUNKS + "load: model\npipeline_model_parallel_size: 2\n", "12 layers on pp 2 with 2 in a chunk are vpp 3"),
        (CHUNKS + "load: model\npp: 4\n", "12 layers on pp 4 cannot be divided into chunks of 2"),
        ("save_retain_interval: 50\n", "N is keep_every N with keep_last 1"),
    ],
)  # fmt: skip
def test_a_name_of_another_unit_comes_with_the_arithmetic(lines, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"n_layer": 12}')
    (tmp_path / "c.yaml").write_text(lines)
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_yaml(tmp_path / "c.yaml")


def test_flags_are_answered_with_flags():
    assert "--vpp L/(P*N)" in aliases.advice("--num-layers-per-virtual-pipeline-stage")
    assert aliases.advice("--warmup-ratio=0.1").startswith("it is --lr-warmup-fraction")


@pytest.mark.parametrize("name, how", [("x.bin", "give the prefix without .bin"), ("x", "tokenize ... --out")])
def test_a_prefix_that_is_none_is_answered_with_what_to_do(name, how, tmp_path):
    with pytest.raises(MconvError, match=f"{name}.bin: no such file; .*{how}"):
        index.open_index(tmp_path / name)


# ---- the environment -------------------------------------------------------------------------------------------------
def test_variables_lie_between_the_file_and_the_flags(tmp_path, monkeypatch, capsys, started):
    (tmp_path / "c.yaml").write_text(LINES + "tp: 2\npp: 2\nbf16: true\n")
    monkeypatch.setenv("MY_API_KEY", "sesame-open")
    told = {
        "ON_FIRST_FAILURE": "tell sesame-open",
        "EOD_TOKEN": "128001",
        "EOD_MASK_LOSS": "true",
        "TP": "4",
        "PP": "8",
        "DATA": "'my data/a' b",
        "RAMPUP_BATCH_SIZE": "",
        "CANCEL_JOB": "12",
        "BF16": "off",
    }
    for name, value in told.items():
        monkeypatch.setenv(f"MCONV_TRAIN_{name}", value)
    assert app.run(["train", str(tmp_path / "c.yaml"), "--pp", "1"]) == 0
    assert (started["tp"], started["pp"], started["data"]) == (4, 1, ["my data/a", "b"])
    assert (started["bf16"], started["cancel_job"], started["rampup_batch_size"]) == (False, "12", None)
    assert capsys.readouterr().err.splitlines() == [
        "bf16 False from MCONV_TRAIN_BF16", "cancel_job 12 from MCONV_TRAIN_CANCEL_JOB",
        "data ['my data/a', 'b'] from MCONV_TRAIN_DATA", "eod_mask_loss True from MCONV_TRAIN_EOD_MASK_LOSS",
        "eod_token 128001 from MCONV_TRAIN_EOD_TOKEN",
        "on_first_failure tell [redacted] from MCONV_TRAIN_ON_FIRST_FAILURE", "tp 4 from MCONV_TRAIN_TP",
    ]  # fmt: skip


def test_a_variable_changes_a_preset_and_is_checked_before_anything_starts(monkeypatch, capsys):
    monkeypatch.setenv("MCONV_TRAIN_NUM_LAYERS", "2")
    assert app.run(["plan", "--preset", "gpt3-7.5b", "--json"]) == 0
    assert '"num_layers": 2,' in capsys.readouterr().out
    monkeypatch.setenv("MCONV_TRAIN_HIDDEN_SIZE", "4100")
    assert app.run(["plan", "--preset", "gpt3-7.5b"]) == 2
    assert "num_attention_heads 32" in capsys.readouterr().err


def test_an_unknown_variable_is_refused():
    with pytest.raises(
        ConfigError, match="MCONV_TRAIN_NUM_LAYER: unknown field 'num_layer'; did you mean 'MCONV_TRAIN_NUM_LAYERS'"
    ):
        read_environment({"MCONV_TRAIN_NUM_LAYER": "2", "MCONV_TIMEOUT_MINUTES": "1"})
    with pytest.raises(ConfigError, match='MCONV_TRAIN_DATA is "it\'s": No closing quotation'):
        read_environment({"MCONV_TRAIN_DATA": "it's"})


# ---- ranks -----------------------------------------------------------------------------------------------------------
HALVES = {
    "rank": ({"RANK": "0"}, "RANK is 0, but WORLD_SIZE is not set"),
    "world": ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, but RANK is not set"),
    "nowhere": ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT not set"),
    "no address": ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1"}, "but MASTER_ADDR not set"),
    "no number": ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK a, WORLD_SIZE 2, LOCAL_RANK 0: they must be whole numbers"),
    "too large": ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK less than WORLD_SIZE"),
    "srun": ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, "srun started 4 tasks"),
}


@pytest.mark.parametrize("name", HALVES)
def test_half_an_environment_is_refused_at_once(name, monkeypatch):
    variables, message = HALVES[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(MconvError, match=message):
        ranks.run("nothing:at_all", {}, nproc=1)


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert parallel._device() == 1  # srun's tasks, each of which sees some of the GPUs
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(LayoutError, match="4 ranks on this machine, which has 2 GPUs"):
        parallel._device()


def test_out_of_memory_says_what_would_ask_for_less(monkeypatch, capsys):
    def train(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr("mconv.train.loop.train", train)
    monkeypatch.setattr("mconv.cli.train.check_load", lambda config: None)
    monkeypatch.setattr("mconv.train.data.sources.check_present", lambda config: None)
    monkeypatch.setattr("mconv.train.logs.boards.check_installed", lambda config: None)  # of wandb, in LINES
    assert app.run(["train", "--load", "x", "--data", "y", "--train-iters", "1", "--lr", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mconv: CUDA out of memory. mconv plan") and "Traceback" not in said
