"""Kubernetes: a run as Kubeflow's PyTorchJob, another command as a batch Job, each with its files in a ConfigMap."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from mconv.errors import ConfigError, refuse
from mconv.train.clusters.job import PORT, Job, Rendered, shared_files

FILE = "job.yaml"
MOUNTED = "/mconv-launch"
"""Folder where pods see the job's files."""
NAME = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", re.ASCII)
GRACE = 60
"""Seconds that a deleted pod has to end: torch's agent gives its ranks 30."""
CONTAINER = "pytorch"
"""Name by which the training operator finds the container to give its variables to."""


def render(job: Job) -> Rendered:
    """Return the files of a job. Raises ConfigError with all that Kubernetes would refuse, or lose with its pods."""
    refuse(list(_problems(job)), doing="rendering the Kubernetes job", kind=ConfigError)
    objects = [_config_map(job), _run(job) if job.values else _batch(job)]
    text = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=118)
    return Rendered(
        files={FILE: text}, submit=("kubectl", "apply", "-f", FILE), client="kubectl", notes=tuple(_notes(job))
    )


def _problems(job: Job) -> Iterator[str]:
    cluster = job.cluster
    if not NAME.fullmatch(job.name):
        yield f"the name {job.name!r} is none of Kubernetes: small letters, digits and -; set cluster.job_name"
    if cluster.image is None:
        yield "cluster.image is not set: pods need an image"
    mounts = [one.partition(":")[2] for one in cluster.volumes or []]
    if job.values.get("save") and not any(f"{job.save}/".startswith(mount.rstrip("/") + "/") for mount in mounts):
        yield f"save is {job.save}, which no volume holds: it would vanish with the pods; see cluster.volumes"


# ---- objects ---------------------------------------------------------------------------------------------------------
def _config_map(job: Job) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(job, "-files"), "data": shared_files(job)}


def _run(job: Job) -> dict[str, Any]:
    """Return the PyTorchJob, whose workers meet at the first of them."""
    cluster = job.cluster
    elastic = {"minReplicas": cluster.sizes[0], "maxReplicas": cluster.sizes[-1], "maxRestarts": cluster.max_restarts,
               "rdzvBackend": "c10d", "rdzvId": job.name, "rdzvPort": _port(job)}  # fmt: skip
    command = [f"{MOUNTED}/node.sh", f"{job.name}-worker-0:{_port(job)}", job.name, f"{job.save}/debug/{job.name}"]
    worker = {"replicas": cluster.nodes, "restartPolicy": "OnFailure", "template": {"spec": _pod(job, command)}}
    limit = {"activeDeadlineSeconds": cluster.limit} if cluster.limit else {}
    return {
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": _metadata(job),
        "spec": {"nprocPerNode": str(cluster.ranks), "elasticPolicy": elastic,
                 "runPolicy": {"cleanPodPolicy": "None", **limit}, "pytorchReplicaSpecs": {"Worker": worker}},
    }  # fmt: skip


def _batch(job: Job) -> dict[str, Any]:
    """Return the Job of a command on one node, without GPUs."""
    limit = {"activeDeadlineSeconds": job.cluster.limit} if job.cluster.limit else {}
    spec = {"restartPolicy": "Never", **_pod(job, _command(job))}
    count = len(job.numbers)
    indexed = {"completionMode": "Indexed", "completions": count, "parallelism": count} if count else {}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(job),
            "spec": {"backoffLimit": 0, **indexed, **limit, "template": {"spec": spec}}}  # fmt: skip


def _command(job: Job) -> list[str]:
    """Return what bash runs for a command: its script, with the number of this pod if there are several."""
    if not job.numbers:
        return [f"{MOUNTED}/node.sh"]
    script = f'numbers=({" ".join(map(str, job.numbers))}); exec bash "$0" "${{numbers[JOB_COMPLETION_INDEX]}}"'
    return ["-c", script, f"{MOUNTED}/node.sh"]


