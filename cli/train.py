"""`mconv train`: one YAML, every field a flag, as many ranks as the layout needs."""

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any, Union

from cyclopts import Parameter

from mconv.errors import CheckFailed
from mconv.train.config import TrainConfig, help_of, is_list, make, read_yaml


def work(payload: dict[str, Any]) -> dict[str, Any]:
    """One rank of `mconv train`, started by `launch.ranks`."""
    from mconv.cli.live import view
    from mconv.train.length import length
    from mconv.train.loop import train as run

    made = make(payload)
    with view(length(made).iterations) as (say, show):
        return run(made, say=say, show=show)


def _train(config: Path | None = None, /, **flags: Any) -> int:
    """Finetune a checkpoint on megatron-core.

    Every field below is a line of CONFIG (a YAML file) as well; a flag wins over the file. Under torchrun or srun the
    command joins the ranks that are there; otherwise it starts them itself on this machine.

    Parameters
    ----------
    config
        A YAML file with `field: value` lines, the fields being the flags below with underscores.
    """
    from mconv.cli import gate
    from mconv.train.launch.chain import guarded
    from mconv.train.launch.ranks import joined, run

    given = {name: value for name, value in flags.items() if value is not None}
    made = make({**(read_yaml(config) if config else {}), **given})
    with gate.one_world(made), guarded(made):
        if made.verify_first and not gate.before_training(made):
            raise CheckFailed  # the verdict is said
        nproc, well = made.nproc_per_node or made.tp * made.pp, made.save is not None
        result = run("mconv.cli.train:work", dataclasses.asdict(made), nproc=nproc, stops_well=well)
    if not joined():
        _end(result)
    return 0


def _end(result: dict[str, Any]) -> None:
    if result["stopped"]:
        print(f"stopped by {result['stopped']}; the same command goes on from there")
    if result["saved"]:
        print(f"saved {result['saved']}")


def _parameter(field: "dataclasses.Field[Any]") -> inspect.Parameter:
    """A flag for a field: not given is None, so that the file's value, or the field's default, stands."""
    default = "" if field.default in (None, False, dataclasses.MISSING) else f" [default: {field.default}]"
    names = {"bf16": "--fp32"} if field.type is bool else {}
    meta = Parameter(help=help_of()[field.name] + default, negative=names.get(field.name, ()), show_default=False)
    if is_list(field.type):
        meta = Parameter(help=meta.help, consume_multiple=True, negative=(), show_default=False)
    kind: Any = Union[field.type, None]  # noqa: UP007 (the type is a value here)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, meta],
    )


def with_fields(function: Any, name: str) -> Any:
    """A command with a keyword for each field of TrainConfig in its signature, where cyclopts looks for flags."""
    given = inspect.signature(function).parameters.values()
    own = [parameter for parameter in given if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = [_parameter(field) for field in dataclasses.fields(TrainConfig)]
    function.__signature__ = inspect.Signature([*own, *flags], return_annotation=int)
    function.__annotations__ = {p.name: p.annotation for p in (*own, *flags)} | {"return": int}
    function.__name__ = name
    return function


train = with_fields(_train, "train")
