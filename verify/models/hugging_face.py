"""transformers' model of a Hugging Face folder, whole or from disk."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn

from mconv.convert import peft
from mconv.convert.checkpoint import Checkpoint
from mconv.convert.formats import hf, mapped
from mconv.convert.spelled import spelled
from mconv.convert.table import Row, Stored
from mconv.errors import FormatError
from mconv.shard.cut import Piece
from mconv.train.megatron.parallel import world
from mconv.verify.compare import CHUNK
from mconv.verify.models.common import How, Keep, narrowed, put, sampled
from mconv.verify.onuse import bind, present
from mconv.verify.places import EMBEDDING, FINAL_NORM


@contextlib.contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """Yield a folder with the model alone: transformers applies an adapter that lies beside it, if peft is installed."""
    if not peft.has_adapter(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as plain:
        for path in folder.iterdir():
            if not path.name.startswith("adapter_"):
                (Path(plain) / path.name).symlink_to(path.resolve())
        yield Path(plain)


class HuggingFace:
    """transformers' model, on rank 0."""

    loaded_by = "transformers"
    transposed = False

    def __init__(self, checkpoint: Checkpoint, how: How) -> None:
        self.checkpoint, self.how = checkpoint, how
        self.spec = replace(checkpoint.spec, **how.repair.spec)
        self.model: Any = None
        self._head: Any = None
        if world()[0] == 0:
            self.model = self._streamed() if how.streamed else self._whole()
            self._head = self.model.get_output_embeddings()

    def _whole(self) -> nn.Module:
        from transformers.utils import logging

        logging.disable_progress_bar()
        with without_adapter(self.checkpoint.path) as folder:
            load, weights = self._loader(folder)
            model, info = load(
                dtype=self.how.filling,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                output_loading_info=True,
                **weights,
            )
        if missing := sorted(info["missing_keys"]):
            raise FormatError(
                f"{self.checkpoint.path}: transformers draws {missing[:3]} at random: it does not find them"
            )
        narrowed({name: parameter.data for name, parameter in model.named_parameters()}, self.how.narrow)
        for parameter in model.parameters():  # not buffers: rope's angles stay in fp32
            parameter.data = parameter.data.to(self.how.dtype)
        found: nn.Module = model.eval().requires_grad_(False).to(self.how.device)
        return found

    def _loader(self, folder: Path | str) -> tuple[Any, dict[str, Any]]:
        """Return what loads the model, and where it finds the weights: in the folder, if it knows their names."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

        c, stored = self.checkpoint, hf.open_folder(self.checkpoint.path)
        tied = {c.family.embedding_key: c.family.head_key}
        found = [{name, name.removeprefix(c.family.base), tied.get(name, name)} for name in c.located]
        if all(names & stored.keys() for names in found):
            return AutoModelForCausalLM.from_pretrained, {"pretrained_model_name_or_path": folder}
        config = AutoConfig.from_pretrained(c.path, local_files_only=True, trust_remote_code=False)
        weights = {name: where.load() for name, where in c.located.items()}
        load = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained
        return load, {"pretrained_model_name_or_path": None, "config": config, "state_dict": weights}

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
        for place, name in zip(self.places, self.parts, strict=False):  # but the head, which runs by itself
            module = model.get_submodule(name)
            if self.how.skips(place):
                module.forward = self._hand_on
            else:
                bind(module, self.reader(name), self.how.weights)
        for name in self._positions:
            bind(model.get_submodule(name), self.reader(name), self.how.weights)
        return model.eval()

    def _hand_on(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """A layer that does nothing, in the form of the family's own."""
        return (hidden_states, None) if self.checkpoint.family.name == "falcon" else hidden_states

    @property
    def places(self) -> list[str]:
        """What all but the last of `parts` are called in `modules`."""
        return [EMBEDDING, *map(str, range(self.checkpoint.spec.num_layers)), FINAL_NORM]

    @property
    def _positions(self) -> list[str]:
        """The module of the learned positions, if there is one."""
        return [name for row in self.checkpoint.family.rows if row.kind == "positions" for name in row.modules]

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """What each tensor of the files is."""
        return {stored.key: stored for stored in self.checkpoint.stored}

    @property
    def parts(self) -> list[str]:
        """The modules that hold all weights, in the order of the forward pass: embedding, layers, final norm, head."""
        family = self.checkpoint.family
        layers = map(family.layer_module, range(self.checkpoint.spec.num_layers))
        embedding, norm, head = map(family.module, (family.embedding, family.final_norm, family.head))
        return [embedding, *layers, norm, head]

    def reader(self, module: str) -> Any:
        """What fills a module's parameters from the files."""
        family = self.checkpoint.family
        tied = self.checkpoint.spec.tied_embeddings and module == family.module(family.head)
        prefix = family.module(family.embedding) if tied else module

        def fill(parameters: dict[str, Tensor]) -> None:
            for name, tensor in parameters.items():
                tensor.copy_(self._read(f"{prefix}.{name}"))
            put({f"{prefix}.{name}": tensor for name, tensor in parameters.items()}, self.stored, self.how.repair)
            narrowed(parameters, self.how.narrow)
            mapped.forget()

        return fill

    def _read(self, name: str) -> Tensor:
        """A tensor of the files: by safetensors' own reader where it is one of its files."""
        where, base = self.checkpoint.located[name], self.checkpoint.family.base
        if where.path.suffix != ".safetensors":
            return where.load()
        with safe_open(where.path, framework="pt") as file:
            names = set(file.keys())
            here = next((one for one in (name, name.removeprefix(base)) if one in names), None)
            found: Tensor = where.load() if here is None else file.get_tensor(here)  # else under a wrapper's name
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
        found = dict(zip(self.places, map(self.model.get_submodule, self.parts[:-1]), strict=True))
        # Where positions are learned, what the layers are given is behind the (idle) dropout after both embeddings.
        return found | ({EMBEDDING: self.model.base_model.drop} if self._positions else {})

    def inner(self, layer: int, row: Row) -> list[tuple[nn.Module, Piece]]:
        pieces = spelled(row.hf, row.output, self.spec.sizes, layer=layer)
        return [(self.model.get_submodule(name), piece) for name, piece in pieces]

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

    def at(self, positions: Int[Tensor, "n"]) -> Float[Tensor, "b n v"]:
        with self.model.head() as head:
            found: Tensor = head(self.hidden[:, positions.to(self.hidden.device)])
        return found.float()

    def chunks(self) -> Iterator[Float[Tensor, "b c v"]]:
        with self.model.head() as head:
            for part in self.hidden.split(CHUNK, dim=1):
                yield head(part).float()
