"""What the ranks of `world` do for the tests of this folder, and the tiny models that they do it to."""

import dataclasses
import functools
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from mconv.spec import ModelSpec, Rope

SPEC = ModelSpec(
    family="llama",
    num_layers=4,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=90,
    max_position_embeddings=64,
    norm_epsilon=1e-5,
)
SMALL = dataclasses.replace(SPEC, num_layers=2)
PADDED = 96
ROPES = {
    "default": Rope(base=5e5),
    "linear": Rope(kind="linear", factor=4.0),
    "llama3": Rope(kind="llama3", base=5e5, factor=8.0),
    "llama3-odd": Rope(kind="llama3", factor=32.0, low_freq_factor=2.0, high_freq_factor=8.0,
                       original_max_position_embeddings=32),
}  # fmt: skip


def tokens(*, length: int = 21, batch: int = 2, vocab: int = 90) -> torch.Tensor:
    """Fixed random tokens; a length that no tp divides."""
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(7))


def hf_model(spec: ModelSpec, *, seed: int = 0) -> Any:
    """A random transformers LlamaForCausalLM of `spec`; sharpened, so that a fault moves the logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rope: dict[str, Any] = {"rope_type": spec.rope.kind, "rope_theta": spec.rope.base}
    if spec.rope.kind != "default":
        rope["factor"] = spec.rope.factor
    if spec.rope.kind == "llama3":
        names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        rope |= {name: getattr(spec.rope, name) for name in names}
    config = LlamaConfig(
        vocab_size=spec.vocab_size, hidden_size=spec.hidden_size, intermediate_size=spec.ffn_hidden_size,
        num_hidden_layers=spec.num_layers, num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_query_groups, head_dim=spec.kv_channels, rms_norm_eps=spec.norm_epsilon,
        max_position_embeddings=spec.max_position_embeddings, rope_parameters=rope, attention_bias=spec.qkv_bias,
        mlp_bias=spec.mlp_bias, tie_word_embeddings=spec.tied_embeddings, attention_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.5 if name.endswith("bias") else 0.15)
            if "norm" in name:
                weight.add_(1.0)
            if name.endswith("o_proj.bias") and not spec.proj_bias:
                weight.zero_()  # transformers' attention_bias cannot say "QKV alone"
    return model


def fill_from_hf(params: dict[str, torch.Tensor], hf: Any, spec: ModelSpec) -> None:
    """Copy an HF model's weights into a whole (tp 1, pp 1) megatron-core model: written for the tests alone."""
    source = hf.state_dict()
    rows = {"embedding.word_embeddings.weight": "model.embed_tokens.weight", "output_layer.weight": "lm_head.weight"}
    for mine, theirs in rows.items():
        if mine in params:
            params[mine].zero_()
            params[mine][: spec.vocab_size] = source[theirs]
    params["decoder.final_layernorm.weight"].copy_(source["model.norm.weight"])
    for i in range(spec.num_layers):
        a, b = f"decoder.layers.{i}.", f"model.layers.{i}."
        params[a + "input_layernorm.weight"].copy_(source[b + "input_layernorm.weight"])
        params[a + "pre_mlp_layernorm.weight"].copy_(source[b + "post_attention_layernorm.weight"])
        for kind in ("weight", "bias"):
            if kind == "weight" or spec.qkv_bias:
                params[f"{a}self_attention.linear_qkv.{kind}"].copy_(_qkv(source, b, kind, spec))
            if kind == "weight" or spec.proj_bias:
                params[f"{a}self_attention.linear_proj.{kind}"].copy_(source[f"{b}self_attn.o_proj.{kind}"])
            if kind == "weight" or spec.mlp_bias:
                gate_up = [source[f"{b}mlp.{name}_proj.{kind}"] for name in ("gate", "up")]
                params[f"{a}mlp.linear_fc1.{kind}"].copy_(torch.cat(gate_up))
                params[f"{a}mlp.linear_fc2.{kind}"].copy_(source[f"{b}mlp.down_proj.{kind}"])


