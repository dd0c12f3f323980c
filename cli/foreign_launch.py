"""Options of sbatch, torchrun and `mconv train` on the command line of `mconv launch`: the field that each is there."""

ELSEWHERE = {
    "ntasks_per_node": "ranks_per_node", "gpus": "gpus_per_node", "nproc_per_node": "ranks_per_node", "nnodes": "nodes",
    "a": "account", "p": "partition", "q": "qos", "n": "nodes", "t": "time", "w": "nodelist", "x": "exclude",
    "c": "cpus_per_task", "j": "job_name", "d": "chdir", "o": "output", "signal": "signal_seconds",
    "container_image": "image_file", "container_mounts": "binds", "container_workdir": "workdir", "bind": "binds",
    "b": "binds", "v": "binds", "volume": "binds", "pwd": "workdir", "rdzv_endpoint": "port", "master_port": "port",
    "module": "modules", "container_mount_home": "mount_home",
}  # fmt: skip
"""Option of sbatch, srun, torchrun or a container, in small letters -> field of the cluster."""


def advice(name: str) -> str | None:
    """Return how to set what an option names elsewhere, or None if it is neither the cluster's nor the run's."""
    from mconv.train.clusters import read
    from mconv.train.config import help_of

    field = ELSEWHERE.get(name, name)
    if field in read.KINDS:
        return f"; it is a field of the cluster: --set cluster.{field}=VALUE"
    return f"; it is a field of the run: --set {name}=VALUE" if name in help_of() else None
