"""Two teachers that share features: the second learnt with the first, after it, alone and by a kernel."""

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from mtfl_jax.analysis import describe, figures, published
from mtfl_jax.analysis.findings import Drawing, Findings, Statement
from mtfl_jax.analysis.published import Beside, Published
from mtfl_jax.analysis.studies import STUDIES, Study

CLAIM = (
    "From few samples of a task, learning it with another or after it beats learning it alone by more than tenfold"
    " where the other has the same features, multi-task learning more than fine-tuning; where it has others, neither"
    " beats it (Lippl and Lindsey 2024, Inductive biases of multi-task learning and finetuning)."
)
SOURCE = "Lippl and Lindsey 2024, relu_finetune_1"
SAMPLES = (16, 32, 64, 128, 256, 512)
MULTITASK, FINETUNE, SCRATCH, KERNEL = WAYS = ("multitask", "finetune", "scratch", "ridge")
NAMES = {MULTITASK: "with the other task", FINETUNE: "fine-tuned", SCRATCH: "alone", KERNEL: "random features"}
ERRORS = {
    (MULTITASK, 0): "0.2882 0.1962 0.0975 0.03578 0.005125 0.000572",
    (MULTITASK, 3): "0.2025 0.1097 0.04294 0.009143 0.000395 6.25e-5",
    (MULTITASK, 6): "0.01999 0.006307 0.001309 0.000708 6.35e-5 2.08e-6",
    (FINETUNE, 0): "0.3074 0.2411 0.1243 0.05183 0.008284 0.000459",
    (FINETUNE, 3): "0.2162 0.1344 0.08639 0.02845 0.003052 8.46e-5",
    (FINETUNE, 6): "0.08914 0.03947 0.006607 6.07e-5 1.57e-6 5.33e-7",
    (SCRATCH, 0): "0.2631 0.1762 0.08073 0.02926 0.003299 0.000118",
    (SCRATCH, 3): "0.269 0.1634 0.09226 0.02536 0.003852 9.88e-5",
    (SCRATCH, 6): "0.2192 0.1528 0.07767 0.02979 0.003019 0.00016",
    (KERNEL, 0): "0.2138 0.1429 0.08974 0.04251 0.02132 0.01472",
    (KERNEL, 3): "0.2484 0.1456 0.08797 0.04577 0.02137 0.01484",
    (KERNEL, 6): "0.2278 0.1496 0.07878 0.04395 0.02168 0.01487",
}
"""Means over the source's six seeds of the test MSE of the second task, at SAMPLES, by the way and by how many of six
features are shared: from the repository's processed data.
"""
SPREADS = {
    (MULTITASK, 0): "0.0139 0.0156 0.0063 0.0055 0.00053 8.5e-5",
    (MULTITASK, 3): "0.0171 0.0087 0.0063 0.0025 8.2e-5 2.8e-5",
    (MULTITASK, 6): "0.0081 0.0014 0.00034 0.00053 5.4e-5 1.0e-6",
    (FINETUNE, 0): "0.0124 0.0057 0.0067 0.0059 0.00096 0.0001",
    (FINETUNE, 3): "0.0198 0.0074 0.0066 0.0024 0.00039 1.9e-5",
    (FINETUNE, 6): "0.0107 0.0084 0.00081 3.4e-5 4.2e-7 7.2e-8",
    (SCRATCH, 0): "0.0199 0.0154 0.0073 0.0061 0.00073 4.0e-5",
    (SCRATCH, 3): "0.0145 0.0169 0.0067 0.0024 0.00064 2.7e-5",
    (SCRATCH, 6): "0.0161 0.0165 0.0078 0.0014 0.00038 4.7e-5",
    (KERNEL, 0): "0.0071 0.0151 0.0042 0.0029 0.00049 0.00031",
    (KERNEL, 3): "0.0185 0.0166 0.0061 0.0022 0.00087 0.00034",
    (KERNEL, 6): "0.0226 0.0248 0.0021 0.00085 0.00029 0.00026",
}
"""Their standard errors."""
UNITS, D, WIDTH, TRAINED = 6, 15, 1000, 1024
"""The source's setting: features of a teacher, dimension, neurons, samples of the first task."""
TRAINING = (
    "full batches, half of the source's rate and a number of steps, in the source batches of 128 until the loss is 1e-8"
    " and a rate that is cut where a run diverges; heads start at zero; features that are not shared are random, there"
    " orthogonal to the first task's; MSE from R² by the mean variance over output signs"
)
DIFFERS = {
    MULTITASK: TRAINING,
    FINETUNE: TRAINING,
    SCRATCH: TRAINING,
    KERNEL: "rows of one norm under random biases, with an intercept and a penalty by leave-one-out; in the source"
    " neither biases nor norms, and the penalty is the best on the test samples",
}
SHARED, ERROR, WAY = "probe_teacher_shared", "test_mse", "way"


def variance(d: int) -> float:
    """Of a teacher of orthonormal features under ±1/√units, x on the sphere of radius √d: the mean over signs.

    ½ − (E max(0, u))², with u a coordinate of x.
    """
    mean = math.sqrt(d / math.pi) * math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / 2
    return 0.5 - mean**2


