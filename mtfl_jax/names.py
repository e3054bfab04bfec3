"""Names that both ends of the program must call the same: config and sweeps, which need jax, and analysis, which must
not. Imports nothing.
"""

from collections.abc import Mapping

GROUPS = ("algorithm", "data", "tasks", "network", "loss", "probe")
"""Config groups of a cell: settings whose choice is a file of conf/, from which others follow; in the order in which
tables name them.
"""

OK, DIVERGED = "ok", "diverged"
STATUSES = (OK, DIVERGED)
"""What the column `status` says of a row; only a row that is OK has measurements."""

OTHER_KEYS: Mapping[str, str] = {
    "study": "a ready grid and what it finds",
    "size": "how large a study: large is for an accelerator",
    "name": "what the folder is called where rows go, outputs/STUDY/NAME; default: the time",
    "folder": "where rows go: a folder or the URL of one (s3://, gs://); null: hydra.run.dir, with -m hydra.sweep.dir",
    "plan": "run; only: say what would run; compile: and memory, compile times; calibrate: and the fastest batches",
    "keep": "weights of every row to keep in the folder, a list of W, b, A; mtfl_jax.weights(row) reads them",
    "moments": "one_step of many cells by moments of the inputs: auto, always, never",
    "memory_fraction": "share of a device's memory that a program may take",
    "extensions": "modules or .py files that register records of your own: they are imported, so their code runs",
    "sweep": "the grid; with -m just write KEY=1,2,4",
    "hydra": "Hydra's own keys: mtfl --hydra-help",
}
"""Keys of conf/config.yaml that are not a cell's, and what they are."""

SWEEP_KEYS: Mapping[str, str] = {
    "axes": "KEY: a list, or a sweep such as range(0,8)",
    "grids": "[{KEY: …}, …]: grids one after the other; each has these axes and those above",
    "zip": "[[d,n1]]: axes that advance together",
    "where": "['width >= 2*d']: conditions that cells must meet",
    "sample": "how many points axes have that are intervals, interval(1e-3,1) or tag(log,interval(1e-3,1)), together",
    "sampler": "how those points are drawn: sobol, evenly; random",
    "sample_seed": "an integer from 0: other points",
    "part": "k/K: the k-th of K equal shares; auto: as Slurm, MPI or a TPU pod numbers its processes",
}
"""Keys of `sweep`, and what they are."""

BOOKKEEPING: Mapping[str, type] = {
    "extensions": str,
    "draws": int,
    "schema": int,
    "step": int,
    "status": str,
    "diverged_step": int,
}
"""Columns that say of a row where it is from and how it ended; the settings stand before them, measurements after."""

LATEST = "latest"
"""What stands for the newest sweep, where a folder is read."""
NOT_NAMES = (LATEST, "parts", "runs", "report", "weights")
"""What no sweep may be called: it stands for others, or for what is in a sweep's folder."""

WEIGHTS = ("W", "b", "A")
"""What may be kept of a network: (width, d), (width,) and (num_tasks, width)."""

NO_STUDY = "none"
"""The `study` of a sweep that is no study's."""

COLUMN_LABELS: Mapping[str, str] = {
    "d": "input dimension d",
    "r": "hidden directions r",
    "width": "hidden neurons (width)",
    "num_tasks": "number of tasks T",
    "n1": "samples of a head step n1",
    "n2": "samples of a representation step n2",
    "n_down": "samples of the downstream task",
    "n_test": "test samples",
    "label_noise": "label noise (share flipped)",
    "subspace_distance": "subspace distance (sine of angle)",
    "directions_recovered": "directions recovered",
    "feature_energy": "feature energy (share in the span)",
    "spectral_ratio": "spectral ratio",
    "train_loss": "train loss",
    "test_loss": "test loss",
    "task_error": "error of trained tasks (share)",
    "downstream_error": "downstream error (share)",
    "num_params": "parameters",
    "train_samples": "training samples",
    "train_flops": "training arithmetic (FLOP)",
    "contrastive_loss": "contrastive loss",
    "feature_similarity": "feature similarity (cosine)",
    "contrastive_kernel": "contrastive kernel",
}
"""What figures call the built-in columns, with units."""

GUESSING: Mapping[str, float] = {"task_error": 0.5, "downstream_error": 0.5}
"""What guessing gives, of the measurements that are errors of a balanced label."""

LABELS = dict(COLUMN_LABELS)
"""What figures call a column, in this process: the built-in labels and those learned from the tables read."""


def learn(labels: Mapping[str, str]) -> None:
    """Take the labels that a table brings of its own columns."""
    LABELS.update(labels)
