"""Cross entropy over a vocabulary that is cut among ranks and padded."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from mconv.train.mcore import parallel_state, tensor_parallel


def true_vocab_loss(vocab_size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss for `GPTModel.compute_language_model_loss`: padded columns take no part in the softmax.

    megatron-core's own counts them in, so its loss moves with the padding, and with it with tp.
    """

    def loss(labels: Int[Tensor, "b s"], logits: Float[Tensor, "s b cut_vocab"]) -> Float[Tensor, "b s"]:
        width = logits.shape[-1]
        mine = vocab_size - width * parallel_state.get_tensor_model_parallel_rank()
        if mine < width:
            logits[..., max(mine, 0) :] = float("-inf") if mine > 0 else -1e30
        losses: Tensor = tensor_parallel.vocab_parallel_cross_entropy(logits, labels.transpose(0, 1).contiguous())
        return losses.transpose(0, 1).contiguous()

    return loss
