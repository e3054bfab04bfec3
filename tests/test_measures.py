"""Measurements of matrices whose principal angles and singular values are known by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checked import checked
from hypothesis import given
from hypothesis import strategies as st

from mtfl_jax.learning import measures
from mtfl_jax.learning import recovery as recoveries

COLUMNS = ("subspace_distance", "directions_recovered", "feature_energy", "spectral_ratio")

# float64 (eps 2.2e-16) through a QR and an SVD of matrices with entries of order 1 and at most 12 rows: backward
# errors of about 1e-14, times the condition of the singular subspaces, σ_r/(σ_r − σ_{r+1}) < 1e3 unless rare.
CLOSE64 = {"rtol": 1e-9, "atol": 1e-10}
# The same in float32 (eps 1.2e-7) for gaps of order 1.
CLOSE32 = {"rtol": 1e-5, "atol": 3e-6}

seeds = st.integers(0, 2**32 - 1)
recovery = jax.jit(recoveries.recovery, static_argnames="max_r")


def orthonormal(rng, rows, columns):
    """Haar-distributed orthonormal columns."""
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def tilted(rng, angles, d, width, sigma, rest):
    """W (width, d) whose top right singular vectors make these principal angles with I[:, :r].

    `sigma` are the r leading singular values, `rest` the others. Returns W and its right singular vectors (d, d).
    """
    r = len(angles)
    inside = np.zeros((d, r))
    inside[:r] = orthonormal(rng, r, r)
    outside = np.zeros((d, r))
    outside[r:] = orthonormal(rng, d - r, r)
    V = (inside * np.cos(angles) + outside * np.sin(angles)) @ orthonormal(rng, r, r)
    V = np.hstack([V, np.linalg.svd(V)[0][:, r:] @ orthonormal(rng, d - r, d - r)])
    spectrum = np.concatenate([sigma, rest])
    return orthonormal(rng, width, len(spectrum)) * spectrum @ V[:, : len(spectrum)].T, V


def assert_recovery(found, expected, **tolerance):
    for name, value in zip(COLUMNS, expected, strict=True):
        np.testing.assert_allclose(getattr(found, name), value, err_msg=name, **tolerance)


def same(found, expected, **tolerance):
    assert_recovery(found, [getattr(expected, name) for name in COLUMNS], **tolerance)


# Known angles and spectra.


@given(seed=seeds, degrees=st.lists(st.sampled_from([0, 1e-6, 1, 10, 29, 31, 60, 89, 90]), min_size=3, max_size=3))
@checked(25)
def test_known_principal_angles(seed, degrees):
    """The distance is the sine of the largest; directions_recovered counts those below 30 degrees."""
    rng = np.random.default_rng(seed)
    angles, sigma, rest = np.radians(degrees), rng.uniform(2, 4, 3), rng.uniform(0, 1, 5)
    W, V = tilted(rng, angles, 8, 10, sigma, rest)
    found = recovery(W, 3, 3)
    assert found.subspace_distance == pytest.approx(np.sin(angles.max()), **{"rel": 1e-9, "abs": 1e-13})
    assert found.directions_recovered == sum(degree < 30 for degree in degrees)
    energy = np.concatenate([sigma, rest]) ** 2 @ (V[:3] ** 2).sum(axis=0) / (sigma @ sigma + rest @ rest)
    assert found.feature_energy == pytest.approx(energy, rel=1e-12)


@given(seed=seeds, scale=st.sampled_from([1e-8, 0.1, 1.0, 30.0]))
@checked(15)
def test_known_spectral_ratio(seed, scale):
    """W = U₁ diag(s) MᵀR + U₂ diag(q) M⊥ᵀ has σ_r(WM) = min s and ‖W(I − MMᵀ)‖₂ = max q."""
    rng = np.random.default_rng(seed)
    s, q = rng.uniform(0.5, 2, 3), rng.uniform(0.5, 2, 5) * scale
    W = np.hstack(
        [
            orthonormal(rng, 10, 3) * s @ orthonormal(rng, 3, 3),
            orthonormal(rng, 10, 5) * q @ orthonormal(rng, 5, 5),
        ]
    )
    found = recovery(W, 3, 3)
    # Backward error of the two singular values, each relative to the larger: 1e-15 · max / min.
    assert found.spectral_ratio == pytest.approx(s.min() / q.max(), rel=1e-13 / min(scale, 1))
    assert found.feature_energy == pytest.approx(s @ s / (s @ s + q @ q), rel=1e-12)


@given(seed=seeds, shape=st.sampled_from([(10, 8, 3), (3, 12, 3), (12, 5, 1), (8, 6, 5)]))
@checked(25)
def test_random_matrices_and_any_basis(seed, shape):
    """Against a full SVD with a general M, of which the columns are the first of Q: W Q is measured."""
    rng = np.random.default_rng(seed)
    width, d, r = shape
    Q = orthonormal(rng, d, d)
    W = rng.standard_normal((width, d)) + 3 * rng.standard_normal((width, r)) @ Q[:, :r].T
    assert_recovery(recovery(W @ Q, r, r), reference.recovery(W, Q[:, :r]), **CLOSE64)


@given(seed=seeds)
@checked(10)
def test_rotations_within_the_spans_change_nothing(seed):
    """Nor orthogonal transformations of the neurons, nor scale."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((10, 8))
    turn = np.zeros((8, 8))
    turn[:3, :3], turn[3:, 3:] = orthonormal(rng, 3, 3), orthonormal(rng, 5, 5)
    same(recovery(-7 * orthonormal(rng, 10, 10) @ W @ turn, 3, 3), recovery(W, 3, 3), **CLOSE64)


