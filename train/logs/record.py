"""Record what a run was started with: its arguments with their origins, and its environment, without secrets."""

import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import mconv
from mconv.convert.dialects.mcore import args_of
from mconv.convert.folders.staging import write_whole
from mconv.shard.layout import Layout
from mconv.spec import ModelSpec
from mconv.train.config import TrainConfig
from mconv.train.logs.redact import hidden, secrets

NAME = "run.json"
"""File in the save folder with a record of each start of the run, the last one last."""
CODE = "code"
"""Folder in the save folder with the changes in code since its commit, as git reports them."""
COMPUTES = ("torch", "megatron-core", "transformer-engine", "flash-attn")
"""Packages that decide what a step computes."""
KEPT = re.compile(
    r"(CUDA|NCCL|GLOO|SLURM|OMP|MKL|TORCH|PYTORCH|TRITON|FI|UCX|WANDB|HF|MCONV|MASTER|NVTE|NVIDIA|XLA)_\w+"
    r"|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|HOSTNAME|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV"
)
"""Variables that can change what a run does. Others are not recorded."""
ARCHITECTURE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "vocab_size", "max_position_embeddings", "norm_epsilon", "position_embedding_type", "rotary_base",
    "use_rope_scaling", "rope_scaling_factor", "rotary_seq_len_interpolation_factor", "window_size", "normalization",
    "swiglu", "parallel_attn", "add_bias_linear", "add_qkv_bias", "untie_embeddings_and_output_weights",
)  # fmt: skip
"""Megatron's names of what a model is."""
NEEDS = {
    "rope_scaling_factor": ("use_rope_scaling", True), "rotary_base": ("position_embedding_type", "rope"),
    "rotary_seq_len_interpolation_factor": ("position_embedding_type", "rope"),
    "use_rope_scaling": ("position_embedding_type", "rope"),
}  # fmt: skip
"""Arguments that apply only where another one has some value."""
DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


# ---- arguments -------------------------------------------------------------------------------------------------------
def arguments(config: TrainConfig, spec: ModelSpec, *, inherited: dict[str, tuple[Any, str]], source: str) -> list[str]:
    """Return Megatron-LM's list of arguments, sorted and dotted, as lines: all with `print_args`, else the notable ones.

    Notable is what is not at its default, and what the configuration does not give, with where it comes from.
    `inherited`: such values by name, each with its origin; `source` is the checkpoint that the model comes from.
    """
    told = vars(args_of(spec, Layout(padded_vocab=spec.vocab_size), dtype="float32")) | {
        "norm_epsilon": spec.norm_epsilon
    }
    rows = {name: (value, "") for name, value in vars(config).items()}
    rows |= {name: (told[name], f"from {source}") for name in ARCHITECTURE
             if rows.get(name, (None,))[0] is None and _applies(name, told)}  # fmt: skip
    rows |= inherited
    if not config.print_args:
        rows = {name: row for name, row in rows.items() if _notable(name, *row)}
    known = secrets(os.environ)
    lines = [_dotted(name, hidden(value, known), origin) for name, (value, origin) in sorted(rows.items())]
    rest = [] if config.print_args else ["all other arguments have their defaults; --print-args lists them"]
    return [f"{' arguments ':-^59}", *lines, f"{' end of arguments ':-^59}", *rest]


def _applies(name: str, told: Mapping[str, Any]) -> bool:
    """Return whether an argument says anything about the model: a factor for scaling does not where nothing is scaled."""
    switch, value = NEEDS.get(name, (name, told[name]))
    return bool(told[switch] == value)


def _notable(name: str, value: Any, origin: str) -> bool:
    """Return whether the short list has an argument: not at its default, or inherited and not merely absent."""
    absent = value is None or value is False
    return not absent if origin else value != DEFAULTS.get(name) and not (absent and not DEFAULTS.get(name))


def _dotted(name: str, value: Any, origin: str) -> str:
    return f"  {name} {'.' * (48 - len(name))} {value}" + (f"  ({origin})" if origin else "")


# ---- surroundings ----------------------------------------------------------------------------------------------------
def write(folder: Path, config: TrainConfig, spec: ModelSpec, *, ranks: int, iteration: int) -> list[str]:
    """Add this start to the run's record. Returns a line for each package or code that a resumed run has changed."""
    file, known = folder / NAME, secrets(os.environ)
    before = _starts(file)
    start = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"), "iteration": iteration, "ranks": ranks,
        "config": vars(config), "model": spec.to_dict(), **surroundings(),
    }  # fmt: skip
    for name, place in {"mconv": Path(mconv.__file__).parent, "git": Path.cwd()}.items():
        if (start[name] or {}).get("changed"):
            start[name]["diff"] = keep_diff(folder / CODE, _hidden_lines(_git(place, "diff", "HEAD"), known))
    write_whole(file, json.dumps({"starts": [*before, hidden(start, known)]}, indent=1, default=str) + "\n")
    return differences(before[-1], start) if before and iteration else []


def keep_diff(folder: Path, diff: str) -> str:
    """Write a diff to a file named by its digest, once for all starts that share it; return the name."""
    name = f"{hashlib.sha256(diff.encode()).hexdigest()[:16]}.diff"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(diff)
    return name


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each computing package or code that differs between two starts."""
    was, is_now = (_computing(start) for start in (before, now))
    return [f"note: {name} was {was[name]} at the run's last start and is {is_now[name]} now"
            for name in was if was[name] != is_now[name]]  # fmt: skip


def _computing(start: dict[str, Any]) -> dict[str, Any]:
    packages = start.get("packages") or {}
    code = {"mconv": _code(start.get("mconv")), "the code of the folder it is started in": _code(start.get("git"))}
    return code | {name: packages.get(name) for name in COMPUTES}


def _code(where: dict[str, Any] | None) -> str:
    """Return version, commit and diff in a few words."""
    words = [str((where or {}).get(name, ""))[:12] for name in ("version", "commit", "diff")]
    return " ".join(filter(None, words)) or "outside of git"


def _starts(file: Path) -> list[Any]:
    try:
        return [start for start in json.loads(file.read_text())["starts"] if isinstance(start, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # none yet, or a file that somebody else has been at: a record must not stop a run


def surroundings() -> dict[str, Any]:
    """Return command, code, packages, machine and recorded variables, with secrets: see `redact`."""
    home = Path(mconv.__file__).parent
    own = git(home) if _git(home, "ls-files", "__init__.py") else None  # else another's repository lies around it
    return {
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "mconv": {"version": mconv.__version__, **(own or {})},
        "git": git(Path.cwd()),
        "python": platform.python_version(),
        "packages": packages(),
        "machine": {"host": socket.gethostname(), "system": platform.platform(), "cores": os.cpu_count()},
        "devices": devices(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if KEPT.fullmatch(name)},
    }


@functools.cache
def packages() -> dict[str, str]:
    """Return the versions of all installed packages, by name."""
    found = (distribution.metadata for distribution in distributions())
    return dict(sorted((each["Name"], each["Version"]) for each in found if each["Name"]))


def devices() -> list[str]:
    """Return the names of this machine's GPUs."""
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def git(folder: Path) -> dict[str, Any] | None:
    """Return the commit that `folder` is at, and whether files have changed since; None outside of git."""
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "changed": bool(changes)} if commit else None


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _hidden_lines(text: str, known: set[str]) -> str:
    return "".join(hidden(line, known) for line in text.splitlines(keepends=True))
