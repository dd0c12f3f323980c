"""What the ranks of `world` do for test_peers.py: megatron-core itself writes and reads the checkpoints."""

import copy
import hashlib
import importlib
import inspect
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from mconv.spec import ModelSpec, Rope

TRUE, PADDED = 90, 96
ARGS = {
    "swiglu": True, "normalization": "RMSNorm", "position_embedding_type": "rope", "rotary_percent": 1.0,
    "rotary_interleaved": False, "num_experts": None, "use_rope_scaling": False,
    "tokenizer_type": "SentencePieceTokenizer",
}  # fmt: skip
"""Of Megatron-LM's args, what a model of ours cannot do without; used where no golden checkpoint has all of them."""


def spec_of(**changes: Any) -> ModelSpec:
    fields = {
        "family": "llama", "num_layers": 4, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4,
        "num_query_groups": 2, "kv_channels": 8, "vocab_size": TRUE, "max_position_embeddings": 64, "norm_epsilon": 1e-5,
    }  # fmt: skip
    return ModelSpec(**{**fields, **changes})


def tokens() -> torch.Tensor:
    return torch.randint(0, TRUE, (2, 40), generator=torch.Generator().manual_seed(7))


def args_like(template: Namespace | None, spec: ModelSpec, *, tp: int, pp: int, vpp: int = 1, dtype: Any) -> Namespace:
    """Megatron-LM's args of this model: written for the tests alone, from a checkpoint of Megatron-LM's own."""
    args = copy.deepcopy(template) if template else Namespace(**ARGS)
    rope: Rope = spec.rope
    vars(args).update(
        num_layers=spec.num_layers, encoder_num_layers=spec.num_layers, hidden_size=spec.hidden_size,
        ffn_hidden_size=spec.ffn_hidden_size, num_attention_heads=spec.num_attention_heads,
        num_query_groups=spec.num_query_groups, kv_channels=spec.kv_channels,
        group_query_attention=spec.num_query_groups != spec.num_attention_heads,
        max_position_embeddings=spec.max_position_embeddings, layernorm_epsilon=spec.norm_epsilon,
        rotary_base=int(rope.base), use_rope_scaling=rope.kind == "llama3", rope_scaling_factor=8.0,
        rotary_seq_len_interpolation_factor=int(rope.factor) if rope.kind == "linear" else None,
        untie_embeddings_and_output_weights=not spec.tied_embeddings, add_bias_linear=spec.mlp_bias,
        add_qkv_bias=spec.qkv_bias, vocab_size=TRUE, padded_vocab_size=PADDED, tokenizer_type="SentencePieceTokenizer",
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, world_size=4, params_dtype=dtype,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None, bf16=dtype == torch.bfloat16,
    )  # fmt: skip
    return args


def chunks(spec: ModelSpec, *, tp: int, pp: int, vpp: int = 1, dtype: Any = torch.float32) -> list[Any]:
    """This rank's model chunks; interleaved ones as Megatron-LM's `get_model` builds them."""
    from mconv.train.megatron.imports import (
        GPTModel,
        TransformerBlockSubmodules,
        get_num_layers_to_build,
        parallel_state,
    )
    from mconv.train.model import engine, layers
    from mconv.train.model.attention import RMSNorm

    parallel = engine.Parallel(tp=tp, pp=pp)
    engine.init(parallel)
    if vpp == 1:
        return [engine.build(spec, padded_vocab_size=PADDED, parallel=parallel, dtype=dtype)]
    config = layers.transformer_config(spec, parallel, dtype=dtype, virtual_pipeline_model_parallel_size=vpp)
    parallel_state.set_virtual_pipeline_model_parallel_world_size(vpp)
    try:
        models = []
        for i in range(vpp):
            parallel_state.set_virtual_pipeline_model_parallel_rank(i)
            block = TransformerBlockSubmodules(
                layer_specs=[layers.layer_spec(config, spec)] * get_num_layers_to_build(config, vp_stage=i),
                layer_norm=RMSNorm,
            )
            where = {"ignore_virtual": False, "vp_stage": i}
            models.append(
                GPTModel(
                    config,
                    block,
                    PADDED,
                    spec.max_position_embeddings,
                    pre_process=parallel_state.is_pipeline_first_stage(**where),
                    post_process=parallel_state.is_pipeline_last_stage(**where),
                    share_embeddings_and_output_weights=spec.tied_embeddings,
                    position_embedding_type="rope",
                    vp_stage=i,
                )
            )
        return models
    finally:
        parallel_state.set_virtual_pipeline_model_parallel_rank(None)
        parallel_state.set_virtual_pipeline_model_parallel_world_size(None)


