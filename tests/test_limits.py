"""The kernel identity of `one_step`, its quadrature and its population limit against independent simulation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtfl_jax.learning import data, keys, limits, moments, network, tasks, updates

KEY = keys.named(keys.root(5), "test_limits")

# The identity


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


CASES = [(name, 0) for name, family in tasks.FAMILIES.items() if family.tabular] + [("parity", 2), ("parity", 3)]
D, R, WIDTH, TASKS, N1, N2 = 6, 3, 5, 7, 200, 150


def sized(family, size):
    """The settings of a family whose parity size is that."""
    return {field.name: size for field in tasks.FAMILIES[family].settings}


@functools.cache
def all_tables():
    """Truth tables of every case."""

    @jax.jit
    def draw():
        of = {(family, size): tasks.sample(KEY, family, TASKS, r=R, **sized(family, size)) for family, size in CASES}
        return {case: tasks.truth_tables(drawn, R) for case, drawn in of.items()}

    return draw()


@functools.cache
def drawn(law):
    """Parameters with random biases, and the inputs of heads and representation."""

    @jax.jit
    def draw():
        x = [
            data.inputs(keys.named(KEY, name), law, n, D, r=R, nuisance_scale=0.8) for name, n in (("1", N1), ("2", N2))
        ]
        return network.initialise(KEY, D, WIDTH, TASKS, bias="random"), x

    return draw()


@jax.jit
def both_ways(params, heads, features, tables):
    """W⁺ of one_step, at lr_a = 0.7 and lr_w = 1.3, and Σ_z (K h)_z S_z with its moments."""
    max_r = int(math.log2(tables.shape[1]))
    index = [tasks.orthant_index(data.orthants(batch.x, R, max_r)) for batch in (heads, features)]
    blocks = moments.by_orthant(index[1], features.n, 2**max_r)
    table = moments.Moments(
        moments.head_table(params, heads.x, index[0], heads.n, 2**max_r),
        moments.feature_table(params, features.x[blocks.sample.reshape(-1)].T, blocks, features.n, 2**max_r),
    )
    stepped = updates.one_step(params, heads, features, ("linear",), lr_a=0.7, lr_w=1.3)
    W, A = moments.one_step(table, tables, TASKS, lr_a=0.7, lr_w=1.3)
    return stepped["W"], moments.kernel_step(table, tasks.contrastive_kernel(tables)), table, (stepped["A"], W, A)


def problem(case, bias, law="gaussian", max_r=R):
    params, inputs = drawn(law)
    tables = all_tables()[case]
    batches = [
        updates.Batch(x, tables[:, tasks.orthant_index(data.orthants(x, R, R))].T, len(x), TASKS) for x in inputs
    ]
    params = params if bias == "random" else params | {"b": jnp.zeros(WIDTH)}
    return params, *batches, jnp.pad(tables, ((0, 0), (0, 2**max_r - 2**R)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bias", ["zero", "random"])
@pytest.mark.parametrize(("law", "max_r"), [("gaussian", R), ("rademacher", R + 1)])
def test_one_step_depends_on_tasks_through_the_kernel_alone(x64, case, bias, law, max_r):
    """Float64 sums of 200 terms: 1e-10 of the size of W⁺ leaves room for 1e5 roundings. The constant is lr_a lr_w."""
    *out, _, (heads, W, A) = both_ways(*problem(case, bias, law, max_r))
    stepped, direction = (np.asarray(each) for each in out)
    assert stepped.dtype == np.float64
    assert np.linalg.norm(stepped, axis=1).min() > 0
    constant = np.sum(stepped * direction) / np.sum(direction**2)
    assert constant > 0
    np.testing.assert_allclose(stepped, constant * direction, rtol=0, atol=1e-10 * np.linalg.norm(stepped))
    np.testing.assert_allclose(constant, 0.7 * 1.3, rtol=1e-10)
    np.testing.assert_allclose(W, stepped, rtol=0, atol=1e-10 * np.linalg.norm(stepped))
    np.testing.assert_allclose(A, heads, rtol=0, atol=1e-10 * np.linalg.norm(heads))


def test_moments_by_definition(x64):
    params, heads, features, tables = problem(("balanced", 0), "random")
    table = both_ways(params, heads, features, tables)[2]
    W, b = np.asarray(params["W"]), np.asarray(params["b"])
    h, S = np.zeros((8, WIDTH)), np.zeros((8, WIDTH, D))
    for x in np.asarray(heads.x):
        h[sum(2**k for k in range(R) if x[k] >= 0)] += np.maximum(W @ x + b, 0) / N1
    for x in np.asarray(features.x):
        S[sum(2**k for k in range(R) if x[k] >= 0)] += np.outer(W @ x + b > 0, x) / N2
    # Float64 sums of 200 terms of unit size.
    np.testing.assert_allclose(table.h, h, rtol=0, atol=1e-13)
    np.testing.assert_allclose(table.S, S, rtol=0, atol=1e-13)


# Quadrature


def half_normal_moment(k):
    """E |g|^k = 2^{k/2} Γ((k + 1)/2)/√π."""
    return math.exp(k / 2 * math.log(2) + math.lgamma((k + 1) / 2)) / math.sqrt(math.pi)


@pytest.mark.parametrize("points", [1, 4, 5, 8, 16])
def test_quadrature_integrates_powers(points):
    """To degree 2·points − 1, in float64: the moments' own logarithms carry 1e-13, the sums less."""
    nodes, weights = limits.half_normal_rule(points)
    assert nodes.shape == weights.shape == (points,)
    assert nodes.dtype == weights.dtype == np.float64
    for k in range(2 * points):
        assert weights @ nodes**k == pytest.approx(half_normal_moment(k), rel=1e-12)


