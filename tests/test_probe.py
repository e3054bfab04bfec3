"""The downstream probe against scikit-learn's solvers, and its behaviour at the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

from mtfl_jax.learning import keys, probe

MAX_N, TEST = 40, 64
LOSSES = {"logistic": lambda m: np.logaddexp(0, -m), "svm": lambda m: np.maximum(0, 1 - m) ** 2}
JAX_LOSSES = {"logistic": lambda m: jax.nn.softplus(-m), "svm": lambda m: jax.nn.relu(1 - m) ** 2}

# Solvers compile twice as fast at this level and are as exact.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def problem(n, m, seed, noise=0.3, max_n=MAX_N):
    """Features (max_n, m) and labels of which the first n count; the others are garbage of another size and law."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((max_n, 3))
    phi = np.maximum(x @ rng.standard_normal((3, m)) + rng.uniform(-1.5, 1.5, m), 0)
    y = np.where(x[:, 0] + noise * rng.standard_normal(max_n) > 0, 1.0, -1.0)
    phi[n:] = 30 * rng.standard_normal((max_n - n, m))
    y[n:] = rng.choice([-7.0, 7.0], max_n - n)
    return phi, y


# Ridge: y is regressed on phi with a free intercept, λ by leave-one-out.

RIDGES = {"eigenvectors": probe.ridge, "factors": probe.ridge_by_factors}
"""As a processor's cores have it, and as accelerators do."""


@pytest.fixture(params=RIDGES)
def ridge(request):
    return jax.jit(RIDGES[request.param])


@functools.cache
def ridge_by_refitting(n, m, seed, noise):
    """Leave-one-out squared error of every λ by n refits each; and the refit on all at the best λ."""
    phi, y = (part[:n] for part in problem(n, m, seed, noise))
    errors = []
    for penalty in probe.PENALTIES:
        left_out = 0.0
        for i in range(n):
            kept = np.arange(n) != i
            # The penalty is λ n with n the whole sample's size, in the refits too.
            model = Ridge(alpha=penalty * n, solver="cholesky").fit(phi[kept], y[kept])
            left_out += (y[i] - model.predict(phi[i : i + 1])[0]) ** 2
        errors.append(left_out)
    best = int(np.argmin(errors))
    model = Ridge(alpha=probe.PENALTIES[best] * n, solver="cholesky").fit(phi, y)
    return np.array(errors), best, model.coef_, model.intercept_


# (n, m, seed, noise): primal and dual by arrays of MAX_N = 40 rows, whole and padded; many λ are best somewhere.
RIDGE = [
    (40, 8, 0, 0.1),
    (40, 8, 1, 2.0),
    (30, 8, 2, 10.0),
    (12, 8, 3, 0.3),
    (6, 8, 4, 0.3),
    (40, 50, 5, 0.1),
    (40, 50, 6, 2.0),
    (25, 50, 7, 0.3),
    (12, 50, 8, 10.0),
    (5, 50, 9, 0.3),
]


@pytest.mark.parametrize(("n", "m", "seed", "noise"), RIDGE)
def test_ridge_and_its_penalty(ridge, x64, n, m, seed, noise):
    """Float64 with condition numbers up to 1e7 (eps 2e-16, λ n as small as 1e-4 n) leaves 1e-8 of the coefficients."""
    errors, best, coefficients, intercept = ridge_by_refitting(n, m, seed, noise)
    others = np.delete(errors, best)
    # The choice is clear, so that rounding cannot make another one as good.
    assert others.min() > errors[best] * (1 + 1e-6)
    phi, y = problem(n, m, seed, noise)
    beta, offset = ridge(phi, y, n)
    np.testing.assert_allclose(beta, coefficients, rtol=0, atol=1e-8 * np.linalg.norm(coefficients))
    assert float(offset) == pytest.approx(intercept, rel=1e-8, abs=1e-8)
    assert np.linalg.norm(coefficients) > 0


