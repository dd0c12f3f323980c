"""Refuse models that megatron-core cannot compute, and sizes that ranks cannot share."""

from mconv.errors import ConfigError, LayoutError, refuse
from mconv.spec import ModelSpec
from mconv.train.megatron.parallel import Parallel


def check_known(spec: ModelSpec, *, what: str = "the model") -> None:
    """Refuse what megatron-core cannot compute at any layout. Raises ConfigError with the name of `what` it is."""
    if spec.position == "alibi":
        raise ConfigError(
            f"{what} has ALiBi positions, which megatron-core does not support: mconv can convert it, but not run it"
        )


def check(spec: ModelSpec, *, padded_vocab_size: int, parallel: Parallel) -> None:
    """Refuse, all at once, sizes that this layout cannot share. Raises LayoutError, or ConfigError as `check_known`."""
    check_known(spec)
    bad = problems(spec, padded_vocab_size=padded_vocab_size, parallel=parallel)
    refuse(bad, doing="sharing the model among ranks", kind=LayoutError)


def problems(spec: ModelSpec, *, padded_vocab_size: int, parallel: Parallel) -> list[str]:
    """Return a problem for each size that this layout cannot share."""
    tp, groups = parallel.tp, spec.num_query_groups
    sizes = {
        "num_attention_heads": spec.num_attention_heads,
        "ffn_hidden_size": spec.ffn_hidden_size,
        "padded_vocab_size": padded_vocab_size,
        # of interest where ranks share a query group: megatron-core cuts its rows wherever they fall
        "(num_attention_heads + 2 num_query_groups) x kv_channels": (spec.num_attention_heads + 2 * groups)
        * spec.kv_channels,
    }
    bad = [f"{name} {size} is not a multiple of tp {tp}" for name, size in sizes.items() if size % tp]
    if groups % tp and tp % groups:  # megatron-core lets ranks share a group, but not unevenly
        bad.append(f"num_query_groups {groups} neither divides tp {tp} nor is a multiple of it")
    if padded_vocab_size < spec.vocab_size:
        bad.append(f"padded_vocab_size {padded_vocab_size} is less than vocab_size {spec.vocab_size}")
    try:
        parallel.stages(spec.num_layers)
    except LayoutError as error:
        bad.append(str(error))
    return bad
