"""What a hostile look at the whole judge found, and that it stays mended: right pairs that did not pass."""

import pytest
import torch
from judge import convert, judged
from safetensors.torch import save_file
from tiny import make_llama, tensors

from mconv.cli.app import run
from mconv.shard.stages import Uneven

pytestmark = pytest.mark.once


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dtype, arithmetic", [("bf16", "fp16"), ("fp16", "bf16")])
def test_a_cast_is_rounded_before_the_arithmetic_rounds(tmp_path, dtype, arithmetic, streamed):
    """fp32 -> fp16 -> bf16 is not fp32 -> bf16: max error over scale was 0.17 for bf16 weights in fp16."""
    hf = make_llama(tmp_path / "hf", max_position_embeddings=131072)
    cast = convert(hf, tmp_path / "m", dtype=dtype)
    for pair in ((hf, cast), (cast, hf)):
        found = judged(*pair, length=48, dtype=arithmetic, streamed=streamed, tp=1, pp=1)
        assert found["passed"], found["failures"]


CASTS = {torch.float16: "bf16", torch.bfloat16: "fp16"}


@pytest.mark.parametrize("dtype", CASTS, ids=str)
@pytest.mark.parametrize("scale", [0.2, 1e-6])
def test_a_cast_between_the_two_half_precisions(tmp_path, dtype, scale):
    """Neither is wider; at 1e-6 fp16 has few bits left."""
    hf = make_llama(tmp_path / "hf", dtype=dtype, initializer_range=scale)
    cast = convert(hf, tmp_path / "m", dtype=CASTS[dtype])
    for pair in ((hf, cast), (cast, hf)):
        found = judged(*pair, length=32, tp=1, pp=1)
        assert found["passed"], found["failures"]
        assert found["rounded_to"] == "bfloat16 and float16"


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_cast_of_a_model_with_norms_of_another_dtype(tmp_path, dtype):
    hf = make_llama(tmp_path / "hf")
    held = {name: t if "norm" in name else t.bfloat16() for name, t in tensors(hf).items()}
    save_file(held, hf / "model.safetensors", metadata={"format": "pt"})
    found = judged(hf, convert(hf, tmp_path / "m", dtype=dtype), length=32)
    assert found["passed"], found["failures"]


@pytest.mark.parametrize("streamed", [False, True])
def test_uneven_stages_at_their_own_ranks(world, tmp_path, streamed):
    """A rank of even stages must not take an uneven stage's file for its own: the names are the same."""
    import verify_jobs

    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m", format="mp_rank", pp=2, uneven=Uneven(first=1))
    sizes = {"a": str(hf), "b": str(megatron), "length": 32, "pp": 2, "tp": 1, "streamed": streamed}
    found = world.run(verify_jobs.verify, **sizes)[0]
    assert found["passed"] and found["candidate"]["loaded_by"] == "mconv, cut for this layout", found
    found = world.run(verify_jobs.verify, **sizes, uneven={"first": 1})[0]
    assert found["passed"] and found["candidate"]["loaded_by"] == "rank files, as they are", found


def test_uneven_stages_whose_layers_cannot_be_shared_evenly(tmp_path, capsys):
    hf = make_llama(tmp_path / "hf", num_hidden_layers=3)
    megatron = convert(hf, tmp_path / "m", format="mp_rank", pp=2, uneven=Uneven(first=1))
    assert run(["verify", str(hf), str(megatron), "--length", "16"]) == 0


def test_greedy_tokens_on_real_ranks_where_transformers_writes_them(tmp_path, capsys):
    """The ranks met only when Megatron's model was built, and the reference writes before: rank 1 had no tokens."""
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m")
    assert run(["verify", str(hf), str(megatron), "--length", "16", "--pp", "2", "--generate", "3"]) == 0


def test_another_softmax_scale_in_the_args_is_refused(tmp_path, capsys):
    """A field of megatron-core's TransformerConfig that changes attention; it was ignored, and passed."""
    hf = make_llama(tmp_path / "hf")
    megatron = convert(hf, tmp_path / "m", format="mp_rank")
    file = next(megatron.rglob("model_optim_rng.pt"))
    state = torch.load(file, weights_only=False)
    state["args"].softmax_scale = 0.5
    torch.save(state, file)
    assert run(["verify", str(hf), str(megatron), "--digests"]) == 2
    assert "softmax_scale" in capsys.readouterr().err