def test_the_ridge_cases_prefer_different_penalties():
    """Or else a fixed penalty would pass."""
    assert len({ridge_by_refitting(*case)[1] for case in RIDGE}) >= 4


def test_ridge_does_not_depend_on_the_padding(ridge, x64):
    """With 35 columns, 30 rows are solved in the dual and 40 in the primal; columns of zeros count for nothing."""
    phi, y = problem(30, 8, 3)
    wide = np.pad(phi, ((0, 0), (0, 27)))
    padded, exact = ridge(wide, y, 30), ridge(wide[:30], y[:30], 30)
    # Float64 rounding at condition numbers up to 1e7.
    np.testing.assert_allclose(padded[0], exact[0], rtol=0, atol=1e-8 * np.linalg.norm(exact[0]))
    assert float(padded[1]) == pytest.approx(float(exact[1]), rel=1e-8, abs=1e-8)
    assert np.all(np.asarray(padded[0])[8:] == 0)
    assert np.linalg.norm(padded[0]) > 0


@pytest.mark.parametrize(("n", "m", "seed", "noise"), [(30, 8, 2, 10.0), (40, 8, 1, 2.0), (25, 50, 7, 0.3)])
def test_ridge_in_single_precision(ridge, n, m, seed, noise):
    """Solutions move by eps (1.2e-7) times the condition number, of which the eigenvalues' errors are a few times as
    large: 10 eps κ of the size of β.
    """
    _, best, coefficients, _ = ridge_by_refitting(n, m, seed, noise)
    phi, y = (part.astype(np.float32) for part in problem(n, m, seed, noise))
    centred = phi[:n] - phi[:n].mean(axis=0)
    condition = 1 + np.linalg.norm(centred, 2) ** 2 / (probe.PENALTIES[best] * n)
    beta, intercept = ridge(phi, y, n)
    assert beta.dtype == intercept.dtype == np.float32
    assert condition < 1e5
    assert np.linalg.norm(beta - coefficients) < 10 * 1.2e-7 * condition * np.linalg.norm(coefficients)


# Margin losses: a fit at one strength, then the λ of least loss on the held-out quarter.


def sklearn_fit(name, phi, y, strength):
    """scikit-learn minimises C Σ loss + ½‖β‖², so C = 1/strength; (β, β₀)."""
    if name == "logistic":
        model = LogisticRegression(C=1 / strength, tol=1e-10, solver="newton-cholesky", max_iter=1000)
    else:
        # liblinear penalises (β₀/intercept_scaling)² with ‖β‖²: 1e-8 of what would matter.
        scaling = {"intercept_scaling": 1e4, "tol": 1e-11, "max_iter": 100_000}
        model = LinearSVC(C=1 / strength, loss="squared_hinge", dual=False, **scaling)
    model.fit(phi, y)
    return model.coef_[0], model.intercept_[0]


def objective(name, phi, y, strength, beta, intercept):
    beta, intercept = np.asarray(beta, np.float64), np.asarray(intercept, np.float64)
    return np.sum(LOSSES[name](y * (phi @ beta + intercept))) + strength / 2 * np.sum(beta**2)


def assert_same_fit(name, phi, y, strength, found):
    """Both solvers stop at gradients of 1e-10 or below, which leaves 1e-6 of the coefficients at these curvatures; the
    objective, flat at its minimum, agrees to 1e-10.
    """
    expected = sklearn_fit(name, phi, y, strength)
    values = [objective(name, phi, y, strength, *fit) for fit in (found, expected)]
    assert values[0] == pytest.approx(values[1], rel=1e-10)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-6 * np.linalg.norm(expected[0]))
    assert float(found[1]) == pytest.approx(expected[1], rel=1e-6, abs=1e-6)
    assert np.linalg.norm(found[0]) > 0


fit_margin = {name: compiled(functools.partial(probe.fit_margin, loss)) for name, loss in JAX_LOSSES.items()}
probes = {name: compiled(record.fit) for name, record in probe.PROBES.items() if record.fit}


