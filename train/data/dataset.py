"""megatron-core's GPTDataset over `.bin/.idx` prefixes, with documents kept apart if asked."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mconv.errors import FormatError
from mconv.train.config.data import shares
from mconv.train.data.cache import cached
from mconv.train.data.index import Tokens
from mconv.train.data.sources import Blend
from mconv.train.megatron.imports import (
    BlendedMegatronDatasetBuilder,
    GPTDataset,
    GPTDatasetConfig,
    IndexedDataset,
    quiet,
)

SURPLUS = 0.005
"""Samples that megatron-core makes of each prefix beyond its share, as a part of them."""


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    """A stand-in for GPTDataset's tokenizer. Neither number is a token: nothing is padded, and `eod` is not used."""

    pad: int = -(1 << 62)
    eod: int = -2
    vocab_size: int | None = None
    """Always None: the width of the ids is that of the index, not what a vocabulary suggests."""

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        return {"class": "mconv"}


class Text(GPTDataset):
    """megatron-core's samples, each of them whole."""

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: Any) -> Any:
        """Return the tokens: through megatron-core's memory map, or read by `Tokens` if no map is wanted."""
        data = IndexedDataset(dataset_path, mmap=config.mmap_bin_files)
        if not config.mmap_bin_files:
            data.bin_reader = Tokens(Path(f"{dataset_path}.bin"), data.index.dtype)
        return data

    def __getitem__(self, idx: Any) -> dict[str, Tensor]:
        sample: dict[str, Tensor] = super().__getitem__(idx)
        if not sample["loss_mask"].all():
            raise FormatError(
                f"{self.dataset_path}: sample {idx} is shorter than seq_length: data or index files have changed under "
                "the run; start again, with another data_cache"
            )
        return sample


@quiet()
def datasets(
    blends: Blend | Sequence[Blend | None],
    *,
    split: str | None,
    seq_length: int,
    seed: int,
    samples: Sequence[int | None],
    cache: Path,
    mmap: bool = True,
) -> list[Any]:
    """Return datasets for training, validation and test, each of at least `samples` samples; None where that is 0.

    One blend is cut by `split`, three are one for each use. All ranks call it: rank 0 builds the index files under
    `cache`, the others wait and read them; a second start finds them there. `samples` of None is one epoch.
    """
    asked = [blends] * len(samples) if isinstance(blends, Blend) else blends
    drawn = [mix if count != 0 else None for mix, count in zip(asked, samples, strict=True)]
    surplus = max(_surplus(mix, count or 0) for mix, count in zip(drawn, samples, strict=True))
    told: dict[str, Any] = {"random_seed": seed, "sequence_length": seq_length, "mid_level_dataset_surplus": surplus}
    if isinstance(blends, Blend):
        # in a form that it does not read otherwise than we do
        told |= {"blend": _mix(blends), "split": ",".join(map(np.format_float_positional, shares(split)))}
    else:
        told |= {"blend_per_split": [mix and _mix(mix) for mix in drawn]}
    build = partial(_build, told=told, samples=list(samples), mmap=mmap)
    prefixes = dict.fromkeys(prefix for mix in drawn if mix for prefix in mix.prefixes)
    built: list[Any] = cached(build, cache=cache, prefixes=list(prefixes), told=[told, list(samples)])
    return built


def _build(at: Path, *, told: dict[str, Any], samples: list[int | None], mmap: bool) -> list[Any]:
    """Run megatron-core's builder, with its index files in the folder `at`."""
    config = GPTDatasetConfig(
        **told, path_to_cache=str(at), tokenizer=_Tokenizer(), mmap_bin_files=mmap, reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    if config.split_matrix:  # a share that nobody draws from may be too small for a sample
        config.split_matrix = [
            edges if count != 0 else None for edges, count in zip(config.split_matrix, samples, strict=True)
        ]
    built: list[Any] = BlendedMegatronDatasetBuilder(Text, samples, lambda: True, config).build()
    return built


def _mix(blend: Blend) -> tuple[list[str], list[float] | None]:
    """Return a blend in megatron-core's form. Without weights it takes prefixes in proportion to their sequences."""
    return [str(prefix) for prefix in blend.prefixes], blend.weights if len(blend.prefixes) > 1 else None


def _surplus(mix: Blend | None, samples: int) -> float:
    """Return the surplus with which megatron-core makes enough samples of each prefix, if many are blended to few.

    It rounds each prefix's share of the samples up, and then draws its share of the sum of these.
    """
    if not samples or mix is None or mix.weights is None:
        return SURPLUS
    share = np.asarray(mix.weights) / sum(mix.weights)
    made = np.ceil(samples * share)
    drawn = np.floor(share * (made.sum() - 1)) + 1
    return max(SURPLUS, float((drawn / made).max()) - 1)


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
    """Return positions from 0 in each document, from the rising number of each token's document."""
    return torch.arange(len(documents)) - torch.searchsorted(documents, documents)
