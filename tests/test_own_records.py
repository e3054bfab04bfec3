"""An activation, a loss and a law of the user's own, the latter with knobs, against the reference in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from trainings import (
    CLOSE,
    VALUES,
    assert_measurements,
    assert_networks,
    assert_ridge_probe,
    draw_network,
    draw_points,
    draw_sample,
    draw_tasks,
    float64,
    learn,
    measured,
    networks,
    tables_of,
    training,
    whole,
)

from mtfl_jax import compose, config
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError, Field, number
from mtfl_jax.learning import data, draws, kernels, keys, moments, tasks
from mtfl_jax.learning.activations import ACTIVATIONS, Activation
from mtfl_jax.learning.arithmetic import Arithmetic
from mtfl_jax.learning.data import LAWS, Law
from mtfl_jax.learning.losses import LOSSES, Loss
from mtfl_jax.learning.tasks import FAMILIES, Family
from mtfl_jax.records import REGISTRIES, registering
from mtfl_jax.sweeps import compiling
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.plan import plan


def _blended(key, d, n, blend):
    """Coordinates between Gaussian ones and signs."""
    gaussian, sign = draws.normal(keys.named(key, "gaussian"), d, n), draws.sign(keys.named(key, "sign"), d, n)
    return jnp.sqrt(1 - blend) * gaussian + jnp.sqrt(blend) * sign


def _any_task(key, num_tasks, r, max_r):
    return jnp.ones((num_tasks, max_r))


@pytest.fixture(autouse=True, scope="module")
def _own():
    """The records, as an extension brings them; they are gone afterwards."""
    smoothing = Field("smoothing", "knob", number(0), "width of the kink", default=0.5)
    blend = Field("blend", "knob", number(0, 1), "share of the signs", default=0.25)
    with registering("test:0"):
        ACTIVATIONS.register(Activation("arctan", "arctan t", jnp.arctan, lambda t: 1 / (1 + t**2)))
        LOSSES.register(
            Loss(
                "smoothed_hinge",
                "s log(1 + e^((1 − m)/s))",
                lambda m, smoothing: smoothing * jax.nn.softplus((1 - m) / smoothing),
                settings=(smoothing,),
            )
        )
        LAWS.register(Law("blended", "√(1 − blend) g + √blend s", _blended, seconds=4e-9, settings=(blend,)))
        FAMILIES.register(
            Family("threshold", "sign(u_1 − ½)", _any_task, lambda params, u: jnp.sign(u[:, :1] - 0.5), signs=False)
        )
    compose._whole.cache_clear()
    config.refresh()
    yield
    for registry in REGISTRIES:
        registry.remove("test:0")
    compose._whole.cache_clear()
    config.refresh()
    assert not {"smoothing", "blend"} & set(FIELDS)
    assert "arctan" not in ACTIVATIONS


ARCTAN = {"network": "two_layer_arctan", "bias": "random"}
ALTERNATING = {"algorithm": "alternating", "lr_a": 0.4, "lr_w": 0.3, "weight_decay": 0.2}
CASES = {
    "arctan one_step": {**ARCTAN, "loss": "squared", "weight_decay": 0.3, "label_noise": 0.1, "probe": "ridge"},
    "arctan alternating": {
        **ARCTAN,
        **ALTERNATING,
        "loss": "logistic",
        "bias": "trained",
        "shared_inputs": False,
        "split_batch": True,
        "head_steps": 2,
    },
    "arctan joint": {**ARCTAN, "algorithm": "joint", "loss": "squared", "basis": "haar", "weight_decay": 0.2},
    "arctan oracle": {**ARCTAN, "algorithm": "oracle", "loss": "hinge"},
    "smoothed hinge": {**ALTERNATING, "loss": "smoothed_hinge", "smoothing": 0.3, "bias": "random"},
    "smoothed hinge in a mixture": {
        "loss": "mixture",
        "losses": ["squared", "smoothed_hinge"],
        "smoothing": 1.7,
        "weight_decay": 0.3,
    },
    "blended": {"algorithm": "joint", "optimizer": "sgd", "loss": "logistic", "weight_decay": 0.2}
    | {"data": "blended", "blend": 0.4, "probe": "ridge"},
}


@pytest.mark.parametrize("case", CASES)
@float64
def test_representations(case):
    """W, b and A after every recorded update, of true sizes in padded arrays."""
    p, cell = training(**CASES[case])
    assert ("smoothing" in cell, "blend" in cell) == ("smoothed" in case, "blended" in case)
    assert_networks(p, cell, networks(p, cell), learn(p, cell)[0])


@pytest.mark.parametrize("case", ["arctan one_step", "arctan oracle", "smoothed hinge in a mixture"])
@float64
def test_experiment(case):
    """Every measurement, and the ridge probe of a network that is not homogeneous."""
    p, cell = training(**CASES[case])
    found, (expected, trained_on) = whole(p, cell), learn(p, cell)
    assert_measurements(p, cell, found, expected, trained_on, **CLOSE)
    assert bool(p.probes) == (case == "arctan one_step")
    if p.probes:
        assert_ridge_probe(p, cell, found, expected[0])


@float64
def test_probes_of_a_law_of_its_own():
    p, cell = training(**{**CASES["blended"], "measure_at": [4]})
    found, (expected, trained_on) = whole(p, cell), learn(p, cell)
    assert_measurements(p, cell, found, expected, trained_on, **CLOSE)
    assert_ridge_probe(p, cell, found, expected[0])


@float64
def test_inputs_of_a_law_of_its_own():
    """By the definition, with its own knob traced."""
    p, cell = training(**CASES["blended"])
    key = keys.stream(cell.seed, "test")
    parts = [draw(keys.named(key, name), 7, 50) for name, draw in (("gaussian", draws.normal), ("sign", draws.sign))]
    x = (np.sqrt(0.6) * np.asarray(parts[0]) + np.sqrt(0.4) * np.asarray(parts[1])).T
    x[:, 2:] *= 0.8
    # Elementwise.
    np.testing.assert_allclose(draw_points(p, cell, key, 50), x, rtol=1e-13)
    with pytest.raises(TypeError, match="blend"):
        data.inputs(key, "blended", 3, 4, r=2)


@float64
def test_loss_of_its_own_and_its_slope():
    m = np.concatenate([np.linspace(-30, 30, 121) + 0.01, [0.0, 1.0, 700.0, -700.0]])
    for smoothing in (0.1, 0.5, 2.0):
        value = functools.partial(LOSSES["smoothed_hinge"].value, smoothing=smoothing)
        # Elementwise functions. (1 − m)/s of 7000 at most, whose exponential has that condition number.
        tolerance = {"rtol": 1e-11, "atol": 1e-300}
        name = ("smoothed_hinge", smoothing)
        np.testing.assert_allclose(value(jnp.asarray(m)), reference.loss(name, m), **tolerance)
        slopes = jax.vmap(jax.grad(value))(jnp.asarray(m))
        np.testing.assert_allclose(slopes, reference.slope(name, m), **tolerance)


@float64
def test_activation_of_its_own_differentiates_to_its_slope():
    t = jnp.linspace(-5, 5, 101)
    record = ACTIVATIONS["arctan"]
    value, slope = reference.ACTIVATIONS["arctan"]
    np.testing.assert_allclose(record.value(t), value(np.asarray(t)), rtol=1e-13)
    np.testing.assert_allclose(record.slope(t), slope(np.asarray(t)), rtol=1e-13)
    np.testing.assert_allclose(jax.vmap(jax.grad(record.value))(t), slope(np.asarray(t)), rtol=1e-13)


# Moments


@float64
def test_moments_of_an_activation_of_its_own():
    """Σ_z (K h)_z S_z of the tables is the reference's."""
    p, cell = training(**ARCTAN)
    of, params, tables = draw_tasks(p, cell), draw_network(p, cell), tables_of(p, cell)
    (heads, _), (features, _) = (draw_sample(p, cell, of, purpose, 0) for purpose in ("heads", "features"))
    how, orthants, M = Arithmetic(activation="arctan"), tables.shape[1], np.eye(7)[:, :2]
    index = [jnp.asarray(reference.orthant_indices(x, M)) for x in (heads, features)]
    given = jax.tree.map(jnp.asarray, params)
    blocks = moments.by_orthant(index[1], len(features), orthants)
    table = moments.Moments(
        moments.head_table(given, jnp.asarray(heads), index[0], len(heads), orthants, how),
        moments.feature_table(
            given, jnp.asarray(features)[blocks.sample.reshape(-1)].T, blocks, len(features), orthants, how
        ),
    )
    found = moments.kernel_step(table, tasks.contrastive_kernel(jnp.asarray(tables)))
    expected = reference.kernel_step(params, tables, heads, features, M, "arctan")
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, **CLOSE)


