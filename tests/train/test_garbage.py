"""Python's garbage, collected on all ranks at the same steps."""

import gc
import weakref

import pytest

from mconv.train.loop import garbage

pytestmark = pytest.mark.once


class Cycle:
    """An object that refers to itself, which a collection alone removes."""

    def __init__(self):
        self.own = self


def test_garbage_waits_for_its_steps():
    """It goes at a multiple of the interval alone; afterwards Python collects by itself again."""
    with garbage.by_hand(4):
        assert not gc.isenabled()
        made = []
        for step in range(1, 9):
            made.append(weakref.ref(Cycle()))
            garbage.collect(step, every=4)
            assert sum(one() is not None for one in made) == step % 4
    assert gc.isenabled()
    with garbage.by_hand(0):
        assert gc.isenabled()