def findings(table: pd.DataFrame) -> Findings:
    """Errors of the second task by the way. Raises ValueError where no probe was on such a teacher."""
    known = {"probe", "probe_teacher_features", "target_scale", SHARED, "downstream_r2", "data"} <= set(table)
    rows = (
        table[(table["probe_teacher_features"] == "orthonormal") & (table["data"] == "sphere")] if known else table[:0]
    )
    if known:
        kernel = (rows["probe"] == KERNEL) & (rows["algorithm"] == "random_features")
        tuned = rows["probe"].isin([MULTITASK, FINETUNE, SCRATCH]) & (rows["algorithm"] == "joint")
        rows = rows[kernel | tuned]
    if rows.empty or rows["downstream_r2"].isna().all():
        raise ValueError(
            "transfer needs rows of joint with probe=multitask, finetune or scratch on teachers of orthonormal"
            " features: there are none"
        )
    scale = rows["d"].map(variance) * rows["target_scale"].fillna(1.0).astype(float) ** 2
    rows = rows.assign(**{ERROR: (1 - rows["downstream_r2"]) * scale, WAY: rows["probe"]})
    figures.apart(rows, ["d", WAY, SHARED, "n_down"], ERROR)
    beside = _beside(rows)
    said = [*published.statements(beside), *_gains(rows)]
    listings = [published.listing(beside)] if beside else []
    return Findings("Transfer between teachers", CLAIM, said, [_drawing(rows)], listings)


STUDIES.register(Study("transfer", "two teachers that share features, by four ways, beside published errors", findings))


def _published(rows: pd.DataFrame) -> Iterator[tuple[tuple[str, int, int], Published]]:
    """The source's numbers, those that the table has rows for, with their way, shared features and samples."""
    own = rows[(rows["d"] == D) & (rows["width"] == WIDTH) & (rows["probe_teacher_units"] == UNITS)]
    own = own[(own["target_scale"] == 1) & ((own[WAY] == KERNEL) | (own["n2"] == TRAINED))]
    there = set(own[[WAY, SHARED, "n_down"]].itertuples(index=False, name=None))
    for (way, shared), errors in ERRORS.items():
        for n, value, spread in zip(SAMPLES, errors.split(), SPREADS[way, shared].split(), strict=True):
            if (way, shared, n) in there:
                what = f"MSE {NAMES[way]}, {n} samples, {shared} of {UNITS} features shared"
                theirs = Published(what, SOURCE, float(value), float(spread), 6, differs=DIFFERS[way])
                yield (way, shared, n), theirs


def _beside(rows: pd.DataFrame) -> Beside:
    """Them, and ours."""
    of = rows.groupby([WAY, SHARED, "n_down"])
    return [(theirs, describe.estimate(of.get_group(place)[ERROR])) for place, theirs in _published(rows)]


def _all(verdicts: Sequence[bool | None]) -> bool | None:
    return False if False in verdicts else None if None in verdicts else True


def _gains(rows: pd.DataFrame) -> list[Statement]:
    """Which way is best where all features are shared, and where none is."""
    said = []
    for (d, units, samples), own in rows.groupby(["d", "probe_teacher_units", "n_down"]):
        for shared in (units, 0):
            part = own[own[SHARED] == shared]
            errors = {way: describe.estimate(part[part[WAY] == way][ERROR]) for way in WAYS}
            if not all(errors[way].n for way in (MULTITASK, FINETUNE, SCRATCH)):
                continue
            head = f"d = {d}, {samples} samples, {shared} of {units} features shared"
            together, after = errors[MULTITASK], errors[FINETUNE]
            others = [errors[way] for way in (SCRATCH, KERNEL) if errors[way].n]
            text = ", ".join(str(error) for error in others)
            if shared:
                together_first = f"{head}: with the other task {together}, less than {after} fine-tuned."
                tenfold = f"{head}: fine-tuned {after}, less than a tenth of {text} without the other task."
                said.append(Statement(published.less(together, after), together_first))
                said.append(Statement(_all([published.less(after, other, 10) for other in others]), tenfold))
                continue
            alone = errors[SCRATCH]
            for way in (MULTITASK, FINETUNE):
                helps = None if min(errors[way].n, alone.n) < 2 else bool(published.less(errors[way], alone))
                no_less = f"{head}: {NAMES[way]} {errors[way]}, no less than {alone} alone."
                said.append(Statement(None if helps is None else not helps, no_less))
    return said or [Statement(None, "Which way is best takes rows of multitask, finetune and scratch beside another.")]


def _drawing(rows: pd.DataFrame) -> Drawing:
    levels = sorted(rows[SHARED].unique())
    by_n = rows["n_down"].nunique() > 1
    figure, axes = figures.panels(len(levels) if by_n else 1)
    for ax, level in zip(axes, levels if by_n else [None], strict=True):
        own = rows if level is None else rows[rows[SHARED] == level]
        x = SHARED if level is None else "n_down"
        figures.curves(ax, own, x, ERROR, by=WAY, log="y" if level is None else "xy", names=NAMES, among=rows)
        looks = {str(line.get_label()): line.get_color() for line in ax.lines}
        for (way, shared, n), theirs in _published(own):
            color, at = looks[NAMES[way]], shared if level is None else n
            ax.errorbar(at, theirs.value, theirs.spread, color=color, marker="x", capsize=3, ls="none", zorder=5)
        title = "" if level is None else f"{level} features shared"
        ax.set(xlabel="features shared" if level is None else "samples", ylabel="test MSE", title=title)
    axes[0].legend(fontsize=7)
    few = "" if by_n else f" from {rows['n_down'].iloc[0]} samples"
    caption = (
        f"Test error of the second task{few} by the way that it is learnt; crosses: {SOURCE}. Means of"
        f" {describe.seeds(rows)}, bands: one standard error."
    )
    return Drawing("transfer", figure, caption)
