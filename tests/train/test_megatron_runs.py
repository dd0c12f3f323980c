"""Runs of Megatron-LM itself: begun as it begins, gone on with from its checkpoints, with its losses."""

import dataclasses
import functools
import json
import re
from argparse import Namespace
from pathlib import Path

import jobs
import pytest
import torch
from safetensors.torch import load_file

from mconv.convert.checkpoint import buffers
from mconv.convert.checkpoint import optimizer as states
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.formats import torch_dist
from mconv.convert.sources.read import assemble
from mconv.errors import CheckFailed, FormatError
from mconv.train.checkpoints.inherit import filled
from mconv.train.checkpoints.metadata import settings_of
from mconv.train.config import TrainConfig, make
from mconv.train.logs import megatron_log

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-lm"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout")

CASES = {
    "td-dp2-distopt": "td-dp2-distopt", "td-dp2-distopt-reshardable": "td-dp2-distopt",
    "legacy-dp2-distopt": "td-dp2-distopt", "legacy-tp1-adam": "legacy-tp1-adam",
}  # fmt: skip
"""Case -> where its optimizer's state, as the live optimizer had it, lies."""
LIKE_GOLDEN = {
    "mock_data": True, "padded_vocab_in_loss": True, "lr": 1e-3, "min_lr": 1e-4, "weight_decay": 0.1,
    "micro_batch_size": 2, "global_batch_size": 4, "seq_length": 64, "split": "1,1,1", "train_iters": 6, "resume": True,
}  # fmt: skip
"""The flags of the golden cases, for the six steps of which the checkpoints are the third."""


def go_on(case, **fields):
    options = {"bf16": CASES[case] == "td-dp2-distopt", "seed": 19 if CASES[case] == "td-dp2-distopt" else 18}
    return {"load": str(GOLDEN / case / "ckpt"), **LIKE_GOLDEN, **options, **fields}


# ---- what the optimizer held -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES)
def test_every_format_gives_the_live_optimizers_state(case):
    """Bit for bit, under Hugging Face's names, from all four formats."""
    state = states.open_state(open_checkpoint(GOLDEN / case / "ckpt"))
    expected = load_file(GOLDEN / CASES[case] / "expected_optim.safetensors")
    kinds = {**state.moments, **({} if case == "legacy-tp1-adam" else {"master": state.main})}
    assert state.step == 3
    for stored in open_checkpoint(GOLDEN / case / "hf").stored:
        for kind, source in kinds.items():
            found = assemble(source, stored, dtype=torch.float32)
            assert torch.equal(found, expected.pop(f"{kind}/{stored.key}")), (kind, stored.key)
    assert not expected


def test_an_order_that_is_not_the_models_is_refused(monkeypatch):
    """The same flat buffers, read with the order in which another layer makes its parameters."""
    monkeypatch.setitem(buffers.EARLIER, "local", ())
    with pytest.raises(FormatError, match="parameters were in another order"):
        states.open_state(open_checkpoint(GOLDEN / "td-dp2-distopt" / "ckpt"))


@pytest.mark.parametrize("case", ["td-tp2-mha-bf16", "legacy-tp1-gqa-bf16"])
def test_weights_alone_are_no_run(case):
    with pytest.raises(FormatError, match="no optimizer state"):
        states.open_state(open_checkpoint(GOLDEN / case / "ckpt"))


# ---- the next losses -------------------------------------------------------------------------------------------------
def test_the_next_losses_are_those_of_an_independent_loop(tmp_path):
    """FP32Optimizer: transformers' model, torch's AdamW and the optimizer's state as the live run had it.

    No flag of that run is repeated but its length, which ends where the checkpoint stands.
    """
    bare = filled({"load": str(GOLDEN / "legacy-tp1-adam" / "ckpt"), "resume": True, "train_iters": 6}).values
    ours = jobs.train(**bare)
    theirs = jobs.plain_loop(GOLDEN / "legacy-tp1-adam", steps=3, seed=18, lr=1e-3, min_lr=1e-4, train_iters=6)
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=2e-6)
    assert ours["grad_norms"] == pytest.approx(theirs["grad_norms"], abs=2e-6)


