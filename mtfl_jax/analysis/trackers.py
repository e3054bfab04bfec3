"""Curves of trainings in TensorBoard, MLflow or Weights & Biases: each training of a table is a run there.

A tracker is a function of rows: of `mtfl_jax.sweep(…, on_rows=…)`, or called with a table of `mtfl_jax.load`. A run's
parameters are the settings of its training, its metrics the numbers measured, by step; what was measured from `n_down`
samples is a metric for each n_down. Of a diverged row there is its status only. Runs are told apart by their settings:
more rows of a training go to the run that it has.
"""

import hashlib
import importlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mtfl_jax.analysis import describe
from mtfl_jax.names import OK

MOST = 1000
"""Trainings that a tracker takes, unless it is told how many: of more runs its pages are slow, and hardly read."""
TRACKERS = ("tensorboard", "mlflow", "wandb")
BY_SAMPLES = ("downstream_error", "downstream_r2")
"""The measurement that is of a number of samples, `n_down`."""
TAG = "mtfl_jax.training"
"""The tag of a run of MLflow that says of which training it is."""


class Training(NamedTuple):
    """What rows say of a training: its settings, its status, by step what was measured, and at which `places` among
    the rows. `key` tells it from all others, `name` from those of its sweep.
    """

    key: str
    name: str
    settings: Mapping[str, Any]
    status: str
    measured: Mapping[int, Mapping[str, float]]
    places: Sequence[int]


class Tracker:
    """Gives `send` every training of rows, of `most` trainings; `close` ends what `send` has begun. `where` says where
    they go, `seconds` how long a training takes at most. Raises ValueError for a bad `most`.
    """

    def __init__(
        self,
        where: str,
        send: Callable[[Training], object],
        close: Callable[[], object],
        most: int,
        seconds: float = 0.0,
    ) -> None:
        if most < 1:
            raise ValueError(f"most={most}: allowed: an integer from 1")
        self.where, self.send, self.close, self.most, self.seconds = where, send, close, most, seconds
        self._known: set[str] = set()
        self._full = False

    def __call__(self, rows: pd.DataFrame) -> list[int]:
        """Send rows; the places of those that were sent."""
        sent = list[int]()
        for training in trainings(rows):
            if training.key in self._known or len(self._known) < self.most:
                self._known.add(training.key)
                self.send(training)
                sent += training.places
            elif not self._full:
                self._full = True
                said = f"{self.where}: the first {self.most:,} trainings are there, a run each, the others are left out"
                warnings.warn(f"{said}; a larger `most` than {self.most:,} takes more", stacklevel=2)
        return sent


def trainings(rows: pd.DataFrame) -> Iterator[Training]:
    """The trainings of a table's rows."""
    settings = [name for name in describe.settings(rows) if name not in ("schema", "n_down", "step")]
    numbers = [name for name in describe.measurements(rows) if describe.numeric(rows[name])]
    wanted = dict.fromkeys([*settings, *numbers, "step", "status", "n_down"])
    columns = {name: _plain(rows[name]) for name in wanted if name in rows}
    found: dict[tuple[Any, ...], list[int]] = {}
    for i, own in enumerate(zip(*(columns[name] for name in settings), strict=True)):
        found.setdefault(own, []).append(i)
    for own, places in found.items():
        known = {name: value for name, value in zip(settings, own, strict=True) if value is not None}
        measured: dict[int, dict[str, float]] = {}
        for i in places:
            if columns["status"][i] == OK:
                at = measured.setdefault(columns["step"][i], {})
                for name in numbers:
                    if (value := columns[name][i]) is not None:
                        samples = columns["n_down"][i] if name in BY_SAMPLES and "n_down" in columns else None
                        at[name if samples is None else f"{name}/n_down_{samples}"] = float(value)
        bad = [columns["status"][i] for i in places if columns["status"][i] != OK]
        key = hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=6).hexdigest()
        told = [f"{name}={describe.number(known[name], 6)}" for name in rows.attrs.get("axes", ()) if name in known]
        yield Training(
            key, " ".join(told) or str(known.get("algorithm", "")), known, (bad or [OK])[0], measured, places
        )


def _plain(column: pd.Series) -> list[Any]:
    """A column as Python's own values, None where one is missing."""
    return [None if gone else value for value, gone in zip(column.tolist(), column.isna(), strict=True)]


