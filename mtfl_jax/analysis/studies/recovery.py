"""How many tasks it takes to recover the directions, and where one step does not."""

import pandas as pd

from mtfl_jax.analysis import describe, figures
from mtfl_jax.analysis.findings import Drawing, Findings, Listing, Statement
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "One gradient step on many tasks recovers all r directions with high probability, for every d and r; on a single"
    " task it cannot be relied on to. Where the tasks' mean label does not vanish (uniform tasks) or no neuron without"
    " a bias can fit them (odd parities), one step fails, and more steps or biases are the cure."
)
MEASURED = ("subspace_distance", "directions_recovered", "feature_energy", "spectral_ratio")
FOUND, LOST = 0.95, 0.5
"""The directions are found where at least this share of runs finds all, and lost where at most that share does."""


def findings(table: pd.DataFrame) -> Findings:
    """The recovery by the number of tasks, d, r and family. Raises ValueError where nothing was trained in one step."""
    at_once = table[table["algorithm"] == "one_step"]
    if at_once.empty:
        raise ValueError("recovery needs rows of one_step: there are none")
    odd = at_once["parity_size"] == "3"
    plain = at_once[~odd]
    balanced = plain[plain["tasks"] == "balanced"]
    steps = table[table["algorithm"].isin(["alternating", "joint"])]
    statements = [_many(balanced), _single(balanced)]
    statements += _uniform(plain, steps[steps["tasks"] == "uniform"])
    statements += _odd(at_once[odd], steps[steps["parity_size"] == "3"])
    drawings = []
    if len(balanced):
        drawings.append(_sizes(balanced, table[table["algorithm"] == "population"]))
    drawings.append(_families(plain))
    if len(steps):
        drawings.append(_cures(plain, at_once[odd], steps))
    return Findings("Recovery of the directions", CLAIM, statements, drawings, [_listing(plain)])


STUDIES.register(
    Study("recovery", "how many tasks it takes to recover the directions, and where one step does not", findings)
)


def _all(rows: pd.DataFrame) -> describe.Estimate:
    """In which share of the runs all directions were found."""
    return describe.estimate(describe.all_found(rows))


def _shares(rows: pd.DataFrame) -> list[float]:
    """At each pair of d and r that has measurements, in which share of the runs all directions were found."""
    shares = [_all(own) for _, own in rows.groupby(["d", "r"])]
    return [share.mean for share in shares if share.n]


def _many(rows: pd.DataFrame) -> Statement:
    most = rows["num_tasks"].max() if len(rows) else 0
    if most < 2:
        return Statement(None, "Whether many tasks are enough: no rows of several balanced tasks.")
    of = rows[rows["num_tasks"] == most]
    shares = _shares(of)
    if not shares:
        return Statement(None, "Whether many tasks are enough: every row of several balanced tasks diverged.")
    text = (
        f"With {most} balanced tasks one step finds all directions in at least {min(shares):.0%} of runs at each"
        f" of {len(shares)} pairs of d and r (subspace distance {describe.estimate(of['subspace_distance'])})."
    )
    return Statement(min(shares) >= FOUND, text)


def _single(rows: pd.DataFrame) -> Statement:
    of = rows[rows["num_tasks"] == 1]
    if of.empty:
        return Statement(None, "Whether one task is too few: no rows of a single balanced task.")
    shares = _shares(of)
    if not shares:
        return Statement(None, "Whether one task is too few: every row of a single balanced task diverged.")
    by_r = ", ".join(
        f"{describe.estimate(own['directions_recovered'])} of {r} directions ({1 - _all(own).mean:.0%} of"
        f" {_all(own).counted()} runs miss at least one)"
        for r, own in of.groupby("r")
    )
    return Statement(max(shares) <= LOST, f"A single balanced task finds {by_r}.")


def _uniform(at_once: pd.DataFrame, steps: pd.DataFrame) -> list[Statement]:
    rows = at_once[at_once["tasks"] == "uniform"]
    if rows.empty:
        return []
    most = rows["num_tasks"].max()
    before = describe.estimate(rows["subspace_distance"][rows["num_tasks"] == most])
    text = f"With {most} uniform tasks one step ends at subspace distance {before}."
    out = [Statement(before.mean > 0.5 if before.n else None, text)]
    if len(steps):
        last = steps["step"].max()
        after = describe.estimate(steps["subspace_distance"][steps["step"] == last])
        tasks = describe.values(steps["num_tasks"])
        text = f"{last} steps on {tasks} uniform tasks end at subspace distance {after}."
        out.append(Statement(after.mean < 0.5 if after.n else None, text))
    return out


