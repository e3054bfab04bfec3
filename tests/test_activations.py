"""Trainings with every activation, in padded arrays, against the reference."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from trainings import (
    CLOSE,
    PADDED,
    assert_measurements,
    assert_networks,
    assert_ridge_probe,
    float64,
    learn,
    networks,
    training,
    whole,
)

from mtfl_jax import compose
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning import keys, limits
from mtfl_jax.learning.activations import ACTIVATIONS

KEY = keys.root(0)
NAMES = tuple(ACTIVATIONS)
# Rates at which polynomials of degree 4 stay of order 1, where rounding is not amplified.
ALTERNATING = {"algorithm": "alternating", "loss": "logistic", "bias": "trained", "lr_a": 0.4, "lr_w": 0.3}
WHOLE = {"loss": "squared", "bias": "random", "weight_decay": 0.3, "label_noise": 0.1, "probe": "ridge"}


def of(name, **values):
    """A training with an activation, padded in every size that may be."""
    exact = ACTIVATIONS[name].exact
    padded = {size: value for size, value in PADDED.items() if size not in exact}
    return training(padded, network=f"two_layer_{name}", **values)


@pytest.mark.parametrize("name", NAMES)
@float64
def test_networks(name):
    """W, b and A after every recorded round, of true sizes in padded arrays."""
    p, cell = of(name, **ALTERNATING, weight_decay=0.2, head_steps=2, steps=2, measure_at=[1, 2])
    assert p.width == (8 if ACTIVATIONS[name].exact else 10)
    assert_networks(p, cell, networks(p, cell), learn(p, cell)[0])


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "he2")) for name in NAMES])
@float64
def test_measurements_and_the_probe(name):
    """Every measurement, and the ridge probe, in padded arrays."""
    p, cell = of(name, **WHOLE)
    found, (expected, trained_on) = whole(p, cell), learn(p, cell)
    assert_measurements(p, cell, found, expected, trained_on, **CLOSE)
    assert_ridge_probe(p, cell, found, expected[0])


@pytest.mark.parametrize("name", [name for name in NAMES if ACTIVATIONS[name].exact])
def test_a_neuron_that_would_have_a_feature_is_not_padded(name):
    cell = compose.from_keywords(network=f"two_layer_{name}")
    assert "width" in cell.exact
    assert cell.shared is None


@pytest.mark.parametrize("name", ["quadratic", "he3", "erf"])
@float64
def test_population_limits(name):
    """Of one direction, d = 1 and biases: h and S are integrals over a half line, here sums of 2^17 steps."""
    params = {"W": np.array([[0.5], [2.0], [-3.0]]), "b": np.array([0.3, -0.7, 0.0]), "A": np.zeros((1, 3))}
    given, tables = jax.tree.map(jnp.asarray, params), jnp.asarray([[-1.0, 1.0]])
    found = limits.population_step(KEY, given, tables, r=1, max_r=1, num_tasks=1, activation=ACTIVATIONS[name])
    x = (np.arange(-(2**16), 2**16) + 0.5) * 2.0**-13
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * 2.0**-13
    value, slope = (each(x[:, None] * params["W"][:, 0] + params["b"]) for each in reference.ACTIVATIONS[name])
    A = (np.sign(x) * density) @ value
    # The rule of 64 points is of polynomials and of what is as smooth; the sums err by a step squared.
    np.testing.assert_allclose(found["A"][0], A, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found["W"][:, 0], A * ((np.sign(x) * x * density) @ slope), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in NAMES if ACTIVATIONS[name].gaussian is None])
@float64
def test_a_population_limit_that_is_not_known_is_refused(name):
    with pytest.raises(ConfigError, match=f"^network=two_layer_{name}: allowed with algorithm=population: "):
        compose.from_keywords(network=f"two_layer_{name}", data="gaussian", algorithm="population")
    with pytest.raises(ValueError, match=f"^activation={name}: "):
        limits.population_step(KEY, {}, jnp.ones((1, 4)), r=2, max_r=2, num_tasks=1, activation=ACTIVATIONS[name])
