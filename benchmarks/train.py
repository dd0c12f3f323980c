"""Training speed beside a plain transformers loop: the same model, data, batches and optimizer, in one run.

    python benchmarks/train.py [--model 20m] [--steps 6] [--device cpu] [--dtypes fp32,bf16] [--layouts] [--json FILE]
    make bench-gpu

The two take turns, a step each, so that both see the same machine; the figure is the median step. The plain loop is what
a user would write: `AutoModelForCausalLM`, torch's AdamW, gradient clipping; attention by flash-attn where that is
installed and by SDPA where it is not; in bf16 under autocast with fp32 weights, which is what bf16 training with fp32
main weights is there. Losses of both are printed: they must be the same run. With CUDA also the memory of each and MFU.
`--layouts` adds `mconv train` itself at tp 2 and pp 2 on two ranks of this machine beside one rank.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

SHAPES = {
    # hidden, ffn, layers, heads, groups, vocabulary, sequence, micro batch, micro batches
    "tiny": (128, 352, 2, 4, 4, 2048, 128, 2, 2),
    "20m": (256, 704, 4, 4, 4, 32000, 256, 2, 2),
    "60m": (512, 1408, 8, 8, 8, 32000, 512, 2, 2),
    "125m": (768, 2048, 12, 12, 12, 32000, 1024, 2, 2),
    "1b": (2048, 5632, 22, 32, 4, 32000, 4096, 2, 8),  # both sides lie in 80 GB together
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="20m", choices=SHAPES)
    parser.add_argument("--steps", type=int, default=6, help="timed steps, after two that are not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--layouts", action="store_true", help="also tp 2 and pp 2, beside one rank")
    parser.add_argument("--profile", action="store_true", help="the ten most expensive operations of mconv's step")
    parser.add_argument("--attention-backend", default="auto", help="mconv's, as `mconv train` has it")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    # The two sides' blocks are of other sizes: of one kind of segments, each could not use what the other gave back.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        source, data = Path(folder) / "hf", Path(folder) / "data"
        make_model(source, asked.model)
        make_data(data, SHAPES[asked.model], steps=asked.steps + 4)
        for dtype in asked.dtypes.split(","):
            found.append(compare(source, data, asked, dtype=dtype))
            show(found[-1])
            if asked.layouts:
                found += layouts(source, data, asked, dtype=dtype)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


def make_model(folder: Path, name: str) -> None:
    """A LLaMA of random weights, in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, ffn, layers, heads, groups, vocabulary, length, *_ = SHAPES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, max_position_embeddings=length, rms_norm_eps=1e-5,
    )  # fmt: skip
    LlamaForCausalLM(config).float().save_pretrained(folder)


def make_data(prefix: Path, shape: tuple[int, ...], *, steps: int) -> None:
    """Random tokens, enough that no sample comes twice."""
    import numpy as np

    from mconv.train.megatron.imports import IndexedDatasetBuilder

    vocabulary, length, micro, count = shape[5:]
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    tokens = np.random.default_rng(0).integers(0, vocabulary, steps * micro * count * length + length + 1)
    builder.add_document(tokens.astype(np.uint16), [len(tokens)])
    builder.finalize(f"{prefix}.idx")


def compare(source: Path, data: Path, asked: argparse.Namespace, *, dtype: str) -> dict[str, Any]:
    """Median seconds of a step of both, and what else one wants to know of them."""
    shape = SHAPES[asked.model]
    length, micro, count = shape[6:]
    ours = Ours(source, data, shape, dtype=dtype, steps=asked.steps + 2, attention=asked.attention_backend)
    theirs = Theirs(source, asked.device, dtype=dtype)
    seconds: dict[str, list[float]] = {"mconv": [], "transformers": []}
    losses: dict[str, list[float]] = {"mconv": [], "transformers": []}
    memory = {"mconv": 0, "transformers": 0}
    for number in range(asked.steps + 2):
        batch = ours.batch(number)
        for name, side in (("mconv", ours), ("transformers", theirs))[:: 1 if number % 2 else -1]:
            forget_peak(asked.device)
            began = time.perf_counter()
            losses[name].append(side.step(batch))
            memory[name] = max(memory[name], above(asked.device))
            seconds[name].append(time.perf_counter() - began)
    tokens = length * micro * count
    medians = {name: statistics.median(times[2:]) for name, times in seconds.items()}
    rates = {name: tokens / s for name, s in medians.items()}
    if asked.profile:
        profile(ours, asked)
    parameters = sum(p.numel() for p in theirs.model.parameters())
    ours.close()
    return {
        "model": asked.model, "dtype": dtype, "device": device_name(asked.device), "parameters": parameters,
        "tokens_a_step": tokens, "seconds": medians,
        "tokens_per_second": rates, "mfu": mfu(ours, rates, dtype=dtype), "attention": theirs.attention,
        "bytes_of_a_step": memory, "ratio": medians["transformers"] / medians["mconv"], "losses": losses,
    }  # fmt: skip


LAYOUTS = {"1 rank": [], "tp 2": ["--tp", "2"], "tp 2, sequence parallel": ["--tp", "2", "--sequence-parallel"],
           "pp 2": ["--pp", "2"]}  # fmt: skip