# float32.


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-5, 1e-4, 1e-2, 1.0])
def test_small_angles_in_float32(angle):
    """An angle of 1e-5 is resolved: √(1 − σ²) would give 0 or 3e-4."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        W, _ = tilted(rng, [angle, angle / 2, 0.0], 8, 10, rng.uniform(2, 4, 3), rng.uniform(0, 0.3, 5))
        found = recovery(np.float32(W), 3, 3)
        # Rounding W to float32 (6e-8 an entry, relative to it) turns V_r by about 6e-8 · ‖W‖/gap; the factorisations
        # err by a few eps more.
        assert found.subspace_distance.dtype == np.float32
        assert float(found.subspace_distance) == pytest.approx(np.sin(angle), abs=6e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-5, 1e5, 1e25, 1e35])
def test_scale_does_not_matter_in_float32(scale):
    """Though the squares are not representable."""
    rng = np.random.default_rng(0)
    W, _ = tilted(rng, [0.02, 0.3, 1.0], 8, 10, [2.0, 3.0, 4.0], rng.uniform(0, 1, 5))
    expected = reference.recovery(W, np.eye(8)[:, :3])
    assert_recovery(recovery(np.float32(W), 3, 3), expected, **CLOSE32)
    assert_recovery(recovery(np.float32(W * scale), 3, 3), expected, **CLOSE32)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_one_huge_row_in_float32(scale):
    """Beside a direction 1e25 times as large, the others are rounding: rank 1, one direction found."""
    W = np.zeros((4, 6), np.float32)
    W[0, 0], W[1, 1] = 1, scale
    found = recovery(W, 2, 2)
    assert (float(found.subspace_distance), int(found.directions_recovered)) == (1.0, 1)
    assert found.feature_energy == 1


# Degenerate matrices.


@pytest.mark.parametrize("shape", [(5, 6, 2), (1, 6, 2), (4, 2, 2), (1, 1, 1)])
def test_zero_weights(shape):
    """Nothing is found, and nothing is NaN."""
    width, d, r = shape
    assert_recovery(recovery(np.zeros((width, d), np.float32), r, r), (1, 0, 0, 0))
    assert reference.recovery(np.zeros((width, d)), np.eye(d)[:, :r]) == (1.0, 0, 0.0, 0.0)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("within", [True, False])
def test_rank_below_r(rank, within):
    """A direction is missed: distance 1; those that W has are counted."""
    rng = np.random.default_rng(rank)
    angle = 0.1 if within else 1.0
    top = np.zeros((rank, 7))
    top[:, :rank] = np.cos(angle) * np.eye(rank)
    top[:, 3 : 3 + rank] = np.sin(angle) * np.eye(rank)
    W = rng.standard_normal((9, rank)) @ top
    for dtype in (np.float32, np.float64):
        found = recovery(dtype(W), 3, 3)
        assert found.subspace_distance == 1
        assert found.directions_recovered == (rank if within else 0)
        # float32 (here also of the float64 input, as JAX is in float32): a few eps.
        assert found.feature_energy == pytest.approx(np.cos(angle) ** 2, rel=1e-5)
        assert found.spectral_ratio == pytest.approx(0, abs=1e-5)
    with jax.enable_x64(True):
        assert_recovery(recovery(W, 3, 3), reference.recovery(W, np.eye(7)[:, :3]), **CLOSE64)


def test_width_below_r():
    """Two neurons cannot span three directions, also where both lie inside."""
    W = np.eye(2, 7, dtype=np.float32)
    found = recovery(W, 3, 3)
    assert (found.subspace_distance, found.directions_recovered) == (1, 2)
    assert (found.feature_energy, found.spectral_ratio) == (1, 0)
    W = np.random.default_rng(0).standard_normal((2, 7))
    with jax.enable_x64(True):
        assert_recovery(recovery(W, 3, 3), reference.recovery(W, np.eye(7)[:, :3]), **CLOSE64)


def test_low_rank_inside_the_span():
    """A missed direction has ratio 0 though nothing of W is orthogonal to M, in whatever basis of span(M)."""
    rng = np.random.default_rng(0)
    aligned, turned = np.zeros((6, 7), np.float32), np.zeros((6, 7), np.float32)
    aligned[:, :1] = rng.standard_normal((6, 1))
    turned[:, :3] = aligned[:, :3] @ orthonormal(rng, 3, 3).astype(np.float32)
    assert_recovery(recovery(aligned, 3, 3), (1, 1, 1, 0))
    # σ_r is a few eps at most.
    assert_recovery(recovery(turned, 3, 3), (1, 1, 1, 0), atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (3, 3)])
def test_all_of_space(shape):
    """With d = r every direction is there: distance 0, infinite ratio."""
    W = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert_recovery(recovery(W, 3, 3), (0, 3, 1, np.inf))


def test_weights_inside_the_span():
    """As of `oracle`: exactly infinite ratio, no rounding in the distance."""
    W = np.zeros((8, 9), np.float32)
    W[:, :3] = np.random.default_rng(0).standard_normal((8, 3))
    # Right singular vectors of a matrix with zero columns have zeros there; a few eps in float32 otherwise.
    assert_recovery(recovery(W, 3, 3), (0, 3, 1, np.inf), atol=1e-6)
    assert recovery(W, 3, 3).spectral_ratio == np.inf


def test_weights_across_the_span():
    """Full rank, nothing of it inside M."""
    W = np.zeros((8, 9), np.float32)
    W[:, 3:] = np.random.default_rng(0).standard_normal((8, 6))
    assert_recovery(recovery(W, 3, 3), (1, 0, 0, 0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (4, 1), (4, 2), (0, 6)])
def test_weights_that_are_not_finite(value, at):
    """NaN, wherever the bad entry is: a divergence may not pass for a result."""
    W = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    W[at] = value
    found = recovery(W, 2, 2)
    assert np.isnan(found.subspace_distance)
    assert np.isnan(found.feature_energy)
    assert np.isnan(found.spectral_ratio)
    assert found.directions_recovered <= 0 or np.isnan(found.directions_recovered)


# Padding.


@given(seed=seeds, rank=st.sampled_from([2, 6]), sizes=st.sampled_from([(2, 5, 7), (3, 3, 9), (1, 10, 4), (4, 12, 12)]))
@checked(20)
def test_padding(seed, rank, sizes):
    """r < max_r, width and d below the array's: the same as unpadded, also where W has rank 2."""
    rng = np.random.default_rng(seed)
    r, width, d = sizes
    W = rng.standard_normal((width, rank)) @ rng.standard_normal((rank, d))
    padded = np.zeros((12, 12))
    padded[:width, :d] = W
    expected = reference.recovery(W, np.eye(d)[:, :r])
    assert_recovery(recovery(W, r, r), expected, **CLOSE64)
    for max_r in (4, 12):
        assert_recovery(recovery(padded, r, max_r), expected, **CLOSE64)