@pytest.mark.parametrize("name", JAX_LOSSES)
@pytest.mark.parametrize(("n", "strength"), [(40, 1.0), (40, 0.01), (25, 20.0)])
def test_fit_margin(x64, name, n, strength):
    phi, y = problem(n, 6, seed=n, noise=1.0)
    found = fit_margin[name](phi, y, (np.arange(MAX_N) < n) * 1.0, strength)
    assert_same_fit(name, phi[:n], y[:n], strength, found)


def held_out_choice(name, phi, y):
    """The penalty by the rule: fit on all but the last quarter, least loss on it, the strongest among equals."""
    quarter = len(y) // 4
    if quarter == 0:
        return probe.PENALTIES[0]
    fitted, held = slice(0, len(y) - quarter), slice(len(y) - quarter, None)
    found = []
    for penalty in probe.PENALTIES:
        beta, intercept = sklearn_fit(name, phi[fitted], y[fitted], penalty * (len(y) - quarter))
        found.append(np.sum(LOSSES[name](y[held] * (phi[held] @ beta + intercept))))
    best = int(np.argmin(found))
    # The choice is clear, so that no rounding, float32's included, can make another one as good.
    assert np.delete(found, best).min() > found[best] * (1 + 1e-4)
    return probe.PENALTIES[best]


# (n, seed, noise); below 4 samples no quarter is left to hold out.
HELD_OUT = [(40, 0, 0.1), (40, 1, 1.0), (25, 2, 3.0), (30, 3, 0.3), (3, 4, 0.3)]


def varied(n, seed, noise):
    """A problem whose labels are not all alike."""
    phi, y = problem(n, 6, seed, noise)
    y[:2] = 1, -1
    return phi, y


@pytest.mark.parametrize("name", JAX_LOSSES)
@pytest.mark.parametrize(("n", "seed", "noise"), HELD_OUT)
def test_held_out_choice(x64, name, n, seed, noise):
    phi, y = varied(n, seed, noise)
    penalty = held_out_choice(name, phi[:n], y[:n])
    assert_same_fit(name, phi[:n], y[:n], penalty * n, probes[name](phi, y, n))


@pytest.mark.parametrize("name", JAX_LOSSES)
def test_the_held_out_cases_prefer_different_penalties(name):
    """Or else a fixed penalty would pass."""
    chosen = {held_out_choice(name, *(part[:n] for part in varied(n, seed, noise))) for n, seed, noise in HELD_OUT}
    assert len(chosen) >= 3


@pytest.mark.parametrize("name", JAX_LOSSES)
@pytest.mark.parametrize(("n", "seed", "noise"), HELD_OUT)
def test_margin_probes_in_single_precision(name, n, seed, noise):
    """The objective is a float32 sum of 40 terms (eps 1.2e-7) and is flat at its minimum: within 1e-5 of the float64
    minimum. λ n‖Δβ‖²/2 is at most that gap, which bounds the coefficients.
    """
    phi, y = varied(n, seed, noise)
    found = probes[name](phi.astype(np.float32), y.astype(np.float32), n)
    assert found[0].dtype == np.float32
    phi, y = phi[:n], y[:n]
    strength = held_out_choice(name, phi, y) * n
    expected = sklearn_fit(name, phi, y, strength)
    least = objective(name, phi, y, strength, *expected)
    assert objective(name, phi, y, strength, *found) < least * (1 + 1e-5)
    assert np.linalg.norm(found[0] - expected[0]) < np.sqrt(2e-5 * least / strength)


# Edges, in float32 as in a sweep


def decisions(name, phi, y, n):
    beta, intercept = (np.asarray(part) for part in probes[name](phi.astype(np.float32), y.astype(np.float32), n))
    assert np.all(np.isfinite(beta))
    assert np.isfinite(intercept)
    return phi @ beta + intercept


@pytest.mark.parametrize("name", probes)
@pytest.mark.parametrize("n", [1, 2, 3, 40])
@pytest.mark.parametrize("label", [-1.0, 1.0])
def test_constant_labels_are_learned(name, n, label):
    phi, y = problem(n, 6, seed=0)
    y[:n] = label
    assert np.all(np.sign(decisions(name, phi, y, n)[:n]) == label)


