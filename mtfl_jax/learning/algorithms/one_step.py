"""One gradient step of the heads, then one of the representation."""

from typing import Any

import jax.numpy as jnp

from mtfl_jax.fields import Field, View, rule
from mtfl_jax.learning import moment_rows, moments, updates
from mtfl_jax.learning.activations import of_network
from mtfl_jax.learning.algorithms.record import (
    ALGORITHMS,
    TRAINED,
    TRAINED_RULES,
    Algorithm,
    Condition,
    Cost,
    Shared,
    Trained,
    at_once,
    loss_names,
    losses_of_what_is_left,
    products,
)
from mtfl_jax.learning.arithmetic import AUTO, EXACT
from mtfl_jax.learning.data import LAWS
from mtfl_jax.learning.drawing import draw_network, losses_of, once_batch
from mtfl_jax.learning.initial import HEAD_INIT
from mtfl_jax.learning.parametrizations import SCALING, factors, powers
from mtfl_jax.learning.probe import NONE, PROBES
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.removal import REMOVE_DEGREE
from mtfl_jax.learning.tasks import FAMILIES, Tasks


def _run(p: Program, cell: Cell, of: Tasks) -> Trained:
    heads, features = (once_batch(p, cell, of, purpose) for purpose in ("heads", "features"))
    first, own_heads = factors(p, cell)
    lr_w = powers(cell, cell.lr_w) * first
    # No weight decay given: that which forgets the initial weights.
    shrink = jnp.where(jnp.isnan(cell.weight_decay), 1.0, lr_w * cell.weight_decay)
    params = updates.one_step(
        draw_network(p, cell),
        heads,
        features,
        losses_of(p, cell),
        lr_a=cell.lr_a * own_heads,
        lr_w=lr_w,
        shrink=shrink,
        train_bias=p.bias == "trained",
        how=p.arithmetic,
    )
    return at_once(params, features)


def _cost(p: Program, step: Any) -> Cost:
    # At A = 0 the outputs are known, so the head step takes one product with the heads.
    hidden, head = products(p)
    flops = p.n1 * (hidden + (2 if "head_init" in p else 1) * head) + p.n2 * (2 * hidden + 2 * head)
    return Cost(p.n1 + p.n2, p.n1 + p.n2, flops)


OWN = (HEAD_INIT, *SCALING, REMOVE_DEGREE)


def _neutral(field: Field) -> Condition:
    return Condition(f"{field.neutral}", rule(field.name)(lambda c: getattr(c, field.name) == field.neutral))


BY_MOMENTS = (
    Condition("a family of ±1 that the signs of z decide", rule("tasks")(lambda c: FAMILIES[c.tasks].tabular)),
    Condition("the linear loss alone", rule("loss", "losses")(lambda c: set(loss_names(c)) == {"linear"})),
    Condition("true", rule("shared_inputs")(lambda c: c.shared_inputs)),
    Condition("0", rule("label_noise")(lambda c: c.label_noise == 0)),
    Condition("null", rule("weight_decay")(lambda c: c.weight_decay is None)),
    Condition("one that is not trained", rule("bias")(lambda c: c.bias != "trained")),
    Condition(EXACT.precision, rule("precision")(lambda c: c.precision == EXACT.precision)),
    Condition(f"{EXACT.kernel}, {AUTO}", rule("kernel")(lambda c: c.kernel in (EXACT.kernel, AUTO))),
    Condition("one that may be padded", rule("network")(lambda c: not of_network(c.network).exact)),
    Condition(f"at most {moments.MAX_R}", rule("r")(lambda c: c.r <= moments.MAX_R)),
    Condition(
        "one that takes no samples of the training",
        rule("probe")(lambda c: c.probe == NONE or not PROBES[c.probe].trains),
    ),
    *map(_neutral, OWN),
)


@rule("nuisance_scale", "data")
def _rows(c: View) -> frozenset[str]:
    # The scale of what is orthogonal to the directions tells their number apart, unless it is 1; and so do some laws.
    own = {field.name for family in FAMILIES.values() for field in family.settings}
    alike = c.nuisance_scale == 1 and "r" not in LAWS[c.data].sizes
    return frozenset(own | {"tasks", "width", "num_tasks"} | ({"r"} if alike else set()))


ALGORITHMS.register(
    Algorithm(
        "one_step",
        "one gradient step of the heads on n1 samples, then one of the representation on n2",
        _run,
        _cost,
        settings=OWN,
        uses=(*TRAINED, "n1", "n2", "lr_a", "lr_w", "weight_decay"),
        rules=(*TRAINED_RULES, losses_of_what_is_left),
        shared=Shared(BY_MOMENTS, _rows, moment_rows.run, moments.MAX_R),
    )
)