def test_padded_and_batched():
    """r and W traced under vmap, as cells of one compiled program."""
    rng = np.random.default_rng(0)
    rs, widths, ds = (1, 2, 3), (4, 7, 2), (6, 3, 8)
    expected, padded = [], np.zeros((3, 8, 8), np.float32)
    for k, (r, width, d) in enumerate(zip(rs, widths, ds, strict=True)):
        W = rng.standard_normal((width, d)).astype(np.float32)
        padded[k, :width, :d] = W
        expected.append(reference.recovery(np.float64(W), np.eye(d)[:, :r]))
    found = jax.vmap(lambda W, r: recoveries.recovery(W, r, 3))(padded, jnp.asarray(rs))
    assert_recovery(found, np.array(expected).T, **CLOSE32)


# Features and tasks.


@given(seed=seeds, r=st.sampled_from([1, 2, 4]))
@checked(15)
def test_feature_similarity(seed, r):
    """By Hamming distance, of a padded r, with zero features and distances that do not occur."""
    rng = np.random.default_rng(seed)
    h = np.maximum(rng.standard_normal((12, 5)), 0)
    h[3] = 0
    z = rng.choice([-1.0, 1.0], (12, r))
    expected = reference.feature_similarity(h, z)
    padded = np.zeros((12, 4))
    padded[:, :r] = z
    found = measures.feature_similarity(jnp.asarray(h), jnp.asarray(padded), r)
    # Sums of at most 66 cosines.
    np.testing.assert_allclose(found[: r + 1], expected, rtol=1e-12)
    assert np.all(np.isnan(found[r + 1 :]))


