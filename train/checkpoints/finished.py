"""Recognise a run that has no step left, before anything is built or loaded for it."""

from dataclasses import dataclass
from pathlib import Path

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.formats import torch_dist
from mconv.convert.peft import lora
from mconv.errors import MconvError
from mconv.train.checkpoints.begin import where
from mconv.train.config import TrainConfig
from mconv.train.config.length import run_length
from mconv.train.model import adapter, architecture

MORE = "to continue: raise --train-iters (or --train-samples)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that has reached its last iteration."""

    folder: Path
    """Its last checkpoint."""
    iteration: int
    of: int
    """Iterations of the whole run."""
    exit_after: int | None
    """The iteration at which the configuration stops the run early, where that is why it has no step left."""

    def lines(self) -> list[str]:
        """Return what the run has reached, and how to go on."""
        root = self.folder.parent
        if self.iteration > self.of:
            return [
                f"{root} is already at iteration {self.iteration}, and the run is to end at {self.of}: nothing to train",
                MORE,
            ]
        reached = f"{root} is already at iteration {self.iteration} of {self.of}: nothing to train"
        if self.iteration < self.of:
            return [
                f"{reached} before --exit-after {self.exit_after}",
                "to continue: raise --exit-after, or leave it out",
            ]
        return [reached, MORE]


def finished(config: TrainConfig) -> Finished | None:
    """Return where the run in `save` ended; None if it has steps left, or if its start must refuse the configuration.

    Reads the folder of `save`, and of `load` what kind of model it is; no weights and no data.
    """
    if config.save is None or config.eval_only:
        return None
    begun, steps = where(config), run_length(config).iterations
    last = min(steps, config.exit_after or steps)
    if begun.own is None or begun.saved is None or begun.back or begun.saved < last or not _same(config, begun.own):
        return None
    return Finished(folder=begun.own, iteration=begun.saved, of=steps, exit_after=config.exit_after)


def _same(config: TrainConfig, own: Path) -> bool:
    """Return whether the checkpoint is of the kind of model that the configuration trains. The start says what is not."""
    try:
        if (lora.of_args(torch_dist.open_folder(own)[1]) is not None) != adapter.wanted(config):
            return False
        load = Path(config.load) if config.load else None
        if adapter.wanted(config) or (load and (not load.is_dir() or load.resolve() == own.parent.resolve())):
            return True
        opened = open_checkpoint(own, vocab_size=config.vocab_size, ignore=architecture.passes(config))
        return architecture.origin(config).spec == opened.spec
    except MconvError:
        return False
