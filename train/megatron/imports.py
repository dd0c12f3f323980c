"""The one door to megatron-core: everything `train/` uses of it, imported quietly and adapted to this machine.

Import this module only from modules that are imported lazily: it costs about a second.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from mconv.train.megatron import cpu, gate, patches
from mconv.train.megatron.quiet import quiet, while_importing


def _as_it_is(model: Any = None, **_: Any) -> Any:
    """Return a function uncompiled: in place of `torch.compile`, as a function and as a decorator."""
    return model if model is not None else (lambda function: function)


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Keep megatron-core from compiling its fused helpers while it is imported, without CUDA.

    On a CPU that asks for a C++ compiler and never pays.
    """
    compiler: Any = torch.compile
    if not torch.cuda.is_available():
        torch.compile = _as_it_is
    try:
        yield
    finally:
        torch.compile = compiler


CORE = gate.check()
"""The megatron-core that is imported."""

with gate.importing(CORE), while_importing(), _uncompiled():
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.datasets import helpers
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
    from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace
    from megatron.core.dist_checkpointing.mapping import (
        LocalNonpersistentObject,
        ShardedObject,
        ShardedTensor,
        ShardedTensorFactory,
        apply_factories,
        is_main_replica,
    )
    from megatron.core.dist_checkpointing.validation import StrictHandling
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler, get_canonical_lr_for_logging
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.identity_op import IdentityOp
    from megatron.core.transformer.module import Float16Module, MegatronModule
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import TransformerLayer
    from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

cpu.install()
patches.apply()


def transformer_engine_attention() -> type | None:
    """Return megatron-core's core attention on Transformer Engine; None if that cannot be loaded."""
    try:
        with while_importing(), _uncompiled():
            from megatron.core.extensions.transformer_engine import HAVE_TE, TEDotProductAttention
    except (ImportError, OSError):  # a build for another torch or CUDA
        return None
    found: type | None = TEDotProductAttention if HAVE_TE else None
    return found


__all__ = [
    "CORE",
    "BlendedMegatronDatasetBuilder",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "Float16Module",
    "GPTDataset",
    "GPTDatasetConfig",
    "GPTModel",
    "IdentityOp",
    "IndexedDataset",
    "IndexedDatasetBuilder",
    "LocalNonpersistentObject",
    "MegatronModule",
    "MockGPTDataset",
    "ModuleSpec",
    "OptimizerConfig",
    "OptimizerParamScheduler",
    "ShardedObject",
    "ShardedTensor",
    "ShardedTensorFactory",
    "StrictHandling",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "TransformerLayer",
    "apply_factories",
    "dict_list_map_inplace",
    "dist_checkpointing",
    "finalize_model_grads",
    "get_canonical_lr_for_logging",
    "get_forward_backward_func",
    "get_gpt_layer_local_spec",
    "get_megatron_optimizer",
    "get_num_layers_to_build",
    "helpers",
    "is_main_replica",
    "make_sharded_tensors_for_checkpoint",
    "parallel_state",
    "quiet",
    "tensor_parallel",
    "transformer_engine_attention",
]
