"""A torch_dist folder in the container form that megatron-core 0.19 writes, made of one in the older form."""

import io
import json
import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

INSIDE, FILE = "common_state/shard_0_1", "__1_0.distcp"


def edit_index(folder: Path, change: object) -> None:
    """Change torch's own index of a folder."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    change(index)
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def put_inside(folder: Path, *, name: str = INSIDE, pack: object = lambda common: [common]) -> Path:
    """Move `common.pt` among the chunks and name one backend, as megatron-core 0.19 does; returns the folder."""
    buffer = io.BytesIO()
    torch.save(pack(torch.load(folder / "common.pt", weights_only=False)), buffer)
    (folder / FILE).write_bytes(buffer.getvalue())

    def change(index: object) -> None:
        index.state_dict_metadata[name] = BytesStorageMetadata()
        index.storage_data[MetadataIndex(name)] = _StorageInfo(FILE, 0, buffer.tell())

    edit_index(folder, change)
    (folder / "common.pt").unlink()
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    return folder
