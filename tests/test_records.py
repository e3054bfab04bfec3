"""What every record of a kind must do, built in or not: each test runs on all that is registered, and nothing is
listed here. The records of `extension_example/` are among them.
"""

import contextlib
import functools
import itertools
import random
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hydra.core.override_parser.overrides_parser import OverridesParser

from mtfl_jax import compose, extend
from mtfl_jax.analysis import studies
from mtfl_jax.analysis.models import MODELS
from mtfl_jax.analysis.studies import STUDIES
from mtfl_jax.config import FIELDS, Config
from mtfl_jax.fields import ConfigError
from mtfl_jax.kinds import KINDS, PARTS
from mtfl_jax.learning import experiment, keys, parametrizations, tasks
from mtfl_jax.learning.activations import ACTIVATIONS
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.data import LAWS
from mtfl_jax.learning.drawing import draw_network, draw_tasks
from mtfl_jax.learning.initial import HEAD_INITS
from mtfl_jax.learning.losses import LOSSES
from mtfl_jax.learning.measures import MEASURES, Seen, of_program
from mtfl_jax.learning.measuring import draw_fresh
from mtfl_jax.learning.optimizers import OPTIMIZERS, SCHEDULES, optimizer
from mtfl_jax.learning.parametrizations import PARAMETRIZATIONS
from mtfl_jax.learning.probe import PROBES
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.tasks import FAMILIES, MAX_TABLE_R
from mtfl_jax.learning.tuning import Beginning
from mtfl_jax.learning.updates import Batch
from mtfl_jax.records import REGISTRIES, registering
from mtfl_jax.sweeps import rows
from mtfl_jax.sweeps import tables as tables_of_results
from mtfl_jax.sweeps.cost import size_names

EXAMPLE = str(Path(__file__).parent / "extension_example")
CONF = Path(EXAMPLE) / "conf"
NAME = "mtfl_extension_example"


@contextlib.contextmanager
def example():
    """The example's records and study, and the built-in studies, which are registered when they are asked for."""
    for study in studies.built_in():
        studies.named(study)
    sys.path.append(EXAMPLE)
    try:
        extend.load(NAME)
        studies.from_file("example", CONF / "study" / "example.py")
        yield
    finally:
        sys.path.remove(EXAMPLE)
        STUDIES.pop("example", None)
        extend.unload()


# The names are needed when tests are collected; the records are there only while these tests run.
with example():
    NAMES = {registry.kind: tuple(registry) for registry in REGISTRIES}
    EVERY = [(registry.kind, name) for registry in REGISTRIES for name in registry]

TESTED = set()


def each(registry, name="name"):
    """Run a test on every record of a kind."""
    TESTED.add(registry.kind)
    return pytest.mark.parametrize(name, NAMES[registry.kind])


@pytest.fixture(autouse=True, scope="module")
def present():
    """The example is there while the tests of this module run."""
    with example():
        yield


@pytest.fixture(autouse=True)
def float64():
    """Rounding is not what these tests are of."""
    with jax.enable_x64(True):
        yield


KEY = functools.partial(keys.root)


def number(field, value):
    if field.kind != "knob":
        return value
    return FIELDS[field.name].type.number(value) if field.name in FIELDS else field.type.number(value)


def settings_of(record):
    """Some values of a record's own settings, as a training has them: dicts by name."""
    examples = [[number(field, value) for value in field.type.examples()] for field in record.settings]
    names = [field.name for field in record.settings]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*examples)]


def few_settings_of(record, most=8):
    """At most so many of them, those that its rules allow with r = 2."""
    found = [own for own in settings_of(record) if fits(record, own, r=2)]
    return found if len(found) <= most else random.Random(0).sample(found, most)


def same(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, **{"rtol": 1e-9, "atol": 1e-11, **tolerance})


# All kinds


def record_of(kind, name):
    (registry,) = (registry for registry in REGISTRIES if registry.kind == kind)
    return registry, registry[name]


def labelled(name):
    """Whether figures call a column something else than its name."""
    return b"label" in (rows.schema().field(name).metadata or {})


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_names_and_docs(kind, name):
    registry, record = record_of(kind, name)
    assert record.name == name
    assert OverridesParser.create().parse_override(f"x={name}").value() == name
    lines = [record, *getattr(record, "settings", ())]
    for own in lines:
        assert own.doc
        assert own.doc == own.doc.strip()
        assert len(own.doc.splitlines()) == 1
        assert not own.doc.endswith(".")
    with registering("test:0"), pytest.raises(ValueError, match="there is one already"):
        registry.register(record)


def test_every_kind_has_tests_here():
    assert {registry.kind for registry in REGISTRIES} == TESTED
    assert {kind.registry.kind for kind in KINDS} <= TESTED


def test_every_choice_of_a_config_group_is_a_file_or_of_an_extension():
    for kind in KINDS:
        if kind.group:
            found = {path.stem for path in (compose.conf_dir() / kind.group).glob("*.yaml")}
            for name in kind.registry:
                choice = f"two_layer_{name}" if kind.group == "network" else name
                assert (choice in found) != bool(kind.registry.source(name)), choice
                assert compose.composed({kind.group: choice})[kind.group] == choice
                assert compose.from_keywords(**{kind.group: choice}).values[kind.group] == choice


