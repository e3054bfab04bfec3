"""A new task from few samples and neurons: on learned, single-task, random and oracle features, and from scratch."""

import numpy as np
import pandas as pd

from mtfl_jax.analysis import crossings, describe, figures
from mtfl_jax.analysis.findings import Drawing, Findings, Listing, Statement
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "A linear classifier on features learned from many tasks solves a new task on the same directions from few samples"
    " and few neurons, nearly as well as on features drawn inside the true span. On random features, on features"
    " learned from a single task, or by training the whole network on the new task alone, it takes many more."
)
NAMES = {
    "one_step": "learned from many tasks",
    "single": "learned from one task",
    "random_features": "random",
    "oracle": "oracle",
    "joint": "trained from scratch",
}
EPSILON = 0.05
"""The error at which a new task counts as solved."""


def findings(table: pd.DataFrame) -> Findings:
    """Test error of a new task against its samples and against width, by where the features are from. Raises
    ValueError where no row has an error of a new task.
    """
    rows = _errors(table)
    if not rows["error"].notna().any():
        raise ValueError("downstream needs rows with a probe, or trainings on one task: there are none")
    tasks = [name for name in ("parity", "balanced") if name in set(rows["task"])]
    called = {"parity": _parity(table), "balanced": "random task"}
    curves = {axis: _along(rows, axis) for axis in ("samples", "width")}
    statements = [said for task in tasks for said in _statements(curves["samples"], task, called[task])]
    statements += [_narrow(curves["width"], task, called[task]) for task in tasks]
    title = f"A new task on {describe.values(table['r'])} directions in d = {describe.values(table['d'])}"
    drawing = _drawing(table, curves, {task: called[task] for task in tasks})
    return Findings(title, CLAIM, statements, [drawing], [_listing(curves, called)])


STUDIES.register(
    Study("downstream", "a new task from few samples and neurons, by where the features are from", findings)
)


def _parity(table: pd.DataFrame) -> str:
    return f"{describe.values(table['r'])}-parity"


