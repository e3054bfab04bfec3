"""Everything that is derived from records and rules refuses to run, or gives other rows, once it is wrong."""

import contextlib
import dataclasses
import functools
from typing import get_args

import differential
import jax
import numpy as np
import pytest
from differential import Alone, Generator, check_grid, composed, exactly, mentioning, resolve
from test_differential import standing_in

from mtfl_jax import config, settings
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError, Kind, Rule, UndeclaredError, rule
from mtfl_jax.kinds import KINDS, PARTS, PROBED, recorded
from mtfl_jax.learning import experiment
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.arithmetic import Arithmetic
from mtfl_jax.learning.program import Probed
from mtfl_jax.records import REGISTRIES
from mtfl_jax.sweeps.compiling import cells_of, job_of
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.plan import plan

# Rules: each declares what it reads, no less and no more.


def rules_within(thing, label):
    """Every rule that a record or a table of rules holds, with a name for it."""
    if isinstance(thing, Rule):
        yield label, thing
    elif isinstance(thing, dict):
        for name, each in thing.items():
            yield from rules_within(each, f"{label}[{name}]")
    elif isinstance(thing, tuple):
        names = getattr(thing, "_fields", range(len(thing)))
        for name, each in zip(names, thing, strict=True):
            yield from rules_within(each, f"{label}.{name}")
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        for field in dataclasses.fields(thing):
            yield from rules_within(getattr(thing, field.name), f"{label}.{field.name}")


def every_rule():
    found = {"recorded": recorded, "r_at_most_d": settings.r_at_most_d}
    found |= dict(rules_within(config.derived()._replace(fields={}), "derived"))
    found |= dict(rules_within(PARTS, "PARTS"))
    found |= dict(rules_within(KINDS, "KINDS"))
    found |= dict(rules_within(dict(FIELDS), "FIELDS"))
    for registry in REGISTRIES:
        found |= dict(rules_within(dict(registry), registry.kind))
    return found


@functools.cache
def cells():
    """Settings of cells, accepted or not: of all settings at random, and of few beside the defaults."""
    # Bounds are met by sizes beyond those of the examples.
    large = {name: [*Generator(0).values(name), 24, 32] for name, field in FIELDS.items() if field.padded}
    values = []
    for i in range(1600):
        generator = Generator(i, large if i % 4 > 1 else {})
        names = list(FIELDS) if i % 2 else ["algorithm", "tasks", *generator.random.sample(list(FIELDS), 3)]
        values.append(resolve({name: generator.random.choice(generator.values(name)) for name in names}).values)
    return values


def reads(own, values):
    with contextlib.suppress(ConfigError):
        own(values)


def test_every_rule_reads_nothing_that_it_does_not_declare():
    for label, own in every_rule().items():
        for values in cells():
            try:
                reads(own, values)
            except UndeclaredError as error:
                raise AssertionError(label) from error


def test_every_rule_fails_without_any_name_that_it_declares():
    stale = []
    for label, own in every_rule().items():
        for name in own.reads:
            less = dataclasses.replace(own, reads=own.reads - {name})
            for values in cells():
                try:
                    reads(less, values)
                except UndeclaredError:
                    break
            else:
                stale.append(f"{label} declares {name} and never reads it")
    assert stale == []


# Records: a training reads no setting that its records do not say bears on it.


@contextlib.contextmanager
def planted(registry, name, **changes):
    """A record with other members meanwhile."""
    before = registry[name]
    dict.__setitem__(registry, name, dataclasses.replace(before, **changes))
    try:
        config.refresh()
        yield
    finally:
        dict.__setitem__(registry, name, before)
        config.refresh()


@contextlib.contextmanager
def planted_field(name, **changes):
    """A setting of `settings` that says something else of itself meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for group in ("ALWAYS", "USED"):
            fields = getattr(settings, group)
            patch.setattr(
                settings, group, tuple(dataclasses.replace(f, **changes) if f.name == name else f for f in fields)
            )
        try:
            config.refresh()
            yield
        finally:
            patch.undo()
            config.refresh()


def trace(given):
    """Trace the training of a cell as a sweep would compile it."""
    (bucket,) = plan(Grid({name: [value] for name, value in given.items()}, composed), "never")
    cell = jax.tree.map(lambda leaf: leaf[0], cells_of(Grid_of(given), bucket, np.arange(1)))
    return jax.eval_shape(functools.partial(experiment.experiment, job_of(bucket).program), cell)


def Grid_of(given):
    return Grid({name: [value] for name, value in given.items()}, composed)


def cell_in_which(name, **fixed):
    """A cell of some values in which a setting bears."""
    limits = {key: [value] for key, value in fixed.items()} | {"probe": ["none"], "measure": ["recovery"]}
    given = Generator(0, limits).cell([name])
    return given if name in resolve(given).used else None


UNREAD = {"measure_at"}
"""Used, but neither in programs and identities nor columns: what it says are the steps of a cell's rows."""


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(record.name, name) for record in ALGORITHMS.values() for name in record.uses if name not in UNREAD],
)
def test_a_training_fails_without_a_setting_that_its_algorithm_does_not_use(algorithm, name):
    record = ALGORITHMS[algorithm]
    given = cell_in_which(name, algorithm=algorithm)
    trace(given)
    with (
        planted(ALGORITHMS, algorithm, uses=tuple(other for other in record.uses if other != name)),
        pytest.raises((UndeclaredError, ValueError)),
    ):
        trace(given)


