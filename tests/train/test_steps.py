"""What a step does: optimizers, precision, dropout, frozen weights, guards, and what is measured of it."""

import math
import re
from pathlib import Path

import jobs
import pytest
import torch

from mconv.errors import CheckFailed, ConfigError

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-lm" / "train-logs"
EVALUATED = {"split": "80,10,10", "eval_iters": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The fields of a run that every test shares: a tiny HF model and real tokenized text."""
    return jobs.fields(tmp_path_factory.mktemp("steps"), train_iters=6, global_batch_size=8, seq_length=32)


@pytest.fixture(scope="module")
def alone(run):
    """The run at tp 1, pp 1, dp 1, in fp32."""
    return jobs.train(**run)


def said(**fields):
    """(result, lines) of a run."""
    from mconv.train.config import make
    from mconv.train.loop import train

    lines = []
    return train(make(fields), say=lines.append), lines


def shown(lines, field):
    """A field of the lines that Megatron-LM's parsers read; None where a line lacks it."""
    found = [re.search(rf"{field}: +([^ ]+) \|", line) for line in lines if " iteration  " in line]
    return [float(match[1]) if match else None for match in found]


RAMP = {"train_iters": None, "train_samples": 40, "rampup_batch_size": [4, 4, 12], "lr_warmup_samples": 8}
RESUMES = {
    "sgd": {"optimizer": "sgd", "lr": 0.3},
    "sgd without momentum, bf16": {"optimizer": "sgd", "lr": 0.3, "sgd_momentum": 0.0, "bf16": True},
    "dropout": {"hidden_dropout": 0.2, "attention_dropout": 0.3},
    "fp16 that overflows": {"fp16": True, "initial_loss_scale": 2.0**20, "hysteresis": 1, "loss_scale_window": 2},
    "nothing but overflows": {"fp16": True},
    "nothing but overflows, shared": {"fp16": True, "distributed_optimizer": True},
    "frozen layers": {"freeze": ["embedding", "layers.0-1", "norms"]},
    "frozen layers, shared": {"freeze": ["layers.1"], "distributed_optimizer": True},
    "growing batches": RAMP,
    "skipped spikes": {"lr": 5.0, "clip_grad": 0.0, "spike_factor": 1.2, "spike_window": 1, "on_spike": "skip"},
}


@pytest.mark.parametrize("name", RESUMES)
def test_resumed_is_bit_equal(name, run, tmp_path):
    fields = {key: value for key, value in (run | RESUMES[name]).items() if value is not None}
    whole = jobs.train(**fields)
    first = jobs.train(**fields, save=str(tmp_path), exit_after=3)
    second = jobs.train(**fields, save=str(tmp_path))
    assert len(first["losses"]) == 3 and len(whole["losses"]) > 4
    for numbers in ("losses", "grad_norms"):
        assert first[numbers] + second[numbers] == whole[numbers]


# ---------------------------------------------------------------- precision
def test_three_overflows_with_a_hysteresis_of_two(run):
    """The public log's: the first overflow keeps the scale."""
    _, lines = said(**run | {"train_iters": 3}, fp16=True)
    assert shown(lines, "loss scale") == [2.0**32, 2.0**31, 2.0**30]
    assert shown(lines, "number of skipped iterations") == [1, 1, 1]
    assert shown(lines, "lm loss") == shown(lines, "grad norm") == [None] * 3


def test_overflows_that_no_lower_scale_can_end_stop_the_run(run):
    """Else a run would print skipped steps for days: the model's own gradients are too large."""
    fixed, falling = {"loss_scale": 2.0**40}, {"initial_loss_scale": 2.0**31, "min_loss_scale": 2.0**30, "hysteresis": 1}
    for more, iteration in ((fixed, 3), (falling, 3)):
        with pytest.raises(
            CheckFailed, match=rf"the lowest that is allowed at iteration {iteration} .*3 in a row; max_skips is 2"
        ):
            jobs.train(**run, **more, fp16=True, max_skips=2)


def test_a_static_loss_scale_changes_nothing_but_rounding(run, alone):
    scaled = jobs.train(**run, fp16=True, loss_scale=1024.0)
    assert scaled["losses"] == pytest.approx(alone["losses"], abs=0.02)
    assert scaled["grad_norms"] == pytest.approx(alone["grad_norms"], rel=0.02)


# ---------------------------------------------------------------- dropout
def test_dropout_is_asked_for_and_not_in_evaluation(run, alone):
    for field in ("hidden_dropout", "attention_dropout"):
        assert jobs.train(**run | {"train_iters": 1}, **{field: 0.3})["losses"][0] != alone["losses"][0]
    evaluated = [jobs.train(**run, **EVALUATED, eval_only=True, attention_dropout=p)["test"] for p in (0.0, 0.5)]
    assert evaluated[0] == evaluated[1]


def test_recomputed_attention_drops_the_same(run):
    from mconv.train.megatron.imports import tensor_parallel
    from mconv.train.model import engine, layers
    from mconv.train.model.attention import CoreAttention

    parallel = engine.Parallel()
    config = layers.transformer_config(jobs.SPEC, parallel, dtype=torch.float32, attention_dropout=0.5)
    attention, query = CoreAttention(config), torch.randn(16, 1, 2, 8, requires_grad=True)
    gradients = []
    for recompute in (False, True):
        engine.init(parallel)
        call = (query, query, query, None)
        out = tensor_parallel.checkpoint(attention, False, *call) if recompute else attention(*call)
        query.grad = None
        out.square().sum().backward()
        gradients.append(query.grad)
    torch.testing.assert_close(*gradients)  # another mask would be far off


def test_ranks_that_share_heads_drop_other_weights_of_theirs(world):
    found = world.run(jobs.dropped)
    (heads, between), (others, same), again, _ = found
    assert heads != others and between == same
    assert again == (heads, between)  # another replica, the same place in the model


# ---------------------------------------------------------------- frozen weights
def test_frozen_weights_stay(run, tmp_path):
    freeze = ["embedding", "layers.0-1", "norms", "decoder.layers.3.mlp.*"]
    _, lines = said(**run | {"train_iters": 2}, freeze=freeze, save=str(tmp_path))
    # layers 2 and 3: qkv and output projection; layer 2: gate, up and down; and the output layer
    trained = 2 * (64 * 32 + 32 * 32) + 3 * 48 * 32 + 96 * 32
    assert any(f"training {trained} of " in line for line in lines)
    before, after = (_weights(folder) for folder in (run["load"], _exported(tmp_path)))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("layers.2.self_attn", "layers.3.self_attn", "layers.2.mlp", "lm_head")
    assert changed == {name for name in before if any(part in name for part in parts)}


def _weights(folder):
    from safetensors.torch import load_file

    return {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}


def _exported(folder):
    from mconv.cli.app import run as cli

    assert cli(["meg2hf", str(folder), "--out", str(folder / "hf")]) == 0
    return folder / "hf"


@pytest.mark.parametrize(
    ("freeze", "message"),
    [(["layers.4"], "'layers.4' names no weight"), (["norm"], "'norm' names no weight"), (["*"], "nothing to train")],
)
def test_what_cannot_be_frozen_is_refused(freeze, message, run):
    with pytest.raises(ConfigError, match=message):
        jobs.train(**run, freeze=freeze)


def test_layers_that_are_computed_again_above_a_frozen_embedding_have_their_gradients(run):
    from mconv.convert.checkpoint.open import open_checkpoint
    from mconv.train.megatron.imports import quiet
    from mconv.train.model import engine, freeze, weights

    parallel, tokens, found = engine.Parallel(), jobs.tokens(), []
    engine.init(parallel)
    again = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    for more in ({}, again):
        model = engine.build(jobs.SPEC, padded_vocab_size=jobs.PADDED, parallel=parallel, dtype=torch.float32, **more)
        weights.fill(model, open_checkpoint(run["load"]).source, parallel, padded_vocab_size=jobs.PADDED)
        freeze.freeze([model], ["embedding", "layers.0"])
        with quiet():
            model(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None, labels=tokens).mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert len(found[0]) == 6 * 3 + 2  # three layers, the last norm and the output layer
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- guards
@pytest.fixture
def poisoned(run, monkeypatch):
    """The MLP of layer 2 is not finite for sample 19, which is in the third step."""
    from mconv.train.model import engine

    fill, seen, bad = engine._fill, [], []

    def fill_and_hook(model, *args, **options):
        fill(model, *args, **options)
        model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        model.decoder.layers[2].mlp.register_forward_hook(
            lambda _, __, out: (out[0] * float("nan"), out[1]) if bad and torch.equal(seen[-1], bad[0]) else out
        )

    monkeypatch.setattr(engine, "_fill", fill_and_hook)
    jobs.train(**run | {"train_iters": 3})
    bad.append(seen[19])


def test_a_loss_that_is_not_finite_stops_and_says_where(run, poisoned):
    message = (
        "loss is nan at iteration 3 (samples 16 to 23), first in decoder.layers.2.mlp of samples 19 to 19 on rank 0; "
        "there is no checkpoint of this run"
    )
    with pytest.raises(CheckFailed, match=re.escape(message)):
        jobs.train(**run)


def test_a_loss_that_is_not_finite_is_left_out(run, alone, poisoned, tmp_path):
    """The step costs its samples, and nothing else of the run moves; a run resumed right after it goes on the same."""
    fields = run | {"on_nan": "skip"}
    whole, lines = said(**fields)
    assert shown(lines, "number of nan iterations") == shown(lines, "number of skipped iterations") == [0, 0, 1, 0, 0, 0]
    rates = shown(lines, "learning rate")
    assert rates[2] == rates[1] > rates[3] and whole["losses"][:2] == alone["losses"][:2]
    assert any("layers.2.mlp of samples 19 to 19 on rank 0; the step is skipped" in line for line in lines)
    first = jobs.train(**fields, save=str(tmp_path), exit_after=3)
    second = jobs.train(**fields, save=str(tmp_path))
    assert second["losses"] == whole["losses"][3:] and first["grad_norms"] == whole["grad_norms"][:3]
    with pytest.raises(CheckFailed, match=r"11 in a row; max_skips is 10"):
        jobs.train(**run | {"train_iters": 20, "lr": 1e30, "clip_grad": 0.0, "on_nan": "skip"})


def test_a_batch_without_a_token_that_counts_changes_nothing(run, alone, monkeypatch):
    """A loss of 0 over 0 is no fault of the model: prompts without an answer, cut off."""
    from mconv.train.loop import feed

    whole = feed.batches

    def emptied(*args, **options):
        for number, batch in enumerate(whole(*args, **options)):
            yield batch | ({"loss_mask": batch["loss_mask"] * 0} if 8 <= number < 16 else {})

    monkeypatch.setattr(feed, "batches", emptied)
    found, lines = said(**run | {"train_iters": 3})
    assert any("no token counts in the loss at iteration 2 (samples 8 to 15); the step is skipped" in x for x in lines)
    assert shown(lines, "number of skipped iterations") == [0, 1, 0]
    assert found["losses"][0] == alone["losses"][0] and found["losses"][2] != alone["losses"][2]


def test_a_spike_is_told_or_stops(run):
    wild = run | {"train_iters": 3, "lr": 5.0, "clip_grad": 0.0, "spike_factor": 1.2, "spike_window": 1}
    _, lines = said(**wild)
    assert any(re.search(r"loss \d.* is more than 1.2 times 4.5.* at iteration 2 \(samples 8 to 15\)$", x) for x in lines)
    with pytest.raises(CheckFailed, match="the median of the last 1 at iteration 2"):
        jobs.train(**wild, on_spike="stop")


def test_a_line_of_nan_is_megatron_lms():
    """Which prints no loss then, and counts no iteration, since none was skipped."""
    from datetime import datetime

    from mconv.train.logs import log

    step = log.Step(iteration=2, consumed_samples=16, loss=float("nan"), grad_norm=float("nan"), lr=7.5e11,
                    seconds=0.0639, tokens_per_second=1.0)  # fmt: skip
    line = log.line(log.mean([step]), train_iters=6, global_batch_size=8, now=datetime(2026, 11, 20, 10, 53, 1, 436693))
    if not GOLDEN.is_dir():
        pytest.skip("the golden logs are not beside the repository")
    assert line in (GOLDEN / "nan.log").read_text().splitlines()[776]


# ---------------------------------------------------------------- evaluation
def test_what_is_measured_is_what_transformers_measures(run):
    from transformers import AutoModelForCausalLM

    from mconv.train.data import dataset
    from mconv.train.data.sources import Blend
    from mconv.train.model import engine

    measured = jobs.train(**run, **EVALUATED, eval_only=True)["validation"]
    engine.init(engine.Parallel())
    _, built, _ = dataset.datasets(
        Blend([Path(run["data"][0])], None), split=EVALUATED["split"], seq_length=32, seed=1234, samples=(48, 16, 16),
        cache=Path(run["data_cache"]),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(run["load"], dtype=torch.float32).eval()
    tokens, labels = (torch.stack([built[i % len(built)][name] for i in range(16)]) for name in ("tokens", "labels"))
    with torch.no_grad():
        logits = model(tokens).logits
    loss = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    right = float((logits.argmax(-1) == labels).float().mean())
    assert measured["loss"] == pytest.approx(loss, abs=1e-5) and 0 < right == pytest.approx(measured["accuracy"])
    assert measured["perplexity"] == pytest.approx(2.718281828459045**loss, rel=1e-4)
    for alone in ({"data": None, "test_data": run["data"]}, {"split": "0,0,100"}):
        of_all = jobs.train(**run | EVALUATED | {"split": None} | alone, eval_only=True)
        assert of_all.keys() & {"validation", "test"} == {"test"} and of_all["test"]["accuracy"] > 0


def test_evaluating_alone_measures_what_the_end_of_the_run_did(run, tmp_path):
    fields = run | EVALUATED | {"train_iters": 2}
    trained, lines = said(**fields, eval_interval=1, save=str(tmp_path / "run"))
    text = next(line for line in lines if "at iteration 2 on test set" in line)
    rule, shown_line, _ = text.split("\n")
    values = f"lm loss value: {trained['test']['loss']:.6E} | lm loss PPL: {trained['test']['perplexity']:.6E} | "
    assert shown_line.startswith(f" validation loss at iteration 2 on test set | {values}")
    assert rule == "-" * (len(shown_line) + 1)
    before = sorted(tmp_path.rglob("*"))
    again = jobs.train(**fields | {"load": str(tmp_path / "run")}, eval_interval=1, eval_only=True)
    assert again["test"] == trained["test"] and again["losses"] == []
    assert sorted(tmp_path.rglob("*")) == before


def test_perplexity_is_that_of_any_loss():
    from mconv.train.loop.evaluate import perplexity

    assert perplexity(25.0) == pytest.approx(7.2e10, rel=1e-2) and perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan)), "and not exp(20)"


