"""`mconv plan`: the guides' own figures, exactly; and memory against what tiny runs really hold."""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
import tiny

from mconv.cli.app import run as mconv
from mconv.errors import MconvError
from mconv.train.config import make
from mconv.train.estimate import flops, memory, speed
from mconv.train.estimate.plan import iterations, plan, setting_of
from mconv.train.estimate.storage import BESIDE, kept
from mconv.train.estimate.suggest import flags
from mconv.train.estimate.units import duration
from mconv.train.length import length
from mconv.train.model.trains import Trains

AWS = {
    "init": "random", "preset": "gpt3-7.5b", "data": ["x"], "lr": 6e-5, "seq_length": 2048, "global_batch_size": 288,
    "train_samples": 146484375, "split": "98,2,0", "eval_interval": 1000, "eval_iters": 40, "fp16": True,
}  # fmt: skip


# ---- the guides' figures ---------------------------------------------------------------------------------------------
def test_the_log_of_the_aws_guide():
    """Parameters on rank (4, 0), padded vocabulary, iterations, and the sizes of the datasets."""
    made = plan(make(AWS | {"tp": 8}))
    assert made.ranks[0].parameters == 941594624
    assert (made.layout.padded_vocab, made.layout.padded_vocab - made.origin.spec.vocab_size) == (51200, 943)
    assert made.iterations == 508626
    assert (made.samples.train, made.samples.validation, made.samples.test) == (146484375, 5863680, 11520)


def test_stages_together_have_the_model_and_the_tied_copy():
    """tp 4 x pp 2 of the same guide: what two stages hold of one model, the last with a copy of the embedding."""
    first, last = plan(make(AWS | {"tp": 4, "pp": 2})).ranks
    vocabulary, hidden = 50688 // 4, 4096
    assert first.layers == last.layers == 18
    assert first.parameters - last.parameters == 2048 * hidden - 2 * hidden  # positions there, the last norm here
    assert last.parameters > vocabulary * hidden


def test_days_and_operations():
    made = plan(make(AWS | {"tp": 8}), tokens_per_second=1e5)
    assert made.tokens == 146484375 * 2048
    assert made.pace.days == pytest.approx(146484375 * 2048 / 1e5 / 86400)
    assert made.pace.tflops == pytest.approx(1e5 * made.flops_per_token / 8 / 1e12)
    same = plan(make(AWS | {"tp": 8}), tflops=made.pace.tflops)
    assert same.pace.tokens_per_second == pytest.approx(1e5)
    assert plan(make(AWS | {"tp": 8}), tflops=1.0, endless=True).pace.days is None


@pytest.mark.parametrize(
    "fields",
    [
        {"train_iters": 7}, {"train_samples": 100}, {"train_samples": 1000, "rampup_batch_size": [8, 8, 300]},
        {"train_samples": 200, "rampup_batch_size": [4, 4, 300]},
    ],
    ids=str,
)  # fmt: skip
def test_steps_are_counted_as_megatron_core_counts_them(fields):
    config = make({"init": "random", "preset": "cineca-mt", "data": ["x"], "lr": 1.0, "global_batch_size": 32, **fields})
    assert iterations(config) == length(config).iterations


@pytest.mark.parametrize(
    "fields, world, says",
    [
        ({"tp": 3}, None, "tp 3 does not divide"),
        ({"pp": 5}, None, "36 layers cannot be divided evenly among pp 5"),
        ({"tp": 8}, 12, "tp 8 x pp 1 does not divide 12 ranks"),
        ({"tp": 8}, 40, "global_batch_size 288 is not a multiple of micro_batch_size 1 x 5 replicas"),
        ({"freeze": ["norms", "layers.36"]}, None, "freeze: 'layers.36' names no weight of this model"),
        ({"freeze": ["embedding", "layers.0-35", "norms"]}, None, "leaves nothing to train"),
        ({"lora_rank": 4, "lora_targets": ["q_proj"]}, None, "no 'q_proj'; it has c_attn, attn.c_proj, c_fc, mlp.c_proj"),
        ({"seq_length": 4096}, None, "seq_length 4096 is more than the model's 2048 positions"),
    ],
)
def test_what_the_run_would_refuse_the_plan_refuses(fields, world, says):
    with pytest.raises(MconvError, match=says):
        plan(make(AWS | fields), world=world)


