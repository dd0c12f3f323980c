"""megatron-core's GPTModel of any other checkpoint, on tp x pp ranks, whole in memory or streamed from disk."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.dialects import mcore, spell
from mconv.convert.formats import archive, mapped, mp_rank
from mconv.convert.sources.load import load_rank
from mconv.convert.spelling.table import Row, Stored
from mconv.shard.cut import Piece
from mconv.shard.layout import Layout, padded_vocab
from mconv.shard.pattern import piece
from mconv.verify.compare import CHUNK
from mconv.verify.models.common import HiddenStateSampler, RunOptions, apply_repair, round_in_place, sampled
from mconv.verify.places import EMBEDDING, FINAL_NORM
from mconv.verify.weight_streaming import loaded, stream_weights


class Megatron:
    """megatron-core's GPTModel on tp x pp ranks, filled by the loader that depends least on mconv."""

    transposed = True

    def __init__(self, checkpoint: Checkpoint, options: RunOptions) -> None:
        from mconv.train.model import engine

        self.checkpoint, self.options = checkpoint, options
        self.spec = replace(checkpoint.spec, **options.repair.spec)
        engine.init(options.parallel)
        tp, layout = options.parallel.tp, checkpoint.layout
        rows = layout.padded_vocab if layout else self.spec.vocab_size
        self.padded = rows if rows % tp == 0 else padded_vocab(self.spec.vocab_size, tp=tp)
        self.model: Any = engine.build(
            self.spec,
            padded_vocab_size=self.padded,
            parallel=options.parallel,
            dtype=options.dtype,
            on_meta=options.streamed,
        )
        self.loaded_by = self._way()
        if options.streamed:
            self._bind()
        else:
            own = list(self.model.parameters())
            for parameter in own:
                parameter.data = parameter.data.to(options.load_dtype)
            self.fill(engine.parameters(self.model))
            round_in_place(engine.parameters(self.model), options.narrow)
            for parameter in own:
                parameter.data = parameter.data.to(options.dtype)

    def _way(self) -> str:
        """Return who loads: megatron-core if it can, else its own rank files as they are, else mconv."""
        layout, parallel = self.checkpoint.layout, self.options.parallel
        if layout and self.checkpoint.format == "torch_dist" and self.padded == layout.padded_vocab:
            return "megatron-core"
        own = self.checkpoint.format == "mp_rank" and layout == parallel.layout(padded_vocab=self.padded)
        if own and self._names() <= self._rank_state.keys():
            return "rank files, as they are"
        return "mconv, cut for this layout"

    def _names(self) -> set[str]:
        return {name for name, _ in self.model.named_parameters()}

    @cached_property
    def _rank_state(self) -> dict[str, Any]:
        """Content of this rank's file, its tensors not loaded yet."""
        from mconv.train.megatron.imports import parallel_state

        rank, stage = (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
        )
        folder = self.checkpoint.path / mp_rank.rank_folder(rank, stage, pp=self.options.parallel.pp)
        state: dict[str, Any] = archive.read(folder / mp_rank.FILE)["model"]
        return state

    def fill(self, parameters: dict[str, Tensor], *, part: str = "") -> None:
        """Fill parameters, named as in a rank's file: all of them, or those whose names start with `part`."""
        from mconv.train.megatron.imports import parallel_state
        from mconv.train.model import loading

        if self.loaded_by == "megatron-core":
            loading.load_torch_dist(self.model, self.checkpoint.path, part=part or None)
        elif self.loaded_by == "rank files, as they are":
            held = {k: v.load().view(v.shape) for k, v in self._rank_state.items() if hasattr(v, "load")}
            if part:
                for name, tensor in parameters.items():
                    tensor.copy_(held[name])
            else:
                loading.load_rank_file(self.model, held)
        else:
            load_rank(
                self.checkpoint.source,
                parameters,
                layout=self.options.parallel.layout(padded_vocab=self.padded),
                tp_rank=parallel_state.get_tensor_model_parallel_rank(),
                stage=parallel_state.get_pipeline_model_parallel_rank(),
                partial=bool(part),
            )
        mapped.forget()

    # -- one layer in memory at a time --
    @property
    def parts(self) -> list[str]:
        """Modules of this rank that hold all its weights."""
        layers = [f"decoder.layers.{n}" for n in range(len(self.model.decoder.layers))]
        others = ("embedding", "decoder.final_layernorm", "output_layer")
        names = self._names()
        return [*layers, *(name for name in others if any(n.startswith(f"{name}.") for n in names))]

    def _bind(self) -> None:
        for name in self.parts:
            module = self.model.get_submodule(name)
            number = getattr(module, "layer_number", None)
            if number is not None and self.options.skips(str(number - 1)):
                module.forward = _identity_layer
            else:
                stream_weights(module, self.reader(name), self.options.weights)
        if self.spec.tied_embeddings and self.model.post_process:
            self._lend_embedding() if self.model.pre_process else self._keep_own_head()

    def reader(self, part: str) -> Any:
        """Return a function that fills a part of this rank's model from the files."""
        from mconv.train.model import engine

        def fill(parameters: dict[str, Tensor]) -> None:
            for name in engine.surplus_biases(self.model.get_submodule(part), self.spec):
                parameters[name].zero_()
            named = {f"{part}.{name}": tensor for name, tensor in parameters.items()}
            self.fill(named, part=f"{part}.")
            apply_repair(named, self._places, self.options.repair)
            round_in_place(named, self.options.narrow)

        return fill

    @cached_property
    def _places(self) -> dict[str, Stored]:
        """Stored tensor of each parameter, on a single rank that has them all."""
        layout = Layout(tp=1, pp=1, padded_vocab=self.padded)
        tensors = spell.rank_tensors(mcore.DIALECT, self.checkpoint.family, self.spec, layout)
        return {
            name: Stored(
                name, logical, spell.rank_piece(mcore.DIALECT, self.checkpoint.family, self.spec, layout, logical, 0)
            )
            for _, names, logical in tensors
            for name in names
        }

    def _keep_own_head(self) -> None:
        """Make the head use its own weight: GPTModel passes the last stage's copy before it is loaded."""
        head = self.model.output_layer
        run = head.forward
        head.forward = lambda hidden, weight=None, **options: run(hidden, weight=None, **options)

    def _lend_embedding(self) -> None:
        """Load the embedding once more while a tied head runs, which reads its weight."""
        head, embedding = self.model.output_layer, self.model.embedding
        run = head.forward

        def forward(hidden: Tensor, weight: Tensor | None = None, **options: Any) -> Any:
            with loaded(embedding, self.reader("embedding"), self.options.weights):
                return run(hidden, weight=embedding.word_embeddings.weight, **options)

        head.forward = forward

    # -- running --
    def release(self) -> None:
        """Free the weights."""
        self.model = None

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "b s"], positions: Int[Tensor, "b s"] | None = None) -> "MegatronScores | None":
        from mconv.train.model import forward

        keep = HiddenStateSampler(
            sampled(tokens.shape[1]),
            itemsize=self.checkpoint.dtype.itemsize,
            gather=self._whole_sequence,
            transposed=True,
        )
        with keep.hooked(self.modules()):
            logits = forward.logits(self.model, tokens, parallel=self.options.parallel, positions=positions)
        layers = self._on_rank_0(keep.kept)
        return None if logits is None else MegatronScores(logits, layers, self.spec.vocab_size)

    def modules_of_row(self, layer: int, row: Row) -> list[tuple[nn.Module, Piece]]:
        whole = piece(row.output, self.spec.sizes)
        names = [name.format(l=layer, leaf="") for name in mcore.NAMES[row.name] if name.endswith(".{leaf}")]
        own = {name for name, _ in self.model.named_parameters()}
        return [(self.model.get_submodule(n[:-1]), whole) for n in names if f"{n}weight" in own]

    def modules(self) -> dict[str, nn.Module]:
        model = self.model
        found = {str(layer.layer_number - 1): layer for layer in model.decoder.layers}
        found |= {EMBEDDING: model.embedding} if model.pre_process else {}
        return found | ({FINAL_NORM: model.decoder.final_layernorm} if model.post_process else {})

    def _whole_sequence(self, hidden: Float[Tensor, "c b d"]) -> Float[Tensor, "s b d"]:
        from mconv.train.megatron.imports import tensor_parallel

        if not self.options.parallel.sequence_parallel:
            return hidden
        whole: Tensor = tensor_parallel.gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        return whole

    def _on_rank_0(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the hidden states of all stages; only rank 0's answer is used."""
        from mconv.train.megatron.imports import parallel_state

        if self.options.parallel.pp == 1:
            return kept
        mine = kept if parallel_state.get_tensor_model_parallel_rank() == 0 else {}
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, mine)
        return {name: tensor for one in gathered for name, tensor in one.items()}


def _identity_layer(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Return the input unchanged."""
    return hidden_states, None


@dataclass(slots=True)
class MegatronScores:
    """The logits of all positions, gathered from the ranks."""

    padded: Float[Tensor, "b s padded_vocab"]
    layers: dict[str, Tensor]
    vocab_size: int

    def at(self, positions: Int[Tensor, "n"]) -> Float[Tensor, "b n v"]:
        return self.padded[:, positions.to(self.padded.device), : self.vocab_size]

    def chunks(self) -> Iterator[Float[Tensor, "b c v"]]:
        yield from self.padded[:, :, : self.vocab_size].split(CHUNK, dim=1)
