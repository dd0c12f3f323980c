"""Ranks: torch.distributed and megatron-core's groups, set up and changed within one process."""

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mconv.convert.dialects.mcore import UNEVEN
from mconv.errors import LayoutError
from mconv.shard.layout import Grid, Layout
from mconv.shard.stages import EVEN, Uneven
from mconv.train.config.parallelism import Parallelism, uneven_of

_GROUPS: list[Any] = []
"""The process groups that megatron-core has made for the layout at hand, of which this rank is a member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel(Grid):
    """The spread of one model over ranks. The rest of the world is data parallel."""

    uneven: Uneven = EVEN
    """Reasons for stages to have different numbers of layers."""
    sequence_parallel: bool = False
    """Also share the positions between the matrices; needs tp > 1."""

    def __post_init__(self) -> None:
        Grid.__post_init__(self)
        if self.sequence_parallel and self.tp == 1:
            raise LayoutError("sequence_parallel shares positions among the tensor-parallel ranks; it needs tp > 1")

    def layout(self, *, padded_vocab: int) -> Layout:
        """Return it as conversion's layout, for an embedding of so many rows."""
        return Layout(tp=self.tp, pp=self.pp, vpp=self.vpp, uneven=self.uneven, padded_vocab=padded_vocab)

    def stages(self, num_layers: int) -> dict[tuple[int, int], range]:
        """Return the layers of each (stage, chunk). Raises LayoutError if they cannot be shared so."""
        said = [f"{arg} {value}" for name, arg in UNEVEN.items() if (value := getattr(self.uneven, name))]
        try:
            return self.layout(padded_vocab=self.tp).stages(num_layers)
        except LayoutError as error:
            raise LayoutError(": ".join([*([", ".join(said)] if said else []), str(error)])) from error

    @property
    def ends(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the (stage, chunk) with the embedding, and the one with the head: they alone are fed."""
        return (0, 0), (self.pp - 1, self.vpp - 1)

    def data_parallel(self, world: int) -> int:
        """Return the replicas of the model in a world of `world` ranks. Raises LayoutError if it does not divide."""
        if world % (self.tp * self.pp):
            raise LayoutError(
                f"tp {self.tp} x pp {self.pp} = {self.tp * self.pp} does not divide the world of {world} ranks; "
                f"start a multiple of {self.tp * self.pp} ranks"
            )
        return world // (self.tp * self.pp)


def parallel_of(config: Parallelism) -> Parallel:
    """Return the layout that a configuration asks for."""
    sizes: dict[str, Any] = {name: getattr(config, name) for name in ("tp", "pp", "vpp", "sequence_parallel")}
    return Parallel(**sizes, uneven=uneven_of(config))


def world() -> tuple[int, int]:
    """Return (rank, number of ranks) as torchrun says, or (0, 1) outside of it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's rank of the world that was joined, else what torchrun says."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else world()[0]


def init(parallel: Parallel, *, seed: int = 1234) -> None:
    """Set up torch.distributed (NCCL with CUDA, gloo without) and megatron-core's groups and seeds for `parallel`.

    Call it again with another layout at any time, on all ranks: the groups are replaced, the world stays. Outside
    of torchrun the world is this one process, with no port opened. Raises LayoutError if tp x pp does not fit.
    """
    from mconv.train.megatron.imports import parallel_state, tensor_parallel

    size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else world()[1]
    parallel.data_parallel(size)
    if not torch.distributed.is_initialized():
        _join()
    if _layout_now() != (parallel.tp, parallel.pp, parallel.vpp):
        torch.distributed.barrier()  # a slower rank may still be reading what was sent through the old groups
        _destroy_groups()
        with _one_group_a_set():
            parallel_state.initialize_model_parallel(
                parallel.tp,
                parallel.pp,
                parallel.vpp if parallel.vpp > 1 else None,
                create_gloo_process_groups=False,
                distributed_timeout_minutes=timeout_minutes(),
            )
    seed += 100 * parallel_state.get_pipeline_model_parallel_rank()  # as Megatron-LM: stages drop out other positions
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def _layout_now() -> tuple[int, int, int] | None:
    """Return (tp, pp, vpp) of the groups that are there, or None."""
    from mconv.train.megatron.imports import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        return None
    sizes = (
        parallel_state.get_tensor_model_parallel_world_size,
        parallel_state.get_pipeline_model_parallel_world_size,
        parallel_state.get_virtual_pipeline_model_parallel_world_size,
    )
    return sizes[0](), sizes[1](), sizes[2]() or 1


def _destroy_groups() -> None:
    """Let go of megatron-core's groups, and of their sockets and threads, which it only forgets (dozens a layout)."""
    from mconv.train.megatron.imports import parallel_state

    parallel_state.destroy_model_parallel()
    for group in _GROUPS:
        torch.distributed.destroy_process_group(group)
    _GROUPS.clear()


@contextlib.contextmanager
def _one_group_a_set() -> Iterator[None]:
    """Note this rank's new groups in `_GROUPS`, and make one gloo group for each set of ranks, within this context.

    megatron-core makes some forty groups a layout, of which most have the same few members; and each gloo group has a
    thread that wakes a hundred times a second, so that four idle ranks would keep a core busy.
    """
    original, shared = torch.distributed.new_group, torch.distributed.get_backend() == "gloo"
    # tp 2 on two ranks: megatron-core asks 25 times for (0, 1), (0,) or (1,), and 3 groups are made.
    made: dict[tuple[int, ...] | None, Any] = {}  # filled alike on all ranks, members or not: they ask in one order

    def new_group(ranks: Sequence[int] | None = None, *args: Any, **options: Any) -> Any:
        members = None if ranks is None else tuple(ranks)
        if shared and members in made:
            return made[members]
        made[members] = group = original(ranks, *args, **options)
        if isinstance(group, torch.distributed.ProcessGroup):  # else this rank is no member
            _GROUPS.append(group)
        return group

    torch.distributed.new_group = new_group
    try:
        yield
    finally:
        torch.distributed.new_group = original


def timeout_minutes() -> int:
    """Return how long a collective waits for a dead rank, in minutes: 30, or `MCONV_TIMEOUT_MINUTES`."""
    return int(os.environ.get("MCONV_TIMEOUT_MINUTES", "30"))


def _join() -> None:
    """Join the world that torchrun made, or be a world of one."""
    # megatron-core's overlap of tensor-parallel communication relies on kernels being queued in one order.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    rank, size = world()
    timeout = datetime.timedelta(minutes=timeout_minutes())
    if torch.cuda.is_available():
        torch.cuda.set_device(_device())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if size == 1 and "MASTER_PORT" not in os.environ:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        torch.distributed.init_process_group(backend, rank=rank, world_size=size, timeout=timeout)


def _device() -> int:
    """Return the number of this rank's GPU: its rank on this machine, or, under srun, the only GPU that it sees.

    Raises LayoutError where there are fewer than the ranks that torchrun started.
    """
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if (ranks := int(os.environ.get("LOCAL_WORLD_SIZE", "0"))) > count:
        raise LayoutError(f"{ranks} ranks on this machine, which has {count} GPUs: start no more than one for each")
    return local % count


def shutdown() -> None:
    """Leave the world: groups and process group are gone, and `init` may be called anew."""
    if torch.distributed.is_initialized():
        _destroy_groups()
        torch.distributed.destroy_process_group()
