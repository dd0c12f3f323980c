"""The files that Megatron-Bridge keeps with a checkpoint's tensors, and the model that they describe.

    run_config.yaml      what the run was configured with: the only place of the architecture
    train_state.pt       how many steps and samples were trained (0: converted only)
    tokenizer/           the tokenizer's files

Source: Megatron-Bridge 0.3.1 and 0.6.2, `training/checkpointing.py` and `training/state.py`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mconv.convert.dialects import bridge
from mconv.convert.dialects.arguments import NONE_RECORDED
from mconv.convert.dialects.arguments.bridge import LAYOUT, STAGES
from mconv.convert.dialects.keys import BUILT_IN, PARALLEL, bias_spec
from mconv.convert.folders import sidecar, tokens
from mconv.convert.folders.staging import write_whole
from mconv.convert.formats import archive, numbers, pack
from mconv.convert.formats.dtype import INT32, INT64
from mconv.convert.formats.tensors import Located
from mconv.convert.spelling.claim import ARG, claim, written
from mconv.convert.spelling.keys import Config
from mconv.errors import ConfigError, FormatError
from mconv.shard.layout import Layout, padded_vocab
from mconv.spec import ModelSpec

RUN_CONFIG, TRAIN_STATE, LATEST, TOKENIZER = "run_config.yaml", "train_state.pt", "latest_train_state.pt", "tokenizer"
LIMIT = 4 << 20
"""Bytes of a run_config.yaml; a true one has some ten thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The model and the layout that a `run_config.yaml` describes."""

    spec: ModelSpec
    layout: Layout
    notes: tuple[str, ...]
    passed: Config
    """Keys that no row claims and that were let pass, with their values."""


def is_bridge(folder: Path) -> bool:
    return (folder / RUN_CONFIG).is_file()


def read(
    folder: Path,
    *,
    vocab_size: int | None = None,
    settled: ModelSpec | None = None,
    ignore: frozenset[str] = frozenset(),
    recorded: Mapping[str, Any] = NONE_RECORDED,
) -> RunConfig:
    """Return model and layout of one iteration's folder. `settled`: a Hugging Face config that completes the file.

    `ignore`, `recorded`: keys that no row claims and that may pass, as the user says and as a manifest records.
    Raises FormatError on a damaged file, ConfigError on a key that no row claims; both name the file.
    """
    path = folder / RUN_CONFIG
    config = _config(path)
    model = config["model"]
    try:
        family, sections = bridge.family_of(model), bridge.check_sections(config, ignore=ignore, recorded=recorded)
        fields, passed = bridge.read(model, ignore=ignore, recorded=recorded)
        vocab, layout = _vocabulary(model, given=vocab_size)
        window, notes = _window(folder, model, fields["sliding_window"], family, settled)
        fields |= {"sliding_window": window, "vocab_size": vocab}
        spec = ModelSpec(family=family, **fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return RunConfig(spec=_scaled(spec, settled), layout=layout, notes=(*notes, *_about_scaling(path, spec, settled)),
                     passed=sections | passed)  # fmt: skip


def _config(path: Path) -> Config:
    """Return the file's sections, of which `model` is one of names and values: plain values only."""
    if path.stat().st_size > LIMIT:
        raise FormatError(f"{path} has {path.stat().st_size} bytes; no run_config.yaml of Megatron-Bridge is that large")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise FormatError(f"{path}: not readable as plain YAML ({' '.join(str(error).split())[:160]})") from error
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not all(isinstance(name, str) for name in model):
        raise FormatError(f"{path} has no 'model' section of names and values; it is not one of Megatron-Bridge's")
    return config


def _vocabulary(model: Config, *, given: int | None) -> tuple[int, Layout]:
    """Return the true vocabulary, and the layout with the padded one: Bridge pads only where its config asks for it."""
    found = claim(LAYOUT, bridge.left_of(model), flag=ARG)
    size, multiple = found.pop("vocab_size"), found.pop("multiple")
    if size is None and given is None:
        raise ConfigError("model.vocab_size is null: give --vocab-size, the number of tokens of its tokenizer")
    if size is not None and given not in (None, size):
        raise ConfigError(f"model.vocab_size is {size}, not {given}")
    vocab, layout = int(given or 0) if size is None else size, Layout(**found, padded_vocab=0)
    padded = padded_vocab(vocab, tp=layout.tp, multiple=multiple) if model.get("should_pad_vocab") else vocab
    return vocab, dataclasses.replace(layout, padded_vocab=padded)


def _window(
    folder: Path, model: Config, window: int | None, family: str, settled: ModelSpec | None
) -> tuple[int | None, tuple[str, ...]]:
    """Return the sliding window, and a note where it had to be assumed.

    Bridge up to 0.3.1 wrote Hugging Face's w as [w, 0], with which megatron-core lets a query see w + 1 keys. A model
    that it only converted means w. One that it trained since has learnt with w + 1, and that is what it computes.
    """
    if window is None or family != "mistral" or bridge.OLD_MARK not in model:
        return window, ()
    if settled and settled.sliding_window in (window, window - 1):
        return settled.sliding_window, ()
    pair, trained = [window - 1, 0], steps(folder) > 0
    chosen = window if trained else window - 1
    why = (
        "trained with it, so that is what it computes"
        if trained
        else "only converted, so the window of its source is right"
    )
    return chosen, (
        f"{folder / RUN_CONFIG} says window_size {pair}: Megatron-Bridge up to 0.3.1 wrote this for a sliding_window "
        f"of {pair[0]}, and it sees one key more. The model was {why}: sliding_window {chosen}. --config FILE decides "
        "otherwise",
    )


