"""What the tests of LoRA share: adapters to start from, PEFT's rule by hand, and planted faults on ranks."""

import contextlib
from pathlib import Path
from typing import Any

import torch

SCALE = 4.0


def adapter_folder(folder: Path, model: Path, *, rank: int = 4, targets: tuple[str, ...] | None = None) -> Path:
    """A PEFT adapter of a model's folder, both factors random."""
    from mconv.convert import lora, peft
    from mconv.convert.load import open_checkpoint

    base, random = open_checkpoint(model), torch.Generator().manual_seed(5)
    names = lora.chosen(targets, lora.linears(base.family, base.spec))
    settings = lora.Settings(rank=rank, alpha=SCALE * rank, targets=names)
    factors = {
        key: 0.05 * torch.randn(shape, generator=random)
        for key, shape in lora.shapes(settings, base.family, base.spec).items()
    }
    adapter = lora.Adapter(settings=settings, family=base.family, spec=base.spec, factors=factors)
    peft.write(adapter, folder, base=str(model))
    return folder


def by_hand(model: Any, adapter: Path) -> list[torch.nn.Parameter]:
    """Put an adapter on a transformers model: a hook on each linear, and nothing of mconv's. Returns its factors."""
    from safetensors.torch import load_file

    model.requires_grad_(False)
    factors = {k: torch.nn.Parameter(v.float()) for k, v in load_file(adapter / "adapter_model.safetensors").items()}
    for key in [key for key in factors if ".lora_A." in key]:
        a, b = factors[key], factors[key.replace(".lora_A.", ".lora_B.")]

        def add(_: Any, inputs: Any, output: Any, a: Any = a, b: Any = b) -> Any:
            return output + SCALE * (inputs[0] @ a.t()) @ b.t()

        name = key.removeprefix("base_model.model.").partition(".lora_A")[0]
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

    from mconv.convert.lora import Settings
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
            patch.setattr(Settings, "scale", 1.0)
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