def _qkv(source: dict[str, torch.Tensor], layer: str, kind: str, spec: ModelSpec) -> torch.Tensor:
    """Group by group: its queries, its key, its value."""
    q, k, v = (source[f"{layer}self_attn.{x}_proj.{kind}"] for x in "qkv")
    g, h = spec.num_query_groups, spec.kv_channels
    rest = q.shape[1:]
    parts = [x.reshape(g, -1, h, *rest) for x in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def whole_model(spec: ModelSpec, *, seed: int = 0, padded: int = PADDED) -> tuple[Any, Any]:
    """(megatron-core model in this process alone, HF model): the same weights."""
    from mconv.train.model import engine

    parallel = engine.Parallel()
    engine.init(parallel)
    model = engine.build(spec, padded_vocab_size=padded, parallel=parallel, dtype=torch.float32)
    hf = hf_model(spec, seed=seed)
    fill_from_hf(engine.parameters(model), hf, spec)
    return model, hf


def save_weights(model: Any, folder: Path) -> None:
    """torch_dist weights of a model in this process alone, by megatron-core's own saver."""
    import theirs

    from mconv.train.megatron.imports import quiet

    folder.mkdir(parents=True)
    with quiet():
        theirs.saver().save({"model": model.sharded_state_dict()}, str(folder))


def logits_of(folder: str, spec: dict[str, Any], tp: int, pp: int, sp: bool, padded: int = PADDED) -> torch.Tensor | None:
    """Logits of a torch_dist folder at a layout: on rank 0."""
    from mconv.train.model import engine, forward, loading

    parallel = engine.Parallel(tp=tp, pp=pp, sequence_parallel=sp)
    engine.init(parallel)
    model = engine.build(ModelSpec.from_dict(spec), padded_vocab_size=padded, parallel=parallel, dtype=torch.float32)
    loading.load_torch_dist(model, folder)
    return forward.logits(model, tokens(), parallel=parallel)


def variant(**changes: Any) -> ModelSpec:
    """SPEC with other fields."""
    return dataclasses.replace(SPEC, **changes)


def hf_folder(folder: Path, spec: ModelSpec, *, seed: int = 0) -> Path:
    """A random HF checkpoint of `spec`, with the small initial weights that training starts from."""
    model = hf_model(spec, seed=seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.mul_(0.2)
    model.save_pretrained(folder)
    return folder


def tokenizer_folder(folder: Path, learnt_from: list[str]) -> Path:
    """A byte-level BPE tokenizer of exactly 90 tokens or so, EOS included, trained on `learnt_from`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    # Named here: the trainer takes any of those that are as frequent, another one in another process.
    counts = Counter("".join(learnt_from).replace(" ", "▁"))
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))[:70]
    trainer = trainers.BpeTrainer(
        vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], limit_alphabet=70, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(learnt_from, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


def texts() -> list[str]:
    """Documents of a few words' language, the same on every machine and for ever."""
    words = [
        "the",
        "a",
        "model",
        "layer",
        "cut",
        "by",
        "of",
        "its",
        "rank",
        "reads",
        "writes",
        "two",
        "three",
        "Every",
        "weight:",
        "(again),",
        "loss",
        "=",
        "0.5;",
        "Falcon's",
    ]
    drawn = random.Random(11).random  # of this module's draws only `random` itself is promised to stay the same
    return [
        "\n".join(
            " ".join(words[int(len(words) * drawn() ** 2)] for _ in range(2 + int(9 * drawn()))) + "."
            for _ in range(1 + int(7 * drawn()))
        )
        for _ in range(120)
    ]


def documents(path: Path, key: str = "text", bad: Any = None) -> list[Any]:
    """Texts of a file; what `bad` makes of a bad record (default: it is raised)."""
    from mconv.train.data.bad_records import BadRecord, stop
    from mconv.train.data.reading.formats import batches

    found = [record for batch in batches(path, [key]) for record in batch.texts([key])]
    return [(bad or stop)(value, at) if isinstance(value, BadRecord) else value[0] for at, value in found]


def train_data(folder: Path) -> Path:
    """Prefix of tokenized text."""
    import json

    from mconv.train.data.tokenize import tokenize

    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    tokenizer = tokenizer_folder(folder / "tokenizer", texts())
    tokenize([folder / "text.jsonl"], folder / "data", tokenizer=tokenizer)
    return folder / "data"


def fields(folder: Path, *, spec: ModelSpec | None = SPEC, mock: bool = False, **more: Any) -> dict[str, Any]:
    """The fields of a short run: its model (of `spec`; None: `more` says which) and its text are made in `folder`."""
    made: dict[str, Any] = {"lr": 1e-2, "global_batch_size": 4, "seq_length": 16, "make_vocab_size_divisible_by": 8}
    if spec is not None:
        made["load"] = str(hf_folder(folder / "hf", spec))
    if mock:
        made["mock_data"] = True
    else:
        made |= {"data": [str(train_data(folder))], "data_cache": str(folder / "cache")}
    return made | more


def train(**fields: Any) -> dict[str, Any]:
    """A training run of one rank or of the whole world, without output."""
    from mconv.train.config import make
    from mconv.train.loop import train as run

    _remember_mock_data()
    return run(make(fields), say=lambda line: None)


@functools.cache
def _remember_mock_data() -> None:
    """Make mock data once for all runs of this process that ask for the same: each dataset takes a tenth of a second."""
    from mconv.train.data import mock

    made = mock.datasets
    kept = functools.lru_cache(maxsize=2)(lambda samples, **fields: made(samples=list(samples), **fields))
    mock.datasets = lambda *, samples, **fields: list(kept(tuple(samples), **fields))


def work(target: str, payload: dict[str, Any]) -> Any:
    """What a rank does that `mconv.train.launch` has started."""
    import json

    from mconv.train.launch.ranks import resolve

    return resolve(target)(json.loads(json.dumps(payload)))


def plain_loop(case: Path, *, steps: int, seed: int, lr: float, min_lr: float, train_iters: int) -> dict[str, Any]:
    """The next steps of a golden fp32 run by transformers and torch alone: losses and gradient norms.

    Weights and moments are what the live run had, by Hugging Face's names; the rows of vocabulary padding, which those
    leave out, are the file's.
    """
    import math

    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from mconv.convert.formats import mp_rank
    from mconv.train.data import mock

    located, ranks = mp_rank.open_folder(case / "ckpt" / "iter_0000003")
    numbered = ranks["mp_rank_00"]["optimizer"]["state"]
    padding = {  # of the two tensors that have it: the first and the last of those with weight decay
        "model.embed_tokens.weight": (located["mp_rank_00/model/embedding.word_embeddings.weight"], numbered[0]),
        "lm_head.weight": (located["mp_rank_00/model/output_layer.weight"], numbered[17]),
    }
    config = LlamaConfig.from_pretrained(case / "hf", vocab_size=96)
    model = LlamaForCausalLM(config).float()
    source, optim = load_file(case / "hf" / "model.safetensors"), load_file(case / "expected_optim.safetensors")
    named = dict(model.named_parameters())
    groups = [{"params": [p for p in named.values() if (p.dim() > 1) == decays], "weight_decay": wd}
              for decays, wd in ((True, 0.1), (False, 0.0))]  # fmt: skip
    adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
    with torch.no_grad():
        for name, parameter in named.items():
            kinds = {"weight": source[name], **{kind: optim[f"{kind}/{name}"] for kind in ("exp_avg", "exp_avg_sq")}}
            if name in padding:
                where, state = padding[name]
                rows = {
                    "weight": where.load()[90:],
                    **{kind: state[kind].load()[90:] for kind in ("exp_avg", "exp_avg_sq")},
                }
                kinds = {kind: torch.cat([tensor, rows[kind]]) for kind, tensor in kinds.items()}
            parameter.copy_(kinds.pop("weight"))
            adam.state[parameter] = {"step": torch.tensor(3.0), **{k: v.clone() for k, v in kinds.items()}}
    data = mock.datasets(vocab_size=90, seq_length=64, seed=seed, samples=(4 * train_iters, 1, 1))[0]
    losses, norms = [], []
    for step in range(3, 3 + steps):
        batch = [data[number] for number in range(4 * step, 4 * step + 4)]
        tokens, labels = (torch.stack([sample[name] for sample in batch]) for name in ("tokens", "labels"))
        loss = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten())
        adam.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(named.values(), 1.0)))
        for group in adam.param_groups:
            group["lr"] = min_lr + (lr - min_lr) * (1 + math.cos(math.pi * step / train_iters)) / 2
        adam.step()
        losses.append(loss.item())
    return {"losses": losses, "grad_norms": norms}