def test_every_setting_is_in_the_config_and_in_help(here, monkeypatch):
    assert set(compose.composed({})) == set(FIELDS)
    monkeypatch.syspath_prepend(EXAMPLE)
    shown = [line.lstrip() for line in here(f"extensions=[{NAME}]", "--help")[1].splitlines()]
    for name, field in FIELDS.items():
        assert any(line.startswith((f"{name}:", f"{name} ")) for line in shown), name
        assert field.name == name
        assert len(field.doc.splitlines()) == 1
        assert not field.padded or labelled(name), name


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_examples_of_a_setting_are_allowed_and_told_apart(name):
    field = FIELDS[name]
    examples = [field.type.parse(name, value) for value in field.type.examples()]
    assert len(examples) > 1
    assert len({field.hashed(value) for value in examples}) == len(set(examples)) == len(examples)
    assert [field.type.parse(name, value) for value in examples] == examples
    if field.kind == "knob":
        assert len({repr(field.type.number(value)) for value in examples}) == len(examples)
    with pytest.raises(ConfigError) as refused:
        field.type.parse(name, object())
    assert refused.value.key == name


# Task families


@functools.cache
def tables(family, max_r, count, own=()):
    """A compiled function of a key, r and the settings `own` to truth tables (count, 2^max_r); of a family that varies
    within orthants, at one point of each.
    """

    def run(key, r, settings):
        of = tasks.sample(key, family, count, r=r, max_r=max_r, **settings)
        if FAMILIES[family].signs:
            return tasks.truth_tables(of, r, max_r)
        u = tasks.all_orthants(r, max_r) * (0.4 + jnp.arange(max_r) + jnp.arange(2**max_r)[:, None] % 5)
        return jnp.where(jnp.arange(2**max_r) < 2**r, tasks.labels(of, u).T, 0)

    return jax.jit(run)


def fits(record, settings, **values):
    """Whether a record's rules allow some settings, as a training has them."""
    try:
        for own in record.rules:
            if set(own.reads) <= {*settings, *values}:
                own({**values, **settings})
    except ConfigError:
        return False
    return True


@each(FAMILIES)
def test_labels_are_signs_and_stay_where_tasks_or_coordinates_are_added(name):
    """Padded ones of two keys and numbers of coordinates in one program, and each alone. Real ones to rounding."""
    lanes = jnp.stack([KEY(0), KEY(1)]), jnp.asarray([2, 3])
    for settings in few_settings_of(FAMILIES[name]):
        padded = np.asarray(jax.vmap(tables(name, 5, 6), in_axes=(0, 0, None))(*lanes, settings))
        for i, r in enumerate((2, 3)):
            alone = np.asarray(tables(name, r, 6)(KEY(i), r, settings))
            assert alone.shape == (6, 2**r)
            assert np.isfinite(alone).all() if FAMILIES[name].real else set(np.unique(alone)) <= {-1.0, 1.0}
            rounding = 1e-12 if FAMILIES[name].real else 0
            np.testing.assert_allclose(padded[i, :, : 2**r], alone, rtol=rounding, atol=rounding)
            assert not padded[i, :, 2**r :].any()
        found = tables(name, 3, 2)(KEY(1), 3, settings)
        np.testing.assert_allclose(found, padded[1, :2, :8], rtol=rounding, atol=rounding)


MANY = 4000


@each(FAMILIES)
def test_tasks_are_drawn_from_the_key_and_the_number_of_the_task(name):
    for settings in few_settings_of(FAMILIES[name]):
        many, others = (np.asarray(tables(name, 3, MANY)(KEY(key), 3, settings)) for key in (0, 1))
        if len(np.unique(many, axis=0)) == 1:  # a family of one task
            np.testing.assert_array_equal(others, many)
        else:
            assert (many != others).any()


@each(FAMILIES)
def test_the_limit_is_the_mean_of_many_tasks(name):
    family = FAMILIES[name]
    if family.limit is None:
        pytest.skip("its limit is not known")
    for settings, r in itertools.product(settings_of(family), (2, 3)):
        limit = family.limit(r, **settings)
        table = np.asarray(tables(name, r, MANY)(KEY(0), r, settings))
        # The mean of products ±1 of expectation K: its variance is (1 − K²)/T. At most 64 entries, each 5 errors; and
        # one task in T on the border of two signs, which coefficients on a grid allow and a density does not.
        error = np.sqrt(np.maximum(1 - limit**2, 0) / MANY)
        assert limit.shape == (2**r, 2**r)
        assert (np.abs(table.T @ table / MANY - limit) <= 5 * error + 2 / MANY).all()


@each(FAMILIES)
def test_tables_are_of_few_directions_and_formulas_of_any(name):
    family, r = FAMILIES[name], MAX_TABLE_R + 1
    (settings, *_) = few_settings_of(family)
    if family.table:
        with pytest.raises(ValueError, match=f"r <= {MAX_TABLE_R}"):
            tasks.sample(KEY(0), name, 1, r=r, **settings)
        with pytest.raises(ConfigError, match=f"r <= {MAX_TABLE_R}"):
            compose.from_keywords(tasks=name, r=r)
    else:
        of = tasks.sample(KEY(0), name, 2, r=r, **settings)
        y = tasks.labels(of, jnp.where(jax.random.bernoulli(KEY(1), shape=(50, r)), 1.0, -1.0))
        assert np.isfinite(y).all() if family.real else set(np.unique(y)) == {-1.0, 1.0}
        compose.from_keywords(tasks=name, r=r)