FAULTS = {
    "the moments are not taken over": {"moments": {}},
    "the step is lost": {"step": 0},
    "the step is one behind": {"step": 2},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_part_of_the_state_that_is_lost_is_seen(fault, monkeypatch):
    from mconv.train.checkpoints import foreign_resume

    whole, opened = jobs.train(**go_on("legacy-tp1-adam")), foreign_resume.open_state
    monkeypatch.setattr(foreign_resume, "open_state", lambda c: dataclasses.replace(opened(c), **FAULTS[fault]))
    losses = jobs.train(**go_on("legacy-tp1-adam"))["losses"]
    assert losses[0] == whole["losses"][0]  # it depends on the weights alone
    assert max(abs(a - b) for a, b in zip(losses, whole["losses"], strict=True)) > 1e-3


def test_all_formats_of_one_run_go_on_alike():
    """In bf16, bit for bit; a third optimizer, which is not distributed, adds up the norm in another order."""
    runs = [jobs.train(**go_on(case, distributed_optimizer=case.startswith("td"))) for case in list(CASES)[:3]]
    assert (runs[0]["losses"], runs[0]["grad_norms"]) == (runs[1]["losses"], runs[1]["grad_norms"])
    assert runs[2]["losses"] == pytest.approx(runs[0]["losses"], abs=1e-4)
    assert runs[2]["grad_norms"] == pytest.approx(runs[0]["grad_norms"], abs=1e-4)


@pytest.mark.parametrize("case", ["legacy-tp1-adam", "td-dp2-distopt"])
def test_the_validation_loss_is_the_one_that_megatron_printed(case):
    """Of the weights that the checkpoint holds, padded vocabulary included, on Megatron-LM's validation samples.

    Of one of them as a run goes on with it, of the other as a new run begins with it.
    """
    from mconv.train.loop import feed
    from mconv.train.loop.evaluate import evaluate
    from mconv.train.loop.start import start
    from mconv.train.megatron.imports import quiet

    log = (GOLDEN / case / "train.log").read_text()
    printed = float(re.search(r"at iteration 3 on validation set \| lm loss value: (\S+)", log)[1])
    anew = case == "legacy-tp1-adam"
    config = make(go_on(case, eval_interval=3, eval_iters=1, resume=not anew, finetune=anew))
    with quiet():
        said: list[str] = []
        run = start(config, say=said.append)
        valid = feed.sets(run, lambda line: None).valid
        loss = evaluate(run, feed.feed(run, valid, consumed=0))["loss"]
    assert config.resume or any("padding count in the loss and are those of its checkpoint" in line for line in said)
    # bf16: our attention rounds elsewhere than Megatron-LM's unfused one; measured 3.2e-4
    assert loss == pytest.approx(printed, abs=1e-3 if config.bf16 else 1e-6)


# ---- the other way -------------------------------------------------------------------------------------------------
def test_what_a_run_saves_has_megatrons_keys_and_args(tmp_path):
    """The same run as `td-dp2-distopt-reshardable`: each tensor, byte object, common value and arg that a load reads."""
    case = GOLDEN / "td-dp2-distopt-reshardable"
    fields = {**go_on(case.name), "load": str(case / "hf"), "resume": False, "train_iters": 3}
    jobs.train(**fields, make_vocab_size_divisible_by=48, distributed_optimizer=True, save=str(tmp_path))
    ours, theirs = (stored(root / "iter_0000003") for root in (tmp_path, case / "ckpt"))
    assert ours["tensors"] == theirs["tensors"] and ours["blobs"] == theirs["blobs"]
    flops = "num_floating_point_operations_so_far"
    assert set(ours["common"]) - {"mconv"} == set(theirs["common"]) and ours["common"][flops] > 0
    for name in set(theirs["common"]) - {flops}:
        assert ours["common"][name] == theirs["common"][name], name
    differ = {name for name in set(ours["args"]) & set(theirs["args"]) if ours["args"][name] != theirs["args"][name]}
    assert differ <= DIFFERENT
    assert set(theirs["args"]) & set(READ_AT_LOAD) <= set(ours["args"])
    reach = open_checkpoint(case / "hf").spec.max_position_embeddings
    assert ours["args"]["seq_length"] == 64 < reach == open_checkpoint(tmp_path).spec.max_position_embeddings


DIFFERENT = {
    "vocab_size",  # NullTokenizer counts one less
    "use_rotary_position_embeddings", "no_persist_layer_norm", "no_save_optim", "no_save_rng",  # other words for the same
    "data_parallel_size", "world_size", "iteration", "lr_decay_iters", "params_dtype",
    "calculate_per_token_loss",  # a mean over tokens, as theirs is where all of them count
    "split", "save_interval", "eval_interval", "eval_iters",  # of this run
}  # fmt: skip
OF_THE_MODEL = {
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "max_position_embeddings", "rotary_base", "position_embedding_type", "vocab_size",
}  # fmt: skip
"""Fields of a run whose args are those of the model that it ends up with."""
OF_THE_LAYOUT = {
    "sequence_parallel", "decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers",
    "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split",
}  # fmt: skip
OF_THE_MACHINE = {
    "load", "save", "attention_backend", "log_throughput", "tensorboard_dir", "wandb_project", "wandb_entity",
    "wandb_exp_name", "wandb_save_dir", "exit_interval", "exit_duration_in_mins", "finetune", "manual_gc_interval",
    "profile", "profile_ranks",
}  # fmt: skip
"""Fields of one start: folders, logs, when to stop, what is profiled, and whether it began with weights alone."""


def test_every_setting_that_megatron_knows_is_written_as_the_run_has_it():
    """Fields of ours that are args of Megatron-LM's, by its own parser: none is left to a default in a checkpoint."""
    theirs = json.loads((Path(__file__).parents[1] / "convert" / "megatron_facts.json").read_text())["core_v0.16.1"][
        "names"
    ]
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    config = make({"load": "x", "data": ["x"], "lr": 1e-3, "train_iters": 4, "hidden_dropout": 0.25, "seq_length": 16})
    written = settings_of(config, seq_length=16)
    assert set(fields) & set(theirs) - OF_THE_MODEL - OF_THE_LAYOUT - OF_THE_MACHINE == set(written) & set(fields)
    assert not (OF_THE_MODEL | OF_THE_LAYOUT | OF_THE_MACHINE) & set(written)
    changed = {"split", "seq_length", "init_method_std", "start_weight_decay", "end_weight_decay"}
    recompute = {name for name in written if name.startswith("recompute_")}
    for name in set(written) & set(fields) - changed - recompute:
        assert written[name] == getattr(config, name), name
    assert written["hidden_dropout"] == 0.25 and written["seq_length"] == 16 and written["split"] == "100,0,0"
    assert written["start_weight_decay"] == written["end_weight_decay"] == config.weight_decay


READ_AT_LOAD = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "world_size", "data_parallel_size", "no_save_rng",
    "no_save_optim", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples", "num_layers",
    "hidden_size", "num_attention_heads", "max_position_embeddings", "make_vocab_size_divisible_by",
    "padded_vocab_size", "ckpt_format", "use_distributed_optimizer", "add_position_embedding",
)  # fmt: skip
"""Args of a checkpoint that Megatron-LM looks at when it goes on with a run."""


