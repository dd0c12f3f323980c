"""Freeze weights: no gradient, no optimizer state, no memory for either."""

import re
from collections.abc import Iterator

import torch

from mconv.errors import ConfigError
from mconv.train.config.trainable import means
from mconv.train.megatron.collectives import from_all_ranks
from mconv.train.megatron.imports import GPTModel, parallel_state
from mconv.train.model.trainable import refuse_unknown


def freeze(models: list[GPTModel], wanted: list[str]) -> None:
    """Freeze every weight that one of `wanted` names; all ranks call it, before the data-parallel wrapper.

    Each is a word of `config.trained.PARTS`, `layers.3`, `layers.0-7`, or a pattern of megatron-core's names with the
    layers of the whole model counted from 0. Raises ConfigError on one that names no weight of any rank, and if nothing
    is left.
    """
    own = [pair for model in models for pair in names(model)]
    here = [word for word in wanted if any(means(word, name) for name, _ in own)]
    for name, parameter in own:
        if any(means(word, name) for word in wanted):
            parameter.requires_grad_(False)
    found = {word for rank in from_all_ranks(here) for word in rank}
    refuse_unknown(wanted, found, from_all_ranks(own[0][0]))
    if not count(models)[0]:
        raise ConfigError(f"freeze: {', '.join(wanted)} leaves nothing to train")


def names(model: GPTModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield this rank's parameters by their names in the whole model: layers counted through, tied weights alike."""
    for name, parameter in model.named_parameters():
        yield ("embedding.word_embeddings.weight" if _is_copy(model, name) else whole_name(model, name)), parameter


def whole_name(model: GPTModel, name: str) -> str:
    """Return the name of a parameter or module with its layer counted from 0 through the whole model."""
    found = re.match(r"decoder\.layers\.(\d+)(?=\.|$)", name)
    if found is None:
        return name
    return f"decoder.layers.{model.decoder.layers[int(found[1])].layer_number - 1}{name[found.end() :]}"


def uneven(models: list[GPTModel]) -> bool:
    """Return whether some layers train what others do not; all ranks call it."""
    own = {(re.sub(r"layers\.\d+", "layers", name), p.requires_grad) for model in models for name, p in names(model)}
    all_ranks = {pair for rank in from_all_ranks(own) for pair in rank}
    return len({name for name, _ in all_ranks}) < len(all_ranks)


def count(models: list[GPTModel]) -> tuple[int, int]:
    """Return (trained parameters, all parameters) of the whole model, each counted once; all ranks call it."""
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    own = [
        parameter
        for model in models
        for name, parameter in model.named_parameters()
        if parallel_state.get_data_parallel_rank() == 0
        and (getattr(parameter, "tensor_model_parallel", False) or tp_rank == 0)
        and (model.pre_process or not _is_copy(model, name))
    ]
    mine = [sum(p.numel() for p in own if p.requires_grad), sum(p.numel() for p in own)]
    total = torch.tensor(mine, dtype=torch.int64, device=torch.cuda.current_device())
    torch.distributed.all_reduce(total)
    return int(total[0]), int(total[1])


def _is_copy(model: GPTModel, name: str) -> bool:
    """Return whether a parameter is the last stage's copy of tied embeddings."""
    return name == "output_layer.weight" and bool(model.share_embeddings_and_output_weights)