def fill(models: list[Any], spec: ModelSpec) -> None:
    """Random weights, the same in all copies, other ones in every share; padded rows hold noise, as after training."""
    from mconv.train.megatron.imports import parallel_state

    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    for model in models:
        first = model.decoder.layers[0].layer_number - 1
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                continue  # a bias that the model has not: zero
            parts = name.split(".")
            if "layers" in parts:
                parts[2] = str(int(parts[2]) + first)
            if spec.tied_embeddings and parts[0] == "output_layer":
                parts = ["embedding", "word_embeddings", "weight"]
            key = ".".join(parts) + (f"@{tp_rank}" if getattr(weight, "tensor_model_parallel", False) else "")
            seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.15
            weight.data.copy_(noise + ("norm" in name))


def write(
    folder: str, spec: dict[str, Any], template: Namespace | None, *, tp: int, pp: int, vpp: int = 1,
    dtype: str = "float32", how: str = "plain", format: str = "torch_dist",
) -> torch.Tensor | None:  # fmt: skip
    """megatron-core saves a random model; its logits, on rank 0."""
    from mconv.train.megatron.imports import quiet
    from mconv.train.model import engine, forward

    model_spec, kind = ModelSpec.from_dict(spec), getattr(torch, dtype)
    models = chunks(model_spec, tp=tp, pp=pp, vpp=vpp, dtype=kind)
    fill(models, model_spec)
    args = args_like(template, model_spec, tp=tp, pp=pp, vpp=vpp, dtype=kind)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with quiet():
        if format == "torch_dist":
            _save_distributed(folder, models[0], args, how)
        else:
            _save_ranks(folder, models, args, how, tp=tp, pp=pp)
    if vpp > 1:
        return None
    return forward.logits(models[0], tokens(), parallel=engine.Parallel(tp=tp, pp=pp))


def _save_distributed(folder: str, model: Any, args: Namespace, how: str) -> None:
    """As Megatron-LM's `save_checkpoint` calls it."""
    import theirs
    from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

    from mconv.train.megatron.imports import parallel_state

    content: dict[str, Any] = {"singleton_local_shards": how == "singleton", "chained_optim_avoid_prefix": True}
    if how == "layers":
        content["non_homogeneous_layers"] = True
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state = {
        "args": args, "checkpoint_version": 3.0, "iteration": 12, "num_floating_point_operations_so_far": 0,
        "model": model.sharded_state_dict(metadata={**content, "dp_cp_group": group}),
    }  # fmt: skip
    options: dict[str, Any] = {"content_metadata": content}
    if how == "fully_parallel":
        strategy = get_default_save_sharded_strategy("torch_dist")
        options["sharded_strategy"] = FullyParallelSaveStrategyWrapper(strategy, group, True)
    if how == "async":
        if "async_strategy" in inspect.signature(theirs.saver().save).parameters:  # from 0.17 on
            options["async_strategy"] = "mcore"
        request = theirs.saver().save(state, folder, async_sharded_save=True, **options)
        request.execute_sync()
    else:
        theirs.saver().save(state, folder, **options)


def _save_ranks(folder: str, models: list[Any], args: Namespace, how: str, *, tp: int, pp: int) -> None:
    """As Megatron-LM's `torch` format: one file a rank, from the ranks of the first replica."""
    from mconv.train.megatron.imports import parallel_state

    if parallel_state.get_data_parallel_rank():
        return
    t, p = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    into = Path(folder) / (f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else ""))
    into.mkdir()
    state: dict[str, Any] = {"args": args, "checkpoint_version": 3.0, "iteration": 12}
    for i, model in enumerate(models):
        weights = model.state_dict_for_save_checkpoint()
        state[f"model{i}" if len(models) > 1 else "model"] = as_transformer_engine(weights, how)
    torch.save(state, into / "model_optim_rng.pt")


