"""Training speed beside a plain transformers loop: the same model, data, batches and optimizer, in one run.

    python benchmarks/train.py [--model 20m] [--steps 6] [--device cpu] [--dtypes fp32,bf16] [--json FILE]

The two take turns, a step each, so that both see the same machine; the figure is the median step. The plain loop is what
a user would write: `AutoModelForCausalLM` with SDPA attention, torch's AdamW, gradient clipping; in bf16 under autocast
with fp32 weights, which is what bf16 training with fp32 main weights is there. Losses of both are printed: they must be
the same run. `--layouts` adds mconv at tp 2 and pp 2 on two ranks of this machine (gloo or NCCL) beside one rank.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SHAPES = {
    # hidden, ffn, layers, heads, groups, vocabulary, sequence, micro batch, micro batches
    "tiny": (128, 352, 2, 4, 4, 2048, 128, 2, 2),
    "20m": (256, 704, 4, 4, 4, 32000, 256, 2, 2),
    "60m": (512, 1408, 8, 8, 8, 32000, 512, 2, 2),
    "125m": (768, 2048, 12, 12, 12, 32000, 1024, 2, 2),
    "1b": (2048, 5632, 22, 32, 4, 32000, 4096, 4, 4),
    "3b": (2560, 6912, 32, 32, 8, 32000, 4096, 2, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="20m", choices=SHAPES)
    parser.add_argument("--steps", type=int, default=6, help="timed steps, after two that are not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--profile", action="store_true", help="the ten most expensive operations of mconv's step")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        source, data = Path(folder) / "hf", Path(folder) / "data"
        make_model(source, asked.model)
        make_data(data, SHAPES[asked.model], steps=asked.steps + 4)
        for dtype in asked.dtypes.split(","):
            found.append(compare(source, data, asked, dtype=dtype))
            show(found[-1])
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

    from mconv.train.mcore import IndexedDatasetBuilder

    vocabulary, length, micro, count = shape[5:]
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    tokens = np.random.default_rng(0).integers(0, vocabulary, steps * micro * count * length + length + 1)
    builder.add_document(tokens.astype(np.uint16), [len(tokens)])
    builder.finalize(f"{prefix}.idx")


def compare(source: Path, data: Path, asked: argparse.Namespace, *, dtype: str) -> dict[str, Any]:
    """Median seconds of a step of both, and what else one wants to know of them."""
    shape = SHAPES[asked.model]
    length, micro, count = shape[6:]
    ours = Ours(source, data, shape, dtype=dtype, steps=asked.steps + 2)
    theirs = Theirs(source, asked.device, dtype=dtype)
    seconds: dict[str, list[float]] = {"mconv": [], "transformers": []}
    losses: dict[str, list[float]] = {"mconv": [], "transformers": []}
    for number in range(asked.steps + 2):
        batch = ours.batch(number)
        for name, side in (("mconv", ours), ("transformers", theirs))[:: 1 if number % 2 else -1]:
            synchronize(asked.device)
            began = time.perf_counter()
            losses[name].append(side.step(batch))
            synchronize(asked.device)
            seconds[name].append(time.perf_counter() - began)
    tokens = length * micro * count
    medians = {name: statistics.median(times[2:]) for name, times in seconds.items()}
    if asked.profile:
        profile(ours, asked)
    parameters = sum(p.numel() for p in theirs.model.parameters())
    ours.close()
    return {
        "model": asked.model, "dtype": dtype, "device": device_name(asked.device), "parameters": parameters,
        "tokens_a_step": tokens, "seconds": medians,
        "tokens_per_second": {name: tokens / s for name, s in medians.items()},
        "ratio": medians["transformers"] / medians["mconv"], "losses": losses,
    }  # fmt: skip


class Ours:
    """mconv's own run at one rank: the steps of `mconv train`, without its log."""

    def __init__(self, source: Path, data: Path, shape: tuple[int, ...], *, dtype: str, steps: int) -> None:
        from mconv.train import loop
        from mconv.train.config import make
        from mconv.train.run import start

        length, micro, count = shape[6:]
        self.run = start(
            make({"load": str(source), "data": [str(data)], "train_iters": steps + 8, "lr": 1e-4, "seq_length": length,
                  "lr_decay_style": "constant", "micro_batch_size": micro, "global_batch_size": micro * count,
                  "weight_decay": 0.1, "bf16": dtype == "bf16"}),
            say=lambda line: None,
        )  # fmt: skip
        self.data, _ = loop._data(self.run)
        self.feed = loop._feed(self.run, self.data, consumed=0)

    def batch(self, number: int) -> list[dict[str, torch.Tensor]]:
        """The micro batches of a step, for the other side."""
        from mconv.train.data import dataset

        config = self.run.config
        numbers = dataset.sample_numbers(
            number * config.global_batch_size, micro_batch_size=config.micro_batch_size,
            global_batch_size=config.global_batch_size, replica=0, replicas=1,
        )  # fmt: skip
        feed = dataset.batches(self.data, numbers, device=torch.cuda.current_device())
        return [next(feed) for _ in range(config.global_batch_size // config.micro_batch_size)]

    def step(self, _: Any) -> float:
        from mconv.train.steps import step

        return step(self.run, self.feed).loss

    def close(self) -> None:
        from mconv.train.parallel import shutdown

        shutdown()


class Theirs:
    """A plain loop on transformers."""

    def __init__(self, source: Path, device: str, *, dtype: str) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa")
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


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def profile(ours: Ours, asked: argparse.Namespace) -> None:
    """The ten operations that mconv's step spends its time in."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if asked.device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as found:
        ours.step(None)
        synchronize(asked.device)
    by = "self_cuda_time_total" if asked.device == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=14, max_name_column_width=40))


def show(found: dict[str, Any]) -> None:
    rates = found["tokens_per_second"]
    print(f"{found['model']} ({found['parameters'] / 1e6:.0f} M parameters), {found['dtype']}, {found['device']}: "
          f"mconv {rates['mconv']:.0f} tokens/s, transformers {rates['transformers']:.0f}: "
          f"ratio {found['ratio']:.2f}")  # fmt: skip
    for name, losses in found["losses"].items():
        print(f"  losses of {name}: {', '.join(f'{loss:.5f}' for loss in losses)}")


if __name__ == "__main__":
    main()