@pytest.mark.parametrize("name", probes)
def test_two_samples_of_either_label_are_separated(name):
    phi, y = varied(2, 1, 0.3)
    assert np.array_equal(np.sign(decisions(name, phi, y, 2)[:2]), [1, -1])


@pytest.mark.parametrize("name", probes)
@pytest.mark.parametrize("n", [2, 3, 40])
@pytest.mark.parametrize("label", [-1.0, 1.0])
def test_constant_features_give_the_majority(name, n, label):
    """Features of W = 0 are σ(c), alike for every sample. Of two samples, one of either label, both answers are right,
    but it must be one for all.
    """
    phi, y = problem(n, 6, seed=0)
    phi[:] = np.maximum(np.linspace(-1, 1.5, 6), 0)
    y[:n] = np.where(np.arange(n) % 3 == 1, -label, label)
    found = decisions(name, phi, y, n)
    assert np.all(np.isfinite(found))
    assert len(set(found >= 0)) == 1
    if n != 2:
        assert np.all(np.sign(found) == label)


# The whole: features of W, their scale, the fit, the test error

D, WIDTH = 5, 12
downstream = jax.jit(probe.downstream, static_argnames=("probe", "sizes", "accelerator"))


@functools.cache
def task(n=30, noise=0.2, seed=0):
    """W, c, x, y, x_test, y_test of a task that depends on the first two coordinates."""
    rng = np.random.default_rng(seed)
    x, x_test = rng.standard_normal((MAX_N, D)), rng.standard_normal((TEST, D))
    y, y_test = (
        np.where(p[:, 0] + p[:, 1] ** 2 > 0.5 + noise * rng.standard_normal(len(p)), 1.0, -1.0) for p in (x, x_test)
    )
    W = rng.standard_normal((WIDTH, D)) * rng.uniform(0.1, 10, (WIDTH, 1))
    return W, rng.uniform(-1.5, 1.5, WIDTH), x, y, x_test, y_test


def error_of(W, c, x, y, x_test, y_test, n=30, width=WIDTH, dtype=np.float64, accelerator=False):
    args = [np.asarray(part, dtype) for part in (W, c, x, y)]
    test = [np.asarray(part, dtype) for part in (x_test, y_test)]
    (error,) = downstream("ridge", *args, np.asarray([n]), (len(x),), width, *test, accelerator=accelerator)
    return float(error)


def features_by_definition(W, c, x, n):
    """σ(V x + c) of every row of x, V scaled on the first n."""
    norms = np.linalg.norm(W, axis=1, keepdims=True)
    V = np.divide(W, norms, out=np.zeros_like(W), where=norms > 0)
    V = V / np.sqrt(np.mean((x[:n] @ V.T) ** 2))
    return V, np.maximum(x @ V.T + c, 0)


@pytest.fixture
def seen(monkeypatch):
    """What downstream hands to a probe, which answers with a fixed classifier."""
    calls = []

    def spy(phi, y, n):
        calls.append((np.asarray(phi), np.asarray(y), n))
        return jnp.linspace(-1, 1, phi.shape[1]), jnp.asarray(0.1)

    monkeypatch.setitem(probe.PROBES, "spy", probe.Probe("spy", "a fixed classifier", spy))
    return calls


def test_features_and_error_by_definition(x64, seen):
    """A zero row has feature σ(c_j); the test features take the probe's scale. Float64 rounding of sums of 40 terms."""
    W, c, x, y, x_test, y_test = task()
    W = W.copy()
    W[3] = 0
    (found,) = probe.downstream(
        "spy", *map(jnp.asarray, (W, c, x, y, [30])), (MAX_N,), WIDTH, *map(jnp.asarray, (x_test, y_test))
    )
    ((phi, labels, n),) = seen
    V, expected = features_by_definition(W, c, x, 30)
    np.testing.assert_allclose(phi, expected, rtol=0, atol=1e-13)
    assert np.all(phi[:, 3] == max(c[3], 0))
    assert np.array_equal(labels, y)
    assert n == 30
    decision = np.maximum(x_test @ V.T + c, 0) @ np.linspace(-1, 1, WIDTH) + 0.1
    assert float(found) == np.mean(np.sign(decision) != y_test)
    assert 0 < float(found) < 1


