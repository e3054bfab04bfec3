"""A row depends on its own settings and seed, on nothing else: whatever the grid, against the cells run alone."""

import contextlib

import pytest
from differential import Alone, StandIn, Truth, check_grid, exactly, planned_grid

from mtfl_jax.sweeps import engine

TRUTH = Truth()


@contextlib.contextmanager
def standing_in():
    """The engine with the stand-in for compiled programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "fitting", StandIn(TRUTH).fitting)
        patch.setattr(engine.threadpoolctl, "threadpool_limits", lambda *_: contextlib.nullcontext())
        yield


def campaign(grids, alone, same):
    """Check every grid; how many cells they have."""
    return sum(len(check_grid(spec, alone, same, [variant])) for spec, variant in grids)


SHARDS = [pytest.param(shard, marks=pytest.mark.slow) if shard >= 4 else shard for shard in range(10)]


@pytest.mark.parametrize("shard", SHARDS)
def test_rows_are_those_of_the_cells_alone_in_every_grid(shard):
    with standing_in():
        assert campaign(map(planned_grid, range(300 * shard, 300 * (shard + 1))), Alone(told=True), exactly) > 600
