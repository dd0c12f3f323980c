"""The same conversions as a user would do them today: the whole model in memory, in the model's own library.

    python benchmarks/peers.py [--model 1b] [--folder DIR]

HF -> torch_dist: megatron-core's GPTModel is built on one rank, filled from the mapped safetensors (by our own loader,
which flatters it: Megatron-LM's converter goes through a transformers model) and saved by `dist_checkpointing.save`.
HF -> HF: transformers' `from_pretrained` and `save_pretrained`, which is what an export ends with. Clocks and memory as
in convert.py; each step is given a `sync -f`, as `cp` is.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from models import MODELS, make

from convert import convert, copy, measure  # noqa: TID251  # the file beside this one

MEGATRON = """import torch
from pathlib import Path
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.train.megatron.cpu import install
install()
from mconv.train.checkpoints.checkpoint import CONTENT
from mconv.train.model.engine import Parallel, build
from mconv.train.megatron.imports import dist_checkpointing
from mconv.train.megatron.parallel import init
from mconv.train.model.weights import fill, padded_size"""
SAVE = """
init(Parallel())
found = open_checkpoint({source!r})
size = padded_size(found, Parallel(), multiple=128)
model = build(found.spec, padded_vocab_size=size, parallel=Parallel(), dtype=torch.bfloat16)
fill(model, found, Parallel(), padded_vocab_size=size)
Path({out!r}).mkdir()
dist_checkpointing.save(model.sharded_state_dict(metadata=dict(CONTENT)), {out!r})
"""
TRANSFORMERS = "import torch\nfrom transformers import AutoModelForCausalLM"
AGAIN = "AutoModelForCausalLM.from_pretrained({source!r}, dtype='auto').save_pretrained({out!r})"


def run(folder: Path, model: str) -> None:
    source, ours, theirs = folder / "hf", folder / "ours", folder / "theirs"
    size = make(source, model)
    print(f"llama {model}: {size / 1e9:.2f} GB in bf16")
    print(f"{'':<52}{'cp+sync':>8}{'seconds':>9}{'cpu':>7}{'anon MiB':>10}")
    paths = {"source": str(source), "out": str(theirs)}
    steps = {
        "HF -> torch_dist, mconv": (ours, convert(source, ours, format="torch_dist")),
        "HF -> torch_dist, GPTModel + dist_checkpointing.save": (theirs, (MEGATRON, SAVE.format(**paths))),
        "torch_dist -> HF, mconv": (folder / "back", convert(ours, folder / "back", format="hf")),
        "HF -> HF, from_pretrained + save_pretrained": (theirs, (TRANSFORMERS, AGAIN.format(**paths))),
    }
    for name, (out, (imports, work)) in steps.items():
        synced = copy(source, folder / "copy")[1]
        seconds, cpu, anonymous, _ = measure(imports, work)
        start = time.perf_counter()
        subprocess.run(["sync", "-f", str(out)], check=True)
        seconds += time.perf_counter() - start
        print(f"{name:<52}{synced:8.2f}{seconds:9.2f}{cpu:7.2f}{anonymous:10.0f}", flush=True)
        if out != ours:
            shutil.rmtree(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="1b", help="its peers hold twice its bytes in memory")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mconv-peers-", dir=given.folder))
    try:
        run(folder, given.model)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
