"""Name the known fault behind tensors that differ, and how to undo it in b.

Nothing is named that is not exact, to the rounding of a cast: a guess is a claim that can be tried. Only tensors that
differ are read (and a sample of their like in other layers), one at a time.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from mconv.convert.checkpoint import SourceModel
from mconv.convert.sources.source import Source
from mconv.convert.table import Logical
from mconv.verify.digests import Difference, Report, held
from mconv.verify.guesses.layers import Moved, moved
from mconv.verify.guesses.order import known_order, shuffled
from mconv.verify.guesses.pair import Hit, Mend, Pair, entire
from mconv.verify.guesses.parts import part_added, part_dropped
from mconv.verify.guesses.spec import guesses_of
from mconv.verify.guesses.twins import twins
from mconv.verify.guesses.values import bit_flipped, factor, norm_dropped, norm_off_by_one, transposed, zeroed
from mconv.verify.guesses.vocabulary import vocabulary
from mconv.verify.where import logical_of

LIGHT: tuple[Callable[[Pair], Hit | None], ...] = (
    bit_flipped, zeroed, part_dropped, part_added, known_order, transposed, norm_dropped, norm_off_by_one,
    factor,
)  # fmt: skip
"""What is tried on every tensor, in this order."""
HEAVY: tuple[Callable[[Pair], Hit | None], ...] = (shuffled, vocabulary)
"""What hashes slices."""
SEARCHED = 8
"""Tensors of one row that are searched to the full; where nothing is found in them, the others are not read."""
BIASES = ("qkv_bias", "proj_bias", "mlp_bias")
OTHER = "other bits, which no known fault explains"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Undo:
    """How to repair one tensor of b: which tensor to read in its stead (None: itself) and what to do to it."""

    side: Literal["a", "b"] = "b"
    tensor: Logical | None = None
    mend: Mend | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Guess:
    """A fault that explains differences; with an empty name, differences that nothing known explains."""

    name: str
    """Stable: `gate-up-swapped`, `rotary-order`, ..."""
    layers: tuple[int, ...] = ()
    tensor: str = ""
    """Of each of the layers: `mlp_in.weight`. Empty: whole layers, or no tensor at all."""
    text: str
    undo: Mapping[str, Undo] = field(default_factory=dict)
    """By logical tensor of b; empty where b does not hold enough to undo it."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Fields for `dataclasses.replace` that repair b's spec."""

    def mended(self, logical: Logical, a: Source, b: Source) -> torch.Tensor | None:
        """b's logical tensor as it is without the fault, one dimension for each axis. None: not this fault's."""
        undo = self.undo.get(str(logical))
        if undo is None:
            return None
        source = a if undo.side == "a" else b
        name = undo.tensor or held(source, logical) or logical
        tensor = entire(source, name)
        return tensor if undo.mend is None else undo.mend(tensor)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the guess in words."""
        return {"name": self.name, "layers": list(self.layers), "tensor": self.tensor, "text": self.text}


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """One tensor's fault, before those of the same kind are put together."""

    logical: Logical
    name: str
    what: str
    undo: Undo | None = None
    spec: tuple[tuple[str, Any], ...] = ()


def explain(a: SourceModel, b: SourceModel, report: Report) -> list[Guess]:
    """The known faults that explain `report`, which is `digests.compare(a, b)`, in the order of its tensors."""
    left, right = a.source, b.source
    work = {logical_of(d.tensor): d for d in report.differences}
    guesses = []
    for fault in moved(left, right, [x for x, d in work.items() if d.how != "shape"]):
        guess = _layers(fault, work, a=a)
        work = {x: d for x, d in work.items() if str(x) not in guess.undo and x.layer not in fault.gone}
        guesses.append(guess)
    told = _untied(a, b, report)
    told += _twins(left, right, {x: d for x, d in work.items() if d.how == "bits"}, done=[t.logical for t in told])
    done = {t.logical for t in told}
    told = _credible([*told, *_searched(left, right, {x: d for x, d in work.items() if x not in done})])
    guesses += _grouped(told, layers=a.spec.num_layers)
    specs = guesses_of(a.spec, b.spec, report.spec)
    return guesses + [Guess(name=name, text=text, spec=spec) for name, text, spec in specs]


def _credible(told: list[_Told]) -> list[_Told]:
    """Take a flipped bit back where other tensors differ and nothing explains them.

    A flip is damage to one element of a sound model. Of a model that has been trained a little, some tensors have
    changed in one element and by one bit alone, too.
    """
    if all(one.name for one in told):
        return told
    return [_Told(one.logical, "", OTHER) if one.name == "bit-flipped" else one for one in told]


# ---- tensors ---------------------------------------------------------------------------------------------------------
def _searched(left: Source, right: Source, work: Mapping[Logical, Difference]) -> list[_Told]:
    """Each tensor by itself: what its difference says already, else the rules."""
    told: list[_Told] = []
    tried: dict[tuple[str, str], int] = {}
    named: set[tuple[str, str]] = set()
    for logical, found in work.items():
        if found.how == "missing" or (found.rows and not found.elements):
            told += [x for x in [_outright(left, right, logical, found)] if x]
            continue
        if found.how == "shape" and not found.rows:
            continue  # the sizes that the specs say are what differs
        kind = logical.row, logical.leaf
        tried[kind] = tried.get(kind, 0) + 1
        if tried[kind] > SEARCHED and kind not in named:
            told.append(_Told(logical, "", f"{OTHER} (only the first {SEARCHED} were searched)"))
            continue
        hit = _hit(left, right, logical, found, LIGHT + (HEAVY if tried[kind] <= SEARCHED else ()))
        named |= {kind} if hit else set()
        told.append(_Told(logical, "", OTHER) if hit is None else _undone(left, logical, hit))
    return told


