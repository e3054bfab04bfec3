"""Inputs of every law that is built in: bits under padding, laws by their definitions, and labels."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from trainings import PADDED, assert_networks, draw_sample, draw_tasks, float64, learn, networks, quick_jit, training

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning import data, drawing, keys, tasks

KEY = keys.named(keys.root(7), "test_inputs")
LAWS = tuple(data.LAWS)
N, D, R = 33, 7, 2
MANY = 65_536


def settings_of(law):
    """The defaults of a law's settings as a training has them, but those that depend on d."""
    values = {**compose.composed({}), "num_patterns": 5, "spike_overlap": 0.6}
    return {
        field.name: FIELDS[field.name].type.number(values[field.name]) if field.kind == "knob" else values[field.name]
        for field in data.LAWS[law].settings
    }


@functools.cache
def compiled(law, n, max_d, **choices):
    """With d, r and the law's knobs traced."""

    def draw(d, r, scale, knobs):
        own = {**knobs, **choices}
        read = data.hidden(KEY, law, n, max_d, r=r, d=d, settings=own)
        x = data.inputs(KEY, law, n, max_d, r=r, d=d, nuisance_scale=scale, settings=own)
        return x, x if read is None else read

    return jax.jit(draw)


def drawn(law, n, max_d, d=None, r=R, scale=1.0, **settings):
    """Inputs, and the coordinates that labels read."""
    own = {**settings_of(law), **settings}
    choices = {field.name: own.pop(field.name) for field in data.LAWS[law].settings if field.kind != "knob"}
    return map(np.asarray, compiled(law, n, max_d, **choices)(max_d if d is None else d, r, scale, own))


@pytest.mark.parametrize("law", LAWS)
def test_inputs_are_the_same_padded_to_the_bit(law):
    """Of fewer samples the first ones; zero beyond d; the scale of the nuisance is of the nuisance alone."""
    x, read = drawn(law, N, D)
    assert x.dtype == np.float32
    wide, more = drawn(law, 70, 12, d=D)
    assert np.array_equal(wide[:N, :D], x)
    assert np.array_equal(more[:N, :R], read[:, :R])
    assert not wide[:, D:].any()
    scaled, _ = drawn(law, N, D, scale=0.5)
    assert np.array_equal(scaled, x * np.where(np.arange(D) < R, 1, 0.5).astype(np.float32))


@pytest.mark.parametrize("d", [1, 3, 12])
def test_the_sphere(d):
    """Of radius √d, and with the fourth moments E x_k⁴ = 3 d/(d + 2) and E x_j² x_k² = d/(d + 2)."""
    x = np.asarray(next(drawn("sphere", MANY, 16, d=d, r=1)), float)[:, :d]
    # A square root and a product of float32.
    np.testing.assert_allclose(np.sum(x**2, axis=1), d, rtol=1e-6)
    for j, k in itertools.combinations_with_replacement(range(d), 2):
        values = x[:, j] ** 2 * x[:, k] ** 2
        expected = (3 if j == k else 1) * d / (d + 2)
        assert abs(values.mean() - expected) <= 5 * values.std() / math.sqrt(MANY) + 1e-6


@pytest.mark.parametrize("p", [0.1, 0.75])
def test_biased_bits(p):
    bits, _ = drawn("biased", MANY, 5, bias_probability=p, centred=False)
    assert set(np.unique(bits)) == {-1.0, 1.0}
    assert np.all(np.abs((bits > 0).mean(axis=0) - p) < 5 * math.sqrt(p * (1 - p) / MANY))
    centred, _ = drawn("biased", MANY, 5, bias_probability=p, centred=True)
    # Few roundings of float32.
    np.testing.assert_allclose(centred, (bits - (2 * p - 1)) / math.sqrt(4 * p * (1 - p)), rtol=1e-6)


def test_spikes_and_power_laws_of_no_strength_are_gaussian():
    gaussian, _ = drawn("gaussian", N, D)
    for law, none in (("spiked", {"spike_strength": 0.0}), ("power_law", {"power_law_exponent": 0.0})):
        np.testing.assert_allclose(next(drawn(law, N, D, **none)), gaussian, rtol=1e-6)
    c, theta = 0.6, 3.0
    v = np.asarray([c, 0, math.sqrt(1 - c**2), 0, 0, 0, 0])
    root = np.eye(D) + (math.sqrt(1 + theta) - 1) * np.outer(v, v)
    spiked, _ = drawn("spiked", N, D, spike_strength=theta, spike_overlap=c)
    # Float32 sums of two products.
    np.testing.assert_allclose(spiked, gaussian @ root, rtol=1e-5, atol=1e-6)
    scales = np.sqrt(D * np.arange(1, D + 1) ** -1.5 / np.sum(np.arange(1, D + 1) ** -1.5))
    np.testing.assert_allclose(next(drawn("power_law", N, D, power_law_exponent=1.5)), gaussian * scales, rtol=1e-5)


def test_the_dictionary():
    """Patterns that are there or not, their share and their agreement; labels read which are there."""
    share, agreement = 0.1, 0.3
    settings = {"num_patterns": 6, "pattern_probability": share, "pattern_agreement": agreement}
    x, read = drawn("dictionary", MANY, 8, r=3, **settings)
    assert not x[:, 6:].any()
    there = x[:, :6] > 0
    for k, p in enumerate([0.5] * 3 + [share] * 3):
        values = (np.asarray([0, 1]) - p) / math.sqrt(p * (1 - p))
        np.testing.assert_allclose(np.unique(x[:, k]), values, rtol=1e-6)
        assert abs(there[:, k].mean() - p) < 5 * math.sqrt(p * (1 - p) / MANY)
    alike = np.all(there[:, :3] == there[:, :1], axis=1).mean()
    expected = agreement + (1 - agreement) / 4
    assert abs(alike - expected) < 5 * math.sqrt(expected * (1 - expected) / MANY)
    assert np.array_equal(np.asarray(data.orthants(jnp.asarray(read), 3, 3)) > 0, there[:, :3])


