"""Where two models part: the first layer, and the module in it, that gives something else for the same input.

The reference runs once and keeps what each layer is given. The candidate then runs with these in the place of its own
hidden states, so that each of its layers answers for itself alone. Guesses at the fault are tried in the same way: the
layer runs again, repaired.
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

from mconv.convert.checkpoint import Checkpoint
from mconv.convert.table import Family, Logical
from mconv.errors import MconvError
from mconv.verify.guesses.explain import Guess
from mconv.verify.models import How, Model, Repair, Scores, first, hooked, model_of, sampled, turned
from mconv.verify.places import EMBEDDING, FINAL_NORM, HEAD
from mconv.verify.points import Watch, given, hidden_of, points
from mconv.verify.probes import Probe
from mconv.verify.where import logical_of

LIMIT = 1e-4
"""Largest error over root mean square of a module's output, in fp32, from which on it is another function."""
SAMPLE = 16
"""Positions of each row at which modules are compared."""
TRIED = 6
"""Guesses that are tried."""
SAID = {"attn_norm": "norm", "attn_out": "proj", "layer": "residual", EMBEDDING: "embedding"}
"""What people call a point or a place, where they have another name for it."""
Key = tuple[str, str]
"""(place, point): a layer's number, or `embed`, `final_norm`, `head`; and a point in it."""


@dataclass(slots=True)
class Kept:
    """What the reference did, on disk: tensors by layer and name."""

    folder: Path
    logits: list[Tensor] = field(default_factory=list)

    def put(self, place: str, name: str, tensor: Tensor) -> None:
        torch.save(tensor.contiguous().clone(), self.folder / f"{place}-{name}")

    def get(self, place: str, name: str) -> Tensor:
        found: Tensor = torch.load(self.folder / f"{place}-{name}", weights_only=True)
        return found

    def has(self, place: str, name: str) -> bool:
        return (self.folder / f"{place}-{name}").is_file()


def diagnose(a: Checkpoint, b: Checkpoint, asked: Probe, how: How, guesses: Sequence[Guess]) -> dict[str, Any]:
    """The diagnosis of `b` by `a`, two checkpoints, on one rank: in fp32, whatever the verdict was reached in."""
    plain = replace(how, dtype=torch.float32, streamed=True, parallel=type(how.parallel)())
    with TemporaryDirectory(prefix="mconv-verify-") as folder:
        kept = Kept(Path(folder))
        _reference(model_of(a, plain), asked, kept)
        errors = _candidate(model_of(b, plain), asked, kept)
        parted = [key for key, error in errors.items() if not error <= LIMIT]
        places = list(dict.fromkeys(place for place, _ in parted))
        tried = [
            guess.to_dict() | {"error_after": after} for guess, after in _tried(a, b, asked, plain, kept, guesses, places)
        ]
    return _told(errors, parted, places, tried)


def _tried(
    a: Checkpoint, b: Checkpoint, asked: Probe, how: How, kept: Kept, guesses: Sequence[Guess], places: list[str]
) -> Iterator[tuple[Guess, float | None]]:
    """Each guess, and the error that is left in the first place that it repairs, undone with the others of that place."""
    placed: dict[str, list[Guess]] = {}
    for guess in guesses[:TRIED]:
        place = _place_of(guess, places, b.family)
        if place is not None and (guess.undo or guess.spec) and "num_layers" not in guess.spec:
            placed.setdefault(place, []).append(guess)
    left: dict[Guess, float | None] = {}
    for place, together in placed.items():
        repaired = replace(how, only=frozenset({place}), repair=_repair(together, a, b))
        left |= dict.fromkeys(together, _left(b, repaired, asked, kept, place))
    yield from ((guess, left.get(guess)) for guess in guesses)


def _repair(guesses: Sequence[Guess], a: Checkpoint, b: Checkpoint) -> Repair:
    """Return what undoes several guesses at once."""
    left, right = a.source, b.source

    def mended(logical: Logical) -> Tensor | None:
        found = (guess.mended(logical, left, right) for guess in guesses)
        return next((tensor for tensor in found if tensor is not None), None)

    return Repair(spec={name: value for guess in guesses for name, value in guess.spec.items()}, mended=mended)


def _left(b: Checkpoint, repaired: How, asked: Probe, kept: Kept, place: str) -> float | None:
    """Return the error in a place that is repaired; None: b has not what that needs, such as a bias or a head."""
    try:
        after = _candidate(model_of(b, repaired), asked, kept, only=place)
    except MconvError:
        return None
    return max(error for (where, _), error in after.items() if where == place)


