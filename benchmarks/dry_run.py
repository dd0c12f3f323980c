"""How long `--dry-run` and `inspect` take on a 70B that has headers and no bytes: each command in a process of its own.

A sparse file has its whole size and takes no room, so opening and planning see just what they would see of the real one.
Compared with: `python -c "import torch"`, below which no command that knows dtypes can come.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from mconv.convert import plan, rewrite
from mconv.convert.formats import archive, hf
from mconv.convert.opening import open_checkpoint

LLAMA2_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "vocab_size": 32000, "torch_dtype": "bfloat16",
}  # fmt: skip


class Hole:
    """Stands for a tensor: where it would be written, the file only grows."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


def skip(record: Any, hole: Hole) -> None:
    """Lengthen a record of an archive that is being written, without bytes."""
    record._file_size += hole.nbytes
    record._fileobj.seek(hole.nbytes, 1)


def put(self: archive.Archive, key: str, hole: Any) -> None:
    """`Archive.tensor` for a hole."""
    with self._record(f"data/{key}", hole.nbytes) as record:
        skip(record, hole)


def fake_hf(folder: Path, *, shard_bytes: int = 10_000_000_000) -> Path:
    """A Hugging Face folder of that size: headers, index, config."""
    from mconv.convert.families import family_of
    from mconv.convert.formats.tensors import Target

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA2_70B))
    family = family_of(LLAMA2_70B)
    stored = family.stored(family.read_config(LLAMA2_70B))
    targets = [Target(s.key, s.piece.shape, torch.bfloat16) for s in stored]
    with patch.object(hf, "bytes_of", lambda hole: b""):
        for target, write in hf.write(folder, targets, limit=shard_bytes):
            write(Hole(target.nbytes))
    for shard in folder.glob("*.safetensors"):
        length = 8 + int.from_bytes(shard.open("rb").read(8), "little")
        header = json.loads(shard.open("rb").read(length)[8:])
        with shard.open("r+b") as file:
            file.truncate(length + max(x["data_offsets"][1] for n, x in header.items() if n != "__metadata__"))
    return folder


def fake_megatron(source: Path, root: Path, **options: Any) -> Path:
    """A Megatron checkpoint of it, by our own writers."""
    with patch("shutil.disk_usage") as free:
        free.return_value.free = 1 << 50
        made = plan.make(open_checkpoint(source), root, **options)
    made.folder.mkdir(parents=True)
    with patch.object(archive.Archive, "tensor", put):
        for target, write in rewrite._writer(made, made.folder):
            write(Hole(target.nbytes))
    rewrite._write_tracker(made)
    return root


def timed(*argv: str) -> float:
    start = time.monotonic()
    subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder = fake_hf(root / "hf")
        layouts = {"td": {"format": "torch_dist", "tp": 8}, "mp": {"format": "mp_rank", "tp": 8, "pp": 8}}
        for where, options in layouts.items():
            fake_megatron(folder, root / where, **options)
        commands = {
            "import torch": ["-c", "import torch"],
            "hf2meg --dry-run": ["-m", "mconv", "hf2meg", str(folder), "--tp", "8", "--pp", "8"],
            "reshard torch_dist tp8": ["-m", "mconv", "reshard", str(root / "td"), "--tp", "4"],
            "meg2hf torch_dist tp8": ["-m", "mconv", "meg2hf", str(root / "td")],
            "meg2hf mp_rank tp8 pp8": ["-m", "mconv", "meg2hf", str(root / "mp")],
        }
        for what, argv in commands.items():
            tail = ["--out", str(root / "out"), "--dry-run"] if "mconv" in argv else []
            print(f"{what:<26} {min(timed(*argv, *tail) for _ in range(3)):6.2f} s")


if __name__ == "__main__":
    main()
