"""Pipeline stages of different numbers of layers, as a configuration asks for them."""

from mconv.convert.dialects.mcore import UNEVEN
from mconv.shard.stages import Uneven
from mconv.train.config.parallelism import Parallelism


def uneven_of(config: Parallelism) -> Uneven:
    """Return what makes the stages of a configuration hold different numbers of layers."""
    return Uneven(**{field: getattr(config, name) for field, (name, _) in UNEVEN.items()})
