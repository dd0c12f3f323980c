"""Other families learn as LLaMA does: losses fall, do not depend on the layout, and the result goes home."""

import jobs
import pytest
from tiny import make_model, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.errors import ConfigError

SIZES = {"vocab_size": 90, "hidden_size": 32, "max_position_embeddings": 64, "initializer_range": 0.03}
WAYS = {
    "falcon-7b": {"tp": 2, "sequence_parallel": True},
    "falcon-7b-biases": {
        "tp": 4, "sequence_parallel": True, "recompute_granularity": "selective",
        "recompute_modules": ["core_attn", "mlp"],
    },
    "falcon-40b": {"tp": 2, "pp": 2, "vpp": 2, "sequence_parallel": True, "recompute_granularity": "full"},
    "falcon-11b": {"tp": 2, "sequence_parallel": True, "distributed_optimizer": True},
    "falcon-in-turn": {"tp": 2, "pp": 2, "sequence_parallel": True},
    "mistral-window": {
        "pp": 2, "vpp": 2, "distributed_optimizer": True, "recompute_granularity": "selective",
    },
    "qwen2-gqa": {"tp": 4, "sequence_parallel": True},
    "qwen3-tied": {"tp": 2, "pp": 2, "vpp": 2, "sequence_parallel": True, "recompute_granularity": "full"},
}  # fmt: skip


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return jobs.fields(
        tmp_path_factory.mktemp("run"), spec=None, train_iters=6, global_batch_size=8, seq_length=32,
        adam_eps=1e-6,  # what gradients near zero are divided by: with less, a step follows their rounding
    )  # fmt: skip


@pytest.mark.parametrize("model", WAYS)
def test_losses_fall_and_do_not_depend_on_the_layout(model, fields, world, tmp_path):
    hf = make_model(model, tmp_path / "hf", **SIZES)
    alone = jobs.train(**fields, load=str(hf))
    assert alone["losses"][0] == pytest.approx(4.5, abs=0.2) and alone["losses"][-1] < alone["losses"][0] - 0.3
    half = fields | {"train_iters": 3, "lr_decay_iters": 6}  # a layout that does something else does it in the first
    shared = world.run(jobs.train, **half, load=str(hf), **WAYS[model])[0]
    for name in ("losses", "grad_norms"):
        assert max(abs(a - b) for a, b in zip(shared[name], alone[name][:3], strict=True)) < 1e-4, name


HEADS = {
    "tp2": {"tp": 2}, "tp2 sp": {"tp": 2, "sequence_parallel": True},
    "tp4 sp distopt": {"tp": 4, "sequence_parallel": True, "distributed_optimizer": True},  # more ranks than groups
}  # fmt: skip


def test_norms_of_heads_learn_from_the_heads_of_every_rank(fields, world, tmp_path):
    """Each rank sees its own queries and keys, sequence parallelism or not; all keep one norm."""
    hf = make_model("qwen3-biases", tmp_path / "hf", **SIZES)
    half = {**fields, "load": str(hf), "train_iters": 3, "lr_decay_iters": 6}
    before, alone = tensors(hf), jobs.train_keeping_head_norms(**half)
    megatron, huggingface = "decoder.layers.0.self_attention.q_layernorm.weight", "model.layers.0.self_attn.q_norm.weight"
    assert len(alone["norms"]) == 2 * 4
    assert (alone["norms"][megatron] - before[huggingface]).abs().max() > 0.01
    for layout in HEADS.values():
        shared = world.run(jobs.train_keeping_head_norms, **half, **layout)
        assert max(abs(a - b) for a, b in zip(shared[0]["losses"], alone["losses"], strict=True)) < 1e-5
        assert max(away(rank["norms"], alone["norms"]) for rank in shared) < 1e-5, layout
    wrong = world.run(jobs.train_keeping_head_norms, **half, **HEADS["tp2"], summed=False)
    assert max(away(rank["norms"], alone["norms"]) for rank in wrong) > 1e-3


def away(ours, theirs):
    """The largest difference of any weight."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def test_norms_whose_gradients_are_not_added_up_are_seen(fields, world, tmp_path):
    """The planted fault: under sequence parallelism each rank would train its norms on its own positions."""
    hf = make_model("falcon-40b", tmp_path / "hf", **SIZES)
    shared = {**fields, "load": str(hf), "tp": 2, "sequence_parallel": True}
    right, wrong = (world.run(job, **shared)[0] for job in (jobs.train, jobs.train_without_marks))
    for name in ("losses", "grad_norms"):
        assert max(abs(a - b) for a, b in zip(right[name], wrong[name], strict=True)) > 3e-4, (
            name
        )  # three times the limit


def test_a_trained_falcon_goes_home(fields, world, tmp_path):
    """Trained on four ranks, stopped and resumed, exported: transformers computes what megatron-core does."""
    from mconv.verify import logits

    hf = make_model("falcon-40b", tmp_path / "hf", **SIZES)
    run = {**fields, "load": str(hf), "save": str(tmp_path / "run"), "tp": 2, "pp": 2, "sequence_parallel": True}
    first = world.run(jobs.train, **run, exit_after=3)[0]
    second = world.run(jobs.train, **run)[0]
    whole = world.run(jobs.train, **run | {"save": None})[0]
    assert first["losses"] + second["losses"] == whole["losses"]
    rewrite(plan.make(open_checkpoint(tmp_path / "run"), tmp_path / "out", format="hf"), step="meg2hf")
    probe = {"length": 64, "batch": 2, "seed": 7, "dtype": "fp32", "tp": 1, "pp": 1, "sequence_parallel": False}
    found = logits.work({"a": str(tmp_path / "out"), "b": str(tmp_path / "run"), **probe})
    assert found["passed"] and found["relative_max"] < 2e-5
    assert not logits.work({"a": str(hf), "b": str(tmp_path / "run"), **probe})["passed"]


def test_biases_that_the_model_has_not_stay_zero(fields, tmp_path):
    """Falcon has no linear bias, and its norms have one: these are trained, those are not there."""
    from mconv.train.model import engine

    spec = open_checkpoint(make_model("falcon-7b", tmp_path / "hf", **SIZES)).spec
    engine.init(engine.Parallel())
    model = engine.build(spec, padded_vocab_size=96, parallel=engine.Parallel(), dtype=jobs.torch.float32)
    biases = {name for name, p in model.named_parameters() if name.endswith("bias") and p.requires_grad}
    norms = {f"decoder.layers.{i}.input_layernorm.bias" for i in range(4)}
    assert biases == {*norms, "decoder.final_layernorm.bias"}


def test_alibi_is_refused(fields, tmp_path):
    hf = make_model("falcon-rw", tmp_path / "hf", **SIZES)
    with pytest.raises(ConfigError, match=r"hf has ALiBi positions"):
        jobs.train(**fields, load=str(hf))