@float64
def test_rows_of_a_shared_pass_of_an_activation_of_its_own():
    """Every measurement of every row, of two families, widths and numbers of tasks."""
    # Numbers that float32 holds, in which a sweep hands them over.
    values = {**VALUES, **ARCTAN, "nuisance_scale": 0.75, "lr_a": 0.75, "lr_w": 1.25, "bias_scale": 0.5}
    values |= {"n_down": 10, "measure_at": "last", "seed": 5}
    varied = {"width": [3, 8], "num_tasks": [1, 4], "tasks": ["balanced", "majority"]}
    grid = Grid({**values, **varied}, compose.composed)
    (bucket,) = plan(grid, "always")
    assert bucket.program.groups
    cell = jax.tree.map(lambda leaf: leaf[0], compiling.cells_of(grid, bucket, np.arange(1)))
    cell = jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, cell)
    found = whole(bucket.program, cell)
    rows = [grid.cell(i) for i in bucket.members[0]]
    assert len({(c.width, c.num_tasks, c.tasks) for c in rows}) == 8
    for k, c in enumerate(rows):
        own = {name: getattr(c, name) for name in varied}
        p, alone = training({}, **{**values, **own})
        (params,), (trained_on,) = learn(p, alone)
        expected = measured(p, alone, params, trained_on)
        assert set(found) - {"diverged_step"} == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][k], value, err_msg=f"{name} {own}", **CLOSE)