def save_like_megatron(form: str, root: str, **fields: Any) -> None:
    """A run that leaves its last step as Megatron-LM does: flat buckets in torch_dist, or a file for each rank."""
    from mconv.train.checkpoints import checkpoint, metadata
    from mconv.train.loop import loop
    from mconv.train.megatron.imports import parallel_state as ps
    from mconv.train.optim.optimizer import parts

    made: list[Any] = []
    step = loop.step

    def noted(run: Any, feed: Any, **options: Any) -> Any:
        made[:] = [run]
        return step(run, feed, **options)

    content = dict(checkpoint.CONTENT)
    loop.step = noted
    try:
        if form == "dp_reshardable":
            checkpoint.CONTENT["distrib_optim_sharding_type"] = form
            train(**fields, save=root)
            return
        train(**fields, save=f"{root}/own")
    finally:
        loop.step = step
        checkpoint.CONTENT.update(content)
    run = made[0]
    folder = Path(root) / f"iter_{run.iteration:07d}" / _rank_folder(ps, run.parallel.pp)
    state = checkpoint.state(
        iteration=run.iteration, consumed=run.consumed, chunks=run.chunks, optimizer=run.optimizer,
        scheduler=run.scheduler, spec=run.spec, parallel=run.parallel,
        settings=metadata.settings_of(run.config, seq_length=run.seq_length),
    )  # fmt: skip
    if ps.get_data_parallel_rank() == 0:
        folder.mkdir(parents=True)
        kept = {name: state[name] for name in ("args", "iteration", "checkpoint_version", "opt_param_scheduler")}
        kept["args"].transformer_impl = "local"
        model = {"model": checkpoint.unwrap(run.chunks[0]).state_dict()}
        torch.save({**kept, **model, "optimizer": run.optimizer.state_dict()}, folder / "model_optim_rng.pt")
        Path(root, "latest_checkpointed_iteration.txt").write_text(f"{run.iteration}\n")
    if form == "distrib_optim.pt":
        flat = parts(run.optimizer)[0].get_parameter_state_dp_zero(use_gloo_comm=False)
        if flat is not None:
            torch.save(flat, folder / form)
    torch.distributed.barrier()


