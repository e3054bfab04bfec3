"""A row depends on its own settings and seed, on nothing else: whatever the grid, against the cells run alone."""

import contextlib
import random

import pytest

from differential import VARIANTS, Alone, Generator, StandIn, Truth, check_grid, exactly, pairs
from mtfl_jax.sweeps import engine

TRUTH = Truth()


@contextlib.contextmanager
def standing_in():
    """The engine with the stand-in for compiled programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "fitting", StandIn(TRUTH).fitting)
        patch.setattr(engine.threadpoolctl, "threadpool_limits", lambda *_: contextlib.nullcontext())
        yield


def campaign(first, count, alone, same, small=None):
    """`count` grids from number `first` on; pairs of settings come in turn."""
    every = pairs()
    cells = 0
    for i in range(first, first + count):
        generator = Generator(i, small)
        spec = generator.spec(every[i % len(every)])
        cells += len(check_grid(spec, alone, same, [generator.random.choice(VARIANTS)]))
    return cells


@pytest.mark.parametrize("shard", range(10))
def test_rows_are_those_of_the_cells_alone_in_every_grid(shard):
    with standing_in():
        assert campaign(300 * shard, 300, Alone(), exactly) > 600
