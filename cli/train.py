"""`mconv train`: one YAML, every field a flag, as many ranks as the layout needs."""

import contextlib
import dataclasses
import inspect
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Annotated, Any, Union

from cyclopts import Group, Parameter

from mconv.convert import naming
from mconv.convert.place import TRACKER
from mconv.errors import CheckFailed, ConfigError, MconvError
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
    from mconv.convert.scan import Found

PRELOAD = ("mconv.cli.live", "mconv.train.loop")
"""Modules that every rank imports."""


def work(payload: dict[str, Any]) -> dict[str, Any]:
    """One rank of `mconv train`, started by `launch.ranks`."""
    from mconv.cli.live import view
    from mconv.train.length import length
    from mconv.train.loop import train as run

    made = make(payload)
    with view(length(made).iterations) as (say, show), _room():
        return run(made, say=say, show=show)


@contextmanager
def _room() -> Iterator[None]:
    """Say what would need less, where memory runs out."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        what = str(error).partition(". ")[0]
        raise MconvError(
            f"{what}. mconv plan --gpu-memory GB says what would make the run fit. What needs less: a smaller "
            "micro_batch_size or seq_length, recompute_granularity, more tp or pp, distributed_optimizer with more "
            "replicas, bf16"
        ) from error


WriteConfig = Annotated[
    Path | None,
    Parameter(
        help="Write a complete, commented YAML file with what CONFIG, variables and flags set, and train nothing. A file "
        "that is there is replaced with --overwrite only."
    ),
]


def _train(config: Path | None = None, /, *, write_config: WriteConfig = None, **flags: Any) -> int:
    """Train on megatron-core.

    Parameters
    ----------
    config
        A YAML file with `field: value` lines, the fields being the flags below with underscores.
    """
    if write_config:
        return _write(write_config, config, flags)
    from mconv.cli import gate
    from mconv.train.data import sources
    from mconv.train.launch.chain import guarded, queue_of
    from mconv.train.launch.ranks import check_environment, joined, run

    check_environment()
    values = told(config, flags)
    with guarded(queue_of(values)):
        made = settled(here(values))
        if not joined() and _already(made):
            return 0
        check_load(made)
        sources.check_present(made)
        nproc, well = made.nproc_per_node or made.tp * made.pp, made.save is not None and not made.eval_only
        with gate.one_world(made):
            if made.verify_first and not gate.before_training(made):
                raise CheckFailed  # the verdict is said
            if os.environ.get("RANK", "0") == "0":
                ranks = f"starting {nproc} ranks, which import" if nproc > 1 and not joined() else "importing"
                print(f"{ranks} torch and megatron-core", flush=True)
            with _interrupted(made):
                fields = dataclasses.asdict(made)
                result = run("mconv.cli.train:work", fields, nproc=nproc, stops_well=well, preload=PRELOAD)
    if os.environ.get("RANK", "0") == "0":
        _end(result, adapter=bool(made.lora_rank or made.lora_load))
    return 0


def _write(path: Path, config: Path | None, flags: dict[str, Any]) -> int:
    """Write a configuration as a commented file, and say what a run would still need."""
    from mconv.train.config.read import checked
    from mconv.train.config.written import text

    replaces = bool(flags.pop("overwrite", None))
    if path.exists() and not replaces:
        raise MconvError(f"{path} is there already; name another file, or replace it with --overwrite")
    values = checked(told(config, flags))
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text(values), encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    print(f"wrote {path}: {len(values)} of {len(help_of())} options set")
    try:
        make(values)
    except ConfigError as error:
        print(f"before it can run: {error}")
    print(f"next: mconv train {shlex.quote(str(path))}")
    return 0


def _interrupted(made: TrainConfig) -> contextlib.AbstractContextManager[None]:
    """Say at Ctrl-C that nothing is saved, where nothing can be. A run with --save answers by itself."""
    from mconv.train.launch.answer import answering

    if made.save is not None or made.eval_only or os.environ.get("RANK", "0") != "0":
        return contextlib.nullcontext()
    return answering(lambda number: "stopping now; nothing is saved: there is no --save" if number == SIGINT else "")


def _already(made: TrainConfig) -> bool:
    """Say so if the run in `save` has no step left, and what to type next; returns whether that is so."""
    if made.save is None or not (Path(made.save) / TRACKER).is_file():  # imports nothing for a run that begins
        return False
    print(f"looking where the run in {made.save} stands", flush=True)  # torch is imported first
    from mconv.train.checkpoints.finished import finished

    if (found := finished(made)) is None:
        return False
    print("\n".join(found.lines()), flush=True)
    _next(found.folder, adapter=bool(made.lora_rank or made.lora_load))
    return True


def told(config: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """What a run is told: lines of the file, over them variables of the environment, which are said, over them flags."""
    file, environment = read_yaml(config) if config else {}, read_environment(os.environ)
    given = {name: value for name, value in flags.items() if value is not None}
    if os.environ.get("RANK", "0") == "0":
        _say({name: value for name, value in sorted(environment.items()) if name not in given})
    return merged(file, environment, given)


def settled(values: dict[str, Any]) -> TrainConfig:
    """Return the configuration of a run: with `resume`, what is not given is taken from the run that goes on.

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
    """Return the values with the settings of the run that `resume` goes on with, where they are not given; says which."""
    load, save = values.get("load"), values.get("save")
    if load is None or (not values.get("resume") and not Path(str(load)).is_dir()):
        return values
    if not (save and (Path(str(save)) / TRACKER).is_file()):
        from mconv.convert.locate import check_path

        check_path(Path(str(load)))
    from mconv.train.checkpoints.inherit import filled

    found = filled(values)
    if os.environ.get("RANK", "0") == "0":
        for line in found.lines:
            print(line, flush=True)
    return found.values


