"""Cross entropy over a vocabulary that is cut among ranks and padded."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from mconv.train.cross_entropy import CrossEntropy
from mconv.train.mcore import parallel_state


def true_vocab_loss(vocab_size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss for `GPTModel.compute_language_model_loss`: padded columns take no part in the softmax.

    megatron-core's own counts them in, so its loss moves with the padding, and with it with tp.
    """

    def loss(labels: Int[Tensor, "b s"], logits: Float[Tensor, "s b cut_vocab"]) -> Float[Tensor, "b s"]:
        length, batch, width = logits.shape
        first = width * parallel_state.get_tensor_model_parallel_rank()
        columns = min(max(vocab_size - first, 0), width)
        losses: Tensor = CrossEntropy.apply(logits.view(-1, width), labels.t().reshape(-1), first, columns)
        return losses.view(length, batch).t().contiguous()

    return loss
