"""The two kinds of model that are compared, each run by its own program: transformers', and megatron-core's GPTModel.

Both give the logits of a probe chunk by chunk, and on the way a sample of each layer's hidden states. Both can run from
disk, one layer in memory at a time (`streamed`): the forward is theirs all the same, the weights come and go under it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn

from mconv.convert import spell
from mconv.convert.checkpoint import Checkpoint
from mconv.convert.dialects import mcore
from mconv.convert.formats import archive, mp_rank, tensors
from mconv.convert.load import load_rank
from mconv.convert.table import Logical, Stored
from mconv.shard.axes import Axes
from mconv.shard.cut import Piece, entire
from mconv.shard.layout import Layout, padded_vocab
from mconv.shard.stages import EVEN
from mconv.train.parallel import Parallel, world
from mconv.verify.compare import CHUNK
from mconv.verify.noise import OtherOrder
from mconv.verify.onuse import Weights, bind, present
from mconv.verify.steps import advance

SAMPLE = 32
"""Positions of each row at which hidden states are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What to try on a model: other numbers in its spec, other tensors in the place of its own."""

    spec: Mapping[str, Any] = field(default_factory=dict)
    mended: Callable[[Logical], Tensor | None] = lambda _: None
    """The logical tensor to take, one dimension for each axis; None: the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """The arithmetic, and where it happens."""

    dtype: torch.dtype = torch.float32
    narrow: tuple[torch.dtype, ...] = ()
    """Weights are rounded to these first, one after the other: what the other side holds, where that is fewer bits."""
    streamed: bool = False
    parallel: Parallel = field(default_factory=Parallel)
    """Of a Megatron side."""
    only: frozenset[str] | None = None
    """The layers that run, of a streamed model; the others hand on what they are given."""
    repair: Repair = field(default_factory=Repair)
    """Of a streamed model on one rank."""

    @property
    def filling(self) -> torch.dtype:
        """What weights are read into: fp32 if they are rounded to `narrow` and then to another dtype, in this order."""
        return self.dtype if self.narrow in ((), (self.dtype,)) else torch.float32

    @property
    def weights(self) -> Weights:
        """What the weights of a streamed module are."""
        return Weights(filling=self.filling, dtype=self.dtype, device=self.device)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@runtime_checkable
class Scores(Protocol):
    """Logits that are there when asked for."""

    layers: dict[str, Float[Tensor, "b n d"]]
    """Hidden states behind each layer at some positions: `embed`, `0`, `1`, ..., `final_norm`."""

    def chunks(self) -> Iterator[Float[Tensor, "b c v"]]:
        """Over the true vocabulary, `CHUNK` positions at a time."""


@runtime_checkable
class Model(Protocol):
    """What can be asked for logits. Every rank asks; the answer is rank 0's, None elsewhere."""

    checkpoint: Checkpoint
    loaded_by: str
    transposed: bool
    """Whether hidden states are [s b d] within it, not [b s d]."""

    def modules(self) -> dict[str, nn.Module]:
        """Embedding, layers and final norm, as `Scores.layers` calls them: those that are on this rank."""

    def inner(self, layer: str, row: str) -> list[tuple[nn.Module, Piece]]:
        """The modules of a layer that compute a row of the family's table, and what part of its output each gives."""

    def run(self, tokens: Int[Tensor, "b s"], positions: Int[Tensor, "b s"] | None = None) -> Scores | None: ...

    def rest(self) -> None:
        """Free what is needed for further runs."""


def model_of(checkpoint: Checkpoint, how: How) -> Model:
    """The model that computes what a checkpoint holds."""
    if checkpoint.format == "hf":
        return HuggingFace(checkpoint, how)
    return Megatron(checkpoint, how)


@contextlib.contextmanager
def other_order() -> Iterator[None]:
    """The same models with their sums in another order: how far apart right ones may lie."""
    with OtherOrder():
        yield


def sampled(length: int) -> Int[Tensor, "n"]:
    """The positions at which hidden states are kept, the last among them."""
    return torch.linspace(0, length - 1, min(SAMPLE, length)).long()