@each(FAMILIES)
def test_labels_in_float32_are_exact(name):
    """Whatever the padding, and as in float64 of the same task."""
    family, r = FAMILIES[name], 6
    (settings, *_) = few_settings_of(family)
    with jax.enable_x64(False):
        drawn = jax.jit(functools.partial(tasks.sample, family=name, num_tasks=20, r=r), static_argnames="max_r")
        z = tasks.all_orthants(r)
        of, wide = drawn(KEY(0), max_r=r, **settings), drawn(KEY(0), max_r=r + 2, **settings)
        narrow = np.asarray(tasks.labels(of, z))
        # Real labels are sums of some hundred terms of unit size; four of degree 4 may be of size 100.
        rounding = {"rtol": 1e-4, "atol": 1e-4} if family.real else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(tasks.labels(wide, jnp.pad(z, ((0, 0), (0, 2)))), narrow, **rounding)
        params, z = np.asarray(of.params, float), np.asarray(z, float)
    np.testing.assert_allclose(family.labels(jnp.asarray(params), jnp.asarray(z)), narrow, **rounding)


# Input laws


R = 2
"""The directions of the laws that are told of them."""


@functools.cache
def drawing(law, rows, n, d, choices, member="draw"):
    """A compiled function of a key and the knobs of a law to coordinates of d dimensions in an array of `rows`."""
    sizes = {name: {"d": d, "r": R}[name] for name in LAWS[law].sizes}

    def draw(key, knobs):
        return getattr(LAWS[law], member)(key, rows, n, **sizes, **dict(choices), **knobs)

    return jax.jit(draw)


def coordinates(law, d, n, key=0, rows=None, member="draw", **settings):
    draw, knobs = drawn_by(law, d, n, rows, member, **settings)
    return np.asarray(draw(KEY(key), knobs))


def drawn_by(law, d, n, rows=None, member="draw", **settings):
    chosen = {field.name for field in LAWS[law].settings if field.kind != "knob"}
    choices = tuple((name, value) for name, value in settings.items() if name in chosen)
    knobs = {name: value for name, value in settings.items() if name not in chosen}
    return drawing(law, d if rows is None else rows, n, d, choices, member), knobs


@each(LAWS)
def test_coordinates_have_the_mean_and_the_covariance_that_are_said(name):
    """And are independent from sample to sample."""
    n, d = 20_000, 3
    for settings in settings_of(LAWS[name]):
        x = coordinates(name, d, n, **settings)
        mean, covariance = reference.input_moments(name, d, R, **settings)
        products = (x[:, None] * x).reshape(d * d, n)
        second = (covariance + np.outer(mean, mean)).reshape(-1)
        for values, expected in ((x, mean), (products, second), (x[:, 1:] * x[:, :-1], mean**2)):
            error = values.std(axis=1) / np.sqrt(values.shape[1])
            assert (np.abs(values.mean(axis=1) - expected) <= 5 * error + 1e-12).all()


@each(LAWS)
def test_an_entry_depends_on_the_key_and_its_place_alone(name):
    law = LAWS[name]
    for settings in settings_of(law):
        x = coordinates(name, 5, 70, **settings)
        assert x.shape == (5, 70)
        same(coordinates(name, 5, 20, **settings), x[:, :20])
        # Of more rows than there are coordinates: padding.
        same(coordinates(name, 5, 20, rows=7, **settings)[:5], x[:, :20])
        if law.prefix:
            same(coordinates(name, 5, 20, rows=3, **settings), x[:3, :20])
        columns = np.asarray([4, 0, 69, 4])
        asked = functools.partial(law.draw, **{size: {"d": 5, "r": R}[size] for size in law.sizes}, **settings)
        same(asked(KEY(0), 5, jnp.asarray(columns)), x[:, columns])
        draw, knobs = drawn_by(name, 5, 70, **settings)
        found = jax.vmap(draw, in_axes=(0, None))(jnp.stack([KEY(0), KEY(1)]), knobs)
        same(found, np.stack([x, coordinates(name, 5, 70, key=1, **settings)]))
        assert (x != coordinates(name, 5, 70, key=1, **settings)).any()
        if law.hidden is not None:
            s = coordinates(name, 5, 70, rows=R, member="hidden", **settings)
            same(coordinates(name, 5, 20, rows=R + 1, member="hidden", **settings)[:R], s[:, :20])
    assert law.seconds > 0


@each(LAWS)
def test_a_law_without_a_population_limit_is_refused_one(name):
    cell = functools.partial(compose.from_keywords, data=name, algorithm="population")
    if LAWS[name].standard_normal:
        assert cell().algorithm == "population"
    else:
        with pytest.raises(ConfigError, match=f"^data={name}: allowed with algorithm=population: gaussian"):
            cell()


# Losses and activations


POINTS = np.random.default_rng(0).uniform(-3, 3, 40)
"""None of them is a place where a slope jumps."""