@pytest.mark.parametrize("points", [8, 16, 32, 64])
def test_quadrature_integrates_polynomials(points):
    """To degree 2·points − 1, in a basis of size 1: Chebyshev polynomials on [0, 13].

    The powers above test the same badly for many points: high ones rest on the last nodes alone, whose weights below
    1e-30 are rounding. The reference is a Gauss–Legendre sum with its own error of 2e-12; beyond 13 lies 1e-38.
    """
    nodes, weights = limits.half_normal_rule(points)
    t, w = np.polynomial.legendre.leggauss(250)
    u = 6.5 * (t + 1)
    w = 6.5 * w * np.exp(-(u**2) / 2) * math.sqrt(2 / math.pi)
    expected = w @ np.polynomial.chebyshev.chebvander(t, 2 * points - 1)
    found = weights @ np.polynomial.chebyshev.chebvander(nodes / 6.5 - 1, 2 * points - 1)
    assert np.abs(expected).max() > 0.9
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("max_r", [1, 2, 3, 4, 5, 6])
def test_tensor_rule(x64, max_r):
    """Mean 1, E|u_k|² = 1 and E|u_0||u_{r−1}| = 2/π, exact but for float64 rounding of up to 4096 terms."""
    nodes, weights = (np.asarray(part) for part in limits.half_normal_nodes(KEY, max_r))
    assert nodes.shape == (len(weights), max_r)
    assert np.all(nodes > 0)
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(weights @ nodes**2, 1, rtol=1e-12)
    if max_r > 1:
        assert weights @ (nodes[:, 0] * nodes[:, -1]) == pytest.approx(2 / math.pi, rel=1e-12)


def test_monte_carlo_nodes():
    """Above r = 6: |u| with the half-normal's first two moments within 5 standard errors, and unit total weight."""
    nodes, weights = (np.asarray(part, np.float64) for part in limits.half_normal_nodes(KEY, 7))
    n = len(weights)
    assert nodes.shape == (n, 7)
    assert np.all(nodes >= 0)
    assert weights.sum() == pytest.approx(1, rel=1e-6)
    assert np.all(np.abs(weights @ nodes - math.sqrt(2 / math.pi)) < 5 * math.sqrt((1 - 2 / math.pi) / n))
    assert np.all(np.abs(weights @ nodes**2 - 1) < 5 * math.sqrt(2 / n))