def narrowed(parameters: dict[str, Tensor], narrow: tuple[torch.dtype, ...]) -> None:
    """Round weights in place to the values that each of `narrow` has."""
    for tensor in parameters.values() if narrow else ():
        tensor.copy_(rounded(tensor, narrow))


def rounded(tensor: Tensor, narrow: tuple[torch.dtype, ...]) -> Tensor:
    """The values that each of `narrow` has, one after the other."""
    for dtype in narrow:
        tensor = tensor.to(dtype)
    return tensor


def put(parameters: dict[str, Tensor], places: Mapping[str, Stored], repair: Repair) -> None:
    """Put mended tensors in the place of a model's own."""
    for name, tensor in parameters.items():
        stored = places.get(name)
        whole = None if stored is None else repair.mended(stored.logical)
        if stored is not None and whole is not None:
            part = whole[tuple(slice(start, stop) for start, stop in stored.piece.blocks[0].box)]
            tensor.view(-1)[: part.numel()].copy_(part.reshape(-1))  # rows of padding stay


# ---- Hugging Face ----------------------------------------------------------------------------------------------------
class HuggingFace:
    """transformers' model, on rank 0."""

    loaded_by = "transformers"
    transposed = False

    def __init__(self, checkpoint: Checkpoint, how: How) -> None:
        self.checkpoint, self.how = checkpoint, how
        self.spec = replace(checkpoint.spec, **how.repair.spec)
        self.names = {row.name: next(iter(row.hf)) for row in checkpoint.family.rows if row.leaves(checkpoint.spec)}
        self.model: Any = None
        self._head: Any = None
        if world()[0] == 0:
            self.model = self._streamed() if how.streamed else self._whole()
            self._head = self.model.get_output_embeddings()

    def _whole(self) -> nn.Module:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(
            self.checkpoint.path,
            dtype=self.how.filling,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
        )
        narrowed({name: parameter.data for name, parameter in model.named_parameters()}, self.how.narrow)
        for parameter in model.parameters():  # not buffers: rope's angles stay in fp32
            parameter.data = parameter.data.to(self.how.dtype)
        return model.eval().requires_grad_(False).to(self.how.device)

    def _streamed(self) -> nn.Module:
        """A model without memory, each part of which reads its weights when it runs."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.checkpoint.path, local_files_only=True, trust_remote_code=False)
        if self.how.repair.spec:
            config = type(config).from_dict(self.checkpoint.family.write_config(self.spec))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=self.how.dtype, trust_remote_code=False, attn_implementation="sdpa"
            )
        for name, module in model.named_modules():
            if name.endswith("rotary_emb"):  # its angles follow from the config, and are in no file
                model.set_submodule(name, type(module)(config=model.config).to(self.how.device))
        for name in self.parts[:-1]:
            module = model.get_submodule(name)
            if (
                self.how.only is not None
                and name.rpartition(".")[2].isdigit()
                and name.rpartition(".")[2] not in self.how.only
            ):
                module.forward = self._hand_on
            else:
                bind(module, self.reader(name), self.how.weights)
        return model.eval()

    def _hand_on(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """A layer that does nothing, in the form of the family's own."""
        return (hidden_states, None) if self.checkpoint.family.name == "falcon" else hidden_states

    @property
    def parts(self) -> list[str]:
        """The modules that hold all weights, in the order of the forward pass: embedding, layers, final norm, head."""
        layers = [self.layer_name(i) for i in range(self.checkpoint.spec.num_layers)]
        return [self.names["embed"], *layers, self.names["final_norm"], self.names.get("head", "lm_head")]

    def layer_name(self, layer: int) -> str:
        return self.names["layer.attn_norm"].split(".{i}.")[0] + f".{layer}"

    def reader(self, module: str) -> Any:
        """What fills a module's parameters from the files."""
        tied = self.checkpoint.spec.tied_embeddings and module == "lm_head"
        prefix = self.names["embed"] if tied else module
        places = {stored.key: stored for stored in self.checkpoint.stored}

        def fill(parameters: dict[str, Tensor]) -> None:
            for name, tensor in parameters.items():
                tensor.copy_(self._read(f"{prefix}.{name}"))
            put({f"{prefix}.{name}": tensor for name, tensor in parameters.items()}, places, self.how.repair)
            narrowed(parameters, self.how.narrow)
            tensors.forget()

        return fill

    def _read(self, name: str) -> Tensor:
        """A tensor of the files: by safetensors' own reader where it is one of its files."""
        where = self.checkpoint.located[name]
        if where.path.suffix != ".safetensors":
            return where.load()
        with safe_open(where.path, framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "b s"], positions: Int[Tensor, "b s"] | None = None) -> "HuggingFaceScores | None":
        if self.model is None:
            return None
        keep = Keep(sampled(tokens.shape[1]), itemsize=self.checkpoint.dtype.itemsize)
        with keep.hooked(self.modules()):
            hidden = self.forward(tokens, positions)
        return HuggingFaceScores(self, hidden, keep.kept)

    def modules(self) -> dict[str, nn.Module]:
        names = ["embed", *map(str, range(self.checkpoint.spec.num_layers)), "final_norm"]
        return dict(zip(names, map(self.model.get_submodule, self.parts[:-1]), strict=True))

    def inner(self, layer: str, row: str) -> list[tuple[nn.Module, Piece]]:
        found = next((r for r in self.checkpoint.family.rows if r.name == row and r.leaves(self.spec)), None)
        pieces = found.pieces(output_axes(self.checkpoint, row), self.spec.sizes) if found else ()
        return [(self.model.get_submodule(name.format(i=layer)), piece) for name, piece in pieces]

    def forward(self, tokens: Int[Tensor, "b s"], positions: Int[Tensor, "b s"] | None = None) -> Float[Tensor, "b s d"]:
        """Hidden states behind the final norm."""
        device = self.how.device
        counted = torch.arange(tokens.shape[1]).expand_as(tokens) if positions is None else positions
        # The mask says that a row is one text: transformers takes a leap of positions for the start of another.
        hidden: Tensor = self.model.base_model(
            tokens.to(device),
            attention_mask=torch.ones_like(tokens, device=device),
            position_ids=counted.to(device),
            use_cache=False,
        ).last_hidden_state
        return hidden

    @contextlib.contextmanager
    def head(self) -> Iterator[nn.Module]:
        """The output layer, with its weights."""
        if not self.how.streamed:
            yield self._head
            return
        with present(self._head, self.reader("lm_head"), self.how.weights):
            yield self._head

    def rest(self) -> None:
        """Keep the head alone, for the logits still to come."""
        self.model = None


