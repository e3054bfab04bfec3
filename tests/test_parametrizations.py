"""Coordinate checks: how much preactivations and outputs change in a few steps, over the width."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainings import learned, quick_jit, training

from mtfl_jax.learning import drawing
from mtfl_jax.learning.optimizers import OPTIMIZERS
from mtfl_jax.learning.parametrizations import PARAMETRIZATIONS, STANDARD

WIDTHS, SEEDS = (64, 256, 1024), 6
SIZES = {"d": 8, "r": 2, "num_tasks": 1, "n2": 64, "steps": 3, "measure_at": "last", "tasks": "halfspace"}
RATES = {"sgd": 0.3, "adam": 0.03}


@functools.cache
def distinct():
    """Records without those that are another's by another name."""
    seen = {}
    for name, own in PARAMETRIZATIONS.items():
        seen.setdefault((own.heads, own.rates, own.unit_rates), name)
    return list(seen.values())


def test_mup_of_two_layers_is_the_mean_field():
    assert set(PARAMETRIZATIONS) - set(distinct()) == {"mup"}


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("name", distinct())
def test_coordinates_move_as_the_theory_says(name, optimizer):
    """Root mean squares over samples, neurons and seeds; their slope over widths to 0.15."""
    own = PARAMETRIZATIONS[name]
    expected = own.moves(unit=OPTIMIZERS[optimizer].unit)
    # Where outputs would grow with the width, all of them stay small beside the labels.
    lr = RATES[optimizer] * (1e-5 if expected.outputs > 0 else 1)
    how = {"algorithm": "joint", "samples": "fixed", "loss": "mse", "head_init": "random", "bias": "zero"}
    p, cell = training(
        padded={"width": max(WIDTHS)},
        **SIZES,
        **how,
        width=max(WIDTHS),
        parametrization=name,
        optimizer=optimizer,
        lr=lr,
        nuisance_scale=1.0,
        weight_decay=0.0,
    )
    cells = [cell.replace(width=np.int32(m), seed=np.int32(s)) for m in WIDTHS for s in range(SEEDS)]
    cells = [jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), one) for one in cells]
    x = np.random.default_rng(0).standard_normal((100, SIZES["d"]))

    def change(cell):
        start, end = drawing.draw_network(p, cell), jax.tree.map(lambda leaf: leaf[0], learned(p, cell))
        before, after = (jnp.asarray(x, params["W"].dtype) @ params["W"].T for params in (start, end))
        outputs = [jax.nn.relu(h) @ params["A"].T for h, params in ((before, start), (after, end))]
        return jnp.sum((after - before) ** 2) / cell.width, jnp.sum((outputs[1] - outputs[0]) ** 2)

    found = quick_jit(lambda cells: jax.lax.map(change, cells))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *cells))
    for squares, power in zip(found, expected, strict=True):
        size = np.sqrt(np.asarray(squares).reshape(len(WIDTHS), SEEDS).mean(axis=1))
        assert np.all(size > 0)
        assert np.polyfit(np.log(WIDTHS), np.log(size), 1)[0] == pytest.approx(power, abs=0.15)


def test_what_moves_in_theory():
    """Standard: outputs that grow; ntk: features that stay; the others: neither."""
    assert {name: (own.moves(unit=False), own.moves(unit=True)) for name, own in PARAMETRIZATIONS.items()} == {
        "standard": ((-0.5, 1), (0, 1)),
        "ntk": ((-0.5, 0), (-0.5, 0)),
        "mean_field": ((0, 0), (0, 0)),
        "mup": ((0, 0), (0, 0)),
    }
    assert PARAMETRIZATIONS[STANDARD].rates == PARAMETRIZATIONS[STANDARD].unit_rates == (0, 0)