def test_monte_carlo_nodes_of_fewer_directions_are_the_first_of_more():
    """Or else padding r changes the population limit."""
    fewer, more = (np.asarray(limits.half_normal_nodes(KEY, max_r)[0]) for max_r in (7, 8))
    assert np.array_equal(fewer, more[:, :7])


# The population limit


def simulate(rng, params, tables, n, nuisance_scale=1.0, label_noise=0.0):
    """One replicate of A⁺ and W⁺ in NumPy float64, n fresh samples for heads and n for the representation."""
    W, b = params["W"], params["b"]
    (num_tasks, m), d = tables.shape, W.shape[1]
    r = int(math.log2(m))

    def sample():
        x = rng.standard_normal((n, d))
        y = tables[:, (x[:, :r] >= 0) @ (1 << np.arange(r))]
        if label_noise:
            y = np.where(rng.random((num_tasks, n)) < label_noise, -y, y)
        x[:, r:] *= nuisance_scale
        return x, y, x @ W.T + b

    _, y, pre = sample()
    A = y @ np.maximum(pre, 0) / n
    x, y, pre = sample()
    # ∇_{w_j} of the mean over tasks and samples of −y a_tj σ(w_j·x + b_j).
    return A, ((y.T @ A) * (pre > 0)).T @ x / (n * num_tasks)


population = jax.jit(limits.population_step, static_argnames="max_r")


def setting(d, r, width=4, num_tasks=3, bias=True, seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "W": rng.standard_normal((width, d)) / np.sqrt(d),
        "b": rng.uniform(-1, 1, width) if bias else np.zeros(width),
        "A": np.zeros((num_tasks, width)),
    }
    return params, rng.choice([-1.0, 1.0], (num_tasks, 2**r))


def limit_of(params, tables, max_r=None, key=KEY, **knobs):
    r = int(math.log2(tables.shape[1]))
    moved = population(key, params, tables, r=r, max_r=r if max_r is None else max_r, num_tasks=len(tables), **knobs)
    return {name: np.asarray(leaf) for name, leaf in moved.items()}


def replicates(count, *args, seed=1, **kwargs):
    rng = np.random.default_rng(seed)
    A, W = zip(*(simulate(rng, *args, **kwargs) for _ in range(count)), strict=True)
    return np.stack(A), np.stack(W)


@pytest.mark.parametrize(
    ("bias", "nuisance_scale", "label_noise"), [(False, 1.0, 0.0), (True, 0.5, 0.0), (True, 1.7, 0.2)]
)
def test_population_limit_is_the_mean_of_simulations(x64, bias, nuisance_scale, label_noise):
    """Heads and representation have samples of their own, so A⁺ and W⁺ are unbiased at any n: every entry's mean over
    64 independent replicates lies within 5 of its standard errors, which together are below 2 % of the limit.
    """
    params, tables = setting(d=6, r=2, bias=bias)
    A, W = replicates(64, params, tables, 8192, nuisance_scale, label_noise)
    exact = limit_of(params, tables, nuisance_scale=nuisance_scale, signal=1 - 2 * label_noise, lr_a=0.7, lr_w=1.3)
    # lr_a scales the heads and through them W⁺, lr_w scales W⁺ alone.
    for simulated, limit in ((A, exact["A"] / 0.7), (W, exact["W"] / (0.7 * 1.3))):
        error = simulated.std(axis=0, ddof=1) / np.sqrt(len(simulated))
        assert np.linalg.norm(error) < 0.02 * np.linalg.norm(limit)
        assert np.all(np.abs(simulated.mean(axis=0) - limit) < 5 * error)
    assert np.array_equal(exact["b"], params["b"])


