"""Table of kinds of folders and files by the names in them, for `recognize.py`. The first row that fits counts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of folder. `signs`: alternatives joined by "|"; one of each must be there, and none of `but`."""

    kind: str
    signs: tuple[str, ...]
    text: str
    advice: str = ""
    but: str = ""


TRACKER = "latest_checkpointed_iteration.txt"
HF_WEIGHTS = "model.safetensors|model.safetensors.index.json|pytorch_model.bin|pytorch_model.bin.index.json"
ANY_WEIGHTS = f"{HF_WEIGHTS}|consolidated*.safetensors|consolidated.*.pth"
OPTIMIZER = (
    "optimizer*.pt|optimizer*.bin|optim*.pt|distrib_optim.pt|scheduler.pt|rng_state*|trainer_state.json|training_args.bin"
)
SAVED = "common.pt|run_config.yaml|mconv.json"
CUT = "one iteration of a Megatron checkpoint, but %s is missing: it was not saved to its end, or not copied whole"
FSDP = "pytorch_model_fsdp*/|pytorch_model_fsdp*|model_world_size_*_rank_*.pt|__*_rank_*.pt"
DEEPSPEED = "zero_to_fp32.py|zero_pp_rank_*|*_optim_states.pt|mp_rank_*_model_states.pt|global_step*/|latest_universal"
OF_A_MODEL = (
    "*.safetensors|*.safetensors.index.json|pytorch_model*|config.json|params.json|consolidated.*|mconv.json|tokenizer*|"
    f"{TRACKER}|.metadata|metadata.json|common.pt|*.distcp|run_config.yaml|*.pth"
)
SAVE = "save the model's state_dict as model.safetensors beside its config.json and tokenizer, and give that folder"
BESIDE = "makes weights of it; put them beside the model's config.json and give that folder"
NEMO = "convert it with NeMo's own export to Hugging Face, and give that folder"
GGUF = (
    "give the folder that it was made from; or load it in transformers (`from_pretrained(FOLDER, gguf_file=NAME)`, with "
    f"the package gguf) and {SAVE}"
)
DCP = (
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} pytorch_model.bin` (or `accelerate "
    f"merge-weights {{path}} OUT`) {BESIDE}"
)
OLD = "load it in transformers 4 (`from_pretrained(FOLDER, %s=True)`), `save_pretrained`, and give that folder"
DATA = "`mconv data tokenize` makes training data of it"

