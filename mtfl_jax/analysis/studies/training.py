"""Many steps against one: learning rates, fresh and fixed samples, one loss and differing losses over tasks."""

import pandas as pd
from matplotlib.colors import Normalize

from mtfl_jax.analysis import describe, figures
from mtfl_jax.analysis.findings import Drawing, Findings, Listing, Statement
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "The simple gradient algorithm recovers the directions also when it is run for many steps, for a range of learning"
    " rates; fresh samples at every step do no worse than a fixed set. It does so too with losses that differ over the"
    " tasks: the abstract names these as its motivation, that they do no harm is our reading."
)
NAMES = {"alternating": "alternating (SGD)", "joint": "joint (Adam)"}
RATES = {"alternating": "lr_w", "joint": "lr"}
ENOUGH = 0.95
"""The share of runs that must find all directions."""
WIDE = 10.0
"""The factor between the greatest and the least rate that makes a range."""


def findings(table: pd.DataFrame) -> Findings:
    """Recovery along many steps. A diverged training counts as one that found nothing: its distance is 1. Raises
    ValueError where nothing was trained in steps.
    """
    table = _counted(table)
    steps = table[table["algorithm"].isin(list(NAMES))]
    if steps.empty:
        raise ValueError("training needs rows of alternating or joint: there are none")
    at_once = table[table["algorithm"] == "one_step"]
    kinds = [name for name in NAMES if name in set(steps["algorithm"])]
    by_rate = {name: _at_loss(steps[steps["algorithm"] == name], name) for name in kinds}
    best = {name: _best(by_rate[name][by_rate[name]["samples"] == "fresh"], RATES[name]) for name in kinds}
    statements = [_against_one(name, best[name], at_once) for name in kinds]
    statements += [_range(name, by_rate[name]) for name in kinds]
    statements += [_fresh(name, by_rate[name]) for name in kinds]
    statements += [_losses(name, steps[steps["algorithm"] == name]) for name in kinds]
    drawings = [_maps(by_rate), _curves(steps, by_rate, best, at_once)]
    return Findings("Many steps", CLAIM, statements, drawings, [_listing(by_rate), _loss_listing(steps)])


STUDIES.register(
    Study("training", "many steps against one: learning rates, kinds of samples, differing losses", findings)
)


