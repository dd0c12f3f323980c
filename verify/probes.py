"""Probes: the token ids and positions that both models run on, chosen so that faults show.

Faults of rope do not show at short distances, faults of the vocabulary not at frequent ids. So rows are drawn uniformly
from the whole true vocabulary, and if a row of all the model's positions would cost too much, one row jumps to the last.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from mconv.errors import FormatError, MconvError
from mconv.spec import ModelSpec

LENGTH = 1024
"""Default number of positions in a row."""
WORK = 1.6e13
"""Multiply-adds that a probe of default length may cost: about six minutes on two cores."""
SHORTEST = 512
"""Number of positions that a row has at least, whatever it costs."""
PROMPT = 16
"""Positions reserved for a prompt where a model has only so many."""
PAST_WINDOW = 64
"""Positions beyond a sliding window at least: one key too few of 4096 then moves logits by 2e-3 of their scale."""
TEXT = (
    "The quick brown fox jumps over the lazy dog. In 1897, 3.14159 was nearly made law; 2 + 2 = 4 all the same.\n"
    "def area(radius: float) -> float:\n    return 3.14159 * radius**2  # squared\n\n"
    "Der schnelle braune Fuchs springt. Le renard brun saute. El zorro salta. 狐狸跳过了懒狗。\n"
)
PASSAGE = (
    "A lighthouse keeper on the northern coast wrote down the weather every evening for forty years. She noted the "
    "wind, the height of the waves and the ships that passed, and now and then a sentence about the birds that rested "
    "on the rail. Nobody had asked her to do it. When the light was made automatic, the books were sent to a small "
    "museum, where they lay in a cupboard until a student of oceanography opened them. She found that the keeper had "
    "described three storms which no instrument had recorded, and that the dates agreed with damage reported by "
    "villages further south.\n\n"
    "The student spent a winter copying the entries into a table. It was slow work, because the ink had faded and the "
    "names of the winds were local ones, but by spring she could show that the strongest storms had become more "
    "frequent. Her teachers were careful: one observer, they said, is not a network of stations. So she looked for "
    "other books, and found them in harbours, in churches and in the attic of a retired postman. Most were "
    "incomplete; together they told the same story. What had begun as a habit of one lonely person turned into the "
    "longest record of its kind.\n\n"
)
"""Prose, so that the loss of text means something: a trained model reads it at two to four nats."""
PROMPTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time", "1, 2, 3, 4,")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One batch for both models."""

    tokens: Int[Tensor, "b s"]
    positions: Int[Tensor, "b s"]
    """Position of each token: 0, 1, 2, ..., except in the row that jumps ahead."""
    rows: tuple[str, ...]
    """Description of each row."""
    text: int = 0
    """Tokens of real text in the last row before they repeat; 0 if the row is random ids."""

    @property
    def counted(self) -> tuple[int, ...]:
        """Number of positions of each row that its loss is taken over: all of them, without the repeats of a text."""
        length = self.tokens.shape[1]
        return (*[length] * (len(self.rows) - 1), self.text or length)

    @property
    def reach(self) -> int:
        """Number of positions reached: the last position plus one."""
        return int(self.positions.max()) + 1


def positions_of(*specs: ModelSpec) -> int:
    """Return the number of positions to probe: the first model's, or fewer where positions are learned vectors."""
    learned = [spec.max_position_embeddings for spec in specs if spec.position == "learned"]
    return min(specs[0].max_position_embeddings, *learned) if learned else specs[0].max_position_embeddings


def check_room(*specs: ModelSpec, length: int | None, new_tokens: int) -> None:
    """Refuse more positions than a model with learned positions has. Raises MconvError."""
    if not any(spec.position == "learned" for spec in specs):
        return
    most = positions_of(*specs)
    if (length or 0) > most:
        raise MconvError(f"--length {length}: the model has learned {most} positions and has none beyond; give fewer")
    if new_tokens > most - PROMPT:
        raise MconvError(
            f"--generate {new_tokens}: the model has learned {most} positions and has none beyond; "
            f"give at most {max(0, most - PROMPT)}, which leaves room for a prompt"
        )