def test_population_limit_by_monte_carlo_over_the_directions(x64):
    """r = 7 takes random nodes. Their error is that of 16 keys; each key's own bias, O(1/4096), is far below."""
    params, tables = setting(d=9, r=7)
    A, W = replicates(64, params, tables, 8192)
    exact = [limit_of(params, tables, key=key) for key in keys.indexed(KEY, 16)]
    for simulated, limit in ((A, np.stack([e["A"] for e in exact])), (W, np.stack([e["W"] for e in exact]))):
        errors = [part.std(axis=0, ddof=1) / np.sqrt(len(part)) for part in (simulated, limit)]
        assert np.all(np.abs(simulated.mean(axis=0) - limit.mean(axis=0)) < 5 * np.hypot(*errors))


def test_simulations_approach_the_limit_like_the_root_of_n(x64):
    """The mean squared relative error falls by 4 when n grows fourfold, within 5 standard errors over replicates.

    The tolerance must stay below 2, so that neither n^-1/4 (a factor of 2) nor n^-1 (of 16) would pass. What is left of
    the next order, a product of the two samples' errors, adds 1/n of itself and is below the tolerance.
    """
    params, tables = setting(d=6, r=2)
    exact = limit_of(params, tables)["W"]
    squares = []
    for n in (1024, 4096):
        _, W = replicates(300, params, tables, n, seed=n)
        squares.append(np.sum((W - exact) ** 2, axis=(1, 2)) / np.sum(exact**2))
    means = [part.mean() for part in squares]
    relative = np.hypot(
        *(part.std(ddof=1) / np.sqrt(len(part)) / mean for part, mean in zip(squares, means, strict=True))
    )
    tolerance = 5 * relative * 4
    assert tolerance < 2
    assert abs(means[0] / means[1] - 4) < tolerance


def test_population_limit_of_one_direction_in_closed_form(x64):
    """d = r = 1, b = 0: a neuron w > 0 is active where x > 0, so h_+ = w/√(2π), S_+ = 1/√(2π) and W⁺ = w/(2π)."""
    params = {"W": np.array([[0.5], [2.0], [-3.0]]), "b": np.zeros(3), "A": np.zeros((2, 3))}
    moved = limit_of(params, np.array([[1.0, -1.0], [-1.0, -1.0]]))
    # Float64 rounding; the integrands are linear in each orthant, so the quadrature is exact.
    np.testing.assert_allclose(moved["W"], params["W"] / (2 * math.pi), rtol=1e-12)
    # h_{zj} times each task's label there: neurons of positive weight see z = +1 alone, the other z = −1 alone.
    h = np.array([0.5, 2, 3]) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(moved["A"], [[-h[0], -h[1], h[2]], [-h[0], -h[1], -h[2]]], rtol=1e-12)


@pytest.mark.parametrize("nuisance_scale", [0.0, 1.0])
def test_population_limit_without_nuisance_is_finite(x64, nuisance_scale):
    """ρ = 0, as d = r or as nothing lies outside the directions. A neuron's edge then cuts through the orthants, where
    a rule of 32 points a coordinate errs by about one of them: 1/32 of the size of W⁺.
    """
    d = 2 if nuisance_scale else 5
    params, tables = setting(d=d, r=2, width=6)
    moved = limit_of(params, tables, nuisance_scale=nuisance_scale)["W"]
    assert np.all(np.isfinite(moved))
    assert np.all(moved[:, 2:] == 0)
    _, W = replicates(32, params, tables, 8192, nuisance_scale)
    assert np.linalg.norm(W.mean(axis=0) - moved) < np.linalg.norm(moved) / 32


def test_population_limit_of_a_zero_row_is_finite(x64):
    params, tables = setting(d=6, r=2)
    params["W"][1] = 0
    params["b"][1] = 0
    moved = limit_of(params, tables)
    assert np.all(np.isfinite(moved["W"]))
    assert np.all(moved["W"][1] == 0)
    assert np.all(moved["W"][0] != 0)


def widen(leaf, shape):
    return np.pad(leaf, [(0, large - small) for small, large in zip(leaf.shape, shape, strict=True)])


