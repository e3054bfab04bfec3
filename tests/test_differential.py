"""A row depends on its own settings and seed, on nothing else: whatever the grid, against the cells run alone.

`pytest tests/test_differential.py -m "" --grids 3000` checks as many grids of real trainings too, in about an hour on
two cores; without it there are 800 of the stand-in and 80 real ones, most of them slow.
"""

import contextlib

import pytest
from differential import (
    GRIDS_OF_A_CELL,
    Alone,
    StandIn,
    Truth,
    check_grid,
    closely,
    exactly,
    planned_grid,
    real_grids,
)

from mtfl_jax.sweeps import engine, mappings

TRUTH = Truth()


@contextlib.contextmanager
def standing_in():
    """The engine with the stand-in for compiled programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "fitting", StandIn(TRUTH).fitting)
        patch.setattr(engine.threadpoolctl, "threadpool_limits", lambda *_: contextlib.nullcontext())
        yield


SHARD = 100
"""Grids of a shard of those that are stood in for."""


def campaign(grids, alone, same):
    """Check every grid; how many cells they have."""
    return sum(len(check_grid(spec, alone, same, [variant])) for spec, variant in grids)


def pytest_generate_tests(metafunc):
    """Shards of a campaign: the first are fast."""
    if "shard" not in metafunc.fixturenames:
        return
    stood_in = metafunc.function is test_rows_are_those_of_the_cells_alone_in_every_grid
    grids, size, fast = (
        (10 * metafunc.config.getoption("grids"), SHARD, 1)
        if stood_in
        else (metafunc.config.getoption("grids"), GRIDS_OF_A_CELL, 0)
    )
    shards = range(-(-grids // size))
    metafunc.parametrize("shard", [pytest.param(k, marks=[pytest.mark.slow] * (k >= fast)) for k in shards])


def test_rows_are_those_of_the_cells_alone_in_every_grid(shard):
    with standing_in():
        grids = map(planned_grid, range(SHARD * shard, SHARD * (shard + 1)))
        assert campaign(grids, Alone(told=True), exactly) > 2 * SHARD


def real_campaign(first, count):
    """Check grids of real trainings; how many cells they have."""
    cells, alone = 0, Alone()
    for spec, variant in real_grids(first, count):
        cells += len(check_grid(spec, alone, closely, [variant]))
        mappings.make_room()
    return cells


def test_rows_of_real_trainings_are_those_of_the_cells_alone():
    assert real_campaign(GRIDS_OF_A_CELL, 6) > 8


def test_rows_of_many_real_trainings_are_those_of_the_cells_alone(shard):
    assert real_campaign(GRIDS_OF_A_CELL * shard, GRIDS_OF_A_CELL) > GRIDS_OF_A_CELL
