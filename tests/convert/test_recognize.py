"""What a path is, by its names: each kind is named with what to do, and what mconv cannot read is never just refused."""

import pytest
from tiny import make_llama

from mconv.convert.checkpoint.adapted import open_run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.folders.recognize import explain, what_is
from mconv.errors import FormatError

# names below the folder, what kind it is, and words that the message must have ({} is the folder)
FOLDERS = [
    ("", "empty", "an empty folder"),
    ("adapter_config.json adapter_model.safetensors tokenizer.json", "adapter", "mconv lora merge {} --base BASE"),
    ("adapter_config.json adapter_model.bin", "adapter", "mconv lora merge {}"),
    ("iter_0000100/.metadata iter_0000100/metadata.json iter_0000020/x", "root", "iterations 20, 100.*--iteration 100"),
    ("iter_0000001/config.json iter_0000001/model.safetensors", "parent", "give {}/iter_0000001"),
    ("release/.metadata release/metadata.json", "parent", "give {}/release"),
    ("zero_to_fp32.py latest global_step5/mp_rank_00_model_states.pt", "deepspeed", "zero_to_fp32.py {}"),
    ("mp_rank_00_model_states.pt zero_pp_rank_0_mp_rank_00_optim_states.pt", "deepspeed", "DeepSpeed"),
    (".metadata __0_0.distcp __1_0.distcp", "dcp", "dcp_to_torch {}"),
    (".metadata __0_0.distcp common.pt", "torch_dist-part", "not saved to its end"),
    ("pytorch_model_fsdp_0/.metadata pytorch_model_fsdp_0/__0_0.distcp config.json", "fsdp", "FSDP"),
    ("llama-Q4_K_M.gguf config.json README.md", "gguf", "llama.cpp.*gguf_file=NAME"),
    ("model.nemo", "nemo", "NeMo"),
    ("model_config.yaml model_weights/metadata.json", "nemo", "NeMo 1"),
    ("context/x weights/.metadata", "nemo", "NeMo 2"),
    ("config.json flax_model.msgpack", "flax", "from_flax=True"),
    ("config.json tf_model.h5 tokenizer.json", "tensorflow", "from_tf=True"),
    ("optimizer.pt scheduler.pt rng_state_0.pth trainer_state.json", "optimizer", "without the model's weights"),
    ("checkpoint-90/config.json checkpoint-90/model.safetensors checkpoint-500/config.json "
     "checkpoint-500/model.safetensors runs/x", "parent", "give {}/checkpoint-500 .or checkpoint-90 beside"),
    ("README.md sub/config.json sub/pytorch_model.bin", "parent", "sub is a Hugging Face folder; give {}/sub"),
    ("notes/x sub/adapter_config.json", "parent", "sub is a PEFT adapter"),
    ("a/README.md a/b/c/config.json a/b/c/model.safetensors", "parent", "give {}/a/b/c"),
    ("run.json run.lock progress.txt train.jsonl", "run", "training run"),
    ("metrics.jsonl run.yaml", "run", "it holds metrics.jsonl, run.yaml"),
    ("books.bin books.idx", "data", "mconv train --data {}/PREFIX"),
    ("a.jsonl b.jsonl", "texts", "mconv data tokenize"),
    ("tokenizer.json tokenizer_config.json", "tokenizer", "--tokenizer"),
    ("config.json tokenizer.json", "config-only", "without its weights"),
    ("model.safetensors", "weights-only", "without a config.json"),
    ("left.safetensors hf/config.json hf/model.safetensors", "parent", "give {}/hf"),
    ("params.json tokenizer.model", "params-only", "without its weights"),
    ("snapshots/0123/config.json refs/main blobs/ab", "hub-cache", "ORG/NAME.*{}/snapshots"),
    ("a.txt b.txt c.py d.md", "unknown", "a.txt, b.txt, c.py, d.md; what each format would need: a Hugging Face folder: "
     "config.json.*Meta.*params.json.*latest_checkpointed_iteration.txt.*metadata.json"),
]  # fmt: skip


def make(folder, names):
    """Empty files of these names."""
    folder.mkdir()
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}" if name.endswith(".json") else b"x")
    return folder


