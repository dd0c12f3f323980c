"""megatron-core's GPTDataset over `.bin/.idx` prefixes, and the order in which ranks draw from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mconv.errors import ConfigError, FormatError
from mconv.train.data.tokenize import read_record
from mconv.train.mcore import BlendedMegatronDatasetBuilder, GPTDataset, GPTDatasetConfig, IndexedDataset

CHUNK = 1 << 26
"""Tokens looked at together when the largest id is not on record."""


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    """What GPTDataset asks of a tokenizer: nothing is padded (-1 is no token's id), and `eod` is not used."""

    pad: int = -1
    eod: int = -2
    vocab_size: int | None = None
    """None: the width of the file's ids is what its index says, not what a vocabulary suggests."""

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        return {"class": "mconv"}


def check(
    prefixes: Sequence[Path],
    *,
    vocab_size: int,
    seq_length: int,
    shares: Sequence[float] = (1.0, 0.0, 0.0),
    wanted: int = 1,
) -> None:
    """Refuse data that is missing, damaged, too short for one sample, or holds ids that the model does not have.

    The first `wanted` of the `shares` of the split must each have a sample: megatron-core counts for ever in an empty
    one.
    """
    for prefix in prefixes:
        for suffix in (".bin", ".idx"):
            if not (path := prefix.with_name(prefix.name + suffix)).is_file():
                raise FormatError(f"{path}: no such file; make it with: mconv data tokenize ... --prefix {prefix}")
        data = _open(prefix)  # kept in a name: its arrays are views into its memory map
        tokens = int(data.sequence_lengths.sum())
        if tokens <= seq_length:
            raise ConfigError(f"{prefix} holds {tokens} tokens; one sample of seq_length {seq_length} needs one more")
        for name, held in zip(("training", "validation")[:wanted], _tokens_of_shares(data, shares), strict=False):
            if held <= seq_length:
                raise ConfigError(
                    f"{prefix}: split {','.join(map(str, shares))} leaves {held} tokens of whole documents for {name}; "
                    f"one sample of seq_length {seq_length} needs one more"
                )
        record = read_record(prefix)
        highest = record.max_id if record else _max_id(prefix, data.index.dtype)
        if highest >= vocab_size:
            raise ConfigError(
                f"{prefix} holds token id {highest}, but the model's vocabulary ends at {vocab_size - 1}; "
                "tokenize with the model's own tokenizer"
            )


def _open(prefix: Path) -> Any:
    """megatron-core's reader of a prefix. Raises FormatError where the files are damaged or do not match."""
    data = prefix.with_name(prefix.name + ".bin")
    index = prefix.with_name(prefix.name + ".idx")
    with index.open("rb") as file:
        if file.read(9) != b"MMIDIDX\x00\x00" or index.stat().st_size < 34:
            raise FormatError(f"{index} is not an index of megatron-core, or truncated; tokenize again")
    try:
        found = IndexedDataset(str(prefix))
        expected = int(found.sequence_lengths.sum()) * np.dtype(found.index.dtype).itemsize
    except Exception as error:  # numpy and struct raise what they like on a cut file
        raise FormatError(f"{index} is damaged ({type(error).__name__}: {error}); tokenize again") from error
    if expected != data.stat().st_size:
        raise FormatError(f"{data} has {data.stat().st_size} bytes, its index says {expected}; tokenize again")
    return found


def _tokens_of_shares(data: Any, shares: Sequence[float]) -> list[int]:
    """Tokens of each share of a split. megatron-core splits by documents, at rounded numbers of them."""
    ends = [round(len(data.sequence_lengths) * edge / sum(shares)) for edge in accumulate(shares)]
    return [int(data.sequence_lengths[a:b].sum()) for a, b in pairwise([0, *ends])]


def _max_id(prefix: Path, dtype: Any) -> int:
    ids = np.memmap(prefix.with_name(prefix.name + ".bin"), dtype=dtype, mode="r")
    return max(int(ids[start : start + CHUNK].max()) for start in range(0, len(ids), CHUNK))


def datasets(
    prefixes: Sequence[Path],
    *,
    weights: Sequence[float] | None,
    split: str,
    seq_length: int,
    seed: int,
    samples: tuple[int, int],
    cache: Path,
) -> tuple[Any, Any]:
    """(training, validation) datasets of at least `samples` samples each; validation is None where `split` gives none.

    All ranks call it: rank 0 builds the index files under `cache`, the others wait and read them.
    """
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=seq_length,
        blend=([str(prefix) for prefix in prefixes], list(weights) if weights else None),
        split=split,
        path_to_cache=str(cache),
        tokenizer=_Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    built = BlendedMegatronDatasetBuilder(GPTDataset, [*samples, 0], lambda: True, config).build()
    return built[0], built[1]


def sample_numbers(
    consumed: int, *, micro_batch_size: int, global_batch_size: int, replica: int, replicas: int
) -> Iterator[list[int]]:
    """The samples of each micro batch of one data-parallel replica, for ever, from `consumed` on.

    A global batch is the next `global_batch_size` samples whatever the layout, so every layout sees the same batches
    and a run can go on at any of them.
    """
    while True:
        for start in range(consumed, consumed + global_batch_size, micro_batch_size * replicas):
            first = start + replica * micro_batch_size
            yield list(range(first, first + micro_batch_size))
        consumed += global_batch_size


def batches(dataset: Any, numbers: Iterator[list[int]], *, device: Any) -> Iterator[dict[str, Tensor]]:
    """Micro batches on `device`: tokens, labels, loss_mask, position_ids, each [b s]; samples wrap round at the end."""
    for wanted in numbers:
        samples = [dataset[number % len(dataset)] for number in wanted]
        yield {name: torch.stack([sample[name] for sample in samples]).to(device) for name in samples[0]}
