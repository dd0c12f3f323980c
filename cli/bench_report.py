"""What `mconv bench` says: the table, the recommendation, JSON and a picture."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from mconv import extras
from mconv.cli import figures
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.train.config import TrainConfig
    from mconv.train.estimate.sweep import Trial

HEAD = ("ranks", "tp", "pp", "dp", "micro batch", "batch", "tokens/s", "a rank", "efficiency", "MFU", "memory", "spread")
TIE = 0.03
"""Share of the best speed within which the simpler layout is recommended: repeated trials differ by as much."""
FIELDS = ("tp", "pp", "vpp", "sequence_parallel", "micro_batch_size", "global_batch_size", "nproc_per_node")
"""Fields that a recommendation sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A trial that was run: its speed, or why it failed."""

    trial: "Trial"
    seconds: tuple[float, ...] = ()
    """Time of each step that counts; empty if the trial failed."""
    tokens: int = 0
    """Tokens of one step."""
    memory: int = 0
    """Bytes of the fullest rank."""
    flops_per_token: float = 0.0
    peak: float | None = None
    """FLOP/s of one device; None where it is not known."""
    failed: str | None = None

    @property
    def rate(self) -> float:
        """Return the tokens per second over all ranks, by the median step."""
        return self.tokens / statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Return half the range of the steps' times, as a share of their median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / statistics.median(self.seconds)

    @property
    def mfu(self) -> float | None:
        """Return the share of the devices' peak that the model's operations are."""
        return self.rate * self.flops_per_token / (self.peak * self.trial.world) if self.peak else None

    @property
    def described(self) -> str:
        """Return the trial and its outcome in a line."""
        t = self.trial
        what = f"{_ranks(t.world)}, tp {t.tp} x pp {t.pp} x dp {t.replicas}, micro batch {t.micro_batch_size}"
        return f"{what}: {self.failed or f'{self.rate:,.0f} tokens/s'}"


def measured(trial: "Trial", found: "dict[str, Any] | MconvError", *, warmup: int) -> Measured:
    """Return a trial with what its ranks have measured, without the steps before `warmup`."""
    if isinstance(found, MconvError):
        return Measured(trial=trial, failed=str(found))
    return Measured(
        trial=trial, seconds=tuple(found["seconds"][warmup:]), tokens=found["tokens"], memory=found["memory"],
        flops_per_token=found["flops_per_token"], peak=found["peak"],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Results:
    """All trials of a sweep."""

    base: "TrainConfig"
    trials: "list[Trial]"
    all_run: list[Measured]

    @property
    def measured(self) -> list[Measured]:
        """Return the trials that were measured, fastest first."""
        return sorted((one for one in self.all_run if not one.failed), key=lambda one: -one.rate)

    @property
    def one_rank(self) -> float | None:
        """Return the best speed of one rank; None where that was not measured."""
        return next((one.rate for one in self.measured if one.trial.world == 1), None)

    def efficiency(self, one: Measured) -> float | None:
        """Return a trial's speed as a share of what so many single ranks would do."""
        return one.rate / (one.trial.world * self.one_rank) if self.one_rank else None

    @property
    def recommended(self) -> Measured | None:
        """Return the simplest of the trials that are as fast as the fastest; None where there is none."""
        best = [one for one in self.measured if one.rate >= (1 - TIE) * self.measured[0].rate]
        return min(best, key=lambda one: (one.trial.world, one.trial.tp * one.trial.pp, one.trial.pp), default=None)

    def refusals(self) -> "dict[tuple[int, int, int, str], list[int]]":
        """Return the micro batches that were not measured, by ranks, tp, pp and the reason."""
        found: dict[tuple[int, int, int, str], list[int]] = {}
        bad = [(t, t.refused) for t in self.trials if t.refused] + [(m.trial, m.failed) for m in self.all_run if m.failed]
        for t, why in bad:
            found.setdefault((t.world, t.tp, t.pp, str(why)), []).append(t.micro_batch_size)
        return found

    def lines(self, *, dry_run: bool) -> Iterator[str]:
        """Yield the table, what was refused and why, and the recommendation."""
        rows = [_cells(trial) for trial in self.trials if not trial.refused] if dry_run else [
            _cells(one.trial) + self._numbers(one) for one in self.measured
        ]  # fmt: skip
        yield from _table(HEAD[: len(rows[0])] if rows else HEAD, rows) if rows else ("no trial fits",)
        for (world, tp, pp, why), sizes in self.refusals().items():
            batches = ", ".join(map(str, sizes))
            yield f"not run: {_ranks(world)}, tp {tp} x pp {pp}, micro batch {batches}: {' '.join(why.split())}"
        if self.recommended:
            yield from self._recommendation(self.recommended)

    def _numbers(self, one: Measured) -> tuple[str, ...]:
        share = self.efficiency(one)
        return (
            f"{one.rate:,.0f}", f"{one.rate / one.trial.world:,.0f}", "-" if share is None else f"{share:.0%}",
            "-" if one.mfu is None else f"{one.mfu:.1%}", decimal(one.memory), f"{one.spread:.0%}",
        )  # fmt: skip

    def _recommendation(self, one: Measured) -> Iterator[str]:
        from mconv.train.estimate.suggest import flags

        share = self.efficiency(one)
        scaled = f", {share:.0%} of {one.trial.world} single ranks" if share is not None and one.trial.world > 1 else ""
        yield f"fastest: {one.rate:,.0f} tokens/s on {_ranks(one.trial.world)}{scaled}"
        yield f"flags: {flags(_fields(one.trial), whole=True)}"

    def as_json(self) -> dict[str, Any]:
        """Return all trials, for programs."""
        best = self.recommended
        refused = [
            {"world": world, "tp": tp, "pp": pp, "micro_batch_sizes": sizes, "why": why}
            for (world, tp, pp, why), sizes in self.refusals().items()
        ]
        planned = [{**_fields(t), "world": t.world, "planned_peak": t.peak} for t in self.trials if not t.refused]
        return {
            "trials": [self._json(one) for one in self.measured],
            "planned": planned,
            "refused": refused,
            "recommended": _fields(best.trial) if best else None,
        }

    def _json(self, one: Measured) -> dict[str, Any]:
        return {
            **_fields(one.trial), "world": one.trial.world, "dp": one.trial.replicas, "tokens_per_second": one.rate,
            "efficiency": self.efficiency(one), "mfu": one.mfu, "memory_bytes": one.memory, "seconds": list(one.seconds),
        }  # fmt: skip


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count > 1)}"