def as_transformer_engine(weights: dict[str, Any], how: str) -> dict[str, Any]:
    """The names of the Transformer Engine spec, and the extra states that its modules save without fp8."""
    if not how.startswith("te"):
        return weights
    rename = {
        "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
        "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
    }
    out = {}
    for name, value in weights.items():
        for mine, theirs in rename.items():
            name = name.replace(mine, theirs)
        if name.endswith("_extra_state"):
            value = torch.empty(0, dtype=torch.uint8) if how == "te" else None
        out[name] = value
    return out


# ---- reading what mconv wrote ----------------------------------------------------------------------------------------
def expected(
    hf: dict[str, torch.Tensor], spec: ModelSpec, *, tp: int, pp: int, vpp: int, tp_rank: int, pp_rank: int
) -> list[dict[str, torch.Tensor]]:
    """Each chunk's parameters on one rank, cut by hand from a Hugging Face state: shares no code with mconv."""
    g, h, d = spec.num_query_groups, spec.kv_channels, spec.hidden_size

    def rows(x: torch.Tensor) -> torch.Tensor:
        return x.chunk(tp)[tp_rank]

    def vocab(x: torch.Tensor) -> torch.Tensor:
        return rows(torch.cat([x, x.new_zeros(PADDED - TRUE, d)]))

    embed = vocab(hf["model.embed_tokens.weight"])
    n = spec.num_layers // (pp * vpp)
    out = []
    for chunk in range(vpp):
        found: dict[str, torch.Tensor] = {}
        start = (chunk * pp + pp_rank) * n
        if start == 0:
            found["embedding.word_embeddings.weight"] = embed
        for i in range(n):
            a, b = f"decoder.layers.{i}.", f"model.layers.{start + i}."
            found[a + "input_layernorm.weight"] = hf[b + "input_layernorm.weight"]
            found[a + "pre_mlp_layernorm.weight"] = hf[b + "post_attention_layernorm.weight"]
            found[a + "self_attention.linear_proj.weight"] = hf[b + "self_attn.o_proj.weight"].chunk(tp, 1)[tp_rank]
            found[a + "mlp.linear_fc2.weight"] = hf[b + "mlp.down_proj.weight"].chunk(tp, 1)[tp_rank]
            for leaf in ("weight", "bias"):
                if leaf == "weight" or spec.qkv_bias:
                    q, k, v = (hf[f"{b}self_attn.{x}_proj.{leaf}"] for x in "qkv")
                    groups = [x.reshape(g, -1, *x.shape[1:]) for x in (q, k, v)]
                    found[f"{a}self_attention.linear_qkv.{leaf}"] = rows(torch.cat(groups, 1).reshape(-1, *q.shape[1:]))
                if leaf == "weight" or spec.mlp_bias:
                    gate, up = (rows(hf[f"{b}mlp.{x}_proj.{leaf}"]) for x in ("gate", "up"))
                    found[f"{a}mlp.linear_fc1.{leaf}"] = torch.cat([gate, up])
            if spec.mlp_bias:
                found[a + "self_attention.linear_proj.bias"] = hf[b + "self_attn.o_proj.bias"]
                found[a + "mlp.linear_fc2.bias"] = hf[b + "mlp.down_proj.bias"]
        if start + n == spec.num_layers:
            found["decoder.final_layernorm.weight"] = hf["model.norm.weight"]
            if not spec.tied_embeddings:
                found["output_layer.weight"] = vocab(hf["lm_head.weight"])
            elif pp > 1:
                found["output_layer.weight"] = embed
        out.append(found)
    assert h * (spec.num_attention_heads + 2 * g) == q.shape[0] + 2 * k.shape[0]
    return out


