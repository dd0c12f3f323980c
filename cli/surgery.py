"""`mconv layers` and `mconv resize`: a model made of another one, from any format and layout into any."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mconv.cli import located
from mconv.cli import options as o
from mconv.cli.conversion import run_plan
from mconv.cli.terminal import rank_0_prints
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.convert.checkpoint.model import SourceModel
    from mconv.convert.engine.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(o.Ignoring):
    """Options on how the model to resize is read: `--vocab-size` is the size of the result."""

    iteration: o.Iteration = None
    source_vocab_size: Annotated[
        int | None, Parameter(help="MODEL's vocabulary size without padding, if it does not record it.")
    ] = None
    dialect: Annotated[
        o.DialectName | None,
        Parameter(help="The program whose tensor names and row order MODEL has, if its files do not show it."),
    ] = None
    config: o.Config = None

    def open(self, path: Path) -> "SourceModel":
        """Return the model at `path`, opened with these options."""
        return o.Reading(
            iteration=self.iteration, vocab_size=self.source_vocab_size, dialect=self.dialect, config=self.config,
            ignore_arg=self.ignore_arg, ignore_config_key=self.ignore_config_key,
        ).open(located.checkpoint(path, self.iteration))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Options on the kind of checkpoint to write."""

    format: Annotated[
        Literal["hf", "torch_dist", "mp_rank"] | None, Parameter(help="Format of the result. Default: MODEL's.")
    ] = None
    tp: Annotated[int | None, Parameter(help="Tensor-parallel size. Default: MODEL's.")] = None
    pp: Annotated[int | None, Parameter(help="Pipeline-parallel size. Default: MODEL's.")] = None
    to_dialect: Annotated[
        o.DialectName | None,
        Parameter(help="The program to write an mp_rank checkpoint for. Default: MODEL's, else mcore."),
    ] = None


FormGroup = Annotated[Form, o.Group]
FORM, INPUT = Form(), Input()


@rank_0_prints
def layers(
    model: Path,
    *,
    out: Path,
    keep: str | None = None,
    repeat: str | None = None,
    order: str | None = None,
    toy: Annotated[list[int] | None, Parameter(consume_multiple=(0, 1), negative=())] = None,
    untie: o.Flag = False,
    tie: o.Flag = False,
    form: FormGroup = FORM,
    target: o.TargetGroup = o.TARGET,
    reading: o.ReadingGroup = o.READING,
    show: o.ShowGroup = o.SHOW,
) -> None:
    """Leave out, repeat or reorder the layers of a model; tie or untie its head.

    Parameters
    ----------
    model
        A Hugging Face folder, or a Megatron checkpoint of any format and layout.
    out
        The folder to make.
    keep
        The layers to keep, numbered from 0, as 0-15,20-31. Ranges may overlap: 0-23,8-31 makes 48 layers of 32.
    repeat
        Ranges of layers, as 8-12, each of which is there a second time after itself.
    order
        Every layer of the result, as 0,1,1,2.
    toy
        Keep only so many layers, evenly from the first to the last, to try a cluster out. Default with --toy alone: 4.
    untie
        Give the model a head of its own, a copy of the embedding.
    tie
        Tie the head to the embedding, if the two are equal.
    """
    found = reading.open(located.checkpoint(model, reading.iteration))
    from mconv.convert.surgery import depth

    wanted = depth.chosen(found.spec.num_layers, keep=keep, repeat=repeat, order=order, toy=toy)
    if tie and untie:
        raise MconvError("give --tie or --untie, not both")
    if wanted is None and not (tie or untie):
        raise MconvError("say which layers the result has: --keep 0-15,20-31, --repeat 8-12, --order 0,1,1,2 or --toy")
    made = depth.relayered(found, wanted, tied=tie if tie or untie else None)
    plan = _plan(made, found, out, form, target, show)
    run_plan(plan, "layers", show=show, allow_nonfinite=target.allow_nonfinite)


@rank_0_prints
def resize(
    model: Path,
    *,
    out: Path,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    tokens: str | None = None,
    init: str = "mean",
    seed: int = 0,
    form: FormGroup = FORM,
    target: o.TargetGroup = o.TARGET,
    source: Annotated[Input, o.Group] = INPUT,
    show: o.ShowGroup = o.SHOW,
) -> None:
    """Give a model another vocabulary: more rows, fewer, added tokens, or another tokenizer's.

    Rows that stay are bit for bit what they were.

    Parameters
    ----------
    model
        A Hugging Face folder, or a Megatron checkpoint of any format and layout.
    out
        The folder to make.
    tokenizer
        A folder with another tokenizer. A token that both have, by its string, keeps its row.
    vocab_size
        Rows of embedding and head, without padding. Default: as many as the tokenizer has ids, and no fewer than
        before without --tokenizer.
    tokens
        Special tokens to add to the tokenizer, separated by commas: "[formula],[/formula]".
    init
        New rows: mean (of all rows), normal (with their mean and deviation, column by column), zeros, copy:TOKEN, or
        subword-mean (of the tokens that the old tokenizer splits the new one into).
    seed
        Of --init normal.
    """
    tokenizer = located.side_folder(tokenizer) if tokenizer else None
    found = _opened(model, source)
    from mconv.convert.surgery import vocabulary
    from mconv.convert.surgery.tokenizer import listed

    asked = vocabulary.Request(tokenizer=tokenizer, size=vocab_size, tokens=listed(tokens), init=init, seed=seed)
    with tempfile.TemporaryDirectory(prefix="mconv-") as room:
        plan = _plan(vocabulary.resized(found, asked, Path(room)), found, out, form, target, show)
        run_plan(plan, "resize", show=show, allow_nonfinite=target.allow_nonfinite)


def _opened(path: Path, source: Input) -> "SourceModel":
    """Return the model to resize. Messages name the option for its vocabulary as it is here."""
    try:
        return source.open(path)
    except MconvError as error:
        raise type(error)(str(error).replace("--vocab-size", "--source-vocab-size")) from error


def _plan(made: "SourceModel", base: "SourceModel", out: Path, form: Form, target: o.Target, show: o.Show) -> "Plan":
    """Return the plan of a model that is made of `base`, in its format and layout where nothing else is said."""
    from mconv.convert.engine import plan
    from mconv.shard.stages import EVEN

    format: Any = form.format or ("hf" if base.is_pretrained else base.format)
    dialect = form.to_dialect or (base.dialect if format == base.format == "mp_rank" else None) or "mcore"
    layout, values = base.layout if format != "hf" else None, target.values
    tp, pp = (layout.tp, layout.pp) if layout else (1, 1)
    sizes: dict[str, Any] = {"tp": tp if form.tp is None else form.tp, "pp": pp if form.pp is None else form.pp}
    same_stages = layout and sizes["pp"] == layout.pp and made.spec.num_layers == base.spec.num_layers
    if layout and same_stages and values["uneven"] == EVEN and target.vpp == layout.vpp:
        values["uneven"] = layout.uneven
    return plan.make(made, out, format=format, dialect=dialect, check_room=not show.dry_run, **sizes, **values)
