"""Settings that the next steps depend on: a run that is resumed under different ones says so."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from mconv.train.config import TrainConfig
from mconv.train.config.compute import Precision
from mconv.train.config.data import Boundaries, Data, Instruction
from mconv.train.config.length import Length
from mconv.train.config.optimizer import Optimizer, Schedule
from mconv.train.config.trainable import Trained

ORDER = (Data, Instruction, Length)
"""Sections that say which samples come, and when."""
STEP = (Boundaries, Schedule, Optimizer, Precision, Trained)
ASIDE = {
    "micro_batch_size", "valid_data", "test_data", "data_cache", "num_workers", "no_mmap_bin_files",
    "allow_other_tokenizer", "fp32",
}  # fmt: skip
"""Fields of those that change no step."""


def deciding(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that a checkpoint remembers."""
    return {name: getattr(config, name) for name in (*_fields(*ORDER), *_fields(*STEP))}


def changes(config: TrainConfig, then: dict[str, Any] | None, *, iteration: int) -> Iterator[str]:
    """Yield lines on settings that differ from those of the checkpoint of `iteration`; none if it remembers none."""
    known = {name: (then[name], value) for name, value in deciding(config).items() if then and name in then}
    other = {name: f"{name} {before} -> {now}" for name, (before, now) in known.items() if before != now}
    if other:
        yield f"warning: iteration {iteration} was saved under other settings: {', '.join(other.values())}"
    if other.keys() & set(_fields(*ORDER)):
        yield "warning: the order of samples may change from here on: some may be repeated, others left out"


def _fields(*sections: type) -> list[str]:
    """Return the names of fields, and the seed."""
    names = [field.name for section in sections for field in dataclasses.fields(section)]
    return ["seed", *(name for name in names if name not in ASIDE)]
