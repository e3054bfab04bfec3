"""What an algorithm is, and the rules that several share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from mtfl_jax.fields import ConfigError, Field, Rule, View, rule
from mtfl_jax.learning import removal, updates
from mtfl_jax.learning.activations import of_network
from mtfl_jax.learning.arithmetic import EXACT
from mtfl_jax.learning.bounds import with_norms
from mtfl_jax.learning.drawing import BATCHES, FIXED, FRESH
from mtfl_jax.learning.losses import LOSSES, MIXTURE
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.stopping import stops, until
from mtfl_jax.learning.tasks import Tasks
from mtfl_jax.learning.updates import Samples
from mtfl_jax.records import Registry


class Trained(NamedTuple):
    """Networks after each recorded update, leaves with a leading axis len(p.record); the first update count whose
    network is not finite, 0 if none; the samples of the last update at a count (None: it saw none); and, of one that
    may stop, the update count after which it did, 0 if it did not.
    """

    params: Params
    diverged: Int[Array, ""]
    batch: Callable[[Any], Samples | None]
    stopped: Int[Array, ""] | None = None


class Cost(NamedTuple):
    """Of a training, per copy of the inputs: distinct inputs seen; inputs that pass through the network; operations of
    its matrix products, of all copies.
    """

    samples: Any
    passed: Any
    flops: Any


class Condition(NamedTuple):
    """What a cell must meet for a shared pass: what is allowed, in words, and whether it is so."""

    allowed: str
    holds: Rule


@dataclasses.dataclass(frozen=True)
class Shared:
    """A pass over the samples of one training that gives the rows of many cells, their labels ±1.

    conditions: under which it gives a cell's row. rows: the settings in which the cells of one pass may differ, their
    tasks, r, width, num_tasks and the settings of families among them. run(p, cell): measurements with a leading axis
    rows.
    """

    conditions: tuple[Condition, ...]
    rows: Rule
    run: Callable[[Program, Cell], dict[str, Array]]
    most_r: int

    @property
    def holds(self) -> Rule:
        """Whether it gives a cell's row."""
        rules = [condition.holds for condition in self.conditions]
        return Rule(frozenset().union(*(own.reads for own in rules)), lambda c: all(own.within(c) for own in rules))


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """How a representation is made.

    run(p, cell, tasks) trains. cost(p, step): of a program of true sizes after `step` updates; its sizes may be arrays.
    uses: settings that bear on it beside its own `settings`; `when` says of some when they do. rules: checks of cells.
    stepped: it takes `steps` updates and is measured at several, else `record` is the one count it is measured at.
    prefix: whether fewer steps are the beginning of more (none: never). shared: a pass that serves many cells. exact:
    sizes that are never padded. base: the choice in conf/algorithm/ whose values it starts from, where it has no file
    there of its own.
    """

    name: str
    doc: str
    run: Callable[[Program, Cell, Tasks], Trained]
    cost: Callable[[Program, Any], Cost]
    settings: tuple[Field, ...] = ()
    uses: tuple[str, ...] = ()
    when: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    stepped: bool = False
    record: int = 1
    prefix: Rule | None = None
    shared: Shared | None = None
    exact: tuple[str, ...] = ()
    base: str = "one_step"


ALGORITHMS: Registry[Algorithm] = Registry("algorithm")

TRAINED = ("shared_inputs", "precision", "kernel")
"""What bears on every algorithm that sees samples."""
IN_STEPS = (*TRAINED, "n2", "steps", "measure_at", "samples", "batch", "weight_decay")
"""What bears on every algorithm that takes steps."""
WHEN_IN_STEPS: Mapping[str, Rule] = {"batch": rule("samples")(lambda c: c.samples == BATCHES)}
"""When some of it does."""


def at_once(params: Params, batch: Samples | None) -> Trained:
    """The outcome of an algorithm without steps."""
    diverged = jnp.where(updates.finite(params), 0, 1)
    return Trained(jax.tree.map(lambda leaf: leaf[None], params), diverged, lambda step: batch)


def in_steps(
    p: Program,
    cell: Cell,
    of: Tasks,
    update: Callable[[updates.State, Int[Array, ""]], updates.State],
    state: updates.State,
    batch: Callable[[Any], Samples],
) -> Trained:
    """The outcome of `p.steps` updates, fewer where the training stops; batch(step): the samples of update `step`."""
    if "weight_norm" in p and p.weight_norm:
        update = with_norms(update, state[0]["W"])
    if not stops(p, cell):
        return Trained(*updates.train(update, state, p.steps, p.record), lambda step: batch(step - 1))
    updated = until(p, cell, of, update, lambda count: batch(count - 1))
    start = (state[0], (state[1], jnp.zeros((), jnp.int32)))
    (_, (_, stopped)), params, diverged = updates.run(updated, start, p.steps, p.record)
    return Trained(params, diverged, lambda step: batch(updates.taken(stopped, step) - 1), stopped)