def test_preactivations_have_unit_mean_square_on_the_sample(x64, seen):
    """Biases of 1000 keep every feature active and so show V x."""
    W, _, x, y, x_test, y_test = task()
    for n in (30, 7):
        probe.downstream(
            "spy",
            *map(jnp.asarray, (W, np.full(WIDTH, 1000.0), x, y, [n])),
            (MAX_N,),
            WIDTH,
            *map(jnp.asarray, (x_test, y_test)),
        )
        v = seen[-1][0][:n] - 1000
        # 1000 has an eps of 1e-13.
        assert np.mean(v**2) == pytest.approx(1, rel=1e-11)


def test_padding_changes_nothing(x64):
    """More rows, neurons and coordinates: their weights are zero, their samples and biases garbage."""
    W, c, x, y, x_test, y_test = task()
    rng = np.random.default_rng(1)
    extra = rng.standard_normal((25, D))
    exact = error_of(W, c, x[:30], y[:30], x_test, y_test)
    padded = error_of(
        np.pad(W, ((0, 6), (0, 2))),
        np.concatenate([c, rng.uniform(-1.5, 1.5, 6)]),
        np.pad(np.concatenate([x[:30], 30 * extra]), ((0, 0), (0, 2))),
        np.concatenate([y[:30], rng.choice([-1, 1], 25)]),
        np.pad(x_test, ((0, 0), (0, 2))),
        y_test,
    )
    assert padded == exact
    assert 0 < exact < 0.5


def test_downstream_error_is_that_of_the_best_ridge(x64):
    W, c, x, y, x_test, y_test = task()
    V, phi = features_by_definition(W, c, x, 30)
    phi, y_fit = phi[:30], y[:30]
    squares = []
    for penalty in probe.PENALTIES:
        fits = [Ridge(alpha=penalty * 30).fit(np.delete(phi, i, 0), np.delete(y_fit, i)) for i in range(30)]
        squares.append(sum((y_fit[i] - fit.predict(phi[i : i + 1])[0]) ** 2 for i, fit in enumerate(fits)))
    best = Ridge(alpha=probe.PENALTIES[np.argmin(squares)] * 30).fit(phi, y_fit)
    expected = np.mean(np.sign(best.predict(np.maximum(x_test @ V.T + c, 0))) != y_test)
    assert error_of(W, c, x, y, x_test, y_test) == expected


# Powers of two, so that scaling alone rounds nothing. Up to 2^80 the weights are ordinary float32 numbers; their
# squares are not.
@pytest.mark.parametrize("exponent", [-12, 12, -80, 80])
def test_the_scale_of_the_weights_does_not_matter(exponent):
    """Each row's own scale does not, and a common factor does not."""
    W, c, x, y, x_test, y_test = task()
    rows = W * 2.0 ** np.arange(WIDTH)[:, None]
    plain = error_of(W, c, x, y, x_test, y_test, dtype=np.float32)
    assert 0 < plain < 0.5
    assert error_of(rows, c, x, y, x_test, y_test, dtype=np.float32) == plain
    assert error_of(W * 2.0**exponent, c, x, y, x_test, y_test, dtype=np.float32) == plain


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_weights_give_the_error_of_a_constant_classifier(dtype):
    W, c, x, y, x_test, y_test = task()
    majority = np.sign(y[:30].sum())
    assert majority != 0
    with jax.enable_x64(dtype is np.float64):
        found = error_of(np.zeros_like(W), c, x, y, x_test, y_test, dtype=dtype)
    # A mean of 64 zeros and ones is exact.
    assert found == np.mean(y_test != majority)


