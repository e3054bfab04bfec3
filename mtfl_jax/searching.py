"""Search over continuous settings by Optuna, in batches of trials that each are one sweep."""

import importlib
import math
from typing import Any

import pandas as pd

from mtfl_jax import api, extend
from mtfl_jax.analysis import describe
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError, integer, one_of
from mtfl_jax.learning.measures import MEASURES
from mtfl_jax.names import OK
from mtfl_jax.sweeps.grammar import Interval, axis_values
from mtfl_jax.sweeps.grid import zips


def search(
    *,
    trials: int,
    objective: str = "subspace_distance",
    direction: str = "minimize",
    batch: int = 8,
    study: Any = None,
    sample_seed: int = 0,
    **given: Any,
) -> pd.DataFrame:
    """Search over the axes that are intervals for the best mean of a measurement, and return a row a trial, best first.

    The other keywords are those of `sweep`: a trial is measured at all of its axes, and its value is the mean of
    `objective` over their rows, of each training that at its last recorded step. `batch` trials are asked for at a
    time and run as one sweep. A trial of which a row diverged, or has an objective that is censored, has the worst
    value there is, infinity. `study` is an Optuna study (whose direction is then its own), by default one whose sampler
    has the seed `sample_seed`; it has `trials` trials in the end, those that it had before among them. With a `folder`
    a search that was stopped goes on: it asks for the same trials again, and their rows are there. Columns are the
    settings searched over, the objective, of how many `rows` it is, how many `diverged`, and the number of the `trial`
    in the study. Raises ConfigError as `sweep`, and ImportError without Optuna.

        mtfl_jax.search(lr_a="tag(log,interval(1e-3,1))", algorithm="alternating", seed=range(4), trials=24)
    """
    try:
        optuna = importlib.import_module("optuna")
    except ImportError:
        raise ImportError("mtfl_jax.search needs Optuna: pip install 'mtfl_jax[search]'") from None
    extend.load(given.get("extensions", ()))
    trials, batch = (integer(1).parse(key, value) for key, value in (("trials", trials), ("batch", batch)))
    measured = [name for name, measure in MEASURES.items() if measure.shape is None and measure.type in (int, float)]
    objective = str(one_of(*measured).parse("objective", objective))
    intervals = _intervals(given)
    space = {key: _distribution(optuna, key, interval) for key, interval in intervals.items()}
    if study is None:
        direction = str(one_of("minimize", "maximize").parse("direction", direction))
        study = optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=sample_seed))
    states, least = optuna.trial.TrialState, study.direction == optuna.study.StudyDirection.MINIMIZE
    while (left := trials - len(study.get_trials(deepcopy=False, states=[states.COMPLETE]))) > 0:
        asked = [study.ask(space) for _ in range(min(batch, left))]
        try:
            points = {key: [trial.params[key] for trial in asked] for key in space}
            # A page is made once, of all.
            page = {"page": given.get("page", True) and len(asked) == left}
            table = api.sweep(**_at(given, points) | page)
            for trial in asked:
                own = _rows_of(table, trial.params, intervals, objective)
                bad = int((own["status"] != OK).sum())
                worst = math.inf if least else -math.inf
                unknown = describe.censored(own, objective).any()
                trial.set_user_attr("rows", len(own))
                trial.set_user_attr("diverged", bad)
                study.tell(trial, worst if bad or unknown or own.empty else float(own[objective].mean()))
        except BaseException:
            for trial in asked:
                study.tell(trial, state=states.FAIL, skip_if_finished=True)
            raise
    done = study.get_trials(deepcopy=False, states=[states.COMPLETE])
    table = pd.DataFrame([{**one.params, objective: one.value, **one.user_attrs, "trial": one.number} for one in done])
    return table.sort_values(objective, ascending=least, kind="stable", ignore_index=True)


def _intervals(given: dict[str, Any]) -> dict[str, Interval]:
    """The axes that are intervals. Raises ConfigError where there are none."""
    axes = {key: axis_values(key, spec) for key, spec in given.items() if key in FIELDS}
    found = {key: own for key, own in axes.items() if isinstance(own, Interval)}
    if not found:
        raise ConfigError("search", ", ".join(axes) or "no axis", "allowed: an axis interval(LOW,HIGH) at least")
    return found


def _distribution(optuna: Any, key: str, interval: Interval) -> Any:
    if FIELDS[key].type.column is int:
        return optuna.distributions.IntDistribution(int(interval.low), int(interval.high), log=interval.log)
    return optuna.distributions.FloatDistribution(interval.low, interval.high, log=interval.log)


def _at(given: dict[str, Any], points: dict[str, list[Any]]) -> dict[str, Any]:
    """What a sweep of some points is given: they advance together."""
    return {**given, **points, "zip": [*zips(given.get("zip", ())), list(points)]}


def _rows_of(
    table: pd.DataFrame, params: dict[str, Any], intervals: dict[str, Interval], objective: str
) -> pd.DataFrame:
    """The rows of a trial, of each training those of its last recorded step. Raises ConfigError where they do not tell
    trials apart, or have no objective.
    """
    settings = list(table.columns[: table.columns.get_loc("step")])
    own = table[table["step"] == table.groupby(settings, dropna=False)["step"].transform("max")]
    for key, value in params.items():
        if table[key].isna().all():
            raise ConfigError(key, intervals[key].text, "it has no effect on these cells; allowed: a setting that has")
        own = own[(own[key] == value) | own[key].isna()]
    if own.loc[own["status"] == OK, objective].isna().any():
        raise ConfigError("objective", objective, "it is not measured there; allowed: a measurement of all rows")
    return own