# The random grids find what a record gets wrong.


def check(spec, variant):
    with standing_in():
        check_grid(spec, Alone(told=True), exactly, [variant])


def finding(*names, most=300):
    """The first of the grids about some settings that finds a fault, if any."""
    for spec, variant in mentioning(names, most):
        try:
            check(spec, variant)
        except Exception:
            return spec, variant
    return None


ONE_STEP, JOINT = ALGORITHMS["one_step"], ALGORITHMS["joint"]


def with_any_decay():
    """What a shared pass needs, less what it needs of the weight decay."""
    left = [condition for condition in ONE_STEP.shared.conditions if "weight_decay" not in condition.holds.reads]
    assert len(left) == len(ONE_STEP.shared.conditions) - 1
    return tuple(left)


@rule()
def every_r(c):
    return frozenset({"parity_size", "tasks", "width", "num_tasks", "r"})


@rule()
def always(c):
    return True


@rule()
def nowhere(c):
    return False


@rule("algorithm", "steps", "measure_at")
def last_only(c):
    return (c.steps,) if ALGORITHMS[c.algorithm].stepped else (ALGORITHMS[c.algorithm].record,)


@rule("network")
def exact_arithmetic(c):
    return Arithmetic()


MUTATIONS = {
    "n_test is not padded": (lambda: planted_field("n_test", padded=False), ("n_test",)),
    "n1 is a choice": (lambda: planted_field("n1", kind="choice", padded=False), ("n1",)),
    "weight_decay is compiled in": (lambda: planted_field("weight_decay", kind="choice"), ("weight_decay",)),
    "steps are padded": (lambda: planted_field("steps", padded=True), ("steps",)),
    "lr_a is no other row": (lambda: planted_field("lr_a", identified=False), ("lr_a",)),
    "losses bear nowhere": (lambda: planted_field("losses", when=nowhere), ("losses", "loss")),
    "any weight decay shares a pass": (
        lambda: planted(
            ALGORITHMS, "one_step", shared=dataclasses.replace(ONE_STEP.shared, conditions=with_any_decay())
        ),
        ("weight_decay", "num_tasks"),
    ),
    "any r shares a pass": (
        lambda: planted(ALGORITHMS, "one_step", shared=dataclasses.replace(ONE_STEP.shared, rows=every_r)),
        ("r", "nuisance_scale"),
    ),
    "any schedule is a prefix": (lambda: planted(ALGORITHMS, "joint", prefix=always), ("steps", "schedule")),
    "precision is in no program": (
        lambda: replaced(PARTS, "arithmetic", PARTS["arithmetic"]._replace(rule=exact_arithmetic)),
        ("precision",),
    ),
    "a mixture is its first loss": (
        lambda: replaced(PARTS, "losses", PARTS["losses"]._replace(rule=rule("losses")(lambda c: c.losses[:1]))),
        ("losses", "loss"),
    ),
    "a family's settings tell no probes apart": (
        lambda: derived_with(
            probed=rule("probe", "probe_tasks")(
                lambda c: () if c.probe == "none" else (Probed(c.probe, c.probe_tasks), (("parity_size", "any"),), ())
            )
        ),
        (PROBED + "parity_size", "probe_tasks"),
    ),
}


@contextlib.contextmanager
def replaced(table, name, value):
    """An entry of a dict that is another meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table, name, value)
        yield


@contextlib.contextmanager
def derived_with(**changes):
    """What is derived, with other members meanwhile."""
    try:
        config._derived[:] = [config.derived()._replace(**changes)]
        yield
    finally:
        config.refresh()


@pytest.mark.parametrize("fault", MUTATIONS)
def test_random_grids_find_a_planted_fault(fault):
    """It is the fault that they find: without it the same grid passes."""
    mutation, names = MUTATIONS[fault]
    with mutation():
        found = finding(*names)
    assert found is not None
    check(*found)


def test_a_setting_of_an_unknown_kind_is_refused():
    with (
        pytest.raises(ValueError, match="lr_a: kind=tensor; allowed: shape, knob, choice"),
        planted_field("lr_a", kind="tensor"),
    ):
        pass
    assert set(differential.KINDS) == set(get_args(Kind))