def _pod(job: Job, command: list[str]) -> dict[str, Any]:
    """Return a pod's spec: one container with the job's files, its volumes and shared memory."""
    cluster, claims = job.cluster, [one.split(":") for one in job.cluster.volumes or []]
    container = {
        "name": CONTAINER if job.values else "command", "image": cluster.image,
        "imagePullPolicy": cluster.image_pull_policy, "command": ["bash", *map(_literal, command)], "env": _secrets(job),
        "resources": {"requests": _resources(job), "limits": _resources(job)},
        "volumeMounts": [{"name": "files", "mountPath": MOUNTED}, {"name": "shm", "mountPath": "/dev/shm"},
                         *({"name": f"claim-{number}", "mountPath": at} for number, (_, at) in enumerate(claims))],
    }  # fmt: skip
    if job.values:
        container["ports"] = [{"name": "pytorchjob-port", "containerPort": _port(job)}]
    held = {f"claim-{number}": {"claimName": claim} for number, (claim, _) in enumerate(claims)}
    volumes = [
        {"name": "files", "configMap": {"name": f"{job.name}-files"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _quantity(cluster.shm_size)}},
        *({"name": name, "persistentVolumeClaim": claim} for name, claim in held.items()),
    ]
    selector = {"node.kubernetes.io/instance-type": cluster.instance_type} if cluster.instance_type else {}
    optional = {"nodeSelector": selector, "serviceAccountName": cluster.service_account}
    spec = {"terminationGracePeriodSeconds": GRACE, "containers": [container], "volumes": volumes}
    return {**{name: value for name, value in optional.items() if value}, **spec}


def _resources(job: Job) -> dict[str, Any]:
    """Return what a pod asks for; devices only for a run."""
    cluster = job.cluster
    devices = {"nvidia.com/gpu": cluster.gpus, "vpc.amazonaws.com/efa": cluster.efa} if job.values else {}
    memory = cluster.mem if cluster.mem not in (None, "0") else None
    wanted = {"cpu": cluster.cpus_per_task, "memory": memory, **devices}
    return {name: value for name, value in wanted.items() if value}


def _secrets(job: Job) -> list[dict[str, Any]]:
    """Return the variables that come from secrets; node.sh sets all others."""
    pairs = [(name, *one.split("/")) for name, one in (job.cluster.secret_env or {}).items()]
    return [{"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}} for name, secret, key in pairs]


def _metadata(job: Job, ending: str = "") -> dict[str, Any]:
    return {"name": job.name + ending, "namespace": job.cluster.namespace}


def _port(job: Job) -> int:
    return job.cluster.port or PORT


def _literal(word: str) -> str:
    """Return a word of a command so that Kubernetes does not expand $(NAME) in it."""
    return word.replace("$", "$$")


def _quantity(size: str) -> str:
    """Return a size as Kubernetes writes it: docker's 128g is 128Gi."""
    return f"{size[:-1]}{size[-1].upper()}i"


# ---- words -----------------------------------------------------------------------------------------------------------
def _notes(job: Job) -> Iterator[str]:
    """Yield the lines that try, follow and stop the job by hand."""
    space = ["kubectl", "--namespace", job.cluster.namespace]
    kind, label = ("pytorchjob", "training.kubeflow.org/job-name") if job.values else ("job", "job-name")
    of = f"pod/{job.name}-worker-0" if job.values else f"job/{job.name}"
    lines = {
        "try": ["kubectl", "apply", "--dry-run=client", "-f", str(job.folder / FILE)],
        "status": [*space, "get", "pods", "-l", f"{label}={job.name}"],
        "logs": [*space, "logs", "-f", of],
        "save and stop": [*space, "exec", f"{job.name}-worker-0", "--", "touch", f"{job.triggers}/exit"],
        "remove": [*space, "delete", kind, job.name],
    }
    wanted = {name: line for name, line in lines.items() if job.values or name != "save and stop"}
    yield from (f"{name}: {shlex.join(line)}" for name, line in wanted.items())
    if job.values and job.cluster.time and not job.values.get("exit_duration_in_mins"):
        yield f"Kubernetes ends the job after {job.cluster.time} without a signal: exit_duration_in_mins saves before"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that scripts can be read."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
