"""Trainings that stop where a measurement reaches a threshold, and keep their weights from then on.

Source: ours.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from mtfl_jax.fields import ConfigError, Rule, View, rule
from mtfl_jax.learning.drawing import draw_inputs
from mtfl_jax.learning.measures import MEASURES, Seen, stoppable, test_key
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.tasks import FAMILIES, Tasks
from mtfl_jax.learning.updates import Samples, State

NEVER = "never"
"""The choice of `stop_when` that stops nothing."""

STOPPING = ("stop_when", "stop_at", "stop_every")
"""The settings of a stop."""
WHEN_STOPPING: Mapping[str, Rule] = dict.fromkeys(STOPPING[1:], rule("stop_when")(lambda c: c.stop_when != NEVER))
"""When some of them bear."""


@rule("stop_when", "tasks")
def stops_by_what_means_something(c: View) -> None:
    """A measurement of other labels stops nothing."""
    if c.stop_when != NEVER and not MEASURES[c.stop_when].means(c.tasks):
        known = ", ".join((NEVER, *(name for name in stoppable() if MEASURES[name].means(c.tasks))))
        kind = "real labels" if FAMILIES[c.tasks].real else "labels ±1"
        raise ConfigError("stop_when", c.stop_when, f"tasks={c.tasks} has {kind}; allowed: {known}")


def stops(p: Program, cell: Cell) -> bool:
    """Whether a training may stop: any of its settings bears, and then reading one that does not is a fault."""
    return any(name in p or name in cell for name in STOPPING)


Stopping = tuple[Params, tuple[Any, Int[Array, ""]]]
"""A state of a training, with the number of updates after which it stopped, 0 before."""


def until(
    p: Program,
    cell: Cell,
    of: Tasks,
    update: Callable[[State, Int[Array, ""]], State],
    batch: Callable[[Any], Samples],
) -> Callable[[Stopping, Int[Array, ""]], Stopping]:
    """`update` until `stop_when` is at `stop_at` or beyond, which is looked at after every `stop_every` updates; after
    that what changes nothing. batch(count): the samples of the update that ends at a count.
    """
    record = MEASURES[p.stop_when]
    # Once, and not at every look.
    x = draw_inputs(p, cell, test_key(cell), p.n_test) if "n_test" in record.uses else None

    def met(params: Params, count: Int[Array, ""]) -> Bool[Array, ""]:
        assert record.compute is not None
        value = record.compute(Seen(p, cell, of, params, batch(count), x))
        return value <= cell.stop_at if record.stops == "below" else value >= cell.stop_at

    def updated(state: Stopping, step: Int[Array, ""]) -> Stopping:
        def go() -> Stopping:
            params, own = update((state[0], state[1][0]), step)
            # The step is the same in all lanes of a batch, so that only those after which one looks cost it.
            due = (step + 1) % p.stop_every == 0
            reached = jax.lax.cond(due, lambda: met(params, step + 1), lambda: jnp.zeros((), bool))
            return params, (own, jnp.where(reached, step + 1, 0))

        return jax.lax.cond(state[1][1] > 0, lambda: state, go)

    return updated
