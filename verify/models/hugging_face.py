"""transformers' model of a Hugging Face folder, whole in memory or streamed from disk."""

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

from mconv.convert.checkpoint.model import Checkpoint
from mconv.convert.formats import hf, mapped
from mconv.convert.peft import folder as peft
from mconv.convert.spelling.spelled import spelled
from mconv.convert.spelling.table import Row, Stored
from mconv.errors import FormatError
from mconv.shard.cut import Piece
from mconv.train.megatron.parallel import world
from mconv.verify.compare import CHUNK
from mconv.verify.models.common import HiddenStateSampler, RunOptions, apply_repair, round_in_place, sampled
from mconv.verify.places import EMBEDDING, FINAL_NORM
from mconv.verify.weight_streaming import loaded, stream_weights


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

    def __init__(self, checkpoint: Checkpoint, options: RunOptions) -> None:
        self.checkpoint, self.options = checkpoint, options
        self.spec = replace(checkpoint.spec, **options.repair.spec)
        self.model: Any = None
        self._head: Any = None
        if world()[0] == 0:
            self.model = self._streamed() if options.streamed else self._whole()
            self._head = self.model.get_output_embeddings()

    def _whole(self) -> nn.Module:
        from transformers.utils import logging

        logging.disable_progress_bar()
        with without_adapter(self.checkpoint.path) as folder:
            load, weights = self._loader(folder)
            model, info = load(
                dtype=self.options.load_dtype,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                output_loading_info=True,
                **weights,
            )
        if missing := sorted(info["missing_keys"]):
            raise FormatError(
                f"{self.checkpoint.path}: transformers does not find {missing[:3]} and would draw them at random"
            )
        round_in_place({name: parameter.data for name, parameter in model.named_parameters()}, self.options.narrow)
        for parameter in model.parameters():  # not buffers: rope's angles stay in fp32
            parameter.data = parameter.data.to(self.options.dtype)
        found: nn.Module = model.eval().requires_grad_(False).to(self.options.device)
        return found

    def _loader(self, folder: Path | str) -> tuple[Any, dict[str, Any]]:
        """Return the function that loads the model, and its weights: those of the folder if it knows their names."""
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
        """Return a model on the meta device, each part of which reads its weights when it runs."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.checkpoint.path, local_files_only=True, trust_remote_code=False)
        if self.options.repair.spec:
            config = type(config).from_dict(self.checkpoint.family.write_config(self.spec))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=self.options.dtype, trust_remote_code=False, attn_implementation="sdpa"
            )
        for name, module in model.named_modules():
            if name.endswith("rotary_emb"):  # its angles follow from the config, and are in no file
                model.set_submodule(name, type(module)(config=model.config).to(self.options.device))
        for place, name in zip(self.places, self.parts, strict=False):  # but the head, which runs by itself
            module = model.get_submodule(name)
            if self.options.skips(place):
                module.forward = self._hand_on
            else:
                stream_weights(module, self.reader(name), self.options.weights)
        for name in self._positions:
            stream_weights(model.get_submodule(name), self.reader(name), self.options.weights)
        return model.eval()

    def _hand_on(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """Return the input in the form of the family's own layers."""
        return (hidden_states, None) if self.checkpoint.family.name == "falcon" else hidden_states

    @property
    def places(self) -> list[str]:
        """Names in `modules` of all `parts` but the last."""
        return [EMBEDDING, *map(str, range(self.checkpoint.spec.num_layers)), FINAL_NORM]

    @property
    def _positions(self) -> list[str]:
        """Modules of the learned positions, if there are any."""
        return [name for row in self.checkpoint.family.rows if row.kind == "positions" for name in row.modules]

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """Stored tensors by key."""
        return {stored.key: stored for stored in self.checkpoint.stored}

    @property
    def parts(self) -> list[str]:
        """Modules that hold all weights, in the order of the forward pass: embedding, layers, final norm, head."""
        family = self.checkpoint.family
        layers = map(family.layer_module, range(self.checkpoint.spec.num_layers))
        embedding, norm, head = map(family.module, (family.embedding, family.final_norm, family.head))
        return [embedding, *layers, norm, head]

    def reader(self, module: str) -> Any:
        """Return a function that fills a module's parameters from the files."""
        family = self.checkpoint.family
        tied = self.checkpoint.spec.tied_embeddings and module == family.module(family.head)
        prefix = family.module(family.embedding) if tied else module

        def fill(parameters: dict[str, Tensor]) -> None:
            for name, tensor in parameters.items():
                tensor.copy_(self._read(f"{prefix}.{name}"))
            apply_repair(
                {f"{prefix}.{name}": tensor for name, tensor in parameters.items()}, self.stored, self.options.repair
            )
            round_in_place(parameters, self.options.narrow)
            mapped.forget()

        return fill

    def _read(self, name: str) -> Tensor:
        """Return a tensor of the files, read by safetensors' own reader if it is in one of its files."""
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
        keep = HiddenStateSampler(sampled(tokens.shape[1]), itemsize=self.checkpoint.dtype.itemsize)
        with keep.hooked(self.modules()):
            hidden = self.forward(tokens, positions)
        return HuggingFaceScores(self, hidden, keep.kept)

    def modules(self) -> dict[str, nn.Module]:
        found = dict(zip(self.places, map(self.model.get_submodule, self.parts[:-1]), strict=True))
        # With learned positions, the layers' input is the output of the (idle) dropout after both embeddings.
        return found | ({EMBEDDING: self.model.base_model.drop} if self._positions else {})

    def modules_of_row(self, layer: int, row: Row) -> list[tuple[nn.Module, Piece]]:
        pieces = spelled(row.hf, row.output, self.spec.sizes, layer=layer)
        return [(self.model.get_submodule(name), piece) for name, piece in pieces]

    def forward(self, tokens: Int[Tensor, "b s"], positions: Int[Tensor, "b s"] | None = None) -> Float[Tensor, "b s d"]:
        """Return the hidden states behind the final norm."""
        device = self.options.device
        counted = torch.arange(tokens.shape[1]).expand_as(tokens) if positions is None else positions
        # The mask marks a row as one text: transformers takes a jump of positions for the start of another.
        hidden: Tensor = self.model.base_model(
            tokens.to(device),
            attention_mask=torch.ones_like(tokens, device=device),
            position_ids=counted.to(device),
            use_cache=False,
        ).last_hidden_state
        return hidden

    @contextlib.contextmanager
    def head(self) -> Iterator[nn.Module]:
        """Yield the output layer with its weights."""
        if not self.options.streamed:
            yield self._head
            return
        with loaded(self._head, self.reader("lm_head"), self.options.weights):
            yield self._head

    def release(self) -> None:
        """Keep only the head, for logits that are still to be computed."""
        self.model = None


@dataclass(slots=True)
class HuggingFaceScores:
    """The final hidden states, from which the head computes logits when they are asked for."""

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
