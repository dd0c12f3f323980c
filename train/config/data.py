"""What a run reads: data files, what keeps documents apart, and conversations."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mconv.train.config import rules


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data: files, their weights, and the length of a sample."""

    data: list[str] | None = None
    """Prefixes of .bin/.idx files (`mconv data tokenize` writes them), or folders that hold them. A weight may precede
    each prefix ("0.3 data/a"). Divided into training, validation and test by split."""
    mock_data: bool = False
    """Train on Megatron-LM's mock data (rising numbers) instead of data, to try a machine."""
    data_weights: list[float] | None = None
    """Weight of each prefix of data in the blend, in any unit; by their sizes if not given."""
    train_data: list[str] | None = None
    """Prefixes for training only, written like those of data; use instead of data."""
    valid_data: list[str] | None = None
    """Prefixes for validation; needs train_data."""
    test_data: list[str] | None = None
    """Prefixes for the evaluation after the last step; needs train_data."""
    split: str | None = None
    """Shares of data for training, validation and test, such as 98,1,1; all for training if not given."""
    data_cache: str | None = None
    """Folder for the datasets' index files; `data-cache` in the save folder if not given, or beside the first prefix."""
    seq_length: int | None = None
    """Tokens in one sample; the model's max_position_embeddings if not given."""
    data_type: Literal["gpt", "instruction"] = "gpt"
    """Kind of data. gpt: running text, cut every seq_length tokens. instruction: conversations, as `mconv data instruct`
    writes them."""
    dataloader_type: Literal["single", "cyclic"] = "single"
    """Order of samples. single: the dataset's own order, which is already shuffled. cyclic: one epoch, shuffled again
    each time."""
    num_workers: int = 2
    """Threads that read micro batches ahead; 0 reads each one when it is needed. The batches are the same."""
    no_mmap_bin_files: bool = False
    """Read samples with pread instead of mapping the .bin files into memory, for file systems where maps are slow or
    count as the job's memory. The batches are the same."""
    allow_other_tokenizer: bool = False
    """Train even if the data was made with tokenizer files that differ from the checkpoint's."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.at_least_1(config, "seq_length")
        yield from rules.not_negative(config, "num_workers")
        yield from rules.each(config, "data train_data valid_data test_data", "at least one prefix", bool)
        yield from rules.each(
            config, "data_weights", "positive numbers", lambda weights: all(0 < x < math.inf for x in weights)
        )
        if config.data_weights is not None and len(config.data_weights) != len(config.data or []):
            yield f"data_weights has {len(config.data_weights)} weights for {len(config.data or [])} prefixes in data"
        yield from rules.each(
            config, "split", "three shares such as 98,1,1" + ", the first above 0" * (not config.eval_only),
            lambda split: _leaves(shares(split), config.eval_only),
        )  # fmt: skip
        yield from _one_source(config)


def _one_source(config: Any) -> Iterator[str]:
    """Yield what contradicts a single source of data: `data` to be split, prefixes for each use, or mock data."""
    apart = [name for name in ("train_data", "valid_data", "test_data") if getattr(config, name) is not None]
    given = [name for name in ("data", "mock_data") if getattr(config, name)] + apart[:1]
    if not given:
        yield (
            "data is not set: give data (or train_data) prefixes of .bin/.idx files, which mconv data tokenize makes, or "
            "set mock_data"
        )
    elif len(given) > 1:
        yield f"{given[0]} and {given[1]} are both set; give one of them (valid_data and test_data go with train_data)"
    elif apart and config.train_data is None and not config.eval_only:
        yield f"{apart[0]} is set without train_data; give the prefixes to train on"
    if config.split is not None and apart:
        yield f"split is for data, and {apart[0]} is not split; leave one of them out"
    if config.mock_data and config.split not in (None, "1,1,1"):
        yield f"split is {config.split!r}; mock_data is always split 1,1,1"
    if config.mock_data and config.data_type == "instruction":
        yield "mock_data is running text; data_type instruction needs conversations (mconv data instruct makes them)"


def _leaves(parts: list[float], eval_only: bool) -> bool:
    """Return whether a split has a share to train on, or in an evaluation any share at all."""
    return len(parts) == 3 and min(parts) >= 0 < (sum(parts) if eval_only else parts[0])


def shares(split: str | None) -> list[float]:
    """Return the three numbers of a split; zeros if it has no such numbers."""
    try:
        found = [float(share) for share in (split or "100,0,0").split(",")]
        return found if all(math.isfinite(share) for share in found) else [0.0, 0.0, 0.0]
    except ValueError:
        return [0.0, 0.0, 0.0]


@dataclass(frozen=True, kw_only=True)
class Boundaries:
    """Document boundaries: documents that share a sample."""

    reset_position_ids: bool = False
    """Count positions from 0 in each document of a sample, instead of through the whole sample."""
    reset_attention_mask: bool = False
    """Keep the documents of a sample apart: no token attends to another document."""
    eod_mask_loss: bool = False
    """Leave out the loss after a document's last token, where the next token belongs to the next document."""
    eod_token: int | None = None
    """Id of the token that ends a document, for data whose record does not say it."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.not_negative(config, "eod_token")
        asked = [name for name in RESETS if getattr(config, name)]
        if config.eod_token is not None and not asked:
            yield f"eod_token is {config.eod_token}, but none of {', '.join(RESETS)} needs it"
        if asked and config.data_type == "instruction":
            yield f"{asked[0]} is for running text; packing keeps conversations apart by itself, and their loss by role"


RESETS = ("reset_position_ids", "reset_attention_mask", "eod_mask_loss")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Instruction data: the loss on conversations, and how they fill a row."""

    scalar_loss_mask: float = 0.0
    """Loss weight of tokens outside answers; tokens of answers have 1."""
    packing: bool = False
    """Pack several conversations into one row of seq_length; none of them attends to another."""
    variable_seq_lengths: bool = False
    """Pad rows to the longest of their micro batch (in steps of 16) instead of seq_length."""

    @staticmethod
    def problems(config: Any) -> Iterator[str]:
        """Yield the broken rules of this section."""
        yield from rules.each(config, "scalar_loss_mask", "from 0 to 1; answers have 1", lambda part: 0 <= part <= 1)
        for name in ("scalar_loss_mask", "packing", "variable_seq_lengths"):
            if getattr(config, name) and config.data_type != "instruction":
                yield f"{name} is for data_type instruction; data_type is {config.data_type}"
