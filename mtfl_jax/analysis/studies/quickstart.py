"""The claim in a minute: with enough tasks one step finds all r directions; then a linear classifier solves their
parity.
"""

import pandas as pd

from mtfl_jax.analysis import describe, figures
from mtfl_jax.analysis.findings import Drawing, Findings, Listing, Statement
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "Trained on enough tasks that depend on the same r directions of the input, a two-layer ReLU network finds all of"
    " them in one gradient step, and a linear classifier on its frozen features then solves a new task on them from few"
    " samples. Trained on a single task it need not find them, and on random features the classifier only guesses."
)
NAMES = {"one_step": "learned", "random_features": "random", "oracle": "oracle"}


def findings(table: pd.DataFrame) -> Findings:
    """Directions recovered by one step, and the parity error of its features against random ones and the oracle, by
    the number of tasks. Raises ValueError where other settings vary too.
    """
    if not len(table):
        raise ValueError("quickstart needs rows: there are none")
    others = [name for name in describe.axes(table) if name not in ("algorithm", "num_tasks")]
    if others:
        raise ValueError(f"quickstart is of one setting of everything but algorithm and num_tasks: {others[0]} varies")
    r, d = table["r"].iloc[0], table["d"].iloc[0]
    title = f"One gradient step, {r} hidden directions in d = {d}"
    return Findings(title, CLAIM, _statements(table, r), [_drawing(table, r, d)], [_listing(table, r)])


STUDIES.register(
    Study(
        "quickstart",
        "the claim in a minute: one step on many tasks, and a linear classifier on what it learned",
        findings,
    )
)


def _statements(table: pd.DataFrame, r: int) -> list[Statement]:
    learned = table[table["algorithm"] == "one_step"]
    most = table["num_tasks"].max()
    at_most, alone = learned[learned["num_tasks"] == most], learned[learned["num_tasks"] == 1]
    return [_all_found(at_most, r, most), _one_is_too_few(alone, r), _solved(table, at_most, most)]


def _task(table: pd.DataFrame) -> str:
    """What the downstream task is called."""
    parity = (table["probe_tasks"] == "parity") & (table["probe_parity_size"] == "all")
    return f"{table['r'].iloc[0]}-parity" if parity.all() else "downstream task"


def _share_of_all(rows: pd.DataFrame) -> describe.Estimate:
    """In which share of the seeds all r directions were found."""
    return describe.estimate(describe.all_found(rows))


def _all_found(rows: pd.DataFrame, r: int, tasks: int) -> Statement:
    share = _share_of_all(rows)
    text = (
        f"With {tasks} tasks one step finds all {r} directions in {share.mean:.0%} of {share.counted()} seeds"
        f" (subspace distance {describe.estimate(rows['subspace_distance'])})."
    )
    if not share.n or tasks == 1:
        return Statement(None, "Whether many tasks are enough: no row of several tasks to ask.")
    return Statement(share.mean >= 0.95, text)


def _one_is_too_few(rows: pd.DataFrame, r: int) -> Statement:
    share = _share_of_all(rows)
    if not share.n:
        return Statement(None, "Whether one task is too few: no row of a single task to ask.")
    found = describe.estimate(rows["directions_recovered"])
    text = (
        f"With a single task one step finds {found} of {r} directions, and all of them in {share.mean:.0%} of"
        f" {share.counted()} seeds (subspace distance {describe.estimate(rows['subspace_distance'])})."
    )
    return Statement(share.mean < 0.5, text)


def _solved(table: pd.DataFrame, learned: pd.DataFrame, tasks: int) -> Statement:
    random = describe.estimate(table["downstream_error"][table["algorithm"] == "random_features"])
    error = describe.estimate(learned["downstream_error"])
    if not error.n or not random.n:
        return Statement(None, "Whether learned features solve a new task that random ones do not: not measured.")
    text = (
        f"From {table['n_down'].iloc[0]} samples of the {_task(table)}, a linear classifier on the features learned"
        f" from {tasks} tasks has {error.show('.1%')} error, on random features {random.show('.1%')}; guessing has 50%."
    )
    return Statement(error.mean < 0.1 and random.mean > 0.4, text)


def _drawing(table: pd.DataFrame, r: int, d: int) -> Drawing:
    figure, (distance, found, error) = figures.panels(3)
    for ax, name in ((distance, "subspace_distance"), (found, "directions_recovered"), (error, "downstream_error")):
        figures.curves(ax, table, "num_tasks", name, by="algorithm", log="x", names=NAMES)
    distance.set(ylim=(-0.03, 1.03))
    found.set(ylabel=f"directions recovered of {r}", ylim=(-0.1, r + 0.1))
    n_down = describe.number(table["n_down"].iloc[0])
    error.set(ylabel=f"test error of {_task(table)} (share)")
    distance.legend(title="features", fontsize=8, title_fontsize=8)
    caption = (
        f"How well the first layer finds the {r} directions, and the error of a linear classifier on its frozen"
        f" features from {n_down} samples of the {_task(table)} (the thin line is guessing), by the number of tasks."
        f" d = {d}, width {table['width'].iloc[0]}; means of {describe.seeds(table)}, bands: one standard error."
    )
    return Drawing("quickstart", figure, caption)


def _listing(table: pd.DataFrame, r: int) -> Listing:
    algorithms = [name for name in NAMES if name in set(table["algorithm"])]
    rows = []
    for tasks, of_tasks in table.groupby("num_tasks"):
        of = {name: of_tasks[of_tasks["algorithm"] == name] for name in NAMES}
        recovered = (describe.estimate(of["one_step"][name]) for name in ("directions_recovered", "subspace_distance"))
        errors = (describe.estimate(of[name]["downstream_error"]) for name in algorithms)
        rows.append(
            [
                str(tasks),
                *(found.show(".2f") for found in recovered),
                *(found.show(".1%") for found in errors),
            ]
        )
    errors_of = [f"{_task(table)} error {NAMES[name]}" for name in algorithms]
    columns = ["tasks", f"directions found of {r}", "subspace distance", *errors_of]
    return Listing(f"Means of {describe.seeds(table)}", pd.DataFrame(rows, columns=columns))
