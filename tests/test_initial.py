"""How networks start: scales, heads, pairs; and that what is neutral changes no row, no identity and no program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import NONE_NEUTRAL
from mtfl_jax.learning import drawing, network
from mtfl_jax.learning.arithmetic import Arithmetic
from mtfl_jax.learning.initial import HEAD_INITS
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.sweeps.grid import Grid


def drawn(head_init, width, *, max_width=None, num_tasks=3, bias="random", seed=0, **more):
    """A network before any update, in arrays of `max_width` neurons."""
    d = 5
    p = {"d": d, "width": max_width or width, "num_tasks": num_tasks, "bias": bias}
    cell = {"seed": seed, "d": d, "width": width, "num_tasks": num_tasks}
    if bias == "random":
        cell["bias_scale"] = 1.0
    if head_init != "zero":
        p, cell = p | {"head_init": head_init}, cell | {"head_scale": 1.0}
    p |= {name: more.pop(name) for name in ("parametrization",) if name in more}
    return drawing.draw_network(Program(**p), Cell(**(cell | more)))


def test_the_first_layer_is_scaled():
    plain, scaled = drawn("zero", 6), drawn("zero", 6, init_scale=0.25)
    np.testing.assert_array_equal(scaled["W"], plain["W"] / 4)
    np.testing.assert_array_equal(scaled["b"], plain["b"])
    # Which heads there are has no part in the first layer.
    for name in ("W", "b"):
        np.testing.assert_array_equal(drawn("random", 6)[name], plain[name])


@pytest.mark.parametrize(
    ("parametrization", "power"), [("standard", -0.5), ("ntk", -0.5), ("mean_field", -1), ("mup", -1)]
)
def test_random_heads_are_normal_of_the_stated_deviation(parametrization, power):
    width, num_tasks = 256, 64
    A = np.asarray(
        drawn("random", width, num_tasks=num_tasks, head_scale=1.3, parametrization=parametrization)["A"], float
    )
    scaled = A / (1.3 * width**power)
    # Of 16384 draws: five standard errors of the mean, of the variance and of the fourth moment.
    error = 5 / np.sqrt(A.size)
    assert abs(scaled.mean()) < error
    assert abs((scaled**2).mean() - 1) < error * np.sqrt(2)
    assert abs((scaled**4).mean() - 3) < error * np.sqrt(96)


@pytest.mark.parametrize("head_init", HEAD_INITS)
def test_fewer_tasks_and_neurons_are_the_first_of_more(head_init):
    """And padded arrays hold nothing beyond them."""
    large = drawn(head_init, 8, num_tasks=4, head_scale=np.sqrt(8.0))
    for width in (6, 5):
        small = drawn(head_init, width, max_width=8, num_tasks=2, head_scale=np.sqrt(float(width)))
        paired = width - width % 2 if head_init == "symmetric" else width
        np.testing.assert_allclose(small["A"][:, :paired], large["A"][:2, :paired], rtol=1e-6)
        np.testing.assert_array_equal(small["W"][:width], large["W"][:width])
        np.testing.assert_array_equal(small["b"][:width], large["b"][:width])
        assert not any(np.any(leaf) for leaf in (small["A"][:, paired:], small["W"][width:], small["b"][width:]))


@pytest.mark.parametrize("width", [8, 37])
def test_pairs_cancel(width):
    """Outputs are zero to the bit though heads, weights and slopes are not."""
    params = drawn("symmetric", width, max_width=40)
    x = jax.random.normal(jax.random.key(0), (20, 5))
    for activation in ("relu", "tanh"):
        run = jax.jit(functools.partial(network.outputs, how=Arithmetic(activation=activation)))
        np.testing.assert_array_equal(run(params, x), 0)
    pairs = width // 2 * 2
    A, W, b = (np.asarray(params[name]) for name in ("A", "W", "b"))
    np.testing.assert_array_equal(A[:, 0:pairs:2], -A[:, 1:pairs:2])
    np.testing.assert_array_equal(W[0:pairs:2], W[1:pairs:2])
    np.testing.assert_array_equal(b[0:pairs:2], b[1:pairs:2])
    assert np.abs(A[:, :pairs]).min() > 0
    assert len(np.unique(W[0:width:2], axis=0)) == -(-width // 2)
    grads = jax.grad(lambda params: jnp.sum(network.outputs(params, x)))(params)
    assert np.abs(grads["W"][:pairs]).max(axis=1).min() > 0


NEUTRAL = {name: field.neutral for name, field in FIELDS.items() if field.neutral is not NONE_NEUTRAL}


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_is_neutral_is_no_part_of_a_row_but_in_its_column(name):
    """Of a cell in which another value bears."""
    others = [value for value in FIELDS[name].type.examples() if value != NEUTRAL[name]]
    base = {"algorithm": "joint", "loss": "mse", "weight_decay": 0.1, "tasks": "staircase", "probe": "none"}
    if name.startswith("down_"):
        base |= {"probe": "ridge", "probe_tasks": "staircase"}
    grid = Grid({**{key: [value] for key, value in base.items()}, name: [NEUTRAL[name], others[0]]}, compose.composed)
    plain, moved = grid.cell(0), grid.cell(1)
    assert name in moved.used
    assert name not in plain.used
    assert name not in plain.program()
    assert name not in plain.traced
    assert grid.ids[0] == Grid({key: [value] for key, value in base.items()}, compose.composed).ids[0] != grid.ids[1]
    assert grid.shown(name, np.arange(2)).all()
    # Where it cannot bear it is in no column.
    none = Grid({"algorithm": "oracle", name: [NEUTRAL[name], others[0]]}, compose.composed)
    assert none.shown(name, np.arange(len(none))).all() == (len(none) == 2)


def test_a_sweep_has_the_neutral_value_beside_others():
    sizes = {"d": 4, "r": 1, "width": 4, "num_tasks": 2, "n1": 8, "n2": 8, "probe": "none", "measure": "recovery"}
    table = mtfl_jax.sweep(**sizes, init_scale=[0.5, 1.0], algorithm="random_features")
    assert table["init_scale"].tolist() == [0.5, 1.0]
    assert table["parametrization"].isna().all()
    # A homogeneous first layer is the same at any scale.
    assert table["subspace_distance"].iloc[0] == pytest.approx(table["subspace_distance"].iloc[1], rel=1e-4)
    assert table["id"].nunique() == 2
