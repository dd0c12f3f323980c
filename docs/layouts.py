"""Rewrite the tables of docs/which-layout.md from the suggestions of `mconv plan --suggest`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mconv.convert.checkpoint.model import SourceModel
from mconv.train.config import TrainConfig, make
from mconv.train.estimate import plan
from mconv.train.estimate.fit import GB, Gpu
from mconv.train.estimate.suggest import SHARING, VARIED, Suggestion, flags, suggest

PAGE = Path(__file__).with_name("which-layout.md")
CARD = 80
RUN = {"init": "random", "data": ["none"], "lr": 1.0, "train_iters": 1, "bf16": True, "seq_length": 4096,
       "global_batch_size": 256}  # fmt: skip
"""Sequences of 4096 tokens, a million tokens in a step."""
MODELS: dict[str, dict[str, Any]] = {
    "1B": {"preset": "llama2-7b", "num_layers": 22, "hidden_size": 2048, "ffn_hidden_size": 5632, "num_query_groups": 4},
    "7B": {"preset": "llama2-7b"},
    "13B": {"preset": "llama2-13b"},
    "34B": {"preset": "llama2-70b", "num_layers": 48, "ffn_hidden_size": 22016},
    "70B": {"preset": "llama2-70b"},
}
"""Llama 2's shapes, TinyLlama's (1B) and Code Llama's (34B)."""
GPUS = {"1B": (1, 8), "7B": (1, 8, 16, 32), "13B": (8, 16, 32, 64), "34B": (8, 16, 32, 64), "70B": (8, 16, 32, 64)}
LORA = {"lora_rank": 16, "global_batch_size": 32}
ADAPTERS = {"7B": (1,), "13B": (1,), "34B": (8,), "70B": (8,)}


def filled(page: str) -> str:
    """Return the page with every table generated from the code."""
    tables = {"whole": (GPUS, {}), "lora": (ADAPTERS, LORA)}

    def fill(found: re.Match[str]) -> str:
        return "\n".join([f"<!-- {found[1]} -->", *_table(*tables[found[1]]), "<!-- end -->"])

    return re.sub(r"<!-- (whole|lora) -->\n(?:\|.*\n)*<!-- end -->", fill, page)


def _table(sizes: dict[str, tuple[int, ...]], fields: dict[str, Any]) -> list[str]:
    head = ["model", "GPUs", "memory", "replicas", "micro batches", "bubble", "flags"]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *_rows(sizes, fields))]


def _rows(sizes: dict[str, tuple[int, ...]], fields: dict[str, Any]) -> Iterator[list[str]]:
    for name, worlds in sizes.items():
        config, model, _ = plan.opened(make({**RUN, **MODELS[name], **fields}))
        for world in worlds:
            yield [name, f"{world} x {CARD} GB", *_best(config, model, world)]


def _best(config: TrainConfig, model: SourceModel, world: int) -> list[str]:
    """Return the cells of the first suggestion, or of a row that says that nothing fits."""
    found: list[Suggestion] = suggest(config, model, world=world, gpu=Gpu(CARD * GB), count=1)
    if not found:
        return ["does not fit", "", "", "", ""]
    one = found[0]
    layout = flags({name: getattr(one.config, name) for name in VARIED if name not in SHARING})
    numbers = [f"{one.peak / GB:.0f} GB", str(one.replicas), str(one.micro_batches), f"{one.bubble:.1%}"]
    return [*numbers, f"`{layout}`" if layout else "none"]


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
