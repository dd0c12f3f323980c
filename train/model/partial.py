"""Read a few tensors of a torch_dist folder, by megatron-core's description of them and torch's own reader.

megatron-core's loader wants all parts of each tensor asked for by all ranks at once. This reads what one rank asks for,
alone and at any time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from mconv.train.megatron.imports import ShardedTensor


def read(folder: Path | str, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that a (part of a) sharded state dict asks for, by its own names."""
    pieces: list[ShardedTensor] = []
    merges = {}
    for name, entry in wanted.items():
        if isinstance(entry, ShardedTensor):
            pieces.append(entry)
            merges[name] = (entry, None)
        else:  # a factory: one parameter that is stored as several (gate and up)
            built = entry.build()
            pieces += _leaves(built)
            merges[name] = (built, entry.merge_fn)
    reader = FileSystemReader(folder)
    planner = _Planner(pieces, reader.read_metadata())
    reader.set_up_storage_reader(planner.metadata, is_coordinator=True)
    reader.read_data(planner.plan(), planner).wait()
    return {name: built.data if merge is None else merge(_data(built)) for name, (built, merge) in merges.items()}


def _leaves(built: Any) -> list[ShardedTensor]:
    if isinstance(built, ShardedTensor):
        return [built]
    return [leaf for one in (built.values() if isinstance(built, dict) else built) for leaf in _leaves(one)]


def _data(built: Any) -> Any:
    """Return the structure with each sharded tensor replaced by its data."""
    if isinstance(built, ShardedTensor):
        return built.data
    if isinstance(built, dict):
        return {name: _data(one) for name, one in built.items()}
    return [_data(one) for one in built]


class _Planner(LoadPlanner):
    """Reads each piece into its own tensor."""

    def __init__(self, pieces: list[ShardedTensor], metadata: Metadata) -> None:
        self.metadata = metadata
        self.targets: dict[tuple[str, torch.Size], Tensor] = {}
        self.items: list[ReadItem] = []
        for piece in pieces:
            target = piece.data.detach().view((1,) * piece.prepend_axis_num + tuple(piece.local_shape))
            offsets = torch.Size(piece.global_offset)
            self.targets[piece.key, offsets] = target
            stored = metadata.state_dict_metadata[piece.key]
            assert isinstance(stored, TensorStorageMetadata)
            chunk = ChunkStorageMetadata(offsets=offsets, sizes=target.shape)
            self.items += create_read_items_for_chunk_list(piece.key, stored, [chunk])

    def plan(self) -> LoadPlan:
        return LoadPlan(self.items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        index = read_item.dest_index
        assert index.offset is not None
        whole = self.targets[index.fqn, index.offset]
        for axis, (start, size) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            whole = whole.narrow(axis, start, size)
        return whole

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Do nothing: the reader has copied it already."""

    def set_up_planner(self, *_: Any, **__: Any) -> None: ...

    def create_local_plan(self) -> LoadPlan:
        return self.plan()

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None: ...
