"""Split a training state into plain values and shards of tensors and objects, each written by one rank."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from mconv.convert.formats import distcp, pack
from mconv.convert.formats.distcp import Content
from mconv.convert.formats.dtype import DType, of_torch
from mconv.errors import refuse
from mconv.shard.axes import Box, overlap, volume
from mconv.train.megatron.imports import (
    LocalNonpersistentObject,
    ShardedObject,
    ShardedTensor,
    apply_factories,
    is_main_replica,
)

_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of a global tensor or object, as megatron-core describes it."""

    content: Content
    main: bool
    """True if this rank, among those that hold the shard, is the one to write it."""
    data: Any
    """A tensor; or an object that is pickled."""


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's report to rank 0: what it writes, and everything of which it holds a part."""

    entries: list[distcp.Entry]
    known: dict[str, tuple[DType | None, tuple[int, ...]]]
    """Name of each tensor or object -> dtype and whole shape."""


def take_apart(state: dict[str, Any]) -> tuple[dict[str, Any], list[Shard]]:
    """Return a state's plain part, with the nesting that it had, and its shards. Factories in it are used up."""
    apply_factories(state)
    shards: list[Shard] = []
    plain = _plain(state, shards)
    return ({} if plain is _NOTHING else plain), shards


def _plain(tree: Any, shards: list[Shard]) -> Any:
    """Return what is plain of a tree and note its shards; `_NOTHING` where nothing is left."""
    if isinstance(tree, dict):
        kept = {key: left for key, part in tree.items() if (left := _plain(part, shards)) is not _NOTHING}
        return kept if kept or not tree else _NOTHING
    if isinstance(tree, list):
        rest = [left for part in tree if (left := _plain(part, shards)) is not _NOTHING]
        return rest if rest or not tree else _NOTHING
    if isinstance(tree, ShardedTensor | ShardedObject):
        shards.append(_shard(tree))
        return _NOTHING
    return _NOTHING if isinstance(tree, LocalNonpersistentObject) else tree


def _shard(found: Any) -> Shard:
    """Return a shard; a layer that is one of a stacked tensor has that dimension, too."""
    whole, offsets = tuple(found.global_shape), tuple(found.global_offset)
    if isinstance(found, ShardedObject):
        content = Content(key=found.unique_key, whole=whole, offsets=offsets, shape=(1,) * len(whole))
    else:
        shape = (1,) * found.prepend_axis_num + tuple(found.local_shape)
        content = Content(key=found.key, dtype=of_torch(found.dtype), whole=whole, offsets=offsets, shape=shape)
    return Shard(content, is_main_replica(found.replica_id), found.data)


def lay_out(shards: list[Shard], *, rank: int) -> list[tuple[distcp.Part, Any]]:
    """Lay out a rank's file: its parts, each with its tensor (None: an object, of which the archive is whole)."""
    mine = [shard for shard in shards if shard.main and not _empty(shard.content)]
    archives = [
        pack.lay_out([x.data]) if x.content.dtype is None else distcp.tensor_archive(x.content.shape, x.content.dtype)
        for x in mine
    ]
    parts = distcp.parts(zip((shard.content for shard in mine), archives, strict=True), rank=rank)
    tensors = (None if shard.content.dtype is None else shard.data for shard in mine)
    return list(zip(parts, tensors, strict=True))


def _empty(content: Content) -> bool:
    """Return whether a shard has no element, while others of its tensor have: its place may be another's."""
    return 0 in content.shape and 0 not in content.whole


def share_of(shards: list[Shard], entries: list[distcp.Entry]) -> Share:
    """Return what rank 0 must know of this rank."""
    return Share(entries, {_name(shard.content): (shard.content.dtype, shard.content.whole) for shard in shards})


def _name(content: Content) -> str:
    """Return the name of the whole that this is a part of: objects have their place in their keys."""
    return content.key if content.dtype is not None else content.key.rpartition("/")[0]


# ---- every element once ----------------------------------------------------------------------------------------------
def check(shares: list[Share]) -> None:
    """Raise MconvError, with names and ranks, unless all ranks agree and write every element once."""
    known: dict[str, tuple[int, Any]] = {}
    doing = "checking the parts of a checkpoint"
    refuse([line for rank, share in enumerate(shares) for line in _others(share.known, rank, known)], doing=doing)
    written: dict[str, list[tuple[Box, int]]] = {name: [] for name in known}
    for rank, share in enumerate(shares):
        for entry in share.entries:
            written[_name(entry.content)].append((_box(entry.content), rank))
    refuse([line for name in known for line in _once(name, known[name][1][1], sorted(written[name]))], doing=doing)


def _others(share: Mapping[str, Any], rank: int, known: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """Yield what a rank says otherwise than the first rank that knows of it."""
    for name, here in share.items():
        first, there = known.setdefault(name, (rank, here))
        if here != there:
            yield f"{name} is {_described(here)} on rank {rank} and {_described(there)} on rank {first}"


def _described(described: tuple[DType | None, tuple[int, ...]]) -> str:
    dtype, whole = described
    return f"{'an object' if dtype is None else dtype} {list(whole)}"


def _once(name: str, whole: tuple[int, ...], pieces: list[tuple[Box, int]]) -> Iterator[str]:
    """Yield what is wrong with the pieces of a tensor: boxes that fill it without overlapping hold each element once."""
    held, ranks = sum(volume(box) for box, _ in pieces), sorted({rank for _, rank in pieces})
    if clash := overlap([box for box, _ in pieces]):
        (box, rank), (other, second) = (pieces[number] for number in clash)
        yield f"{name}: rank {rank} writes {_spans(box)} and rank {second} writes {_spans(other)}, which overlap"
    elif outside := [
        piece for piece in pieces if any(stop > size for (_, stop), size in zip(piece[0], whole, strict=True))
    ]:
        yield f"{name}: rank {outside[0][1]} writes {_spans(outside[0][0])}, which lies outside of {list(whole)}"
    elif held != prod(whole):
        by = f"by ranks {', '.join(map(str, ranks))}" if ranks else "by no rank"
        yield f"{name} {list(whole)}: {held} of its {prod(whole)} elements are written, {by}"


def _box(content: Content) -> Box:
    return tuple((start, start + size) for start, size in zip(content.offsets, content.shape, strict=True))


def _spans(box: Box) -> str:
    return f"[{', '.join(f'{start}:{stop}' for start, stop in box)}]"
