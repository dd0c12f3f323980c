"""Cross entropy over a vocabulary that is cut among ranks and padded, and whether the likeliest token was right."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mconv.train.megatron.imports import parallel_state
from mconv.train.model.cross_entropy import CrossEntropy


@dataclass(slots=True)
class TrueVocabLoss:
    """A loss for `GPTModel.compute_language_model_loss`: padded columns take no part in the softmax.

    megatron-core's own counts them in, so its loss moves with the padding, and with it with tp.
    """

    vocab_size: int
    watching: bool = False
    """True to compare, at each call, the likeliest token with the label."""
    right: Tensor | None = None
    """Result of the last comparison, [b s], if watching."""

    def __call__(self, labels: Int[Tensor, "b s"], logits: Float[Tensor, "s b cut_vocab"]) -> Float[Tensor, "b s"]:
        """Return the loss of each label. Where it is differentiated, the gradient is written over `logits`."""
        length, batch, width = logits.shape
        first = width * parallel_state.get_tensor_model_parallel_rank()
        columns = min(max(self.vocab_size - first, 0), width)
        self.right = likeliest(logits, first, columns).t() == labels if self.watching else None
        losses: Tensor = CrossEntropy.apply(logits.view(-1, width), labels.t().reshape(-1), first, columns)
        return losses.view(length, batch).t().contiguous()


@torch.no_grad()
def likeliest(logits: Float[Tensor, "s b cut_vocab"], first: int, columns: int) -> Int[Tensor, "s b"]:
    """Return the token of the largest logit over all tensor-parallel ranks, the lowest id of several.

    As for the loss, `first` is the id of this rank's first column, and the `columns` before its padding are tokens.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    none = torch.full(logits.shape[:-1], float("-inf"), device=logits.device), torch.zeros_like(logits[..., 0]).long()
    largest, token = logits[..., :columns].max(-1) if columns else none
    largest = largest.float()
    most = largest.clone()
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX, group=group)
    token = torch.where(largest < most, torch.iinfo(token.dtype).max, token + first)
    torch.distributed.all_reduce(token, op=torch.distributed.ReduceOp.MIN, group=group)
    return token


def counts(right: Bool[Tensor, "b s"], mask: Float[Tensor, "b s"]) -> Float[Tensor, "4"]:
    """Return (right, all) of the tokens that the loss counts, then of those that it counts in full."""
    kinds = (mask > 0, mask >= 1)
    return torch.stack([number.sum().float() for kind in kinds for number in (right & kind, kind)])