def test_answers_are_told_from_what_counts_for_less():
    from mconv.train.model.loss import counts

    right = torch.tensor([[True, True, False, True]])
    assert counts(right, torch.tensor([[0.0, 0.1, 1.0, 1.0]])).tolist() == [2, 3, 1, 2]


# ---------------------------------------------------------------- many ranks
SPREAD = {
    "sgd, tp2 pp2 sp": {"optimizer": "sgd", "lr": 0.3, "tp": 2, "pp": 2, "sequence_parallel": True},
    "growing batches, dp4": RAMP,
    "a stage with nothing to train": {"freeze": ["embedding", "layers.0-1"], "pp": 2, "distributed_optimizer": True},
}
LAYOUT = ("tp", "pp", "sequence_parallel", "distributed_optimizer")


@pytest.mark.parametrize("name", SPREAD)
def test_a_layout_changes_nothing(name, run, world, tmp_path):
    """Losses and what is measured at the end, resumed on the way."""
    fields = {key: value for key, value in (run | SPREAD[name]).items() if value is not None}
    fields |= EVALUATED | {"eval_interval": 100}
    whole = jobs.train(**{key: value for key, value in fields.items() if key not in LAYOUT})
    first = world.run(jobs.train, **fields, save=str(tmp_path), exit_after=2)[0]
    second = world.run(jobs.train, **fields, save=str(tmp_path))[0]
    for numbers in ("losses", "grad_norms"):
        assert first[numbers] + second[numbers] == pytest.approx(whole[numbers], abs=1e-4)
    for share in ("validation", "test"):
        assert second[share] == pytest.approx(whole[share], rel=1e-4)
