"""The tasks' contrastive kernel as they grow in number, and how features of samples come to be alike where K is."""

import numpy as np
import pandas as pd

from mtfl_jax.analysis import describe, figures, fits
from mtfl_jax.analysis.findings import Drawing, Findings, Listing, Statement
from mtfl_jax.analysis.studies import STUDIES, Study
from mtfl_jax.learning.kernel_limits import LIMITS

CLAIM = (
    "Multitask pretraining induces a pseudo-contrastive loss: it favours representations that align samples which"
    " usually share labels across tasks. Our reading: that holds once the heads have taken the first step, and the"
    " kernel K = (1/T) Σ_t f_t f_tᵀ says of two orthants how often they share labels. With many tasks K nears its limit"
    " at the rate T^-1/2, and the features of one orthant are set apart from the others'; between orthants too,"
    " features differ in cosine where K differs."
)
TOLERANCE = 0.1
"""How far from −1/2 the exponent of K's distance to its limit may be."""
FLAT = 0.1
"""K, or the cosine, that changes by less than this between the nearest and farthest orthants is flat."""


def findings(table: pd.DataFrame) -> Findings:
    """K against its limit, the features' similarity by Hamming distance, and the contrastive loss along training.
    Raises ValueError where no row has a kernel, or r varies.
    """
    ours = table[table["contrastive_kernel"].notna() | ~describe.ok(table)]
    rows = ours[describe.ok(ours)]
    if rows.empty or rows["r"].nunique() > 1:
        raise ValueError("contrastive needs rows of one r, made with measure=contrastive")
    r = int(rows["r"].iloc[0])
    at_once = rows[rows["algorithm"].isin(["one_step", "random_features"])]
    kernels = _distances(at_once[at_once["algorithm"] == at_once["algorithm"].min()], r)
    laws = {
        family: fits.fit(kernels[kernels["tasks"] == family], "num_tasks", "distance", at_most="at_most")
        for family in sorted(LIMITS)
        if family in set(kernels["tasks"])
    }
    steps = rows[rows["algorithm"] == "alternating"]
    statements = [_rate(family, law) for family, law in laws.items()]
    statements += _aligned(at_once, r) + _between(at_once, r) + _falls(steps)
    seeds = describe.seeds(ours)
    drawings = [_kernel_drawing(kernels, laws, r, seeds)] if len(kernels) else []
    drawings.append(_feature_drawing(at_once, steps, r, seeds))
    names = {f"distance of K to its limit, {family} tasks": law for family, law in laws.items()}
    listings = [Listing("Exponents", fits.table_of(names))] if names else []
    return Findings(f"The contrastive kernel of {2**r} orthants", CLAIM, statements, drawings, listings)


STUDIES.register(
    Study("contrastive", "the tasks' contrastive kernel, and how features come to be alike where it is", findings)
)


def _distances(rows: pd.DataFrame, r: int) -> pd.DataFrame:
    """Rows of families whose limit is known, with K and its relative distance to the limit in Frobenius norm."""
    rows = rows[rows["tasks"].isin(list(LIMITS))]
    found = [np.reshape(np.asarray(kernel, float), (2**r, 2**r)) for kernel in rows["contrastive_kernel"]]
    limits = {family: LIMITS[family](r) for family in rows["tasks"].unique()}
    apart = [
        np.linalg.norm(K - limits[family]) / np.linalg.norm(limits[family])
        for K, family in zip(found, rows["tasks"], strict=True)
    ]
    rows = rows[describe.settings(rows)].assign(K=pd.Series(found, rows.index, object), distance=apart)
    # K moves in steps of 2/T: one that is at its limit is nearer than that.
    there = rows["distance"] == 0
    return rows.assign(at_most=there, distance=rows["distance"].where(~there, 1 / rows["num_tasks"]))


def _rate(family: str, law: fits.Fit) -> Statement:
    what = f"Distance of K to its limit, {family} tasks: "
    if not law.supported:
        return Statement(None, f"{what}{law.why}.")
    low, high = law.intervals["exponent"]
    near = low >= -0.5 - TOLERANCE and high <= -0.5 + TOLERANCE
    far = high < -0.5 - TOLERANCE or low > -0.5 + TOLERANCE
    text = f"{what}exponent in T {law.value('exponent')}, claimed −0.5 (± {TOLERANCE})."
    return Statement(True if near else False if far else None, text)