def _rank_folder(ps: Any, pp: int) -> str:
    stage = f"_{ps.get_pipeline_model_parallel_rank():03d}" if pp > 1 else ""
    return f"mp_rank_{ps.get_tensor_model_parallel_rank():02d}{stage}"


def train_with_one_slow_writer(folder: str, **fields: Any) -> list[tuple[int, int | None]]:
    """A run that saves at 2 and 4 in the background; rank 1 may write only after its fifth step. (step, tracker)."""
    import time

    from mconv.convert.formats import distcp
    from mconv.train.checkpoints import folders
    from mconv.train.loop import loop

    gate, rank = Path(folder) / "gate", torch.distributed.get_rank()
    write, step = distcp.write_file, loop.step
    seen: list[tuple[int, int | None]] = []

    def slow_write(path: Path, laid: Any) -> None:
        while rank == 1 and not gate.exists():
            time.sleep(0.01)
        write(path, laid)

    def noted(run: Any, feed: Any, **options: Any) -> Any:
        seen.append((run.iteration, folders.latest(run.saver.root)))
        made = step(run, feed, **options)
        if run.iteration == 4:  # the save at 4 waits for the one at 2
            gate.touch()
        return made

    distcp.write_file, loop.step = slow_write, noted
    try:
        train(**fields, async_save=True, save_interval=2)
    finally:
        distcp.write_file, loop.step = write, step
    return seen


