"""Task families: their law, their formulas against their tables, and what padding and growing leave unchanged."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mtfl_jax.learning import data, keys, tasks

KEY = keys.named(keys.root(2024), "test_tasks")
TABLES = ("balanced", "uniform")
FORMULAS = ("halfspace", "parity", "majority")
MAX_R = 4

# One compiled program per family and size of arrays; r and the parity size are traced, as in a sweep.
sample = jax.jit(tasks.sample, static_argnames=("family", "num_tasks", "max_r"))
truth_tables = jax.jit(tasks.truth_tables, static_argnames="max_r")

# Every (family, size) at r = 3; a size only means something to parity.
SIGNS = [name for name, family in tasks.FAMILIES.items() if not family.real]
ALL = [(family, 0) for family in SIGNS] + [("parity", 1), ("parity", 2), ("parity", 3)]


def sized(family, size):
    """The settings of a family whose parity size is that."""
    return {field.name: size for field in tasks.FAMILIES[family].settings}


DRAWS = 20_000


@functools.cache
def drawn(family, r, size=0):
    """DRAWS tasks from arrays padded to MAX_R."""
    return sample(KEY, family, DRAWS, r=r, max_r=MAX_R, **sized(family, size))


LARGE_R = 40


def many_directions(family, size=0):
    """200 tasks of r = 40, for which no table fits."""
    return sample(KEY, family, 200, r=LARGE_R, max_r=LARGE_R, **sized(family, size))


def first(num_tasks, family, r, size=0):
    """The first of the drawn tasks."""
    return tasks.Tasks(family, drawn(family, r, size).params[:num_tasks])


@functools.cache
def tables_of(family, r, size=0):
    """Truth tables (DRAWS, 2^r) from arrays padded to MAX_R."""
    return np.asarray(truth_tables(drawn(family, r, size), r, max_r=MAX_R))[:, : 2**r]


def signs(n, r, seed=0):
    return np.random.default_rng(seed).choice([-1.0, 1.0], (n, r)).astype(np.float32)


def codes(bits):
    """Rows of booleans as integers, little-endian."""
    return bits @ (1 << np.arange(bits.shape[1]))


def by_formula(family, params, z):
    """f_t(z) in float64 from the definitions, (n, T)."""
    params, z = np.asarray(params, np.float64), np.asarray(z, np.float64)
    if family == "parity":
        return np.prod(np.where(params[None] > 0, z[:, None, :], 1), axis=2)
    return np.where(z @ params.T >= 0, 1.0, -1.0)


# Law of the draws


@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_balanced_tables_sum_to_zero(r):
    tables = tables_of("balanced", r)
    assert set(np.unique(tables)) == {-1.0, 1.0}
    assert np.all(tables.sum(axis=1) == 0)


def test_balanced_tables_sum_to_zero_at_the_largest_r():
    params = np.asarray(tasks.sample(KEY, "balanced", 2, r=tasks.MAX_TABLE_R).params)
    assert params.shape == (2, 2**tasks.MAX_TABLE_R)
    assert np.all(params.sum(axis=1) == 0)


def assert_uniform(drawn_codes, allowed):
    """Chi-square test that the codes are uniform on `allowed`.

    The threshold is the chi-square quantile at p = 1e-6; the seed is fixed, so the outcome is too. Shares off by 10 %
    would add a hundredth of the number of codes to the statistic: 200 of DRAWS tasks, whose threshold is 59 at most.
    """
    found, counts = np.unique(drawn_codes, return_counts=True)
    assert set(found) == set(allowed)
    if len(allowed) == 1:
        return
    expected = len(drawn_codes) / len(allowed)
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert statistic < stats.chi2.isf(1e-6, len(allowed) - 1)


BALANCED_CODES = [sum(1 << k for k in s) for s in itertools.combinations(range(4), 2)]


def test_balanced_is_uniform_over_the_six_functions():
    assert_uniform(codes(tables_of("balanced", 2) > 0), BALANCED_CODES)


def test_successive_tasks_are_independent():
    """All 36 pairs of balanced functions are equally likely."""
    code = codes(tables_of("balanced", 2) > 0)
    assert_uniform(16 * code[::2] + code[1::2], [16 * a + b for a in BALANCED_CODES for b in BALANCED_CODES])


def test_uniform_is_uniform_over_the_sixteen_functions():
    assert_uniform(codes(tables_of("uniform", 2) > 0), range(16))


def test_halfspace_is_uniform_over_the_four_functions():
    """At r = 2 sign(v·z) is ±z_0 or ±z_1, by the larger |v_k| and its sign."""
    z = np.asarray(tasks.all_orthants(2))
    functions = [codes(sign * z[:, k][None] > 0)[0] for k in (0, 1) for sign in (-1, 1)]
    assert_uniform(codes(tables_of("halfspace", 2) > 0), functions)


def test_parity_is_uniform_over_the_non_empty_subsets():
    assert_uniform(codes(np.asarray(drawn("parity", 2).params) > 0), [1, 2, 3])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_parity_of_a_size_is_uniform_over_its_subsets(size):
    subsets = [sum(1 << k for k in s) for s in itertools.combinations(range(4), size)]
    assert_uniform(codes(np.asarray(drawn("parity", 4, size).params) > 0), subsets)


def test_majority_is_uniform_over_the_odd_subsets():
    assert_uniform(codes(np.asarray(drawn("majority", 3).params) > 0), [0b001, 0b010, 0b100, 0b111])


def test_parity_size_all_takes_every_coordinate():
    z = signs(50, 3)
    expected = np.prod(z, axis=1)
    for size in (3, -1):
        of = tasks.sample(keys.root(0), "parity", 5, r=3, parity_size=size)
        assert np.array_equal(tasks.labels(of, jnp.asarray(z)), np.repeat(expected[:, None], 5, axis=1))


def test_parity_size_all_is_that_of_every_r():
    """Also where r is below the padded size, and in the limit of the kernel."""
    for r in (1, 2, 3):
        assert np.array_equal(drawn("parity", r, -1).params, drawn("parity", r, r).params)
        limits = [tasks.FAMILIES["parity"].limit(r, parity_size=size) for size in (-1, r)]
        assert np.array_equal(*limits)


# Orthants


def test_orthant_index_is_little_endian():
    z = signs(200, 5)
    expected = [sum(2**k for k in range(5) if row[k] > 0) for row in z]
    assert np.array_equal(tasks.orthant_index(jnp.asarray(z)), expected)
    assert int(tasks.orthant_index(jnp.array([[1.0, -1.0, -1.0]]))[0]) == 1
    assert int(tasks.orthant_index(jnp.array([[-1.0, -1.0, 1.0]]))[0]) == 4


def test_all_orthants_are_in_index_order():
    z = np.asarray(tasks.all_orthants(4))
    assert set(np.unique(z)) == {-1.0, 1.0}
    assert np.array_equal(tasks.orthant_index(jnp.asarray(z)), np.arange(16))


def test_orthants_beyond_r_are_zero_and_do_not_change_the_index():
    padded = np.asarray(tasks.all_orthants(jnp.asarray(2), 4))
    assert np.array_equal(padded[:4, :2], tasks.all_orthants(2))
    assert np.all(padded[:, 2:] == 0)
    assert np.array_equal(tasks.orthant_index(jnp.asarray(padded)), np.tile(np.arange(4), 4))


def test_the_sign_of_zero_is_plus():
    x = jnp.array([[0.0, -0.0, 2.0], [-1e-30, 1e-30, -0.0]])
    assert np.array_equal(data.orthants(x, 3, 3), [[1, 1, 1], [-1, 1, 1]])
    tie = tasks.Tasks("halfspace", jnp.array([[1.0, -1.0]]))
    assert np.array_equal(tasks.labels(tie, jnp.array([[1.0, 1.0], [-1.0, -1.0], [-1.0, 1.0]])), [[1], [1], [-1]])


# Formulas


@pytest.mark.parametrize(("family", "size"), [*((f, 0) for f in FORMULAS), ("parity", 2)])
def test_formula_agrees_with_table_and_definition(family, size):
    of = first(64, family, 3, size)
    z = np.pad(signs(100, 3), ((0, 0), (0, 1)))
    y = np.asarray(tasks.labels(of, jnp.asarray(z)))
    assert np.array_equal(y, by_formula(family, of.params, z))
    assert np.array_equal(y, tables_of(family, 3, size)[:64, np.asarray(tasks.orthant_index(jnp.asarray(z)))].T)


@pytest.mark.parametrize("family", TABLES)
def test_labels_of_a_table_family_are_its_entries(family):
    of = first(64, family, 3)
    z = np.pad(signs(100, 3), ((0, 0), (0, 1)))
    index = np.asarray(tasks.orthant_index(jnp.asarray(z)))
    expected = np.array([[float(row[i]) for row in np.asarray(of.params)] for i in index])
    assert np.array_equal(tasks.labels(of, jnp.asarray(z)), expected)
    assert np.array_equal(tables_of(family, 3)[:64], np.asarray(of.params)[:, :8])


def test_halfspace_is_exact_in_any_order_of_summation():
    """Weights are multiples of 2^-16, so sign(v·z) is one of integers, and float32 sums below 2^8 are exact."""
    of = many_directions("halfspace")
    v, z = np.asarray(of.params), signs(256, LARGE_R)
    integers = np.asarray(v, np.float64) * 2**16
    assert np.array_equal(integers, np.round(integers))
    assert np.abs(v).sum(axis=1).max() < 2**8
    exact = z.astype(np.int64) @ integers.astype(np.int64).T
    assert np.array_equal(tasks.labels(of, jnp.asarray(z)), np.where(exact >= 0, 1, -1))
    terms = z[:, None, :] * v
    for order in (range(LARGE_R), range(LARGE_R)[::-1], np.random.default_rng(1).permutation(LARGE_R)):
        running = np.zeros(exact.shape, np.float32)
        for k in order:
            running = running + terms[:, :, k]
        assert np.array_equal(running.astype(np.float64) * 2**16, exact)
        permuted = tasks.Tasks("halfspace", jnp.asarray(v[:, list(order)]))
        assert np.array_equal(tasks.labels(permuted, jnp.asarray(z[:, list(order)])), np.where(exact >= 0, 1, -1))


def test_halfspace_is_odd():
    """But on ties, of which these draws have none."""
    for of in (first(200, "halfspace", 3), first(200, "halfspace", 4), many_directions("halfspace")):
        z = signs(64, of.params.shape[1])
        assert np.all(z.astype(np.float64) @ np.asarray(of.params, np.float64).T != 0)
        assert np.array_equal(tasks.labels(of, jnp.asarray(-z)), -np.asarray(tasks.labels(of, jnp.asarray(z))))


def test_halfspace_weights_are_normal():
    """Kolmogorov–Smirnov at p = 1e-6 with a fixed seed; the grid of 2^-16 is far below what it resolves."""
    v = np.asarray(drawn("halfspace", 4).params).ravel()
    assert stats.kstest(v, "norm").pvalue > 1e-6


@pytest.mark.parametrize(("family", "size"), [*((f, 0) for f in FORMULAS), ("parity", 7)])
def test_formula_families_work_at_large_r(family, size):
    of, r = many_directions(family, size), LARGE_R
    params, z = np.asarray(of.params), signs(256, r)
    num_tasks = len(params)
    assert params.shape == (200, r)
    y = np.asarray(tasks.labels(of, jnp.asarray(z)))
    assert y.shape == (256, num_tasks)
    assert np.array_equal(y, by_formula(family, params, z))
    if family != "halfspace":
        members = params.sum(axis=1)
        assert set(np.unique(params)) == {0.0, 1.0}
        assert np.all(members > 0)
        if size:
            assert np.all(members == size)
        elif family == "majority":
            assert np.all(members % 2 == 1)
        # Each coordinate is a member of half the tasks (of size/r of them): 5 standard errors of a share, pooled.
        share = size / r if size else 0.5
        error = np.sqrt(share * (1 - share) / num_tasks)
        assert np.all(np.abs(params.mean(axis=0) - share) < 5 * error)


@pytest.mark.parametrize("family", TABLES)
def test_table_families_refuse_a_large_r(family):
    with pytest.raises(ValueError, match="r=17"):
        tasks.sample(KEY, family, 1, r=17)
    with pytest.raises(ValueError, match="r=17"):
        tasks.sample(KEY, family, 1, r=3, max_r=17)


def test_which_families_need_a_table():
    assert [family for family in SIGNS if tasks.FAMILIES[family].table] == list(TABLES)


# Growing and padding


@pytest.mark.parametrize("family", SIGNS)
def test_padding_r_and_drawing_fewer_tasks_change_nothing(family):
    """Nine tasks of arrays of the true size have the labels and tables of the first nine of DRAWS in arrays padded to
    MAX_R coordinates, with r traced.
    """
    num_tasks = 9
    sizes = (0, 1, 2, 3) if family == "parity" else (0,)

    def exact(r, size):
        of = tasks.sample(KEY, family, num_tasks, r=r, **sized(family, size))
        return tasks.truth_tables(of, r), tasks.labels(of, jnp.asarray(signs(20, r)))

    cases = [(r, size) for r in (1, 3) for size in sizes if size <= r]
    for (r, size), (table, y) in zip(cases, jax.jit(lambda: [exact(*case) for case in cases])(), strict=True):
        assert set(np.unique(table)) == {-1.0, 1.0}
        assert len(np.unique(table, axis=0)) > 1 or r == 1 or size == r
        padded = first(num_tasks, family, r, size)
        wide = np.asarray(truth_tables(padded, r, max_r=MAX_R))
        assert wide.shape == (num_tasks, 2**MAX_R)
        assert np.array_equal(wide[:, : 2**r], table)
        assert np.all(wide[:, 2**r :] == 0)
        assert np.array_equal(tasks.labels(padded, jnp.asarray(np.pad(signs(20, r), ((0, 0), (0, MAX_R - r))))), y)


# Contrastive kernels


@pytest.mark.parametrize("r", [2, 3, 4])
@pytest.mark.parametrize(("family", "size"), ALL)
def test_kernel_limit_is_the_mean_over_tasks(family, size, r):
    """Each entry is a mean of products ±1, of standard error √((1 − K²)/T); where K = ±1 it is exact.

    But for ties: halfspace weights lie on a grid of 2^-16, so v·z = 0 has probability 2^-16 φ(0)/√r at most, and then
    f(z) f(−z) is 1 instead of −1.
    """
    size, num_tasks = min(size, r), DRAWS
    limit = tasks.FAMILIES[family].limit(r, **sized(family, size))
    tables = tables_of(family, r, size).astype(np.float64)
    found = tables.T @ tables / num_tasks
    tie = 2.0**-16 * stats.norm.pdf(0) / np.sqrt(r) if family == "halfspace" else 0
    error = np.sqrt((np.maximum(1 - limit**2, 0) + 4 * tie) / num_tasks)
    # 1e-12 is for rounding of the closed forms alone.
    assert np.all(np.abs(found - limit) <= 5 * error + 2 * tie + 1e-12)
    assert limit.dtype == np.float64
    assert np.allclose(np.diag(limit), 1, rtol=0, atol=1e-12)


def test_kernel_limit_closed_forms():
    """Float64 rounding only."""
    for r in (2, 3, 4):
        m = 2**r
        centred = (np.eye(m) - 1 / m) * m / (m - 1)
        z = np.asarray(tasks.all_orthants(r), np.float64)
        subsets = [s for k in range(1, r + 1) for s in itertools.combinations(range(r), k)]
        parities = np.stack([np.prod(z[:, list(s)], axis=1) for s in subsets])
        assert np.allclose(tasks.FAMILIES["balanced"].limit(r), centred, rtol=0, atol=1e-14)
        assert np.allclose(
            tasks.FAMILIES["parity"].limit(r, parity_size=0), parities.T @ parities / len(subsets), rtol=0, atol=1e-14
        )
        assert np.array_equal(tasks.FAMILIES["uniform"].limit(r), np.eye(m))


def test_an_unknown_family_is_refused():
    with pytest.raises(
        LookupError, match=r"^tasks=fourier: allowed: balanced, uniform, halfspace, parity, majority, .*$"
    ):
        tasks.FAMILIES["fourier"]


def test_a_setting_of_another_family_is_refused():
    with pytest.raises(TypeError, match="parity_size"):
        tasks.sample(KEY, "majority", 1, r=3, parity_size=2)
    with pytest.raises(TypeError, match="parity_size"):
        tasks.sample(KEY, "parity", 1, r=3)


@pytest.mark.parametrize("family", SIGNS)
def test_contrastive_kernel(family):
    """Sums of 7 terms ±1 are exact in float32; the division rounds once (eps 1.2e-7)."""
    tables = tables_of(family, 3)[:7]
    expected = sum(np.outer(f, f) for f in tables.astype(np.float64)) / 7
    assert np.allclose(tasks.contrastive_kernel(jnp.asarray(tables)), expected, rtol=2e-7, atol=0)
    padded = jnp.pad(jnp.asarray(tables), ((0, 4), (0, 8)))
    found = np.asarray(tasks.contrastive_kernel(padded, jnp.asarray(7)))
    assert np.allclose(found[:8, :8], expected, rtol=2e-7, atol=0)
    assert np.all(found[8:] == 0)
    assert np.all(found[:, 8:] == 0)