def slopes(function, points):
    """By central differences: of error h² f'''/6 and of rounding eps |f|/h."""
    h = 1e-5
    above, below = (np.asarray(function(jnp.asarray(points + step))) for step in (h, -h))
    return (above - below) / (2 * h)


def loss_values(name):
    """A loss as functions of the output alone, and its settings: for labels ±1, and for others where it takes any."""
    targets = [1.0, -1.0] if LOSSES[name].margin else [1.0, -1.0, 0.0, 0.3, -2.7]
    for settings, y in itertools.product(settings_of(LOSSES[name]), targets):
        yield (
            functools.partial(lambda F, y, own: LOSSES[name].of(F, y * jnp.ones_like(F), **own), y=y, own=settings),
            settings,
        )


@each(LOSSES)
def test_the_gradient_of_a_loss(name):
    for value, settings in loss_values(name):
        found = jax.vmap(jax.grad(value))(POINTS)
        np.testing.assert_allclose(found, slopes(value, POINTS), rtol=1e-7, atol=1e-8)
        # Its value jumps nowhere: it moves by no more than its steepest slope allows.
        grid = np.linspace(-3, 3, 1001)
        steepest = np.abs(jax.vmap(jax.grad(value))(grid)).max()
        assert np.abs(np.diff(value(jnp.asarray(grid)))).max() <= 1.01 * steepest * (grid[1] - grid[0])
        # Where a slope jumps any of its values will do, and none may be NaN.
        corners = np.unique([-1.0, 0.0, 1.0, *(1 - v for v in settings.values()), *(v - 1 for v in settings.values())])
        for real in (np.float32, np.float64):
            assert np.isfinite(jax.vmap(jax.grad(value))(corners.astype(real))).all()


@each(LOSSES)
def test_a_loss_is_elementwise_and_its_settings_are_traced(name):
    for settings in settings_of(LOSSES[name]):
        y = jnp.where(jnp.arange(len(POINTS)) % 3 == 0, -1.0, 1.0)
        at_once = LOSSES[name].of(jnp.asarray(POINTS.reshape(5, 8)), y.reshape(5, 8), **settings)
        alone = [float(LOSSES[name].of(jnp.asarray(F), y[i], **settings)) for i, F in enumerate(POINTS)]
        np.testing.assert_allclose(at_once.reshape(-1), alone, rtol=1e-14)
        traced = jax.jit(LOSSES[name].of)(POINTS, y, **{key: jnp.asarray(v) for key, v in settings.items()})
        np.testing.assert_allclose(traced, alone, rtol=1e-12, atol=1e-14)


@each(LOSSES)
def test_a_loss_is_bounded_from_below_where_it_says_so(name):
    for settings in settings_of(LOSSES[name]):

        def least(size, settings=settings):
            m = np.geomspace(1e-3, size, 200)
            F = jnp.asarray(np.concatenate([-m, [0.0], m]))
            values = np.asarray(LOSSES[name].of(F, jnp.ones_like(F), **settings))
            assert not np.isnan(values).any()
            return values.min()

        assert (least(1e4) - least(1e8) < 1) == LOSSES[name].bounded


@each(ACTIVATIONS)
def test_an_activation_and_its_slope(name):
    record = ACTIVATIONS[name]
    found = jax.vmap(jax.grad(record.value))(POINTS)
    np.testing.assert_allclose(record.slope(jnp.asarray(POINTS)), found, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found, slopes(record.value, POINTS), rtol=1e-7, atol=1e-8)
    # Elementwise functions of order 1 to 30, of some 10 roundings each.
    close = {"rtol": 1e-14, "atol": 1e-14}
    for function, expected in zip((record.value, record.slope), reference.ACTIVATIONS[name], strict=True):
        np.testing.assert_allclose(function(jnp.asarray(POINTS)), expected(POINTS), **close)
    for real in (np.float32, np.float64):
        t = jnp.asarray([-100.0, 0.0, 100.0, -1e30, 1e30], real)
        for values in (record.value(t), record.slope(t), jax.vmap(jax.grad(record.value))(t)):
            assert values.dtype == real
            assert np.isfinite(values[:3]).all()
            # Of a polynomial they are too large for a float, and are no other number for that.
            assert not np.isnan(values).any()


