"""Training: the same losses at every layout, and the unbroken run's losses after a resume."""

import dataclasses
import itertools
import json
import os

import jobs
import pytest

from mconv.errors import CheckFailed, ConfigError, FormatError, LayoutError

BF16 = 0.005
"""What losses may differ by in bfloat16; gradient norms by ten times as much."""
BOTH = {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True}
OVERLAP = {"overlap_grad_reduce": True}
LAYOUTS = {
    # of 4 layers, two chunks that hold the embedding or the head alone
    "pp2 vpp3 counted, dp2 overlap": {"pp": 2, "vpp": 3, **BOTH, **OVERLAP},
    "tp4 sp, selective": {
        "tp": 4, "sequence_parallel": True, "recompute_granularity": "selective",
        "recompute_modules": ["core_attn", "mlp"],
    },
    "tp2 pp2 first, distopt, full": {
        "tp": 2, "pp": 2, "decoder_first_pipeline_num_layers": 1, "distributed_optimizer": True,
        "recompute_granularity": "full", "recompute_method": "block",
    },
    "tp2 sp dp2 distopt overlap": {
        "tp": 2, "sequence_parallel": True, "distributed_optimizer": True, **OVERLAP, "overlap_param_gather": True,
    },
    "pp2 vpp2 dp2 distopt, selective": {
        "pp": 2, "vpp": 2, "distributed_optimizer": True, "micro_batch_size": 2, "recompute_granularity": "selective",
        "recompute_modules": ["mlp"],
    },
    "dp4 overlap, full": {**OVERLAP, "recompute_granularity": "full", "recompute_num_layers": 2},
    "tp2 pp2 vpp3 sp counted, distopt, full": {
        "tp": 2, "pp": 2, "vpp": 3, "sequence_parallel": True, **BOTH, "distributed_optimizer": True,
        "recompute_granularity": "full",
    },
    "pp4": {"pp": 4},
    "pp2 last, dp2 overlap, selective": {
        "pp": 2, "decoder_last_pipeline_num_layers": 1, **OVERLAP, "micro_batch_size": 2,
        "recompute_granularity": "selective",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The fields of a run that every test shares: a tiny HF model and real tokenized text."""
    folder = tmp_path_factory.mktemp("run")
    jobs.hf_folder(folder / "tied", jobs.variant(tied_embeddings=True, num_query_groups=4))
    return jobs.fields(
        folder, train_iters=10, min_lr=1e-3, global_batch_size=8, seq_length=32, lr_warmup_iters=2,
        adam_eps=1e-6,  # what gradients near zero are divided by: with less, a step follows their rounding
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(run):
    """The run at tp 1, pp 1, dp 1."""
    return jobs.train(**run)


HALF = {"train_iters": 4, "lr_decay_iters": 10}
"""Ten iterations make a model that has learnt; a layout that does something else does it in the first."""


def half(whole):
    return {name: whole[name][: HALF["train_iters"]] for name in ("losses", "grad_norms")}


def close(ours, theirs, *, to=1e-4):
    assert len(ours["losses"]) == len(theirs["losses"])
    for name in ("losses", "grad_norms"):
        assert max(abs(a - b) for a, b in zip(ours[name], theirs[name], strict=True)) < to, (name, ours, theirs)


def test_it_learns(alone):
    assert alone["losses"][0] == pytest.approx(4.5, abs=0.1)  # log 90: nothing is known yet
    assert alone["losses"][-1] < alone["losses"][0] - 0.5


def factors(layout):
    """What a layout is, of each thing that it can be."""
    tp, pp = layout.get("tp", 1), layout.get("pp", 1)
    return {
        "tp": tp > 1, "pp": pp > 1, "dp": tp * pp < 4, "vpp": layout.get("vpp", 1) > 1,
        "uneven": any(name.startswith(("decoder_", "account_")) for name in layout),
        "sp": layout.get("sequence_parallel", False), "distopt": layout.get("distributed_optimizer", False),
        "overlap": layout.get("overlap_grad_reduce", False), "recompute": layout.get("recompute_granularity", "none"),
    }  # fmt: skip


NEEDS = {"sp": "tp", "vpp": "pp", "uneven": "pp", "overlap": "dp"}
"""What cannot be without more than one rank of another kind."""


def test_the_layouts_cover_every_pair():
    rows = [factors(layout) for layout in LAYOUTS.values()]
    values = {name: {row[name] for row in rows} for name in rows[0]}
    assert all(len(found) > 1 for found in values.values())
    for a, b in itertools.permutations(values, 2):
        for x, y in itertools.product(values[a], values[b]):
            impossible = x is True and y is False and NEEDS.get(a) == b
            swapped = x is False and y is True and NEEDS.get(b) == a
            assert impossible or swapped or any((row[a], row[b]) == (x, y) for row in rows), (a, x, b, y)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_do_not_depend_on_the_layout(layout, run, alone, world):
    results = world.run(jobs.train, **run | HALF, **LAYOUTS[layout])
    assert all(result["losses"] == results[0]["losses"] for result in results)
    close(results[0], half(alone))
    if os.environ.get("MCONV_SHOW"):
        worst = max(abs(a - b) for a, b in zip(results[0]["losses"], alone["losses"], strict=False))
        norm = max(abs(a - b) for a, b in zip(results[0]["grad_norms"], alone["grad_norms"], strict=False))
        print(f"\n{layout}: {results[0]['losses'][0]:.6f} .. {results[0]['losses'][-1]:.6f}, {worst:.1e}, {norm:.1e}")


def test_tied_embeddings_do_not_depend_on_the_layout(run, world):
    tied = run | HALF | {"load": run["load"].replace("/hf", "/tied")}
    whole = jobs.train(**tied)
    close(world.run(jobs.train, **tied, tp=2, pp=2, vpp=2, sequence_parallel=True)[0], whole)


def test_chunks_that_are_mixed_up_are_seen(run, alone, world):
    """The planted fault: each stage takes its chunks' layers in the other order."""
    short = run | {"train_iters": 3, "pp": 2, "vpp": 2}
    wrong = world.run(jobs.train_with_chunks_mixed_up, **short)[0]
    assert max(abs(a - b) for a, b in zip(wrong["grad_norms"], alone["grad_norms"], strict=False)) > 1e-3


def test_bf16_does_not_depend_on_the_layout_but_for_rounding(run, world):
    """docs/train.md has what was measured; a sum of many roundings in another order is all that there is."""
    fields = run | HALF | {"bf16": True}
    whole = jobs.train(**fields)
    shared = world.run(jobs.train, **fields, **LAYOUTS["tp2 pp2 vpp3 sp counted, distopt, full"])[0]
    for name, limit in {"losses": BF16, "grad_norms": 20 * BF16}.items():
        assert max(abs(a - b) for a, b in zip(shared[name], whole[name], strict=True)) < limit, name


def test_the_loss_does_not_depend_on_the_padding(run, alone):
    wide = jobs.train(**run | HALF | {"make_vocab_size_divisible_by": 64})
    close(wide, half(alone), to=1e-5)


def test_another_seed_or_rate_is_another_run(run):
    short = run | {"train_iters": 3, "lr_warmup_iters": 1}
    # Adam hardly sees the size of gradients: to be seen, a clip has to bring them near its epsilon.
    base = jobs.train(**short)
    for change in ({"seed": 1}, {"lr": 2e-2}, {"weight_decay": 0.5}, {"clip_grad": 1e-6}, {"adam_beta2": 0.5}):
        assert jobs.train(**short | change)["losses"] != base["losses"], change


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("distributed", [False, True], ids=["plain", "distopt"])
def test_resumed_alone_is_bit_equal(bf16, distributed, run, tmp_path):
    """Not a round trip of files: the losses of the run that was never stopped."""
    fields = run | HALF | {"bf16": bf16, "distributed_optimizer": distributed}
    whole = jobs.train(**fields, save=str(tmp_path / "whole"))
    first = jobs.train(**fields, save=str(tmp_path / "cut"), exit_after=2)
    second = jobs.train(**fields, save=str(tmp_path / "cut"))
    assert first["losses"] + second["losses"] == whole["losses"]
    assert first["grad_norms"] + second["grad_norms"] == whole["grad_norms"]
    log = [json.loads(line)["loss"] for line in (tmp_path / "cut" / "train.jsonl").read_text().splitlines()]
    assert log == whole["losses"]


def test_resumed_by_many_ranks_is_bit_equal(run, alone, world, tmp_path):
    for name, layout in {
        "a": {"pp": 2, "vpp": 2, "distributed_optimizer": True, **OVERLAP, "overlap_param_gather": True},
        "b": {"tp": 2, "pp": 2, "sequence_parallel": True},
    }.items():
        fields = run | HALF | layout
        whole = world.run(jobs.train, **fields)[0]
        first = world.run(jobs.train, **fields, save=str(tmp_path / name), exit_after=2)[0]
        second = world.run(jobs.train, **fields, save=str(tmp_path / name))[0]
        assert first["losses"] + second["losses"] == whole["losses"]
        assert first["grad_norms"] + second["grad_norms"] == whole["grad_norms"]


def test_resumed_at_another_layout(run, alone, world, tmp_path):
    """tp 2 x pp 2 with two chunks, then uneven stages x dp 2, then one rank alone."""
    save = {"save": str(tmp_path), "distributed_optimizer": True}
    first = world.run(jobs.train, **run, **save, tp=2, pp=2, vpp=2, exit_after=3)[0]
    second = world.run(jobs.train, **run, **save, pp=2, decoder_first_pipeline_num_layers=1, exit_after=6)[0]
    third = jobs.train(**run, **save)
    joined = {name: first[name] + second[name] + third[name] for name in ("losses", "grad_norms")}
    close(joined, alone)


def test_a_killed_save_is_not_seen(run, alone, tmp_path, monkeypatch):
    from mconv.train.checkpoints import folders, metadata

    fields = run | {"save": str(tmp_path), "save_interval": 2}
    jobs.train(**fields, exit_after=2)
    for module, dies_in in ((metadata, "finish"), (folders, "publish"), (folders, "move_tracker")):
        with monkeypatch.context() as patch:
            patch.setattr(module, dies_in, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                jobs.train(**fields, exit_after=4)
        assert folders.latest(tmp_path) == 2
    assert jobs.train(**fields)["losses"] == alone["losses"][2:]
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == [f"iter_{i:07d}" for i in (2, 4, 6, 8, 10)]
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_is_a_checkpoint(run, world, tmp_path):
    """What training saves, conversion opens, at its true layout; its weights are those that training ended with."""
    from mconv.convert.checkpoint.open import open_checkpoint
    from mconv.shard.layout import Layout
    from mconv.shard.stages import Uneven

    result = world.run(jobs.train, **run, save=str(tmp_path), pp=2, vpp=3, **BOTH)[0]
    opened = open_checkpoint(tmp_path)
    assert (opened.spec, opened.iteration, str(opened.path)) == (jobs.SPEC, 10, result["saved"])
    counted = Uneven(embedding=True, loss=True)
    assert opened.layout == Layout(pp=2, vpp=3, padded_vocab=96, uneven=counted)
    assert opened.manifest["layout"] == dataclasses.asdict(opened.layout)
    again = jobs.train(**run | {"load": str(tmp_path), "train_iters": 3, "finetune": True})
    assert again["losses"][0] < result["losses"][0] - 0.5


def test_nan_stops_the_run(run, tmp_path):
    message = r"gradient norm is nan at iteration 2 \(samples 8 to 15\), first in the gradient of"
    with pytest.raises(CheckFailed, match=message):
        jobs.train(**run | {"lr": 1e30, "clip_grad": 0.0, "lr_warmup_iters": 0})


def test_evaluation_is_of_validation_data(run, tmp_path):
    fields = {"save": str(tmp_path), "split": "80,20,0", "eval_interval": 5, "eval_iters": 2}
    jobs.train(**run, **fields)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    losses = {line["iteration"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert set(losses) == {5, 10} and losses[10] < losses[5] < 4.5


REFUSALS = {
    "3 replicas": ({"global_batch_size": 7, "micro_batch_size": 2}, ConfigError, "7 is not a multiple"),
    "units": (
        {"recompute_granularity": "full", "recompute_num_layers": 3},
        ConfigError,
        "recompute_num_layers 3 does not divide a chunk's 4 layers",
    ),
    "world": ({"tp": 2}, LayoutError, "does not divide the world of 1"),
    "long": ({"seq_length": 65}, ConfigError, "more than the model's 64 positions"),
    "no data": ({"data": ["/nowhere/x"]}, FormatError, "/nowhere/x.bin: no such file"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name, run):
    change, kind, message = REFUSALS[name]
    with pytest.raises(kind, match=message):
        jobs.train(**run | change)
