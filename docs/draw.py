"""Draws docs/formats.svg: the rows of one layer's fused tensors, in each spelling. `python docs/draw.py [FILE]`."""

import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

COLOURS = {"q": "#8fb8de", "k": "#f2b880", "v": "#a5cf9b", "gate": "#c9b3e0", "up": "#e8a5a0", "pad": "#ffffff"}
HALF, PAIRS = (0, 1, 2, 3), (0, 2, 1, 3)
GROUPS = [[("q", 0), ("q", 1), ("k", 0), ("v", 0)], [("q", 2), ("q", 3), ("k", 1), ("v", 1)]]
APART = [[slot for group in GROUPS for slot in group if slot[0] == kind] for kind in "qkv"]
QKV = {
    "Hugging Face\nq_proj k_proj v_proj": (APART, HALF),
    "Meta\nwq  wk  wv": (APART, PAIRS),
    "mcore, NVIDIA legacy\none tensor, by group": (GROUPS, HALF),
    "Megatron-LLM\nby group, pairs": (GROUPS, PAIRS),
}
"""Title -> the stored runs of heads, and the order of a head's rotary rows. Rows of v never move."""
GLU = {
    "Hugging Face, Meta\ntwo tensors": [["gate"], ["up"]],
    "mcore, NVIDIA legacy\ntp 1": [["gate", "up"]],
    "mcore\ntp 2, two ranks": [["gate 0", "up 0"], ["gate 1", "up 1"]],
    "Megatron-LLM\ntp 1": [["up", "gate"]],
    "Megatron-LLM\ntp 2, two ranks": [["up 0", "gate 0"], ["up 1", "gate 1"]],
}


def cell(ax: Any, x: float, y: float, height: float, kind: str, text: str, *, width: float = 0.62) -> None:
    ax.add_patch(Rectangle((x, y - height), width, height, facecolor=COLOURS[kind], edgecolor="#444444", linewidth=0.5))
    ax.text(x + width / 2, y - height / 2, text, ha="center", va="center", fontsize=7)


def draw_qkv(ax: Any) -> None:
    for column, (title, (runs, order)) in enumerate(QKV.items()):
        ax.text(column + 0.31, 1.2, title, ha="center", va="bottom", fontsize=8)
        y = 0.6
        for run in runs:
            for kind, head in run:
                for row in order if kind != "v" else HALF:
                    cell(ax, column, y, 1, kind, f"{kind}{head}.{row}")
                    y -= 1
            y -= 0.6
    ax.set(
        xlim=(-0.15, len(QKV) - 0.2),
        ylim=(-34, 3.2),
        title="rows of QKV: 2 query groups of 2 queries, heads of 4 channels",
    )
    ax.axis("off")


def draw_glu(ax: Any) -> None:
    for column, (title, tensors) in enumerate(GLU.items()):
        ax.text(column + 0.31, 1.2, title, ha="center", va="bottom", fontsize=8)
        y = 0.6
        for tensor in tensors:
            for part in tensor:
                height = 8 if " " not in part else 4
                cell(ax, column, y, height, part.split()[0], part)
                y -= height
            y -= 0.8
    ax.set(xlim=(-0.15, len(GLU) - 0.2), ylim=(-34, 3.2), title="rows of the gated MLP's first linear")
    ax.axis("off")


def main(file: Path) -> None:
    with matplotlib.rc_context(
        {"font.family": "DejaVu Sans Mono", "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "mconv"}
    ):
        figure = Figure(figsize=(14, 7), layout="constrained", facecolor="white")
        left, right = figure.subplots(1, 2, width_ratios=[len(QKV), len(GLU)])
        draw_qkv(left)
        draw_glu(right)
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("formats.svg"))
