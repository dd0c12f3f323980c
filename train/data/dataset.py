"""megatron-core's GPTDataset over `.bin/.idx` prefixes: its samples, with documents kept apart where that is asked."""

import hashlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mconv.train.data.sources import Blend
from mconv.train.mcore import BlendedMegatronDatasetBuilder, GPTDataset, GPTDatasetConfig

EDGE = 1 << 20
"""Bytes at either end of an index by which it is known again."""


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    """What GPTDataset asks of a tokenizer: nothing is padded (-1 is no token's id), and `eod` is not used.

    It is also the one part of the cache's key that is ours to say: `data` keeps an index of other data, made under the
    same names, from being taken for this one's.
    """

    data: str
    pad: int = -1
    eod: int = -2
    vocab_size: int | None = None
    """None: the width of the file's ids is what its index says, not what a vocabulary suggests."""

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        return {"class": "mconv", "data": self.data}


def datasets(
    blends: Blend | Sequence[Blend | None],
    *,
    split: str | None,
    seq_length: int,
    seed: int,
    samples: Sequence[int | None],
    cache: Path,
) -> list[Any]:
    """Datasets for training, validation and test, None where there is none; each of at least `samples` samples.

    One blend is cut by `split`, three are one for each use. All ranks call it: rank 0 builds the index files under
    `cache`, the others wait and read them; a second start finds them there. `samples` of None is one epoch.
    """
    whole = isinstance(blends, Blend)
    given = [blends] if isinstance(blends, Blend) else [blend for blend in blends if blend]
    mixes = [_mix(blends)] if isinstance(blends, Blend) else [blend and _mix(blend) for blend in blends]
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=seq_length,
        blend=mixes[0] if whole else None,
        blend_per_split=None if whole else mixes,
        split=split if whole else None,
        path_to_cache=str(cache),
        tokenizer=_Tokenizer(_known_by([prefix for blend in given for prefix in blend.prefixes])),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    built: list[Any] = BlendedMegatronDatasetBuilder(GPTDataset, list(samples), lambda: True, config).build()
    return built


def _mix(blend: Blend) -> tuple[list[str], list[float] | None]:
    """megatron-core's form. Without weights it takes prefixes in proportion to their sequences."""
    return [str(prefix) for prefix in blend.prefixes], blend.weights if len(blend.prefixes) > 1 else None


def _known_by(prefixes: Sequence[Path]) -> str:
    """A digest that changes when a prefix is written anew: of sizes, and of both ends of each index."""
    digest = hashlib.sha256()
    for prefix in prefixes:
        index = prefix.with_name(prefix.name + ".idx")
        digest.update(f"{prefix.with_name(prefix.name + '.bin').stat().st_size} {index.stat().st_size}".encode())
        with index.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(0, index.stat().st_size - EDGE))
            digest.update(file.read(EDGE))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Apart:
    """Samples of `data` in which each document, up to its token `eod`, is kept apart from the next.

    megatron-core's own dataset does the same, in a loop over documents and with a mask of seq_length squared for each
    sample; here attention gets the number of each token's document, and the mask is made where it is used.
    """

    data: Any
    _: KW_ONLY
    eod: int
    positions: bool
    attention: bool
    loss: bool

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> dict[str, Any]:
        sample = dict(self.data[number])
        ends = sample["tokens"] == self.eod
        documents = ends.cumsum(0) - ends.long()
        if self.attention:
            sample["documents"] = documents
        if self.positions:
            sample["position_ids"] = positions_within(documents)
        if self.loss:
            sample["loss_mask"] = sample["loss_mask"].masked_fill(ends, 0.0)
        return sample


def positions_within(documents: Int[Tensor, "s"]) -> Int[Tensor, "s"]:
    """Positions from 0 in each document, from the rising number of each token's document."""
    return torch.arange(len(documents)) - torch.searchsorted(documents, documents)
