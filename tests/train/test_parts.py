"""The small parts of training: configuration, schedule, log line, launcher, loss, CPU adapter."""

import dataclasses
import json
import math
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from mconv.errors import ConfigError, LayoutError, MconvError
from mconv.train import config as configs
from mconv.train.launch import ranks
from mconv.train.logs import boards
from mconv.train.logs import log as logs

NEEDED = {"load": "x", "data": ["p"], "train_iters": 10, "lr": 1.0}


def step_of(n):
    return logs.Step(
        iteration=n, consumed_samples=n, loss=float(n), grad_norm=1.0, lr=0.1, seconds=1.0, tokens_per_second=1.0
    )


# ---------------------------------------------------------------- configuration
def test_tensorboard_gets_every_step(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = boards.TensorBoard(str(tmp_path / "board"))
    log = logs.Log(say=lambda _: None, train_iters=3, global_batch_size=1, interval=1, file=None, boards=(board,))
    for number in (1, 2, 3):
        log.step(step_of(number))
    log.close()
    again = boards.TensorBoard(str(tmp_path / "board"), iteration=1)
    again.log({"loss": 9.0}, 2)
    again.close()
    found = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 1.0), (2, 9.0)]


def test_tensorboard_that_is_not_installed_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = configs.make({"load": "x", "data": ["p"], "train_iters": 1, "lr": 1.0, "tensorboard_dir": str(tmp_path)})
    with pytest.raises(MconvError, match=r"tensorboard_dir needs tensorboard: pip install 'mconv\[log\]'"):
        boards.boards(config, described={})


def test_every_field_says_what_it_means():
    assert set(configs.help_of()) == {field.name for field in dataclasses.fields(configs.TrainConfig)}


def test_yaml_is_read_and_unknown_fields_are_named(tmp_path):
    (tmp_path / "c.yaml").write_text("load: x\ndata: p\nlr: 3e-4\ntrain_iters: 5\nbf16: true\n")
    made = configs.make(configs.read_yaml(tmp_path / "c.yaml"))
    assert (made.data, made.lr, made.bf16) == (["p"], 3e-4, True)
    (tmp_path / "c.yaml").write_text("load: x\nlearning_rate: 1\nmicro-batch-size: 4\n")
    with pytest.raises(ConfigError) as caught:
        configs.read_yaml(tmp_path / "c.yaml")
    assert "unknown field 'learning_rate'; here it is lr" in str(caught.value)
    assert "'micro-batch-size'; did you mean 'micro_batch_size'?" in str(caught.value)