def test_clusters():
    """Gaussians about the corners of a cube, of which labels read the corner and not the sign of x."""
    spread = 0.8
    x, s = drawn("clusters", MANY, 6, r=2, cluster_spread=spread)
    assert set(np.unique(s[:, :2])) == {-1.0, 1.0}
    assert not s[:, 2:].any()
    noise = (x - s) / spread
    for k in range(6):
        assert stats.kstest(noise[:, k], "norm").pvalue > 1e-4
    wrong = np.mean(np.sign(x[:, :2]) != s[:, :2])
    expected = stats.norm.cdf(-1 / spread)
    assert abs(wrong - expected) < 5 * math.sqrt(expected / (2 * MANY))


READ = quick_jit(drawing.draw_read, static_argnums=(0, 3))
SHARING = [(law, shared) for law in LAWS for shared in (True, False) if shared or data.LAWS[law].hidden]


@pytest.mark.parametrize(("law", "shared"), SHARING)
@float64
def test_samples_of_a_training_have_the_labels_of_their_orthants(law, shared):
    """And are the same in padded arrays, whichever way the orthants are found."""
    values = {"data": law, "algorithm": "alternating", "loss": "logistic", "weight_decay": 0.2, "shared_inputs": shared}
    values |= {"num_patterns": 5, "spike_overlap": 0.6, "tasks": "parity"}
    found = []
    for sizes in ({}, PADDED):
        p, cell = training(sizes, **values)
        of = draw_tasks(p, cell)
        x, y = draw_sample(p, cell, of, "features", 1)
        found.append((x, y))
        key = drawing.inputs_key(cell, "features", 1)
        for t in range(1 if shared else int(cell.num_tasks)):
            inputs, own_key, own = (x, key, slice(None)) if shared else (x[t], keys.at(key, t), slice(t, t + 1))
            read = np.asarray(READ(p, cell, own_key, len(y)))[:, :R]
            if data.LAWS[law].hidden is None:
                assert np.array_equal(read >= 0, inputs[:, :R] >= 0)
            z = jnp.asarray(np.where(read >= 0, 1.0, -1.0))
            labels = tasks.labels(tasks.Tasks(of.family, of.params[: y.shape[1], :R][own]), z)
            assert np.array_equal(labels, y[:, own])
    for alone, padded in zip(*found, strict=True):
        np.testing.assert_allclose(padded, alone, rtol=1e-13)


@pytest.mark.parametrize("law", [pytest.param(law, marks=[pytest.mark.slow] * (law != "biased")) for law in LAWS])
@float64
def test_networks_of_every_law(law):
    """W, b and A after every recorded update, coordinate-wise and in the run's own basis, in padded arrays."""
    values = {"num_patterns": 5, "spike_overlap": 0.6, "weight_decay": 0.2, "basis": "haar"}
    p, cell = training(data=law, algorithm="joint", loss="logistic", **values)
    assert_networks(p, cell, networks(p, cell), learn(p, cell)[0])


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_rows_of_a_shared_pass_are_those_of_each_training(law):
    """Float32 sums of 128 samples."""
    sizes = {
        "d": 12,
        "r": [2, 3],
        "width": 16,
        "num_tasks": [1, 4],
        "n1": 128,
        "n2": 128,
        "n_test": 64,
        "probe": "none",
    }
    tables = [mtfl_jax.sweep(**sizes, data=law, num_patterns=7, seed=0, moments=how) for how in ("always", "never")]
    for name in ("feature_energy", "train_loss", "test_loss", "subspace_distance"):
        np.testing.assert_allclose(*(table[name].astype(float) for table in tables), rtol=1e-3, atol=1e-5, err_msg=name)


def test_what_a_law_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"^num_patterns=9: allowed: from r=4 to d=8$"):
        compose.from_keywords(data="dictionary", d=8, num_patterns=9)
    with pytest.raises(ConfigError, match=r"^spike_overlap=0\.5: nothing is orthogonal to r=2 directions; allowed: 1$"):
        compose.from_keywords(data="spiked", d=2, r=2, spike_overlap=0.5)
    with pytest.raises(ConfigError, match=r"^bias_probability=1\.0: allowed: a finite number from 0\.001 to 0\.999"):
        compose.from_keywords(data="biased", bias_probability=1.0)


@pytest.mark.parametrize("law", LAWS)
def test_cells_of_another_r_share_a_pass_where_their_inputs_are_the_same(law):
    assert ("r" in compose.from_keywords(data=law).rows) == ("r" not in data.LAWS[law].sizes)
    assert compose.from_keywords(data=law).shared is not None


@pytest.mark.slow
def test_labels_of_inputs_that_do_not_show_them_are_refused():
    sizes = {"d": 8, "r": 2, "width": 8, "num_tasks": 2, "n1": 32, "n2": 32, "n_test": 32, "probe": "none"}
    trained = mtfl_jax.train(data="clusters", **sizes)
    with pytest.raises(ValueError, match="data=clusters"):
        trained.labels(trained.x)
