"""`mconv plan`: the guides' own figures, exactly; and memory against what tiny runs really hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
import tiny

from mconv.cli.app import run as mconv
from mconv.errors import MconvError
from mconv.train.config import make
from mconv.train.estimate import memory
from mconv.train.estimate.plan import plan

pytestmark = pytest.mark.once

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


def test_a_ramp_lengthens_the_plan_and_adds_no_tokens():
    """1000 samples in batches of 32 are 31 steps; with a ramp they are more and smaller, of as many operations."""
    asked = AWS | {"tp": 8, "global_batch_size": 32, "train_samples": 1000}
    flat, ramped = plan(make(asked)), plan(make(asked | {"rampup_batch_size": [8, 8, 300]}))
    assert (flat.iterations, ramped.iterations) == (31, 45)
    assert ramped.tokens == flat.tokens == 1000 * 2048 and ramped.flops == flat.flops


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
        ("gpt2-untied", {}), ("llama-mha", {"optimizer": "sgd"}), ("qwen3-gqa", {}),
        # parts of it: below the first that is trained nothing is kept, and of a frozen linear no input
        ("llama-gqa", {"freeze": ["embedding", "layers.0-1", "norms"], "bf16": True}),
        ("gpt2-tied", {"freeze": ["mlp", "biases"], "attention_dropout": 0.1, "hidden_dropout": 0.1}),
        ("falcon-40b-biases", {"freeze": ["embedding", "layers.0-3"], "distributed_optimizer": True}),
        ("qwen3-biases", {"freeze": ["embedding", "*.input_layernorm.*", "*.linear_qkv.*"]}),
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
