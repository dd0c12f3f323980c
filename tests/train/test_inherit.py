"""A run that goes on keeps its settings, or says what changed; and one that begins anew says that it does."""

import dataclasses
import json
from argparse import Namespace
from pathlib import Path

import jobs
import pytest

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.errors import ConfigError, FormatError
from mconv.train.checkpoints import foreign_resume, inherit, resume_choice, settings
from mconv.train.checkpoints.inherit import filled, known
from mconv.train.config import TrainConfig, make
from mconv.train.logs import megatron_log

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-lm"
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout"),
]
RUN = GOLDEN / "td-dp2-distopt" / "ckpt"
BARE = {"load": str(RUN), "resume": True}


# ---- the table -------------------------------------------------------------------------------------------------------
def test_every_field_is_taken_or_says_why_not():
    left = [name for _, names in inherit.NOT_TAKEN for name in names.split()]
    both = [*inherit.TAKEN, *left]
    assert sorted(both) == sorted(field.name for field in dataclasses.fields(TrainConfig))


def test_what_is_taken_is_an_arg_of_megatron():
    facts = json.loads((Path(__file__).parents[1] / "convert" / "megatron_facts.json").read_text())
    names = set(facts["core_v0.16.1"]["names"]) | {
        "data_type",
        "scalar_loss_mask",
        "variable_seq_lengths",
    }  # Megatron-LLM's
    assert {arg for arg in inherit.TAKEN.values() if arg} <= names


# ---- what is taken ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case, seed", [("td-dp2-distopt", 19), ("legacy-tp1-adam", 18)])
def test_a_run_of_megatron_lm_needs_no_flags(case, seed):
    found = filled({"load": str(GOLDEN / case / "ckpt"), "resume": True})
    made = make(found.values)
    assert (made.global_batch_size, made.micro_batch_size, made.seq_length, made.train_iters) == (4, 2, 64, 3)
    assert (made.lr, made.min_lr, made.weight_decay, made.adam_beta2, made.seed) == (1e-3, 1e-4, 0.1, 0.95, seed)
    assert made.mock_data and made.padded_vocab_in_loss and made.hidden_dropout == 0.0
    assert (made.tp, made.save, made.save_interval, made.bf16, made.fp32) == (1, None, 0, None, None)
    assert found.lines[0].startswith("taken from the run in ckpt/iter_0000003, since not given (")
    assert "  micro_batch_size 2, global_batch_size 4, train_iters 3" in found.lines
    assert "  lr 0.001, min_lr 0.0001" in found.lines


OPTIM = GOLDEN.parent / "megatron-lm-optim" / "llama-tp2-pp2-fp32"


@pytest.mark.parametrize("form", ["mprank-tp2", "td-adam-tp2", "td-dp-pp2"])
def test_a_bare_resume_prints_the_losses_of_the_unbroken_run(form, capsys):
    """Megatron-LM's own, of its iterations 4 to 6: from two tensor or pipeline ranks, with no flag repeated."""
    from mconv.cli.app import run

    told = json.loads((OPTIM / "case.json").read_text())["runs"][form]["uninterrupted"]
    assert run(["train", "--load", str(OPTIM / form), "--resume"]) == 0
    out = capsys.readouterr().out
    assert f"taken from the run in {form}/iter_0000003, since not given" in out
    assert "under other settings" not in out and "precision: fp32, as the weights of" in out
    lines = megatron_log.read(out.splitlines()).iterations
    for line, step in zip(lines, ("4", "5", "6"), strict=True):
        assert line.values["lm loss"] == pytest.approx(told["loss"][step], abs=2e-6)
        assert line.values["grad norm"] == pytest.approx(told["grad_norm"][step], abs=1.5e-3)


