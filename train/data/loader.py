"""Micro batches of samples: their order, reading ahead by threads, and the copy to the device."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mconv.errors import FormatError

AHEAD = 2
"""Micro batches that each thread is ahead."""


def sample_numbers(
    consumed: int, *, micro_batch_size: int, global_batch_size: int, replica: int, replicas: int
) -> Iterator[list[int]]:
    """Yield the samples of each micro batch of one data-parallel replica, endlessly, from `consumed` on.

    A global batch is the next `global_batch_size` samples whatever the layout, so every layout sees the same batches
    and a run can go on at any of them.
    """
    while True:
        for start in range(consumed, consumed + global_batch_size, micro_batch_size * replicas):
            first = start + replica * micro_batch_size
            yield list(range(first, first + micro_batch_size))
        consumed += global_batch_size


@dataclass(slots=True)
class Shuffled:
    """An endless dataset: each epoch has all samples of `data`, in an order of its own that `seed` decides."""

    data: Any
    seed: int
    kept: tuple[int, npt.NDArray[np.integer]] = (-1, np.zeros(0, np.int64))
    """The pair (epoch, its order): one value, so that threads never see one without the other."""

    def __len__(self) -> int:
        return 1 << 62  # no run comes to its end, so that nothing wraps it round a second time

    def __getitem__(self, number: int) -> Any:
        epoch, at = divmod(number, len(self.data))
        now, order = self.kept
        if now != epoch:
            order = np.random.RandomState([self.seed, epoch]).permutation(len(self.data))
            self.kept = epoch, order
        return self.data[int(order[at])]


def batches(
    dataset: Any,
    numbers: Iterator[list[int]],
    *,
    device: Any,
    workers: int = 0,
    multiple: int = 1,
    longest: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield micro batches on `device`: tokens, labels, loss_mask, position_ids and perhaps documents, each [b s].

    Samples wrap round at the end of the dataset. Shorter ones are padded with zeros, loss mask included, to the
    longest of their batch, rounded up to a `multiple` but not beyond `longest`. `workers` threads read ahead: most of
    the work is copying out of a memory map, which needs no interpreter, and threads need no second copy of the process.
    Raises FormatError at an id beyond `vocab_size`, in whose place ranks that share the vocabulary would have zeros.
    """
    read = partial(_read, dataset, multiple=multiple, longest=longest, vocab_size=vocab_size)
    if not workers:
        yield from (_moved(read(wanted), device) for wanted in numbers)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mconv-data")
    try:
        waiting = deque(pool.submit(read, wanted) for wanted in islice(numbers, AHEAD * workers))
        while waiting:
            ready = waiting.popleft().result()
            waiting.extend(pool.submit(read, wanted) for wanted in islice(numbers, 1))
            yield _moved(ready, device)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(
    dataset: Any, wanted: list[int], *, multiple: int, longest: int | None, vocab_size: int | None
) -> dict[str, Tensor]:
    """Return a micro batch, padded with zeros: no token before them sees them, and their loss mask is zero."""
    samples = [dataset[number % len(dataset)] for number in wanted]
    if vocab_size is not None:
        _check_ids(samples, wanted, vocab_size)
    needed = max(len(sample["tokens"]) for sample in samples)
    length = min(-(-needed // multiple) * multiple, longest or 1 << 62)
    names = [name for name, value in samples[0].items() if isinstance(value, Tensor)]
    return {name: torch.stack([_padded(sample[name], length) for sample in samples]) for name in names}


def _check_ids(samples: list[dict[str, Tensor]], numbers: list[int], vocab_size: int) -> None:
    """Raise FormatError at an id that the model does not have: checks before the first step only sample large data."""
    for number, sample in zip(numbers, samples, strict=True):
        lowest, highest = torch.cat([sample["tokens"], sample["labels"][-1:]]).aminmax()
        if lowest < 0 or highest >= vocab_size:
            bad = int(lowest if lowest < 0 else highest)
            raise FormatError(f"sample {number} holds token id {bad}; those of the model are 0 to {vocab_size - 1}")


def _padded(row: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(row, (0, length - len(row))) if len(row) < length else row


def _moved(batch: dict[str, Tensor], device: Any) -> dict[str, Tensor]:
    if not torch.cuda.is_available():
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
