"""The rows of many cells of `one_step` by one pass over their samples, which do not depend on the row (`moments`)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key, Num

from mtfl_jax.learning import data, moments, tasks, updates
from mtfl_jax.learning.arithmetic import Arithmetic
from mtfl_jax.learning.drawing import PART, draw_inputs, draw_network, draw_read, draw_tasks, inputs_key
from mtfl_jax.learning.measures import of_program
from mtfl_jax.learning.measuring import draw_fresh, measure
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.tasks import FAMILIES, Tasks

TABLES = "uniform"
"""A family whose params are the tables of any tasks."""


def rowed(p: Program) -> tuple[str, ...]:
    """What the rows of a training differ in: leaves of the cell with an axis of rows."""
    settings = (field.name for name in p.families for field in FAMILIES[name].settings)
    return ("r", "width", "num_tasks", "family", *dict.fromkeys(settings))


def run(p: Program, cell: Cell) -> dict[str, Any]:
    """Measurements and diverged_step of every row of a training, leading axis rows; where `p.keep`, the networks."""
    first = cell.replace(r=cell.r[0], width=p.width, num_tasks=p.num_tasks)
    params, orthants = draw_network(p, first), 2**p.r
    how = Arithmetic(activation=p.arithmetic.activation)

    def index(key: Key[Array, ""], n: int) -> Int[Array, " {n}"]:
        return tasks.orthant_index(data.orthants(draw_read(p, first, key, n), p.r, p.r))

    key = inputs_key(cell, "heads", 0)
    part = PART if p.accelerator else None
    h = moments.head_table(params, draw_inputs(p, first, key, p.n1), index(key, p.n1), cell.n1, orthants, how, part)
    key = inputs_key(cell, "features", 0)
    index_x = index(key, p.n2)
    blocks = moments.by_orthant(index_x, cell.n2, orthants)
    sorted_x = draw_inputs(p, first, key, blocks.sample.reshape(-1)).T
    S = moments.feature_table(params, sorted_x, blocks, cell.n2, orthants, how, batched=p.accelerator)
    table = moments.Moments(h, S)
    fresh = draw_fresh(p, first)
    with_loss = any(record.name == "train_loss" for record in of_program(p))
    x = draw_inputs(p, first, key, p.n2) if with_loss else None

    def tables(own: Cell, family: str) -> Float[Array, "T orthants"]:
        # Of every orthant of p.r coordinates, by the first own.r of them.
        return tasks.labels(draw_tasks(p.replace(tasks=family), own), tasks.all_orthants(own.r, p.r)).T

    def tables_of(own: Cell) -> Float[Array, "T orthants"]:
        return jax.lax.switch(own.family, [functools.partial(tables, own, name) for name in p.families])

    def row(
        q: Program,
        own: Cell,
        truth: Float[Array, "T orthants"],
        W: Float[Array, "width d"],
        A: Float[Array, "T width"],
    ) -> dict[str, Any]:
        used = jnp.arange(q.width) < own.width
        stepped = jax.tree.map(lambda leaf: jnp.where(used, leaf, 0), {"W": W.T, "b": params["b"][: q.width], "A": A})
        stepped["W"] = stepped["W"].T
        of = Tasks(TABLES, truth)
        out: dict[str, Any] = measure(q, own, of, stepped, None, fresh)
        out |= {"diverged_step": jnp.where(updates.finite(stepped), 0, 1)}
        if p.keep:
            spare = p.width - q.width
            wide = {"W": ((0, spare), (0, 0)), "b": ((0, spare),), "A": ((0, 0), (0, spare))}
            out["network"] = {name: jnp.pad(leaf, wide[name]) for name, leaf in stepped.items()}
        if x is not None:
            # The mean of −y F, orthant by orthant: labels and heads are the same all over an orthant.
            after = moments.head_table(stepped, x, index_x, cell.n2, orthants, how, part)
            counted = jnp.where(jnp.arange(p.num_tasks)[:, None] < own.num_tasks, truth, 0)
            out["train_loss"] = -jnp.sum((counted.T @ A) * after) / own.num_tasks
        return out

    def rows(q: Program, own: dict[str, Num[Array, " rows"]]) -> dict[str, Any]:
        truth = jax.lax.map(lambda own: tables_of(cell.replace(**own)), own)
        counted = jnp.where(jnp.arange(p.num_tasks)[:, None] < own["num_tasks"][:, None, None], truth, 0)
        narrow = jax.tree.map(lambda leaf: leaf[:, : q.width], table)
        W, A = moments.one_step(narrow, counted, own["num_tasks"], cell.lr_a, cell.lr_w)
        return jax.lax.map(lambda each: row(q, cell.replace(**each[0]), *each[1:]), (own, truth, W, A))

    parts, at = [], 0
    for width, count in p.groups:
        q = p.replace(width=width)
        # In passes of equal length, the last filled up with copies of the last row.
        passes = -(-count // moments.ROWS)
        place = at + jnp.minimum(jnp.arange(passes * -(-count // passes)), count - 1).reshape(passes, -1)
        found = jax.lax.map(functools.partial(rows, q), {name: getattr(cell, name)[place] for name in rowed(p)})
        parts.append(jax.tree.map(lambda leaf, count=count: leaf.reshape(-1, *leaf.shape[2:])[:count], found))
        at += count
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
