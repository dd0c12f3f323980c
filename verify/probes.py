"""What to ask two models: token ids that can show a fault.

Rope faults are invisible at short distances, vocabulary faults at frequent ids: so sequences are long, and one of them
draws uniformly from the whole true vocabulary.
"""

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from mconv.errors import FormatError
from mconv.spec import ModelSpec

LENGTH = 2048
"""Positions probed unless told otherwise: enough for a dropped rope scaling to change one argmax in four."""
PAST_WINDOW = 64
"""Positions probed beyond a sliding window at least: one key too few of 4096 then moves logits by 2e-3 of their scale."""
TEXT = (
    "The quick brown fox jumps over the lazy dog. In 1897, 3.14159 was nearly made law; 2 + 2 = 4 all the same.\n"
    "def area(radius: float) -> float:\n    return 3.14159 * radius**2  # squared\n\n"
    "Der schnelle braune Fuchs springt. Le renard brun saute. El zorro salta. 狐狸跳过了懒狗。\n"
)


def length_for(*specs: ModelSpec, length: int | None) -> int:
    """How many positions to probe: as asked, else as far as the first goes but not beyond `LENGTH` and the windows."""
    windows = [spec.sliding_window + PAST_WINDOW for spec in specs if spec.sliding_window]
    return length or min(specs[0].max_position_embeddings, max(LENGTH, *windows, 0))


def random_ids(spec: ModelSpec, *, batch: int, length: int, seed: int) -> Int[Tensor, "b s"]:
    """Ids drawn uniformly from the true vocabulary, its two ends among them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(spec.vocab_size, (batch, length), generator=generator)
    ends = [0, spec.vocab_size - 1][:length]  # where a vocabulary that is off by one shows
    ids[0, : len(ends)] = torch.tensor(ends)
    return ids


def text_ids(tokenizer_folder: Path, spec: ModelSpec, *, length: int) -> Int[Tensor, "1 s"] | None:
    """Real text through the checkpoint's own tokenizer, repeated to `length`; None where there is no tokenizer."""
    names = ("tokenizer.json", "tokenizer.model")
    if not any((tokenizer_folder / name).is_file() for name in names):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True, trust_remote_code=False)
        ids = [i for i in tokenizer(TEXT)["input_ids"] if i < spec.vocab_size]
    except Exception as error:  # whatever is in those files, transformers raises what it likes
        raise FormatError(
            f"{tokenizer_folder}: its tokenizer does not load ({type(error).__name__}: {str(error)[:200]}); "
            "--batch 1 probes with random ids alone"
        ) from error
    return torch.tensor([(ids * (length // len(ids) + 1))[:length]]) if ids else None


def batch_of(spec: ModelSpec, *, tokenizer_folder: Path | None, batch: int, length: int, seed: int) -> Int[Tensor, "b s"]:
    """The probe: random ids in each row, but real text in the last of several where there is a tokenizer."""
    ids = random_ids(spec, batch=batch, length=length, seed=seed)
    text = text_ids(tokenizer_folder, spec, length=length) if tokenizer_folder and batch > 1 else None
    if text is not None:
        ids[-1:] = text
    return ids
