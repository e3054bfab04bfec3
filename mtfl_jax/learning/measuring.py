"""All measurements of a network: those of its set, and the probes."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mtfl_jax.learning import keys, probe, tasks
from mtfl_jax.learning.activations import ACTIVATIONS
from mtfl_jax.learning.drawing import draw_inputs, draw_labels, draw_orthants
from mtfl_jax.learning.measures import Seen, in_set, test_key
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.learning.tasks import FAMILIES, Tasks
from mtfl_jax.learning.updates import Samples


class Fresh(NamedTuple):
    """Inputs to measure with, where anything needs them, and for the probes to be fitted on."""

    test: Float[Array, "max_test d"] | None
    downstream: Float[Array, "max_down d"] | None


def draw_fresh(p: Program, cell: Cell) -> Fresh:
    """Fresh inputs."""
    test = draw_inputs(p, cell, test_key(cell), p.n_test) if "n_test" in p else None
    if not p.probes:
        return Fresh(test, None)
    return Fresh(test, draw_inputs(p, cell, keys.stream(cell.seed, "downstream/inputs"), max(p.n_down)))


def measure(
    p: Program, cell: Cell, of: Tasks, params: Params, batch: Samples | None, fresh: Fresh | None = None
) -> dict[str, Array]:
    """The measurements of a network by name, of padded shapes; and downstream_error (probes, k) where there are probes.

    `batch`: the samples of its last update, for train_loss (NaN without). On an accelerator `mended` says what
    `Recovery.mended` says.
    """
    fresh = draw_fresh(p, cell) if fresh is None else fresh
    seen = Seen(p, cell, of, params, batch, fresh.test)
    out = {}
    for record in in_set(p.measure):
        assert record.compute is not None
        out[record.name] = record.compute(seen)
    if p.probes:
        errors = [_probe(seen, fresh, i) for i in range(len(p.probes))]
        out["downstream_error"] = jnp.stack(errors)
    if p.accelerator and "recovery" in vars(seen):
        out["mended"] = seen.recovery.mended
    return out


def _probe(seen: Seen, fresh: Fresh, i: int) -> Float[Array, " n_down"]:
    """Downstream test error of the i-th probe at every n_down."""
    p, cell, x = seen.p, seen.cell, fresh.downstream
    assert x is not None
    name, family = p.probes[i]
    settings = {field.name: getattr(cell, f"probe_{field.name}")[i] for field in FAMILIES[family].settings}
    task = tasks.sample(keys.stream(cell.seed, "downstream/task"), family, 1, r=cell.r, max_r=p.r, **settings)
    z = draw_orthants(p, cell, keys.stream(cell.seed, "downstream/inputs"), max(p.n_down), x)
    y = draw_labels(p, cell, task, keys.stream(cell.seed, "downstream/label_noise"), z, noisy=p.noisy)[:, 0]
    return probe.downstream_errors(
        name,
        seen.params["W"],
        probe.biases(keys.stream(cell.seed, "downstream/biases"), p.width),
        x,
        y,
        cell.n_down,
        p.n_down,
        cell.width,
        seen.x,
        tasks.labels(task, seen.z)[:, 0],
        cell.n_test,
        activation=ACTIVATIONS[p.arithmetic.activation],
        accelerator=p.accelerator,
    )
