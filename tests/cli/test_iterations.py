"""`meg2hf --iterations`: every iteration of a root, what is there skipped, what fails named while the rest is done."""

import shutil

import pytest
from tiny import make_llama, same, tensors

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite


@pytest.fixture
def root(tmp_path):
    """Three iterations, each of other weights."""
    for number in (100, 200, 300):
        source = make_llama(tmp_path / f"hf{number}", seed=number)
        made = plan.make(
            open_checkpoint(source), tmp_path / "root", format="torch_dist", iteration=number, overwrite=True
        )
        rewrite(made, step="test")
    return tmp_path / "root"


def export(root, *options, out="out"):
    return run(["meg2hf", str(root), "--out", str(root.parent / out), *options])


def test_all_then_only_what_is_new(root, capsys):
    out = root.parent / "out"
    assert export(root, "--iterations", "100,300") == 0
    assert sorted(p.name for p in out.iterdir()) == ["iter_0000100", "iter_0000300"]
    before = (out / "iter_0000100/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert export(root, "--iterations", "all") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2][:5] for line in lines] == ["alrea", "hf, 3", "alrea"], lines
    assert (out / "iter_0000100/model.safetensors").stat().st_mtime_ns == before
    for number in (100, 200, 300):
        assert same(tensors(out / f"iter_{number:07d}"), tensors(root.parent / f"hf{number}"))


def test_what_is_cut_or_of_another_source_is_not_there(root, capsys):
    out = root.parent / "out"
    assert export(root, "--iterations", "all") == 0
    weights = out / "iter_0000200/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    shutil.copytree(root / "iter_0000100", root / "new")
    shutil.rmtree(root / "iter_0000300")
    (root / "new").rename(root / "iter_0000300")
    assert export(root, "--iterations", "all") == 2
    told = capsys.readouterr()
    assert "iter_0000200" in told.err and "iter_0000300" in told.err and "--overwrite" in told.err
    assert export(root, "--iterations", "all", "--overwrite") == 0
    assert same(tensors(out / "iter_0000300"), tensors(root.parent / "hf100"))
    assert export(root, "--iterations", "all", "--dtype", "bf16") == 2, "another dtype is another result"


def test_what_fails_is_named_and_the_rest_is_done(root, capsys):
    (root / "iter_0000100/.metadata").unlink()  # not saved to its end
    optimizer = root / "iter_0000200"
    shutil.rmtree(optimizer)
    (optimizer / "mp_rank_00").mkdir(parents=True)
    (optimizer / "mp_rank_00/distrib_optim.pt").write_bytes(b"")
    assert export(root, "--iterations", "all") == 2
    err = capsys.readouterr().err
    assert "2 problems" in err and ".metadata is missing" in err and "model_optim_rng.pt is missing" in err
    assert [p.name for p in (root.parent / "out").iterdir()] == ["iter_0000300"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--iterations", "some"], "`all`, or numbers"),
        (["--iterations", "100,7"], "no iteration 7; it has 100, 200, 300"),
        (["--iterations", "all", "--iteration", "100"], "not both"),
    ],
)
def test_misuse(root, capsys, options, message):
    assert export(root, *options) == 2
    assert message in capsys.readouterr().err and not (root.parent / "out").exists()


def test_a_folder_without_iterations(root, capsys):
    assert export(root / "iter_0000100", "--iterations", "all") == 2
    assert "has no iterations" in capsys.readouterr().err


def test_notes_and_meta_options_reach_the_user(tmp_path, capsys):
    """A folder of Meta's through the command line."""
    import json

    import torch

    source = make_llama(tmp_path / "hf", num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=48)
    state = tensors(source)
    names = {
        "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
        "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo", "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for old, new in names.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    (tmp_path / "meta").mkdir()
    torch.save(state, tmp_path / "meta/consolidated.00.pth")
    params = {"dim": 48, "n_layers": 1, "n_heads": 1, "norm_eps": 1e-5, "vocab_size": -1}
    (tmp_path / "meta/params.json").write_text(json.dumps(params))
    assert run(["hf2meg", str(tmp_path / "meta"), "--out", str(tmp_path / "m"), "--emit", "megatron-bridge"]) == 0
    assert "--max-position-embeddings" in capsys.readouterr().err
    assert (tmp_path / "m/iter_0000000/run_config.yaml").is_file()
    assert run(["meg2hf", str(tmp_path / "meta"), "--out", str(tmp_path / "x")]) == 2
    assert f"`mconv hf2meg {tmp_path}" in capsys.readouterr().err
