"""All measurements of a network: those of its set, and the probes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from mtfl_jax.learning import keys, probe, removal, tasks
from mtfl_jax.learning.activations import ACTIVATIONS
from mtfl_jax.learning.drawing import (
    downstream_keys,
    draw_inputs,
    draw_labels,
    draw_other_network,
    noise,
    read,
    sample_tasks,
)
from mtfl_jax.learning.measures import Seen, of_probe, of_program, test_key
from mtfl_jax.learning.network import Params
from mtfl_jax.learning.program import Cell, Probed, Program
from mtfl_jax.learning.scalars import IntLike
from mtfl_jax.learning.tasks import FAMILIES, Tasks
from mtfl_jax.learning.tuning import Beginning
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
    return Fresh(test, draw_inputs(p, cell, downstream_keys(p, cell)[0], max(p.n_down)))


def measure(
    p: Program,
    cell: Cell,
    of: Tasks,
    params: Params,
    batch: Samples | None,
    fresh: Fresh | None = None,
    *,
    step: IntLike = 0,
    stopped: Int[Array, ""] | None = None,
) -> dict[str, Array]:
    """The measurements of a network by name, of padded shapes; and where there are probes downstream_error or
    downstream_r2 or both, (probes, k), NaN where the other is meant.

    `batch`: the samples of its last update, for train_loss (NaN without). step, stopped: as of `Seen`. On an
    accelerator `mended` says what `Recovery.mended` says.
    """
    fresh = draw_fresh(p, cell) if fresh is None else fresh
    seen = Seen(p, cell, of, params, batch, fresh.test, step, stopped)
    out = {}
    for record in of_program(p):
        assert record.compute is not None
        out[record.name] = record.compute(seen)
    if p.probes:
        scores = _probes(seen, fresh)
        found = [(of_probe(entry.family).name, own) for entry, own in zip(p.probes, scores, strict=True)]
        for name in dict.fromkeys(name for name, _ in found):
            out[name] = jnp.stack([values if own == name else jnp.full_like(values, jnp.nan) for own, values in found])
    if p.accelerator and "recovery" in vars(seen):
        out["mended"] = seen.recovery.mended
    return out


def _probes(seen: Seen, fresh: Fresh) -> list[Float[Array, " n_down"]]:
    """What is measured of each probe at every n_down: its test error, or R² of real labels.

    Trained networks that differ in traced settings alone are one loop, so that each such probe compiles once.
    """
    p = seen.p
    scores: dict[int, Float[Array, " n_down"]] = {}
    for entry in dict.fromkeys(p.probes):
        places = [i for i, other in enumerate(p.probes) if other == entry]
        if probe.PROBES[entry.probe].tune is None:
            scores |= {i: _probe(seen, fresh, entry, i) for i in places}
        else:
            own = jax.lax.map(lambda i, entry=entry: _probe(seen, fresh, entry, i), jnp.asarray(places))
            scores |= dict(zip(places, own, strict=True))
    return [scores[i] for i in range(len(p.probes))]


def _probe(seen: Seen, fresh: Fresh, entry: Probed, i: IntLike) -> Float[Array, " n_down"]:
    """What is measured of the i-th probe, which is `entry`."""
    p, cell, x = seen.p, seen.cell, fresh.downstream
    assert x is not None
    name, family, compiled = entry
    record = probe.PROBES[name]
    settings = {field.name: getattr(cell, f"probe_{field.name}")[i] for field in FAMILIES[family].settings}
    task = sample_tasks(p, cell, "downstream/task", family, 1, settings)
    inputs_key, noise_key = downstream_keys(p, cell)
    inputs = read(p, cell, inputs_key, max(p.n_down), x)
    y = draw_labels(p, cell, task, noise_key, inputs, noisy=noise(p, task))[:, 0]
    y_test, real = tasks.of_inputs(task, seen.inputs, cell.r, p.r)[:, 0], FAMILIES[family].real
    remove = p.down_remove_degree if "down_remove_degree" in p else removal.NONE
    if record.tune is not None:
        anew = draw_other_network(p, cell, "downstream/network")
        beginning = Beginning(
            trained={"W": seen.params["W"], "b": seen.params["b"], "A": anew["A"]},
            fresh=anew,
            width=cell.width,
            activation=p.arithmetic.activation,
            train_bias=p.bias == "trained",
            batch=seen.batch,
        )
        own = {field.name: getattr(cell, field.name)[i] for field in record.settings if field.kind == "knob"}
        own |= dict(compiled)
        data = (x, y, cell.n_down, p.n_down, seen.x, y_test, cell.n_test)
        return probe.tuned(name, beginning, *data, settings=own, real=real, remove=remove)
    return probe.downstream(
        name,
        seen.params["W"],
        probe.biases(keys.stream(cell.seed, "downstream/biases"), p.width),
        x,
        y,
        cell.n_down,
        p.n_down,
        cell.width,
        seen.x,
        y_test,
        cell.n_test,
        real=real,
        activation=ACTIVATIONS[p.arithmetic.activation],
        accelerator=p.accelerator,
        remove=remove,
    )
