"""The engine: what compiles, and that a cell's row is its own."""

import numpy as np
import pandas as pd
import pytest
from jax import monitoring

import mtfl_jax
from mtfl_jax.config import from_keywords
from mtfl_jax.learning import data, keys
from mtfl_jax.sweep.engine import run_cells
from mtfl_jax.sweep.plan import plan

SMALL = {"d": 12, "r": 2, "width": 16, "n1": 128, "n2": 128, "n_down": 32, "n_test": 64}


@pytest.fixture
def compilations():
    """The number of programs compiled so far, by JAX's own account."""
    counts = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counts.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    yield lambda: len(counts)
    monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("algorithm", ["one_step", "alternating", "joint"])
def test_other_knobs_compile_nothing(compilations, algorithm):
    fixed = {**SMALL, "algorithm": algorithm, "steps": 3, "label_noise": 0.1, "bias": "random", "tasks": "parity"}
    mtfl_jax.run(**fixed)
    before = compilations()
    assert before > 0
    knobs = {"lr_a": 0.3, "lr_w": 0.2, "lr": 0.004, "weight_decay": 0.01, "nuisance_scale": 0.5, "bias_scale": 0.7}
    knobs |= {"label_noise": 0.2, "parity_size": 1, "probe_parity_size": 1, "momentum": 0.5, "seed": 11}
    mtfl_jax.run(**{**fixed, **knobs})
    assert compilations() == before
    mtfl_jax.run(**{**fixed, "width": 8})
    assert compilations() > before


def assert_same_rows(one, other, rtol=1e-4):
    """Equal settings; continuous measurements to 1e-4, the design's bound for rounding in one step; errors that
    count samples to a few of them.
    """
    pd.testing.assert_index_equal(one.columns, other.columns)
    for name in one.columns:
        if name in ("task_error", "downstream_error"):
            np.testing.assert_allclose(one[name].astype(float), other[name].astype(float), atol=3 / 64)
        elif name == "feature_similarity":
            np.testing.assert_allclose(np.stack(one[name]), np.stack(other[name]), rtol=rtol, atol=rtol)
        elif one[name].dtype == float:
            np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=1e-7)
        else:
            pd.testing.assert_series_equal(one[name], other[name])


@pytest.mark.parametrize(
    "values",
    [
        {"algorithm": "one_step", "data": "rademacher", "tasks": "balanced"},
        {"algorithm": "alternating", "steps": 4, "tasks": "majority", "label_noise": 0.1},
        {"algorithm": "joint", "steps": 4, "tasks": "uniform", "shared_inputs": False},
        {"algorithm": "random_features"},
    ],
)
def test_a_row_does_not_depend_on_the_grid(values):
    """Masked num_tasks, neighbours, order and chunks leave a cell's row as it is alone."""
    cells = [from_keywords(**SMALL, **values, num_tasks=t, seed=s) for t in (1, 3, 8) for s in (0, 5, 6)]
    assert len(plan(cells)) == 1
    together = run_cells(cells)
    reversed_ = run_cells(cells[::-1])
    rows = len(together) // len(cells)
    back = pd.concat([reversed_[i * rows : (i + 1) * rows] for i in range(len(cells))[::-1]], ignore_index=True)
    assert_same_rows(together, back)
    for i in (0, 8):
        alone = run_cells([cells[i]])
        assert_same_rows(together[i * rows : (i + 1) * rows].reset_index(drop=True), alone)


def test_the_same_seed_gives_the_same_row_and_another_does_not():
    first, again, other = (mtfl_jax.run(**SMALL, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert first["feature_energy"].iloc[0] != other["feature_energy"].iloc[0]


def test_draws_are_those_of_schema_1():
    """Fixed numbers of seed 0: if they change, keys.SCHEMA must."""
    assert keys.SCHEMA == 1
    key = keys.named(keys.root(0), "test")
    x = np.asarray(data.inputs(key, "gaussian", 2, 2, r=1))
    # To the rounding of the normal's inverse error function.
    np.testing.assert_allclose(x, [[-1.4429985, -1.6957562], [-0.39497307, -0.43691623]], rtol=1e-6)
