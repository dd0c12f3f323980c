"""The room for megatron-core: every patch is known by signature, every fault that can be shown is there still, and no
other module reaches in."""

import ast
import functools
import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mconv.train.megatron import gate
from mconv.train.megatron.imports import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    OptimizerConfig,
    get_megatron_optimizer,
    helpers,
    parallel_state,
    quiet,
    tensor_parallel,
)
from mconv.train.megatron.parallel import Parallel
from mconv.train.megatron.patches import ALL, PATCHES, original, signature
from mconv.train.megatron.workarounds import WORKAROUNDS
from mconv.train.model import engine
from mconv.train.model.layers import transformer_config
from mconv.train.model.presets import PRESETS

ROOT = Path(__file__).parents[2]
TABLE = PATCHES + WORKAROUNDS
CPU = not torch.cuda.is_available()
SMALL = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 4,
         "kv_channels": 8, "vocab_size": 60, "max_position_embeddings": 16}  # fmt: skip
MODULE = type(torch).__name__


def by_symbol(row):
    return row.symbol.removeprefix("megatron.core.")


# ---- the table --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("row", TABLE, ids=by_symbol)
def test_a_symbol_has_a_signature_that_its_row_knows(row):
    """Fails where megatron-core has changed what a patch replaces or a workaround relies on: look, then add it."""
    found = signature(original(row.symbol))
    assert found in row.signatures or not row.symbol.startswith("megatron."), (gate.found(), found)


@pytest.mark.parametrize("row", TABLE, ids=by_symbol)
def test_a_row_names_code_of_ours_and_says_the_rest(row):
    module, _, name = row.where.partition(":")
    assert module.startswith("mconv.") and hasattr(importlib.import_module(module), name)
    assert all((row.wrong, row.versions, row.upstream, row.until)) and (
        row.versions == ALL or gate.OLDEST in row.versions
    )


def test_a_symbol_has_one_row():
    assert len({row.symbol for row in TABLE}) == len(TABLE)


def test_what_is_replaced_is_replaced():
    for row in PATCHES:
        if row.make and (CPU or not row.cpu_only):
            owner, _, name = row.symbol.rpartition(".")
            assert getattr(importlib.import_module(owner), name) is not original(row.symbol), row.symbol


# ---- nobody else reaches in -------------------------------------------------------------------------------------------
def private_names():
    """All names with a leading underscore that megatron-core defines or sets, by its source."""
    found = set()
    for path in gate.found().folder.rglob("*.py"):
        for node in ast.walk(_tree(path)):
            name = getattr(node, "name", None) or getattr(node, "attr", None) or getattr(node, "id", None)
            if isinstance(name, str) and name.startswith("_") and not name.startswith("__"):
                found.add(name)
    return found


