"""Recovery as accelerators compute it: against NumPy in float64, in batches, and in a sweep against a core's."""

import jax
import numpy as np
import pytest
import reference

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.learning import jacobi, krylov, recovery
from mtfl_jax.sweeps import compiling, engine, identity, mappings, store, tables
from mtfl_jax.sweeps.grid import Grid

R = 4
EPS = np.finfo(np.float32).eps
COUNT = 6
TALL, WIDE = (160, 96), (96, 160)  # Few shapes: compiling takes most of the time.


def highest(function):
    return jax.jit(jax.default_matmul_precision("highest")(function))


rng = np.random.default_rng(0)


def noise(width, d, inside=1.0):
    """Gaussian, its first R columns so many times as large."""
    return rng.standard_normal((COUNT, width, d)) * np.where(np.arange(d) < R, inside, 1)


def spectrum(width, d, sigma):
    """Matrices of these singular values in random directions."""
    U, V = (np.linalg.qr(rng.standard_normal((COUNT, side, len(sigma))))[0] for side in (width, d))
    return U * np.asarray(sigma) @ np.swapaxes(V, 1, 2)


MATRICES = {
    "learned, tall": noise(*TALL, 3),
    "learned, wide": noise(*WIDE, 3),
    "learned in part": noise(*TALL, 1.2),
    "noise": noise(*TALL),
    "noise, wide": noise(*WIDE),
    "small": noise(40, 24, 2),
    "small, wide": noise(12, 40),
    "one direction": noise(*TALL, 3) + 30 * spectrum(*TALL, [1.0]) * 10,
    "two equal": spectrum(*TALL, [3, 3, 2, 2, *np.linspace(1, 0.01, 90)]),
    "graded": noise(*TALL) * np.logspace(0, -5, 96),
    "rank 4": spectrum(*TALL, [4, 3, 2, 1]),
}
quick, from_library = (highest(jax.vmap(lambda W: krylov.quick(W, R, R))) for _ in range(2))