def stored(folder):
    """Everything that a torch_dist folder holds, without the values of its tensors."""
    tensors, common = torch_dist.open_folder(folder)
    training, blobs = torch_dist.open_training(folder)
    shapes = {name: (x.shape, x.dtype) for name, x in {**tensors, **training}.items()}
    return {"tensors": shapes, "blobs": set(blobs), "args": vars(common.pop("args")), "common": common}


# ---- a curve from its first step -------------------------------------------------------------------------------------
@pytest.fixture
def random(tmp_path, monkeypatch):
    """The fields of a run that begins with Megatron-LM's own random weights."""
    from mconv.train.loop import start
    from mconv.train.model import weights

    spec = jobs.variant(
        num_layers=2, hidden_size=64, ffn_hidden_size=96, num_attention_heads=8, num_query_groups=2, kv_channels=8,
        vocab_size=256, max_position_embeddings=64,
    )  # fmt: skip
    monkeypatch.setattr(start, "build_chunks", functools.partial(start.build_chunks, initialize=True))
    monkeypatch.setattr(weights, "fill", lambda *_, **__: None)
    return {
        **LIKE_GOLDEN, "load": str(jobs.hf_folder(tmp_path / "hf", spec)), "lr": 3e-3, "min_lr": 3e-4, "train_iters": 10,
        "global_batch_size": 8, "make_vocab_size_divisible_by": 64, "resume": False,
    }  # fmt: skip


