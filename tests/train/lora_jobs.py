"""What the tests of LoRA share: adapters to start from, PEFT's rule by hand, and planted faults on ranks."""

import contextlib
from pathlib import Path
from typing import Any

import torch

SCALE = 4.0


def adapter_folder(folder: Path, model: Path, *, rank: int = 4, targets: tuple[str, ...] | None = None) -> Path:
    """A PEFT adapter of a model's folder, both factors random."""
    from mconv.convert.checkpoint import adapter_folder as peft_adapter
    from mconv.convert.checkpoint.open import open_checkpoint
    from mconv.convert.peft import lora
    from mconv.convert.peft.adapter import Adapter

    base, random = open_checkpoint(model), torch.Generator().manual_seed(5)
    names = lora.chosen(targets, lora.linears(base.family, base.spec))
    settings = lora.Settings(rank=rank, alpha=SCALE * rank, targets=names)
    factors = {
        key: 0.05 * torch.randn(shape, generator=random)
        for key, shape in lora.shapes(settings, base.family, base.spec).items()
    }
    adapter = Adapter(settings=settings, family=base.family, spec=base.spec, factors=factors)
    peft_adapter.write(adapter, folder, base=str(model))
    return folder


UNEVEN = {
    "model.layers.{}.self_attn.q_proj": [(4, 8), (2, 8), (4, 8), (4, 3)],
    "model.layers.{}.self_attn.v_proj": [(1, 5), None, (6, 8), None],
    "model.layers.{}.mlp.down_proj": [None, (4, 8), (4, 8), None],
}
"""Rank and alpha on each layer, of an adapter that is on some modules only and no two alike."""


def uneven_folder(folder: Path, model: Path) -> Path:
    """A PEFT adapter as `UNEVEN` has it, rank-stabilized, written by hand."""
    import json

    from safetensors.torch import load_file, save_file

    weights, random, made = load_file(model / "model.safetensors"), torch.Generator().manual_seed(5), {}
    modules = {name.format(i): pair for name, pairs in UNEVEN.items() for i, pair in enumerate(pairs) if pair}
    for module, (rank, _) in modules.items():
        rows, columns = weights[f"{module}.weight"].shape
        made[f"base_model.model.{module}.lora_A.weight"] = 0.1 * torch.randn(rank, columns, generator=random)
        made[f"base_model.model.{module}.lora_B.weight"] = 0.1 * torch.randn(rows, rank, generator=random)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(model), "r": 4, "lora_alpha": 8,
        "target_modules": list(modules), "use_rslora": True,
        "rank_pattern": {name: rank for name, (rank, _) in modules.items() if rank != 4},
        "alpha_pattern": {name: alpha for name, (_, alpha) in modules.items() if alpha != 8},
    }  # fmt: skip
    folder.mkdir(parents=True)
    save_file(made, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def uneven_scale(module: str, rank: int) -> float:
    """What its B A is multiplied by."""
    layer = int(module.split(".")[2])
    pair = UNEVEN[module.replace(f"layers.{layer}.", "layers.{}.")][layer]
    assert pair is not None and pair[0] == rank
    return pair[1] / rank**0.5


def by_hand(model: Any, adapter: Path, *, scale: Any = lambda module, rank: SCALE) -> list[torch.nn.Parameter]:
    """Put an adapter on a transformers model: a hook on each linear, and nothing of mconv's. Returns its factors."""
    from safetensors.torch import load_file

    model.requires_grad_(False)
    factors = {k: torch.nn.Parameter(v.float()) for k, v in load_file(adapter / "adapter_model.safetensors").items()}
    for key in [key for key in factors if ".lora_A." in key]:
        a, b = factors[key], factors[key.replace(".lora_A.", ".lora_B.")]
        name = key.removeprefix("base_model.model.").partition(".lora_A")[0]
        by = scale(name, a.shape[0])

        def add(_: Any, inputs: Any, output: Any, a: Any = a, b: Any = b, by: Any = by) -> Any:
            return output + by * (inputs[0] @ a.t()) @ b.t()

        model.get_submodule(name).register_forward_hook(add)
    return list(factors.values())


def losses_of(model: Any, factors: list[torch.nn.Parameter], batches: list[Any], *, lr: float, each: int) -> list[float]:
    """Training by hand: AdamW on the mean loss of `each` micro batches at a time."""
    optimizer = torch.optim.AdamW(factors, lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
    found = []
    for first in range(0, len(batches), each):
        group = batches[first : first + each]
        total = sum(batch["loss_mask"].sum() for batch in group)
        sums = [_summed(model, batch) / total for batch in group]
        loss = torch.stack(sums).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def _summed(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    scores = model(batch["tokens"]).logits
    losses = torch.nn.functional.cross_entropy(scores.transpose(1, 2), batch["labels"], reduction="none")
    return (losses * batch["loss_mask"]).sum()


# ---- planted faults --------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def planted(fault: str) -> Any:
    """For a while, LoRA as it should not be."""
    import pytest

    from mconv.convert.peft.lora import Settings
    from mconv.train.model import lora

    rows = {"q on k's rows": "layer.qkv", "gate and up swapped": "layer.mlp_in"}
    with pytest.MonkeyPatch.context() as patch:
        if fault in rows:
            whole = lora.Adapters.forward

            def moved(self: Any, x: Any, parts: Any, like: Any) -> Any:
                other = [parts[1], parts[0], *parts[2:]] if parts[0].row.name == rows[fault] else parts
                return whole(self, x, other, like)

            patch.setattr(lora.Adapters, "forward", moved)
        elif fault == "alpha/r forgotten":
            patch.setattr(Settings, "scale_of", lambda self, module: 1.0)
        elif fault == "gradients of A not summed":
            patch.setattr(lora.tensor_parallel, "copy_to_tensor_model_parallel_region", lambda x: x)
        elif fault == "no marks":
            whole_parameter = lora._parameter

            def unmarked(*args: Any) -> torch.nn.Parameter:
                made = whole_parameter(*args)
                made.sequence_parallel = False
                return made

            patch.setattr(lora, "_parameter", unmarked)
        else:
            raise AssertionError(fault)
        yield


def train_with(fault: str, **fields: Any) -> dict[str, Any]:
    """A training run with a planted fault."""
    from mconv.train.config import make
    from mconv.train.loop import train

    with planted(fault):
        return train(make(fields), say=lambda line: None)