def _hit(
    left: Source, right: Source, logical: Logical, found: Difference, rules: Iterable[Callable[[Pair], Hit | None]]
) -> Hit | None:
    names = held(left, logical), held(right, logical)
    if names[0] is None or names[1] is None:
        return None
    pair = Pair.read(left, right, logical, (names[0], names[1]), found)
    return next((hit for rule in rules if (hit := rule(pair)) is not None), None)


def _undone(left: Source, logical: Logical, hit: Hit) -> _Told:
    """Where b does not hold enough to undo a fault, a's own tensor does."""
    undo = Undo(mend=hit.mend) if hit.mend else Undo(side="a", tensor=held(left, logical))
    return _Told(logical, hit.name, hit.what, undo)


def _outright(left: Source, right: Source, logical: Logical, found: Difference) -> _Told | None:
    """Faults that a difference itself tells: biases, norms and rows of the vocabulary that only one side has."""
    if found.rows:
        spec = (("vocab_size", left.spec.vocab_size),)
        if found.rows < 0:
            undo = Undo(side="a", tensor=held(left, logical))
            return _Told(logical, "vocabulary-cut", f"the last {-found.rows} rows are missing", undo, spec)
        what = f"{found.rows} rows beyond the vocabulary, {'zero' if found.rows_zero else 'not zero'}"
        rows = left.spec.vocab_size
        return _Told(logical, "padding-leaked", what, Undo(mend=lambda tensor: tensor[:rows]), spec)
    stored = logical in left.tensors()
    row = (left if stored else right).family.row(logical.row)
    if logical.leaf == "bias":
        fields = ((row.bias, stored),) if row.bias in BIASES else ()
        kind, added = "bias", "a has no such bias, and it is not zero"
    elif row.when and row.name.endswith("norm"):
        fields, kind, added = ((row.when, stored),), "norm", "a has no such norm"
    else:
        return None
    if stored:
        return _Told(logical, f"{kind}-dropped", f"the {kind} is missing", Undo(side="a", tensor=logical), fields)
    return _Told(logical, f"{kind}-added", added, None, fields)


def _untied(a: SourceModel, b: SourceModel, report: Report) -> list[_Told]:
    """A head of its own where a ties it to the embedding, or the other way round."""
    if "tied_embeddings" not in report.spec:
        return []
    spec, head = (("tied_embeddings", a.spec.tied_embeddings),), a.family.head
    if a.spec.tied_embeddings:
        what = "it is not the embedding, to which a ties it"
        return [_Told(head, "tied-head-untied", what, Undo(tensor=a.family.embedding), spec)]
    return [_Told(head, "head-tied", "it is tied to the embedding, but a has one of its own", Undo(side="a"), spec)]


def _twins(left: Source, right: Source, work: Mapping[Logical, Difference], *, done: list[Logical]) -> list[_Told]:
    """Tensors that are another row's. Where b has not what belongs there, a's own tensor undoes it."""
    told = []
    for twin in twins(left, right, [x for x in work if x not in done]):
        undo = Undo(tensor=twin.of) if twin.exchanged else Undo(side="a", tensor=twin.tensor)
        told.append(_Told(twin.tensor, twin.name, twin.what, undo))
    return told


# ---- layers ----------------------------------------------------------------------------------------------------------
def _layers(fault: Moved, work: Mapping[Logical, Difference], *, a: SourceModel) -> Guess:
    """Of layers that came from elsewhere: where b has what belongs there, else a's own."""
    back = {j: i for i, j in fault.origins.items()}
    row = fault.tensor
    concerned = [x for x in work if x.layer in (*fault.origins, *fault.gone) and row in (None, (x.row, x.leaf))]
    undo = {
        str(x): Undo(tensor=replace(x, layer=back[x.layer])) if x.layer in back else Undo(side="a", tensor=x)
        for x in concerned
        if x in a.source.tensors()
    }
    layers = tuple(sorted({*fault.origins, *fault.gone}))
    spec = {"num_layers": a.spec.num_layers} if fault.gone else {}
    tensor = f"{row[0].removeprefix('layer.')}.{row[1]}" if row else ""
    text = f"layer {layers[0]}: {fault.what}" if row else fault.what
    return Guess(name=fault.name, layers=layers, tensor=tensor, text=text, undo=undo, spec=spec)


# ---- words -----------------------------------------------------------------------------------------------------------
def _grouped(told: Iterable[_Told], *, layers: int) -> list[Guess]:
    """One guess for the same fault of the same row in several layers."""
    groups: dict[tuple[str, str, str], list[_Told]] = {}
    for one in told:
        groups.setdefault((one.name, one.logical.row, one.what), []).append(one)
    return [_guess(group, layers) for group in groups.values()]


def _guess(group: list[_Told], layers: int) -> Guess:
    first = group[0]
    leaves = dict.fromkeys(one.logical.leaf for one in group)
    tensor = first.logical.row.removeprefix("layer.") + (f".{first.logical.leaf}" if len(leaves) == 1 else "")
    where = tuple(sorted({one.logical.layer for one in group if one.logical.layer is not None}))
    place = f"{said_layers(where, of=layers)} " if where else ""
    return Guess(
        name=first.name, layers=where, tensor=tensor, text=f"{place}{tensor}: {first.what}",
        undo={str(one.logical): one.undo for one in group if one.undo}, spec=dict(first.spec),
    )  # fmt: skip


def said_layers(layers: tuple[int, ...], *, of: int) -> str:
    """`layer 3`, `layers 1, 3 and 5`, `layers 2 to 9`, `all 32 layers`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) == of:
        return f"all {of} layers"
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"