def _errors(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a new task's error: their settings, and features, task, samples (how many of the new task), error. Of
    trainings from scratch those at the rate and step with the least mean error, which only favours them. A diverged row
    is there, without its error.
    """
    lost = ~describe.ok(table)
    probed = table[table["downstream_error"].notna() | (lost & table["n_down"].notna())]
    probed = probed[probed["algorithm"].isin(list(NAMES))]
    most = probed["num_tasks"].max()
    single = (probed["algorithm"] == "one_step") & (probed["num_tasks"] == 1) & (most > 1)
    probed = probed.assign(
        features=np.where(single, "single", probed["algorithm"]),
        task=probed["probe_tasks"],
        samples=probed["n_down"],
        error=probed["downstream_error"],
    )
    scratch = table[(table["algorithm"] == "joint") & (table["num_tasks"] == 1) & (table["task_error"].notna() | lost)]
    scratch = scratch.assign(
        features="joint", task=scratch["tasks"], samples=scratch["n2"], error=scratch["task_error"]
    )
    cell = ["task", "samples", "width"]
    if len(scratch):
        means = scratch.groupby([*cell, "lr", "step"])["error"].mean().dropna().reset_index()
        best = means.loc[means.groupby(cell)["error"].idxmin(), [*cell, "lr", "step"]]
        scratch = scratch.merge(best, on=[*cell, "lr", "step"])
    names = list(dict.fromkeys([*describe.settings(table), "features", "task", "samples", "error"]))
    rows = pd.concat([probed[names], scratch[names]], ignore_index=True)
    return rows.astype({"samples": float, "width": float, "error": float})


def _along(rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The rows along one axis, where the other has the value that has the most rows."""
    other = "width" if axis == "samples" else "samples"
    counts = rows.groupby(other)[axis].nunique()
    return rows[rows[other] == counts.idxmax()]


def _by_features(rows: pd.DataFrame, task: str) -> dict[str, pd.DataFrame]:
    """The rows of a task by where the features are from, of those that have an error at all."""
    of = rows[rows["task"] == task].groupby("features")
    return {str(name): own for name, own in of if own["error"].notna().any()}


def _solved_at(rows: pd.DataFrame, axis: str) -> tuple[float, bool]:
    """From where on the mean error is at most EPSILON, and whether it ever is."""
    mean = rows.groupby(axis)["error"].mean().dropna()
    found = crossings.crossing(mean.index.to_numpy(float), mean.to_numpy(float), EPSILON)
    return found.value, found.status != "never"


def _statements(rows: pd.DataFrame, task: str, called: str) -> list[Statement]:
    """What learned features need beside the oracle's, and what the others need beside them."""
    of = _by_features(rows, task)
    if "one_step" not in of:
        return [Statement(None, f"Samples of a {called}: no learned features to ask.")]
    needed, solved = _solved_at(of["one_step"], "samples")
    most = describe.number(rows["samples"].max())
    share = f"{EPSILON:.0%}"
    if not solved:
        return [Statement(False, f"On learned features the {called} has more than {share} error at {most} samples.")]
    out = []
    if "oracle" in of:
        best, there = _solved_at(of["oracle"], "samples")
        text = (
            f"The {called} takes {needed:.0f} samples to {share} error on learned features, {best:.0f} on the oracle's."
        )
        out.append(Statement(there and needed <= 2 * best, text))
    for name in ("single", "random_features", "joint"):
        if name in of:
            value, there = _solved_at(of[name], "samples")
            last = of[name]["samples"] == of[name]["samples"][of[name]["error"].notna()].max()
            error = describe.estimate(of[name]["error"][last])
            text = (
                f"{NAMES[name].capitalize()}: the {called} takes "
                + (f"{value:.0f} samples, {value / needed:.1f} times as many" if there else f"more than {most} samples")
                + f" (error {error} at {describe.number(of[name]['samples'][last].max())})."
            )
            out.append(Statement(not there or value > 2 * needed, text))
    return out


def _narrow(rows: pd.DataFrame, task: str, called: str) -> Statement:
    """The width from which learned features solve the task, beside random ones."""
    of = _by_features(rows, task)
    if "one_step" not in of or "random_features" not in of:
        return Statement(None, f"Neurons for a {called}: no learned and random features to compare.")
    width, solved = _solved_at(of["one_step"], "width")
    other, there = _solved_at(of["random_features"], "width")
    learned = f"from {width:.0f} neurons on" if solved else f"not with {width:.0f} neurons"
    random = f"from {other:.0f} on" if there else f"not with {other:.0f}"
    samples = describe.number(rows["samples"].iloc[0])
    text = f"From {samples} samples learned features solve the {called} {learned}, random ones {random}."
    return Statement(solved and (not there or other > 2 * width), text)


def _drawing(table: pd.DataFrame, curves: dict[str, pd.DataFrame], called: dict[str, str]) -> Drawing:
    figure, panels = figures.panels(2 * len(called), columns=2)
    for place, (task, name) in enumerate(called.items()):
        for ax, axis in zip(panels[2 * place :], ("samples", "width"), strict=False):
            rows = curves[axis][curves[axis]["task"] == task]
            figures.curves(ax, rows, axis, "error", by="features", log="x", names=NAMES)
            text = figures.label("n_down" if axis == "samples" else "width")
            ax.set(xlabel=text, ylabel=f"test error of {name} (share)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    width, samples = (
        describe.number(curves[axis][other].iloc[0]) for axis, other in (("samples", "width"), ("width", "samples"))
    )
    most = describe.number(table["num_tasks"].max())
    shown = pd.concat(list(curves.values()))
    by = ["features", "task", "samples", "width"]
    seeds = describe.seeds(shown, by=by, counted=shown["error"].notna())
    caption = (
        f"Test error of a new task by where the features are from: against its samples at width {width} (left), against"
        f" width at {samples} samples (right). Learned from {most} tasks or one by one step; from scratch at the best"
        f" rate and step of those tried. The thin line is guessing. d = {describe.values(table['d'])}; means of"
        f" {seeds}, bands: one standard error."
    )
    return Drawing("downstream", figure, caption)


def _listing(curves: dict[str, pd.DataFrame], called: dict[str, str]) -> Listing:
    rows = []
    pairs = curves["samples"][["task", "features"]].drop_duplicates().sort_values(["task", "features"])
    for task, features in pairs.itertuples(index=False):
        line = [called[task], NAMES[features]]
        for axis in ("samples", "width"):
            part = _of(curves[axis], task, features)
            value, solved = _solved_at(part, axis) if part["error"].notna().any() else (np.nan, True)
            line.append("—" if np.isnan(value) else f"{value:.0f}" if solved else f"> {value:.0f}")
        rows.append(line)
    columns = ["task", "features", f"samples to {EPSILON:.0%} error", f"width to {EPSILON:.0%} error"]
    return Listing("What a new task takes", pd.DataFrame(rows, columns=columns))


def _of(rows: pd.DataFrame, task: str, features: str) -> pd.DataFrame:
    return rows[(rows["task"] == task) & (rows["features"] == features)]
