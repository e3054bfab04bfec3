"""`one_step` in the limit of infinitely many Gaussian samples (`learning.limits`)."""

from typing import Any

import jax.numpy as jnp

from mtfl_jax.fields import ConfigError, View, rule
from mtfl_jax.learning import keys, limits, tasks
from mtfl_jax.learning.activations import ACTIVATIONS, PREFIX, of_network
from mtfl_jax.learning.algorithms.record import ALGORITHMS, Algorithm, Cost, Trained, at_once
from mtfl_jax.learning.data import LAWS
from mtfl_jax.learning.drawing import draw_network
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.tasks import FAMILIES, Tasks


def _run(p: Program, cell: Cell, of: Tasks) -> Trained:
    tables = tasks.truth_tables(of, cell.r, p.r)
    tables = jnp.where(jnp.arange(p.num_tasks)[:, None] < cell.num_tasks, tables, 0)
    params = limits.population_step(
        keys.stream(cell.seed, "population"),
        draw_network(p, cell),
        tables,
        r=cell.r,
        max_r=p.r,
        num_tasks=cell.num_tasks,
        nuisance_scale=cell.nuisance_scale,
        signal=1 - 2 * cell.label_noise,
        lr_a=cell.lr_a,
        lr_w=cell.lr_w,
        activation=ACTIVATIONS[p.arithmetic.activation],
    )
    return at_once(params, None)


@rule("data", "loss", "network", "shared_inputs", "bias", "r", "tasks")
def _where_the_limit_is_known(c: View) -> None:
    if not LAWS[c.data].standard_normal:
        known = ", ".join(name for name, law in LAWS.items() if law.standard_normal)
        raise ConfigError("data", c.data, f"allowed with algorithm=population: {known}")
    for key, allowed in (("loss", "linear"), ("shared_inputs", True)):
        if getattr(c, key) != allowed:
            raise ConfigError(key, getattr(c, key), f"allowed with algorithm=population: {allowed}")
    if not FAMILIES[c.tasks].tabular:
        signs = ", ".join(name for name, family in FAMILIES.items() if family.tabular)
        raise ConfigError("tasks", c.tasks, f"allowed with algorithm=population: {signs}")
    if of_network(c.network).gaussian is None:
        closed = ", ".join(PREFIX + name for name, record in ACTIVATIONS.items() if record.gaussian)
        raise ConfigError("network", c.network, f"allowed with algorithm=population: {closed}")
    if c.bias == "trained":
        raise ConfigError("bias", c.bias, "allowed with algorithm=population: zero, random")
    if c.r > limits.MAX_POPULATION_R:
        raise ConfigError("r", c.r, f"allowed with algorithm=population: r <= {limits.MAX_POPULATION_R}")


def _cost(p: Program, step: Any) -> Cost:
    return Cost(0, 0 * p.d, 0)


ALGORITHMS.register(
    Algorithm(
        "population",
        "one_step in the limit of infinitely many Gaussian samples, loss linear",
        _run,
        _cost,
        uses=("lr_a", "lr_w"),
        rules=(_where_the_limit_is_known,),
        # The quadrature depends on r.
        exact=("r",),
    )
)