class Seen(NamedTuple):
    """Samples of a training in steps: distinct ones, and all that its updates take."""

    distinct: Any
    passed: Any


def seen(p: Program, n: Any, step: Any) -> Seen:
    """The samples that `step` updates see, of a set or of steps of n; both may be arrays."""
    if p.samples != BATCHES:
        return Seen(n if p.samples == FIXED else n * step, n * step)
    epochs, rest = np.divmod(step, np.ceil(n / p.batch).astype(int))
    passed = epochs * n + np.minimum(rest * p.batch, n)
    return Seen(np.minimum(passed, n), passed)


def loss_names(c: View) -> tuple[str, ...]:
    """The losses of the tasks in turn; reads loss and losses."""
    return c.losses if c.loss == MIXTURE else (c.loss,)


@rule("shared_inputs", "precision", "kernel")
def _plain_where_inputs_are_own(c: View) -> None:
    for key, only in (("precision", "float32"), ("kernel", "plain")):
        if not c.shared_inputs and getattr(c, key) != only:
            raise ConfigError(key, getattr(c, key), f"allowed with shared_inputs=false: {only}")


@rule("network", "kernel")
def _plain_where_kernels_lack_the_activation(c: View) -> None:
    if c.kernel != EXACT.kernel and not of_network(c.network).in_kernels:
        raise ConfigError("kernel", c.kernel, f"allowed with network={c.network}: {EXACT.kernel}")


@rule("algorithm", "weight_decay")
def _decay_is_a_number(c: View) -> None:
    if c.weight_decay is None:
        raise ConfigError("weight_decay", None, f"allowed in {c.algorithm}: a finite number from 0")


@rule("algorithm", "loss", "losses", "weight_decay")
def _bounded(c: View) -> None:
    unbounded = [name for name in loss_names(c) if not LOSSES[name].bounded]
    if unbounded and c.weight_decay == 0:
        raise ConfigError(
            "loss",
            c.loss,
            f"the {unbounded[0]} loss is unbounded in {c.algorithm}; allowed: weight_decay > 0, or another loss",
        )


@rule("remove_degree", "loss", "losses")
def losses_of_what_is_left(c: View) -> None:
    """Labels that lack a component are real."""
    margins = [name for name in loss_names(c) if LOSSES[name].margin]
    if c.remove_degree != removal.NONE and margins:
        key, value = ("losses", list(c.losses)) if c.loss == MIXTURE else ("loss", c.loss)
        known = ", ".join(name for name, loss in LOSSES.items() if not loss.margin)
        allowed = f"{margins[0]} is of labels ±1; allowed with remove_degree={c.remove_degree}: {known}"
        raise ConfigError(key, value, allowed)


@rule("remove_degree", "samples")
def moments_are_of_all_samples(c: View) -> None:
    """The moments of a batch are not those of its set."""
    if c.remove_degree != removal.NONE and c.samples == BATCHES:
        raise ConfigError("samples", c.samples, f"allowed with remove_degree={c.remove_degree}: {FRESH}, {FIXED}")


@rule("measure_at", "steps")
def _measured_within_the_steps(c: View) -> None:
    if isinstance(c.measure_at, tuple) and c.measure_at[-1] > c.steps:
        raise ConfigError("measure_at", list(c.measure_at), f"allowed: steps from 1 to steps={c.steps}")


@rule("samples", "batch", "n2")
def _batches_are_parts(c: View) -> None:
    if c.samples == BATCHES and c.batch > c.n2:
        raise ConfigError("batch", c.batch, f"allowed: from 1 to n2={c.n2}")


REMOVAL_RULES = (losses_of_what_is_left, moments_are_of_all_samples)
"""Of an algorithm that takes steps on labels of which components may be removed."""
TRAINED_RULES = (_plain_where_inputs_are_own, _plain_where_kernels_lack_the_activation)
STEPPED_RULES = (*TRAINED_RULES, _decay_is_a_number, _bounded, _measured_within_the_steps, _batches_are_parts)


class Products(NamedTuple):
    """Operations of the matrix products with one sample: with W, for all copies of the inputs, and with the heads."""

    hidden: Any
    head: Any


def products(p: Program) -> Products:
    """Two a multiply-add: 2 d width for the hidden layer, as much for ∇_W, and 2 width T with the heads. The hidden
    layer counts once where heads and representation share their samples.
    """
    copies = 1 if p.shared_inputs else p.num_tasks
    return Products(2 * p.d * p.width * copies, 2 * p.width * p.num_tasks)