def test_what_is_given_counts_and_each_difference_is_printed():
    found = filled({**BARE, "lr": 5e-4, "weight_decay": 0.01, "fp32": True})
    assert (found.values["lr"], found.values["weight_decay"], found.values["min_lr"]) == (5e-4, 0.01, 1e-4)
    opened = open_checkpoint(RUN)
    config = dataclasses.replace(make(found.values), bf16=False, fp16=False)
    (line,) = settings.changes(config, known(opened), iteration=3)
    assert line == (
        "warning: iteration 3 was saved under other settings: lr 0.001 -> 0.0005, weight_decay 0.1 -> 0.01, "
        "bf16 True -> False"
    )
    assert not list(settings.changes(dataclasses.replace(make(filled(BARE).values), bf16=True, fp16=False),
                                     known(opened), iteration=3))  # fmt: skip


@pytest.fixture
def saved_with(monkeypatch):
    """Return a function that makes the golden run one that was trained with other args."""

    def change(**args):
        opened = open_checkpoint(RUN)
        common = {**opened.common, "args": Namespace(**{**vars(opened.common["args"]), **args})}
        changed = dataclasses.replace(opened, common=common)
        monkeypatch.setattr(inherit, "open_checkpoint", lambda *_, **__: changed)

    return change


SAMPLES = {
    "train_samples": 800, "train_iters": 200, "lr_decay_samples": 600, "lr_warmup_samples": 40, "lr_decay_iters": None,
    "rampup_batch_size": ["2", "2", "80"],
}  # fmt: skip
CASES = {
    "samples": (SAMPLES, {}, {"train_samples": 800, "lr_decay_samples": 600, "lr_warmup_samples": 40,
                              "rampup_batch_size": [2, 2, 80], "train_iters": None}),
    "samples, given iterations": (SAMPLES, {"train_iters": 9}, {"train_iters": 9, "train_samples": None,
                                  "lr_decay_samples": None, "lr_warmup_samples": None, "rampup_batch_size": None}),
    "a ramp that megatron-core 0.18 ignored": (SAMPLES | {"step_batch_size_schedule": None}, {},
                                               {"train_samples": 800, "rampup_batch_size": None}),
    "iterations, given samples": ({"lr_warmup_iters": 1}, {"train_samples": 12}, {"train_samples": 12,
                                  "train_iters": None, "lr_warmup_iters": None}),
    "a decay of its own": ({"lr_decay_iters": 2}, {}, {"lr_decay_iters": 2}),
    "a decay as long as the run": ({"lr_decay_iters": 3}, {"train_iters": 9}, {"lr_decay_iters": None}),
    "a warmup as a share": ({"lr_warmup_fraction": 0.1}, {}, {"lr_warmup_fraction": 0.1, "lr_warmup_iters": None}),
    "another warmup": ({"lr_warmup_fraction": 0.1}, {"lr_warmup_iters": 1}, {"lr_warmup_fraction": None}),
    "WSD": ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 1}, {}, {"lr_wsd_decay_style": "exponential",
            "lr_wsd_decay_iters": 1}),
    "WSD, given cosine": ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 1}, {"lr_decay_style": "cosine"},
                          {"lr_wsd_decay_iters": None}),
    "a decay that grows": ({"weight_decay_incr_style": "linear", "start_weight_decay": 0.0}, {},
                           {"start_weight_decay": 0.0, "end_weight_decay": 0.1}),
    "a decay that does not": ({}, {}, {"start_weight_decay": None}),
    "fp16's scale": ({"fp16": True, "bf16": False, "loss_scale": 8.0}, {}, {"loss_scale": 8.0, "hysteresis": 2}),
    "fp16's scale in bf16": ({"fp16": True, "bf16": False, "loss_scale": 8.0}, {"bf16": True}, {"loss_scale": None}),
    "dropout": ({"hidden_dropout": 0.1}, {}, {"hidden_dropout": 0.1}),
    "no evaluations": ({"eval_iters": 0}, {}, {"eval_iters": None, "eval_interval": None}),
    "mock data, given data": ({}, {"data": ["x"]}, {"mock_data": None, "eval_interval": None}),
    "a save interval": ({}, {"save": "/nowhere/s"}, {"save_interval": 1000}),
    "a value of another kind": ({"lr_decay_style": "stairs", "clip_grad": "much"}, {}, {"lr_decay_style": None,
                                "clip_grad": None}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_goes_together_is_taken_together(case, saved_with):
    args, given, expected = CASES[case]
    saved_with(**args)
    found = filled({**BARE, **given})
    assert {name: found.values.get(name) for name in expected} == expected
    make(found.values)  # no two of them contradict each other


def test_data_is_taken_where_its_files_are(saved_with, tmp_path):
    for name in ("a.bin", "a.idx"):
        (tmp_path / name).touch()
    here = [str(tmp_path / "a")]
    saved_with(mock_data=False, data_path=here, split="90,10,0")
    assert (found := filled(BARE).values)["data"] == here and found["split"] == "90,10,0"
    assert found["eval_interval"] == 1000
    given = filled({**BARE, "data": ["x"]}).values
    assert (given["data"], given["split"]) == (["x"], "90,10,0")
    saved_with(mock_data=False, data_path=["0.5", *here, "0.5", "/gone/b"], split="90,10,0")
    found = filled(BARE)
    assert "data" not in found.values
    assert any(
        "not taken from there: data" in line and "/gone/b.bin is not there; give --data" in line for line in found.lines
    )


def test_args_that_mconv_trains_otherwise_are_named(saved_with):
    assert not [line for line in filled(BARE).lines if line.startswith("warning")]
    saved_with(decoupled_lr=1e-5, iterations_to_skip=[3], step_batch_size_schedule="0:2 80:4")
    assert [line for line in filled(BARE).lines if line.startswith("warning")] == [
        "warning: the run was trained with decoupled_lr 1e-05; mconv train has one learning rate for all weights",
        "warning: the run was trained with iterations_to_skip [3]; mconv train skips no iterations by number",
        "warning: the run was trained with step_batch_size_schedule 0:2 80:4; mconv train grows batches evenly, by "
        "--rampup-batch-size",
    ]


def test_a_run_of_mconvs_is_branched_with_its_own_settings(tmp_path):
    """Also those that Megatron-LM has no args for; the same command again takes them from what it has saved since."""
    first = jobs.fields(tmp_path, spec=jobs.SMALL, mock=True, train_iters=2, min_lr=1e-3, adam_beta1=0.8,
                        micro_batch_size=2, save=str(tmp_path / "run"))  # fmt: skip
    jobs.train(**first)
    bare = {"load": str(tmp_path / "run"), "resume": True, "save": str(tmp_path / "branch"), "train_iters": 3}
    for start in (2, 3):
        found = filled(bare)
        for name in ("lr", "min_lr", "global_batch_size", "micro_batch_size", "seq_length", "adam_beta1", "mock_data"):
            assert found.values[name] == first[name], name
        assert found.values["padded_vocab_in_loss"] is False  # which a run of Megatron-LM's would have
        assert found.lines[0].startswith(f"taken from the run in {('run', 'branch')[start - 2]}/iter_000000{start}")
        if start == 2:
            assert jobs.train(**found.values)["iteration"] == 3
    (line,) = filled(first | {"load": bare["load"], "resume": True, "save": str(tmp_path / "other")}).lines
    assert line.endswith(" settings, all equal to mconv's defaults")  # no colon with nothing after it


# ---- go on, or begin anew --------------------------------------------------------------------------------------------
ASKS = "holds a run with optimizer state, at iteration 3: give --resume to continue .* or --finetune to take its weights"


@pytest.mark.parametrize(
    "case", ["td-dp2-distopt", "td-dp2-distopt-reshardable", "legacy-dp2-distopt", "legacy-tp1-adam"]
)
def test_a_checkpoint_with_optimizer_state_asks(case):
    opened, load = open_checkpoint(GOLDEN / case / "ckpt"), str(GOLDEN / case / "ckpt")
    for ask in (lambda: filled({"load": load}), lambda: resume_choice.left_out(opened, {})):
        with pytest.raises(ConfigError, match=ASKS):
            ask()
    assert filled({"load": load, "finetune": True}).values == {"load": load, "finetune": True}
    assert filled({"load": load, "eval_only": True}).values == {"load": load, "eval_only": True}
    assert filled({"load": load, "lora_rank": 4}).values == {"load": load, "lora_rank": 4}
    assert "begins at iteration 0 with the weights of ckpt/iter_0000003" in str(
        resume_choice.left_out(opened, {"finetune": True})
    )
    assert "LoRA begins at iteration 0" in str(resume_choice.left_out(opened, {"lora_rank": 4}))
    assert (
        resume_choice.left_out(opened, {"resume": True}) is None
        and resume_choice.left_out(opened, {"eval_only": True}) is None
    )


@pytest.mark.parametrize("place", ["td-tp2-mha-bf16/ckpt", "legacy-tp1-gqa-bf16/ckpt", "td-dp2-distopt/hf"])
def test_weights_alone_need_no_word(place):
    assert filled({"load": str(GOLDEN / place)}).lines == ()
    assert resume_choice.left_out(open_checkpoint(GOLDEN / place), {}) is None
    with pytest.raises(FormatError, match="holds weights only, so there is no run to resume"):
        filled({"load": str(GOLDEN / place), "resume": True})


def test_an_optimizer_in_another_order_is_refused_with_what_can_be_done():
    """Megatron-LLM numbers its parameters in its own order."""
    opened = open_checkpoint(GOLDEN.parent / "megatron-llm/llama2-trained/megatron-trained", vocab_size=389)
    with pytest.raises(FormatError, match=r"has shape \(512, 48\) where .*--finetune takes the weights alone"):
        foreign_resume.open_state(opened)


def test_the_question_comes_before_what_is_missing_and_leaves_nothing(tmp_path, capsys):
    from mconv.cli.app import run

    assert run(["train", "--load", str(RUN), "--save", str(tmp_path / "new")]) == 2
    err = capsys.readouterr().err
    assert "--resume" in err and "--finetune" in err and "lr is not set" not in err and len(err.splitlines()) == 1
    assert not (tmp_path / "new").exists()
    assert run(["train", "--load", str(RUN), "--resume", "--save", str(tmp_path / "new")]) == 2
    assert "at its end, iteration 3 of 3" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert run(["train", "--load", str(RUN), "--resume", "--finetune", "--mock-data"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_finetune_begins_anew_and_not_in_the_folder_of_the_run(tmp_path):
    from mconv.train.loop import train

    fields = jobs.fields(tmp_path, spec=jobs.SMALL, mock=True, train_iters=2, save=str(tmp_path / "run"))
    fields["freeze"] = ["embedding"]
    jobs.train(**fields)
    new = fields | {"load": str(tmp_path / "run"), "train_iters": 1, "save": str(tmp_path / "new")}
    with pytest.raises(ConfigError, match="give --resume to continue"):
        train(make(new), say=print)
    with pytest.raises(
        FormatError, match=r"no state of embed.weight: it trained with freeze.*--finetune starts a new run"
    ):
        train(make(new | {"resume": True}), say=print)
    assert not (tmp_path / "new").exists()
    said: list[str] = []
    assert train(make(new | {"finetune": True}), say=said.append)["iteration"] == 1
    assert any("its optimizer state at iteration 2 is not used" in line for line in said)
    assert train(make(new | {"finetune": True, "train_iters": 2}), say=print)["iteration"] == 2  # again: it goes on
    assert inherit.filled(new | {"finetune": True}).lines == (
        f"{tmp_path / 'new'} holds a run, which continues from iter_0000002: finetune and load are for a new one",
    )
    with pytest.raises(ConfigError, match="give another --save"):
        train(make(new | {"finetune": True, "train_iters": 9, "save": str(tmp_path / "run")}), say=print)