def test_a_run_from_random_weights_prints_megatrons_lines(random, tmp_path):
    """`train-logs/plain` and `resume`: the same initial weights, data, losses and norms, to the last printed digit."""
    fields = random | {"save": str(tmp_path / "run")}
    first = jobs.train(**fields, eval_interval=5, eval_iters=1)
    agree(mixed(first["losses"]), logged("plain"), first["grad_norms"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    said = [line[name] for name in ("validation_loss", "test_loss") for line in lines if name in line]
    assert said == pytest.approx([4.398962, 4.105324, 4.090448, 4.118775], abs=1.5e-6)
    second = jobs.train(**fields | {"train_iters": 14})
    *losses, a, b = mixed(second["losses"])
    norms = second["grad_norms"]
    agree([*losses, (a + b) / 2], logged("resume"), [norms[0], norms[1], norms[3]])


def test_fp16_overflows_where_megatron_lm_does(random, monkeypatch):
    """`train-logs/fp16-skips`, by nature and not by planting: every skip, scale and rate, and what is learned between."""
    from mconv.train.loop import train
    from mconv.train.optim import replicas

    def in_fp16(**options):
        return run_options(**options | {"grad_reduce_in_fp32": False})

    run_options = replicas.DistributedDataParallelConfig
    monkeypatch.setattr(
        replicas, "DistributedDataParallelConfig", in_fp16
    )  # Megatron-LM's default adds gradients up in fp16
    said = []
    fields = random | {"train_iters": 16, "fp16": True, "hysteresis": 1, "loss_scale_window": 4}
    train(make(fields), say=said.append)
    ours = [line.values for line in megatron_log.read("\n".join(said).splitlines()).iterations]
    theirs = logged("fp16-skips")
    theirs[1]["number of skipped iterations"] -= 1  # its second line counts the first once more
    for field in ("loss scale", "learning rate", "number of skipped iterations", "consumed samples"):
        assert [line[field] for line in ours] == [line[field] for line in theirs], field
    # measured 7.3e-5 and 1e-3: attention in fp16 rounds otherwise
    for field, bound in (("lm loss", 2e-4), ("grad norm", 2e-3)):
        assert [line.get(field, 0) for line in ours] == pytest.approx([line.get(field, 0) for line in theirs], abs=bound)


def test_a_rate_out_of_this_world_is_not_a_number_where_megatron_lms_is(random):
    """`train-logs/nan`: its loss is NaN from the second step on."""
    fields = random | {"train_iters": 6, "lr": 1e12}
    with pytest.raises(CheckFailed, match=r"nan at iteration 2 \(samples 8 to 15\)"):
        jobs.train(**fields)


def mixed(losses):
    """As Megatron-LM prints them: its second line is the mean of the first two steps."""
    return [losses[0], (losses[0] + losses[1]) / 2, *losses[2:]]


def logged(name):
    return json.loads((GOLDEN / "train-logs" / f"{name}.json").read_text())["iterations"]


def agree(losses, lines, norms):
    """To the last digit that is printed, which another machine's rounding may move by one."""
    assert losses == pytest.approx([line["lm loss"] for line in lines], abs=1.5e-6)
    assert norms == pytest.approx([line["grad norm"] for line in lines], abs=1.5e-3)


COUNTS = {
    "consumed_train_samples is 'many'": {"consumed_train_samples": "many"},
    "consumed_train_samples is None": {"consumed_train_samples": None},
    r"consumed_train_samples is 2\.5": {"consumed_train_samples": 2.5},
    "consumed_train_samples is -1": {"consumed_train_samples": -1},
    r"iteration is \[1\]": {"iteration": [1]},
    "num_steps is 'x'": {"opt_param_scheduler": {"num_steps": "x"}},
    "num_steps is None": {"opt_param_scheduler": 5},
}


@pytest.mark.parametrize("says", COUNTS)
def test_how_far_a_foreign_run_is_must_be_whole_numbers(says):
    """Its args are what a resume counts on: no traceback, and no start from somewhere else."""
    from mconv.train.checkpoints import foreign_resume

    found, spoil = open_checkpoint(GOLDEN / "legacy-tp1-adam" / "ckpt"), COUNTS[says]
    assert foreign_resume.counted(found).iteration == 3
    common = {**found.common, "args": Namespace(**{**vars(found.common["args"]), **spoil})}
    common |= {name: value for name, value in spoil.items() if name in common}
    with pytest.raises(FormatError, match=says):
        foreign_resume.open_state(dataclasses.replace(found, common=common))
