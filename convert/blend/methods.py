"""The table of merge methods: their parameters, how many models they take, and the rule that each one is.

Nothing here imports torch: a recipe is read and checked by this table alone. `arithmetic.py` has the rules themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

REQUIRED = object()
MANY = 1 << 20


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a method: what type its value is, what it is where the recipe is silent, and its bounds."""

    name: str
    kind: type = float
    default: Any = REQUIRED
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to merge models."""

    name: str
    title: str
    paper: str
    base: Literal["required", "optional", "unused"] = "unused"
    """Whether the recipe's base model has a part of its own; where it is unused, it is a model like the others."""
    models: tuple[int, int] = (1, MANY)
    """Least and largest number of models, without a base that has a part of its own."""
    shared: tuple[Parameter, ...] = ()
    """Parameters of the whole merge."""
    each: tuple[Parameter, ...] = ()
    """Parameters that each model has, except a base that has a part of its own."""
    rows: bool = False
    """Whether statistics are taken per row, so that slabs must hold whole rows."""
    deltas: tuple[str | None, bool] | None = None
    """Of methods that add up differences from a base: the rule that thins them out, and whether signs are elected."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.shared + self.each


WEIGHT = Parameter("weight")
INT8 = Parameter("int8_mask", bool, False)  # mergekit's masks in fewer bytes; ours are booleans


def _deltas(
    name: str, title: str, paper: str, rule: tuple[str | None, bool], *extra: Parameter,
    normalize: bool = False, rescale: bool = False,
) -> Method:  # fmt: skip
    """Return a method of the family that adds up differences from a base, each thinned out and weighted."""
    switches = (("normalize", normalize), ("rescale", rescale))
    shared = (INT8, *(Parameter(key, bool, on) for key, on in switches), Parameter("lambda", float, 1.0))
    each = (WEIGHT, Parameter("density", float, 1.0, least=0.0, most=1.0), *extra)
    return Method(
        name=name, title=title, paper=paper, base="required", models=(0, MANY), shared=shared, each=each,
        rows=rule[0] == "ranks", deltas=rule,
    )  # fmt: skip


GAMMA = Parameter("gamma", float, 0.01, least=0.0, most=1.0)
EPSILON = Parameter("epsilon", float, 0.15, least=0.0, most=1.0)
SPHERE, TASK, TIES = "https://en.wikipedia.org/wiki/Slerp", "arXiv:2212.04089", "arXiv:2306.01708"
DARE, CRUMBS, DELLA = "arXiv:2311.03099", "arXiv:2312.06795", "arXiv:2406.11617"

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(
                name="linear", title="Linear", paper="arXiv:2203.05482", shared=(Parameter("normalize", bool, True),),
                each=(WEIGHT,),
            ),
            Method(
                name="slerp", title="SLERP", paper=SPHERE, base="required", models=(1, 1),
                shared=(Parameter("t"),),
            ),
            Method(
                name="nuslerp", title="NuSLERP", paper=SPHERE, base="optional", models=(2, 2),
                shared=(Parameter("nuslerp_row_wise", bool, False), Parameter("nuslerp_flatten", bool, True)),
                each=(WEIGHT,), rows=True,
            ),
            Method(
                name="multislerp", title="Multi-SLERP", base="optional", each=(WEIGHT,),
                paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
                shared=(Parameter("normalize_weights", bool, True), Parameter("eps", float, 1e-8, least=0.0)),
            ),
            Method(
                name="karcher", title="Karcher Mean", paper="arXiv:2603.04972",
                shared=(Parameter("max_iter", int, 10, least=0.0), Parameter("tol", float, 1e-5, least=0.0)),
            ),
            Method(
                name="model_stock", title="Model Stock", paper="arXiv:2403.19522", base="required", models=(2, MANY),
                shared=(Parameter("filter_wise", bool, False),), rows=True,
            ),
            Method(
                name="passthrough", title="Passthrough", paper="arXiv:2312.15166", models=(1, 1),
                each=(Parameter("scale", float, None),),
            ),
            _deltas("task_arithmetic", "Task Arithmetic", TASK, (None, False)),
            _deltas("ties", "TIES", TIES, ("magnitude", True), normalize=True),
            _deltas("dare_ties", "DARE TIES", DARE, ("random", True), rescale=True),
            _deltas("dare_linear", "Linear DARE", DARE, ("random", False), rescale=True),
            _deltas("breadcrumbs", "Model Breadcrumbs", CRUMBS, ("outliers", False), GAMMA),
            _deltas("breadcrumbs_ties", "Model Breadcrumbs with TIES", CRUMBS, ("outliers", True), GAMMA),
            _deltas("della", "DELLA", DELLA, ("ranks", True), EPSILON, normalize=True, rescale=True),
            _deltas("della_linear", "Linear DELLA", DELLA, ("ranks", False), EPSILON, rescale=True),
            Method(
                name="sce", title="SCE", paper="arXiv:2408.07990", base="required", models=(0, MANY),
                shared=(INT8, Parameter("select_topk", float, 1.0, least=0.0, most=1.0)),
            ),
            Method(
                name="arcee_fusion", title="Arcee Fusion", paper="https://arcee.ai", base="required", models=(1, 1),
                rows=True,
            ),
            Method(
                name="nearswap", title="NearSwap", paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
                base="required", models=(1, 1), shared=(Parameter("t", float, least=0.0),),
            ),
        )
    }
)  # fmt: skip