def steps(folder: Path) -> int:
    """Return the steps that a Bridge checkpoint was trained: by its `train_state.pt`, else by the folder's number."""
    if (folder / TRAIN_STATE).is_file():
        state = archive.read(folder / TRAIN_STATE)
        step = state.get("step") if isinstance(state, dict) else None
        if not isinstance(step, Located) or math.prod(step.shape) != 1 or step.dtype not in (INT32, INT64):
            raise FormatError(f"{folder / TRAIN_STATE} holds no 'step'; it is not one of Megatron-Bridge's")
        return int(numbers.read(step, 1)[0])
    return int("0" + folder.name.removeprefix("iter_")) if folder.name.removeprefix("iter_").isdigit() else 0


def _scaled(spec: ModelSpec, settled: ModelSpec | None) -> ModelSpec:
    if settled is None or spec.rope.kind != "llama3":
        return spec
    exact = {name: getattr(settled.rope, name) for name in BUILT_IN}
    return dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, **exact))


def _about_scaling(path: Path, spec: ModelSpec, settled: ModelSpec | None) -> tuple[str, ...]:
    if settled or spec.rope.kind != "llama3":
        return ()
    return (
        f"{path} keeps only the factor of llama3 rope scaling ({spec.rope.factor:g}); low 1, high 4 and original length "
        "8192 are megatron-core's own, as in every Llama 3.1 and 3.2. --config FILE decides otherwise",
    )


def warnings(spec: ModelSpec, layout: Layout) -> list[str]:
    """Return warnings of what Megatron-Bridge would do wrong with a checkpoint of this layout."""
    if layout.padded_vocab == spec.vocab_size:
        return []
    ways = [f"a tp that divides {spec.vocab_size}"] if spec.vocab_size % layout.tp else []
    ways += ["no --make-vocab-size-divisible-by"] if layout.padded_vocab - spec.vocab_size >= layout.tp else []
    return [
        f"the vocabulary of {spec.vocab_size} is padded to {layout.padded_vocab} rows, and Megatron-Bridge exports all "
        f"of them to Hugging Face; take {' and '.join(ways)} (a torch_dist checkpoint can be loaded at any tp)"
    ]


# ---- writing ---------------------------------------------------------------------------------------------------------
def run_config(spec: ModelSpec, layout: Layout, *, dtype: str) -> str:
    """Return the `run_config.yaml` from which Bridge builds the model and loads a converted checkpoint."""
    model = bridge.write(spec) | written(PARALLEL, layout) | written(STAGES, layout.uneven)
    padded = layout.padded_vocab != spec.vocab_size
    fits = padded_vocab(spec.vocab_size, tp=layout.tp) == layout.padded_vocab
    plain = math.gcd(spec.vocab_size, 128)  # what Bridge writes beside a vocabulary that it does not pad
    half = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype)
    model |= {
        "vocab_size": spec.vocab_size, "should_pad_vocab": padded,
        "make_vocab_size_divisible_by": (128 if fits else layout.padded_vocab // layout.tp) if padded else plain,
        "params_dtype": bridge.name_of(f"torch.{dtype}"), "bf16": half == "bf16", "fp16": half == "fp16",
        "pipeline_dtype": bridge.name_of(f"torch.{dtype}") if layout.pp > 1 else None,
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "bias_activation_fusion": not bias_spec(spec).mlp_bias,
    }  # fmt: skip
    return yaml.safe_dump({
        "_target_": "megatron.bridge.training.config.ConfigContainer",
        "checkpoint": {
            "_target_": "megatron.bridge.training.config.CheckpointConfig", "ckpt_format": "torch_dist",
            "save_optim": False, "save_rng": False, "fully_parallel_save": True,
        },
        "model": model,
        "tokenizer": {
            "_target_": "megatron.bridge.training.tokenizers.config.TokenizerConfig",
            "tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": None,
        },
    })  # fmt: skip


def write_train_state(path: Path, *, step: int) -> None:
    """Write the state of a training run that has done `step` steps and nothing else, as Bridge requires it."""
    import torch

    counts = ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    values = {
        **{name: torch.tensor(step if name == "step" else 0, dtype=torch.int32) for name in counts},
        "floating_point_operations_so_far": torch.tensor(0.0),
        **{name: torch.tensor(False) for name in ("do_train", "do_valid", "do_test")},
    }
    pack.save(path, values)


def emit(folder: Path, spec: ModelSpec, layout: Layout, *, dtype: str, step: int, files: tokens.Files) -> None:
    """Write the files that Bridge needs with the tensors: its config, the state of a run, the tokenizer."""
    (folder / RUN_CONFIG).write_text(run_config(spec, layout, dtype=dtype), encoding="utf-8")
    write_train_state(folder / TRAIN_STATE, step=step)
    sidecar.copy({name: path for name, path in files.items() if tokens.is_tokenizer(name)}, folder / TOKENIZER)


def point(root: Path, folder: Path, *, link: bool) -> None:
    """Make a root of Bridge's name `folder`.

    Bridge reads `latest_train_state.pt`, and wants converted weights in `iter_0000000`. Megatron-LM reads its tracker and
    refuses iteration 0 there: for it the same folder is also called `release` (`link`).
    """
    write_whole(root / LATEST, (folder / TRAIN_STATE).read_bytes())
    if link:
        (root / "release").unlink(missing_ok=True)
        (root / "release").symlink_to(folder.name, target_is_directory=True)