@pytest.mark.parametrize("names, kind, says", FOLDERS, ids=[f"{kind}-{i}" for i, (_, kind, _) in enumerate(FOLDERS)])
def test_folders_that_cannot_be_opened(tmp_path, names, kind, says):
    """Each is named for what it is, `open_checkpoint` says so, and to do what is said."""
    folder = make(tmp_path / "x", names)
    found = what_is(folder)
    assert (found.kind, found.readable) == (kind, False)
    with pytest.raises(FormatError, match=says.format(*[folder] * says.count("{}"))) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "names, kind",
    [
        ("config.json model.safetensors adapter_config.json zero_to_fp32.py optimizer.pt global_step9/x", "hf"),
        ("config.json pytorch_model.bin.index.json", "hf"),
        ("consolidated.00.pth params.json", "meta"),
        ("consolidated.safetensors params.json tekken.json", "mistral"),
        ("latest_checkpointed_iteration.txt iter_0000001/x", "megatron"),
        ("mp_rank_00/model_optim_rng.pt mp_rank_01/model_optim_rng.pt", "mp_rank"),
        ("metadata.json .metadata common.pt __0_0.distcp run_config.yaml", "torch_dist"),
    ],
)
def test_folders_that_can(tmp_path, names, kind):
    """What stands beside the weights does not change what a folder is."""
    found = what_is(make(tmp_path / "x", names))
    assert (found.kind, found.readable) == (kind, True)


@pytest.mark.parametrize(
    "name, says",
    [
        ("model.safetensors", "give its folder, {}"),
        ("config.json", "give its folder, {}"),
        ("adapter_model.safetensors", "PEFT adapter; give its folder, {}"),
        ("x.Q4_0.gguf", "llama.cpp"),
        ("x.nemo", "NeMo"),
        ("x.tar.gz", "unpack it"),
        ("x.idx", "token data"),
        ("x.jsonl", "mconv data tokenize"),
        ("consolidated.00.pth", "give its folder, {}"),
        ("state.pt", "state_dict as model.safetensors"),
        ("photo.png", "give the folder of a model"),
    ],
)
def test_files(tmp_path, name, says):
    """A path that is a file says what to give instead."""
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FormatError, match=says.format(*[tmp_path] * says.count("{}"))):
        open_checkpoint(tmp_path / name)


def test_paths_that_are_not_there(tmp_path, monkeypatch):
    """A neighbour of nearly that name, a prefix of data, a repository."""
    (tmp_path / "llama2-7b-megatron").mkdir()
    assert explain(tmp_path / "lama2-7b-megatron").endswith(f"did you mean {tmp_path / 'llama2-7b-megatron'}?")
    for end in ("bin", "idx"):
        (tmp_path / f"books.{end}").touch()
    assert "mconv train --data" in explain(tmp_path / "books")
    assert explain(tmp_path / "books.bin").endswith(f"not a model; it is for `mconv train --data {tmp_path / 'books'}`")
    monkeypatch.chdir(tmp_path)
    assert "mconv pull org/name" in explain("org/name")


def test_an_adapter_needs_no_export(tmp_path):
    folder = make(tmp_path / "x", "adapter_config.json adapter_model.safetensors")
    with pytest.raises(FormatError, match="is a PEFT adapter already, not a LoRA run: it needs no export"):
        open_run(folder)


def test_parts_of_a_megatron_checkpoint(tmp_path):
    """The folder of one rank, or of the files that travel with it, names the one to give; a lost tracker is no end."""
    for kind in ("mp_rank", "torch_dist"):
        made = plan.make(
            open_checkpoint(make_llama(tmp_path / f"{kind}-hf")), tmp_path / kind, format=kind, tp=2, iteration=7
        )
        rewrite(made, step="test")
    with pytest.raises(FormatError, match=f"all its ranks: {tmp_path}/mp_rank/iter_0000007"):
        open_checkpoint(tmp_path / "mp_rank/iter_0000007/mp_rank_00")
    with pytest.raises(FormatError, match=f"travel with the checkpoint.*give {tmp_path}/torch_dist/iter_0000007"):
        open_checkpoint(tmp_path / "torch_dist/iter_0000007/hf")
    (tmp_path / "torch_dist/latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(FormatError, match="has the iterations 7: say which with --iteration 7"):
        open_checkpoint(tmp_path / "torch_dist")
    assert open_checkpoint(tmp_path / "torch_dist", iteration=7).iteration == 7
    (tmp_path / "torch_dist/latest_checkpointed_iteration.txt").write_text("9")
    with pytest.raises(FormatError, match=r"says '9', but .* does not exist; it has the iterations 7"):
        open_checkpoint(tmp_path / "torch_dist")