@each(ACTIVATIONS)
def test_means_of_an_activation_over_a_gaussian(name):
    """E σ, E σ' and E σ' ξ of μ + ρ ξ where they are said: against sums on a grid of 2^17 steps of 2^-13 in ξ, which
    err by less than a step squared where a slope jumps and by rounding elsewhere.
    """
    record = ACTIVATIONS[name]
    if record.gaussian is None:
        pytest.skip("they are not known")
    mu, rho = np.asarray([[-1.7], [-0.2], [0.0], [0.6], [2.5]]), np.asarray([0.3, 1.0, 1.9])
    xi = np.arange(-(2**16), 2**16) * 2.0**-13 + 2.0**-14
    density = np.exp(-(xi**2) / 2)
    density /= density.sum()
    value, slope = (each(mu[..., None] + rho[:, None] * xi) for each in reference.ACTIVATIONS[name])
    expected = value @ density, slope @ density, slope @ (density * xi)
    for found, own in zip(record.gaussian(jnp.asarray(mu), jnp.asarray(rho)), expected, strict=True):
        # A jump falls within a step, whose share of the density is at most 0.4 · 2^-13.
        np.testing.assert_allclose(found, own, rtol=1e-9, atol=5e-5)
        assert name not in SMOOTH or np.allclose(found, own, rtol=1e-9, atol=1e-9)
    # Without nuisance they are of μ itself.
    at = jnp.asarray(POINTS)
    still = record.gaussian(at, jnp.zeros(()))
    np.testing.assert_allclose(still[0], reference.ACTIVATIONS[name][0](POINTS), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(still[1], reference.ACTIVATIONS[name][1](POINTS), rtol=1e-12, atol=1e-12)


SMOOTH = {name for name in reference.ACTIVATIONS if not name.endswith("relu")}
"""Activations whose slopes do not jump."""


@each(ACTIVATIONS)
def test_an_activation_is_homogeneous_where_it_says_so_and_padded_where_it_may_be(name):
    record = ACTIVATIONS[name]
    points = jnp.asarray(POINTS)
    scaled = [np.allclose(record.value(s * points), s * np.asarray(record.value(points))) for s in (0.3, 7.0)]
    assert all(scaled) == record.homogeneous
    assert ("width" in record.exact) == (float(record.value(jnp.asarray(0.0))) != 0)


# Optimisers and schedules


@functools.cache
def stepping(name, rotated=False, train_bias=True):
    """A compiled function of parameters, the gradients of steps, momentum and weight decay to the parameters after each
    step, stacked.
    """

    def run(params, gradients, momentum, weight_decay):
        settings = {"momentum": momentum, "weight_decay": weight_decay, "train_bias": train_bias}
        rule = optimizer(name, 0.1, rotation=jnp.asarray(Q) if rotated else None, **settings)

        def step(carry, gradient):
            params, state = carry
            moved, state = rule.update(gradient, state, params)
            params = jax.tree.map(jnp.add, params, moved)
            return (params, state), params

        return jax.lax.scan(step, (params, rule.init(params)), gradients)[1]

    return jax.jit(run)


def some_params(seed, width=3, d=4):
    draw = np.random.default_rng(seed)
    return {"W": draw.normal(size=(width, d)), "b": draw.normal(size=width), "A": draw.normal(size=(2, width))}


PARAMS = some_params(0)
GRADIENTS = {key: np.stack([some_params(seed)[key] for seed in range(1, 9)]) for key in PARAMS}
Q = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]


@each(OPTIMIZERS)
def test_an_optimiser_commutes_with_rotations_where_it_says_so(name):
    def turned(tree):
        return tree | {"W": tree["W"] @ Q.T}

    expected = turned(stepping(name)(PARAMS, GRADIENTS, 0.5, 0.2))["W"]
    found = stepping(name)(turned(PARAMS), turned(GRADIENTS), 0.5, 0.2)["W"]
    assert np.allclose(found, expected, rtol=1e-9) == OPTIMIZERS[name].equivariant
    # In the basis of Q it sees W Qᵀ.
    same(turned(stepping(name, rotated=True)(PARAMS, GRADIENTS, 0.5, 0.2))["W"], found, rtol=1e-7)


@each(OPTIMIZERS)
def test_an_optimiser_has_momentum_where_it_says_so_and_decays_the_weights_alone(name):
    run = functools.partial(stepping(name), PARAMS, GRADIENTS)
    base, other = run(0.5, 0.2), run(0.9, 0.2)
    assert (not np.allclose(other["W"], base["W"])) == OPTIMIZERS[name].momentum
    assert not np.allclose(base["b"], PARAMS["b"])
    other = run(0.5, 0.9)
    same({"A": other["A"], "b": other["b"]}, {"A": base["A"], "b": base["b"]})
    assert not np.allclose(other["W"], base["W"])
    fixed = stepping(name, train_bias=False)(PARAMS, GRADIENTS, 0.5, 0.2)
    same(fixed["b"], np.broadcast_to(PARAMS["b"], base["b"].shape))


@each(OPTIMIZERS)
def test_an_optimiser_leaves_what_is_padded_alone(name):
    def padded(tree):
        more = {"W": (2, 1), "b": (2,), "A": (1, 2)}
        pads = {key: [(0, 0)] * (tree[key].ndim - len(own)) + [(0, k) for k in own] for key, own in more.items()}
        return {key: jnp.pad(tree[key], own) for key, own in pads.items()}

    alone = stepping(name)(PARAMS, GRADIENTS, 0.5, 0.2)
    same(stepping(name)(padded(PARAMS), padded(GRADIENTS), 0.5, 0.2), padded(alone))


@each(SCHEDULES)
def test_a_schedule_is_of_its_peak_and_depends_on_the_steps_where_it_says_so(name):
    def shape(steps):
        return np.asarray([SCHEDULES[name].shape(steps)(jnp.asarray(count)) for count in range(steps)])

    for steps in (1, 2, 7, 30):
        values = shape(steps)
        assert (values > 0).all()
        assert values.max() == pytest.approx(1, abs=1e-6)
    differ = [not np.allclose(shape(7)[:few], shape(30)[:few]) for few in (5,)]
    assert any(differ) == SCHEDULES[name].of_steps


