"""Bisection of two models: the first layer, and the module in it, whose output differs for the same input.

The reference runs once and records the input of each layer. The candidate then runs with these in place of its own hidden
states, so that each of its layers is judged alone. A guess at the fault is tried in the same way: the layer runs again,
repaired.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.spelling.table import Family, Logical
from mconv.errors import MconvError
from mconv.verify.diagnosis.explain import Guess
from mconv.verify.diagnosis.points import Watch, hidden_of, points, with_hidden
from mconv.verify.differences import logical_of
from mconv.verify.models import Model, Repair, RunOptions, Scores, model_of
from mconv.verify.models.common import hidden_output, hooked, sampled, swap_axes
from mconv.verify.places import EMBEDDING, FINAL_NORM, HEAD
from mconv.verify.probes import Probe

LIMIT = 1e-4
"""Largest error over the root mean square of a module's output, in fp32, that counts as the same function."""
SAMPLE = 16
"""Positions of each row at which modules are compared."""
TRIED = 6
"""Largest number of guesses that are tried."""
POINT_NAMES = {"attn_norm": "norm", "attn_out": "proj", "layer": "residual", EMBEDDING: "embedding"}
"""Names of the points for people."""
Key = tuple[str, str]
"""(place, point): a layer's number, `embed`, `final_norm` or `head`; and a point within it."""


@dataclass(slots=True)
class RecordedRun:
    """A run of the reference, kept on disk: tensors by place and name."""

    folder: Path
    logits: list[Tensor] = field(default_factory=list)

    def put(self, place: str, name: str, tensor: Tensor) -> None:
        torch.save(tensor.contiguous().clone(), self.folder / f"{place}-{name}")

    def get(self, place: str, name: str) -> Tensor:
        found: Tensor = torch.load(self.folder / f"{place}-{name}", weights_only=True)
        return found

    def has(self, place: str, name: str) -> bool:
        return (self.folder / f"{place}-{name}").is_file()


def diagnose(a: Checkpoint, b: Checkpoint, probe: Probe, options: RunOptions, guesses: Sequence[Guess]) -> dict[str, Any]:
    """Return the diagnosis of `b` against `a` on one rank, in fp32 whatever the dtype of the verdict."""
    plain = replace(options, dtype=torch.float32, streamed=True, parallel=type(options.parallel)())
    with TemporaryDirectory(prefix="mconv-verify-") as folder:
        recorded = RecordedRun(Path(folder))
        _reference(model_of(a, plain), probe, recorded)
        errors = _candidate(model_of(b, plain), probe, recorded)
        parted = [key for key, error in errors.items() if not error <= LIMIT]
        places = list(dict.fromkeys(place for place, _ in parted))
        tried = [
            guess.to_dict() | {"error_after": after}
            for guess, after in _tried(a, b, probe, plain, recorded, guesses, places)
        ]
    return _summary(errors, parted, places, tried)


def _tried(
    a: Checkpoint,
    b: Checkpoint,
    probe: Probe,
    options: RunOptions,
    recorded: RecordedRun,
    guesses: Sequence[Guess],
    places: list[str],
) -> Iterator[tuple[Guess, float | None]]:
    """Yield each guess, and the error left at the first place that it repairs, undone with the others of that place."""
    placed: dict[str, list[Guess]] = {}
    for guess in guesses[:TRIED]:
        place = _place_of(guess, places, b.family)
        if place is not None and (guess.undo or guess.spec) and "num_layers" not in guess.spec:
            placed.setdefault(place, []).append(guess)
    left: dict[Guess, float | None] = {}
    for place, together in placed.items():
        repaired = replace(options, only=frozenset({place}), repair=_repair(together, a, b))
        left |= dict.fromkeys(together, _left(b, repaired, probe, recorded, place))
    yield from ((guess, left.get(guess)) for guess in guesses)


def _repair(guesses: Sequence[Guess], a: Checkpoint, b: Checkpoint) -> Repair:
    """Return what undoes several guesses at once."""
    left, right = a.source, b.source

    def mended(logical: Logical) -> Tensor | None:
        found = (guess.mended(logical, left, right) for guess in guesses)
        return next((tensor for tensor in found if tensor is not None), None)

    return Repair(spec={name: value for guess in guesses for name, value in guess.spec.items()}, mended=mended)


def _left(b: Checkpoint, repaired: RunOptions, probe: Probe, recorded: RecordedRun, place: str) -> float | None:
    """Return the error left at a repaired place; None if b lacks what the repair needs, such as a bias or a head."""
    try:
        after = _candidate(model_of(b, repaired), probe, recorded, only=place)
    except MconvError:
        return None
    return max(error for (where, _), error in after.items() if where == place)


def _place_of(guess: Guess, places: list[str], family: Family) -> str | None:
    """Return the first departing place that a guess is about."""
    tensors = [logical_of(name) for name in guess.undo]
    outside = {family.embedding.row: EMBEDDING, family.final_norm.row: FINAL_NORM, family.head.row: HEAD}
    own = {outside.get(x.row) if x.layer is None else str(x.layer) for x in tensors}
    if not tensors:  # of numbers alone: they are everywhere
        return next((place for place in places if place.isdigit()), places[0] if places else None)
    return next((place for place in places if place in own), None)


