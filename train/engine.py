"""megatron-core's GPTModel for a `ModelSpec`: built, filled and run on any layout, on CPU or GPU.

parallel = Parallel(tp=2, pp=2)
init(parallel)                                               # on every rank
model = build(spec, padded_vocab_size=32000, parallel=parallel, dtype=torch.float32)
load_torch_dist(model, folder)
scores = logits(model, tokens, parallel=parallel)            # on rank 0; None elsewhere
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mconv.errors import ConfigError, FormatError, LayoutError, refuse
from mconv.spec import ModelSpec
from mconv.train import partial, recompute
from mconv.train.attention import CoreAttention, LayerNorm, RMSNorm
from mconv.train.falcon import ParallelLayer
from mconv.train.loss import TrueVocabLoss
from mconv.train.mcore import (
    GPTModel,
    IdentityOp,
    ModuleSpec,
    ShardedTensor,
    StrictHandling,
    TransformerBlockSubmodules,
    TransformerConfig,
    dist_checkpointing,
    get_forward_backward_func,
    get_gpt_layer_local_spec,
    get_num_layers_to_build,
    parallel_state,
    quiet,
    tensor_parallel,
)
from mconv.train.meta import OnMeta
from mconv.train.parallel import Parallel, init, shutdown
from mconv.train.rope import inverse_frequencies

__all__ = [
    "Parallel",
    "angles",
    "build",
    "build_chunks",
    "check_known",
    "init",
    "load_rank_file",
    "load_torch_dist",
    "logits",
    "parameters",
    "shutdown",
    "surplus_biases",
    "transformer_config",
    "unwrap",
]

NORMS = {"rms": RMSNorm, "layer": LayerNorm}
ACTIVATIONS = {
    "swiglu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
}


def transformer_config(spec: ModelSpec, parallel: Parallel, *, dtype: torch.dtype, **more: Any) -> TransformerConfig:
    """megatron-core's config for `spec`: no dropout, and no fusion that needs Transformer Engine or Apex.

    megatron-core has linear biases on all four linears or on QKV alone; those that `spec` lacks, `build` makes zero.
    `more` overrides its fields.
    """
    uneven, interleaved = parallel.uneven, parallel.vpp > 1
    fields = {
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "ffn_hidden_size": spec.ffn_hidden_size,
        "num_attention_heads": spec.num_attention_heads,
        "num_query_groups": spec.num_query_groups,
        "kv_channels": spec.kv_channels,
        "layernorm_epsilon": spec.norm_epsilon,
        "normalization": NORMS[spec.norm].__name__,
        "gated_linear_unit": spec.activation == "swiglu",
        "activation_func": ACTIVATIONS[spec.activation],
        "window_size": (spec.sliding_window - 1, 0) if spec.sliding_window else None,
        "add_bias_linear": spec.proj_bias or spec.mlp_bias,
        "add_qkv_bias": spec.qkv_bias,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tensor_model_parallel_size": parallel.tp,
        "pipeline_model_parallel_size": parallel.pp,
        "virtual_pipeline_model_parallel_size": parallel.vpp if interleaved else None,
        "num_layers_in_first_pipeline_stage": uneven.first,
        "num_layers_in_last_pipeline_stage": uneven.last,
        "account_for_embedding_in_pipeline_split": uneven.embedding,
        "account_for_loss_in_pipeline_split": uneven.loss,
        # Two stages that interleave send each other two tensors at once: in one batch they would be mixed up.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        "sequence_parallel": parallel.sequence_parallel,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "apply_rope_fusion": False,
        "cuda_graph_scope": [],  # its default is one that its own constructor calls deprecated
    }
    with quiet():
        return TransformerConfig(**{**fields, **more})


def layer_spec(config: TransformerConfig, spec: ModelSpec, core_attention: type = CoreAttention) -> ModuleSpec:
    """megatron-core's local layer, or Falcon's in its place, with our norm and a core attention in it."""
    layer = get_gpt_layer_local_spec(normalization=config.normalization)
    layer.submodules.mlp.params["ffn_hidden_size"] = config.ffn_hidden_size  # else each layer warns that it guessed it
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = NORMS[spec.norm]
    layer.submodules.self_attention.submodules.core_attention = core_attention
    if spec.parallel_attention:
        layer.module = ParallelLayer
    if spec.shared_norm:
        layer.submodules.pre_mlp_layernorm = IdentityOp
    return layer


def check_known(spec: ModelSpec, *, what: str = "the model") -> None:
    """Refuse what megatron-core cannot compute at any layout. Raises ConfigError with the name of `what` it is."""
    if spec.position == "alibi":
        raise ConfigError(
            f"{what} tells positions apart by ALiBi, and megatron-core has no ALiBi: mconv converts it, but cannot run it"
        )


def check(spec: ModelSpec, *, padded_vocab_size: int, parallel: Parallel) -> None:
    """Refuse, all at once, sizes that this layout cannot share. Raises LayoutError, or ConfigError as `check_known`."""
    check_known(spec)
    bad = problems(spec, padded_vocab_size=padded_vocab_size, parallel=parallel)
    refuse(bad, doing="sharing the model among ranks", kind=LayoutError)


def problems(spec: ModelSpec, *, padded_vocab_size: int, parallel: Parallel) -> list[str]:
    """Every size that this layout cannot share."""
    tp, groups = parallel.tp, spec.num_query_groups
    sizes = {
        "num_attention_heads": spec.num_attention_heads,
        "ffn_hidden_size": spec.ffn_hidden_size,
        "padded_vocab_size": padded_vocab_size,
        # of interest where ranks share a query group: megatron-core cuts its rows wherever they fall
        "(num_attention_heads + 2 num_query_groups) x kv_channels": (spec.num_attention_heads + 2 * groups)
        * spec.kv_channels,
    }
    bad = [f"{name} {size} is not a multiple of tp {tp}" for name, size in sizes.items() if size % tp]
    if groups % tp and tp % groups:  # megatron-core lets ranks share a group, but not unevenly
        bad.append(f"num_query_groups {groups} neither divides tp {tp} nor is a multiple of it")
    if padded_vocab_size < spec.vocab_size:
        bad.append(f"padded_vocab_size {padded_vocab_size} is less than vocab_size {spec.vocab_size}")
    try:
        parallel.stages(spec.num_layers)
    except LayoutError as error:
        bad.append(str(error))
    return bad


def build(
    spec: ModelSpec,
    *,
    padded_vocab_size: int,
    parallel: Parallel,
    dtype: torch.dtype,
    chunk: int = 0,
    initialize: bool = False,
    on_meta: bool = False,
    core_attention: type = CoreAttention,
    **more: Any,
) -> torch.nn.Module:
    """This rank's part of megatron-core's GPTModel, on its device, in `dtype`; call `init(parallel)` before.

    Where stages interleave it is one `chunk` of the rank's several: `build_chunks` makes them all.
    Weights are NaN until loaded (what a loader forgets, the first logits show), or random with `initialize`; with
    `on_meta` they have no memory at all, for the caller to give.
    `more` overrides fields of the TransformerConfig. Raises LayoutError on sizes that cannot be shared.
    """
    check(spec, padded_vocab_size=padded_vocab_size, parallel=parallel)
    # Not `perform_initialization=False`: that also leaves out the marks by which the gradient norm knows cut weights.
    start = {} if initialize else {"init_method": _leave, "output_layer_init_method": _leave}
    config = transformer_config(spec, parallel, dtype=dtype, **start, **more)
    layers = TransformerBlockSubmodules(
        layer_specs=[layer_spec(config, spec, core_attention)] * get_num_layers_to_build(config, vp_stage=chunk),
        layer_norm=NORMS[spec.norm],
    )
    here = parallel_state.get_pipeline_model_parallel_rank(), chunk
    with OnMeta() if on_meta else contextlib.nullcontext():
        model = GPTModel(
            config,
            layers,
            padded_vocab_size,
            spec.max_position_embeddings,
            pre_process=here == parallel.ends[0],
            post_process=here == parallel.ends[1],
            parallel_output=True,
            share_embeddings_and_output_weights=spec.tied_embeddings,
            position_embedding_type="learned_absolute" if spec.position == "learned" else "rope",
            rotary_base=spec.rope.base,
            vp_stage=chunk if parallel.vpp > 1 else None,
        )
    if spec.position == "rope":  # set before the first forward: megatron-core caches the angles per module
        model.rotary_pos_emb.inv_freq = inverse_frequencies(spec.rope, kv_channels=spec.kv_channels)
    elif model.pre_process:
        model.embedding.position_embeddings.to(dtype)  # which megatron-core makes in fp32, whatever params_dtype is
    model.compute_language_model_loss = TrueVocabLoss(spec.vocab_size)
    recompute.mend(model)
    if on_meta:
        return model
    _fill(model, spec, keep=initialize)
    return model.to(torch.device("cuda", torch.cuda.current_device())) if torch.cuda.is_available() else model


def build_chunks(spec: ModelSpec, *, parallel: Parallel, **options: Any) -> list[torch.nn.Module]:
    """All of this rank's parts: one, or one a virtual stage. `options` as for `build`."""
    return [build(spec, parallel=parallel, chunk=chunk, **options) for chunk in range(parallel.vpp)]


