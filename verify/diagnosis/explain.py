"""The known fault behind tensors that differ, and how to undo it in b.

Only exact faults are named, to the rounding of a cast: a guess is a claim that can be tried. Only tensors that differ are
read (and a sample of the same tensors in other layers), one at a time.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.sources.source import Source
from mconv.convert.spelling.table import Logical
from mconv.verify.diagnosis.layers import Moved, moved
from mconv.verify.diagnosis.order import known_order, shuffled
from mconv.verify.diagnosis.pair import Hit, Mend, TensorPair, entire
from mconv.verify.diagnosis.parts import part_added, part_dropped
from mconv.verify.diagnosis.spec import guesses_of
from mconv.verify.diagnosis.twins import twins
from mconv.verify.diagnosis.values import bit_flipped, factor, norm_dropped, norm_off_by_one, transposed, zeroed
from mconv.verify.diagnosis.vocabulary import vocabulary
from mconv.verify.differences import logical_of
from mconv.verify.digests import Difference, Report, held

LIGHT: tuple[Callable[[TensorPair], Hit | None], ...] = (
    bit_flipped, zeroed, part_dropped, part_added, known_order, transposed, norm_dropped, norm_off_by_one,
    factor,
)  # fmt: skip
"""Rules that are tried on every tensor, in this order."""
HEAVY: tuple[Callable[[TensorPair], Hit | None], ...] = (shuffled, vocabulary)
"""Rules that hash slices."""
SEARCHED = 8
"""Tensors of one row that are searched with all rules; if nothing is found in them, the others are not read."""
BIASES = ("qkv_bias", "proj_bias", "mlp_bias")
OTHER = "other bits, which no known fault explains"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Undo:
    """Repair of one tensor of b: the tensor to read instead (None: itself), and the change to make to it."""

    side: Literal["a", "b"] = "b"
    tensor: Logical | None = None
    mend: Mend | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Guess:
    """A fault that explains differences; with an empty name, differences that no known fault explains."""

    name: str
    """Stable name: `gate-up-swapped`, `rotary-order`, ..."""
    layers: tuple[int, ...] = ()
    tensor: str = ""
    """Tensor concerned in each of the layers: `mlp_in.weight`. Empty for whole layers, or for no tensor."""
    text: str
    undo: Mapping[str, Undo] = field(default_factory=dict)
    """Repairs by logical tensor of b; empty if b does not hold enough to undo the fault."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Fields for `dataclasses.replace` that repair b's spec."""

    def mended(self, logical: Logical, a: Source, b: Source) -> torch.Tensor | None:
        """Return b's logical tensor without the fault, one dimension for each axis; None if the fault is not in it."""
        undo = self.undo.get(str(logical))
        if undo is None:
            return None
        source = a if undo.side == "a" else b
        name = undo.tensor or held(source, logical) or logical
        tensor = entire(source, name)
        return tensor if undo.mend is None else undo.mend(tensor)

    def to_dict(self) -> dict[str, Any]:
        """Return the guess in plain JSON values."""
        return {"name": self.name, "layers": list(self.layers), "tensor": self.tensor, "text": self.text}


@dataclass(frozen=True, slots=True, eq=False)
class TensorFault:
    """Fault of one tensor, before equal faults are grouped."""

    logical: Logical
    name: str
    what: str
    undo: Undo | None = None
    spec: tuple[tuple[str, Any], ...] = ()


def explain(a: SourceModel, b: SourceModel, report: Report) -> list[Guess]:
    """Return the faults that explain `report`, which is `digests.compare(a, b)`, in the order of its tensors."""
    left, right = a.source, b.source
    work = {logical_of(d.tensor): d for d in report.differences}
    guesses = []
    for fault in moved(left, right, [x for x, d in work.items() if d.how != "shape"]):
        guess = _layers(fault, work, a=a)
        work = {x: d for x, d in work.items() if str(x) not in guess.undo and x.layer not in fault.gone}
        guesses.append(guess)
    faults = _untied(a, b, report)
    faults += _twins(left, right, {x: d for x, d in work.items() if d.how == "bits"}, done=[t.logical for t in faults])
    done = {t.logical for t in faults}
    faults = _credible([*faults, *_searched(left, right, {x: d for x, d in work.items() if x not in done})])
    guesses += _grouped(faults, layers=a.spec.num_layers)
    specs = guesses_of(a.spec, b.spec, report.spec)
    return guesses + [Guess(name=name, text=text, spec=spec) for name, text, spec in specs]


def _credible(faults: list[TensorFault]) -> list[TensorFault]:
    """Return the faults, a flipped bit being unexplained if other tensors are.

    A flip is damage to one element of a sound model. A little training, too, changes some tensors in one element by one
    bit only.
    """
    if all(one.name for one in faults):
        return faults
    return [TensorFault(one.logical, "", OTHER) if one.name == "bit-flipped" else one for one in faults]


# ---- tensors ---------------------------------------------------------------------------------------------------------
def _searched(left: Source, right: Source, work: Mapping[Logical, Difference]) -> list[TensorFault]:
    """Return the fault of each tensor: what its difference shows at once, else what the rules find."""
    faults: list[TensorFault] = []
    tried: dict[tuple[str, str], int] = {}
    named: set[tuple[str, str]] = set()
    for logical, found in work.items():
        if found.how == "missing" or (found.rows and not found.elements):
            faults += [x for x in [_outright(left, right, logical, found)] if x]
            continue
        if found.how == "shape" and not found.rows:
            continue  # the sizes that the specs say are what differs
        kind = logical.row, logical.leaf
        tried[kind] = tried.get(kind, 0) + 1
        if tried[kind] > SEARCHED and kind not in named:
            faults.append(TensorFault(logical, "", f"{OTHER} (only the first {SEARCHED} were searched)"))
            continue
        hit = _hit(left, right, logical, found, LIGHT + (HEAVY if tried[kind] <= SEARCHED else ()))
        named |= {kind} if hit else set()
        faults.append(TensorFault(logical, "", OTHER) if hit is None else _undone(left, logical, hit))
    return faults


