"""What GPT-2 has of its own: transposed matrices, queries before all keys, learned positions. Faults in it are caught."""

import pytest
import torch
from judge import convert, report
from safetensors.torch import load_file, save_file
from tiny import edit_json, make_model, same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.errors import ConfigError

H = "transformer.h.1."


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The model, and its conversion."""
    folder = tmp_path_factory.mktemp("gpt2")
    hf = make_model("gpt2-tied", folder / "hf")
    return hf, convert(hf, folder / "m", tp=2, pp=2)


def queries_by_heads(t):
    """As if Hugging Face had fused head by head, as Megatron does."""
    name = f"{H}attn.c_attn.weight"
    t[name] = t[name].view(48, 3, 8, 6).transpose(1, 2).reshape(48, 144).contiguous()


def a_square_matrix_not_transposed(t):
    name = f"{H}attn.c_proj.weight"
    t[name] = t[name].t().contiguous()


def two_far_positions_exchanged(t):
    name = "transformer.wpe.weight"
    t[name][[-1, -2]] = t[name][[-2, -1]]


@pytest.mark.parametrize("fault", [queries_by_heads, a_square_matrix_not_transposed, two_far_positions_exchanged])
def test_a_fault_is_caught(fault, made, tmp_path):
    _, megatron = made
    wrong = make_model("gpt2-tied", tmp_path / "hf")
    held = load_file(wrong / "model.safetensors")
    fault(held)
    save_file(held, wrong / "model.safetensors", metadata={"format": "pt"})
    assert not report(wrong, megatron)["passed"]


def test_without_a_fault_it_passes(made):
    assert report(*made)["passed"]


def test_the_other_gelu_is_another_model(made, tmp_path):
    """0.001 apart at most, and yet caught."""
    _, megatron = made
    wrong = make_model("gpt2-tied", tmp_path / "hf")
    edit_json(wrong / "config.json", activation_function="gelu")
    assert not report(wrong, megatron)["passed"]


def test_files_saved_without_a_head_have_shorter_names_and_masks_in_them(tmp_path):
    """As GPT-2's own repository has them."""
    hf = make_model("gpt2-tied", tmp_path / "hf")
    whole = tensors(hf)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in whole.items()}
    bare |= {f"h.{i}.attn.bias": torch.tril(torch.ones(256, 256)).view(1, 1, 256, 256) for i in range(4)}
    save_file(bare, hf / "model.safetensors", metadata={"format": "pt"})
    rewrite(plan.make(open_checkpoint(hf), tmp_path / "m", format="torch_dist", tp=2), step="test")
    rewrite(plan.make(open_checkpoint(tmp_path / "m"), tmp_path / "out", format="hf"), step="test")
    assert same(tensors(tmp_path / "out"), whole)
    assert report(hf, tmp_path / "m", streamed=True)["passed"]


@pytest.mark.parametrize(
    "change, says",
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"n_head": 7}, "n_embd 48 is not a multiple of n_head 7"),
        ({"rms_norm_eps": 1e-5}, "does not know rms_norm_eps"),
    ],
)
def test_what_is_refused_by_name(change, says, made, tmp_path):
    hf = make_model("gpt2-tied", tmp_path / "hf")
    edit_json(hf / "config.json", **change)
    with pytest.raises(ConfigError, match=says):
        open_checkpoint(hf)