def length_for(*specs: ModelSpec, length: int | None, parameters: int = 0, batch: int = 1) -> int:
    """Return the number of positions of a row: as asked, else as many as the models have, up to a limit of cost.

    The limit is `LENGTH`, or less if a model of so many `parameters` would need more than `WORK`, but a row always
    reaches beyond all windows.
    """
    most = min(LENGTH, max(SHORTEST, int(WORK / max(1, parameters * batch)) // 64 * 64))
    windows = [spec.sliding_window + PAST_WINDOW for spec in specs if spec.sliding_window]
    return length or min(positions_of(*specs), max(most, *windows, 0))


def random_ids(spec: ModelSpec, *, length: int, seed: int) -> Int[Tensor, "s"]:
    """Return ids drawn uniformly from the true vocabulary, its first and last id included."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(spec.vocab_size, (length,), generator=generator)
    ends = [0, spec.vocab_size - 1][:length]  # where a vocabulary that is off by one shows
    ids[: len(ends)] = torch.tensor(ends)
    return ids


def encode(tokenizer_folder: Path, spec: ModelSpec, texts: tuple[str, ...]) -> list[list[int]] | None:
    """Return texts through the checkpoint's tokenizer; None if there is none or it has no id for one of them."""
    names = ("tokenizer.json", "tokenizer.model")
    if not any((tokenizer_folder / name).is_file() for name in names):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True, trust_remote_code=False)
        found = [[i for i in tokenizer(text)["input_ids"] if i < spec.vocab_size] for text in texts]
    except Exception as error:  # whatever is in those files, transformers raises what it likes
        raise FormatError(
            f"{tokenizer_folder}: its tokenizer does not load ({type(error).__name__}: {str(error)[:200]}); "
            "--batch 1 probes with random ids only"
        ) from error
    return found if all(found) else None


def text_ids(tokenizer_folder: Path, spec: ModelSpec, *, length: int) -> tuple[Int[Tensor, "s"], int] | None:
    """Return real text through the checkpoint's tokenizer, repeated to `length`, and the length of its first pass.

    Returns None without a tokenizer.
    """
    found = encode(tokenizer_folder, spec, (PASSAGE + TEXT,))
    if not found:
        return None
    ids = found[0]
    return torch.tensor((ids * (length // len(ids) + 1))[:length]), min(length, len(ids))


def leaping(length: int, *, reach: int, seed: int) -> Int[Tensor, "s"]:
    """Return `length` rising positions: a quarter of them consecutive, the others spread up to position `reach` - 1.

    Rope sees only distances, so a few tokens far apart show what a row of all positions would.
    """
    counted = length // 4
    generator = torch.Generator().manual_seed(seed)
    # One position in each of as many equal stretches: a permutation could be one of millions of positions.
    edges = torch.linspace(counted, reach - 1, length - counted + 1).long()
    at = edges[:-1] + (torch.rand(length - counted, generator=generator) * edges.diff()).long()
    at[-1] = reach - 1
    return torch.cat([torch.arange(counted), at])


def probe(spec: ModelSpec, *, tokenizer_folder: Path | None, batch: int, length: int, seed: int) -> Probe:
    """Return the batch: random ids, each row with its own seed; real text in the last of several, given a tokenizer.

    If `length` is less than the model's positions, the last row but one (the last of two) jumps to the last position.
    """
    rows = [random_ids(spec, length=length, seed=seed + row) for row in range(batch)]
    names = [f"random ids, seed {seed + row}" for row in range(batch)]
    found = text_ids(tokenizer_folder, spec, length=length) if tokenizer_folder and batch > 1 else None
    if found is not None:
        rows[-1], names[-1] = found[0], "text"
    positions = [torch.arange(length)] * batch
    reach = spec.max_position_embeddings
    if reach > length >= 8 and batch > 1 and spec.position != "alibi":
        row = max(1, batch - 2)
        positions[row] = leaping(length, reach=reach, seed=seed)
        names[row] += f", positions up to {reach - 1}"
    text = found[1] if found and names[-1] == "text" else 0  # of two rows, the text's own may jump
    return Probe(tokens=torch.stack(rows), positions=torch.stack(positions), rows=tuple(names), text=text)