# ---- memory, measured ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plan")


def fields_of(folder: Path, model: str, **more: object) -> dict[str, object]:
    """A run of a tiny model of `tests/tiny.py`, its weights drawn."""
    path = folder / model
    if not path.exists():
        tiny.make_model(model, path)
    return {
        "init": "random", "model": str(path), "data": ["x"], "lr": 1e-3, "train_iters": 1, "seq_length": 64,
        "micro_batch_size": 2, "global_batch_size": 4, "make_vocab_size_divisible_by": 8, **more,
    }  # fmt: skip


def check(measured: dict[str, int], planned: memory.Rank, *, sharing: bool = False) -> None:
    for name in ("parameters", "weights", "gradients"):
        assert getattr(planned, name) == measured[name], name
    assert planned.optimizer == pytest.approx(measured["optimizer"], rel=0.002 if sharing else 0)
    if os.environ.get("MCONV_SHOW"):
        print(f"\nactivations: {planned.activations} planned, {measured['activations']} measured, "
              f"{planned.activations / measured['activations']:.3f}")  # fmt: skip
    assert planned.activations == pytest.approx(measured["activations"], rel=0.1)


@pytest.mark.parametrize(
    "model, more",
    [
        ("llama-gqa", {}), ("llama-gqa", {"bf16": True}), ("llama-all-biases", {"distributed_optimizer": True}),
        ("llama-mlp-bias", {"bf16": True, "distributed_optimizer": True}), ("mistral-window", {"fp16": True}),
        ("falcon-7b", {"bf16": True}), ("falcon-40b-biases", {}), ("gpt2-tied", {"bf16": True}),
        ("gpt2-untied", {}), ("llama-mha", {"optimizer": "sgd"}),
        # parts of it: below the first that is trained nothing is kept, and of a frozen linear no input
        ("llama-gqa", {"freeze": ["embedding", "layers.0-1", "norms"], "bf16": True}),
        ("gpt2-tied", {"freeze": ["mlp", "biases"], "attention_dropout": 0.1, "hidden_dropout": 0.1}),
        ("falcon-40b-biases", {"freeze": ["embedding", "layers.0-3"], "distributed_optimizer": True}),
        ("falcon-7b", {"lora_rank": 4, "bf16": True}), ("gpt2-untied", {"lora_rank": 4}),
        ("llama-all-biases", {"lora_rank": 4, "lora_targets": ["v_proj", "down_proj"], "lora_dropout": 0.1}),
        ("mistral-window", {"attention_dropout": 0.1, "bf16": True}),
    ],
    ids=str,
)  # fmt: skip
def test_memory_of_one_rank(model, more, folder):
    fields = fields_of(folder, model, **more)
    measured, planned = jobs.memory(**fields), plan(make(fields), cpu=True).ranks[0]
    check(measured, planned)
    whole = plan(make(fields_of(folder, model)), cpu=True).ranks[0]
    if more.keys() & {"freeze", "lora_rank"}:  # what is left out is beyond the tolerance
        assert planned.trained < whole.trained and planned.gradients < 0.9 * whole.gradients


def test_a_gpu_keeps_nothing_of_dropped_attention(folder):
    kept = [
        plan(make(fields_of(folder, "llama-gqa", attention_dropout=share)), cpu=cpu).ranks[0].activations
        for share, cpu in ((0.0, False), (0.1, False), (0.1, True))
    ]
    assert kept[0] == kept[1] < kept[2] / 2


def test_computing_attention_again_drops_its_scores(folder):
    more = {"attention_dropout": 0.1, "recompute_granularity": "selective"}
    dry, wet = (plan(make(fields_of(folder, "llama-gqa", **x)), cpu=True).ranks[0] for x in ({}, more))
    assert wet.activations - wet.again == dry.activations and wet.again > 0


def test_dropout_keeps_a_mask_each_time(folder):
    """Nine of them, behind the embedding and twice in each layer; of fp32 here, and of one byte each on CUDA."""
    dry, wet = (jobs.memory(**fields_of(folder, "gpt2-tied", hidden_dropout=share)) for share in (0.0, 0.1))
    planned = [
        plan(make(fields_of(folder, "gpt2-tied", hidden_dropout=share))).ranks[0].activations for share in (0.0, 0.1)
    ]
    assert planned[1] - planned[0] == 9 * 48 * 2 * 64
    assert wet["activations"] - dry["activations"] == 4 * (planned[1] - planned[0])


