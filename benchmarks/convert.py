"""How long and how much memory a conversion takes, against `cp -r` of the same bytes and transformers' load and save.

    python benchmarks/convert.py [--layers 16] [--folder DIR]

Each step is a process of its own. Memory is the peak of its anonymous pages (what the machine must hold), over that of a
process which only imports: mapped file pages come and go as the machine likes, and are not counted.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
WATCH = """
import os, resource, sys, threading, time
peak = 0
def anonymous():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.02)
{imports}
base = anonymous()
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
{work}
print("MEASURED", time.perf_counter() - start, max(peak, anonymous()) - base)
"""
CONVERT = """from pathlib import Path
from mconv.convert import plan, rewrite
from mconv.convert.opening import open_checkpoint"""


def make(folder: Path, layers: int) -> int:
    """A LLaMA of random bf16 weights in shards, written by our own writer one tensor at a time; returns its bytes."""
    import torch

    from mconv.convert.families.llama import LLAMA
    from mconv.convert.formats import hf
    from mconv.convert.formats.tensors import Target

    folder.mkdir(parents=True)
    config = {**CONFIG, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    stored = LLAMA.stored(LLAMA.read_config(dict(config)))
    targets = [Target(s.key, s.piece.shape, torch.bfloat16) for s in stored]
    for target, put in hf.write(folder, targets, limit=1_000_000_000):
        put(torch.empty(target.shape, dtype=torch.bfloat16).normal_(std=0.02))
    return sum(target.nbytes for target in targets)


def convert(source: Path, out: Path, **options: object) -> tuple[str, str]:
    """(imports, work) of one conversion."""
    planned = f"plan.make(open_checkpoint(Path({str(source)!r})), Path({str(out)!r}), **{options!r})"
    return CONVERT, f"rewrite.rewrite({planned}, step='bench')"


def measure(imports: str, work: str) -> tuple[float, float]:
    """Seconds and MiB of one step, in a process of its own."""
    code = WATCH.format(imports=imports, work=work)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    _, seconds, memory = next(line for line in done.stdout.splitlines() if line.startswith("MEASURED")).split()
    return float(seconds), float(memory)


def copy(source: Path, out: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    subprocess.run(["sync", "-f", str(out)], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="layers of the model; 16 are 0.9 billion parameters")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a temporary folder")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mconv-bench-", dir=given.folder))
    try:
        run(folder, given.layers)
    finally:
        shutil.rmtree(folder)


def run(folder: Path, layers: int) -> None:
    source, megatron, ranks = folder / "hf", folder / "megatron", folder / "ranks"
    size = make(source, layers)
    copied = min(copy(source, folder / f"copy{i}") for i in range(2))
    print(f"{size / 1e9:.2f} GB in bf16; cp -r and sync: {copied:.2f} s ({size / copied / 1e9:.2f} GB/s)")
    theirs = (
        "import torch\nfrom transformers import AutoModelForCausalLM",
        f"AutoModelForCausalLM.from_pretrained({str(source)!r}, dtype='auto').save_pretrained({str(folder / 'saved')!r})",
    )
    steps = {
        "HF -> torch_dist": convert(source, megatron, format="torch_dist"),
        "HF -> mp_rank tp 2 x pp 2": convert(source, ranks, format="mp_rank", tp=2, pp=2),
        "mp_rank -> torch_dist tp 4": convert(ranks, folder / "wide", format="torch_dist", tp=4),
        "torch_dist -> HF": convert(megatron, folder / "back", format="hf"),
        "transformers: load and save": theirs,
    }
    for name, (imports, work) in steps.items():
        seconds, memory = measure(imports, work)
        rate = f"{seconds / copied:5.2f} x cp  {size / seconds / 1e9:5.2f} GB/s"
        print(f"{name:<28} {seconds:6.2f} s  {rate}  {memory:7.0f} MiB")


if __name__ == "__main__":
    main()
