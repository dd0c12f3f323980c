"""Open a checkpoint by conversion's reader, and copy this rank's slices of its weights into the model."""

from pathlib import Path

import torch
from torch import Tensor

from mconv.convert.checkpoint.model import SourceModel
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.folders.ignored import NOTHING, Ignored
from mconv.convert.sources.load import load_rank
from mconv.convert.sources.source import Source
from mconv.errors import LayoutError
from mconv.shard.layout import padded_vocab
from mconv.train.megatron.imports import parallel_state
from mconv.train.model import drawing
from mconv.train.model.engine import Parallel, parameters


def open_weights(
    path: str, *, vocab_size: int | None, iteration: int | None = None, ignore: Ignored = NOTHING
) -> SourceModel:
    """Open a checkpoint of any format; `vocab_size` where it does not know its own; `iteration` of a root's."""
    return open_checkpoint(Path(path), vocab_size=vocab_size, iteration=iteration, ignore=ignore)


def padded_size(checkpoint: SourceModel, parallel: Parallel, *, multiple: int) -> int:
    """Return the rows of the embedding to train: the checkpoint's if it is padded already, else by Megatron's rule."""
    if checkpoint.layout is None:
        return padded_vocab(checkpoint.spec.vocab_size, tp=parallel.tp, multiple=multiple)
    size = checkpoint.layout.padded_vocab
    if size % parallel.tp:
        raise LayoutError(
            f"the checkpoint's padded vocabulary {size} is not a multiple of tp {parallel.tp}; "
            "take another tp, or reshard the checkpoint to this one first"
        )
    return size


def fill(model: torch.nn.Module, source: Source, parallel: Parallel, *, padded_vocab_size: int, chunk: int = 0) -> None:
    """Copy this rank's slices of a source's weights into the model (a chunk of it), cast to its dtype."""
    fill_tensors(parameters(model), source, parallel, padded_vocab_size=padded_vocab_size, chunk=chunk)


def fill_tensors(
    tensors: dict[str, Tensor], source: Source, parallel: Parallel, *, padded_vocab_size: int, chunk: int = 0
) -> None:
    """Copy this rank's slices into tensors that have the shapes and names of its parameters."""
    load_rank(
        source,
        tensors,
        layout=parallel.layout(padded_vocab=padded_vocab_size),
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        stage=parallel_state.get_pipeline_model_parallel_rank(),
        chunk=chunk,
    )
    drawing.forget()
