"""Representations that are not trained: as initialised, and drawn inside the span. Their heads take one step."""

from typing import Any

from mtfl_jax.learning import network, updates
from mtfl_jax.learning.algorithms.record import (
    ALGORITHMS,
    TRAINED,
    TRAINED_RULES,
    Algorithm,
    Cost,
    Trained,
    at_once,
    products,
)
from mtfl_jax.learning.drawing import draw_network, losses_of, once_batch
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.tasks import Tasks


def _random_features(p: Program, cell: Cell, of: Tasks) -> Trained:
    return _with_heads(p, cell, of, draw_network(p, cell))


def _oracle(p: Program, cell: Cell, of: Tasks) -> Trained:
    return _with_heads(p, cell, of, network.inside_span(draw_network(p, cell), cell.r, cell.d))


def _with_heads(p: Program, cell: Cell, of: Tasks, params: network.Params) -> Trained:
    heads = once_batch(p, cell, of, "heads")
    return at_once(updates.head_step(params, heads, losses_of(p, cell), cell.lr_a, p.arithmetic), heads)


def _cost(p: Program, step: Any) -> Cost:
    # At A = 0 the outputs are known, so the head step takes one product with the heads.
    hidden, head = products(p)
    return Cost(p.n1, p.n1, p.n1 * (hidden + head))


for name, doc, run in (
    ("random_features", "the first layer as initialised", _random_features),
    ("oracle", "rows drawn inside the span of the directions", _oracle),
):
    ALGORITHMS.register(Algorithm(name, doc, run, _cost, uses=(*TRAINED, "n1", "lr_a"), rules=TRAINED_RULES, record=0))
