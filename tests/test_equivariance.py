"""Training commutes with rotations of the inputs, or is made to: all in float64.

A rotated run has inputs x Qᵀ and weights W Qᵀ; its weights W′ turned back are W′ Q. Both runs differ by rounding alone
where an update is equivariant: of order 1e-16 a step on weights of unit size, which a few steps of a smooth loss
amplify by far less than the 1e4 that CLOSE leaves. An update that is not equivariant differs by a good part of its own
size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtfl_jax.learning import data, keys, optimizers, updates
from mtfl_jax.learning.optimizers import OPTIMIZERS
from mtfl_jax.learning.updates import Batch

CLOSE = {"rtol": 0, "atol": 1e-12}
D, WIDTH, TASKS, N = 6, 5, 3, 40
# radam takes plain momentum steps for its first five, and those are equivariant.
STEPS = 8
EQUIVARIANT = ("sgd", "momentum", "nesterov")

# A dozen optimisers compile twice as fast at this level and are as exact.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def problem():
    """Parameters, Q, and samples of every step: x (STEPS, T, n, d), of which shared inputs take the first task's."""
    rng = np.random.default_rng(0)
    params = {
        "W": rng.standard_normal((WIDTH, D)) / np.sqrt(D),
        "b": rng.uniform(-1, 1, WIDTH),
        "A": rng.standard_normal((TASKS, WIDTH)) / np.sqrt(WIDTH),
    }
    x = rng.standard_normal((STEPS, TASKS, N, D))
    # Labels of shared inputs follow the first coordinate, but each task flips a quarter of them.
    y = np.sign(x[:, 0, :, :1]) * np.where(rng.random((STEPS, N, TASKS)) < 0.25, -1.0, 1.0)
    with jax.enable_x64(True):
        Q = np.asarray(data.rotation(keys.root(1), D, D))
    return params, Q, x, y


def test_the_rotation_is_a_proper_test():
    """Orthogonal in float64 and far from any permutation of the axes, with which every optimiser here commutes."""
    Q = problem()[1]
    np.testing.assert_allclose(Q @ Q.T, np.eye(D), rtol=0, atol=1e-14)
    assert np.abs(Q).max() < 0.95


def turned(params, Q):
    """W Qᵀ, the other leaves as they are."""
    return params | {"W": params["W"] @ Q.T}


def difference(run, Q):
    """The largest entry by which the rotated run, turned back, differs from the run; and that of the run's updates."""
    params = problem()[0]
    plain = run(params, np.eye(D))
    back = turned(run(turned(params, Q), Q), Q.T)
    for name, leaf in plain.items():
        assert np.all(np.isfinite(leaf))
        assert leaf.dtype == np.float64, name
    assert np.abs(plain["W"] - params["W"]).max() > 1e-2
    return max(np.abs(back[name] - leaf).max() for name, leaf in plain.items())


def batches(Q, shared):
    """Samples of every step with inputs x Qᵀ, stacked."""
    _, _, x, y = problem()
    x = (x[:, 0] if shared else x) @ Q.T
    return Batch(jnp.asarray(x), jnp.asarray(y), jnp.full(STEPS, N), jnp.full(STEPS, TASKS))


def at(stacked, i):
    return jax.tree.map(lambda leaf: leaf[i], stacked)


@functools.partial(jax.jit, static_argnames="names")
def one_step(params, stacked, names, shrink):
    start = params | {"A": jnp.zeros_like(params["A"])}
    return updates.one_step(start, at(stacked, 0), at(stacked, 1), names, lr_a=0.7, lr_w=1.3, shrink=shrink)


@pytest.mark.parametrize(("names", "shared"), [(("linear",), True), (("logistic", "squared"), False)])
@pytest.mark.parametrize("shrink", [1.0, 0.1])
def test_one_step(names, shared, shrink):
    Q = problem()[1]
    assert difference(lambda params, Q: one_step(params, batches(Q, shared), names, shrink), Q) < CLOSE["atol"]