@each(OPTIMIZERS)
def test_the_steps_of_an_optimiser_grow_with_the_gradient_unless_it_says_not(name):
    def last(factor):
        found = stepping(name)(PARAMS, jax.tree.map(lambda leaf: factor * leaf, GRADIENTS), 0.5, 0.0)["W"]
        return np.linalg.norm(found[-1] - found[-2])

    # At gradients beside which what is added in denominators is nothing.
    assert last(1e4) / last(1e3) == pytest.approx(1 if OPTIMIZERS[name].unit else 10, rel=1e-3)


# Initial heads and parametrisations


@each(HEAD_INITS)
def test_heads_depend_on_their_task_and_neuron_and_none_is_padded(name):
    make = jax.jit(HEAD_INITS[name].make)

    def made(max_tasks, max_width, width, deviation=0.7):
        rows = np.arange(1.0, 1 + max_width)[:, None] * np.ones(3)
        used = np.arange(max_width) < width
        params = {"W": rows * used[:, None], "b": np.where(used, 0.5, 0), "A": np.zeros((max_tasks, max_width))}
        return make(params, KEY(3), width, deviation)

    large = made(5, 12, 12)
    for width in (6, 5):
        small = made(3, 8, width)
        # The last of an odd number may be without its partner.
        same(small["A"][:, : width // 2 * 2], large["A"][:3, : width // 2 * 2])
        same(small["W"][:width], large["W"][:width])
        assert not any(np.any(leaf) for leaf in (small["A"][:, width:], small["W"][width:], small["b"][width:]))
    same(made(5, 12, 12, 1.4)["A"], 2 * large["A"])


@each(PARAMETRIZATIONS)
def test_rates_and_heads_go_with_the_width_as_a_parametrisation_says(name):
    own = PARAMETRIZATIONS[name]
    p, cell = Program(parametrization=name), Cell(width=jnp.asarray(16), head_scale=jnp.asarray(3.0))
    assert parametrizations.deviation(p, cell) == pytest.approx(3 * 16**own.heads)
    for unit, rates in ((False, own.rates), (True, own.unit_rates)):
        assert parametrizations.factors(p, cell, unit=unit) == pytest.approx([16**power for power in rates])


# Algorithms


@functools.cache
def cell_of(name, number):
    """A cell of an algorithm, every setting that bears on it drawn from its examples; None where it is refused."""
    draw = random.Random(f"{name} {number}")
    fixed = {"algorithm": name, "probe": "none", "measure": "recovery", "precision": "float32", "n_down": 4}
    drawn = {key: draw.choice(list(field.type.examples())) for key, field in FIELDS.items()}
    try:
        return Config.from_mapping({**drawn, **fixed, "seed": number, "steps": 3, "measure_at": [1, 2, 3]})
    except ConfigError:
        return None


def zeros(cell):
    """How many of a cell's knobs are at zero, where much is the same."""
    return sum(not cell.values[name] for name in cell.used if FIELDS[name].kind == "knob" and name != "seed")


@functools.cache
def cells_of(name):
    """60 such cells, those with few knobs at zero first."""
    found = itertools.islice(filter(None, (cell_of(name, number) for number in itertools.count())), 60)
    return sorted(found, key=zeros)


def numbers_of(cell):
    """The traced numbers of a cell."""
    values = {name: FIELDS[name].type.number(cell.values[name]) for name in cell.traced}
    return Cell(**{name: jnp.asarray(v, jnp.int32 if FIELDS[name].type.whole else float) for name, v in values.items()})


@functools.cache
def training(p):
    """A compiled function of a cell to its networks at the recorded steps and its first one that is not finite."""

    def run(cell):
        out = ALGORITHMS[p.algorithm].run(p, cell, draw_tasks(p, cell))
        return out.params, out.diverged

    return jax.jit(run)


OFTEN = [0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, 6))]


@pytest.mark.parametrize("number", OFTEN)
@each(ALGORITHMS)
def test_a_training_is_the_same_padded_and_among_others(name, number):
    """Two seeds in a program of larger sizes, against each alone."""
    cell = cells_of(name)[number]
    p, own = cell.program(), numbers_of(cell)
    larger = p.replace(**{size: getattr(p, size) + 2 for size in size_names(p) if size not in cell.exact})
    lanes = [own, own.replace(seed=own.seed + 1)]
    found, diverged = jax.vmap(training(larger))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *lanes))
    for i, lane in enumerate(lanes):
        params, expected = training(p)(lane)
        assert diverged[i] == expected
        for leaf, value in params.items():
            inside = tuple(slice(size) for size in value.shape)
            rest = np.array(found[leaf][i])
            # A diverged training is compared up to where it was finite.
            kept = slice(None) if not expected else slice(expected - 1)
            scale = np.abs(value[kept]).max(initial=0)
            np.testing.assert_allclose(rest[inside][kept], value[kept], rtol=1e-9, atol=1e-11 * (1 + scale))
            rest[inside] = 0
            assert expected or not rest.any(), leaf


@each(ALGORITHMS)
def test_fewer_steps_are_the_beginning_where_it_is_said(name):
    record = ALGORITHMS[name]
    if record.prefix is None:
        assert not compose.from_keywords(algorithm=name).prefixes
        pytest.skip("not of this algorithm")
    assert record.stepped
    cell = next(cell for cell in cells_of(name) if cell.prefixes)
    p = cell.program()
    long, _ = training(p)(numbers_of(cell))
    short, _ = training(p.replace(steps=2, record=(1, 2)))(numbers_of(cell))
    same(short, jax.tree.map(lambda leaf: leaf[:2], long))


