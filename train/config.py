"""Everything that `mconv train` can be told: one flat dataclass, read from YAML and flags."""

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mconv.errors import ConfigError, refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One finetuning run. Sizes are in tokens, samples or iterations, as each field says."""

    load: str
    """Where the weights come from: a Megatron checkpoint of any layout, or a Hugging Face folder."""
    data: list[str]
    """Prefixes of .bin/.idx files, as `mconv data tokenize` makes them."""
    save: str | None = None
    """Folder for checkpoints and the log; a run that finds its own checkpoint there goes on from it."""

    data_weights: list[float] | None = None
    """Share of each prefix in the blend, in any unit; by their sizes if not given."""
    split: str = "100,0,0"
    """Shares of the data for training, validation and test."""
    data_cache: str | None = None
    """Folder for the index files of the datasets; `data-cache` under `save`, or beside the first prefix."""

    tp: int = 1
    """Ranks that share each matrix (tensor parallel)."""
    pp: int = 1
    """Stages that share the layers (pipeline parallel)."""
    sequence_parallel: bool = False
    """Share the positions among the tensor-parallel ranks too, between the matrices."""
    nproc_per_node: int | None = None
    """Ranks to start on this machine; tp * pp if not given. More is data parallel. Not used under torchrun."""
    distributed_optimizer: bool = False
    """Share the optimizer's state among the data-parallel replicas."""

    micro_batch_size: int = 1
    """Samples that pass through the model together."""
    global_batch_size: int = 8
    """Samples in one optimizer step, over all micro batches and replicas."""
    seq_length: int | None = None
    """Tokens in one sample; the model's max_position_embeddings if not given."""
    train_iters: int
    """Optimizer steps of the whole run, resumed parts included."""

    lr: float
    """Highest learning rate."""
    min_lr: float = 0.0
    """Lowest learning rate, at the end of the decay."""
    lr_decay_style: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warmup."""
    lr_decay_iters: int | None = None
    """Iterations until `min_lr` is reached, warmup included; `train_iters` if not given."""
    lr_warmup_iters: int = 0
    """Iterations in which the learning rate rises from 0, in a line."""
    weight_decay: float = 0.01
    """Decoupled weight decay (AdamW) of matrices; norms and biases have none."""
    adam_beta1: float = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: float = 0.95
    """Decay of Adam's second moment."""
    adam_eps: float = 1e-8
    """Term in Adam's denominator."""
    clip_grad: float = 1.0
    """Largest gradient norm, over all parameters; 0 does not clip."""
    bf16: bool = False
    """Train in bfloat16 with fp32 main weights and gradients; in fp32 otherwise."""
    seed: int = 1234
    """Seed of the data order and of every random generator."""

    log_interval: int = 1
    """Iterations between printed lines; the log file has them all."""
    save_interval: int = 0
    """Iterations between checkpoints; 0 saves at the end only."""
    eval_interval: int = 0
    """Iterations between evaluations on the validation share of `split`; 0 never evaluates."""
    eval_iters: int = 10
    """Global batches in one evaluation."""
    tensorboard_dir: str | None = None
    """Folder for TensorBoard event files."""
    make_vocab_size_divisible_by: int = 128
    """The vocabulary is padded to a multiple of this times tp, unless the checkpoint is padded already."""
    vocab_size: int | None = None
    """The true vocabulary size, for checkpoints that do not know it."""
    verify_first: bool = False
    """Before anything is trained, judge `load` by what it was converted from; stop if they are not the same model."""
    verify_against: str | None = None
    """What `verify_first` judges `load` by, instead of its source: a checkpoint, or a repository in the cache."""
    exit_after: int | None = None
    """Save and stop after this iteration, as if the machine's time were up; the schedule is that of the whole run."""

    def __post_init__(self) -> None:
        bad = [f"{name} is {getattr(self, name)!r}; it must be {rule}" for name, rule in _broken(self)]
        if self.data_weights is not None and len(self.data_weights) != len(self.data):
            bad.append(f"data_weights has {len(self.data_weights)} weights for {len(self.data)} prefixes in data")
        if self.lr_warmup_iters >= (self.lr_decay_iters or self.train_iters) > 0:
            bad.append(f"lr_warmup_iters {self.lr_warmup_iters} must be less than lr_decay_iters, or train_iters")
        if (self.save_interval or self.exit_after) and self.save is None:
            bad.append("save_interval and exit_after need save, the folder for the checkpoints")
        if self.verify_against is not None and not self.verify_first:
            bad.append("verify_against is for verify_first; give that too")
        if self.eval_interval and not sum(_shares(self.split)[1:2]):
            bad.append(f"eval_interval is {self.eval_interval}, but split {self.split!r} has no share for validation")
        refuse(bad, doing="reading the training configuration", kind=ConfigError)


