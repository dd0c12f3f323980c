"""Mutants of the files that say what the new inputs are: refused by name or read, never a crash and nothing run."""

import json
import random
import shutil

import pytest
import torch
import yaml
from tiny import make_llama, tensors

from mconv.convert.checkpoint import bridge
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.formats import archive, pack
from mconv.errors import MconvError

VALUES = (None, True, False, 0, -1, 3, 1 << 70, 1e300, float("nan"), float("inf"), "", "x", [], [1], [1, 0], {}, {"a": 1})


def survives(path, **said):
    try:
        open_checkpoint(path, **said)
    except MconvError as error:
        assert str(error)


@pytest.fixture(scope="module")
def emitted(tmp_path_factory):
    """What Bridge would have left: no args, no word of ours."""
    folder = tmp_path_factory.mktemp("mutants")
    made = plan.make(
        open_checkpoint(make_llama(folder / "hf", num_hidden_layers=1)),
        folder / "m",
        format="torch_dist",
        emit="megatron-bridge",
    )
    rewrite(made, step="test")
    (made.folder / "mconv.json").unlink()
    common = archive.read(made.folder / "common.pt")
    del common["args"]
    pack.save(made.folder / "common.pt", common)
    return folder


def test_every_key_of_run_config_with_other_values(emitted):
    file = emitted / "m/iter_0000000" / bridge.RUN_CONFIG
    whole = file.read_text()
    model = yaml.safe_load(whole)["model"]
    chance = random.Random(2)
    for key in model:
        for value in chance.sample(VALUES, 3):
            file.write_text(yaml.safe_dump({"model": {**model, key: value}}))
            survives(emitted / "m")
    file.write_text(whole)
    assert open_checkpoint(emitted / "m").spec.num_layers == 1


def test_bytes_of_run_config_and_train_state(emitted):
    chance = random.Random(0)
    for name in (bridge.RUN_CONFIG, bridge.TRAIN_STATE):
        file = emitted / "m/iter_0000000" / name
        whole = file.read_bytes()
        for _ in range(30):
            file.write_bytes(mutant(whole, chance))
            survives(emitted / "m")
        file.write_bytes(whole)


def mutant(data, chance):
    out = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(out))
        out[at : at + chance.randint(0, 2)] = bytes(chance.randrange(256) for _ in range(chance.randint(0, 2)))
    return bytes(out[: chance.randrange(len(out))] if chance.random() < 0.1 else out)


def test_params_json_and_pickles(emitted, tmp_path):
    names = {
        "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
        "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo", "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    state = tensors(emitted / "hf")
    for old, new in names.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "consolidated.00.pth")
    params = {"dim": 48, "n_layers": 1, "n_heads": 8, "n_kv_heads": 4, "norm_eps": 1e-5, "multiple_of": 64,
              "ffn_dim_multiplier": 0.5, "vocab_size": 151, "use_scaled_rope": False, "rope_theta": 1e4}  # fmt: skip
    (tmp_path / "params.json").write_text(json.dumps(params))
    assert open_checkpoint(tmp_path).spec.ffn_hidden_size == 64
    chance = random.Random(1)
    for key in (*params, "rope_scaling_factor", "rope_high_freq_factor", "max_seq_len"):
        for value in chance.sample(VALUES, 5):
            (tmp_path / "params.json").write_text(json.dumps({**params, "use_scaled_rope": "factor" in key, key: value}))
            survives(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(params))
    whole = (tmp_path / "consolidated.00.pth").read_bytes()
    hf = shutil.copytree(emitted / "hf", tmp_path / "hf", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(tensors(emitted / "hf"), hf / "pytorch_model.bin")
    weights = (hf / "pytorch_model.bin").read_bytes()
    for _ in range(30):
        (tmp_path / "consolidated.00.pth").write_bytes(mutant(whole, chance))
        survives(tmp_path)
        (hf / "pytorch_model.bin").write_bytes(mutant(weights, chance))
        survives(hf)