def tensorboard(folder: str | Path, *, most: int = MOST) -> Tracker:
    """Event files for TensorBoard, a folder a training below `folder`; its tab HPARAMS has the settings. Raises
    ImportError without tensorboard.
    """
    _library("tensorboard")
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.plugins.hparams import summary_v2
    from tensorboard.summary.writer.record_writer import RecordWriter

    home = Path(folder)
    homes = {path.name.rpartition(" ")[2]: path for path in home.glob("* *")}

    def send(training: Training) -> None:
        name = "".join("_" if letter in '/\\:*?"<>|' else letter for letter in training.name[:150])
        own = homes.setdefault(training.key, home / f"{name} {training.key}")
        own.mkdir(parents=True, exist_ok=True)
        parameters = {**training.settings, "status": training.status}
        events = [event_pb2.Event(summary=summary_v2.hparams_pb(parameters, trial_id=training.key))]
        for step, measured in sorted(training.measured.items()):
            values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in measured.items()]
            events.append(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values)))
        with (own / "events.out.tfevents.mtfl_jax").open("ab") as file:
            whole = BytesIO()  # Written at once, so that a kill leaves no part of an event.
            writer = RecordWriter(whole)
            if not file.tell():
                events.insert(0, event_pb2.Event(file_version="brain.Event:2"))
            for event in events:
                event.wall_time = time.time()
                writer.write(event.SerializeToString())
            file.write(whole.getvalue())

    return Tracker(str(home.absolute()), send, lambda: None, most, seconds=0.003)


def mlflow(experiment: str = "mtfl_jax", *, tracking_uri: str | None = None, most: int = MOST) -> Tracker:
    """Runs of an experiment in MLflow, by default where MLflow keeps them (MLFLOW_TRACKING_URI). Raises ImportError
    without mlflow, and what MLflow raises where it cannot be reached.
    """
    _library("mlflow")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(tracking_uri)
    known = client.get_experiment_by_name(experiment)
    home = client.create_experiment(experiment) if known is None else known.experiment_id
    runs: dict[str, str] = {}
    token = None
    while known is not None:
        page = client.search_runs([home], f"tags.`{TAG}` LIKE '%'", max_results=1000, page_token=token)
        runs |= {run.data.tags[TAG]: run.info.run_id for run in page}
        if not (token := page.token):
            break

    def send(training: Training) -> None:
        if training.key not in runs:
            tags = {TAG: training.key, "mlflow.runName": training.name}
            runs[training.key] = client.create_run(home, tags=tags).info.run_id
        run, now = runs[training.key], round(time.time() * 1000)
        client.log_batch(
            run,
            params=[Param(name, str(value)) for name, value in training.settings.items()],
            tags=[RunTag("status", training.status)],
        )
        metrics = [
            Metric(name, value, now, step)
            for step, own in sorted(training.measured.items())
            for name, value in own.items()
        ]
        for start in range(0, len(metrics), 1000):  # As many as it takes at a time.
            client.log_batch(run, metrics=metrics[start : start + 1000])
        client.set_terminated(run, "FINISHED" if training.status == OK else "FAILED")

    return Tracker(f"experiment {experiment} of {client.tracking_uri}", send, lambda: None, most, seconds=0.05)


def wandb(project: str = "mtfl_jax", *, most: int = MOST, **init: Any) -> Tracker:
    """Runs of a project in Weights & Biases; `init` are keywords of `wandb.init`. WANDB_MODE=offline keeps them on this
    machine. Raises ImportError without wandb.
    """
    library = _library("wandb")
    quiet = library.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True)
    # The run of the training that came last: more of it may come.
    current: list[tuple[str, Any, str]] = []

    def close() -> None:
        while current:
            _, run, status = current.pop()
            run.finish(exit_code=int(status != OK))

    def send(training: Training) -> None:
        if not current or current[0][0] != training.key:
            close()
            given: dict[str, Any] = {"project": project, "settings": quiet, "resume": "allow", **init}
            given |= {"id": training.key, "name": training.name, "config": dict(training.settings)}
            run = library.init(**{**given, "reinit": "create_new"})
            run.define_metric("*", step_metric="step")
            current.append((training.key, run, training.status))
        _, run, status = current.pop()
        for step, own in sorted(training.measured.items()):
            run.log({"step": step, **own})
        status = training.status if status == OK else status
        run.summary["status"] = status
        current.append((training.key, run, status))

    return Tracker(f"project {project} of wandb", send, close, most, seconds=0.1)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"trackers.{name} needs {name}: pip install 'mtfl_jax[{name}]'") from None
