"""Python's garbage collected by hand, and the other flags of swiss-ai's 70B launcher."""

import dataclasses
import gc

import pytest

from mconv.train.config import TrainConfig, aliases
from mconv.train.loop import garbage

pytestmark = pytest.mark.once
LAUNCHER_70B = """
transformer-impl use-precision-aware-optimizer main-grads-dtype num-layers hidden-size ffn-hidden-size
num-attention-heads group-query-attention num-query-groups max-position-embeddings position-embedding-type rotary-base
use-rope-scaling rope-scaling-factor make-vocab-size-divisible-by normalization swiglu
untie-embeddings-and-output-weights log-throughput log-progress tensorboard-dir no-log-loss-scale-to-tensorboard
log-memory-to-tensorboard attention-dropout hidden-dropout weight-decay clip-grad adam-beta1 adam-beta2
micro-batch-size global-batch-size no-check-for-nan-in-loss-and-grad train-iters log-interval eval-iters
cross-entropy-loss-fusion disable-bias-linear optimizer dataloader-type manual-gc manual-gc-interval
exit-signal-handler trigger-path seed init-method-std lr min-lr lr-decay-style lr-warmup-iters save save-interval
ckpt-format load async-save bf16 tensor-model-parallel-size sequence-parallel pipeline-model-parallel-size
num-layers-per-virtual-pipeline-stage context-parallel-size use-distributed-optimizer overlap-grad-reduce
overlap-param-gather defer-embedding-wgrad-compute wgrad-deferral-limit overlap-p2p-communication-warmup-flush
tokenizer-type tokenizer-model split seq-length reset-position-ids reset-attention-mask eod-mask-loss num-workers
num-dataset-builder-threads mock-data data-path data-cache-path wandb-save-dir wandb-project wandb-exp-name
"""
"""Flags of submit-llama3-70b.sh, swiss-ai/Megatron-LM at 81d44dbe, but for those of its profiler."""


@pytest.mark.parametrize("flag", LAUNCHER_70B.split())
def test_each_flag_of_the_70b_launcher_is_a_field_or_is_answered(flag):
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert flag.replace("-", "_") in fields or aliases.advice(f"--{flag}")


def test_garbage_waits_for_its_steps():
    """A cycle goes at a multiple of the interval alone; afterwards Python collects by itself again."""

    class Cycle:
        pass

    def alive():
        return sum(isinstance(one, Cycle) for one in gc.get_objects())

    with garbage.by_hand(4):
        assert not gc.isenabled()
        for step in range(1, 9):
            one = Cycle()
            one.own = one
            del one
            garbage.collect(step, every=4)
            assert alive() == step % 4
    assert gc.isenabled()
    with garbage.by_hand(0):
        assert gc.isenabled()
