"""How long and how much memory it takes to prove that a true-size model was converted right.

    python benchmarks/verify.py [--model 7b] [--folder DIR] [--html FILE] [-- MORE OPTIONS OF `mconv verify`]

Makes a LLaMA of random bf16 weights, converts it, and runs `mconv verify HF MEGATRON` as a user would. What a user would
do instead is to load both models whole: its memory is on paper, parameters x 4 bytes (fp32) for one model at a time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from models import MODELS, make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="1b", choices=MODELS)
    parser.add_argument("--folder", type=Path, help="where the models are made, or lie already")
    parser.add_argument("more", nargs="*", help="further options of `mconv verify`, after --")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        source, megatron = folder / f"{asked.model}-hf", folder / f"{asked.model}-megatron"
        nbytes = sum(f.stat().st_size for f in source.iterdir()) if source.is_dir() else make(source, asked.model)
        if not megatron.is_dir():
            mconv("hf2meg", str(source), "--out", str(megatron))
        began = time.perf_counter()
        report = json.loads(mconv("verify", str(source), str(megatron), "--json", *asked.more))
        seconds = time.perf_counter() - began
    peak = report["environment"]["peak_rss_bytes"] / 2**30
    whole = nbytes * 2 / 2**30
    print(f"{asked.model}: {nbytes / 1e9:.2f} GB in bf16, {os.cpu_count()} cores")
    print(f"{report['verdicts']}, streamed {report['streamed']}, {report['batch']} x {report['length']} tokens, "
          f"positions up to {report['reach'] - 1}")  # fmt: skip
    print(f"{seconds:.0f} s; peak RSS {peak:.2f} GiB, {peak / whole:.2f} of one whole model in fp32 ({whole:.1f} GiB)")
    for name in ("relative_max", "relative_rms"):
        print(f"{name} {report[name]:.2e}, noise {report['noise'][name]:.2e}, limit {report['limits'][name]:.2e}")


def mconv(*argv: str) -> str:
    """Run a command; its standard output."""
    done = subprocess.run([sys.executable, "-m", "mconv", *argv], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"mconv {argv[0]} exited with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