def _fields(trial: "Trial") -> dict[str, Any]:
    return {name: getattr(trial.config, name) for name in FIELDS}


def _cells(trial: "Trial") -> tuple[str, ...]:
    assert trial.config is not None
    sizes = (trial.world, trial.tp, trial.pp, trial.replicas, trial.micro_batch_size, trial.config.global_batch_size)
    return tuple(map(str, sizes))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield columns, numbers aligned right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


# ---- the picture -----------------------------------------------------------------------------------------------------
def check_plot(file: Path) -> None:
    """Refuse, before any trial, a picture that could not be drawn."""
    extras.need("plot", to="a picture")
    figures.check_kind(file, "--plot", page=False)


def draw(found: Results, file: Path) -> None:
    """Write the picture: speed over ranks beside the ideal, and speed over micro batches for each layout."""
    with figures.drawn(file, (11.0, 4.0), {"font.size": 9}) as figure:
        ranks, batches = figure.subplots(1, 2)
        _over_ranks(ranks, found)
        _over_batches(batches, found)


def _over_ranks(ax: Any, found: Results) -> None:
    best: dict[tuple[int, int], dict[int, float]] = {}
    for one in reversed(found.measured):  # the fastest last
        best.setdefault((one.trial.tp, one.trial.pp), {})[one.trial.world] = one.rate
    for (tp, pp), curve in sorted(best.items()):
        ax.plot(*zip(*sorted(curve.items()), strict=True), "o-", label=f"tp {tp} x pp {pp}")
    if found.one_rank:
        worlds = sorted({one.trial.world for one in found.measured})
        ax.plot(worlds, [found.one_rank * n for n in worlds], ":", color="0.5", label="so many single ranks")
    _labelled(ax, "tokens/s, the best micro batch", "ranks")


def _over_batches(ax: Any, found: Results) -> None:
    curves: dict[tuple[int, int, int], dict[int, float]] = {}
    for one in found.measured:
        t = one.trial
        curves.setdefault((t.world, t.tp, t.pp), {})[t.micro_batch_size] = one.rate
    for (world, tp, pp), curve in sorted(curves.items()):
        label = f"{_ranks(world)}, tp {tp} x pp {pp}"
        ax.plot(*zip(*sorted(curve.items()), strict=True), "o-", label=label)
    _labelled(ax, "tokens/s", "micro batch")


def _labelled(ax: Any, title: str, below: str) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    ax.set_xlabel(below)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.25, lw=0.6)
    ax.legend(frameon=False)