def _differences(models: list[Any], want: list[dict[str, torch.Tensor]], where: str) -> list[str]:
    problems = []
    for model, tensors in zip(models, want, strict=True):
        have = dict(model.named_parameters())
        problems += [f"{where}: {name} only on one side" for name in have.keys() ^ tensors.keys()]
        problems += [
            f"{where}: {name} differs" for name in have.keys() & tensors.keys()
            if have[name].dtype != tensors[name].dtype or not torch.equal(have[name], tensors[name])
        ]  # fmt: skip
    return problems


def _want(hf: str, spec: ModelSpec, *, tp: int, pp: int, vpp: int = 1) -> list[dict[str, torch.Tensor]]:
    from safetensors.torch import load_file

    from mconv.train.megatron.imports import parallel_state

    ranks = {
        "tp_rank": parallel_state.get_tensor_model_parallel_rank(),
        "pp_rank": parallel_state.get_pipeline_model_parallel_rank(),
    }
    return expected(load_file(f"{hf}/model.safetensors"), spec, tp=tp, pp=pp, vpp=vpp, **ranks)


def read_distributed(
    folder: str, hf: str, spec: dict[str, Any], layouts: list[tuple[int, int]], strictness: list[str], dtype: str
) -> list[str]:
    """megatron-core loads the folder at each layout under each strictness; what differs from the HF weights."""
    from megatron.core.dist_checkpointing.serialization import (
        get_default_load_sharded_strategy,
        load_common_state_dict,
        load_content_metadata,
        load_tensors_metadata,
    )
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper

    from mconv.train.megatron.imports import StrictHandling, dist_checkpointing, parallel_state, quiet

    problems, model_spec = [], ModelSpec.from_dict(spec)
    for tp, pp in layouts:
        for number, strict in enumerate(strictness):
            models = chunks(model_spec, tp=tp, pp=pp, dtype=getattr(torch, dtype))
            common, content = load_common_state_dict(folder), load_content_metadata(folder)
            assert common["args"].num_layers == model_spec.num_layers and common["checkpoint_version"] == 3.0
            group = parallel_state.get_data_parallel_group(with_context_parallel=True)
            state = {"model": models[0].sharded_state_dict(metadata={**(content or {}), "dp_cp_group": group})}
            keys = {x.key for x in state["model"].values() if hasattr(x, "key")}
            known = load_tensors_metadata(folder)
            assert all(k in known for k in keys if not k.endswith("_extra_state")), sorted(keys - known.keys())
            strategy = get_default_load_sharded_strategy(folder)
            if number % 2:  # as --ckpt-fully-parallel-load does
                strategy = FullyParallelLoadStrategyWrapper(strategy, group)
            with quiet():
                loaded = dist_checkpointing.load(state, folder, strategy, strict=StrictHandling(strict))
            loaded = loaded[0] if isinstance(loaded, tuple) else loaded
            models[0].load_state_dict(loaded["model"], strict=True)
            want = _want(hf, model_spec, tp=tp, pp=pp)
            problems += _differences(models, want, f"tp {tp} pp {pp} {strict}")
    return problems


def read_ranks(folder: str, hf: str, spec: dict[str, Any], *, tp: int, pp: int, vpp: int, dtype: str) -> list[str]:
    """As Megatron-LM's `load_checkpoint` reads its `torch` format: weights_only, strict, chunk by chunk."""
    importlib.import_module("mconv.train.megatron.imports")  # first: it imports megatron-core quietly
    from megatron.core.safe_globals import register_safe_globals

    from mconv.train.megatron.imports import parallel_state

    register_safe_globals()
    model_spec = ModelSpec.from_dict(spec)
    models = chunks(model_spec, tp=tp, pp=pp, vpp=vpp, dtype=getattr(torch, dtype))
    t, p = parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_pipeline_model_parallel_rank()
    name = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else "")
    state = torch.load(f"{folder}/{name}/model_optim_rng.pt", map_location="cpu", weights_only=True)
    for i, model in enumerate(models):
        model.load_state_dict(state[f"model{i}" if vpp > 1 else "model"], strict=True)
    return _differences(models, _want(hf, model_spec, tp=tp, pp=pp, vpp=vpp), f"tp {tp} pp {pp} vpp {vpp}")