MEGATRON = ("megatron", "torch_dist", "mp_rank")
READABLE = ("hf", "meta", "mistral", *MEGATRON)
"""Kinds that `open_checkpoint` takes."""
FOLDERS = (
    Row("hf", ("config.json", HF_WEIGHTS), "a Hugging Face folder"),
    Row("meta", ("consolidated.*.pth",), "a folder in Meta's own files"),
    Row("mistral", ("consolidated*.safetensors", "params.json"), "a folder in Mistral's own files"),
    Row(
        "adapter",
        ("adapter_config.json",),
        "a PEFT adapter, which needs its base model",
        "`mconv lora merge {path} --base BASE --out FOLDER` makes a model of it and its base",
    ),
    Row("megatron", (TRACKER,), "a Megatron checkpoint"),
    Row("torch_dist", ("metadata.json", ".metadata"), "one iteration of a Megatron checkpoint (torch_dist)"),
    Row(
        "deepspeed",
        (DEEPSPEED,),
        "a checkpoint of DeepSpeed",
        f"`python zero_to_fp32.py {{path}} OUT` (DeepSpeed leaves it beside the checkpoint) {BESIDE}",
        but=f"mp_rank_[0-9][0-9]/|{HF_WEIGHTS}",
    ),
    Row("mp_rank", ("mp_rank_*/",), "one iteration of a Megatron checkpoint (mp_rank)"),
    Row(
        "rank",
        ("model_optim_rng.pt|model_rng.pt",),
        "one rank's part of a Megatron checkpoint",
        "give the folder that holds all its ranks: {parent}",
    ),
    Row(
        "unfinished",
        ("plan.json", "done-*.jsonl"),
        "the journal of a conversion that was not finished",
        "repeat the command that was interrupted with --resume",
    ),
    Row("nemo", ("model_weights/|model_config.yaml",), "an unpacked .nemo file of NeMo 1", NEMO),
    Row("nemo", ("context/", "weights/"), "a checkpoint of NeMo 2", NEMO),
    Row("root", ("iter_*/",), f"a Megatron root without its tracker {TRACKER}", "{iterations}"),
    Row("torch_dist-part", (".metadata", SAVED), CUT % "metadata.json", "copy it again, or take an earlier iteration"),
    Row("torch_dist-part", ("metadata.json", SAVED), CUT % ".metadata", "copy it again, or take an earlier iteration"),
    Row(
        "dcp",
        (".metadata|*.distcp",),
        "a checkpoint of torch.distributed (DCP, as FSDP saves it), without Megatron's metadata.json",
        DCP,
    ),
    Row(
        "fsdp",
        (FSDP,),
        "a checkpoint of FSDP",
        DCP,
    ),
    Row(
        "hub-cache",
        ("snapshots/", "refs/|blobs/"),
        "a repository in the Hub's cache",
        "give its name, ORG/NAME, or one of the folders in {path}/snapshots",
    ),
    Row("gguf", ("*.gguf|*.ggml|ggml-*.bin",), "a model for llama.cpp (GGUF)", GGUF, but=ANY_WEIGHTS),
    Row("nemo", ("*.nemo",), "an archive of NeMo", NEMO),
    Row("flax", ("*.msgpack",), "a model in Flax's format", OLD % "from_flax"),
    Row("tensorflow", ("*.h5|saved_model.pb",), "a model in TensorFlow's format", OLD % "from_tf"),
    Row("rust", ("rust_model.ot",), "a model for rust-bert", "give the folder that it was made from"),
    Row("onnx", ("*.onnx|onnx/",), "a model in ONNX", "give the folder that it was made from", but="config.json"),
    Row("diffusers", ("model_index.json",), "a pipeline of diffusers", "mconv converts language models"),
    Row("lightning", ("*.ckpt",), "a checkpoint of PyTorch Lightning", SAVE),
    Row(
        "hf-odd",
        ("config.json", "*.safetensors|*.bin"),
        "a Hugging Face folder whose weights have other names than transformers looks for",
        f"give them such a name ({HF_WEIGHTS.replace('|', ', ')}), or download the folder again",
    ),
    Row(
        "config-only",
        ("config.json",),
        "the config of a model, without its weights",
        "give a folder that has model.safetensors (or pytorch_model.bin) too",
    ),
    Row(
        "params-only",
        ("params.json",),
        "the params.json of a model in Meta's or Mistral's own files, without its weights",
        "give a folder that has consolidated.00.pth or consolidated.safetensors too",
    ),
    Row(
        "consolidated",
        ("consolidated*",),
        "weights in Meta's or Mistral's own files, without their params.json",
        "put params.json beside them",
    ),
    Row(
        "weights-only",
        (f"{HF_WEIGHTS}|*.safetensors",),
        "weights without a config.json",
        "put the model's config.json and tokenizer beside them",
    ),
    Row(
        "optimizer",
        (OPTIMIZER,),
        "the state of a training (optimizer, schedule), without the model's weights",
        "give the folder that has the weights",
    ),
    Row(
        "data",
        ("*.idx", "*.bin"),
        "token data of Megatron (PREFIX.bin and PREFIX.idx), not a model",
        "it is for `mconv train --data {path}/PREFIX`",
    ),
    Row("torch", ("*.pt|*.pth|*.bin",), "files of torch.save that mconv does not know", SAVE),
    Row(
        "tokenizer",
        ("tokenizer.json|tokenizer.model|tokenizer_config.json|tekken.json|vocab.json",),
        "a tokenizer without a model",
        "it is for `--tokenizer`; give the folder of the model",
    ),
    Row(
        "run",
        (
            "run.json|run.lock|progress.txt|metrics.jsonl|runs/|wandb/|tensorboard/|events.out.tfevents*|checkpoint-*/|train.log",
        ),
        "the folder of a training run, without a checkpoint in it",
        "give the folder that the run saved to",
    ),
    Row("texts", ("*.jsonl|*.parquet|*.arrow|*.jsonl.gz",), "a data set, not a model", DATA),
    Row(
        "unfinished",
        (".mconv-partial-*/",),
        "a folder in which a conversion was not finished",
        "repeat the command that was interrupted with --resume",
    ),
)

FILES = (
    Row("adapter", ("adapter_config.json|adapter_model.*",), "a file of a PEFT adapter", "give its folder, {parent}"),
    Row(
        "rank",
        ("model_optim_rng.pt|model_rng.pt",),
        "one rank's part of a Megatron checkpoint",
        "give the folder that holds all its ranks: {grandparent}",
    ),
    Row("file", (OF_A_MODEL,), "a file of a model", "give its folder, {parent}"),
    Row("gguf", ("*.gguf|*.ggml",), "a model for llama.cpp (GGUF)", GGUF),
    Row("nemo", ("*.nemo",), "an archive of NeMo", NEMO),
    Row("texts", ("*.jsonl|*.jsonl.gz|*.parquet|*.arrow|*.txt|*.csv",), "a text file, not a model", DATA),
    Row("archive", ("*.zip|*.tar|*.tar.*|*.tgz|*.7z|*.zst|*.gz",), "an archive", "unpack it and give the folder"),
    Row("data", ("*.idx",), "the index of token data, not a model", "it is for `mconv train --data`, without .idx"),
    Row("run", ("*.yaml|*.yml|*.toml",), "a configuration, not a model", "it is for `mconv train FILE`"),
    Row(
        "torch",
        ("*.bin",),
        "a file of torch.save, or token data without its .idx",
        f"{SAVE}; token data needs both files",
    ),
    Row("torch", ("*.pt|*.ckpt",), "a file of torch.save", SAVE),
)

WANTED = (
    ("a Hugging Face folder", "config.json, and model.safetensors, its index or pytorch_model.bin"),
    ("Meta's own files", "params.json and consolidated.00.pth"),
    ("Mistral's own files", "params.json and consolidated.safetensors"),
    ("a Megatron root", f"{TRACKER} and the folder that it names"),
    ("one iteration of it", "metadata.json and .metadata (torch_dist), or mp_rank_00/ and so on (mp_rank)"),
)
"""The files that each format needs: kind -> names."""
AROUND = ("run", "texts", "optimizer", "tokenizer", "onnx", "deepspeed", "torch", "data", "config-only", "weights-only",
          "unfinished")  # fmt: skip
"""Kinds that say little where a folder below is a model: that one is named."""
PLAIN = ("unknown", "empty", "adapter", "root", "parent", "side", "rank", "unfinished")
"""Kinds whose message needs no list of files, or has one already."""
