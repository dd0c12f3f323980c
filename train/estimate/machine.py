"""What this machine can do for a run: devices, backends, room, limits, and what is installed. Nothing is started."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mconv.convert.folders.host import cores, existing, memory, writable
from mconv.errors import MconvError
from mconv.extras import found, version
from mconv.train.megatron import gate

PACKAGES = ("torch", "megatron-core", "transformers", "tokenizers", "safetensors", "huggingface_hub")
"""Packages that mconv is built on."""
EXTRAS = {
    "transformer-engine": "transformer_engine", "flash-attn": "flash_attn", "apex": "apex", "tensorboard": "tensorboard",
    "wandb": "wandb", "peft": "peft",
}  # fmt: skip
"""Packages that a run can do without, and the modules that they bring."""
DRIVER = "/proc/driver/nvidia/version"
SHM, FILES = 1 << 30, 4096
"""Shared memory and open files below which runs of many ranks have been seen to die."""


def machine(folder: Path) -> dict[str, Any]:
    """Return all that `mconv doctor` says, as plain values; `folder`: where a run would save. Tokens are not read."""
    return {
        "devices": devices(),
        "nvidia_driver": Path(DRIVER).exists() or shutil.which("nvidia-smi") is not None,
        "backends": backends(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "extras": {name: version(name) or "yes" if found(module) else None for name, module in EXTRAS.items()},
        "core_problem": core_problem(),
        "dataset_helpers": dataset_helpers(),
        "cores": cores(),
        "memory": memory(),
        "disk": {"folder": str(folder), "free": shutil.disk_usage(existing(folder)).free, "writable": writable(folder)},
        "shm": shm(),
        "open_files": open_files(),
        "hub_token": hub_token(),
    }


def advice(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what is likely to go wrong, and what to do about it."""
    if facts["core_problem"]:
        yield facts["core_problem"]
    if facts["nvidia_driver"] and not facts["devices"]:
        built = facts["backends"]["cuda"]
        how = f"is built for CUDA {built}: is the driver too old for it, or CUDA_VISIBLE_DEVICES empty?" if built else (
            "is built without CUDA: install one that is built with it")  # fmt: skip
        yield f"there is an NVIDIA driver, but torch sees no device; it {how}"
    if not facts["disk"]["writable"]:
        yield f"{facts['disk']['folder']} cannot be written to, or made: a run could not save there"
    if facts["dataset_helpers"] is False:
        yield "megatron-core's dataset helpers are not built: install its wheel, which brings them"
    if len(facts["devices"]) > 1 and facts["shm"] and facts["shm"]["size"] < SHM:
        yield "/dev/shm is less than 1 GiB, which NCCL and data loaders use: docker run --shm-size=128g"
    if facts["open_files"] is not None and facts["open_files"] < FILES:
        yield f"no more than {facts['open_files']} files may be open at once: ulimit -n {FILES * 16}"
    if facts["devices"] and not facts["backends"]["nccl"]:
        yield "this torch has no NCCL, so ranks on several devices cannot communicate: install one that is built with it"


def devices() -> list[dict[str, Any]]:
    """Return the CUDA devices; none on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": d.name, "memory": d.total_memory, "capability": f"{d.major}.{d.minor}"} for d in found]


def backends() -> dict[str, str | None]:
    """Return the versions of the communication backends, None for those that this torch does not have."""
    import torch

    dist, cuda = torch.distributed, torch.version.cuda
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if cuda and dist.is_nccl_available() else None
    return {"cuda": cuda, "nccl": nccl, "gloo": "yes" if dist.is_gloo_available() else None}


def core_problem() -> str | None:
    """Return why training cannot run on the installed megatron-core, None if it can. It is not imported."""
    try:
        gate.check("training")
    except MconvError as error:
        return str(error)
    return None


def dataset_helpers() -> bool | None:
    """Return whether megatron-core's compiled index builders are there; None without it. It is not imported."""
    spec = importlib.util.find_spec("megatron")
    roots = [Path(root) / "core" / "datasets" for root in (spec.submodule_search_locations if spec else None) or []]
    roots = [root for root in roots if root.is_dir()]
    return any(list(root.glob("helpers_cpp*.so")) for root in roots) if roots else None


def shm() -> dict[str, int] | None:
    """Return the bytes of shared memory; None where there is none."""
    usage = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    return {"size": usage.total, "free": usage.free} if usage else None


def open_files() -> int | None:
    """Return how many files a process may have open; None if there is no limit."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def hub_token() -> bool:
    """Return whether there is a token for the Hub: in the environment, or from `hf auth login`. It is not read."""
    from huggingface_hub import constants

    told = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    return told or Path(constants.HF_TOKEN_PATH).is_file()
