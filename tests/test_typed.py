"""That annotations are checked in these tests at all: where axes are named, where none are, and on ranks."""

import pytest
import torch
import typed
from jaxtyping import TypeCheckError

pytestmark = pytest.mark.once


def test_annotations_are_checked():
    from mconv.shard import axes
    from mconv.shard.layout import Layout

    with pytest.raises(TypeCheckError, match="pattern"):
        axes.parse(3)
    with pytest.raises(TypeCheckError, match="tp"):
        Layout(tp="2")


def test_axes_of_one_name_are_of_one_size():
    import mconv.train.megatron.imports  # noqa: F401 (first: it imports megatron-core quietly)
    from mconv.train.model import cross_entropy
    from mconv.verify import generate

    typed.calls.clear()  # tests before this one may have called them often enough
    with pytest.raises(TypeCheckError, match="labels"):
        cross_entropy._rows(torch.zeros(4, 8), torch.zeros(3, dtype=torch.long), 8, gradient=False)
    with pytest.raises(TypeCheckError, match="scores"):
        generate.Generated(
            tokens=torch.zeros(2, 5, dtype=torch.long), scores=torch.zeros(3, 5, 8), prompt=2, from_text=False
        )