def train_losing(*, rank: int, at: int, how: str, **fields: Any) -> tuple[Any, list[str]]:
    """A run in which one rank fails at its part of a checkpoint: (losses or the error, what rank 0 said)."""
    import errno
    import os
    import signal

    from mconv.convert.formats import distcp
    from mconv.errors import MconvError
    from mconv.train.checkpoints import metadata, run_lock
    from mconv.train.config import make
    from mconv.train.loop import loop

    original, finish, read = distcp.write_file, metadata.finish, run_lock._read
    here, said = torch.distributed.get_rank() == rank, []

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(path: Path, laid: Any) -> None:
        struck = here and f"iter_{at:07d}" in str(path)
        if struck and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if struck and how == "disk full":
            path.write_bytes(b"a half")
            full()
        original(path, laid)

    distcp.write_file = write
    if how == "disk full at the end" and here:
        metadata.finish = lambda *_, **__: full()
    if how == "another folder" and here:
        run_lock._read = lambda root: {}
    try:
        return loop.train(make(fields), say=said.append)["losses"], said
    except MconvError as error:
        return f"{type(error).__name__}: {error}", said
    finally:
        distcp.write_file = original
        metadata.finish, run_lock._read = finish, read


def train_with_other_owners(*, fault: str, **fields: Any) -> str:
    """A run in which every rank takes itself for the one that writes a shard, or none does: what it ends with."""
    from mconv.errors import MconvError
    from mconv.train.checkpoints import shards

    original = shards.is_main_replica
    shards.is_main_replica = lambda _: fault == "two"
    try:
        return str(train(**fields)["losses"])
    except MconvError as error:
        return str(error)
    finally:
        shards.is_main_replica = original


def save_twice(*, root: str, **fields: Any) -> None:
    """A step of a run that is saved, and the same state saved by megatron-core's own saver beside it."""
    import theirs

    from mconv.train.checkpoints import checkpoint
    from mconv.train.megatron.imports import quiet

    state, folder = checkpoint.state, Path(root, "theirs")

    def twice(**given: Any) -> dict[str, Any]:
        if torch.distributed.get_rank() == 0:
            folder.mkdir()
        torch.distributed.barrier()
        drawn = random.getstate()
        first = state(**given)
        random.setstate(drawn)  # tests draw from it to choose what types they check
        second = state(**given)
        with quiet():
            theirs.saver().save(second, str(folder), content_metadata=dict(checkpoint.CONTENT))
        return first

    checkpoint.state = twice
    try:
        train(**fields, save=f"{root}/ours", exit_after=1)
    finally:
        checkpoint.state = state


def dropped(**_: Any) -> tuple[list[float], list[float]]:
    """What dropout does to attention over ones and to ones in between, on a rank of tp 2."""
    from mconv.train.model import engine, layers
    from mconv.train.model.attention import CoreAttention

    parallel = engine.Parallel(tp=2)
    engine.init(parallel)
    config = layers.transformer_config(SPEC, parallel, dtype=torch.float32, attention_dropout=0.5)
    ones = torch.ones(16, 1, 2, 8)
    heads = CoreAttention(config)(ones, ones, ones, None)
    return heads.flatten().tolist(), torch.nn.functional.dropout(torch.ones(64), 0.5).tolist()


def train_without_marks(**fields: Any) -> dict[str, Any]:
    """The same with a planted fault: nothing tells megatron-core that a rank's norms saw a share of the positions."""
    from mconv.train.model import attention

    whole = attention._replicated

    def unmarked(*args: Any) -> torch.nn.Parameter:
        parameter = whole(*args)
        parameter.sequence_parallel = False
        return parameter

    attention._replicated = unmarked
    try:
        return train(**fields)
    finally:
        attention._replicated = whole


def train_keeping_head_norms(*, summed: bool = True, **fields: Any) -> dict[str, Any]:
    """A run, and this rank's norms of query and key heads after it, by their names in the whole model.

    With the planted fault (`summed` False) megatron-core does not add up what the heads of other ranks say of them.
    """
    from mconv.train.loop import loop
    from mconv.train.model import freeze

    step, models = loop.step, []

    def noted(run: Any, feed: Any, **options: Any) -> Any:
        models[:] = [chunk.module for chunk in run.chunks]
        for model in models:
            model.config.qk_layernorm = summed
        return step(run, feed, **options)

    loop.step = noted
    try:
        made = train(**fields)
    finally:
        loop.step = step
    named = [pair for model in models for pair in freeze.names(model)]
    return made | {"norms": {name: p.detach().clone() for name, p in named if re.search(r"[qk]_layernorm", name)}}