BAD = {
    "lr_warmup_iters": (10, "must be less than"), "lr": (0.0, "more than 0"), "min_lr": (2.0, "at least min_lr"),
    "split": ("1,2", "three shares"), "eval_interval": (5, "split is not set"), "tp": (True, "a whole number"),
    "save_interval": (5, "needs save"), "data_weights": ([1.0, 2.0], "2 weights for 1 prefixes"), "data": ([], "prefix"),
    "lr_decay_style": ("cos", "one of cosine"), "train_iters": (1.5, "a whole number"), "bf16": (1, "true or false"),
    "micro_batch_size": (0, "at least 1"), "adam_beta2": (1.0, "less than 1"), "load": (None, "load is not set"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_by_name(name):
    value, message = BAD[name]
    with pytest.raises(ConfigError, match=message) as caught:
        configs.make({**NEEDED, name: value})
    assert name in str(caught.value)


def test_flags_win_over_the_file(tmp_path, monkeypatch):
    from mconv.cli import app

    (tmp_path / "c.yaml").write_text("load: x\ndata: [p, q]\nlr: 1.0\ntrain_iters: 5\nbf16: true\ntp: 2\n")
    seen = {}

    def run(target, payload, *, nproc, stops_well, preload):
        seen.update(payload, nproc=nproc, stops_well=stops_well)
        return {"saved": None, "stopped": None}

    monkeypatch.setattr(ranks, "run", run)
    monkeypatch.setattr("mconv.cli.train.check_load", lambda _: None)  # neither x nor r and s is there
    monkeypatch.setattr("mconv.train.data.sources.check_present", lambda _: None)
    argv = ["train", str(tmp_path / "c.yaml"), "--lr", "0.5", "--fp32", "--data", "r", "s", "--lr-decay-style", "linear"]
    assert app.run(argv) == 0
    assert (seen["lr"], seen["fp32"], seen["bf16"], seen["data"]) == (0.5, True, None, ["r", "s"])
    assert (seen["tp"], seen["nproc"]) == (2, 2)
    assert seen["lr_decay_style"] == "linear" and seen["train_iters"] == 5
    assert not seen["stops_well"]  # there is no folder to save to


# ---------------------------------------------------------------- schedule
@pytest.mark.parametrize("style", ["cosine", "linear", "constant"])
def test_schedule(style):
    from mconv.train.optim.schedule import scheduler

    class Optimizer:
        param_groups = (
            {"lr": 0.0, "weight_decay": 0.0, "wd_mult": 1.0},
            {"lr": 0.0, "weight_decay": 9.0, "wd_mult": 0.0},
        )

    config = configs.make({**NEEDED, "train_iters": 12, "lr": 1.0, "min_lr": 0.1, "lr_warmup_iters": 4,
                           "lr_decay_iters": 10, "lr_decay_style": style, "weight_decay": 0.3})  # fmt: skip
    made, rates = scheduler(Optimizer, config), []
    for _ in range(12):
        rates.append(Optimizer.param_groups[0]["lr"])
        made.step(config.global_batch_size)
    assert rates[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    middle = {"cosine": 0.1 + 0.45 * (1 + math.cos(math.pi / 2)), "linear": 0.55, "constant": 1.0}[style]
    assert rates[7] == pytest.approx(middle)
    assert rates[10:] == pytest.approx([1.0 if style == "constant" else 0.1] * 2)
    assert [group["weight_decay"] for group in Optimizer.param_groups] == [0.3, 0.0]
    scheduler(Optimizer, config, scheduled=7 * config.global_batch_size)
    assert Optimizer.param_groups[0]["lr"] == rates[7]


# ---------------------------------------------------------------- log
def test_the_line_is_megatrons():
    step = logs.Step(iteration=1, consumed_samples=8, loss=5.559654, grad_norm=0.835, lr=2.933926e-3, seconds=0.1272,
                     tokens_per_second=1.0)  # fmt: skip
    text = logs.line(step, train_iters=10, global_batch_size=8, now=datetime(2026, 11, 20, 10, 52, 9, 690398))
    assert text == (
        " [2026-11-20 10:52:09.690398] iteration        1/      10 | consumed samples:            8 | elapsed time per "
        "iteration (ms): 127.2 | learning rate: 2.933926E-03 | global batch size:     8 | lm loss: 5.559654E+00 | "
        "loss scale: 1.0 | grad norm: 0.835 | number of skipped iterations:   0 | number of nan iterations:   0 |"
    )


def test_a_printed_line_is_the_mean_since_the_last(tmp_path):
    said = []
    log = logs.Log(say=said.append, train_iters=5, global_batch_size=1, interval=2, file=tmp_path / logs.NAME)
    for n in range(1, 6):
        log.step(step_of(n))
    assert [text.split("lm loss: ")[1][:4] for text in said] == ["1.50", "3.50", "5.00"]
    with (tmp_path / logs.NAME).open("a") as file:
        file.write('{"iteration": 6, "lo')  # a kill in mid-write
    logs.forget_after(tmp_path / logs.NAME, 3)
    assert [json.loads(text)["iteration"] for text in (tmp_path / logs.NAME).read_text().splitlines()] == [1, 2, 3]


def test_a_log_that_cannot_be_written_is_said_once_and_costs_no_step(tmp_path):
    class Offline:
        def log(self, values, iteration):
            raise ConnectionError("no network")

        def close(self):
            raise ConnectionError("no network")

    full = tmp_path / logs.NAME
    full.symlink_to("/dev/full")
    said = []
    log = logs.Log(say=said.append, train_iters=3, global_batch_size=1, interval=9, file=full, boards=(Offline(),))
    for n in (1, 2):
        log.step(step_of(n))
    log.evaluation(2, {"loss": 1.0, "perplexity": 2.7})
    log.close()
    warned = [text for text in said if text.startswith("warning")]
    assert len(warned) == 2 and "No space left" in warned[0] and "Offline: no network" in warned[1]


# ---------------------------------------------------------------- launcher
@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A module that ranks can import, and its errors."""
    (tmp_path / "rank_jobs.py").write_text(
        "import os\n"
        "from mconv.errors import LayoutError\n"
        "def work(payload):\n"
        "    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))\n"
        "    if payload.get('mine') and rank == 1: raise LayoutError('axis g has 7')\n"
        "    if payload.get('odd') and rank == 1: {}['lost']\n"
        "    if payload.get('die') and rank == 1: os._exit(9)\n"
        "    return {'rank': rank, 'world': world, 'x': payload['x'], 'omp': os.environ.get('OMP_NUM_THREADS')}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "rank_jobs:work"


def test_one_rank_runs_here(jobs):
    assert ranks.run(jobs, {"x": 1}, nproc=1)["world"] == 1


def test_ranks_are_started_and_answer(jobs, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    result = ranks.run(jobs, {"x": [1, "a"]}, nproc=2)
    assert (result["rank"], result["world"], result["x"]) == (0, 2, [1, "a"]) and int(result["omp"]) >= 1


def test_under_torchrun_the_call_joins(jobs, monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert ranks.run(jobs, {"x": 1}, nproc=2)["rank"] == 3


@pytest.mark.once
def test_a_ranks_errors_come_back_as_what_they_are(jobs):
    with pytest.raises(LayoutError, match=r"^axis g has 7$"):
        ranks.run(jobs, {"x": 1, "mine": True}, nproc=2)
    with pytest.raises(MconvError, match="rank 1 of 2 failed: KeyError: 'lost'"):
        ranks.run(jobs, {"x": 1, "odd": True}, nproc=2)
    with pytest.raises(MconvError, match="a rank died without an error message"):
        ranks.run(jobs, {"x": 1, "die": True}, nproc=2)


@pytest.mark.once
def test_forked_ranks_answer_and_fail_alike(jobs, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    forked = {"nproc": 2, "preload": ("rank_jobs",)}
    result = ranks.run(jobs, {"x": [1, "a"]}, **forked)
    assert (result["rank"], result["world"], result["x"]) == (0, 2, [1, "a"]) and int(result["omp"]) >= 1
    with pytest.raises(LayoutError, match=r"^axis g has 7$"):
        ranks.run(jobs, {"x": 1, "mine": True}, **forked)
    with pytest.raises(MconvError, match="a rank died without an error message"):
        ranks.run(jobs, {"x": 1, "die": True}, **forked)


# ---------------------------------------------------------------- loss, adapter
@pytest.mark.parametrize("rows", [1 << 18, 16], ids=["at once", "row by row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_leaves_padding_out(rows, dtype, monkeypatch):
    from mconv.train.model import cross_entropy, engine
    from mconv.train.model.loss import TrueVocabLoss

    monkeypatch.setitem(cross_entropy.ROWS, "cpu", rows)
    engine.init(engine.Parallel())
    logits = (5 * torch.randn(5, 2, 16)).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    # weights as a loss scale makes them: what is too small for fp16 before is not after
    labels, weights = torch.randint(0, 11, (2, 5)), 3000 * torch.rand(2, 5).double()
    ours = TrueVocabLoss(11)(labels, logits * 1.0)
    theirs = torch.nn.functional.cross_entropy(exact[..., :11].permute(1, 2, 0), labels, reduction="none")
    torch.testing.assert_close(ours, theirs.float())
    (ours * weights.float()).sum().backward()
    (theirs * weights).sum().backward()
    with torch.no_grad():
        alone = TrueVocabLoss(11)(labels, logits)
    engine.shutdown()
    rtol, atol = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-2, 1e-9), torch.float16: (2e-3, 1e-7)}[dtype]
    torch.testing.assert_close(logits.grad, exact.grad.to(dtype), check_stride=False, rtol=rtol, atol=atol)
    assert logits.grad[..., 11:].abs().max() == 0 and torch.equal(alone, ours)


def test_only_a_gradient_is_written_over_the_logits():
    from mconv.train.model import engine
    from mconv.train.model.loss import TrueVocabLoss

    engine.init(engine.Parallel())
    logits = torch.randn(5, 2, 16)
    before = logits.clone()
    TrueVocabLoss(11)(torch.zeros(2, 5, dtype=torch.long), logits)
    engine.shutdown()
    assert torch.equal(logits, before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the adapter is for machines without CUDA")
def test_the_adapter_sends_cuda_to_the_cpu_once():
    import mconv.train.megatron.imports  # noqa: F401 (importing megatron-core installs it)
    from mconv.train.megatron import cpu

    assert cpu.install() and cpu.install() and len(cpu._installed) == 1
    made = [
        torch.zeros(2, device="cuda"),
        torch.ones(2).cuda(),
        torch.ones(2).to("cuda"),
        torch.ones(2).to(device="cuda:0"),
    ]
    assert {tensor.device.type for tensor in made} == {"cpu"}
    assert torch.ones(1).type() == "torch.cuda.FloatTensor" and torch.ones(1).long().type() == "torch.LongTensor"
    assert torch.ones(2).type(torch.float64).dtype == torch.float64


def test_nothing_names_a_cuda_only_path():
    """Only cpu.py and mcore.py may know that there are two kinds of machines; the rest reads current_device()."""
    for path in Path(configs.__file__).parent.rglob("*.py"):
        assert 'device="cuda"' not in path.read_text() or path.name == "cpu.py", path


def test_adam_is_fused_for_the_length_of_a_step():
    from mconv.train.optim.optimizer import _fuse

    weights = [torch.nn.Parameter(torch.randn(7)) for _ in range(2)]
    weights[1].data.copy_(weights[0].data)
    fused, plain = (torch.optim.AdamW([weight], lr=0.1) for weight in weights)
    _fuse(fused)
    seen = []
    fused.register_step_pre_hook(lambda adam, *_: seen.append(adam.param_groups[0]["fused"]))
    for weight, optimizer in zip(weights, (fused, plain), strict=True):
        weight.grad = torch.ones(7)
        optimizer.step()
    assert seen == [True] and fused.param_groups[0]["fused"] is None, "what is saved does not know of it"
    torch.testing.assert_close(*weights)
