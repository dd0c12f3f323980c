"""Choose where a run begins: at weights, at its own last checkpoint, or at an earlier iteration."""

from dataclasses import dataclass
from pathlib import Path

from mconv.errors import ConfigError, FormatError
from mconv.train.checkpoints.folders import folder_of, iterations, latest, ours, point
from mconv.train.config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The checkpoint and iteration that a run is started from."""

    own: Path | None = None
    """The run's own checkpoint, from which it resumes; None for a new run."""
    saved: int | None = None
    """The iteration of `own`."""
    back: bool = False
    """True if the tracker names a later iteration than `own`."""
    iteration: int | None = None
    """The iteration to read of a Megatron root in `load`; None for the tracker's."""


def where(config: TrainConfig) -> Beginning:
    """Return where the run begins. Raises ConfigError where it would replace what another program has saved."""
    found = _where(config)
    later = [i for i in iterations(Path(config.save)) if i > (found.saved or 0)] if config.save else []
    if strange := [i for i in later if not ours(folder_of(Path(str(config.save)), i))]:
        raise ConfigError(
            f"{config.save} holds iteration {', '.join(map(str, strange))}, which mconv train did not write and this run "
            "might replace; give another --save"
        )
    return found


def confirm(config: TrainConfig, begun: Beginning) -> None:
    """Check that the run still begins where it has read, and set the tracker back if asked; the folder is locked by now.

    Raises ConfigError if another run has saved meanwhile.
    """
    if where(config) != begun:
        raise ConfigError(f"{config.save}: another run has saved there since this one was started; start it again")
    if begun.back and begun.saved is not None:
        point(Path(str(config.save)), begun.saved)


def _where(config: TrainConfig) -> Beginning:
    """Return the run's own last checkpoint if it has one, or the iteration asked for; else `load`.

    `iteration` is one of `save`, unless `save` is empty or `load` is another folder that has it: then it is where the run
    began, and the same command goes on from what it has saved since. Raises ConfigError where later checkpoints would
    be replaced.
    """
    root, asked = Path(config.save or ""), config.iteration
    have, named = (iterations(root), latest(root)) if config.save else ([], None)
    begun = asked is not None and config.load is not None and _begun_there(Path(config.load), root, asked)
    if asked is not None and have and not begun:
        return _back(root, have, named, asked, overwrite=config.overwrite)
    if named is not None:
        return Beginning(own=folder_of(root, named), saved=named, iteration=asked)
    if mine := [i for i in have if ours(folder_of(root, i))]:
        raise ConfigError(
            f"{root} holds iterations {', '.join(map(str, mine))}, but its tracker names none, and a new run "
            f"would replace them: resume from one (--iteration {mine[-1]}), or give another --save"
        )
    if asked is not None and config.load is None:
        raise FormatError(f"there is no iteration {asked}: {config.save or 'the run'} has no checkpoints yet")
    return Beginning(iteration=asked)


def _begun_there(load: Path, root: Path, asked: int) -> bool:
    return folder_of(load, asked).is_dir() and load.resolve() != root.resolve()


def _back(root: Path, have: list[int], named: int | None, asked: int, *, overwrite: bool) -> Beginning:
    """Go on from an iteration of `save`. Later ones stay until new ones take their places, and only if that is wanted."""
    if asked not in have:
        raise FormatError(f"{root} has no iteration {asked}; it has {', '.join(map(str, have))}")
    later = [iteration for iteration in have if iteration > asked]
    if later and not overwrite:
        raise ConfigError(
            f"{root} also holds iterations {', '.join(map(str, later))}, which a run from {asked} would replace: give it "
            f"a folder of its own (--load {root} --resume --iteration {asked} --save OTHER), or give --overwrite"
        )
    return Beginning(own=folder_of(root, asked), saved=asked, back=named != asked)