def _hit(
    left: Source, right: Source, logical: Logical, found: Difference, rules: Iterable[Callable[[TensorPair], Hit | None]]
) -> Hit | None:
    names = held(left, logical), held(right, logical)
    if names[0] is None or names[1] is None:
        return None
    pair = TensorPair.read(left, right, logical, (names[0], names[1]), found)
    return next((hit for rule in rules if (hit := rule(pair)) is not None), None)


def _undone(left: Source, logical: Logical, hit: Hit) -> TensorFault:
    """Return a recognised fault with its repair, which is a's own tensor if b does not hold enough."""
    undo = Undo(mend=hit.mend) if hit.mend else Undo(side="a", tensor=held(left, logical))
    return TensorFault(logical, hit.name, hit.what, undo)


def _outright(left: Source, right: Source, logical: Logical, found: Difference) -> TensorFault | None:
    """Return a fault that a difference shows at once: biases, norms and vocabulary rows that only one side has."""
    if found.rows:
        spec = (("vocab_size", left.spec.vocab_size),)
        if found.rows < 0:
            undo = Undo(side="a", tensor=held(left, logical))
            return TensorFault(logical, "vocabulary-cut", f"the last {-found.rows} rows are missing", undo, spec)
        what = f"{found.rows} rows beyond the vocabulary, {'zero' if found.rows_zero else 'not zero'}"
        rows = left.spec.vocab_size
        return TensorFault(logical, "padding-leaked", what, Undo(mend=lambda tensor: tensor[:rows]), spec)
    stored = logical in left.tensors()
    row = (left if stored else right).family.row(logical.row)
    if logical.leaf == "bias":
        fields = ((row.bias, stored),) if row.bias in BIASES else ()
        kind, added = "bias", "a has no such bias, and it is not zero"
    elif row.when and row.kind == "norm":
        fields, kind, added = ((row.when, stored),), "norm", "a has no such norm"
    else:
        return None
    if stored:
        return TensorFault(logical, f"{kind}-dropped", f"the {kind} is missing", Undo(side="a", tensor=logical), fields)
    return TensorFault(logical, f"{kind}-added", added, None, fields)


def _untied(a: SourceModel, b: SourceModel, report: Report) -> list[TensorFault]:
    """Return the fault of a head that is tied to the embedding on one side only."""
    if "tied_embeddings" not in report.spec:
        return []
    spec, head = (("tied_embeddings", a.spec.tied_embeddings),), a.family.head
    if a.spec.tied_embeddings:
        what = "it is not the embedding, to which a ties it"
        return [TensorFault(head, "tied-head-untied", what, Undo(tensor=a.family.embedding), spec)]
    return [TensorFault(head, "head-tied", "it is tied to the embedding, but a has one of its own", Undo(side="a"), spec)]


def _twins(left: Source, right: Source, work: Mapping[Logical, Difference], *, done: list[Logical]) -> list[TensorFault]:
    """Return the faults of tensors that hold another row's values. If b lost the right values, a's tensor repairs it."""
    faults = []
    for twin in twins(left, right, [x for x in work if x not in done]):
        undo = Undo(tensor=twin.of) if twin.exchanged else Undo(side="a", tensor=twin.tensor)
        faults.append(TensorFault(twin.tensor, twin.name, twin.what, undo))
    return faults


# ---- layers ----------------------------------------------------------------------------------------------------------
def _layers(fault: Moved, work: Mapping[Logical, Difference], *, a: SourceModel) -> Guess:
    """Return the guess for layers that hold other layers' values; a's own layer is the repair if b lost the right one."""
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
def _grouped(faults: Iterable[TensorFault], *, layers: int) -> list[Guess]:
    """Return one guess for each fault that a row has in several layers."""
    groups: dict[tuple[str, str, str], list[TensorFault]] = {}
    for one in faults:
        groups.setdefault((one.name, one.logical.row, one.what), []).append(one)
    return [_guess(group, layers) for group in groups.values()]


def _guess(group: list[TensorFault], layers: int) -> Guess:
    first = group[0]
    leaves = dict.fromkeys(one.logical.leaf for one in group)
    tensor = first.logical.row.removeprefix("layer.") + (f".{first.logical.leaf}" if len(leaves) == 1 else "")
    where = tuple(sorted({one.logical.layer for one in group if one.logical.layer is not None}))
    place = f"{layers_in_words(where, of=layers)} " if where else ""
    return Guess(
        name=first.name, layers=where, tensor=tensor, text=f"{place}{tensor}: {first.what}",
        undo={str(one.logical): one.undo for one in group if one.undo}, spec=dict(first.spec),
    )  # fmt: skip


def layers_in_words(layers: tuple[int, ...], *, of: int) -> str:
    """Return layers in words: `layer 3`, `layers 1, 3 and 5`, `layers 2 to 9`, `all 32 layers`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) == of:
        return f"all {of} layers"
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"