@dataclass(slots=True)
class HuggingFaceScores:
    """The final hidden states: the head makes logits of them when they are asked for."""

    model: HuggingFace
    hidden: Float[Tensor, "b s d"]
    layers: dict[str, Tensor]

    def chunks(self) -> Iterator[Float[Tensor, "b c v"]]:
        with self.model.head() as head:
            for part in self.hidden.split(CHUNK, dim=1):
                yield head(part).float()


# ---- Megatron --------------------------------------------------------------------------------------------------------
class Megatron:
    """megatron-core's GPTModel on tp x pp ranks, filled by the most independent way there is."""

    transposed = True

    def __init__(self, checkpoint: Checkpoint, how: How) -> None:
        from mconv.train import engine

        self.checkpoint, self.how = checkpoint, how
        self.spec = replace(checkpoint.spec, **how.repair.spec)
        engine.init(how.parallel)
        tp, layout = how.parallel.tp, checkpoint.layout
        rows = layout.padded_vocab if layout else self.spec.vocab_size
        self.padded = rows if rows % tp == 0 else padded_vocab(self.spec.vocab_size, tp=tp)
        self.model: Any = engine.build(
            self.spec, padded_vocab_size=self.padded, parallel=how.parallel, dtype=how.dtype, on_meta=how.streamed
        )
        self.loaded_by = self._way()
        if how.streamed:
            self._bind()
        else:
            own = list(self.model.parameters())
            for parameter in own:
                parameter.data = parameter.data.to(how.filling)
            self.fill(engine.parameters(self.model))
            for parameter in own:
                parameter.data = parameter.data.to(how.dtype)

    def _way(self) -> str:
        """Who loads: megatron-core where it can, else its own files as they are, else mconv."""
        layout, parallel = self.checkpoint.layout, self.how.parallel
        if layout and self.checkpoint.format == "torch_dist" and self.padded == layout.padded_vocab:
            return "megatron-core"
        if layout and self.checkpoint.format == "mp_rank" and self.padded == layout.padded_vocab:
            same = (parallel.tp, parallel.pp, 1, EVEN) == (layout.tp, layout.pp, layout.vpp, layout.uneven)
            if same and self._names() <= self._rank_state().keys():
                return "rank files, as they are"
        return "mconv, cut for this layout"

    def _names(self) -> set[str]:
        return {name for name, _ in self.model.named_parameters()}

    def _rank_state(self) -> dict[str, Any]:
        """What this rank's file holds, tensors not loaded yet."""
        from mconv.train.mcore import parallel_state

        rank, stage = (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
        )
        folder = self.checkpoint.path / mp_rank.rank_folder(rank, stage, pp=self.how.parallel.pp)
        state: dict[str, Any] = archive.read(folder / mp_rank.FILE)["model"]
        return state

    def fill(self, parameters: dict[str, Tensor], *, part: str = "") -> None:
        """Fill parameters, by their names in a rank's file: all of them, or those whose names start with `part`."""
        from mconv.train import engine
        from mconv.train.mcore import parallel_state

        if self.loaded_by == "megatron-core":
            engine.load_torch_dist(self.model, self.checkpoint.path, part=part or None)
        elif self.loaded_by == "rank files, as they are":
            held = {k: v.load().view(v.shape) for k, v in self._rank_state().items() if hasattr(v, "load")}
            if part:
                for name, tensor in parameters.items():
                    tensor.copy_(held[name])
            else:
                engine.load_rank_file(self.model, held)
        else:
            load_rank(
                self.checkpoint,
                parameters,
                tp=self.how.parallel.tp,
                pp=self.how.parallel.pp,
                tp_rank=parallel_state.get_tensor_model_parallel_rank(),
                pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
                padded_vocab_size=self.padded,
                partial=bool(part),
            )
        narrowed(parameters, self.how.narrow)
        tensors.forget()

    # -- one layer in memory at a time --
    @property
    def parts(self) -> list[str]:
        """This rank's modules that hold all its weights."""
        layers = [f"decoder.layers.{n}" for n in range(len(self.model.decoder.layers))]
        others = ("embedding", "decoder.final_layernorm", "output_layer")
        names = self._names()
        return [*layers, *(name for name in others if any(n.startswith(f"{name}.") for n in names))]

    def _bind(self) -> None:
        for name in self.parts:
            module = self.model.get_submodule(name)
            number = getattr(module, "layer_number", None)
            if number is not None and self.how.only is not None and str(number - 1) not in self.how.only:
                module.forward = _handed_on
            else:
                bind(module, self.reader(name), self.how.weights)
        if self.spec.tied_embeddings and self.model.post_process:
            self._lend_embedding() if self.model.pre_process else self._keep_own_head()

    def reader(self, part: str) -> Any:
        """What fills a part of this rank's model from the files."""
        from mconv.train import engine

        def fill(parameters: dict[str, Tensor]) -> None:
            for name in engine.surplus_biases(self.model.get_submodule(part), self.spec):
                parameters[name].zero_()
            named = {f"{part}.{name}": tensor for name, tensor in parameters.items()}
            self.fill(named, part=f"{part}.")
            put(named, self._places(), self.how.repair)
            narrowed(named, self.how.narrow)

        return fill

    def _places(self) -> dict[str, Stored]:
        """Which logical tensor each parameter is, on one rank that has them all."""
        layout = Layout(tp=1, pp=1, padded_vocab=self.padded)
        told = spell.rank_tensors(mcore.DIALECT, self.checkpoint.family, self.spec, layout)
        return {
            name: Stored(
                name, logical, spell.rank_piece(mcore.DIALECT, self.checkpoint.family, self.spec, layout, logical, 0)
            )
            for _, names, logical in told
            for name in names
        }

    def _keep_own_head(self) -> None:
        """The last stage's copy of the embedding: GPTModel takes hold of it before it has been fetched."""
        head = self.model.output_layer
        run = head.forward
        head.forward = lambda hidden, weight=None, **options: run(hidden, weight=None, **options)

    def _lend_embedding(self) -> None:
        """A tied head reads the embedding's weight, which has gone by then: it is fetched once more."""
        head, embedding = self.model.output_layer, self.model.embedding
        run = head.forward

        def forward(hidden: Tensor, weight: Tensor | None = None, **options: Any) -> Any:
            with present(embedding, self.reader("embedding"), self.how.weights):
                return run(hidden, weight=embedding.word_embeddings.weight, **options)

        head.forward = forward

    # -- running --
    def rest(self) -> None:
        """Let go of the weights."""
        self.model = None

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "b s"], positions: Int[Tensor, "b s"] | None = None) -> "MegatronScores | None":
        from mconv.train import engine

        keep = Keep(
            sampled(tokens.shape[1]),
            itemsize=self.checkpoint.dtype.itemsize,
            gather=self._whole_sequence,
            transposed=True,
        )
        with keep.hooked(self.modules()):
            logits = engine.logits(self.model, tokens, parallel=self.how.parallel, positions=positions)
        layers = self._on_rank_0(keep.kept)
        return None if logits is None else MegatronScores(logits[:, :, : self.spec.vocab_size], layers, logits)

    def inner(self, layer: str, row: str) -> list[tuple[nn.Module, Piece]]:
        whole = entire(output_axes(self.checkpoint, row), self.spec.sizes)
        names = [name.format(i=layer, leaf="") for name in mcore.NAMES[row] if name.endswith(".{leaf}")]
        own = {name for name, _ in self.model.named_parameters()}
        return [(self.model.get_submodule(n[:-1]), whole) for n in names if f"{n}weight" in own]

    def modules(self) -> dict[str, nn.Module]:
        model = self.model
        found = {str(layer.layer_number - 1): layer for layer in model.decoder.layers}
        found |= {"embed": model.embedding} if model.pre_process else {}
        return found | ({"final_norm": model.decoder.final_layernorm} if model.post_process else {})

    def _whole_sequence(self, hidden: Float[Tensor, "c b d"]) -> Float[Tensor, "s b d"]:
        from mconv.train.mcore import tensor_parallel

        if not self.how.parallel.sequence_parallel:
            return hidden
        whole: Tensor = tensor_parallel.gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        return whole

    def _on_rank_0(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """All stages' hidden states; only rank 0's answer counts."""
        from mconv.train.mcore import parallel_state

        if self.how.parallel.pp == 1:
            return kept
        mine = kept if parallel_state.get_tensor_model_parallel_rank() == 0 else {}
        said: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(said, mine)
        return {name: tensor for one in said for name, tensor in one.items()}


def _handed_on(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """A layer that does nothing."""
    return hidden_states, None


def output_axes(checkpoint: Checkpoint, row: str) -> Axes:
    """The axes of what a row's module gives: a norm's, or a linear's without those that it sums over."""
    found = checkpoint.family.row(row)
    return found.axes_of("weight" if row.endswith("norm") else "bias")


@dataclass(slots=True)
class MegatronScores:
    """The logits of all positions, as the ranks gave them."""

    logits: Float[Tensor, "b s v"]
    layers: dict[str, Tensor]
    padded: Float[Tensor, "b s padded_vocab"]

    def chunks(self) -> Iterator[Float[Tensor, "b c v"]]:
        yield from self.logits.split(CHUNK, dim=1)


# ---- hidden states ---------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Keep:
    """Keeps what modules give, at some positions, on the CPU."""

    at: Int[Tensor, "n"]
    itemsize: int = 0
    """Bytes of a stored parameter, for telling how far a run has come."""
    gather: Any = None
    transposed: bool = False
    kept: dict[str, Float[Tensor, "b n d"]] = field(default_factory=dict)

    @contextlib.contextmanager
    def hooked(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        handles = [module.register_forward_hook(self._hook(name)) for name, module in modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            advance(sum(p.numel() * self.itemsize for p in module.parameters()))
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden if self.gather is None else self.gather(hidden)
            hidden = hidden.transpose(0, 1) if self.transposed else hidden
            self.kept[name] = hidden[:, self.at.to(hidden.device)].float().cpu()

        return hook
