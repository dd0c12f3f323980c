"""How long a save keeps training waiting: in the background beside at once, the same state, in one run.

    python benchmarks/save.py [--state-mb 300] [--rounds 5] [--folder DIR]

A LLaMA in fp32 whose weights and Adam moments are that large takes steps and saves, by turns at once and in the
background. What a save in the background costs is the call, and all that later steps spend on asking for it, naming it
and pointing the tracker at it; the first save of each kind is not counted. Beside: how much
longer steps are while files are written.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mconv.train.config import make
from mconv.train.loop.run import Run, save
from mconv.train.loop.start import start

LAYER = 768 * (768 + 2 * 256 + 768 + 3 * 2048)
"""Parameters of a layer of the model."""
TABLES = 2 * 4096 * 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-mb", type=int, default=300, help="weights and moments, fp32")
    parser.add_argument("--rounds", type=int, default=5, help="counted saves of each kind")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if not given")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        show(
            measure(Path(folder), layers=max(1, round((asked.state_mb * 1e6 / 12 - TABLES) / LAYER)), rounds=asked.rounds)
        )


def measure(folder: Path, *, layers: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind, one for each round."""
    from mconv.train.loop import steps
    from mconv.train.loop.feed import feed, sets
    from mconv.train.megatron.imports import quiet

    model = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 768, "intermediate_size": 2048,
        "num_hidden_layers": layers, "num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 4096,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(model))
    config = make({
        "init": "random", "model": str(folder / "config.json"), "mock_data": True, "train_iters": 10_000, "lr": 1e-5,
        "global_batch_size": 1, "seq_length": 128, "save": str(folder / "run"), "keep_last": 1,
    })  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in ("at once", "background", "writing", "idle step", "busy step")}
    with quiet():
        run = start(config, say=lambda _: None)
        data = sets(run, say=lambda _: None).train
        batches = feed(run, data, consumed=0)
        for number in range(rounds + 1):
            taken = round_of(run, lambda: steps.step(run, batches, again=lambda: feed(run, data, consumed=run.consumed)))
            for name, seconds in taken if number else ():
                found[name].append(seconds)
    return found


def round_of(run: Run, step: Any) -> Iterator[tuple[str, float]]:
    """A step, a save at once, a step, a save in the background, and steps until that is whole."""
    saver = run.saver
    assert saver is not None
    yield "idle step", clocked(step)
    saver.background = False
    yield "at once", clocked(lambda: save(run))
    yield "idle step", clocked(step)
    saver.background = True
    began = time.perf_counter()
    blocked = clocked(lambda: save(run))
    while saver.pending is not None:
        busy = clocked(step)
        if saver.pending is not None:
            yield "busy step", busy
        blocked += clocked(saver.poll)
    yield "background", blocked
    yield "writing", time.perf_counter() - began


def clocked(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def show(found: dict[str, list[float]]) -> None:
    middle = {name: statistics.median(values) for name, values in found.items() if values}
    for name, seconds in middle.items():
        all_of_them = f"median of {len(found[name])}, {min(found[name]):.3f} to {max(found[name]):.3f}"
        print(f"{name:12} {seconds:8.3f} s   ({all_of_them})")
    print(f"blocking, background / at once: {middle['background'] / middle['at once']:.3f} (goal: at most 0.2)")
    print(f"a step while files are written / one that is alone: {middle['busy step'] / middle['idle step']:.2f}")


if __name__ == "__main__":
    main()