def _place_of(guess: Guess, places: list[str], family: Family) -> str | None:
    """The first place that departs and that the guess is about."""
    tensors = [logical_of(name) for name in guess.undo]
    outside = {family.embedding.row: EMBEDDING, family.final_norm.row: FINAL_NORM, family.head.row: HEAD}
    own = {outside.get(x.row) if x.layer is None else str(x.layer) for x in tensors}
    if not tensors:  # of numbers alone: they are everywhere
        return next((place for place in places if place.isdigit()), places[0] if places else None)
    return next((place for place in places if place in own), None)


# ---- runs ------------------------------------------------------------------------------------------------------------
def _reference(model: Model, asked: Probe, kept: Kept) -> None:
    at = sampled(asked.tokens.shape[1], most=SAMPLE)

    def given_to(place: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.put(place, "input", turned(hidden_of(args, kwargs), transposed=model.transposed).cpu())

    def norm_gave(_: nn.Module, __: Any, output: Any) -> None:
        kept.put(FINAL_NORM, "output", turned(first(output), transposed=model.transposed).cpu())

    with _hooked(model, before=given_to, after=norm_gave), Watch(model, at, kept.put).watching():
        scores = model.run(asked.tokens, asked.positions)
    kept.logits = _logits(scores, at)


def _candidate(model: Model, asked: Probe, kept: Kept, *, only: str | None = None) -> dict[Key, float]:
    """The errors of its modules, each given what the reference's was given, in the order of the forward pass."""
    at = sampled(asked.tokens.shape[1], most=SAMPLE)
    errors: dict[Key, float] = {}

    def tell(layer: str, point: str, values: Tensor) -> None:
        if kept.has(layer, point) and only in (None, layer):
            errors[layer, point] = error(kept.get(layer, point), values)

    def instead(place: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = hidden_of(args, kwargs)
        if not kept.has(place, "input"):  # a layer that the reference has not
            return None
        wanted = kept.get(place, "input").to(own.device)
        if place == "0":
            errors[EMBEDDING, EMBEDDING] = error(wanted[:, at], turned(own, transposed=model.transposed)[:, at])
        return given(args, kwargs, turned(wanted, transposed=model.transposed).contiguous())

    def norm_gave(_: nn.Module, __: Any, output: Any) -> Tensor:
        own = first(output)
        wanted = turned(kept.get(FINAL_NORM, "output").to(own.device), transposed=model.transposed).contiguous()
        errors[FINAL_NORM, FINAL_NORM] = error(wanted, own)
        return wanted

    with _hooked(model, before=instead, after=norm_gave), Watch(model, at, tell).watching():
        scores = model.run(asked.tokens, asked.positions)
    logits = _logits(scores, at) if only in (None, HEAD) else []
    for mine, wanted in zip(logits, kept.logits, strict=False):
        common = min(mine.shape[-1], wanted.shape[-1])
        errors[HEAD, HEAD] = error(wanted[..., :common], mine[..., :common])
    return dict(sorted(errors.items(), key=partial(_in_order, order=points(model))))


def _hooked(model: Model, *, before: Callable[..., Any], after: Callable[..., Any]) -> AbstractContextManager[None]:
    """`before` each layer and the final norm, told which; `after` the final norm."""
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
    """Largest difference over the root mean square of what is wanted; NaN is as far apart as can be."""
    if wanted.shape != own.shape:
        return float("inf")
    apart = (wanted.float() - own.float()).abs().nan_to_num(nan=torch.inf)
    return float(apart.max() / wanted.float().square().mean().sqrt().clamp(min=1e-30))


def _in_order(item: tuple[Key, float], order: list[str]) -> tuple[int, int]:
    place, point = item[0]
    places = {EMBEDDING: -1, FINAL_NORM: 1 << 30, HEAD: 1 << 31}
    return places.get(place, int(place) if place.isdigit() else 0), order.index(point) if point in order else 0


# ---- words -----------------------------------------------------------------------------------------------------------
def _said(name: str) -> str:
    """Return what people call a point or a place."""
    return SAID.get(name, name.replace("_", " "))


def _told(errors: dict[Key, float], parted: list[Key], places: list[str], tried: list[dict[str, Any]]) -> dict[str, Any]:
    layers: dict[str, float] = {}
    for (place, _), value in errors.items():
        layers[place] = max(layers.get(place, 0.0), value)
    where, module = parted[0] if parted else (None, None)
    at = None if where is None else f"layer {where} {_said(str(module))}" if where.isdigit() else _said(where)
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
