"""LLaMAs of random bf16 weights at true sizes, sharded as the hub has them, written without a model in memory."""

import json
from pathlib import Path

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32000,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
MODELS = {
    name: dict(zip(SIZES, sizes, strict=True))
    for name, sizes in {
        "tiny": (64, 96, 2, 8, 4), "small": (512, 1536, 8, 8, 4), "1b": (2048, 5632, 16, 32, 8),
        "2b": (2560, 6912, 24, 32, 8), "7b": (4096, 11008, 32, 32, 32), "13b": (5120, 13824, 40, 40, 40),
    }.items()
} | {
    "llama3.2-1b": {
        **dict(zip(SIZES, (2048, 8192, 16, 32, 8), strict=True)), "vocab_size": 128256, "tie_word_embeddings": True,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "bos_token_id": 128000, "eos_token_id": 128001,
    },
}  # fmt: skip
MOVED = 2e-3
"""Standard deviation of a finetune's difference from its base, whose weights have one of 0.02."""


def make(folder: Path, model: str, tuned: int = 0) -> int:
    """Make a LLaMA of random bf16 weights in shards, or a finetune of it by its number; return its bytes."""
    import torch

    from mconv.convert.families.llama import LLAMA as TABLE
    from mconv.convert.formats import hf
    from mconv.convert.formats.dtype import BFLOAT16
    from mconv.convert.formats.mapped import bytes_of
    from mconv.convert.formats.tensors import Target

    folder.mkdir(parents=True)
    config = {**LLAMA, **MODELS[model]}
    (folder / "config.json").write_text(json.dumps(config))
    stored = TABLE.stored(TABLE.read_config(dict(config)))
    targets = [Target(s.key, s.piece.shape, BFLOAT16) for s in stored]
    files = hf.lay_out(targets, limit=5_000_000_000)
    files.create(folder)
    noise = torch.empty(1 << 26, dtype=torch.bfloat16).normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    if tuned:
        noise += torch.empty_like(noise).normal_(std=MOVED, generator=torch.Generator().manual_seed(tuned))
    for number, target in enumerate(targets):
        extent, left = files.extents[target.key], target.nbytes
        with (folder / extent.file).open("r+b") as file:
            file.seek(extent.offset)
            while left:
                begin = number * 4096 % (1 << 20)
                left -= file.write(bytes_of(noise[begin:])[:left])
    files.finish(folder, {})
    return sum(target.nbytes for target in targets)
