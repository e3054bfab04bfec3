"""What a cell chooses by name, of which kind of record each choice is, and the entries of a program that follow from
several settings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from mtfl_jax.fields import Rule, View, rule
from mtfl_jax.learning.activations import ACTIVATIONS, PREFIX, of_network
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.algorithms.record import loss_names
from mtfl_jax.learning.arithmetic import Arithmetic
from mtfl_jax.learning.data import LAWS
from mtfl_jax.learning.initial import HEAD_INITS
from mtfl_jax.learning.losses import LOSSES
from mtfl_jax.learning.measures import MEASURES
from mtfl_jax.learning.optimizers import OPTIMIZERS, SCHEDULES
from mtfl_jax.learning.parametrizations import PARAMETRIZATIONS
from mtfl_jax.learning.probe import NONE, PROBES
from mtfl_jax.learning.program import Probed
from mtfl_jax.learning.stopping import NEVER
from mtfl_jax.learning.tasks import FAMILIES
from mtfl_jax.names import GROUPS
from mtfl_jax.records import Registry

PROBED = "probe_"
"""What the settings of a family are called where the downstream task is of it."""


class Kind(NamedTuple):
    """Records of one kind, and which of them a cell chooses. group: the config group of that choice, where it has one;
    prefix: before their settings' names. among: of which records it is a choice.
    """

    registry: Registry[Any]
    chosen: Rule
    group: str = ""
    prefix: str = ""
    among: Callable[[Any], bool] = lambda record: True


def names_of(record: Any) -> tuple[str, ...]:
    """The settings that bear on a record: its own, and those it uses."""
    own = tuple(field.name for field in getattr(record, "settings", ()))
    return (*own, *getattr(record, "uses", ()))


def _owned_by_algorithm(name: str) -> Callable[[View], tuple[str, ...]]:
    def chosen(c: View) -> tuple[str, ...]:
        return (getattr(c, name),) if name in names_of(ALGORITHMS[c.algorithm]) else ()

    return chosen


KINDS = (
    Kind(LAWS, rule("data")(lambda c: (c.data,)), "data"),
    Kind(FAMILIES, rule("tasks")(lambda c: (c.tasks,)), "tasks"),
    Kind(ACTIVATIONS, rule("network")(lambda c: (c.network.removeprefix(PREFIX),)), "network"),
    Kind(ALGORITHMS, rule("algorithm")(lambda c: (c.algorithm,)), "algorithm"),
    Kind(HEAD_INITS, rule("algorithm", "head_init")(_owned_by_algorithm("head_init"))),
    Kind(PARAMETRIZATIONS, rule("algorithm", "parametrization")(_owned_by_algorithm("parametrization"))),
    Kind(OPTIMIZERS, rule("algorithm", "optimizer")(_owned_by_algorithm("optimizer"))),
    Kind(SCHEDULES, rule("algorithm", "schedule")(_owned_by_algorithm("schedule"))),
    Kind(LOSSES, rule("loss", "losses")(loss_names), "loss"),
    Kind(
        MEASURES,
        rule("measure")(lambda c: tuple(name for name, measure in MEASURES.items() if c.measure in measure.sets)),
    ),
    Kind(
        MEASURES,
        rule("algorithm", "stop_when")(
            lambda c: tuple(name for name in _owned_by_algorithm("stop_when")(c) if name != NEVER)
        ),
        among=lambda measure: bool(measure.stops),
    ),
    Kind(PROBES, rule("probe")(lambda c: () if c.probe == NONE else (c.probe,)), "probe"),
    Kind(FAMILIES, rule("probe", "probe_tasks")(lambda c: () if c.probe == NONE else (c.probe_tasks,)), prefix=PROBED),
)
"""Everything that a cell chooses by name."""

if {kind.group for kind in KINDS} - {""} != set(GROUPS):
    raise AssertionError("names.GROUPS are not those that a cell chooses")


class Part(NamedTuple):
    """An entry of a program that follows from settings; those of `of` are not in it by their own names, and it is there
    where the first of them bears.
    """

    of: tuple[str, ...]
    rule: Rule


@rule("algorithm", "steps", "measure_at")
def recorded(c: View) -> tuple[int, ...]:
    """Numbers of updates after which a cell is measured; 0 where nothing is trained."""
    algorithm = ALGORITHMS[c.algorithm]
    if not algorithm.stepped:
        return (algorithm.record,)
    if isinstance(c.measure_at, tuple):
        return c.measure_at
    return {"last": lambda: (c.steps,), "log": lambda: _powers(c.steps)}[c.measure_at]()


def _powers(steps: int) -> tuple[int, ...]:
    return (*(2**k for k in range(steps.bit_length()) if 2**k < steps), steps)


PARTS = {
    "losses": Part(("loss", "losses"), rule("loss", "losses")(loss_names)),
    "noisy": Part(("label_noise",), rule("label_noise")(lambda c: c.label_noise > 0)),
    "target_noisy": Part(("target_noise",), rule("target_noise")(lambda c: bool(c.target_noise))),
    "rotated": Part(("basis",), rule("basis")(lambda c: c.basis == "haar")),
    "arithmetic": Part(
        ("network", "precision", "kernel"),
        rule("network", "precision", "kernel")(
            # Where nothing is trained on samples they do not bear, and are no precision and no kernel to train with.
            lambda c: Arithmetic(c.precision or "", c.kernel or "", of_network(c.network).name)
        ),
    ),
}
"""Entries of a program beside the settings that are in it by name, and `record`; `config.refresh` adds `probes`."""


def probes_part() -> Part:
    """The probe of a cell, none or one."""
    compiled = {
        name: tuple(field.name for field in record.settings if field.kind != "knob") for name, record in PROBES.items()
    }
    names = dict.fromkeys(name for own in compiled.values() for name in own)

    def probes(c: View) -> tuple[Probed, ...]:
        if c.probe == NONE:
            return ()
        return (Probed(c.probe, c.probe_tasks, tuple((name, getattr(c, name)) for name in compiled[c.probe])),)

    return Part(("probe", "probe_tasks", "n_down", *names), Rule(frozenset({"probe", "probe_tasks", *names}), probes))


def taken() -> set[str]:
    """The settings that are in no program by their own names."""
    return {name for part in PARTS.values() for name in part.of} | {"measure_at"}