@pytest.mark.parametrize(
    "more",
    [
        {"sequence_parallel": True, "distributed_optimizer": True, "bf16": True}, {"distributed_optimizer": False},
        {"model": "llama-gqa", "lora_rank": 4, "sequence_parallel": True, "distributed_optimizer": True},
        {"model": "llama-mqa", "lora_rank": 4, "lora_dropout": 0.1},  # more ranks than query groups
    ],
    ids=["sp, distributed", "neither", "adapters, sp, distributed", "adapters"],
)  # fmt: skip
def test_memory_of_ranks_that_share(more, folder, world):
    fields = fields_of(folder, **{"model": "gpt2-tied", "tp": 2, **more})
    check(world.run(jobs.memory, **fields)[0], plan(make(fields), world=4, cpu=True).ranks[0],
          sharing=bool(fields.get("distributed_optimizer")))  # fmt: skip


def test_earlier_stages_keep_more_micro_batches():
    kept = [rank.activations for rank in plan(make(AWS | {"tp": 4, "pp": 4})).ranks]
    one = plan(make(AWS | {"tp": 4, "pp": 4, "global_batch_size": 1})).ranks
    assert kept[:3] == [n * rank.activations for n, rank in zip((4, 3, 2), one, strict=False)]
    assert kept[3] == one[3].activations


