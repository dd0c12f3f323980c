"""`mconv diff`: how far two checkpoints are apart, and where."""

import json as jsonlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mconv.cli import choose, located
from mconv.cli import options as o
from mconv.cli.conversion import open_two
from mconv.cli.terminal import progress
from mconv.errors import MconvError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mconv.convert.checkpoint.model import SourceModel
    from mconv.verify.diff import Diff, Shared

COLUMNS = f"{'rel. norm':>10} {'mean':>10} {'largest':>10} {'cosine':>10} {'changed':>9}"


def diff(
    a: Path,
    b: Path,
    *,
    top: int = 10,
    angles: int | None = None,
    html: Path | None = None,
    plot: Path | None = None,
    json: o.Json = False,
    reading: o.ReadingGroup = o.READING,
) -> None:
    """Measure how far two checkpoints are apart: each tensor, each layer, the whole model.

    Any formats and layouts. Tensors are those of Hugging Face: query, key and value apart, gate and up apart. What only
    one of the two has, more layers or more tokens, is named and left out.

    Parameters
    ----------
    a
        The reference, over whose norm differences are taken: a folder or repository of any format.
    b
        The checkpoint that is compared with it.
    top
        Number of tensors to list, the most changed first.
    angles
        Also take the principal angles between the leading subspaces of this dimension, of each linear of the layers.
    html
        Write a page with the heat map (layers x modules) and all tables.
    plot
        Draw the heat map: a .png, .svg or .pdf file.
    """
    if top < 0:
        raise MconvError(f"--top is {top}; it is the number of tensors to list")
    from mconv.cli import heat

    if html:
        heat.check_page(html)
    if plot:
        heat.check_picture(plot)
    a, b = (located.checkpoint(path, reading.iteration) for path in (a, b))
    from mconv.verify import diff as differ

    one, two = open_two(a, b, reading)
    shared = differ.shared(one, two)
    if angles is not None:
        _say_needs(shared, angles)
    found = _measured(one, two, shared, angles)
    facts = facts_of(one, two, found)
    if html:
        from mconv.convert.folders.staging import write_whole

        write_whole(html, heat.page(found, facts))
    if plot:
        heat.draw(found, plot, f"{one.name} against {two.name}")
    print(jsonlib.dumps(_finite(facts), indent=1) if json else "\n".join(lines(facts, top=top)))


def _say_needs(shared: "Shared", count: int) -> None:
    """Say what memory the angles need, before anything is read."""
    from rich.filesize import decimal

    from mconv.verify import angles

    nbytes, pair = angles.memory(angles.linears(shared.pairs, count=count), count=count)
    choose.say(f"diff: the angles need about {decimal(nbytes)} of memory, for the SVD of {pair.key}")


def _measured(a: "SourceModel", b: "SourceModel", shared: "Shared", count: int | None) -> "Diff":
    from dataclasses import replace

    from mconv.verify import angles
    from mconv.verify import diff as differ

    with progress(shared.elements, f"comparing {a.name}") as advance:
        found = differ.measure(a, b, shared, progress=advance)
    if count is None:
        return found
    with progress(sum(pair.a.elements for pair in angles.linears(shared.pairs, count=count)), "angles") as advance:
        return replace(found, angles=angles.measure(a, b, found, count=count, progress=advance))


def facts_of(a: "SourceModel", b: "SourceModel", found: "Diff") -> dict[str, Any]:
    """Return a comparison as JSON has it."""
    shared = found.shared
    tensors = [_tensor(pair.key, pair.layer, pair.module, found) for pair in shared.pairs]
    return {
        "a": a.name, "b": b.name, "total": found.total.to_dict(),
        "tensors_changed": sum(one["changed"] > 0 for one in tensors), "tensors": tensors, "ranked": _ranked(tensors),
        "layers": [{"name": name, **sums.to_dict()} for name, sums in found.layers.items()],
        "modules": _ranked([{"name": name, **sums.to_dict()} for name, sums in found.modules.items()]),
        "only_a": list(shared.only_a), "only_b": list(shared.only_b),
        "shapes": {key: [list(shape) for shape in two] for key, two in shared.shapes.items()},
        "notes": list(shared.notes),
    }  # fmt: skip


def _tensor(key: str, layer: int | None, module: str, found: "Diff") -> dict[str, Any]:
    facts: dict[str, Any] = {"name": key, "layer": layer, "module": module, **found.tensors[key].to_dict()}
    if found.angles:
        mine = found.angles.get(key)
        facts |= {"angle": mine.largest if mine else None, "angles": asdict(mine) if mine else None}
    return facts


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the most changed first; what is not finite comes before all."""
    return sorted(rows, key=lambda one: -math.inf if math.isnan(one["relative_norm"]) else -one["relative_norm"])


def lines(facts: dict[str, Any], *, top: int) -> "Iterator[str]":
    """Yield a comparison in words: the whole, its layers, the most changed tensors."""
    total = facts["total"]
    yield f"{facts['a']} against {facts['b']}: {facts['tensors_changed']} of {len(facts['tensors'])} tensors differ"
    yield from (f"note           {note}" for note in facts["notes"])
    if not total["changed"]:
        return
    width = min(48, max(len(one["name"]) for one in (*facts["layers"], *facts["ranked"][:top])))
    angle = " " + f"{'angle':>7}" if "angle" in facts["tensors"][0] and top else ""
    yield f"{'':<{width}} {COLUMNS}{angle}"
    yield _line("all", total, width)
    yield from (_line(one["name"], one, width) for one in facts["layers"])
    changed = [one for one in facts["ranked"] if one["changed"]]
    if top and changed:
        yield f"the most changed of {len(changed)} tensors:" if len(changed) > top else "tensors that changed:"
        yield from (_line(one["name"], one, width) for one in changed[:top])


def _line(name: str, one: dict[str, Any], width: int) -> str:
    """Return one row of the table."""
    cosine = "-" if one["cosine"] is None else f"{one['cosine']:.6f}"
    numbers = " ".join(f"{one[key]:>10.3g}" for key in ("relative_norm", "mean_abs", "max_abs"))
    angle = f" {one['angle']:>6.2f}°" if one.get("angle") is not None else ""
    return f"{name:<{width}} {numbers} {cosine:>10} {100 * one['share_changed']:>8.4g}%{angle}"


def _finite(value: Any) -> Any:
    """Return a value with null for what JSON has not: NaN and infinity."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items() if name != "ranked"}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