@functools.partial(jax.jit, static_argnames="names")
def alternate(params, stacked, names):
    def update(params, batch):
        rates = {"lr_a": 0.5, "lr_w": 0.4, "shrink": 0.05, "head_steps": 2, "train_bias": True}
        return updates.alternating_round(params, batch, batch, names, **rates), None

    return jax.lax.scan(update, params, stacked)[0]


@pytest.mark.parametrize(("names", "shared"), [(("logistic",), True), (("squared", "exponential"), False)])
def test_alternating(names, shared):
    Q = problem()[1]
    assert difference(lambda params, Q: alternate(params, batches(Q, shared), names), Q) < CLOSE["atol"]


def jointly(params, stacked, name, rotation, train_bias=True):
    """STEPS updates of W, b and A by the named optimiser, with weight decay and momentum."""
    rates = {"schedule": "cosine", "steps": 2 * STEPS, "momentum": 0.8, "weight_decay": 0.05, "train_bias": train_bias}
    rule = optimizers.optimizer(name, 0.1, **rates, rotation=rotation)

    def update(state, batch):
        return updates.joint_update(*state, batch, ("logistic",), rule), None

    params = jax.tree.map(jnp.asarray, params)
    return jax.lax.scan(update, (params, rule.init(params)), stacked)[0][0]


def joint_runs(name):
    """By kind: a plain run, a plain run on rotated inputs turned back, and a run whose optimiser works in Q's basis."""
    params, Q, _, _ = problem()
    plain = compiled(lambda params, stacked: jointly(params, stacked, name, None))
    inside = compiled(lambda params, stacked, q: jointly(params, stacked, name, q))
    runs = {
        "axis": plain(params, batches(np.eye(D), True)),
        "rotated": turned(plain(turned(params, Q), batches(Q, True)), Q.T),
        "own basis": inside(params, batches(np.eye(D), True), jnp.asarray(Q)),
        "identity": inside(params, batches(np.eye(D), True), jnp.eye(D)),
    }
    for run in runs.values():
        assert all(np.all(np.isfinite(leaf)) for leaf in run.values())
        assert np.abs(run["W"] - params["W"]).max() > 1e-2
        assert np.abs(run["A"] - params["A"]).max() > 1e-2
        assert np.abs(run["b"] - params["b"]).max() > 1e-2
    return runs


def gap(one, other):
    return max(np.abs(np.asarray(one[name]) - np.asarray(other[name])).max() for name in one)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_and_rotations(name):
    """The flag says whether an optimiser commutes with rotations; wrong either way fails. With Q given, axis
    coordinates give what a plain run gives on x Qᵀ and W Qᵀ, turned back.

    Coordinate-wise rules divide by √v + ε, which amplifies rounding by at most 1/ε = 1e8 where a gradient vanishes; the
    gradients here do not, and agree as closely as gradient descent's.
    """
    runs = joint_runs(name)
    equivariant = gap(runs["axis"], runs["rotated"]) < CLOSE["atol"]
    assert OPTIMIZERS[name].equivariant == equivariant == (name in EQUIVARIANT)
    assert gap(runs["own basis"], runs["rotated"]) < CLOSE["atol"]
    assert gap(runs["identity"], runs["axis"]) < CLOSE["atol"]
    if not equivariant:
        assert gap(runs["axis"], runs["rotated"]) > 1e-3
        assert gap(runs["own basis"], runs["axis"]) > 1e-3


def test_a_fixed_bias_stays_in_any_basis():
    params, Q, _, _ = problem()
    run = jax.jit(lambda: jointly(params, batches(np.eye(D), True), "adam", jnp.asarray(Q), train_bias=False))()
    assert np.array_equal(run["b"], params["b"])
    assert np.abs(run["W"] - params["W"]).max() > 1e-2
