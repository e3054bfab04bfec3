"""Programs and cells hold what bears on a row and nothing else: each of their values is read, and missed where it
lacks.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from trainings import training

from mtfl_jax import compose
from mtfl_jax.fields import UndeclaredError
from mtfl_jax.learning.algorithms import ALGORITHMS
from mtfl_jax.learning.experiment import experiment
from mtfl_jax.learning.program import Cell, Program
from mtfl_jax.sweeps import compiling
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.plan import plan

MEASURED = {"probe": "ridge", "label_noise": 0.1, "bias": "random", "tasks": "parity", "parity_size": 2}
VALUES = {
    "one_step": {},
    "alternating": {"split_batch": True, "weight_decay": 0.2},
    "joint": {"optimizer": "adam", "weight_decay": 0.2},
    "joint by momentum": {"algorithm": "joint", "optimizer": "momentum", "weight_decay": 0.2},
    "joint from heads, scaled and stopped": {
        "algorithm": "joint",
        "optimizer": "sgd",
        "init_scale": 0.5,
        "head_init": "symmetric",
        "parametrization": "ntk",
        "lr_d_power": 0.5,
        "lr_n_power": -0.5,
        "lr_width_power": 0.5,
        "stop_when": "test_loss",
        "clip": 0.1,
        "loss": "mse",
        "remove_degree": "linear",
        "weight_norm": True,
    },
    "random_features": {},
    "oracle": {},
    "population": {},
}
"""Of every algorithm a cell that uses what it can."""


@functools.cache
def case(name):
    """The program and the cell of a case."""
    return training(**{"algorithm": name, **MEASURED, **VALUES[name]})


@functools.cache
def shared():
    """The program and the cell of a pass that gives the rows of many cells."""
    values = {"d": 8, "width": [4, 8], "num_tasks": [1, 4], "n1": 16, "n2": 16, "n_test": 16, "n_down": 8}
    values |= {"tasks": ["balanced", "parity"], "bias": "random", "r": 2, "probe_tasks": "parity"}
    grid = Grid(values, compose.composed)
    (bucket,) = plan(grid, "always")
    assert bucket.program.groups
    cells = compiling.cells_of(grid, bucket, jnp.arange(1))
    return bucket.program, jax.tree.map(lambda leaf: leaf[0], cells)


def names(p, cell):
    """What the two hold: (whose, name). `groups`, `families` and `keep` are no settings: they say of what
    kind a program is.
    """
    held = [("program", name) for name in p if name not in ("groups", "families", "keep")]
    return held + [("cell", name) for name in cell._values]


def trace(p, cell):
    """What a training measures, traced only."""
    return jax.eval_shape(functools.partial(experiment, p), cell)


def read(monkeypatch, p, cell):
    """What the two are asked for in a whole training, as `names` has it."""
    found = set()
    for whose, of in (("program", Program), ("cell", Cell)):

        def asked(self, name, stock=of.__getattr__, whose=whose):
            found.add((whose, name))
            return stock(self, name)

        monkeypatch.setattr(of, "__getattr__", asked)
    jax.clear_caches()
    assert "downstream_error" in trace(p, cell)
    return found


def test_every_algorithm_has_a_case():
    assert {case(name)[0].algorithm for name in VALUES} == set(ALGORITHMS)


@pytest.mark.parametrize("name", VALUES)
def test_every_value_bears(monkeypatch, name):
    """What a training holds, it reads."""
    p, cell = case(name)
    assert set(names(p, cell)) <= read(monkeypatch, p, cell)


@pytest.mark.parametrize(
    ("whose", "key"), [("program", "r"), ("cell", "seed"), ("cell", "lr_a"), ("program", "probes")]
)
def test_a_training_cannot_do_without_what_it_reads(whose, key):
    p, cell = case("one_step")
    of = p if whose == "program" else cell
    lacking = type(of)(**{name: value for name, value in of._values.items() if name != key})
    with pytest.raises(UndeclaredError, match=f" reads {key}, "):
        trace(*((lacking, cell) if whose == "program" else (p, lacking)))


NOT_READ_BY_A_SHARED_PASS = {
    ("program", "record"),  # rows_of reads it
    # Alike in every cell whose row such a pass may give.
    ("program", "shared_inputs"),
    ("cell", "label_noise"),
    ("cell", "weight_decay"),
}
"""What passes of many cells hold though the pass itself does not read it."""


def test_every_value_bears_in_a_shared_pass(monkeypatch):
    p, cell = shared()
    found = read(monkeypatch, p, cell)
    assert set(names(p, cell)) - found == NOT_READ_BY_A_SHARED_PASS
