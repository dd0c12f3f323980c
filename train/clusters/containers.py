"""The command that runs a script of a job, within its container if it has one."""

from collections.abc import Callable, Iterator
from typing import Any

from mconv.errors import ConfigError
from mconv.train.clusters import quoting
from mconv.train.clusters.job import Job, environment


def command(job: Job, script: list[Any]) -> list[Any]:
    """Return the words that run a script of bash, its path and arguments as the container has them."""
    return [*KINDS[job.cluster.container](job), "bash", *script] if job.cluster.container != "docker" else [
        *KINDS["docker"](job), *script]  # fmt: skip


def _none(job: Job) -> list[Any]:
    return []


def _pyxis(job: Job) -> list[Any]:
    """Return options of srun."""
    home = "--container-mount-home" if job.cluster.mount_home else "--no-container-mount-home"
    mounts = [f"--container-mounts={','.join(binds)}"] if (binds := list(_binds(job))) else []
    return [f"--container-image={job.cluster.image_file}", *mounts, f"--container-workdir={job.places.start}", home]


def _exec(program: str) -> Callable[[Job], list[Any]]:
    def words(job: Job) -> list[Any]:
        """Return what singularity and apptainer share."""
        nvidia = ["--nv"] if job.cluster.gpus else []
        binds = [f"--bind={bind}" for bind in _binds(job)]
        return [program, "exec", *nvidia, f"--pwd={job.places.start}", *binds, job.cluster.image_file]

    return words


def _enroot(job: Job) -> list[Any]:
    """Return a start of the image itself. Raises ConfigError on a bind that enroot's fstab lines cannot say."""
    binds = list(_binds(job))
    if bad := [bind for bind in binds if any(letter.isspace() for letter in bind)]:
        raise ConfigError(f"cluster.binds has {bad[0]!r}: enroot takes no spaces in a mount; choose another folder")
    variables = [word for name, value in environment(job).items() for word in ("--env", f"{name}={value}")]
    return [
        "enroot",
        "start",
        *(word for bind in binds for word in ("--mount", bind)),
        *variables,
        job.cluster.image_file,
    ]


def _docker(job: Job) -> list[Any]:
    """Return a container that goes when its command ends, with the files that it makes owned by the user.

    Slurm's signals do not reach its ranks; the end of the job's time does, before which they stop.
    """
    gpus = ["--gpus=all"] if job.cluster.gpus else []
    fabric = ["--device=/dev/infiniband"] if job.cluster.efa else []
    volumes = [f"--volume={bind}" for bind in _binds(job)]
    return [
        *("docker", "run", "--rm", *gpus, *fabric, "--network=host", f"--shm-size={job.cluster.shm_size}"),
        *("--ulimit=memlock=-1", "--ulimit=stack=67108864", quoting.Quoted('--user="$(id -u):$(id -g)"')),
        *(
            *volumes,
            "--env=HOME=/tmp",
            "--env=SLURM_JOB_END_TIME",
            f"--workdir={job.places.start}",
            "--entrypoint=bash",
            job.cluster.image,
        ),
    ]


KINDS: dict[str, Callable[[Job], list[Any]]] = {
    "none": _none, "pyxis": _pyxis, "singularity": _exec("singularity"), "apptainer": _exec("apptainer"),
    "enroot": _enroot, "docker": _docker,
}  # fmt: skip
"""Kind of container -> the words before a command in it."""


def _binds(job: Job) -> Iterator[str]:
    """Yield each bind as HOST:CONTAINER, that of the job's own files included."""
    for here, there in job.places.binds or ():
        yield f"{here}:{there}" + (":ro" if f"{there}:ro" in _read_only(job) else "")


def _read_only(job: Job) -> set[str]:
    return {one.split(":", 1)[1] for one in job.cluster.binds or [] if one.endswith(":ro")}