def _at_loss(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows at the loss for which several rates were tried."""
    return rows[rows["loss"] == rows.groupby("loss")[RATES[name]].nunique().idxmax()]


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["step"] == rows["step"].max()]


def _counted(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what a diverged network is worth, a decision of this study: distance 1, no direction found. Left
    out, learning rates at which most runs diverge would be judged by the few that did not.
    """
    good = describe.ok(table)
    worth = {"subspace_distance": 1.0, "directions_recovered": 0}
    return table.assign(**{name: table[name].where(good, value) for name, value in worth.items()})


def _drawn(rows: pd.DataFrame) -> pd.Series:
    """The samples of one step: of its heads and of the representation."""
    return rows["n1"] + rows["n2"]


def _seen(rows: pd.DataFrame) -> str:
    """How many samples the rows' trainings saw, by those that did not diverge."""
    return ", ".join(f"{count:,}" for count in sorted(rows["train_samples"].dropna().unique())) or describe.MISSING


def _distance(rows: pd.DataFrame) -> describe.Estimate:
    """Mean subspace distance."""
    return describe.estimate(rows["subspace_distance"])


def _all_found(rows: pd.DataFrame) -> describe.Estimate:
    """In which share of the runs all directions were found."""
    return describe.estimate(describe.all_found(rows))


def _best(rows: pd.DataFrame, rate: str) -> pd.DataFrame:
    """The rows at the rate that ends at the least mean distance."""
    ends = {at: _distance(own).mean for at, own in _last(rows).groupby(rate)}
    ends = {at: distance for at, distance in ends.items() if distance == distance}
    return rows[rows[rate] == min(ends, key=lambda at: ends[at])] if ends else rows.head(0)


def _against_one(name: str, rows: pd.DataFrame, at_once: pd.DataFrame) -> Statement:
    """Many steps at the best rate tried, against one step from as many samples."""
    if rows.empty or at_once.empty:
        return Statement(None, f"{NAMES[name]} against one step: one of them is missing.")
    end = _last(rows)
    one = at_once[_drawn(at_once) == _drawn(at_once).max()]
    found, once = _distance(end), _distance(one)
    rate = describe.number(end[RATES[name]].iloc[0])
    text = (
        f"{NAMES[name]}, {RATES[name]} = {rate}: subspace distance {found} after {end['step'].iloc[0]} steps on"
        f" {_seen(end)} fresh samples; one step on {_seen(one)}: {once}."
    )
    every = _all_found(end)
    return Statement(every.mean >= ENOUGH, f"{text} All directions are found in {every.show('.0%')} of runs.")


def _range(name: str, rows: pd.DataFrame) -> Statement:
    """At which of the rates tried, on fresh samples, all directions are found in nearly all runs."""
    end = _last(rows[rows["samples"] == "fresh"])
    rate = RATES[name]
    shares = describe.all_found(end).astype(float).groupby(end[rate]).mean()
    if len(shares) < 2:
        return Statement(None, f"{NAMES[name]}, range of learning rates: fewer than two were tried on fresh samples.")
    good = shares.index[shares >= ENOUGH]
    found = f"at {rate} = {describe.values(pd.Series(good))}" if len(good) else "at none"
    text = (
        f"{NAMES[name]}: all directions are found in {ENOUGH:.0%} of runs or more {found}, of {len(shares)} rates from"
        f" {describe.number(shares.index[0])} to {describe.number(shares.index[-1])}."
    )
    return Statement(bool(len(good)) and bool(good.max() >= WIDE * good.min()), text)


def _fresh(name: str, rows: pd.DataFrame) -> Statement:
    """Fresh samples against a fixed set, each at its best rate, by seed."""
    rate = RATES[name]
    last = {kind: _last(_best(rows[rows["samples"] == kind], rate)) for kind in ("fresh", "fixed")}
    ends = {kind: own.set_index("seed")["subspace_distance"].astype(float) for kind, own in last.items()}
    gain = describe.estimate(ends["fixed"] - ends["fresh"])
    if not gain.n:
        return Statement(None, f"{NAMES[name]}, fresh against fixed samples: one of them is missing.")
    text = (
        f"{NAMES[name]}, each at its best rate after the same number of steps: subspace distance"
        f" {describe.estimate(ends['fresh'])} on {_seen(last['fresh'])} fresh samples,"
        f" {describe.estimate(ends['fixed'])} on a fixed set of {_seen(last['fixed'])}."
    )
    return Statement(gain.mean > -3 * gain.error, text)


def _losses(name: str, rows: pd.DataFrame) -> Statement:
    """Whether differing losses over tasks recover as well as the best single loss."""
    ends = {str(loss): _last(_best(own[own["samples"] == "fresh"], RATES[name])) for loss, own in rows.groupby("loss")}
    found = {loss: _distance(end) for loss, end in ends.items() if len(end)}
    if "mixture" not in found or len(found) < 2:
        return Statement(None, f"{NAMES[name]}, differing losses: no mixture, or nothing to compare.")
    shares = _all_found(ends["mixture"])
    others = ", ".join(f"{loss} {value}" for loss, value in found.items() if loss != "mixture")
    text = (
        f"{NAMES[name]}, differing losses over tasks: subspace distance {found['mixture']}, all directions found in"
        f" {shares.show('.0%')} of runs; one loss for all: {others}."
    )
    return Statement(shares.mean >= ENOUGH, text)


def _maps(by_rate: dict[str, pd.DataFrame]) -> Drawing:
    """Subspace distance by learning rate and step, for each algorithm and kind of samples."""
    kinds = [(name, samples) for name in by_rate for samples in ("fresh", "fixed")]
    figure, panels = figures.panels(len(kinds), columns=2)
    for ax, (name, samples) in zip(panels, kinds, strict=True):
        rows = by_rate[name][by_rate[name]["samples"] == samples]
        if rows.empty:
            ax.set_axis_off()
            continue
        image = figures.heat(ax, rows, "step", RATES[name], "subspace_distance", scale=Normalize(0, 1))
        ax.set(xlabel="steps", ylabel=f"learning rate {RATES[name]}")
        ax.set_title(f"{NAMES[name]}, {samples} samples", fontsize=9)
        figures.bar(figure, image, ax, "subspace distance")
    seeds = describe.seeds(pd.concat(list(by_rate.values())), whole=True)
    caption = (
        f"Subspace distance (0 perfect, 1 a direction missed) by learning rate and number of steps, a"
        f" diverged training counting as 1; means of {seeds}."
    )
    return Drawing("training-rates", figure, caption)


def _curves(
    steps: pd.DataFrame, by_rate: dict[str, pd.DataFrame], best: dict[str, pd.DataFrame], at_once: pd.DataFrame
) -> Drawing:
    """Along the steps: the algorithms against one step; fresh against fixed samples; the losses."""
    figure, panels = figures.panels(1 + 2 * len(by_rate))
    figures.curves(panels[0], pd.concat(list(best.values())), "step", "subspace_distance", by="algorithm", log="x")
    for place, (_, own) in enumerate(at_once.groupby(_drawn(at_once))):
        style = (":", "--")[place % 2]
        label = f"one step, {_seen(own)} samples"
        panels[0].axhline(_distance(own).mean, color="black", linewidth=0.8, linestyle=style, label=label)
    for place, (name, rows) in enumerate(by_rate.items()):
        fresh, losses = panels[1 + 2 * place :][:2]
        chosen = [_best(rows[rows["samples"] == kind], RATES[name]) for kind in ("fresh", "fixed")]
        figures.curves(fresh, pd.concat(chosen), "step", "test_loss", by="samples", log="x")
        own = steps[(steps["algorithm"] == name) & (steps["samples"] == "fresh")]
        each = [_best(part, RATES[name]) for _, part in own.groupby("loss")]
        figures.curves(losses, pd.concat(each), "step", "subspace_distance", by="loss", log="x")
        fresh.set_title(NAMES[name], fontsize=9)
        losses.set_title(NAMES[name], fontsize=9)
    for ax in panels:
        ax.legend(fontsize=6)
        ax.set_xlabel("steps")
        if ax.get_ylabel() == figures.label("subspace_distance"):
            ax.set_ylim(-0.03, 1.03)
    caption = (
        "Along the steps, each at the best learning rate tried: the algorithms on fresh samples, with one step as"
        " horizontal lines; the test loss on fresh and on fixed samples; the distance under each loss. Means of"
        f" {describe.seeds(steps, whole=True)}, bands: one standard error; a diverged training counts as distance 1 and"
        f" has no loss{_lost(steps)}."
    )
    return Drawing("training", figure, caption)


def _lost(rows: pd.DataFrame) -> str:
    """How many seeds the losses are of, where trainings diverged."""
    return "" if describe.ok(rows).all() else f" (so losses are of {describe.seeds(rows)})"


def _listing(by_rate: dict[str, pd.DataFrame]) -> Listing:
    """The end of every training by its rate."""
    rows = []
    for name, own in by_rate.items():
        for (samples, rate), at in _last(own).groupby(["samples", RATES[name]]):
            loss = describe.estimate(at["test_loss"])
            diverged = int((at["status"] != "ok").sum())
            rows.append([NAMES[name], samples, describe.number(rate), str(_distance(at)), str(loss), str(diverged)])
    columns = ["algorithm", "samples", "rate", "subspace distance", "test loss", "diverged"]
    return Listing("After the last step, by learning rate", pd.DataFrame(rows, columns=columns))


def _loss_listing(steps: pd.DataFrame) -> Listing:
    rows = []
    for (name, loss), own in steps[steps["samples"] == "fresh"].groupby(["algorithm", "loss"]):
        rate = RATES[str(name)]
        end = _last(_best(own, rate))
        at, least, most = map(describe.number, (end[rate].iloc[0], own[rate].min(), own[rate].max()))
        share = _all_found(end)
        error = str(describe.estimate(end["task_error"]))
        rows.append([NAMES[str(name)], loss, f"{at} of {least}…{most}", str(_distance(end)), error, share.show(".0%")])
    columns = ["algorithm", "loss", "best rate", "subspace distance", "task error", "all found"]
    return Listing("After the last step, by loss", pd.DataFrame(rows, columns=columns))
