"""The proof by logits: transformers' model against the real megatron-core GPTModel, at any tp x pp, on the same tokens.

`work` runs on every rank. A Megatron checkpoint is loaded by megatron-core's own loader where that can be, so that what
is proven is what Megatron will compute, not what mconv thinks it wrote.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mconv.convert.checkpoint import Checkpoint
from mconv.convert.formats import archive, mp_rank
from mconv.convert.load import load_rank
from mconv.convert.opening import open_checkpoint
from mconv.convert.source import Source, check_copies, slab_boxes
from mconv.convert.table import Logical
from mconv.errors import CheckFailed, ConfigError, FormatError
from mconv.shard.layout import padded_vocab
from mconv.verify import probes
from mconv.verify.compare import LIMITS, compare, failures

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def work(payload: dict[str, Any]) -> dict[str, Any]:
    """Compare the logits of `payload["a"]` (the reference) and `payload["b"]`; the report is rank 0's."""
    a, b = (_open(payload, side) for side in ("a", "b"))
    _same_vocabulary(a, b)
    length = probes.length_for(a.spec, b.spec, length=payload.get("length"))
    tokens = probes.batch_of(
        a.spec, tokenizer_folder=_tokenizer(a, b), batch=payload["batch"], length=length, seed=payload["seed"]
    )
    reference, by_a = logits_of(a, tokens, payload)
    candidate, by_b = logits_of(b, tokens, payload)
    if reference is None or candidate is None:
        return {}
    found = compare(reference, candidate)
    wrong = failures(found, LIMITS[payload["dtype"]])
    if rows := embedding_rows(a, b):
        wrong.append(f"{len(rows)} rows of the embedding differ, the first is of token {rows[0]}")
    return {
        "passed": not wrong,
        "failures": wrong,
        **asdict(found),
        "limits": asdict(LIMITS[payload["dtype"]]),
        "reference": {"name": a.name, "format": a.format, "loaded_by": by_a},
        "candidate": {"name": b.name, "format": b.format, "loaded_by": by_b},
        "tp": payload["tp"],
        "pp": payload["pp"],
        "sequence_parallel": payload["sequence_parallel"],
        "dtype": payload["dtype"],
        "batch": tokens.shape[0],
        "length": length,
        "max_position_embeddings": a.spec.max_position_embeddings,
        "seed": payload["seed"],
    }


def _open(payload: dict[str, Any], side: str) -> Checkpoint:
    found = open_checkpoint(Path(payload[side]), **payload.get(f"{side}_options", {}))
    if found.format != "hf":
        from mconv.train.engine import check_known

        check_known(found.spec, what=str(found.path))
    try:
        check_copies(Source.of(found))  # a rank may load one copy and another rank the other
    except FormatError as error:
        raise CheckFailed(str(error)) from error
    return found


def embedding_rows(a: Checkpoint, b: Checkpoint) -> list[int]:
    """Tokens whose input embeddings differ. Each token of a probe reads one row, so the others are compared here.

    The limit is 1e-4 of the row's norm where the dtypes are the same, and a rounding to 8 bits where they are not.
    """
    first, second = Source.of(a), Source.of(b)
    logical = Logical("embed")
    limit = 1e-4 if first.dtype(logical) == second.dtype(logical) else 2**-7
    found = []
    for box in slab_boxes(first.dims(logical), 1 << 22):
        one, two = first.pull(logical, box).float(), second.pull(logical, box).float()
        off = ~((one - two).norm(dim=-1) <= limit * one.norm(dim=-1))  # a NaN is off, too
        found += [box[0][0] + int(i) for i in off.nonzero()]
    return found


def _same_vocabulary(a: Checkpoint, b: Checkpoint) -> None:
    if a.spec.vocab_size != b.spec.vocab_size:
        raise ConfigError(
            f"{a.path} has a vocabulary of {a.spec.vocab_size} and {b.path} of {b.spec.vocab_size}: "
            "their logits cannot be compared"
        )


def _tokenizer(*checkpoints: Checkpoint) -> Path | None:
    """The first folder that has a tokenizer."""
    found = [file.parent for c in checkpoints for file in c.side_files if file.name.startswith("tokenizer.")]
    return found[0] if found else None


def logits_of(
    checkpoint: Checkpoint, tokens: Int[Tensor, "b s"], payload: dict[str, Any]
) -> tuple[Float[Tensor, "b s v"] | None, str]:
    """Logits [b s v] over the true vocabulary, fp32, on rank 0 (None elsewhere), and who loaded the weights."""
    from mconv.train.parallel import world

    dtype = DTYPES[payload["dtype"]]
    if checkpoint.format == "hf":
        on_rank_0 = world()[0] == 0
        return (_transformers(checkpoint.path, tokens, dtype=dtype) if on_rank_0 else None), "transformers"
    return _megatron(checkpoint, tokens, payload, dtype=dtype)


@torch.no_grad()
def _transformers(folder: Path, tokens: Int[Tensor, "b s"], *, dtype: torch.dtype) -> Float[Tensor, "b s v"]:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, attn_implementation="sdpa"
    )
    model.eval()
    return torch.cat([model(row[None], use_cache=False).logits.float() for row in tokens])


def _megatron(
    checkpoint: Checkpoint, tokens: Int[Tensor, "b s"], payload: dict[str, Any], *, dtype: torch.dtype
) -> tuple[Float[Tensor, "b s v"] | None, str]:
    from mconv.train import engine

    tp, pp = payload["tp"], payload["pp"]
    parallel = engine.Parallel(tp=tp, pp=pp, sequence_parallel=payload["sequence_parallel"])
    engine.init(parallel)
    rows = checkpoint.layout.padded_vocab if checkpoint.layout else checkpoint.spec.vocab_size
    padded = rows if rows % tp == 0 else padded_vocab(checkpoint.spec.vocab_size, tp=tp)
    model = engine.build(checkpoint.spec, padded_vocab_size=padded, parallel=parallel, dtype=dtype)
    by = load(model, checkpoint, tp=tp, pp=pp, padded=padded)
    found = engine.logits(model, tokens, parallel=parallel)
    return (None if found is None else found[:, :, : checkpoint.spec.vocab_size].cpu()), by


def load(model: torch.nn.Module, checkpoint: Checkpoint, *, tp: int, pp: int, padded: int) -> str:
    """Fill a rank's model, by the most independent way there is; returns which one that was."""
    from mconv.train import engine
    from mconv.train.mcore import parallel_state

    layout = checkpoint.layout
    ranks = {
        "tp_rank": parallel_state.get_tensor_model_parallel_rank(),
        "pp_rank": parallel_state.get_pipeline_model_parallel_rank(),
    }
    if layout and checkpoint.format == "torch_dist" and padded == layout.padded_vocab:
        engine.load_torch_dist(model, checkpoint.path)
        return "megatron-core"
    if layout and checkpoint.format == "mp_rank" and (tp, pp, 1) == (layout.tp, layout.pp, layout.vpp):
        folder = checkpoint.path / mp_rank.rank_folder(ranks["tp_rank"], ranks["pp_rank"], pp=pp)
        state = archive.read(folder / mp_rank.FILE)["model"]
        names = engine.parameters(model)
        if names.keys() <= state.keys():
            tensors = {k: v.load() for k, v in state.items() if hasattr(v, "load")}
            engine.load_rank_file(model, tensors)
            return "rank files, as they are"
    load_rank(checkpoint, engine.parameters(model), tp=tp, pp=pp, padded_vocab_size=padded, **ranks)
    return "mconv, cut for this layout"