@each(ALGORITHMS)
def test_a_network_that_is_not_finite_is_flagged(name):
    record, cell = ALGORITHMS[name], cells_of(name)[0]
    read = {*record.uses, *(field.name for field in record.settings)}
    own = numbers_of(cell)
    knobs = [key for key in read if key in own and FIELDS[key].kind == "knob"]
    assert knobs
    run = training(cell.program())
    assert run(own)[1] == 0
    params, diverged = run(own.replace(**{key: jnp.full_like(getattr(own, key), jnp.inf) for key in knobs}))
    assert diverged == 1
    assert not all(np.isfinite(leaf[0]).all() for leaf in params.values())


@each(ALGORITHMS)
def test_costs_count_up(name):
    """With the steps and with every size; of arrays of sizes what they are of each."""
    record = ALGORITHMS[name]
    cell = compose.from_keywords(algorithm=name)
    p = cell.program()
    one, two = record.cost(p, 1), record.cost(p, 2)
    assert all(0 <= few <= many for few, many in zip(one, two, strict=True))
    assert two.flops > one.flops or not record.stepped
    if "shared_inputs" in p:
        assert min(one) > 0
    for size in size_names(p):
        few, many = (record.cost(p.replace(**{size: getattr(p, size) * k}), 2) for k in (1, 2))
        assert all(a <= b for a, b in zip(few, many, strict=True))
        sizes = np.asarray([1.0, 2.0]) * getattr(p, size)
        found = record.cost(p.replace(**{size: sizes}), 2)
        for at, expected in enumerate((few, many)):
            assert [np.broadcast_to(value, 2)[at] for value in found] == list(expected)
    assert experiment.costs(p, 1)["num_params"] > 0


@each(ALGORITHMS)
def test_a_program_and_its_numbers_are_what_bears_on_the_cell(name):
    """So that reading anything else raises (`UndeclaredError`) in every test above, as in every run."""
    for cell in cells_of(name)[:3]:
        p, used = cell.program(), cell.used
        assert {key for key in p if key in FIELDS and key not in PARTS} <= used | {"n_down", "measure_at"}
        assert set(cell.traced) <= used
        assert {key for key in FIELDS if FIELDS[key].kind == "knob" and key in used} == {
            key for key in cell.traced if FIELDS[key].kind == "knob"
        }
        assert set(p) - set(FIELDS) <= {*PARTS, "record", "groups", "families", "accelerator", "spread", "keep"}


# Measurements


@functools.cache
def measured(of_set, extra, family="balanced"):
    """Every measurement of a network in a set, its sizes padded by `extra`, and the cell."""
    values = {"d": 4, "r": 2, "width": 5, "num_tasks": 3, "n1": 6, "n2": 6, "n_test": 40, "probe": "none"}
    cell = compose.from_keywords(algorithm="random_features", measure=of_set, tasks=family, **values)
    p, own = cell.program(), numbers_of(cell)
    p = p.replace(**{name: getattr(p, name) + extra for name in size_names(p)})

    def run(own):
        of, params = draw_tasks(p, own), draw_network(p, own)
        A = jax.random.normal(KEY(5), (3, 5))
        A = jnp.pad(A, ((0, p.num_tasks - 3), (0, p.width - 5)))
        trained, test = ALGORITHMS[p.algorithm].run(p, own, of), draw_fresh(p, own).test if "n_test" in p else None
        seen, unseen = (Seen(p, own, of, params | {"A": A}, batch, test) for batch in (trained.batch(0), None))
        names = [name for name in MEASURES if of_set in sets_of(name) and MEASURES[name].means(family)]
        names = [name for name in names if not MEASURES[name].needs]
        return [{name: MEASURES[name].compute(each) for name in names} for each in (seen, unseen)]

    return *jax.jit(run)(own), cell.r, p.r


def sets_of(name):
    return MEASURES[name].sets if MEASURES[name].of == "network" else ()


@each(MEASURES)
def test_a_measurement_has_its_shape_and_is_the_same_padded(name):
    record = MEASURES[name]
    assert labelled(name)
    if record.of != "network":
        assert record.compute is None
        p = compose.from_keywords().program()
        assert name in (experiment.costs(p, 1) if record.of == "cost" else {"downstream_error", "downstream_r2"})
        return
    if record.needs:
        # What it is of such a training is in tests of that.
        assert record.name not in {other.name for other in of_program(compose.from_keywords().program())}
        assert all(setting in FIELDS for setting in record.needs)
        return
    for of_set in record.sets[:1]:
        family = "staircase" if record.targets == "real" else "balanced"
        alone, unseen, r, _ = measured(of_set, 0, family)
        padded, _, _, max_r = measured(of_set, 2, family)
        value, found = np.asarray(alone[name]), np.asarray(padded[name])
        shape = record.shape or (lambda r: ())
        assert value.shape == shape(r)
        assert found.shape == shape(max_r)
        same(found[tuple(slice(size) for size in value.shape)], value)
        # Of a finite network nothing is missing, but the loss on the samples of an algorithm that sees none.
        assert not np.isnan(value).any()
        assert np.isnan(unseen[name]).any() == (name == "train_loss")
        if record.type is int:
            assert (value == np.round(value)).all()