def _tree(path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(path.read_text(encoding="utf-8"))


THEIRS = {"os", "sys", "torch", "pickle", "torch._C", "torch._utils"}
"""Modules of others whose private names look the same."""


def test_no_other_module_reaches_into_a_private_name():
    private, wrong = private_names(), []
    for room in ("train", "verify", "cli"):
        for path in sorted((ROOT / room).rglob("*.py")):
            own = ROOT / "train" / "megatron" in path.parents
            for node in () if own else ast.walk(_tree(path)):
                if isinstance(node, ast.Attribute) and node.attr in private and ast.unparse(node.value) not in THEIRS | {
                    "self", "cls"
                }:  # fmt: skip
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    allowed = {"_parameters"}  # torch.nn.Module's
    assert [one for one in wrong if one.rsplit(".", 1)[1] not in allowed] == []


def test_every_private_name_in_the_room_has_a_row():
    rows = {row.symbol.rpartition(".")[2] for row in TABLE}
    for path in (ROOT / "train" / "megatron").glob("*.py"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                assert node.attr in rows or ast.unparse(node.value) == "self", f"{path.name}:{node.lineno} {node.attr}"


# ---- each fault is there still: where one of these fails, its row and the code that it names can go --------------------
@pytest.fixture(scope="module")
def spec():
    import dataclasses

    return dataclasses.replace(PRESETS[next(iter(PRESETS))].spec, **SMALL)


@pytest.fixture
def alone():
    """A world of one rank."""
    parallel = Parallel()
    engine.init(parallel)
    yield parallel
    engine.shutdown()


def config(spec, parallel, **more):
    return transformer_config(spec, parallel, dtype=torch.float32, **more)


def optimizer(spec, parallel, kind="adam", *, distributed=True):
    """megatron-core's optimizer, as it is."""
    model = engine.build(spec, padded_vocab_size=64, parallel=parallel, dtype=torch.float32, initialize=True)
    ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=distributed)
    options = OptimizerConfig(optimizer=kind, lr=0.1, use_distributed_optimizer=distributed, params_dtype=torch.float32)
    with quiet():
        return get_megatron_optimizer(
            options, [DistributedDataParallel(model.config, ddp, model)], use_gloo_process_groups=False
        )


def test_adam_has_no_state_dict_before_its_first_step(spec, alone):
    with pytest.raises(AssertionError):
        optimizer(spec, alone).chained_optimizers[0].state_dict()


def test_a_load_needs_a_step_per_parameter(spec, alone):
    part = optimizer(spec, alone).chained_optimizers[0]
    group = part.optimizer.param_groups[0]["params"]
    for parameter in group:
        zeros = torch.zeros_like(parameter)
        part.optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
    model_parameter = next(p for p, (at, _) in part.model_param_group_index_map.items() if at == 0)
    number = part.model_param_group_index_map[model_parameter][1]
    tensors = {"param": group[number].clone(), "exp_avg": torch.zeros_like(group[number]),
               "exp_avg_sq": torch.zeros_like(group[number])}  # fmt: skip
    with torch.no_grad(), pytest.raises((KeyError, AssertionError)):
        part._set_main_param_and_optimizer_states(model_parameter, tensors)


def test_all_parameters_share_a_step_after_a_load(spec, alone):
    from mconv.train.optim.optimizer import _make_state

    whole = optimizer(spec, alone)
    _make_state(whole)
    part = whole.chained_optimizers[0]
    part.load_state_dict(part.state_dict())
    steps = [state["step"].data_ptr() for state in part.optimizer.state.values() if torch.is_tensor(state.get("step"))]
    assert len(steps) > 1 and len(set(steps)) == 1


def test_sgd_has_no_function_for_its_state(spec, alone):
    assert [part.init_state_fn for part in optimizer(spec, alone, "sgd", distributed=False).chained_optimizers] == [None]


def test_tokens_are_counted_in_whole_numbers():
    from megatron.core.pipeline_parallel import schedules

    source = Path(schedules.__file__).read_text(encoding="utf-8")
    assert source.count("total_num_tokens = torch.zeros([], dtype=torch.int") == 3


def test_groups_outlive_their_layout(alone):
    groups = torch.distributed.distributed_c10d._world.pg_names
    before = len(groups)
    parallel_state.destroy_model_parallel()
    assert len(groups) == before > 1  # one of which is the world's
    engine.init(alone)  # which lets go of them
    assert len(groups) == before


def test_rope_takes_neither_positions_nor_llama3s_numbers():
    rotary = "megatron.core.models.common.embeddings.rotary_pos_embedding.RotaryEmbedding"
    assert "original_max" not in signature(original(f"{rotary}.__init__"))
    assert "position" not in signature(original(f"{rotary}.forward"))


def test_position_embeddings_are_fp32(spec, alone):
    from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding

    group = parallel_state.get_tensor_model_parallel_group()
    narrow = transformer_config(spec, alone, dtype=torch.bfloat16)
    made = LanguageModelEmbedding(narrow, 64, 16, "learned_absolute", tp_group=group)
    kinds = (made.word_embeddings.weight.dtype, made.position_embeddings.weight.dtype)
    assert kinds == (torch.bfloat16, torch.float32)


def test_a_loss_moves_with_the_padding(spec, alone):
    model = engine.build(spec, padded_vocab_size=64, parallel=alone, dtype=torch.float32, initialize=True)
    score = functools.partial(type(model).compute_language_model_loss, model)
    logits, labels = torch.randn(4, 1, 64), torch.arange(4)[None]
    higher = logits.clone()
    higher[..., 60:] += 1  # columns that are no token
    assert not torch.allclose(score(labels, logits.clone()), score(labels, higher))


def test_recomputing_behind_an_input_without_gradient_loses_the_weights(alone):
    weight = torch.nn.Parameter(torch.ones(2))
    assert not tensor_parallel.checkpoint(lambda x: x * weight, False, torch.ones(2)).requires_grad


def test_the_torch_norm_refuses_sequence_parallelism(spec, alone):
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    shared = config(spec, alone)
    shared.sequence_parallel = True
    with pytest.raises(AssertionError, match="sequence parallel"):
        WrappedTorchNorm(shared, 32)


def test_an_embedding_of_another_padding_is_loaded_in_silence(spec, alone):
    model = engine.build(spec, padded_vocab_size=64, parallel=alone, dtype=torch.float32, initialize=True)
    assert model.sharded_state_dict()["embedding.word_embeddings.weight"].allow_shape_mismatch


def test_a_blend_draws_more_than_its_share():
    """Of prefixes, each of which has its share of the samples, rounded up."""
    for number, size in itertools.product((3, 7, 23), (5, 11, 50)):
        weights = np.arange(1.0, number + 1) / np.arange(1.0, number + 1).sum()
        datasets, drawn = np.zeros(size * 2, dtype=np.int16), np.zeros(size * 2, dtype=np.int64)
        made = np.ceil(size * weights)
        total = min(int(made.sum()), 2 * size)
        helpers.build_blending_indices(datasets, drawn, weights, number, total, False)
        if (np.bincount(datasets[:total], minlength=number) > made).any():
            return
    raise AssertionError("no blend draws too much")


def test_a_read_at_the_end_of_a_file_is_no_error(tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes(bytes(4))
    from megatron.core.datasets.indexed_dataset import _FileBinReader

    assert _FileBinReader(str(path)).read(np.int32, 4, 0).shape == (4,)


@pytest.mark.skipif(not CPU, reason="there is a CUDA device")
def test_random_states_need_cuda():
    """Without the stand-ins one fails, and the other waits for a device that never comes."""
    random = "megatron.core.tensor_parallel.random"
    with pytest.raises((RuntimeError, AssertionError)):
        original(f"{random}._get_cuda_rng_state")(graph_safe=True)
    before = torch.get_rng_state()
    original(f"{random}._set_cuda_rng_state")(torch.Generator().manual_seed(7).get_state())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not CPU, reason="there is a CUDA device")
def test_fused_helpers_are_compiled_as_they_are_imported(monkeypatch):
    from megatron.core import jit

    monkeypatch.setattr(jit, "jit_fuser", jit.jit_fuser)
    jit.enable_jit_fuser()
    assert jit.jit_fuser is torch.compile
