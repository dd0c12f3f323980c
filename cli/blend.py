"""`mconv blend`: models merged by a recipe, or a run's own checkpoints averaged."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mconv.cli import choose, located
from mconv.cli import options as o
from mconv.cli.terminal import rank_0_prints
from mconv.convert.folders import naming
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.convert.blend.request import Request

Different = list[Literal["rope", "norm-epsilon", "context", "window"]] | None
RECIPES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Short:
    """A recipe on the command line."""

    method: Annotated[
        str | None,
        Parameter(help="How models are merged: linear, slerp, ties, ... (docs/blend.md). Default: linear."),
    ] = None
    base: Annotated[
        Path | None,
        Parameter(help="The model that differences are taken from. Default, for slerp and the like: the first model."),
    ] = None
    weights: Annotated[
        str | None,
        Parameter(
            help="A weight for each model besides the base, with commas between; or uniform, linear (1, 2, 3, ...) or "
            "exponential (1, 2, 4, ...). Default: uniform, where the method does not need them."
        ),
    ] = None
    t: Annotated[float | None, Parameter(help="Place between two models: 0 is the first. For slerp.")] = None
    density: Annotated[
        float | None, Parameter(help="Share of each difference that is kept. For ties, dare and others.")
    ] = None
    set: Annotated[
        list[str] | None,
        Parameter(help="Another parameter of the method, NAME=VALUE, as a recipe has it. Repeatable.", negative=()),
    ] = None
    iterations: Annotated[
        str | None, Parameter(help="Merge these iterations of one run, with commas between, or `all`.")
    ] = None
    last: Annotated[int | None, Parameter(help="Merge so many of a run's newest iterations.")] = None

    @property
    def given(self) -> list[str]:
        """The options that were given, as typed."""
        return [f"--{name}" for name in self.__slots__ if getattr(self, name) is not None]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the method, but weights."""
        from mconv.convert.blend import short

        own = {name: getattr(self, name) for name in ("t", "density") if getattr(self, name) is not None}
        return {**short.parameters(self.set or ()), **own}


SHORT = Short()


@rank_0_prints
def blend(
    *models: Path,
    out: o.Folder = None,
    asked: Annotated[Short, o.Group] = SHORT,
    form: o.FormGroup = o.FORM,
    dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    seed: int = 0,
    allow_different: Annotated[Different, Parameter(negative=())] = None,
    tokenizer: Path | None = None,
    overwrite: o.Overwrite = False,
    resume: o.Resume = False,
    allow_nonfinite: o.AllowNonfinite = False,
    hinting: o.HintingGroup = o.HINTING,
    show: o.ShowGroup = o.SHOW,
) -> None:
    """Merge models tensor by tensor, by mergekit's methods and recipes.

    Parameters
    ----------
    models
        A recipe (mergekit's YAML), or models in any format: Hugging Face folders, Megatron checkpoints at any layout. Or
        one run, with --iterations or --last.
    dtype
        Dtype of the result. Default: the recipe's, else the models'.
    seed
        Seed of the masks of dare and della.
    allow_different
        Merge models that differ in this, and take it from the base, or from the first model. Repeatable.
    tokenizer
        Copy the tokenizer and generation files from this folder instead of the base's.
    """
    hints = {name: value for name, value in hinting.hints.items() if name != "ignore" and value is not None}
    request = _request(models, asked, seed=seed, dtype=dtype, allowed=tuple(allow_different or ()), hints=hints)
    from mconv.cli.conversion import run_plan
    from mconv.convert.blend import models as models_of
    from mconv.convert.blend import request as requests
    from mconv.convert.engine import plan

    out = out or Path(_name(request, form, dtype))
    requests.check_out(request, out)
    _check_tokenizer(request, tokenizer)
    with tempfile.TemporaryDirectory(prefix="mconv-") as room:
        made = plan.make(
            models_of.model_of(request, ignore=hinting.names, room=Path(room)), out, overwrite=overwrite, resume=resume,
            side_folder=tokenizer and located.side_folder(tokenizer), origin=request.title, check_room=not show.dry_run,
            **form.values,
        )  # fmt: skip
        run_plan(made, "blend", show=show, allow_nonfinite=allow_nonfinite)


def _check_tokenizer(request: "Request", folder: Path | None) -> None:
    """Raise MconvError where a folder and the recipe both say the tokenizer of the result."""
    if folder and (request.recipe.tokenizer or request.recipe.chat_template):
        raise MconvError(
            f"--tokenizer {folder} would replace the tokenizer that the recipe asks for (tokenizer_source, tokenizer, "
            "chat_template); leave one of the two out"
        )


def _request(models: Sequence[Path], asked: Short, **options: Any) -> "Request":
    """Return what is to be merged, of a recipe's file or of the options."""
    if not models:
        raise MconvError("name a recipe (mconv blend RECIPE.yaml), models (mconv blend A B), or a run with --last N")
    if models[0].suffix in RECIPES and not models[0].is_dir():
        return _from_file(models, asked, **options)
    from mconv.convert.blend import request as requests
    from mconv.convert.blend import short

    where = _iterations(models, asked) if asked.iterations or asked.last is not None else list(models)
    if asked.base and asked.base not in where:
        where.append(asked.base)
    if len(where) < 2:
        raise MconvError(f"{where[0]} is one model; name at least two, or --iterations of a run, or a recipe's YAML")
    if twice := [path for path in where if where.count(path) > 1]:
        raise MconvError(f"{twice[0]} is there twice; give it a larger weight instead")
    names = requests.named(where)
    base = names[where.index(asked.base)] if asked.base else None
    document = short.document(
        names, asked.method or "linear", base=base, weights=asked.weights, parameters=asked.parameters
    )
    places = {name: requests.Place(_found(path)) for name, path in zip(names, where, strict=True)}
    return requests.Request(document=document, places=places, **options)


def _from_file(models: Sequence[Path], asked: Short, **options: Any) -> "Request":
    if len(models) == 2 and not models[1].exists():  # as mergekit-yaml takes them
        raise MconvError(f"the folder to make is an option: mconv blend {models[0]} --out {models[1]}")
    if asked.given or len(models) > 1:
        extra = ", ".join([*map(str, models[1:]), *asked.given])
        raise MconvError(f"{models[0]} says what is merged and how: put {extra} into it, or leave that out")
    from mconv.convert.blend import request as requests

    return requests.from_file(models[0], _found, **options)


def _iterations(models: Sequence[Path], asked: Short) -> list[Path]:
    """Return the folders of a run's iterations that are asked for, the oldest first."""
    if len(models) > 1 or (asked.iterations and asked.last is not None):
        raise MconvError("--iterations or --last, one of them, is of one run; name that run alone")
    from mconv.convert.engine import iterations

    found = iterations.wanted(models[0], asked.iterations or "all")
    count = len(found) if asked.last is None else asked.last
    if not 2 <= count <= len(found):
        have = f"it has {len(found)} ({', '.join(map(str, found))})"
        raise MconvError(f"{models[0]}: {count} iterations cannot be merged: {have}, and at least two are needed")
    return [models[0] / f"iter_{number:07d}" for number in found[-count:]]


def _found(path: Path) -> Path:
    """Return the folder that a model's path means; an adapter passes, and is refused with the reason later."""
    return located.local(path)


def _name(request: "Request", form: o.Form, dtype: str | None) -> str:
    """Return the default name of a blend."""
    first = next(iter(request.places.values())).path
    own = f"{naming.stem(choose.called_path(first))}-{request.document['merge_method']}"
    return naming.made(own, dtype=dtype, **form.layout)
