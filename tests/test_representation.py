"""What a representation is like: spectra, ranks, alignments and tangent kernels, in cases that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checked import checked
from hypothesis import given
from hypothesis import strategies as st

import mtfl_jax
from mtfl_jax.learning import network, representation
from mtfl_jax.learning.activations import ACTIVATIONS
from mtfl_jax.learning.arithmetic import Arithmetic

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, width=st.integers(1, 9), d=st.integers(1, 9), size=st.sampled_from([1e-18, 1.0, 1e18]))
@checked(25)
def test_spectra(seed, width, d, size):
    """Of any shape and scale, as a core and as an accelerator have them."""
    W = size * np.random.default_rng(seed).standard_normal((width, d))
    expected = np.linalg.svd(W, compute_uv=False)
    for accelerator in (False, True):
        sigma = representation.singular_values(jnp.asarray(W), accelerator=accelerator)
        # By the Gram matrix an error of ε σ₁² in σ².
        np.testing.assert_allclose(sigma, expected, rtol=1e-10, atol=1e-6 * expected[0] if accelerator else 0)
    ratio = representation.participation_ratio(sigma**2)
    np.testing.assert_allclose(ratio, reference.participation_ratio((expected / size) ** 2), rtol=1e-9)
    np.testing.assert_allclose(
        representation.effective_rank(jnp.asarray(expected)), reference.effective_rank(expected), rtol=1e-9
    )


def test_ranks_of_equal_values_are_their_number():
    for k in (1, 3, 7):
        values = jnp.zeros(9).at[:k].set(1e-20)
        assert representation.participation_ratio(values) == pytest.approx(k, rel=1e-5)
        assert representation.effective_rank(values) == pytest.approx(k, rel=1e-5)


@pytest.mark.parametrize("accelerator", [False, True])
def test_zeros_have_no_rank_and_what_is_not_finite_no_number(accelerator):
    sigma = representation.singular_values(jnp.zeros((4, 3)), accelerator=accelerator)
    assert np.array_equal(sigma, np.zeros(3))
    assert (representation.participation_ratio(sigma), representation.effective_rank(sigma)) == (0, 0)
    assert np.array_equal(representation.neuron_alignment(jnp.zeros((4, 3)), 2), np.zeros(10))
    assert representation.alignment(jnp.zeros((3, 3)), jnp.eye(3), 3) == 0
    sigma = representation.singular_values(jnp.full((4, 3), jnp.inf), accelerator=accelerator)
    assert np.all(np.isnan(sigma))
    assert np.isnan(representation.effective_rank(sigma))
    assert np.isnan(representation.participation_ratio(sigma))
    assert np.all(np.isnan(representation.feature_spectrum(jnp.full((4, 3), jnp.nan), 4)))


@given(seed=seeds, n=st.integers(2, 9), train_bias=st.booleans(), activation=st.sampled_from(sorted(ACTIVATIONS)))
@checked(10)
def test_the_tangent_kernel_is_that_of_derivatives(seed, n, train_bias, activation):
    """By JAX's Jacobians of the outputs in all that is trained, of padded tasks too."""
    rng = np.random.default_rng(seed)
    params = {
        "W": jnp.asarray(rng.standard_normal((6, 4))),
        "b": jnp.asarray(rng.standard_normal(6)),
        "A": jnp.asarray(rng.standard_normal((5, 6))).at[3:].set(0),
    }
    x = jnp.asarray(rng.standard_normal((n, 4)))
    how = Arithmetic(activation=activation)
    by = jax.jacobian(lambda params: network.outputs(params, x, how)[:, :3])(params)
    expected = np.zeros((n, n))
    for name in ("W", "A", "b") if train_bias else ("W", "A"):
        J = by[name].reshape(n, 3, -1)
        expected += np.einsum("itp,jtp->ij", J, J) / 3
    found = representation.tangent_kernel(params, x, 3, how, train_bias=train_bias)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@given(seed=seeds, n=st.integers(2, 7))
@checked(10)
def test_alignments_of_the_first_samples(seed, n):
    """Samples beyond n count for nothing; size and, where centred, a constant do not either."""
    rng = np.random.default_rng(seed)
    K, L = (g @ g.T for g in rng.standard_normal((2, 9, 5)))
    for centred in (True, False):
        found = representation.alignment(jnp.asarray(K), jnp.asarray(L), n, centred=centred)
        expected = reference.kernel_alignment(K[:n, :n], L[:n, :n], centred)
        assert found == pytest.approx(expected, rel=1e-9)
        assert representation.alignment(jnp.asarray(3 * K), jnp.asarray(K), n, centred=centred) == pytest.approx(1)
    assert representation.alignment(jnp.asarray(K + 7), jnp.asarray(K), n) == pytest.approx(1)
    change = representation.change(jnp.asarray(L), jnp.asarray(K), n)
    assert change == pytest.approx(np.linalg.norm((L - K)[:n, :n]) / np.linalg.norm(K[:n, :n]))


def test_what_training_does_to_a_representation():
    """Features as initialised have not moved; in the lazy regime of a wide network with a small rate the tangent kernel
    hardly changes; a network that forgot its initial weights is of rank r, aligned, and has another kernel.
    """
    same = {"d": 12, "r": 2, "width": 96, "num_tasks": 16, "measure": "representation", "probe": "none", "n_test": 256}
    table = mtfl_jax.sweep(algorithm=["random_features", "one_step"], n1=4096, n2=4096, **same)
    still, learned = (table[table["algorithm"] == name].iloc[0] for name in ("random_features", "one_step"))
    assert still["distance_moved"] == 0
    # Of 12 directions a random neuron has a share of 2/12; W has full rank.
    assert sum(still["neuron_alignment"][:6]) > 0.8
    assert still["weight_rank"] > 11
    assert learned["weight_participation"] < 3
    assert sum(learned["neuron_alignment"][9:]) > 0.9
    assert learned["singular_values"][1] > 5 * learned["singular_values"][2]
    assert learned["ntk_alignment"] > learned["ntk_alignment_initial"]
    assert learned["kernel_alignment"] > still["kernel_alignment"]
    assert learned["ntk_distance"] > 0.1 > still["ntk_distance"]


def test_a_row_s_kernels_are_those_of_its_network():
    """`train` gives the network before any update, and both tangent kernels of any inputs."""
    sizes = {"d": 8, "r": 2, "width": 12, "num_tasks": 3, "n2": 64, "n_test": 32, "steps": 4, "probe": "none"}
    row = mtfl_jax.run(**sizes, algorithm="joint", bias="trained", lr=0.1, measure="representation").iloc[-1]
    found = mtfl_jax.train(**row)
    distance = np.linalg.norm(found.W - found.initial["W"]) / np.linalg.norm(found.initial["W"])
    np.testing.assert_allclose(row["distance_moved"], distance, rtol=1e-5)
    K, start = (found.tangent_kernel(found.x_test, initial=initial) for initial in (False, True))
    params = reference.float64({"W": found.W, "b": found.b, "A": found.A})
    np.testing.assert_allclose(K, reference.tangent_kernel(params, found.x_test, train_bias=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(row["ntk_change"], np.linalg.norm(K - start) / np.linalg.norm(start), rtol=1e-4)
    y = found.labels(found.x_test)
    np.testing.assert_allclose(row["ntk_alignment"], reference.kernel_alignment(K, y @ y.T), rtol=1e-3)
    np.testing.assert_allclose(row["ntk_alignment_initial"], reference.kernel_alignment(start, y @ y.T), rtol=1e-3)