def _broken(config: TrainConfig) -> list[tuple[str, str]]:
    """Fields whose value alone is wrong, and what it must be."""
    positive = ("micro_batch_size", "global_batch_size", "train_iters", "log_interval", "eval_iters",
                "make_vocab_size_divisible_by", "tp", "pp")  # fmt: skip
    optional = ("seq_length", "lr_decay_iters", "nproc_per_node", "vocab_size", "exit_after")
    natural = ("lr_warmup_iters", "save_interval", "eval_interval", "weight_decay", "clip_grad", "min_lr", "adam_eps")
    rules = [(name, "at least 1", getattr(config, name) >= 1) for name in positive]
    rules += [(name, "at least 1", (getattr(config, name) or 1) >= 1) for name in optional]
    rules += [(name, "0 or more", getattr(config, name) >= 0) for name in natural]
    rules += [(name, "at least 0 and less than 1", 0 <= getattr(config, name) < 1)
              for name in ("adam_beta1", "adam_beta2")]  # fmt: skip
    rules += [
        ("lr", "more than 0 and at least min_lr", config.lr > 0 and config.lr >= config.min_lr),
        ("seed", "0 or more and less than 2**32", 0 <= config.seed < 1 << 32),
        ("data_weights", "positive numbers", all(0 < x < math.inf for x in config.data_weights or [])),
        *((n, "finite", math.isfinite(getattr(config, n))) for n in ("lr", "min_lr", "weight_decay", "clip_grad")),
        ("data", "at least one prefix", bool(config.data)),
        ("split", "three shares such as 98,1,1, the first above 0", len(_shares(config.split)) == 3
         and min(_shares(config.split)) >= 0 < _shares(config.split)[0]),
    ]  # fmt: skip
    return [(name, rule) for name, rule, holds in rules if not holds]


def _shares(split: str) -> list[float]:
    """The numbers of a split; three zeros if they are none."""
    try:
        shares = [float(share) for share in split.split(",")]
        return shares if all(math.isfinite(share) for share in shares) else [0.0, 0.0, 0.0]
    except ValueError:
        return [0.0, 0.0, 0.0]


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields that a YAML file sets. Raises ConfigError on a key that TrainConfig does not have, by name."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `field: value` lines, found a {type(values).__name__}")
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    bad = [f"{path}: unknown field {name!r}{_hint(str(name), known)}" for name in values if name not in known]
    refuse(bad, doing=f"reading {path}", kind=ConfigError)
    return values


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def make(values: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig from a mapping. Raises ConfigError on a missing field or a value of the wrong type, by name."""
    fields = dataclasses.fields(TrainConfig)
    required = [f.name for f in fields if f.default is dataclasses.MISSING]
    bad = [f"{name} is not set: {help_of()[name]}" for name in required if values.get(name) is None]
    values = {name: _plain(name, value) for name, value in values.items()}
    kinds = {f.name: f.type for f in fields}
    bad += [f"{name} is {value!r}; expected {_word(kinds[name])}" for name, value in values.items()
            if value is not None and not _is(value, kinds[name])]  # fmt: skip
    refuse(bad, doing="reading the training configuration", kind=ConfigError)
    return TrainConfig(**values)


def _plain(name: str, value: Any) -> Any:
    """YAML's liberties: one prefix for a list of one, 3e-4 read as text, 1 for 1.0."""
    if name in ("data", "data_weights") and value is not None and not isinstance(value, list):
        value = [value]
    kind = {f.name: f.type for f in dataclasses.fields(TrainConfig)}[name]
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return [float(x) if isinstance(x, int) else x for x in value] if name == "data_weights" and value else value


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type (the few kinds that TrainConfig has)."""
    word = _word(kind)
    if word.startswith("Literal"):
        return value in kind.__args__
    if word.startswith("list"):
        return isinstance(value, list) and all(isinstance(x, str if "str" in word else float) for x in value)
    plain = {"str": str, "int": int, "float": float, "bool": bool}[word.removesuffix(" | None")]
    return isinstance(value, plain) and (plain is bool or not isinstance(value, bool))


def _word(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind).replace("typing.", "")


@cache
def help_of() -> dict[str, str]:
    """What each field means: the string under it in this file, on one line."""
    body: list[Any] = ast.parse(inspect.getsource(TrainConfig)).body[0].body  # type: ignore[attr-defined]
    pairs: list[Any] = [(field, text) for field, text in itertools.pairwise(body) if isinstance(text, ast.Expr)]
    return {field.target.id: " ".join(text.value.value.split()) for field, text in pairs if hasattr(field, "target")}