# ---- the command -----------------------------------------------------------------------------------------------------
def test_the_command_says_it_to_people_and_to_programs(capsys):
    flags = ["--preset", "gpt3-7.5b", "--tp", "8", "--train-samples", "146484375", "--global-batch-size", "288"]
    assert mconv(["plan", *flags, "--tflops", "100"]) == 0
    text = capsys.readouterr().out
    assert (
        "941,594,624" in text
        and "943 dummy tokens" in text
        and "209.8 days" in text
        and "disk" in text
        and "max_position_embeddings" in text
    )
    assert mconv(["plan", *flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ranks"][0]["parameters"] == 941594624 and told["iterations"] == 508626 and told["pace"] is None
    assert mconv(["plan", "--preset", "llama2-7b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["iterations"] is None
    assert mconv(["plan", "--preset", "llama2-7b", "--lora-rank", "8", "--lora-targets", "q_proj", "v_proj"]) == 0
    assert "trained" in (text := capsys.readouterr().out) and "4,194,304" in text  # PEFT's figure for this model


def planned(capsys, line, code=0):
    """What `mconv plan` says to programs."""
    assert mconv(["plan", *line.split(), "--json"]) == code
    return json.loads(capsys.readouterr().out)


SEVEN = "--preset llama2-7b --bf16 --global-batch-size 256 "


@pytest.mark.parametrize(
    "seconds, says",
    [
        (0.2, "less than 1 s"), (45, "45 s"), (59.9, "60 s"), (24 * 60, "24 min"), (3599, "59 min"), (8640, "2 h 24 min"),
        (7200, "2 h"), (86399, "23 h 59 min"), (3.2 * 86400, "3.2 days"), (11.2 * 365 * 86400, "11 years"),
        (1.5 * 365 * 86400, "1.5 years"),
    ],
)  # fmt: skip
def test_times_are_said_in_the_units_that_matter(seconds, says):
    assert duration(float(seconds)) == says


def test_a_short_run_takes_hours_and_minutes(capsys):
    assert mconv(["plan", *SEVEN.split(), "--train-iters", "12", "--tflops", "400"]) == 0
    assert "400.0 TFLOP/s a rank: 24 min" in capsys.readouterr().out


def test_memory_that_fits_or_does_not(capsys):
    """2 GB and 5 % of a GPU are left; the fullest moment is the backward pass, or AdamW's square roots in the step."""
    told = planned(capsys, SEVEN + "--gpu-memory 80", code=1)["gpu_memory"]
    assert (told["memory"], told["usable"], told["fits"]) == (80 * 10**9, 74 * 10**9, False)
    one = plan(
        make({"init": "random", "preset": "llama2-7b", "bf16": True, "data": ["x"], "lr": 1, "train_iters": 1})
    ).ranks[0]
    assert told["stages"][0]["peak"] == one.peak == 18 * 6738415616 + max(one.activations, 4 * 6738415616)
    told = planned(capsys, SEVEN + "--gpu-memory 80 --world-size 8 --distributed-optimizer")["gpu_memory"]
    assert told["fits"] and told["would_fit"] == [] and told["stages"][0]["free"] > 0
    assert mconv(["plan", *SEVEN.split(), "--gpu-memory", "80", "--tp", "2", "--pp", "2"]) == 0
    assert (
        "fits        yes: the fullest rank (stage 0) needs" in (text := capsys.readouterr().out)
        and "74.0 GB of 80.0" in text
    )


@pytest.mark.parametrize(
    "line, first",
    [
        ("--world-size 8", "distributed_optimizer"),
        ("--world-size 8 --micro-batch-size 4 --distributed-optimizer", "micro_batch_size"),
        ("--tp 2 --micro-batch-size 2", "tp"), ("--world-size 4 --pp 2 --micro-batch-size 4", None),
    ],
)  # fmt: skip
def test_what_would_fit_does(line, first, capsys):
    """Each change that is named is tried: with it the same plan fits."""
    told = planned(capsys, f"{SEVEN}{line} --gpu-memory 80", code=1)
    changes = told["gpu_memory"]["would_fit"]
    assert changes and (first is None or first in changes[0]["fields"])
    for change in changes:
        words = f"{SEVEN}{line} {flags(change['fields'], whole=True)} --world-size {change['world']} --gpu-memory 80"
        last = {flag.split()[0]: flag for flag in re.findall(r"--\S+(?: (?!--)\S+)*", words)}  # a flag may be there twice
        fits = planned(capsys, " ".join(last.values()))["gpu_memory"]
        assert max(stage["peak"] for stage in fits["stages"]) == change["peak"]


def test_changes_that_fit_only_together_and_more_gpus(capsys):
    line = "--preset llama2-70b --bf16 --global-batch-size 64 --world-size 64 --gpu-memory 80"
    (change,) = planned(capsys, line, code=1)["gpu_memory"]["would_fit"]
    assert len(change["fields"]) > 1 and change["peak"] <= 74 * 10**9
    assert mconv(["plan", *line.split()]) == 1
    assert ", all together" in capsys.readouterr().out
    line = "--preset llama2-70b --bf16 --global-batch-size 64 --world-size 8 --gpu-memory 80"
    assert mconv(["plan", *line.split()]) == 1
    assert re.search(r"nothing on 8; .*--world-size (16|32) \(\1 GPUs\)", capsys.readouterr().out)


def test_suggestions_fit_and_are_in_order(capsys):
    base = "--preset llama2-13b --bf16 --global-batch-size 128 --world-size 16 --gpu-memory 80"
    told = planned(capsys, base + " --suggest")["suggestions"]
    assert len(told) == 5 and len({(one["fields"]["tp"], one["fields"]["pp"]) for one in told}) == 5
    seconds = [one["step"]["seconds"] for one in told]
    assert all(slow > fast * 0.98 for fast, slow in itertools.pairwise(seconds))  # in steps of 1 %
    for one in told:
        pasted = planned(capsys, f"{base} {one['flags']}")
        assert pasted["micro_batches"] == one["micro_batches"] and pasted["layout"]["dp"] == one["dp"]
        assert max(stage["peak"] for stage in pasted["gpu_memory"]["stages"]) == one["peak"] <= 74 * 10**9
    kept = planned(capsys, base + " --suggest --pp 2 --recompute-granularity full")["suggestions"]
    assert {one["fields"]["pp"] for one in kept} == {2}
    assert {one["fields"]["recompute_granularity"] for one in kept} == {"full"}


def test_suggestions_for_people(capsys):
    line = "plan --preset llama2-7b --bf16 --lora-rank 8 --world-size 8 --gpu-memory 80 --suggest"
    assert mconv(line.split()) == 0
    text = capsys.readouterr().out
    assert "global_batch_size 8 (the default; give yours)" in text and "\n1: " in text and "not a measurement" in text
    assert mconv([*line.split()[:-1], "--suggest", "--gpu-memory", "80"]) == 2
    assert mconv(["plan", "--preset", "llama2-70b", "--bf16", "--gpus", "1", "--gpu-memory", "80", "--suggest"]) == 1
    assert "no layout fits on 1 GPUs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, says",
    [
        ("--suggest --gpu-memory 80", "--suggest needs the GPUs: --world-size"),
        ("--suggest --gpus 8", "--suggest needs the GPUs"), ("--gpu-memory 1", "the GB of one GPU, such as 80"),
        ("--gpu-memory nan", "the GB of one GPU"), ("--suggest --gpus 7 --gpu-memory 80", "--global-batch-size 8 is not"),
    ],
)  # fmt: skip
def test_gpus_that_cannot_be(line, says, capsys):
    assert mconv(["plan", "--preset", "llama2-7b", *line.split()]) == 2
    assert says in capsys.readouterr().err


def test_a_steps_time_by_hand():
    """Operations over rate; the bubble of 3 stages of warm-up in chunks; imbalance of the stage with the output layer."""
    config = make({"init": "random", "preset": "llama2-7b", "bf16": True, "data": ["x"], "lr": 1, "train_iters": 1,
                   "pp": 4, "vpp": 2, "global_batch_size": 8})  # fmt: skip
    made = plan(config)
    setting = setting_of(config, Trains(), seq_length=4096, micro_batches=8, replicas=1, cpu=False)
    step = speed.step(config, made.origin.spec, made.layout, setting, trained=0, machine=speed.Machine(tflops=100.0))
    assert step.compute == pytest.approx(made.flops_per_iteration / (4 * 1e14))
    once = flops.forward(made.origin.spec, 4096)
    slowest = ((once.total - once.head) / 4 + once.head) / (once.total / 4)
    assert step.imbalance == pytest.approx(step.compute * (slowest - 1))
    assert step.bubble == pytest.approx(step.compute / 8 * slowest * 3 / 2)
    assert (step.recompute, step.tensor, step.data) == (0, 0, 0) and step.pipeline > 0
    pair = setting_of(config, Trains(), seq_length=4096, micro_batches=4, replicas=2, cpu=False)
    options = {"trained": 4 * 10**9, "machine": speed.Machine(tflops=100.0, node=1)}
    apart = speed.step(config, made.origin.spec, made.layout, pair, **options)
    assert apart.data == pytest.approx(4 * 2 * 1e9 / (2 * 40e9))  # an all-reduce of fp32 gradients
    hidden = dataclasses.replace(config, overlap_grad_reduce=True)
    assert speed.step(hidden, made.origin.spec, made.layout, pair, **options).data == 0
    full = dataclasses.replace(config, recompute_granularity="full")
    again = speed.step(full, made.origin.spec, made.layout, setting, trained=0, machine=speed.Machine(tflops=100.0))
    assert again.recompute == pytest.approx(step.compute / 3 * (once.total - once.head) / once.total)


def test_bytes_on_disk(capsys):
    """Half-precision weights, fp32 main weights and two moments."""
    disk = planned(capsys, SEVEN)["disk"]
    assert disk == {"checkpoint": 6738415616 * (2 + 12) + BESIDE, "export": 6738415616 * 2}
    config = make({"load": "x", "data": ["x"], "lr": 1, "train_iters": 100, "save": "s", "save_interval": 30})
    counts = [
        kept(dataclasses.replace(config, **fields), 100)
        for fields in ({}, {"keep_last": 2}, {"keep_last": 2, "keep_every": 60}, {"save_interval": 0})
    ]
    assert counts == [4, 2, 3, 1] and kept(config, None) is None


def test_presets_are_listed(capsys):
    assert mconv(["plan", "--presets", "--json"]) == 0
    told = {preset["name"]: preset for preset in json.loads(capsys.readouterr().out)}
    assert told["llama2-70b"]["spec"]["ffn_hidden_size"] == 28672 and len(told) == 14


def test_a_plan_needs_no_megatron_core():
    code = (
        "import sys; from mconv.cli.app import run; assert run(['plan', '--preset', 'gpt3-310.1b', '--tp', '8']) == 0; "
        "sys.exit(any(name.startswith('megatron') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