# Kernels


@pytest.mark.parametrize("interpret", [True, False])
@pytest.mark.parametrize("sizes", [(100, 20, 70, 5), (64, 16, 64, 16)])
@float64
def test_kernels_of_an_activation_of_its_own(sizes, interpret):
    """Outputs, and the gradients of Σ g ∘ outputs, of tiles that are full or not."""
    n, d, width, num_tasks = sizes
    rng = np.random.default_rng(0)
    shapes = {"W": (width, d), "b": (width,), "A": (num_tasks, width)}
    params = {name: rng.standard_normal(shape) / np.sqrt(shape[-1]) for name, shape in shapes.items()}
    x, g = rng.standard_normal((n, d)), rng.standard_normal((n, num_tasks))

    def outputs(W, b, A):
        return kernels.outputs(W, b, A, jnp.asarray(x), "float32", interpret, "arctan")

    found, pull = jax.vjp(outputs, *(jnp.asarray(leaf) for leaf in params.values()))
    pre, h = reference.hidden(params, x, "arctan")
    back = (g @ params["A"]) * reference.ACTIVATIONS["arctan"][1](pre)
    # Float64 sums of at most 100 terms of order 1.
    np.testing.assert_allclose(found, reference.outputs(params, x, "arctan"), **CLOSE)
    for one, expected in zip(pull(jnp.asarray(g)), (back.T @ x, back.sum(axis=0), g.T @ h), strict=True):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, expected, **CLOSE)


# The door


def test_signs_of_what_is_no_table_share_no_moments_and_have_no_limit():
    own = compose.from_keywords(tasks="threshold")
    assert own.shared is None
    assert compose.from_keywords(tasks="balanced").shared is not None
    with pytest.raises(ConfigError, match=r"^tasks=threshold: allowed with algorithm=population: balanced, "):
        compose.from_keywords(tasks="threshold", algorithm="population", data="gaussian", probe="none")


def test_settings_of_their_own_bear_where_their_records_are_chosen():
    """And are checked."""
    assert "smoothing" in compose.from_keywords(loss="mixture", losses=["hinge", "smoothed_hinge"]).used
    assert "smoothing" not in compose.from_keywords(loss="mixture", losses=["hinge"], data="blended").used
    with pytest.raises(ConfigError, match=r"^blend=1\.5: allowed: a finite number from 0 to 1$"):
        compose.from_keywords(data="blended", blend=1.5)
    assert compose.from_keywords(network="two_layer_arctan", smoothing=3.0).values["smoothing"] == 3.0