@pytest.mark.parametrize(("d", "r", "max_r"), [(6, 2, 2), (6, 2, 3), (10, 5, 5), (9, 7, 8)])
def test_padding_changes_the_population_limit_by_rounding_at_most(x64, d, r, max_r):
    """Measurements agree to 1e-4 whatever the padding (DESIGN.md): of tasks, d, width and r."""
    params, tables = setting(d=d, r=r)
    exact = limit_of(params, tables)
    sizes = {"W": (6, d + 3), "b": (6,), "A": (5, 6)}
    padded = {name: widen(leaf, sizes[name]) for name, leaf in params.items()}
    tables = widen(tables, (5, 2**max_r))
    moved = population(KEY, padded, tables, r=r, max_r=max_r, num_tasks=3)
    assert np.all(np.asarray(moved["W"])[:, d:] == 0)
    assert np.all(np.asarray(moved["W"])[4:] == 0)
    assert np.all(np.asarray(moved["A"])[3:] == 0)
    assert np.linalg.norm(np.asarray(moved["W"])[:4, :d] - exact["W"]) < 1e-4 * np.linalg.norm(exact["W"])
    assert np.linalg.norm(np.asarray(moved["A"])[:3, :4] - exact["A"]) < 1e-4 * np.linalg.norm(exact["A"])


def test_population_limit_in_single_precision():
    """Float32 sums of up to 1024 positive terms keep 1e-5 of the size of W⁺."""
    params, tables = setting(d=6, r=2)
    with jax.enable_x64(True):
        exact = limit_of(params, tables)["W"]
    single = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()}
    moved = limit_of(single, tables.astype(np.float32))["W"]
    assert moved.dtype == np.float32
    assert np.linalg.norm(moved - exact) < 1e-5 * np.linalg.norm(exact)


def test_initialised_networks_have_a_population_limit_that_simulation_meets(x64):
    """From `network.initialise` through `one_step` itself: mean over replicates within 5 standard errors, jointly for
    W⁺'s component along its limit.
    """
    params = network.initialise(KEY, 6, 4, 3, bias="random")
    tables = setting(d=6, r=2)[1]
    exact = limit_of(params, tables)["W"]

    @jax.jit
    def run(key):
        def sample(name):
            x = data.inputs(keys.named(key, name), "gaussian", 4096, 6, r=2)
            y = jnp.asarray(tables)[:, tasks.orthant_index(data.orthants(x, 2, 2))].T
            return updates.Batch(x, y, 4096, 3)

        return updates.one_step(params, sample("heads"), sample("features"))["W"]

    W = np.asarray(jax.lax.map(run, keys.indexed(KEY, 64)))
    along = np.einsum("ijk,jk->i", W, exact) / np.sum(exact**2)
    assert along.std(ddof=1) / 8 < 0.02
    assert abs(along.mean() - 1) < 5 * along.std(ddof=1) / 8


# Blocks


@pytest.mark.parametrize("n", [1, 127, 128, 300, 700])
@pytest.mark.parametrize("law", ["all", "one", "some"])
def test_blocks_hold_every_sample_once_with_those_of_its_orthant(n, law):
    orthants, max_n = 5, 700
    rng = np.random.default_rng(n)
    index = {"all": rng.integers(0, orthants, max_n), "one": np.full(max_n, 3), "some": rng.choice([0, 4], max_n)}[law]
    blocks = jax.jit(moments.by_orthant, static_argnums=2)(jnp.asarray(index), n, orthants)
    counted = np.asarray(blocks.counted) & (np.arange(len(blocks.counted)) < blocks.used)[:, None]
    assert sorted(np.asarray(blocks.sample)[counted].tolist()) == list(range(n))
    assert np.all((index[np.asarray(blocks.sample)] == np.asarray(blocks.orthant)[:, None])[counted])
    # No more blocks than the samples need.
    assert int(blocks.used) == sum(-(-np.sum(index[:n] == z) // moments.BLOCK) for z in range(orthants))
