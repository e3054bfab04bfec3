"""Multi-task feature learning with a two-layer ReLU network, in JAX.

    import mtfl_jax

    table = mtfl_jax.run(d=64, r=4, data="rademacher", num_tasks=64, seed=0)   # one cell, a pandas DataFrame
    table = mtfl_jax.sweep(d=[32, 64], num_tasks=[1, 16], seed=range(64))      # their product
    table = mtfl_jax.load("outputs/quickstart/…")                            # what `mtfl` wrote
    mtfl_jax.plot(table).savefig("figure.pdf")                                 # means over seeds, of what varies
    weights = mtfl_jax.train(**table.iloc[0]).W                                # of one row; its tasks and data, too
    print(mtfl_jax.study("quickstart"))                                        # a ready grid, and what it finds

A cell goes through one direction: task draw → data → network → multitask update → measurement and probe
(`mtfl_jax.learning`, pure functions), run by `mtfl_jax.sweeps`; `mtfl_jax.analysis` reads the tables.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # As typing has it, which takes its time to import.
if TYPE_CHECKING:
    from typing import Any

    from mtfl_jax.analysis.folders import load as load
    from mtfl_jax.analysis.folders import weights as weights
    from mtfl_jax.analysis.plots import plot as plot
    from mtfl_jax.api import run as run
    from mtfl_jax.api import study as study
    from mtfl_jax.api import sweep as sweep
    from mtfl_jax.fields import ConfigError as ConfigError
    from mtfl_jax.searching import search as search
    from mtfl_jax.sweeps.training import train as train

    __version__: str

_HOMES = {
    "ConfigError": "mtfl_jax.fields",
    "load": "mtfl_jax.analysis.folders",
    "plot": "mtfl_jax.analysis.plots",
    "run": "mtfl_jax.api",
    "search": "mtfl_jax.searching",
    "study": "mtfl_jax.api",
    "sweep": "mtfl_jax.api",
    "train": "mtfl_jax.sweeps.training",
    "weights": "mtfl_jax.analysis.folders",
}

__all__ = ["ConfigError", "__version__", "load", "plot", "run", "search", "study", "sweep", "train", "weights"]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # Said once, in pyproject.toml.
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'mtfl_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