@pytest.mark.parametrize("start", ["", "library"])
@pytest.mark.parametrize("name", MATRICES)
def test_spectra_are_those_of_numpy(name, start, monkeypatch):
    """Also from where a library starts the rotations, as on an NVIDIA GPU."""
    if start:
        monkeypatch.setattr(jacobi, "started", jacobi.by_library)
    W = np.float32(MATRICES[name])
    found = (from_library if start else quick)(W / np.abs(W).max(axis=(1, 2), keepdims=True))
    assert found.quick.all()
    for i, own in enumerate(np.float64(W) / np.abs(W[:]).max(axis=(1, 2), keepdims=True)):
        distance, _, _, ratio = reference.recovery(own, np.eye(own.shape[1])[:, :R])
        sigma = np.linalg.svd(own, compute_uv=False)
        # The bound that is accepted: 1e-5, or what a float32 SVD may err by beside this gap.
        bound = max(krylov.TOLERANCE, krylov.ROUNDING * EPS * sigma[0] / (sigma[R - 1] - sigma[R]))
        assert abs(np.sqrt(found.sines2[i, -1]) - distance) <= bound
        np.testing.assert_allclose(found.across[i], np.linalg.norm(own[:, R:], 2), rtol=2 * krylov.TOLERANCE)
        assert abs(found.sigma_r[i] - ratio * np.linalg.norm(own[:, R:], 2)) <= 1e-6 * sigma[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The first layers that one_step leaves, of one task to many, on both laws: num_tasks, W."""
    settings = {"d": 80, "width": 96, "r": R, "n1": 1024, "n2": 1024, "measure": "recovery", "probe": "none"}
    settings |= {"num_tasks": [1, 4, 32, 256], "data": ["gaussian", "rademacher"], "seed": [0, 1]}
    folder = tmp_path_factory.mktemp("trained")
    table = mtfl_jax.sweep(folder=folder, keep="W", moments="never", directions="axis", **settings)
    return [(row["num_tasks"], mtfl_jax.weights(row, folder)["W"]) for _, row in table.iterrows()]


@pytest.mark.parametrize(
    ("accelerator", "padded"),
    [(False, False), (True, True), *(pytest.param(a, not a, marks=pytest.mark.slow) for a in (False, True))],
)
def test_recovery_of_trained_networks_is_that_of_float64(trained, accelerator, padded):
    """Of one task W is noise but for a direction; the bound is 1e-5, or a float32 SVD's beside the gap."""
    many = np.stack([np.float32(W) for _, W in trained])
    if padded:
        many = np.pad(many, ((0, 0), (0, 64), (0, 16)))
    of = highest(jax.vmap(lambda W: recovery.recovery(W, R, R + padded, accelerator=accelerator)))
    found = of(many)
    for i, (num_tasks, W) in enumerate(trained):
        own = np.float64(W)
        sigma = np.linalg.svd(own, compute_uv=False)
        bound = max(krylov.TOLERANCE, krylov.ROUNDING * EPS * sigma[0] / (sigma[R - 1] - sigma[R]))
        distance, recovered, energy, ratio = reference.recovery(own, np.eye(own.shape[1])[:, :R])
        assert abs(found.subspace_distance[i] - distance) <= bound, num_tasks
        assert found.directions_recovered[i] == recovered
        np.testing.assert_allclose(found.feature_energy[i], energy, rtol=1e-5)
        np.testing.assert_allclose(found.spectral_ratio[i], ratio, rtol=5e-5)


def test_directions_that_lack_have_sine_one():
    of = highest(jax.vmap(lambda W: recovery.recovery(W, R, R, accelerator=True)))
    for W in (spectrum(*TALL, [2.0, 1.0]), np.zeros((COUNT, *TALL)), spectrum(24, 20, [2.0, 1.0])):
        found = of(np.float32(W))
        assert (found.subspace_distance == 1).all()
        assert (found.spectral_ratio == 0).all()


@pytest.mark.slow
def test_lanes_that_meet_no_bound_are_mended_alone():
    """Where σ_r = σ_{r+1} and more there is no gap to bound by; the lanes beside them keep their numbers."""
    none = spectrum(*TALL, [3.0] * 12 + [1.0] * 80)
    W = np.float32(np.concatenate([MATRICES["learned, tall"], none, none]))
    alone = quick(W)
    together = highest(jax.vmap(lambda W: krylov.spectra(W, R, R)))(W)
    assert alone.quick[:COUNT].all()
    assert not alone.quick[COUNT:].any()
    assert np.array_equal(alone.quick, together.quick)
    np.testing.assert_allclose(together.sines2[:COUNT], alone.sines2[:COUNT], rtol=1e-5, atol=1e-7)
    for i in range(COUNT, 3 * COUNT):
        own = np.float64(W[i])
        np.testing.assert_allclose(together.across[i], np.linalg.norm(own[:, R:], 2), rtol=1e-5)
    by_one = highest(lambda W: krylov.spectra(W, R, R))(W[-1])
    np.testing.assert_allclose(by_one.across, together.across[-1], rtol=1e-5)


@pytest.mark.parametrize("shape", [(100, 90), (90, 100)])
def test_mended_lanes_are_those_of_numpy(shape):
    for own in np.float32(noise(*shape, 2)):
        found = highest(lambda W: krylov.by_gram(W, R, R))(own)
        distance, *_ = reference.recovery(np.float64(own), np.eye(shape[1])[:, :R])
        assert abs(np.sqrt(found.sines2[-1]) - distance) <= 1e-5


@pytest.mark.parametrize("n", [1, 2, 3, 12, 31, 76, 128])
def test_small_eigenproblems(n):
    rng = np.random.default_rng(n)
    for A in (
        rng.standard_normal((n + 2, n)),
        np.ones((n, n)),
        rng.standard_normal((n, max(1, n // 2))) @ np.eye(max(1, n // 2), n),
    ):
        H = A.T @ A
        found = highest(jacobi.eigh)(np.float32(H))
        expected = np.linalg.eigvalsh(H)[::-1]
        np.testing.assert_allclose(found.values, expected, atol=1e-6 * expected[0])
        V = np.float64(found.vectors)
        np.testing.assert_allclose(V.T @ V, np.eye(n), atol=1e-5)
        np.testing.assert_allclose(H @ V, V * np.float64(found.values), atol=1e-5 * expected[0])


def test_rotations_of_a_lane_do_not_depend_on_the_others():
    """To the bit, though the batch ends when its last lane does; and batches of batches are one batch."""
    of = highest(jax.vmap(jax.vmap(jacobi.eigh)))
    H = np.float32([A.T @ A for A in rng.standard_normal((6, 40, 12))]).reshape(3, 2, 12, 12)
    others = np.broadcast_to(np.diag(np.arange(12, dtype=np.float32)), H.shape).copy()
    others[1, 0] = H[1, 0]
    hard, easy = of(H), of(others)
    np.testing.assert_array_equal(hard.values[1, 0], easy.values[1, 0])
    np.testing.assert_array_equal(hard.vectors[1, 0], easy.vectors[1, 0])
    np.testing.assert_array_equal(easy.values[2, 1], np.arange(12)[::-1])
    np.testing.assert_allclose(hard.values, np.linalg.eigvalsh(np.float64(H))[..., ::-1], rtol=1e-5)


@pytest.mark.slow
def test_a_sweep_as_an_accelerator_runs_it(monkeypatch):
    """The same rows as a core's: here in batches of lanes under vmap, on this machine's processor."""

    def rows():
        grid = Grid(
            {
                **{"d": [40, 80], "r": [2, 3], "width": [32, 96], "n1": 256, "n2": 256, "seed": [0, 1]},
                **{"num_tasks": [1, 64], "n_down": [32, 128], "n_test": 128, "probe_tasks": "parity"},
            },
            compose.composed,
        )
        sink = store.Memory()
        progress = engine.execute(grid, sink)
        assert not progress.failures
        return tables.frame(identity.in_order(grid, sink.table())), progress.mended

    core, _ = rows()
    monkeypatch.setattr(compiling, "accelerator", lambda: True)
    # Of one device: jaxlib's LAPACK calls share a batch among the threads that run the devices, and wait for them.
    monkeypatch.setattr(compiling, "devices", lambda: jax.devices()[:1])
    mappings.make_room(0)
    batched, mended = rows()
    assert mended == 0
    # Without a step the library decomposes every matrix whose sides are large, as those of all programs here are.
    monkeypatch.setattr(krylov, "RESTARTS", -1)
    mappings.make_room(0)
    by_library, mended = rows()
    mappings.make_room(0)
    assert mended == len(core) // len({*core["n_down"]}) == 32
    for found in (batched, by_library):
        for name in ("subspace_distance", "feature_energy", "spectral_ratio"):
            np.testing.assert_allclose(found[name], core[name], rtol=1e-4, atol=2e-5, err_msg=name)
        assert (found["directions_recovered"] == core["directions_recovered"]).all()
        # A test sample whose decision is rounding may fall on the other side.
        assert (np.abs(found["downstream_error"] - core["downstream_error"]) <= 1 / 128).mean() > 0.98