# ---- runs ------------------------------------------------------------------------------------------------------------
def _reference(model: Model, probe: Probe, recorded: RecordedRun) -> None:
    at = sampled(probe.tokens.shape[1], most=SAMPLE)

    def record_input(place: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorded.put(place, "input", swap_axes(hidden_of(args, kwargs), transposed=model.transposed).cpu())

    def norm_gave(_: nn.Module, __: Any, output: Any) -> None:
        recorded.put(FINAL_NORM, "output", swap_axes(hidden_output(output), transposed=model.transposed).cpu())

    with _hooked(model, before=record_input, after=norm_gave), Watch(model, at, recorded.put).watching():
        scores = model.run(probe.tokens, probe.positions)
    recorded.logits = _logits(scores, at)


def _candidate(model: Model, probe: Probe, recorded: RecordedRun, *, only: str | None = None) -> dict[Key, float]:
    """Return the error of each module, given the input that the reference's had, in the order of the forward pass."""
    at = sampled(probe.tokens.shape[1], most=SAMPLE)
    errors: dict[Key, float] = {}

    def compare_point(layer: str, point: str, values: Tensor) -> None:
        if recorded.has(layer, point) and only in (None, layer):
            errors[layer, point] = error(recorded.get(layer, point), values)

    def replace_input(place: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = hidden_of(args, kwargs)
        if not recorded.has(place, "input"):  # a layer that the reference does not have
            return None
        wanted = recorded.get(place, "input").to(own.device)
        if place == "0":
            errors[EMBEDDING, EMBEDDING] = error(wanted[:, at], swap_axes(own, transposed=model.transposed)[:, at])
        return with_hidden(args, kwargs, swap_axes(wanted, transposed=model.transposed).contiguous())

    def norm_gave(_: nn.Module, __: Any, output: Any) -> Tensor:
        own = hidden_output(output)
        wanted = swap_axes(recorded.get(FINAL_NORM, "output").to(own.device), transposed=model.transposed).contiguous()
        errors[FINAL_NORM, FINAL_NORM] = error(wanted, own)
        return wanted

    with _hooked(model, before=replace_input, after=norm_gave), Watch(model, at, compare_point).watching():
        scores = model.run(probe.tokens, probe.positions)
    logits = _logits(scores, at) if only in (None, HEAD) else []
    for mine, wanted in zip(logits, recorded.logits, strict=False):
        common = min(mine.shape[-1], wanted.shape[-1])
        errors[HEAD, HEAD] = error(wanted[..., :common], mine[..., :common])
    return dict(sorted(errors.items(), key=partial(_in_order, order=points(model))))


def _hooked(model: Model, *, before: Callable[..., Any], after: Callable[..., Any]) -> AbstractContextManager[None]:
    """Call `before` ahead of each layer and of the final norm, with its place, and `after` behind the final norm."""
    modules = model.modules()
    each = [
        module.register_forward_pre_hook(partial(before, place), with_kwargs=True)
        for place, module in modules.items()
        if place != EMBEDDING
    ]
    return hooked([*each, modules[FINAL_NORM].register_forward_hook(after)])


def _logits(scores: Scores | None, at: Tensor) -> list[Tensor]:
    return [] if scores is None else [scores.at(at).cpu()]


def error(wanted: Tensor, own: Tensor) -> float:
    """Return the largest difference over the root mean square of `wanted`; infinity for NaN and for other shapes."""
    if wanted.shape != own.shape:
        return float("inf")
    apart = (wanted.float() - own.float()).abs().nan_to_num(nan=torch.inf)
    return float(apart.max() / wanted.float().square().mean().sqrt().clamp(min=1e-30))


def _in_order(item: tuple[Key, float], order: list[str]) -> tuple[int, int]:
    place, point = item[0]
    places = {EMBEDDING: -1, FINAL_NORM: 1 << 30, HEAD: 1 << 31}
    return places.get(place, int(place) if place.isdigit() else 0), order.index(point) if point in order else 0


# ---- words -----------------------------------------------------------------------------------------------------------
def _point_name(name: str) -> str:
    """Return what people call a point or a place."""
    return POINT_NAMES.get(name, name.replace("_", " "))


def _summary(
    errors: dict[Key, float], parted: list[Key], places: list[str], tried: list[dict[str, Any]]
) -> dict[str, Any]:
    layers: dict[str, float] = {}
    for (place, _), value in errors.items():
        layers[place] = max(layers.get(place, 0.0), value)
    where, module = parted[0] if parted else (None, None)
    at = None if where is None else f"layer {where} {_point_name(str(module))}" if where.isdigit() else _point_name(where)
    modules = [{"module": point, "error": value} for (place, point), value in errors.items() if place == where]
    lines = [_headline(at, places, errors, parted)]
    for guess in tried:
        after = guess["error_after"]
        lines.append(guess["text"] + ("" if after is None else f" (undoing it leaves {after:.1g})"))
    return {
        "at": at,
        "layer": int(where) if where is not None and where.isdigit() else None,
        "module": module,
        "error": errors[parted[0]] if parted else None,
        "limit": LIMIT,
        "departing": places,
        "modules": modules,
        "alone": [{"layer": place, "error": value} for place, value in layers.items()],
        "guesses": tried,
        "lines": lines,
    }


def _headline(at: str | None, places: list[str], errors: dict[Key, float], parted: list[Key]) -> str:
    if at is None:
        return "given the same input, every module gives the same on one rank in fp32"
    named = [f"layer {place}" if place.isdigit() else place.replace("_", " ") for place in places[1:9]]
    more = f" and {len(places) - 9} more" if len(places) > 9 else ""
    others = f"; so do {', '.join(named)}{more}" if named else ""
    return f"departs at {at}: {errors[parted[0]]:.2g} of its scale{others}"
