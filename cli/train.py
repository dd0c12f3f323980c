"""`mconv train`: one YAML file, every field a flag, as many ranks as the layout needs."""

import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT
from typing import Annotated, Any

from cyclopts import Parameter

from mconv import extras
from mconv.cli.fields import check_load, given_values, here, settled, with_fields
from mconv.convert.folders.staging import has_saved, write_whole
from mconv.errors import CheckFailed, ConfigError, MconvError
from mconv.train.config import TrainConfig, help_of, make

PRELOAD = ("mconv.cli.live", "mconv.train.loop")
"""Modules that every rank imports."""


def work(payload: dict[str, Any]) -> dict[str, Any]:
    """Run one rank of `mconv train`; `launch.ranks` starts it."""
    from mconv.cli.live import view
    from mconv.train.config.length import run_length
    from mconv.train.loop import train as run

    made = make(payload)
    with view(run_length(made).iterations) as (say, show), _room():
        return run(made, say=say, show=show)


@contextmanager
def _room() -> Iterator[None]:
    """Add to an out-of-memory error what would need less."""
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
    from mconv.train.launch.ranks import check_environment, doomed_restarts, joined, run
    from mconv.train.logs import boards
    from mconv.train.megatron import gate as core

    extras.need("train", "megatron.core", "psutil", to="mconv train")
    core.check()
    check_environment()
    values = given_values(config, flags)
    with guarded(queue_of(values)):
        made = settled(here(values))
        if not joined() and _already(made):
            return 0
        check_load(made)
        sources.check_present(made)
        boards.check_installed(made)
        nproc, well = made.nproc_per_node or made.tp * made.pp, made.save is not None and not made.eval_only
        with gate.one_world(made):
            if made.verify_first and not gate.before_training(made):
                raise CheckFailed  # the verdict is said
            if os.environ.get("RANK", "0") == "0":
                if warning := doomed_restarts():
                    print(warning, file=sys.stderr, flush=True)
                ranks = f"starting {nproc} ranks, which import" if nproc > 1 and not joined() else "importing"
                print(f"{ranks} torch and megatron-core", flush=True)
            with _interrupted(made):
                fields = dataclasses.asdict(made)
                result = run("mconv.cli.train:work", fields, nproc=nproc, stops_well=well, preload=PRELOAD)
    if os.environ.get("RANK", "0") == "0":
        _end(result, adapter=bool(made.lora_rank or made.lora_load))
    return 0


def _write(path: Path, config: Path | None, flags: dict[str, Any]) -> int:
    """Write a configuration as a commented file, and print what a run still needs."""
    from mconv.train.config.read import checked
    from mconv.train.config.template import text

    replaces = bool(flags.pop("overwrite", None))
    if path.is_dir():
        raise MconvError(f"{path} is a folder; name a file in it, such as {path / 'run.yaml'}")
    if path.exists() and not replaces:
        raise MconvError(f"{path} is there already; name another file, or replace it with --overwrite")
    values = checked(given_values(config, flags))
    try:
        write_whole(path, text(values))
    except OSError as error:
        raise MconvError(f"{path} cannot be written: {path.parent}: {error.strerror}; name another file") from error
    print(f"wrote {path}: {len(values)} of {len(help_of())} options set")
    try:
        make(values)
    except ConfigError as error:
        print(f"before it can run: {error}")
    print(f"next: mconv train {shlex.quote(str(path))}")
    return 0


def _interrupted(made: TrainConfig) -> contextlib.AbstractContextManager[None]:
    """Say at Ctrl-C that nothing is saved, if nothing can be. A run with --save answers by itself."""
    from mconv.train.launch.answer import answering

    if made.save is not None or made.eval_only or os.environ.get("RANK", "0") != "0":
        return contextlib.nullcontext()
    return answering(lambda number: "stopping now; nothing is saved: there is no --save" if number == SIGINT else "")


def _already(made: TrainConfig) -> bool:
    """Return whether the run in `save` has no step left; if so, print that and the command that follows."""
    if not has_saved(made.save):  # imports nothing for a run that begins
        return False
    print(f"looking where the run in {made.save} stands", flush=True)  # torch is imported first
    from mconv.train.checkpoints.finished import finished

    if (found := finished(made)) is None:
        return False
    print("\n".join(found.lines()), flush=True)
    _next(found.folder, adapter=bool(made.lora_rank or made.lora_load))
    return True


def _end(result: dict[str, Any], *, adapter: bool) -> None:
    """Print how the run ended, what this start of it saved, and the command that follows."""
    if result["stopped"]:
        then = "resumes the run" if result["saved"] else "starts the run again, since nothing is saved"
        print(f"stopped by {result['stopped']}; the same command {then}")
    if result["saved"] and result["losses"]:
        print(f"saved {result['saved']}")
    if result["saved"] and result["iteration"] >= result["iterations"]:
        _next(Path(str(result["saved"])), adapter=adapter)


def _next(folder: Path, *, adapter: bool) -> None:
    """Print the command that usually follows a run whose last checkpoint is `folder`."""
    from mconv.cli import choose

    verb = "lora merge" if adapter else "meg2hf"
    print(f"next: mconv {verb} {shlex.quote(str(choose.root_of(folder)))}")


train = with_fields(_train, "train")
