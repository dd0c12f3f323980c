"""The result of `mconv demo`: a table on the terminal, and a page in the demo's folder."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step of the demo: a row of the table."""

    step: str
    command: str
    seconds: float
    proven: str


def write(folder: Path, steps: list[StepResult], *, parameters: int, losses: list[float], seconds: float) -> None:
    """Print the table of all steps, and write the page."""
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "command", "time", "proven", title="mconv demo", show_lines=True)
    for one in steps:
        table.add_row(one.step, one.command, f"{one.seconds:.1f} s", one.proven)
    Console(markup=False, width=None if sys.stdout.isatty() else 160).print(table)
    page = _page(steps, parameters=parameters, losses=losses, seconds=seconds)
    (folder / "report.html").write_text(page, encoding="utf-8")
    print(f"all {len(steps)} steps proven in {seconds:.0f} s")


def _page(steps: list[StepResult], *, parameters: int, losses: list[float], seconds: float) -> str:
    import jinja2

    template = Path(__file__).with_name("demo.html.jinja").read_text(encoding="utf-8")
    low, high = min(losses), max(losses)
    values: dict[str, Any] = {
        "passed": True, "parameters": f"{parameters:,}", "seconds": f"{seconds:.0f}",
        "losses": losses,
        "rows": [{**asdict(one), "seconds": f"{one.seconds:.1f}"} for one in steps],
        "points": " ".join(
            f"{50 + 580 * i / max(1, len(losses) - 1):.1f},{20 + 210 * (high - x) / (high - low):.1f}"
            for i, x in enumerate(losses)
        ),
        "ticks": [{"y": 20 + 70 * i, "label": f"{high - (high - low) * i / 3:.1f}"} for i in range(4)],
    }  # fmt: skip
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template).render(values)
