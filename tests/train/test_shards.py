"""What each rank writes of a training state: held against megatron-core's own saver, and against what it refuses."""

import io
import re

import jobs
import numpy as np
import pytest
import torch

from mconv.convert.formats.dtype import BFLOAT16, FLOAT32
from mconv.errors import MconvError


def share(*pieces, whole=(8, 4), dtype=FLOAT32, name="w"):
    """A rank that writes these rows of a tensor, all columns."""
    from mconv.convert.formats.distcp import Content, Entry
    from mconv.train.checkpoints.shards import Share

    contents = [Content(key=name, dtype=dtype, whole=whole, offsets=(a, 0), shape=(b - a, 4)) for a, b in pieces]
    return Share([Entry(content, "__0_0.distcp", 0, 1) for content in contents], {name: (dtype, whole)})


WRONG = {
    r"w: rank 0 writes \[0:4, 0:4\] and rank 2 writes \[0:4, 0:4\], which overlap": [[(0, 4)], [(4, 8)], [(0, 4)]],
    r"w: rank 0 writes \[0:5, 0:4\] and rank 1 writes \[4:8, 0:4\], which overlap": [[(0, 5)], [(4, 8)]],
    r"w \[8, 4\]: 28 of its 32 elements are written, by ranks 0, 2": [[(0, 4)], [], [(5, 8)]],
    r"w \[8, 4\]: 0 of its 32 elements are written, by no rank": [[], []],
    r"w: rank 1 writes \[8:12, 0:4\], which lies outside of \[8, 4\]": [[(0, 4)], [(8, 12)]],
}


@pytest.mark.parametrize("message", WRONG)
def test_every_element_is_written_once(message):
    from mconv.train.checkpoints import shards

    with pytest.raises(MconvError, match=f"^{message}$"):
        shards.check([share(*pieces) for pieces in WRONG[message]])
    shards.check([share((0, 4)), share(), share((4, 8))])
    shards.check([share((0, 3)), share((5, 8)), share((3, 5))])


@pytest.mark.parametrize("other", [{"dtype": BFLOAT16}, {"whole": (8, 5)}, {"whole": (8,)}])
def test_ranks_agree_on_what_they_hold_parts_of(other):
    from mconv.train.checkpoints import shards

    with pytest.raises(MconvError, match=r"^w is .* on rank 1 and float32 \[8, 4\] on rank 0$"):
        shards.check([share((0, 8)), share(**other)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jobs.fields(tmp_path_factory.mktemp("shards"), mock=True, train_iters=2)


FAULTS = {"two": r"rank 0 writes .* and rank 1 writes .*, which overlap", "none": r"are written, by no rank"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_state_that_ranks_would_write_twice_or_not_at_all_is_refused(fault, run, world, tmp_path):
    """On all ranks, with the name of a tensor."""
    fields = run | {"save": str(tmp_path / "run"), "exit_after": 1, "tp": 2}
    for text in world.run(jobs.train_with_other_owners, fault=fault, **fields):
        assert "iteration 1 was not saved: " in text and "decoder.layers.mlp.linear_fc1.weight" in text
        assert re.search(FAULTS[fault], text), text


LAYOUTS = {
    "tp 2": {"tp": 2},
    "distributed optimizer": {"tp": 2, "distributed_optimizer": True, "bf16": True},
    "pp 2, fp16": {"pp": 2, "fp16": True, "distributed_optimizer": True},
    "chunks": {"pp": 2, "vpp": 2},
    "lora": {"lora_rank": 2, "tp": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_megatron_cores_own_saver_writes_the_same(layout, run, world, tmp_path):
    """Each chunk of each tensor at the same place with the same bytes, the same objects, the same plain state."""
    world.run(jobs.save_twice, root=str(tmp_path), **run, **LAYOUTS[layout])
    ours, theirs = (everything(tmp_path / name) for name in ("ours/iter_0000001", "theirs"))
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, value in theirs.items():
        assert same(ours[name], value), name


def everything(folder):
    """What a torch_dist folder holds, by name; of tensors by place, too."""
    from mconv.convert.formats import torch_dist

    weights, _ = torch_dist.open_folder(folder)
    training, blobs = torch_dist.open_training(folder)
    found = {
        (name, whole.shape, chunk.offsets): chunk.locate(name, whole.dtype).load().clone()
        for name, whole in (weights | training).items()
        for chunk in whole.chunks
    }
    objects = {name: torch.load(io.BytesIO(bytes_of(blob)), weights_only=False) for name, blob in blobs.items()}
    [inside] = objects.pop("common_state/shard_0_1", [None])  # megatron-core from 0.19
    common = inside or torch.load(folder / "common.pt", weights_only=False)
    return found | objects | common


def bytes_of(blob):
    with blob.path.open("rb") as file:
        file.seek(blob.start)
        return file.read(blob.length)


def same(ours, theirs):
    """Whether two trees hold the same values of the same types."""
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(theirs, np.ndarray):
        return np.array_equal(ours, theirs)
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], value) for name, value in theirs.items())
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs
