"""Draws the pictures of docs/surgery.md and docs/blend.md that show a rule. `python docs/draw_surgery.py [FOLDER]`.

docs/moved.svg is no drawing: `mconv diff --plot` made it, of a model and its finetune.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

OLD, NEW, AGAIN, NONE, BASE = "#8fb8de", "#a5cf9b", "#f2b880", "#f4f4f4", "#dddddd"
LAYERS = {
    "MODEL": [0, 1, 2, 3, 4, 5], "--keep 0-1,4-5": [0, 1, 4, 5], "--keep 0-3,2-5": [0, 1, 2, 3, 2, 3, 4, 5],
    "--repeat 2-3": [0, 1, 2, 3, 2, 3, 4, 5], "--order 5,0,0-2": [5, 0, 0, 1, 2], "--toy 3": [0, 2, 5],
}  # fmt: skip
VOCABULARIES = {
    "MODEL": ["<s>", "the", "cat", "sat"],
    '--tokens "[a],[b]"\n--init mean': ["<s>", "the", "cat", "sat", "+[a]", "+[b]"],
    "--vocab-size 3": ["<s>", "the", "cat"],
    "--tokenizer FOLDER": ["<s>", "the", "+dog", "+runs", "=cat"],
}
"""Title -> the tokens of the rows: "+" before a new one, "=" before one that lies elsewhere now."""
TIES = {
    "difference of A": [3.0, -1.0, 0.5, -3.0, 0.2, 1.5],
    "difference of B": [2.0, 1.2, -0.4, 2.5, -0.1, -0.3],
    "A, largest half": [3.0, 0.0, 0.0, -3.0, 0.0, 1.5],
    "B, largest half": [2.0, 1.2, 0.0, 2.5, 0.0, 0.0],
    "sign of the sum": [1, 1, 1, -1, 1, 1],
    "mean of those that agree": [2.5, 1.2, 0.0, -3.0, 0.0, 1.5],
}


def cell(ax: Any, at: tuple[float, float], text: str, colour: str, *, size: tuple[float, float] = (0.9, 0.9)) -> None:
    ax.add_patch(Rectangle(at, *size, facecolor=colour, edgecolor="#444444", linewidth=0.5))
    ax.text(at[0] + size[0] / 2, at[1] + size[1] / 2, text, ha="center", va="center", fontsize=7)


def layers(ax: Any) -> None:
    """Draw which layers of a model of six a result has; a layer that is there a second time has another colour."""
    for row, (title, numbers) in enumerate(LAYERS.items()):
        ax.text(-0.3, -row + 0.45, title, ha="right", va="center", fontsize=8)
        for at, layer in enumerate(numbers):
            cell(ax, (at, -row), str(layer), AGAIN if layer in numbers[:at] else OLD)
    ax.set(xlim=(-4.2, 8.2), ylim=(-len(LAYERS) + 0.8, 1.2))


def vocabulary(ax: Any) -> None:
    """Draw the rows of an embedding: as they were, new, or as they were at another place."""
    colours = {"+": NEW, "=": AGAIN}
    for column, (title, tokens) in enumerate(VOCABULARIES.items()):
        ax.text(2.6 * column + 1, 0.4, title, ha="center", va="bottom", fontsize=8)
        for at, token in enumerate(tokens):
            cell(ax, (2.6 * column, -at - 0.9), token.lstrip("+="), colours.get(token[0], OLD), size=(2, 0.8))
    ax.set(xlim=(-0.3, 10.2), ylim=(-6.2, 1.6))


def adapter(ax: Any) -> None:
    """Draw the difference of a linear as a product of two thin matrices."""
    parts = [("TUNED - BASE\nm x n", 0, (3, 4), OLD), ("left vectors,\nroots of values\nB: m x r", 4.2, (0.9, 4), NEW),
             ("A: r x n", 5.9, (3, 0.9), NEW)]  # fmt: skip
    for text, x, size, colour in parts:
        cell(ax, (x, -size[1]), "", colour, size=size)
        ax.text(x + size[0] / 2, 0.2, text, ha="center", va="bottom", fontsize=8)
    ax.text(3.6, -2, "≈", ha="center", va="center", fontsize=16)
    ax.text(5.5, -0.5, "x", ha="center", va="center", fontsize=10)
    ax.text(5.9, -2.2, "r = --rank: the largest singular values;\nenergy kept = their squares / all squares", fontsize=8)
    ax.set(xlim=(-0.3, 11.5), ylim=(-4.3, 2.1))


def ties(ax: Any) -> None:
    """Draw TIES on six elements of two differences, at density 0.5 and equal weights."""
    for row, (title, values) in enumerate(TIES.items()):
        ax.text(-0.3, -row + 0.45, title, ha="right", va="center", fontsize=8)
        for at, value in enumerate(values):
            signs = row == 4
            text = ("+" if value > 0 else "-") if signs else f"{value:g}"
            cell(ax, (1.2 * at, -row), text, _colour(value, signs), size=(1.1, 0.9))
    ax.set(xlim=(-5.2, 7.4), ylim=(-len(TIES) + 0.8, 1.2))


def _colour(value: float, signs: bool) -> str:
    return BASE if signs else NONE if value == 0 else OLD if value > 0 else AGAIN


PICTURES: Sequence[tuple[str, Callable[[Any], None], tuple[float, float]]] = (
    ("layers.svg", layers, (7, 2.9)), ("vocabulary.svg", vocabulary, (7, 3)), ("extracted.svg", adapter, (7, 2.6)),
    ("ties.svg", ties, (7, 2.9)),
)  # fmt: skip
"""File, what draws it, and its size in inches."""


def main(folder: Path) -> None:
    look = {"font.family": "DejaVu Sans Mono", "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "mconv"}
    for name, draw, size in PICTURES:
        with matplotlib.rc_context(look):
            figure = Figure(figsize=size, layout="constrained", facecolor="white")
            ax = figure.subplots()
            draw(ax)
            ax.axis("off")
            figure.savefig(folder / name, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
