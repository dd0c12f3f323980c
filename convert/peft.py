"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`, read and written."""

import json
import math
from pathlib import Path
from typing import Any

from mconv.convert.formats.hf import read_header, read_json
from mconv.convert.lora import PREFIX, Adapter, Settings, linears
from mconv.convert.table import Family
from mconv.errors import FormatError, refuse
from mconv.spec import ModelSpec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "bias", "init_lora_weights")
FREE = (
    "target_modules", "task_type", "inference_mode", "revision", "peft_version", "base_model_name_or_path",
    "auto_mapping", "exclude_modules", "megatron_core", "megatron_config", "qalora_group_size", "runtime_config",
    "ensure_weight_tying", "low_cpu_mem_usage",
)  # fmt: skip
"""Keys that do not change what an adapter computes once it is trained: which linears it is on, its tensors say."""


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def read(folder: Path, *, family: Family, spec: ModelSpec) -> Adapter:
    """A PEFT adapter of a model. Raises FormatError, all problems at once, on what mconv does not train or merge."""
    config = read_json(folder / CONFIG)
    refuse(list(_problems(config)), doing=f"{folder / CONFIG}", kind=FormatError)
    located = read_header(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else {}
    if not located:
        raise FormatError(f"{folder / WEIGHTS} is missing, or empty")
    known = linears(family, spec)
    used = {part for key in located for part in key.removeprefix(PREFIX).split(".")}
    settings = Settings(
        rank=config["r"], alpha=float(config.get("lora_alpha", 8)), dropout=float(config.get("lora_dropout") or 0.0),
        targets=tuple(name for name in known if name in used),
    )  # fmt: skip
    factors = {key: where.load() for key, where in located.items()}
    return Adapter(settings=settings, family=family, spec=spec, factors=factors)


def _problems(config: dict[str, Any]) -> list[str]:
    """What the file says that is more than W + alpha/r B A, or that no rule here claims."""
    bad = []
    if config.get("peft_type") != "LORA":
        bad.append(f"peft_type is {config.get('peft_type')!r}; mconv reads LORA")
    if type(config.get("r")) is not int or config["r"] < 1:
        bad.append(f"r is {config.get('r')!r}; it must be a positive integer")
    alpha = config.get("lora_alpha", 8)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        bad.append(f"lora_alpha is {alpha!r}; it must be a finite number")
    if config.get("bias", "none") != "none":
        bad.append(f"bias is {config['bias']!r}: it trains biases too, which mconv does not")
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        bad.append(f"init_lora_weights is {config['init_lora_weights']!r}, which changes the base too")
    said = {name: value for name, value in config.items() if name not in (*READ, *FREE) and value}
    return [*bad, *(f"{name} is {value!r}, which mconv does not know" for name, value in said.items())]


def write(adapter: Adapter, folder: Path, *, base: str) -> None:
    """The folder that PEFT loads: `base` is what it is to call the model beneath."""
    from safetensors.torch import save_file

    settings = adapter.settings
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in adapter.factors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": settings.rank,
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "lora_dropout": settings.dropout, "target_modules": list(settings.targets), "bias": "none",
        "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "use_rslora": False,
        "use_dora": False, "modules_to_save": None,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