def _leave(weight: Tensor) -> Tensor:
    """An initialisation that costs nothing."""
    return weight


def _fill(model: GPTModel, spec: ModelSpec, *, keep: bool) -> None:
    """NaN in every weight unless `keep`; zero, for good, in biases that megatron-core has and the model has not."""
    without = surplus_biases(model, spec)
    for name, parameter in model.named_parameters():
        if name in without:
            parameter.data.zero_()
            parameter.requires_grad_(False)  # else training would give it a value that no HF model can hold
        elif not keep:
            parameter.data.fill_(float("nan"))


def surplus_biases(model: torch.nn.Module, spec: ModelSpec) -> set[str]:
    """The biases that megatron-core has because another linear has one, and that are zero in this model."""
    has = {"linear_qkv": spec.qkv_bias, "linear_proj": spec.proj_bias, "linear_fc": spec.mlp_bias}
    without = [f"{kind}" for kind, biased in has.items() if not biased]
    names = (name for name, _ in model.named_parameters() if name.endswith(".bias"))
    return {name for name in names if any(kind in name for kind in without)}


def unwrap(model: Any) -> GPTModel:
    """The GPTModel inside megatron-core's data-parallel wrapper, or the model itself."""
    while not isinstance(model, GPTModel):
        model = model.module
    return model


def parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    """This rank's parameters under the names of an mp_rank file (layers numbered from 0 on each stage).

    Loaders fill these tensors in place. With tied embeddings and pp > 1 the last stage's copy of the embedding is
    `output_layer.weight`, as in the file.
    """
    return {name: parameter.data for name, parameter in unwrap(model).named_parameters()}


def load_rank_file(model: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Fill the model from the `model` dict of this rank's mp_rank file. Raises FormatError on any name or shape amiss."""
    own = parameters(model)
    given = {k: v for k, v in state.items() if not k.endswith(("_extra_state", "rotary_pos_emb.inv_freq"))}
    bad = [f"{name}: not in the file" for name in own if name not in given]
    bad += [f"{name}: in the file, but not in the model" for name in given if name not in own]
    bad += [
        f"{name}: {list(given[name].shape)} in the file, {list(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    refuse(bad, doing="loading a rank's file", kind=FormatError)
    for name, tensor in own.items():
        tensor.copy_(given[name])


@quiet()
def load_torch_dist(model: torch.nn.Module, folder: Path | str, *, part: str | None = None) -> None:
    """Fill the model from a torch_dist folder (`iter_*` or `release`) with megatron-core's own loader; on all ranks.

    `part`: only the parameters whose names start so, by megatron-core's description of them and torch's reader; on any
    rank. Raises FormatError on a missing tensor, and on a vocabulary of another padding, which megatron-core would
    stretch or cut in silence. Surplus tensors (optimizer state, extra states) are left alone.
    """
    whole = unwrap(model)
    wanted = whole.sharded_state_dict()
    if part is None and not (Path(folder) / "common.pt").is_file():
        part = ""  # Megatron-Bridge has no such file, without which megatron-core's loader stumbles
    if part is not None:
        wanted = {name: wanted[name] for name, _ in whole.named_parameters() if name.startswith(part)}
    _check_shapes(wanted, str(folder))
    if part is not None:
        for name, tensor in partial.read(folder, wanted).items():
            whole.get_parameter(name).data.copy_(tensor)
        return
    try:
        loaded = dist_checkpointing.load({"model": wanted}, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)
    except dist_checkpointing.core.CheckpointingException as error:
        raise FormatError(f"{folder}: megatron-core cannot load it: {error}") from error
    whole.load_state_dict(loaded["model"])


def _check_shapes(wanted: Mapping[str, Any], folder: str) -> None:
    """Compare the global shapes of a sharded state dict with the checkpoint's. Raises FormatError."""
    try:
        stored = dist_checkpointing.load_tensors_metadata(folder)
    except (dist_checkpointing.core.CheckpointingException, OSError) as error:
        raise FormatError(f"{folder}: not a torch_dist checkpoint: {error}") from error
    shapes = {x.key: list(x.global_shape) for x in wanted.values() if isinstance(x, ShardedTensor)}
    bad = [f"{key}: not in the checkpoint" for key in sorted(shapes) if key not in stored]
    bad += [
        f"{key}: {list(stored[key].global_shape)} in the checkpoint, {shape} in the model"
        for key, shape in sorted(shapes.items())
        if key in stored and list(stored[key].global_shape) != shape
    ]
    refuse(bad, doing=f"loading {folder}", kind=FormatError)


@torch.no_grad()
@quiet()
def logits(
    model: torch.nn.Module,
    tokens: Int[Tensor, "b s"],
    *,
    parallel: Parallel,
    positions: Int[Tensor, "b s"] | None = None,
) -> Float[Tensor, "b s padded_vocab"] | None:
    """Scores of every position over the padded vocabulary, fp32, on global rank 0; None on all other ranks.

    Every rank calls it with the same `tokens` (on any device). Forward only, through megatron-core's own pipeline
    schedules; with sequence parallelism the sequence is padded to a multiple of tp and cut again. `positions` rise along
    each row; 0, 1, 2, ... if not given.
    """
    length = tokens.shape[1]
    spare = -length % parallel.tp if parallel.sequence_parallel else 0
    padded = torch.nn.functional.pad(tokens, (0, spare)).to(torch.cuda.current_device())
    training = model.training
    model.eval()
    at = None if positions is None else torch.nn.functional.pad(positions, (0, spare)).to(torch.cuda.current_device())
    with _at(unwrap(model), at):
        outputs = get_forward_backward_func()(
            forward_step_func=_forward,
            data_iterator=iter([(padded, at)]),
            model=[model],
            num_microbatches=1,
            seq_length=padded.shape[1],
            micro_batch_size=padded.shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
    model.train(training)
    scores = _on_rank_0(outputs[0].float() if outputs else None, (*padded.shape, unwrap(model).vocab_size))
    return None if scores is None else scores[:, :length]


@contextlib.contextmanager
def _at(model: GPTModel, positions: Int[Tensor, "b s"] | None) -> Iterator[None]:
    """For a while, rope's angles are those of `positions`, which megatron-core otherwise counts from 0."""
    rotary = getattr(model, "rotary_pos_emb", None)
    if (
        rotary is None
        or positions is None
        or torch.equal(positions, torch.arange(positions.shape[1]).to(positions).expand_as(positions))
    ):
        yield
        return
    counted = rotary.forward

    def forward(_: int, *args: Any, **options: Any) -> Float[Tensor, "s b 1 h"]:
        return angles(counted, positions, *args, **options)

    rotary.forward = forward
    try:
        yield
    finally:
        del rotary.forward


def angles(
    counted: Callable[..., Tensor], positions: Int[Tensor, "b s"], *args: Any, **options: Any
) -> Float[Tensor, "s b 1 h"]:
    """What megatron-core's rotary embedding `counted` says at `positions`, for each row."""
    return counted(int(positions.max()) + 1, *args, **options)[:, 0, 0][positions.t()][:, :, None]


def _forward(
    batches: Iterator[tuple[Int[Tensor, "b s"], Int[Tensor, "b s"] | None]], model: torch.nn.Module
) -> tuple[Tensor, Any]:
    """One stage's forward, in the form that megatron-core's schedules call."""
    tokens, positions = next(batches)
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return model(tokens, positions, None), lambda output, non_loss_data: output


def _on_rank_0(
    cut: Float[Tensor, "b s cut_vocab"] | None, shape: tuple[int, int, int]
) -> Float[Tensor, "b s padded_vocab"] | None:
    """Gather the last stage's scores over tensor-parallel ranks and hand them to global rank 0."""
    scores: Tensor | None = None if cut is None else tensor_parallel.gather_from_tensor_model_parallel_region(cut)
    group = parallel_state.get_pipeline_model_parallel_group()
    ranks, rank = torch.distributed.get_process_group_ranks(group), torch.distributed.get_rank()
    if ranks[0] == 0 and len(ranks) > 1:  # the one pipeline that rank 0 belongs to; replicas and other tp ranks rest
        if scores is not None and rank == ranks[-1]:
            torch.distributed.send(scores, dst=0, group=group)
        elif rank == 0:
            scores = torch.empty(shape, dtype=torch.float32, device=torch.cuda.current_device())
            torch.distributed.recv(scores, src=ranks[-1], group=group)
    return scores if rank == 0 else None
