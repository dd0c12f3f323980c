"""How long `--dry-run` takes on a 70B that has headers and no bytes: each command in a process of its own.

    python benchmarks/dry_run.py

A sparse file has its whole size and takes no room, so opening and planning see just what they would see of the real one.
Beside it stands `python -c "import torch"`, below which no command that knows dtypes can come.
"""

import json
import struct
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

LLAMA2_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "vocab_size": 32000, "torch_dtype": "bfloat16",
}  # fmt: skip
SHARDS = 15


def fake(folder: Path) -> Path:
    """A Hugging Face folder of Llama-2-70B's size: config, index, and shards that are a header and a hole."""
    from mconv.convert.families import family_of

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA2_70B))
    family = family_of(LLAMA2_70B)
    stored = family.stored(family.read_config(LLAMA2_70B))
    weight_map = {}
    for number in range(SHARDS):
        name, header, at = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors", {}, 0
        for tensor in stored[number::SHARDS]:
            end = at + 2 * prod(tensor.piece.shape)
            header[tensor.key] = {"dtype": "BF16", "shape": tensor.piece.shape, "data_offsets": [at, end]}
            weight_map[tensor.key], at = name, end
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def timed(argv: list[str]) -> float:
    """Seconds. A dry run on a disk that is too small prints the plan and exits with 2."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True)
    assert "-c" in argv or "nothing was written" in done.stdout, done.stderr
    return time.monotonic() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, out = fake(Path(name) / "hf"), str(Path(name) / "out")
        plan = ["-m", "mconv", "hf2meg", str(folder), "--tp", "8", "--pp", "8", "--out", out, "--dry-run", "--format"]
        commands = {"import torch": ["-c", "import torch"], "to torch_dist": [*plan, "torch_dist"]}
        for what, argv in (commands | {"to mp_rank": [*plan, "mp_rank"]}).items():
            print(f"{what:<16} {min(timed(argv) for _ in range(3)):6.2f} s")


if __name__ == "__main__":
    main()