def test_contrastive_loss_of_aligned_features():
    """−1 where features align exactly as labels do, 0 where they are orthogonal; padded tasks do not count."""
    y = np.array([[1, 1, 7], [1, 1, 7], [-1, -1, 7.0]])
    h = np.array([[2, 0], [5, 0], [0, 1.0]])
    # One of the three pairs aligns, with K = 1; the others have cosine 0.
    np.testing.assert_allclose(measures.contrastive_loss(jnp.asarray(h), jnp.asarray(y), 2), -1 / 3, rtol=1e-6)
    np.testing.assert_allclose(measures.contrastive_loss(jnp.ones((3, 2)), jnp.asarray(y), 2), 1 / 3, rtol=1e-6)


def test_a_feature_of_rounding_is_zero():
    """A sample that is orthogonal to W, as happens with ±1 inputs, has 0 or 1e-8, by the order of a sum."""
    rng = np.random.default_rng(0)
    h, y = rng.uniform(0.1, 1, (6, 5)).astype(np.float32), rng.choice([-1.0, 1.0], (6, 3)).astype(np.float32)
    h[2] = 0
    z = rng.choice([-1.0, 1.0], (6, 2))
    near = h.copy()
    near[2, 1] = 2e-7
    for of in (
        lambda h: measures.contrastive_loss(jnp.asarray(h), jnp.asarray(y), 3),
        lambda h: measures.contrastive_loss(jnp.asarray(np.vstack([h, 1e9 * h])), jnp.asarray(np.vstack([y, y])), 3, 6),
        lambda h: measures.feature_similarity(jnp.asarray(h), jnp.asarray(z), 2),
    ):
        assert np.array_equal(of(near), of(h), equal_nan=True)
    small = h.copy()
    small[2, 1] = 1e-4
    assert measures.contrastive_loss(jnp.asarray(small), jnp.asarray(y), 3) != measures.contrastive_loss(
        jnp.asarray(h), jnp.asarray(y), 3
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_have_no_cosines(value):
    """NaN: weights that are finite may have features that are not."""
    rng = np.random.default_rng(0)
    h, y = rng.uniform(0.1, 1, (6, 5)).astype(np.float32), rng.choice([-1.0, 1.0], (6, 3)).astype(np.float32)
    h[2, 1] = value
    assert np.isnan(measures.contrastive_loss(jnp.asarray(h), jnp.asarray(y), 3))
    assert np.isnan(measures.feature_similarity(jnp.asarray(h), jnp.ones((6, 1)), 1)[0])
    beyond = measures.contrastive_loss(jnp.asarray(h), jnp.asarray(y), 3, 2)
    assert beyond == measures.contrastive_loss(jnp.asarray(h[:2]), jnp.asarray(y[:2]), 3)


def test_feature_similarity_of_aligned_features():
    """Features that depend on the orthant alone: cosine 1 at distance 0; orthogonal ones across."""
    z = np.array([[1, 1], [1, 1], [1, -1], [-1, -1.0]])
    h = np.array([[2, 0, 0], [5, 0, 0], [0, 1, 0], [0, 0, 3.0]])
    found = measures.feature_similarity(jnp.asarray(h), jnp.asarray(z), 2)
    assert found.tolist() == [1, 0, 0]
    only_near = measures.feature_similarity(jnp.asarray(h[:2]), jnp.asarray(z[:2]), 2)
    assert only_near[0] == 1
    assert np.all(np.isnan(only_near[1:]))


@given(seed=seeds, num_tasks=st.integers(1, 4))
@checked(15)
def test_task_error(seed, num_tasks):
    """Of the tasks in use only; an output of exactly 0 says +1."""
    rng = np.random.default_rng(seed)
    F, y = rng.standard_normal((30, 4)), rng.choice([-1.0, 1.0], (30, 4))
    F[rng.random((30, 4)) < 0.3] = 0
    F[0] = -0.0
    found = measures.task_error(jnp.asarray(F), jnp.asarray(y), num_tasks)
    # A count over 30 · num_tasks.
    assert found == pytest.approx(reference.task_error(F[:, :num_tasks], y[:, :num_tasks]), rel=1e-14)


def test_task_error_at_zero_output():
    """sign(0) = +1: an untrained head is wrong on the negative labels only."""
    y = jnp.asarray([[1.0, -1.0], [1.0, -1.0], [-1.0, -1.0]])
    assert measures.task_error(jnp.zeros((3, 2)), y, 1) == pytest.approx(1 / 3)
    assert measures.task_error(jnp.zeros((3, 2)), y, 2) == pytest.approx(4 / 6)