def placed(*, tp: int, pp: int, padded: int, tp_rank: int, stage: int) -> dict[str, Any]:
    """How `load_rank` is told where a rank lies."""
    from mconv.shard.layout import Layout

    return {"layout": Layout(tp=tp, pp=pp, padded_vocab=padded), "tp_rank": tp_rank, "stage": stage}


def train_hit(*, rank: int, at: int, **fields: Any) -> dict[str, Any]:
    """A run in which one rank gets SIGUSR2 while it takes a step."""
    import os
    import signal

    from mconv.train.launch import stop
    from mconv.train.loop import loop

    whole = loop.step

    def hit(run: Any, feed: Any, **options: Any) -> Any:
        if run.iteration == at - 1 and torch.distributed.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGUSR2)
        return whole(run, feed, **options)

    loop.step = hit
    try:
        with stop.listening():
            return train(**fields)
    finally:
        loop.step = whole


def what_is_asked(*, rank: int, alone: bool) -> int:
    """What each rank answers when one of them got SIGUSR2; `alone`, a planted fault: each goes by its own word."""
    import os
    import signal

    import mconv.train.megatron.imports  # noqa: F401 (its devices are the CPU here)
    from mconv.train.launch import stop
    from mconv.train.megatron import collectives

    asked, together = (
        stop.StopConditions(rank=torch.distributed.get_rank(), triggers=None, exit_interval=None, ends={}),
        collectives.largest,
    )
    collectives.largest = (lambda number: number) if alone else together
    try:
        with stop.listening():
            if torch.distributed.get_rank() == rank:
                os.kill(os.getpid(), signal.SIGUSR2)
            return asked.ask(1).number
    finally:
        collectives.largest = together


def memory(**fields: Any) -> dict[str, int]:
    """Bytes of a run at its start, tensor by tensor, and what autograd keeps of one forward pass of one micro batch."""
    from mconv.train.config import make
    from mconv.train.loop.start import start
    from mconv.train.megatron.imports import quiet

    with quiet():
        return _memory(start(make(fields), say=lambda _: None))


def _memory(run: Any) -> dict[str, int]:
    optimizers = getattr(run.optimizer, "chained_optimizers", [run.optimizer])
    params = [p for chunk in run.chunks for p in chunk.parameters()]
    buffers = [b for chunk in run.chunks for b in chunk.buffers]
    states = [s for one in optimizers for state in one.optimizer.state.values() for s in state.values()]
    mains = [p for one in optimizers for group in one.optimizer.param_groups for p in group["params"]]
    weights = _storages(params)
    return {
        "parameters": sum(p.numel() for p in params),
        "weights": sum(weights.values()),
        "gradients": sum(_storages([b.grad_data for b in buffers]).values()),
        "optimizer": sum(n for at, n in (_storages(mains) | _storages(states)).items() if at not in weights),
        "activations": _kept(run, set(weights)),
    }


def _storages(tensors: list[Any]) -> dict[int, int]:
    """Bytes by address; a tensor that is a part of another's counts once. Numbers (a step) do not count."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.dim()}


def _kept(run: Any, weights: set[int]) -> int:
    """What the forward pass of a whole model leaves for its backward pass."""
    size = (run.config.micro_batch_size, run.seq_length)
    given = torch.randint(0, run.spec.vocab_size, size)
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run.chunks[0](given, torch.arange(size[1]).expand(size), None, labels=given)
    assert loss.requires_grad
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)


def train_with_chunks_mixed_up(**fields: Any) -> dict[str, Any]:
    """The same with a planted fault: of a stage's two chunks each has the other's layers."""
    from mconv.train.loop import start
    from mconv.train.model import engine

    right = start.replicated

    def wrong(models: list[Any], config: Any, **options: Any) -> list[Any]:
        first, second = (engine.parameters(model) for model in models)
        for name in first.keys() & second.keys():
            held = first[name].clone()
            first[name].copy_(second[name])
            second[name].copy_(held)
        return right(models, config, **options)

    start.replicated = wrong
    try:
        return train(**fields)
    finally:
        start.replicated = right