def _odd(at_once: pd.DataFrame, steps: pd.DataFrame) -> list[Statement]:
    out = []
    for bias, fails in (("zero", True), ("random", False)):
        parts = []
        for name, rows in (("one step", at_once), ("steps", steps)):
            own = rows[rows["bias"] == bias]
            own = own[own["step"] == own["step"].max()]
            if len(own):
                often = f"{own['step'].iloc[0]} steps" if name == "steps" else name
                parts.append((often, describe.estimate(own["subspace_distance"])))
        if parts:
            text = f"3-parities with {'no' if fails else 'random'} biases end at subspace distance "
            text += ", ".join(f"{distance} after {often}" for often, distance in parts) + "."
            means = [distance.mean for _, distance in parts if distance.n]
            supported = (min(means) > 0.9 if fails else min(means) < 0.5) if means else None
            out.append(Statement(supported, text))
    return out


def _curve(ax: figures.Axes, rows: pd.DataFrame, name: str, by: str) -> None:
    figures.curves(ax, rows, "num_tasks", name, by=by, log="xy" if name == "spectral_ratio" else "x")


def _sizes(rows: pd.DataFrame, population: pd.DataFrame) -> Drawing:
    """Balanced tasks: a row of panels by d, one by r, with the population limit over the points."""
    d, r = rows["d"].mode().iloc[0], rows["r"].mode().iloc[0]
    figure, panels = figures.panels(8, columns=4)
    for first, by, own in ((0, "d", rows[rows["r"] == r]), (4, "r", rows[rows["d"] == d])):
        for ax, name in zip(panels[first:], MEASURED, strict=False):
            _curve(ax, own, name, by)
            if len(population):
                means = figures.mean_and_error(population, "num_tasks", name)["mean"]
                ax.plot(means.index.to_numpy(float), means, color="black", linewidth=1, label="population")
        panels[first].legend(title=by, fontsize=7, title_fontsize=7)
    caption = (
        f"Recovery by one step on balanced tasks, by d at r = {r} (top) and by r at d = {d} (bottom); the black line is"
        f" the limit of infinitely many samples at d = {describe.values(population['d']) or d}, r ="
        f" {describe.values(population['r']) or r}. n1 = {describe.values(rows['n1'])}, n2 ="
        f" {describe.values(rows['n2'])}, width {describe.values(rows['width'])}; means of {describe.seeds(rows)},"
        " bands: one standard error."
    )
    return Drawing("recovery", figure, caption)


def _families(rows: pd.DataFrame) -> Drawing:
    d, r = rows["d"].mode().iloc[0], rows["r"].mode().iloc[0]
    own = rows[(rows["d"] == d) & (rows["r"] == r)]
    figure, panels = figures.panels(4, columns=4)
    for ax, name in zip(panels, MEASURED, strict=True):
        _curve(ax, own, name, "tasks")
    panels[0].legend(fontsize=7)
    caption = (
        f"Recovery by one step for each task family, d = {d}, r = {r}; means of {describe.seeds(own)}, bands: one"
        " standard error."
    )
    return Drawing("recovery-families", figure, caption)


def _cures(at_once: pd.DataFrame, odd: pd.DataFrame, steps: pd.DataFrame) -> Drawing:
    """What more steps do for uniform tasks, and biases for odd parities."""
    figure, panels = figures.panels(2)
    parts = ((panels[0], "uniform", at_once[at_once["tasks"] == "uniform"]), (panels[1], "parity", odd))
    for ax, family, first in parts:
        figures.curves(ax, steps[steps["tasks"] == family], "step", "subspace_distance", by="bias", log="x")
        for place, (bias, own) in enumerate(first.groupby("bias")):
            last = own[own["num_tasks"] == own["num_tasks"].max()]
            level = describe.estimate(last["subspace_distance"]).mean
            ax.axhline(level, color="black", linewidth=0.8, linestyle=(":", "--")[place % 2], label=f"one step, {bias}")
        name = "uniform tasks" if family == "uniform" else "3-parities"
        called = " and ".join(sorted(steps["algorithm"][steps["tasks"] == family].unique()))
        ax.set(xlabel=f"steps of {called}", ylabel=f"subspace distance, {name}", ylim=(-0.03, 1.03))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(title="biases", fontsize=7, title_fontsize=7)
    caption = (
        f"Subspace distance along many steps, where one step fails; horizontal lines are one step. Means of"
        f" {describe.seeds(steps)}, bands: one standard error."
    )
    return Drawing("recovery-cures", figure, caption)


def _missing(rows: pd.DataFrame) -> str:
    """In which share of the runs a direction was missed."""
    return describe.estimate(1 - describe.all_found(rows)).show(".0%")


def _listing(rows: pd.DataFrame) -> Listing:
    lines = []
    for (family, d, r), own in rows.groupby(["tasks", "d", "r"]):
        most = own["num_tasks"].max()
        for tasks in dict.fromkeys((1, most)):
            of = own[own["num_tasks"] == tasks]
            if len(of):
                measured = [str(describe.estimate(of[name])) for name in MEASURED]
                lines.append([family, str(d), str(r), str(tasks), *measured, _missing(of)])
    columns = ["family", "d", "r", "tasks", *(name.replace("_", " ") for name in MEASURED), "miss one"]
    return Listing(f"One step, means of {describe.seeds(rows)}", pd.DataFrame(lines, columns=columns))
