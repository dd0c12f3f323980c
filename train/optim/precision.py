"""Apply fp16's loss scale, which megatron-core leaves to the trainer."""

from collections.abc import Callable
from typing import Any


def scale_losses(chunks: list[Any], optimizer: Any, *, tokens: Callable[[], float]) -> None:
    """Let backward passes start from the scaled loss: fp16 needs it. `tokens`: those of a replica in the step at hand.

    What is scaled is the mean over these, as in Megatron-LM, although the losses of tokens are added up: gradients of a
    sum would overflow at thousands of times smaller scales. In the fp32 gradients the division is undone.
    """
    for chunk in chunks:
        settings = chunk.module.config
        settings.grad_scale_func = lambda loss: optimizer.scale_loss(loss) / tokens()
        settings.finalize_model_grads_func = _undone(settings.finalize_model_grads_func, tokens)


def _undone(finalize: Callable[..., None] | None, tokens: Callable[[], float]) -> Callable[..., None] | None:
    """Return `finalize`, followed by a scaling that restores gradients of the sum."""
    if finalize is None:  # the schedules ask the first chunk only
        return None

    def finalized(model: list[Any], *args: Any, **options: Any) -> None:
        finalize(model, *args, **options)
        for chunk in model:
            chunk.scale_gradients(tokens())

    return finalized