def test_single_precision_is_close():
    """Errors count samples: at most two of 64 change sides."""
    W, c, x, y, x_test, y_test = task()
    single = error_of(W, c, x, y, x_test, y_test, dtype=np.float32)
    with jax.enable_x64(True):
        double = error_of(W, c, x, y, x_test, y_test)
    assert abs(single - double) <= 2 / TEST


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_samples_give_an_error(n):
    W, c, x, y, x_test, y_test = task()
    found = error_of(W, c, x, y, x_test, y_test, n=n, dtype=np.float32)
    assert 0 <= found <= 1
    if n == 1:
        assert found == np.mean(y_test != y[0])


def test_a_learned_feature_beats_noise():
    """On a halfspace of 200 samples: its own direction errs little, and labels unrelated to x err as chance does.

    Chance is within 5 standard errors of ½, of 400 test samples.
    """
    rng = np.random.default_rng(3)
    x, x_test = rng.standard_normal((200, D)), rng.standard_normal((400, D))
    c = np.asarray(probe.biases(keys.root(0), WIDTH))
    W = np.zeros((WIDTH, D))
    W[:, 0] = np.where(np.arange(WIDTH) % 2, 1, -1)
    y, y_test = np.sign(x[:, 0]), np.sign(x_test[:, 0])
    assert error_of(W, c, x, y, x_test, y_test, n=200, dtype=np.float32) < 0.05
    y, y_test = rng.choice([-1, 1], 200), rng.choice([-1, 1], 400)
    chance = error_of(W, c, x, y, x_test, y_test, n=200, dtype=np.float32)
    assert abs(chance - 0.5) < 5 * 0.5 / np.sqrt(400)


@pytest.mark.parametrize("accelerator", [False, True])
def test_ridge_of_many_samples_and_features_in_float32(accelerator):
    """1024 samples of 256 points, 1024 random features: the parity of three coordinates is a small part of the largest
    eigenvalue, and the samples hold every point, so that none is misclassified (in float64, and here).
    """
    rng = np.random.default_rng(0)
    W = rng.standard_normal((1024, 8))
    x, x_test = (rng.choice([-1.0, 1.0], (n, 8)) for n in (1024, 256))
    c = np.asarray(probe.biases(keys.root(0), 1024))
    for width in (1024, 1000):
        args = W[:width], c[:width], x, np.prod(x[:, :3], axis=1), x_test, np.prod(x_test[:, :3], axis=1)
        assert error_of(*args, n=1024, width=width, dtype=np.float32, accelerator=accelerator) == 0


def test_ridge_in_float32_chooses_as_in_float64(ridge):
    """Few samples, more features, and a weakest penalty beside which the rounding of an eigenvalue is large: the λ
    chosen has a leave-one-out error within a tenth of the least, which rounding of what is near a tie allows.
    """
    n, m = 8, 16
    y = np.repeat([1.0, -1.0], n // 2)
    chosen_well = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        C = np.linalg.qr(rng.standard_normal((n, n)) - np.eye(n))[0][:, :7]
        C = (C - C.mean(axis=0)) * np.geomspace(60, 1, 7) @ np.linalg.qr(rng.standard_normal((m, 7)))[0].T
        phi = np.float32(C + rng.uniform(0, 1, m))
        C = phi - phi.mean(axis=0, dtype=np.float64)
        errors, betas = [], []
        for penalty in probe.PENALTIES * n:
            inverse = np.linalg.inv(C @ C.T + penalty * np.eye(n))
            errors.append(np.sum((penalty * inverse @ y / (penalty * np.diag(inverse) - 1 / n)) ** 2))
            betas.append(C.T @ inverse @ y)
        beta = np.asarray(ridge(phi, np.float32(y), n)[0], np.float64)
        chosen = np.argmin([np.linalg.norm(beta - other) / np.linalg.norm(other) for other in betas])
        chosen_well.append(errors[chosen] <= 1.1 * min(errors))
    assert all(chosen_well)