def _contrast(rows: pd.DataFrame) -> pd.Series:
    """Similarity within an orthant less the mean similarity to the others, by seed."""
    values = rows["feature_similarity"].map(lambda found: found[0] - np.nanmean(found[1:]))
    return values.groupby(rows["seed"]).mean()


def _aligned(rows: pd.DataFrame, r: int) -> list[Statement]:
    """Whether one step sets orthants apart, where K tells them all apart: with the most tasks of each family."""
    out = []
    for family in sorted(rows["tasks"].unique()):
        own = rows[rows["tasks"] == family]
        most = own["num_tasks"].max()
        own = own[own["num_tasks"] == most]
        after, before = (_contrast(own[own["algorithm"] == name]) for name in ("one_step", "random_features"))
        gain = describe.estimate(after - before)
        what = f"{family.capitalize()} tasks, T = {most}: cosine of two samples of one orthant less that of others"
        if not gain.n:
            out.append(Statement(None, f"{what}: before or after is missing."))
            continue
        text = f"{what} {describe.estimate(before)} before and {describe.estimate(after)} after one step."
        out.append(Statement(gain.mean > 3 * gain.error and gain.mean > 0.1, text))
    return out


def _between(rows: pd.DataFrame, r: int) -> list[Statement]:
    """Whether the features of different orthants differ in cosine where K does: from Hamming distance 1 to r."""
    if r < 2:
        return []
    places = np.arange(2**r)
    apart = np.bitwise_count(places[:, None] ^ places)
    out = []
    rows = rows[rows["algorithm"] == "one_step"]
    for family, own in rows.groupby("tasks"):
        most = own["num_tasks"].max()
        own = own[own["num_tasks"] == most]
        kernels = [np.reshape(np.asarray(kernel, float), apart.shape) for kernel in own["contrastive_kernel"]]
        of_kernel = describe.estimate(pd.Series([K[apart == r].mean() - K[apart == 1].mean() for K in kernels]))
        of_cosine = describe.estimate(own["feature_similarity"].map(lambda found: found[r] - found[1]))
        text = (
            f"{str(family).capitalize()} tasks, T = {most}, from neighbouring to opposite orthants: K changes by"
            f" {of_kernel}, the cosine of the features after one step by {of_cosine}."
        )
        if not of_kernel.n or not of_cosine.n:
            out.append(Statement(None, text))
            continue
        flat = [abs(change.mean) < FLAT for change in (of_kernel, of_cosine)]
        agree = flat[0] == flat[1] and (flat[0] or of_kernel.mean * of_cosine.mean > 0)
        close = any(abs(abs(change.mean) - FLAT) < 3 * change.error for change in (of_kernel, of_cosine))
        out.append(Statement(None if close else agree, text))
    return out


def _falls(rows: pd.DataFrame) -> list[Statement]:
    out = []
    for family in sorted(rows["tasks"].unique()):
        own = rows[rows["tasks"] == family]
        first, last = own["step"].min(), own["step"].max()
        start, end = (own[own["step"] == step].set_index("seed")["contrastive_loss"] for step in (first, last))
        change = describe.estimate(end - start)
        if first == last or not change.n:
            out.append(Statement(None, f"Contrastive loss along training, {family} tasks: one step only."))
            continue
        text = (
            f"Contrastive loss along training, {family} tasks: {describe.estimate(start)} after {first} and"
            f" {describe.estimate(end)} after {last} rounds."
        )
        out.append(Statement(change.mean < -3 * change.error, text))
    return out


