"""Megatron-LM's mock data: 100 000 documents of rising numbers, a third of them each to train, validate and test."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mconv.train.megatron.imports import BlendedMegatronDatasetBuilder, GPTDatasetConfig, MockGPTDataset, quiet


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A tokenizer for megatron-core whose tokens are numbers, the last of which ends a document."""

    vocab_size: int

    @property
    def eod(self) -> int:
        return self.vocab_size - 1

    @property
    def pad(self) -> int:
        return -1

    @property
    def unique_identifiers(self) -> dict[str, Any]:
        return {"class": "mconv numbers", "vocab_size": self.vocab_size}


@quiet()
def datasets(*, vocab_size: int, seq_length: int, seed: int, samples: Sequence[int]) -> list[Any]:
    """Return training, validation and test data: the samples of Megatron-LM's `--mock-data` with its NullTokenizer.

    `vocab_size` is the true one, which counts the end of a document: Megatron-LM's flag `--vocab-size` and one.
    """
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=seq_length,
        tokenizer=_Numbers(vocab_size),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    logging.getLogger(MockGPTDataset.__module__).addFilter(_is_news)
    built = BlendedMegatronDatasetBuilder(MockGPTDataset, list(samples), lambda: True, config).build()
    return list(built)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a log record is of interest: all but the one that says that no cache folder is given."""
    return "path_to_cache is None" not in record.getMessage()
