"""Measure each step: tokens and FLOP/s per GPU, share of the peak, memory, time left."""

from collections import deque
from dataclasses import dataclass, field

from mconv.train.estimate import flops

RECENT = 50
"""Steps whose mean time predicts the time left."""


@dataclass(slots=True, kw_only=True)
class Meter:
    """Speed of one run on a number of devices."""

    ranks: int
    train_iters: int
    per_token: float
    """Floating-point operations of training on one token."""
    peak: float | None
    """FLOP/s that one device can do; None where it is not known."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def measure(self, *, iteration: int, seconds: float, tokens_per_second: float) -> dict[str, float]:
        """Return the numbers of one step by name; `mfu` is a share, `seconds_left` covers all steps to come."""
        each = tokens_per_second / self.ranks
        self.recent.append(seconds)
        found = {
            "tokens_per_second_per_gpu": each,
            "tflops_per_gpu": each * self.per_token / 1e12,
            "memory_bytes": float(memory()),
            "seconds_left": (self.train_iters - iteration) * sum(self.recent) / len(self.recent),
        }
        return found | ({"mfu": each * self.per_token / self.peak} if self.peak else {})


def meter(*, per_token: float, train_iters: int, ranks: int, dtype: str) -> Meter:
    """Return a meter for this machine's devices; `dtype` as torch spells it."""
    short = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "fp32")
    return Meter(ranks=ranks, train_iters=train_iters, per_token=per_token, peak=flops.peak(device_name(), short))


def device_name() -> str:
    """Return the name of this rank's device."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def memory() -> int:
    """Return bytes: the peak allocation on this rank's GPU; without one, what the process holds now."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)


def clock(seconds: float) -> str:
    """Return a duration as 4:05 or 27:04:05 or 3 days, 1:02:03."""
    days, rest = divmod(round(seconds), 86400)
    hours, minutes, left = rest // 3600, rest // 60 % 60, rest % 60
    short = f"{hours}:{minutes:02d}:{left:02d}" if hours or days else f"{minutes}:{left:02d}"
    return f"{days} day{'s' * (days > 1)}, {short}" if days else short
