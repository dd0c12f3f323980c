"""A run's fields on the command line: a flag for each, and the values that a run gets without one."""

import dataclasses
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from cyclopts import Group, Parameter

from mconv.convert.folders import naming
from mconv.convert.folders.staging import has_saved
from mconv.errors import ConfigError, MconvError
from mconv.train.config import (
    PREFIX,
    SECTIONS,
    TrainConfig,
    help_of,
    is_list,
    make,
    merged,
    read_environment,
    read_yaml,
)

if TYPE_CHECKING:
    from mconv.convert.folders.scan import Found


def given_values(config: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Return the given values of a run: the file's; over them variables, which are printed; over both the flags."""
    file, environment = read_yaml(config) if config else {}, read_environment(os.environ)
    given = {name: value for name, value in flags.items() if value is not None}
    if os.environ.get("RANK", "0") == "0":
        _say({name: value for name, value in sorted(environment.items()) if name not in given})
    return merged(file, environment, given)


def settled(values: dict[str, Any]) -> TrainConfig:
    """Return the configuration of a run. With `resume`, missing values come from the run that continues.

    Raises ConfigError on what is missing or wrong. Where `load` holds a run and nothing says whether that is to go on,
    this comes first.
    """
    if values.get("resume"):
        return make(inherited(values))
    try:
        made = make(values)
    except ConfigError:
        inherited(values)
        raise
    if made.verify_first:
        inherited(values)  # asks, which the run itself would do after minutes of judging
    return made


def inherited(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values, with missing ones from the run that `resume` continues; prints which."""
    load, save = values.get("load"), values.get("save")
    if load is None or (not values.get("resume") and not Path(str(load)).is_dir()):
        return values
    if not has_saved(save):
        from mconv.convert.folders.locate import check_path

        check_path(Path(str(load)))
    from mconv.train.checkpoints.inherit import filled

    found = filled(values)
    if os.environ.get("RANK", "0") == "0":
        for line in found.lines:
            print(line, flush=True)
    return found.values


def here(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with defaults for what to load and where to save, unless they or a model from scratch say it.

    The newest Megatron checkpoint of the current folder is loaded; with no `save` either, its run goes to NAME-run. Where
    the newest is a run itself, that run goes on, from where it began. Raises MconvError where there is not one newest.
    """
    if any(values.get(name) is not None for name in ("load", "init", "preset", "model")):
        return values
    from mconv.cli import choose

    save = values.get("save")
    found = _own_run(save) or choose.newest("train", "Megatron checkpoint", name="--load")
    if found.trained and save is None and values.get("finetune"):
        raise MconvError(f"--finetune begins a new run with the weights of {found.path}; give --save a folder for it")
    if save is None and not values.get("eval_only"):
        save = str(found.path) if found.trained else naming.run(choose.called_path(found.path))
        if not found.trained and os.environ.get("RANK", "0") == "0":
            _check_free(Path(save))
    goes_on = found.trained and save is not None and Path(save).resolve() == found.path.resolve()
    begun = next((choose.near(place) for place in reversed(found.ancestors) if place.is_dir()), None)
    load = begun if goes_on and begun else found.path
    choose.say(f"train: --load {load}" + (f" --save {save}" if save else ""))
    return {**values, "load": str(load), "save": save}


def check_load(config: TrainConfig) -> None:
    """Refuse, before ranks start, a `load` that holds no checkpoint. A run that has saved does not need one."""
    if config.load is not None and config.init != "random" and not has_saved(config.save):
        from mconv.convert.folders.locate import check_path

        check_path(Path(config.load))


def _own_run(save: str | None) -> "Found | None":
    """Return the run that a save folder already holds, if any."""
    from mconv.convert.folders import scan

    found = scan.look(Path(save)) if save and Path(save).is_dir() else None
    return found if found and found.trained else None


def _check_free(save: Path) -> None:
    """Refuse a default folder that holds something else. A run that began there and saved nothing may begin again."""
    begun = (save / "run.lock").is_file() and not has_saved(save)
    if not begun and save.exists() and (not save.is_dir() or any(save.iterdir())):
        raise MconvError(f"{save}, where this run would be saved by default, is taken; give --save another folder")


def _say(environment: dict[str, Any]) -> None:
    """Print what variables set, without secrets."""
    from mconv.train.logs.redact import hidden, secrets

    for name, value in environment.items():
        print(f"{name} {hidden(value, secrets(os.environ))} from {PREFIX}{name.upper()}", file=sys.stderr)


def _parameter(field: "dataclasses.Field[Any]", group: Group) -> inspect.Parameter:
    """Return a field's flag. Its default is None, so that the file's value or the field's own default is used."""
    default = "" if field.default in (None, False, dataclasses.MISSING) else f" [default: {field.default}]"
    meta = Parameter(
        name=["--save", "--out"] if field.name == "save" else None,
        help=help_of()[field.name] + default, negative=(), show_default=False, group=group,
        consume_multiple=is_list(field.type) or None,
    )  # fmt: skip
    kind: Any = Union[field.type, None]  # noqa: UP007 (the type is a value here)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, meta]
    )  # fmt: skip


def _flags() -> list[inspect.Parameter]:
    """Return a flag for each field of TrainConfig, grouped by section."""
    groups = {name: Group(_about(section), sort_key=number) for number, section in enumerate(SECTIONS)
              for name in section.__annotations__}  # fmt: skip
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    return [_parameter(fields[name], group) for name, group in groups.items()]


def _about(section: type) -> str:
    """Return a section's title: its first line up to the colon."""
    return (section.__doc__ or "").splitlines()[0].partition(":")[0].rstrip(".")


def with_fields(function: Any, name: str) -> Any:
    """Return a command with a keyword for each field of TrainConfig in its signature, from which cyclopts makes flags."""
    given = inspect.signature(function).parameters.values()
    own = [parameter for parameter in given if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = _flags()
    function.__signature__ = inspect.Signature([*own, *flags], return_annotation=int)
    function.__annotations__ = {p.name: p.annotation for p in (*own, *flags)} | {"return": int}
    function.__name__ = name
    return function
