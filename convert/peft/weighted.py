"""Several adapters of one base as one: the sum of their deltas, each times a weight.

The factors of a module are put side by side, B of each times its weight and scale, so that B A is the weighted sum itself
and is rounded once, with W. PEFT calls it the combination "cat".
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch

from mconv.convert.peft.adapter import Adapter, Replaced
from mconv.convert.peft.lora import modules, places
from mconv.convert.peft.settings import Settings
from mconv.errors import MconvError


def weighted(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Return the adapter whose delta is the weighted sum of theirs. Raises MconvError for what no sum can be made of."""
    first = adapters[0]
    a: dict[str, list[torch.Tensor]] = {}
    b: dict[str, list[torch.Tensor]] = {}
    ranks: Counter[str] = Counter()
    for adapter, weight in zip(adapters, weights, strict=True):
        for linear, layer, rank in modules(adapter.settings, adapter.family, adapter.spec):
            module, (key_a, key_b) = linear.at(layer), (linear.key(layer, factor) for factor in "AB")
            scale = weight * adapter.settings.scale_of(module)
            a.setdefault(key_a, []).append(adapter.factors[key_a].double())
            b.setdefault(key_b, []).append(adapter.factors[key_b].double() * scale)
            ranks[module] += rank
    factors = {key: torch.cat(each) for key, each in a.items()}
    factors |= {key: torch.cat(each, dim=1) for key, each in b.items()}
    return Adapter(
        settings=_settings(adapters, ranks), family=first.family, spec=first.spec, factors=factors,
        replaced=_replaced(adapters, weights),
        ignored={name: value for adapter in adapters for name, value in adapter.ignored.items()},
        notes=tuple(dict.fromkeys(chain.from_iterable(adapter.notes for adapter in adapters))),
    )  # fmt: skip


def _settings(adapters: Sequence[Adapter], ranks: Counter[str]) -> Settings:
    """Return settings by which each module's scale is 1: alpha is its rank."""
    known = places(adapters[0].family, adapters[0].spec)
    targets = [name for name in known if any(name in adapter.settings.targets for adapter in adapters)]
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
    every = [known[name].at(layer) for name in targets for layer in known[name].layers(adapters[0].spec)]
    own = {module: (ranks[module], float(ranks[module] or usual)) for module in every if ranks[module] != usual}
    return Settings(rank=usual, alpha=float(usual), targets=tuple(targets), own=own)


def _replaced(adapters: Sequence[Adapter], weights: Sequence[float]) -> tuple[Replaced, ...]:
    """Return the whole modules that the adapters hold. Raises MconvError if a sum would need to weigh one of them."""
    found = [(one, weight) for adapter, weight in zip(adapters, weights, strict=True) for one in adapter.replaced]
    seen = Counter((one.logical, one.box) for one, _ in found)
    for one, weight in found:
        if weight != 1 or seen[one.logical, one.box] > 1:
            raise MconvError(
                f"{one.key} replaces the base's tensor (modules_to_save, or a bias), so it cannot be weighted or summed; "
                "give that adapter the weight 1, and only one adapter that holds this tensor"
            )
    return tuple(one for one, _ in found)