def here(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with what to load and where to save, where neither they nor a model from scratch say it.

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
    """Refuse a `load` that holds no checkpoint before ranks are started. A run that has saved can do without."""
    own = config.save is not None and (Path(config.save) / TRACKER).is_file()
    if config.load is not None and config.init != "random" and not own:
        from mconv.convert.locate import check_path

        check_path(Path(config.load))


def _own_run(save: str | None) -> "Found | None":
    """The run that a save folder holds already: what else is there does not matter then."""
    from mconv.convert import scan

    found = scan.look(Path(save)) if save and Path(save).is_dir() else None
    return found if found and found.trained else None


def _check_free(save: Path) -> None:
    """Refuse a default that is something else's; a run that has begun there and saved nothing yet begins anew."""
    begun = (save / "run.lock").is_file() and not (save / TRACKER).is_file()
    if not begun and save.exists() and (not save.is_dir() or any(save.iterdir())):
        raise MconvError(f"{save}, where this run would be saved by default, is taken; give --save another folder")


def _say(environment: dict[str, Any]) -> None:
    """What variables set, without secrets."""
    from mconv.train.logs.redact import hidden, secrets

    for name, value in environment.items():
        print(f"{name} {hidden(value, secrets(os.environ))} from {PREFIX}{name.upper()}", file=sys.stderr)


def _end(result: dict[str, Any], *, adapter: bool) -> None:
    """Say how the run ended, what this start of it saved, and what to type next."""
    if result["stopped"]:
        print(f"stopped by {result['stopped']}; the same command resumes the run")
    if result["saved"] and result["losses"]:
        print(f"saved {result['saved']}")
    if result["saved"] and result["iteration"] >= result["iterations"]:
        _next(Path(str(result["saved"])), adapter=adapter)


def _next(folder: Path, *, adapter: bool) -> None:
    """Print what usually follows a run whose last checkpoint is `folder`."""
    from mconv.cli import choose

    verb = "lora merge" if adapter else "meg2hf"
    print(f"next: mconv {verb} {shlex.quote(str(choose.root_of(folder)))}")


def _parameter(field: "dataclasses.Field[Any]", group: Group) -> inspect.Parameter:
    """A flag for a field: not given is None, so that the file's value, or the field's default, stands."""
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
    """One for each field of TrainConfig, a section's together under what it is about."""
    groups = {name: Group(_about(section), sort_key=number) for number, section in enumerate(SECTIONS)
              for name in section.__annotations__}  # fmt: skip
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    return [_parameter(fields[name], group) for name, group in groups.items()]


def _about(section: type) -> str:
    """A section's first line, up to its colon."""
    return (section.__doc__ or "").splitlines()[0].partition(":")[0].rstrip(".")


def with_fields(function: Any, name: str) -> Any:
    """A command with a keyword for each field of TrainConfig in its signature, where cyclopts looks for flags."""
    given = inspect.signature(function).parameters.values()
    own = [parameter for parameter in given if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = _flags()
    function.__signature__ = inspect.Signature([*own, *flags], return_annotation=int)
    function.__annotations__ = {p.name: p.annotation for p in (*own, *flags)} | {"return": int}
    function.__name__ = name
    return function


train = with_fields(_train, "train")