def _kernel_drawing(kernels: pd.DataFrame, laws: dict[str, fits.Fit], r: int, seeds: str) -> Drawing:
    """K of one seed as it grows, its limit; its spectrum; its distance to the limit."""
    figure, panels = figures.panels(6)
    family = "balanced" if "balanced" in laws else next(iter(laws))
    own = kernels[kernels["tasks"] == family]
    sizes = np.sort(own["num_tasks"].unique())
    shown = sizes[np.unique(np.linspace(0, len(sizes) - 1, 3).round().astype(int))]
    images = [(f"T = {T}", own[own["num_tasks"] == T].sort_values("seed")["K"].iloc[0]) for T in shown]
    images.append(("T → ∞", LIMITS[family](r)))
    for ax in panels[len(images) : 4]:
        ax.set_axis_off()
    for ax, (title, K) in zip(panels, images, strict=False):
        image = ax.imshow(K, vmin=-1, vmax=1, cmap="cividis", origin="lower")
        ax.set(title=f"K, {family}, {title}", xlabel="orthant", ylabel="orthant")
    figure.colorbar(image, ax=panels[2], label="agreement less disagreement")
    spectrum, distance = panels[4:]
    for index, T in enumerate(shown):
        values = np.stack([np.linalg.eigvalsh(K)[::-1] for K in own[own["num_tasks"] == T]["K"]]).mean(0)
        spectrum.plot(np.arange(1, 2**r + 1), values, label=f"T = {T}", markersize=3, **figures.style(int(T), index))
    values = np.linalg.eigvalsh(LIMITS[family](r))[::-1]
    spectrum.plot(np.arange(1, 2**r + 1), values, color="black", linewidth=0.8, label="T → ∞")
    spectrum.set(xlabel="rank", ylabel=f"eigenvalue of K, {family}")
    spectrum.legend(fontsize=7)
    figures.curves(distance, kernels, "num_tasks", "distance", by="tasks", log="xy")
    for index, (name, law) in enumerate(laws.items()):
        if law.supported:
            x = kernels["num_tasks"].unique().astype(float)
            distance.plot(x, law.predict(x), color=figures.style(name, index)["color"], linewidth=0.6)
    distance.set(ylabel="relative distance of K to its limit")
    distance.legend(fontsize=7)
    caption = (
        f"The contrastive kernel of {2**r} orthants: of one seed as tasks grow in number, and its limit; its"
        f" eigenvalues, means of {seeds}; its distance to the limit (Frobenius norms), means with"
        " bands of one standard error and fitted power laws (thin)."
    )
    return Drawing("contrastive-kernel", figure, caption)


def _feature_drawing(at_once: pd.DataFrame, steps: pd.DataFrame, r: int, seeds: str) -> Drawing:
    """Similarity by Hamming distance before and after one step, and along training; the loss along training."""
    figure, (before, along, loss) = figures.panels(3)
    few = at_once[(at_once["tasks"] == "balanced") | (at_once["algorithm"] == "random_features")]
    sizes = sorted(few["num_tasks"].unique())
    lines = [("random features", few[few["algorithm"] == "random_features"])]
    shown = dict.fromkeys([*sizes[:1], *sizes[len(sizes) // 2 : len(sizes) // 2 + 1], *sizes[-1:]])
    lines += [(f"one step, T = {T}", few[(few["algorithm"] == "one_step") & (few["num_tasks"] == T)]) for T in shown]
    _similarity(before, lines, r)
    own = steps[steps["tasks"] == steps["tasks"].min()] if len(steps) else steps
    chosen = sorted(own["step"].unique())
    _similarity(along, [(f"round {step}", own[own["step"] == step]) for step in chosen[:: max(1, len(chosen) // 4)]], r)
    if len(steps):
        figures.curves(loss, steps, "step", "contrastive_loss", by="tasks", log="x")
        loss.set(xlabel="rounds of alternating", ylabel="contrastive loss (−mean K · cosine)")
        loss.legend(title="tasks", fontsize=7, title_fontsize=7)
    caption = (
        "Cosine of the features of two samples by the Hamming distance of their orthants: of random features and after"
        " one step on balanced tasks (left), along a training (middle); right, the contrastive loss along it. Means of"
        f" {seeds}; bars and bands are one standard error."
    )
    return Drawing("contrastive-features", figure, caption)


def _similarity(ax: figures.Axes, lines: list[tuple[str, pd.DataFrame]], r: int) -> None:
    for index, (name, rows) in enumerate(lines):
        if len(rows):
            values = np.stack([np.mean(own.to_list(), axis=0) for _, own in rows.groupby("seed")["feature_similarity"]])
            error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
            ax.errorbar(
                np.arange(r + 1), values.mean(axis=0), error, label=name, markersize=4, **figures.style(index, index)
            )
    ax.set(xlabel="Hamming distance of orthants", ylabel="cosine of features", xticks=range(r + 1))
    ax.grid(alpha=0.3)
    if lines:
        ax.legend(fontsize=7)
