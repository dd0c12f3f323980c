"""`mconv launch TARGET`: a run, or a command, rendered for a cluster, checked, and submitted by the cluster's client."""

import dataclasses
import json as jsonlib
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mconv.cli import options as o
from mconv.cli.fields import check_load, given_values, here, settled
from mconv.errors import ConfigError, MconvError

if TYPE_CHECKING:
    from mconv.train.clusters.cluster import Cluster
    from mconv.train.clusters.job import Job, Rendered
    from mconv.train.clusters.prepare import Wanted

DEFAULT = Path("cluster.yaml")
"""Cluster's file that is taken if no other is named."""
ClusterFile = Annotated[
    Path | None,
    Parameter(
        help=f"The cluster's YAML file; `mconv launch write-cluster` writes one. Default: {DEFAULT} in this folder."
    ),
]
Set = Annotated[
    list[str] | None,
    Parameter(
        name="--set", negative=(),
        help="Set a field for this job: cluster.partition=debug, cluster.env.NCCL_DEBUG=INFO, or of the run, lr=1e-4. "
        "Repeatable.",
    ),
]  # fmt: skip
Overwrite = Annotated[bool, Parameter(help="Replace files that are there.", negative=())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of every target."""

    cluster: ClusterFile = None
    render: Annotated[
        Path | None,
        Parameter(
            help="Write the files to this folder. --submit writes them to `launch` in the run's folder if not given."
        ),
    ] = None
    submit: Annotated[
        bool, Parameter(help="Show the files, write them and submit them by the cluster's client.", negative=())
    ] = False
    check: Annotated[bool, Parameter(help="Render, plan and lint, and write nothing.", negative=())] = False
    set_: Set = None
    command: Annotated[
        str | None,
        Parameter(help="Run this on one node in place of a run: 'mconv data tokenize text.jsonl --out data/text'."),
    ] = None
    array: Annotated[
        str | None,
        Parameter(
            help="Run --command once for each of these numbers, such as 0-3,7, each a job; {} in it is the number."
        ),
    ] = None
    nodes: Annotated[int | None, Parameter(help="Number of nodes, over cluster.nodes.")] = None
    time: Annotated[str | None, Parameter(help="Time limit of a job, over cluster.time.")] = None
    partition: Annotated[str | None, Parameter(help="Partition, over cluster.partition.")] = None
    account: Annotated[str | None, Parameter(help="Account, over cluster.account.")] = None
    tokens_per_second: Annotated[
        float | None, Parameter(help="Tokens per second over all ranks, to compare the run's time with the limit.")
    ] = None
    no_plan: Annotated[
        bool, Parameter(help="Do not plan the run, where this machine cannot see what it loads or its data.", negative=())
    ] = False
    overwrite: Overwrite = False
    json: o.Json = False


def _target(name: str) -> Any:
    """Return the command of a target."""

    def launch(config: Path | None = None, /, *, options: Annotated[Options, o.Group] = Options()) -> None:
        """Render a run, or another command, for a cluster.

        Parameters
        ----------
        config
            The run's YAML file, as mconv train takes it.
        """
        from mconv.train.clusters import files

        job, rendered = _rendered(_wanted(name, config, options), options)
        if options.submit and not rendered.submit:
            raise ConfigError(f"{name} has nothing to submit to: give --render, and run the printed line on each node")
        if options.check or options.submit:
            files.check(rendered.files)
        if not options.json:
            _show(rendered, whole=options.submit or not (options.render or options.check))
        if writes := bool(options.render or options.submit) and not options.check:
            files.write(job.folder, rendered.files, overwrite=options.overwrite)
        told = _submit(job, rendered) if writes and options.submit else None
        _end(job, rendered, options, written=writes, told=told)

    launch.__name__ = name
    return launch


slurm, kubernetes, torchrun, docker, singularity, apptainer, enroot = map(
    _target, ("slurm", "kubernetes", "torchrun", "docker", "singularity", "apptainer", "enroot")
)


def write_cluster(path: Path = DEFAULT, /, *, set_: Set = None, overwrite: Overwrite = False) -> None:
    """Write a complete, commented YAML file of a cluster, to fill in.

    Parameters
    ----------
    path
        The file to write.
    """
    from mconv.train.clusters import files, read

    given = read.assigned(one.removeprefix("cluster.") for one in set_ or [])
    whole = path.absolute()
    files.write(whole.parent, {whole.name: read.text(read.checked(given))}, overwrite=overwrite)
    print(f"wrote {path}: {len(given)} of {len(read.help_of())} fields set")


# ---- what is wanted --------------------------------------------------------------------------------------------------
def _wanted(target: str, config: Path | None, options: Options) -> "Wanted":
    """Return what the command line asks for: the files, over them variables, over both --set and flags."""
    from mconv.train.clusters import read
    from mconv.train.clusters.prepare import Wanted
    from mconv.train.config import TrainConfig

    if bool(config) == bool(options.command):
        raise ConfigError("give CONFIG, the YAML file of a run, or else --command")
    kinds = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    theirs = read.assigned([one for one in options.set_ or [] if not one.startswith("cluster.")], kinds=kinds)
    if meant := [name for name in theirs if name not in kinds and name in read.KINDS]:
        raise ConfigError(f"--set {meant[0]}: it is a field of the cluster; write --set cluster.{meant[0]}=...")
    flags = {name: getattr(options, name) for name in ("nodes", "time", "partition", "account")}
    given = {name: value for name, value in flags.items() if value is not None}
    return Wanted(
        target=target, cluster={**cluster_values(options.cluster, options.set_), **given}, folder=options.render,
        values=given_values(config, theirs) if config else {}, command=tuple(shlex.split(options.command or "")),
        array=options.array,
    )  # fmt: skip


def cluster_values(file: Path | None, assigned: list[str] | None) -> dict[str, Any]:
    """Return the fields of a cluster: those of its file, and over them those that --set gives."""
    from mconv.train.clusters import read

    below = read.read_yaml(file or DEFAULT) if file or DEFAULT.is_file() else {}
    ours = [one.removeprefix("cluster.") for one in assigned or [] if one.startswith("cluster.")]
    return read.over(below, read.assigned(ours))


def _rendered(wanted: "Wanted", options: Options) -> "tuple[Job, Rendered]":
    """Return the job and its files. Raises MconvError on all that would stop it on the cluster."""
    from mconv.train.clusters import followed, prepare
    from mconv.train.clusters.targets import TARGETS

    cluster, iterations = prepare.cluster_of(wanted), None
    notes: list[str] = []
    if wanted.values:
        if prepare.places_for(wanted, cluster).binds is None:
            wanted = dataclasses.replace(wanted, values=here(dict(wanted.values)))
        iterations, notes = _planned(cluster, wanted, options)
    job = prepare.job_of(wanted, cluster, iterations=iterations)
    rendered = TARGETS[wanted.target].render(job)
    recorded = {**rendered.files, followed.RECORD: followed.record(job, wanted.target)}
    return job, dataclasses.replace(rendered, files=recorded, notes=(*notes, *rendered.notes))


def _planned(cluster: "Cluster", wanted: "Wanted", options: Options) -> tuple[int | None, list[str]]:
    """Return the steps of the run, and what the plan found. Raises MconvError as mconv train would."""
    from mconv.train.clusters import places, prepare
    from mconv.train.config import make
    from mconv.train.config.length import run_length
    from mconv.train.data import sources

    if options.no_plan:
        unknown = "not planned: whether the run can start is found out on the cluster"
        return run_length(make(wanted.values)).iterations or None, [unknown]
    config = settled(places.here(wanted.values, prepare.places_for(wanted, cluster)))
    check_load(config)
    sources.check_present(config)
    plan = prepare.planned(cluster, config, tokens_per_second=options.tokens_per_second)
    return run_length(config).iterations or None, [*prepare.notes(cluster, plan)]


# ---- what is said and done -------------------------------------------------------------------------------------------
def _show(rendered: "Rendered", *, whole: bool) -> None:
    """Print the files, if they are to be seen, and the notes."""
    for name, text in rendered.files.items() if whole else ():
        print(f"==> {name}\n{text.rstrip()}\n")
    for note in rendered.notes:
        print(note, flush=True)


def _submit(job: "Job", rendered: "Rendered") -> str:
    """Submit the job and return what the client says."""
    if shutil.which(rendered.client) is None:
        where = shlex.quote(str(job.folder))
        raise MconvError(
            f"{rendered.client} is not on this machine; on one that has it: cd {where} && {shlex.join(rendered.submit)}"
        )
    done = subprocess.run(rendered.submit, cwd=job.folder, capture_output=True, text=True)
    if done.returncode:
        raise MconvError(f"{shlex.join(rendered.submit)}, in {job.folder}: {(done.stdout + done.stderr).strip()}")
    return done.stdout.strip()


def _end(job: "Job", rendered: "Rendered", options: Options, *, written: bool, told: str | None) -> None:
    """Print what was done, and the command that usually follows."""
    folder = str(job.folder)
    if options.json:
        values = {"name": job.name, "folder": folder, "written": written, "submitted": told, "notes": rendered.notes}
        print(jsonlib.dumps({**values, "files": dict(rendered.files)}, indent=1))
    elif told is not None:
        print(f"{told}\nnext: mconv launch status {shlex.quote(folder)}")
    elif written:
        then = f"; next: cd {shlex.quote(folder)} && {shlex.join(rendered.submit)}" if rendered.submit else ""
        print(f"wrote {folder}: {', '.join(rendered.files)}{then}")
    elif options.check:
        print(f"checked {', '.join(rendered.files)}; nothing is written")
    else:
        print("nothing is written: --render DIR writes these files" + ", --submit submits them" * bool(rendered.submit))