# Probes


@each(PROBES)
def test_a_probe_counts_only_its_samples_and_what_is_used(name):
    {True: separates, False: trains}[PROBES[name].tune is None](name)


def trains(name):
    """A network fits better than none, whatever lies in the padding, and what is padded stays zero."""
    draw, n, d, width = np.random.default_rng(0), 24, 3, 5
    x, record = draw.normal(size=(n, d)), PROBES[name]
    y = np.where(x[:, 0] >= 0, 1.0, -1.0)
    settings = {field.name: number(field, field.type.examples()[1]) for field in record.settings}

    def network():
        return {"W": draw.normal(size=(width, d)), "b": draw.normal(size=width), "A": np.zeros((1, width))}

    pair = network(), network()
    others = draw.normal(size=(7, d))

    def padded(params, more):
        wide = {"W": ((0, more), (0, more)), "b": ((0, more),), "A": ((0, 0), (0, more))}
        return {key: np.pad(leaf, wide[key]) for key, leaf in params.items()}

    def tuned(more, seed):
        rest = np.random.default_rng(seed)
        points = np.concatenate([np.pad(x, ((0, 0), (0, more))), rest.normal(size=(more, d + more))])
        labels = np.concatenate([y, rest.choice([-1.0, 1.0], more)])
        signs = np.pad(np.sign(others[:, :1]), ((0, more), (0, 1)))

        @jax.jit
        def fit(of, batch, x, y, n):
            return record.tune(Beginning(*of, width, "tanh", True, Batch(*batch, 7, 1)), x, y, n, **settings)

        batch = np.pad(others, ((0, more), (0, more))), signs
        return fit(tuple(padded(own, more) for own in pair), batch, points, labels, n)

    exact = tuned(0, 0)
    F = np.tanh(x @ np.asarray(exact["W"]).T + exact["b"]) @ np.asarray(exact["A"])[0]
    assert np.mean((F - y) ** 2) < 1
    for seed in (1, 2):
        for key, leaf in tuned(2, seed).items():
            # Sums of the same terms and zeros, in another order.
            np.testing.assert_allclose(leaf, padded(exact, 2)[key], rtol=1e-11, atol=1e-13, err_msg=key)


def separates(name):
    draw, n, m, spare = np.random.default_rng(0), 24, 5, 3
    y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    phi = np.zeros((n, m))
    phi[:, :-1] = y[:, None] * np.linspace(1, 2, m - 1) + 0.1 * draw.normal(size=(n, m - 1))
    fit = PROBES[name].fit
    beta, intercept = jax.jit(fit)(phi, y, n)
    assert beta.shape == (m,)
    assert beta[-1] == 0
    assert (np.sign(phi @ np.asarray(beta) + float(intercept)) == y).all()

    def padded(seed):
        rest = np.random.default_rng(seed)
        return (
            np.pad(np.concatenate([phi, 10 * rest.normal(size=(spare, m)) * [1, 1, 1, 1, 0]]), ((0, 0), (0, 2))),
            np.concatenate([y, rest.choice([-1.0, 1.0], spare)]),
        )

    stacked = [np.stack(parts) for parts in zip(*map(padded, (1, 2)), strict=True)]
    betas, intercepts = jax.jit(jax.vmap(fit, in_axes=(0, 0, None)))(*stacked, n)
    for found, own in zip(betas, intercepts, strict=True):
        # An iteration stops where its slope is below 10 eps of its size, at a curvature of the penalty or more.
        np.testing.assert_allclose(found[:m], beta, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(own, intercept, rtol=1e-6, atol=1e-8)
        assert not found[m:].any()
    assert (betas[0] == betas[1]).all()


# Laws of fits, and studies


@each(MODELS)
def test_the_curve_of_a_law_and_its_derivatives(name):
    model = MODELS[name]
    x = np.geomspace(1.5, 40, 9)[None].repeat(model.variables, 0) * np.arange(1, model.variables + 1)[:, None]
    log_y = np.log(2 + 3 / x.sum(0))
    starts, (low, high) = model.starts(x, log_y), model.bounds(x, log_y)
    assert starts.shape[1] == len(model.parameters) == len(low) == len(high)
    theta = np.clip(starts, low, high)
    value, slope = model.curve(theta, x)
    assert value.shape == (len(theta), 9)
    assert slope.shape == (len(theta), 9, len(model.parameters))
    for k in range(len(model.parameters)):
        h = 1e-5 * np.eye(len(model.parameters))[k]
        expected = (model.curve(theta + h, x)[0] - model.curve(theta - h, x)[0]) / 2e-5
        np.testing.assert_allclose(slope[..., k], expected, rtol=1e-5, atol=1e-7)


@each(STUDIES)
def test_a_study_has_a_grid_and_says_why_it_can_say_nothing(name):
    folder = CONF if name == "example" else compose.conf_dir()
    assert (folder / "study" / f"{name}.yaml").is_file()
    with pytest.raises(ValueError, match=f"^{name} needs "):
        studies.of(name, tables_of_results.frame(rows.schema().empty_table()))