def layouts(source: Path, data: Path, asked: argparse.Namespace, *, dtype: str) -> list[dict[str, Any]]:
    """`mconv train` as a command at several layouts, each rank with its share of the cores; medians of its own log."""
    length, micro, count = SHAPES[asked.model][6:]
    found: list[dict[str, Any]] = []
    for name, options in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            argv = {
                "load": source, "data": data, "save": folder, "train-iters": asked.steps + 2, "lr": 1e-4,
                "seq-length": length, "micro-batch-size": micro, "global-batch-size": micro * count,
                "data-cache": f"{data}.cache",
            }  # fmt: skip
            flags = [word for name, value in argv.items() for word in (f"--{name}", str(value))]
            flags += [*options, f"--{dtype}"]
            command = [sys.executable, "-m", "mconv", "train", *flags]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            lines = [json.loads(line) for line in (Path(folder) / "train.jsonl").read_text().splitlines()]
        rate = statistics.median([line["tokens_per_second"] for line in lines if "loss" in line][2:])
        found.append({"layout": name, "dtype": dtype, "tokens_per_second": rate})
        print(f"  {name}: {rate:.0f} tokens/s, {rate / found[0]['tokens_per_second']:.2f} of one rank on the same cores")
    return found


class Ours:
    """mconv's own run at one rank: the steps of `mconv train`, without its log."""

    def __init__(
        self, source: Path, data: Path, shape: tuple[int, ...], *, dtype: str, steps: int, attention: str = "auto"
    ) -> None:
        from mconv.train.config import make
        from mconv.train.loop import feed
        from mconv.train.loop.start import start

        length, micro, count = shape[6:]
        self.run = start(
            make({"load": str(source), "data": [str(data)], "train_iters": steps + 8, "lr": 1e-4, "seq_length": length,
                  "lr_decay_style": "constant", "micro_batch_size": micro, "global_batch_size": micro * count,
                  "weight_decay": 0.1, "bf16": dtype == "bf16", "attention_backend": attention}),
            say=lambda line: None,
        )  # fmt: skip
        self.data = feed.sets(self.run, lambda line: None).train
        self.feed = feed.feed(self.run, self.data, consumed=0)

    def batch(self, number: int) -> list[dict[str, torch.Tensor]]:
        """The micro batches of a step, for the other side."""
        from mconv.train.data import loader

        config = self.run.config
        numbers = loader.sample_numbers(
            number * config.global_batch_size, micro_batch_size=config.micro_batch_size,
            global_batch_size=config.global_batch_size, replica=0, replicas=1,
        )  # fmt: skip
        feed = loader.batches(self.data, numbers, device=torch.cuda.current_device())
        return [next(feed) for _ in range(config.global_batch_size // config.micro_batch_size)]

    def step(self, _: Any) -> float:
        from mconv.train.loop import feed
        from mconv.train.loop.steps import step

        again = partial(feed.feed, self.run, self.data, consumed=self.run.consumed)
        return step(self.run, self.feed, again=again).loss

    def close(self) -> None:
        from mconv.train.megatron.parallel import shutdown

        shutdown()


class Theirs:
    """A plain loop on transformers."""

    def __init__(self, source: Path, device: str, *, dtype: str) -> None:
        from transformers import AutoModelForCausalLM

        flash = device == "cuda" and dtype == "bf16" and importlib.util.find_spec("flash_attn") is not None
        self.attention = "flash_attention_2" if flash else "sdpa"
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation=self.attention)
        self.model.to(device).train()
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16")

    def step(self, batch: list[dict[str, torch.Tensor]]) -> float:
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.model.device)
        for micro in batch:
            with self.autocast:
                out = self.model(input_ids=micro["tokens"], labels=micro["labels"], shift_labels=micro["labels"])
            (out.loss / len(batch)).backward()
            total += out.loss.detach() / len(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(total)


def mfu(ours: Ours, rates: dict[str, float], *, dtype: str) -> dict[str, float] | None:
    """Share of the device's dense peak that a rate is; None where the peak is not known."""
    from mconv.train.estimate import flops

    if not torch.cuda.is_available():
        return None
    peak = flops.peak(torch.cuda.get_device_name(), dtype)
    each = ours.run.flops_per_token
    return None if peak is None else {name: rate * each / peak for name, rate in rates.items()}


def forget_peak(device: str) -> None:
    """Begin a measurement of time and memory."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def above(device: str) -> int:
    """Peak bytes of a step above what lay there before it (both models' weights and optimizer states); waits for it."""
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def profile(ours: Ours, asked: argparse.Namespace) -> None:
    """The ten operations that mconv's step spends its time in."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if asked.device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as found:
        ours.step(None)
        above(asked.device)
    by = "self_cuda_time_total" if asked.device == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=14, max_name_column_width=40))


def show(found: dict[str, Any]) -> None:
    rates = found["tokens_per_second"]
    print(f"{found['model']} ({found['parameters'] / 1e6:.0f} M parameters), {found['dtype']}, {found['device']}: "
          f"mconv {rates['mconv']:.0f} tokens/s, transformers {rates['transformers']:.0f}: "
          f"ratio {found['ratio']:.2f} (attention of transformers: {found['attention']})")  # fmt: skip
    if found["mfu"]:
        print(f"  MFU: mconv {found['mfu']['mconv']:.1%}, transformers {found['mfu']['transformers']:.1%}")
    if found["bytes_of_a_step"]["mconv"]:
        peaks = {name: f"{nbytes / 2**30:.2f} GiB" for name, nbytes in found["bytes_of_a_step"].items()}
        print(f"  memory of a step, above weights and optimizer: {peaks}")
    for name, losses in found["losses"].items():
        print(f"  losses of {name}: {', '.join(f'{loss:.5f}' for loss in losses)}")


if __name__ == "__main__":
    main()
