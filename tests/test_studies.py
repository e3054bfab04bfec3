"""The studies: their grids at every size, a tiny run of each, and verdicts that follow the data."""

import copy
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from test_page import frame

from mtfl_jax import compose as composing
from mtfl_jax.analysis import describe, studies
from mtfl_jax.analysis.findings import Findings
from mtfl_jax.analysis.studies import contrastive, feature_spike, giant_step, transfer
from mtfl_jax.learning import kernel_limits, tasks
from mtfl_jax.records import registering
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.plan import plan

STUDIES = (
    "recovery",
    "downstream",
    "complexity",
    "contrastive",
    "training",
    "scaling",
    "sparse_parity",
    "staircase",
    "feature_spike",
    "transfer",
    "giant_step",
    "single_index",
)


def test_these_are_the_studies():
    assert {path.stem for path in composing.conf_dir().glob("study/*.yaml")} == {*STUDIES, "quickstart", "none"}
    assert set(studies.built_in()) == {*STUDIES, "quickstart"}
    for name in studies.built_in():
        assert studies.named(name).name == name
        assert studies.named(name).doc


# A study of a user's own


@pytest.fixture
def _registry(monkeypatch):
    """The studies registered so far, put back afterwards; tests register as an extension does."""
    monkeypatch.setattr(studies, "STUDIES", copy.deepcopy(studies.STUDIES))
    with registering("tests:0"):
        yield


def said(table):
    return Findings(f"{len(table)} rows, {describe.estimate(table['task_error']).counted()} of them measured", "mine")


def test_an_unknown_study_raises():
    for ask in (studies.named, lambda name: studies.of(name, frame(recovery_rows(0.1, 0.9, 0.7)))):
        with pytest.raises(ValueError, match=r"^study=mine: allowed: complexity, contrastive, .*transfer$"):
            ask("mine")
    assert not studies.known("mine")


@pytest.mark.usefixtures("_registry")
def test_a_registered_study_is_asked_for_by_its_name():
    table = frame(product(seed=range(3)).assign(task_error=0.5, status=["ok", "ok", "diverged"]))
    studies.STUDIES.register(studies.Study("mine", "of mine", said))
    assert studies.of("mine", table).title == "3 rows, 2 of 3 of them measured"
    for name in ("mine", "recovery", "quickstart"):
        with pytest.raises(ValueError, match=f"^study {name}: there is one already; allowed: another name"):
            studies.STUDIES.register(studies.Study(name, "of mine", said))
    assert studies.named("recovery").findings.__module__ == "mtfl_jax.analysis.studies.recovery"


REGISTERS = """
from mtfl_jax.analysis.findings import Findings
from mtfl_jax.analysis.studies import STUDIES, Study

STUDIES.register(Study("{name}", "of mine", lambda table: Findings("registered", "")))
"""
FINDINGS = """
"What mine says."
from mtfl_jax.analysis.findings import Findings

def findings(table):
    return Findings("found", "")
"""


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize(("text", "title"), [(REGISTERS, "registered"), (FINDINGS, "found")])
def test_a_study_from_a_file(tmp_path, text, title):
    path = tmp_path / "mine.py"
    path.write_text(text.replace("{name}", "mine"))
    study = studies.from_file("mine", path)
    assert studies.of("mine", frame(product(seed=range(2)))).title == title
    assert studies.from_file("mine", path) is study


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("mine", "x = 1", "study=mine: .*mine.py does not say what it finds; allowed: one that registers a study mine"),
        ("mine", REGISTERS.replace("{name}", "other"), "study=mine: .*mine.py does not say what it finds; allowed: "),
        ("recovery", FINDINGS, "study=recovery: this name is taken; allowed: a name other than "),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, name, text, error):
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=error):
        studies.from_file(name, path)
    assert name not in studies.STUDIES or name == "recovery"


# The grids and tiny runs


@pytest.mark.parametrize("size", ["default", "large"])
@pytest.mark.parametrize("study", STUDIES)
def test_grids_of_valid_cells_at_every_size(study, size):
    with initialize_config_dir(str(composing.conf_dir()), **composing.HYDRA_BASE):
        given = [f"study={study}", f"size={size}"]
        whole = compose("config", given)

        def values(choices):
            more = (f"{key}={name}" for key, name in choices.items())
            return composing.cell_values(compose("config", [*given, *more]))

        sweep = composing.plain(whole.sweep)
        grid = Grid(sweep["axes"], values, grids=sweep["grids"], zipped=sweep["zip"], where=sweep["where"])
        buckets = plan(grid)
    assert whole.size == size
    assert sum(len(bucket.cells) for bucket in buckets) == len(grid) > 50
    for bucket in buckets:
        assert all(width <= bucket.program.width for width, _ in bucket.program.groups)


def test_the_large_size_is_larger():
    def cells(*given):
        with initialize_config_dir(str(composing.conf_dir()), **composing.HYDRA_BASE):
            return compose("config", list(given))

    for study in STUDIES:
        small, large = (cells(f"study={study}", f"size={size}") for size in ("default", "large"))
        seeds = [len(range(*map(int, re.findall(r"\d+", own.sweep.axes.seed)))) for own in (small, large)]
        assert seeds[1] >= 4 * seeds[0]


TINY = {
    "recovery": ["d=8", "width=16", "n1=256", "n2=128", "steps=4", "sweep.axes.seed=[0,1]"],
    "downstream": ["d=8", "r=2", "width=32", "n1=128", "n_test=64", "steps=3", "num_tasks=4", "n2=32",
                   "sweep.axes.seed=[0,1]"],
    "complexity": [
        "sweep.axes.seed=[0,1]",
        "n_test=64",
        "sweep.grids=[{r:2,d:[8,16],n1:[64,128],n2:[64,128],n_down:[8,16,32]},"
        "{algorithm:random_features,num_tasks:1,n1:64,width:32,r:2,d:[4,8,16],n_down:[8,16,32]},"
        "{algorithm:random_features,num_tasks:1,n1:64,width:32,r:3,d:6,n_down:[8,16,32]}]",
    ],
    "contrastive": ["d=8", "r=2", "width=16", "n1=128", "n2=128", "n_test=64", "steps=4", "sweep.axes.seed=[0,1]"],
    "training": ["d=8", "r=2", "width=16", "num_tasks=4", "n1=128", "n2=64", "n_test=64", "steps=4",
                 "sweep.axes.seed=[0,1]"],
    "scaling": [
        "sweep.axes.seed=[0,1]",
        "steps=4",
        "n_test=64",
        "width=16",
        "num_tasks=8",
        "sweep.grids=[{measure:recovery,n1:64,n2:[64,128,256,512],d:8},"
        "{algorithm:joint,samples:fixed,n2:[32,64,128,256],d:8},{algorithm:joint,samples:fresh,n2:64,d:8}]",
    ],
    "sparse_parity": [
        "sweep.axes.seed=[0,1]",
        "sweep.grids=[{samples:batches,r:3,d:20,width:64,n2:200,steps:14},"
        "{samples:fresh,r:1,d:[2,3,4],width:16,lr:0.5,steps:64,stop_at:0.01,stop_every:4}]",
    ],
    "staircase": ["sweep.axes.seed=[0,1]", "d=2,3,4", "r=2", "degree=2", "width=16", "steps=64", "stop_at=0.05"],
    "feature_spike": ["sweep.axes.seed=[0,1]", "d=16", "width=16", "n2=256", "sweep.axes.lr_n_power=[0.0,0.3,0.6]"],
    "transfer": [
        "sweep.axes.seed=[0,1]",
        "d=6",
        "r=6",
        "width=16",
        "n2=64",
        "n_test=64",
        "steps=4",
        "sweep.axes.n_down=[8,16]",
        "sweep.grids=[{probe:finetune,tune_steps:2},{probe:multitask,tune_steps:2},"
        "{algorithm:random_features,probe:ridge}]",
    ],
    "giant_step": ["sweep.axes.seed=[0,1]", "d=16", "width=16", "n_test=64",
                   "sweep.grids=[{n2:[16,64],n_down:[16,64]},"
                   "{algorithm:random_features,n_down:[16,64]}]"],
}  # fmt: skip
TINY["single_index"] = [
    "sweep.axes.seed=[0,1]",
    "width=16",
    "n_test=64",
    "sweep.grids=[{d:[4,6,8],hermite_4:[0.0,1.0],probe_hermite_4:[0.0,1.0],n2:[16,64],n_down:[16,64]},"
    "{algorithm:random_features,d:[3,4,6],hermite_4:1.0,probe_hermite_4:1.0,n_down:[16,64]}]",
]
FIGURES = {
    "recovery": ["recovery", "recovery-families", "recovery-cures"],
    "downstream": ["downstream"],
    "complexity": ["complexity"],
    "contrastive": ["contrastive-kernel", "contrastive-features"],
    "training": ["training-rates", "training"],
    "scaling": ["scaling"],
    "sparse_parity": ["sparse_parity", "sparse_parity-steps"],
    "staircase": ["staircase", "staircase-steps"],
    "feature_spike": ["feature_spike"],
    "transfer": ["transfer"],
    "giant_step": ["giant_step"],
    "single_index": ["single_index"],
}


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.slow
def test_a_tiny_run(study, here, tmp_path):
    status, out, err = here(f"study={study}", *TINY[study], "hydra.run.dir=q")
    assert status == 0, err
    page = (tmp_path / "q" / "report" / "index.html").read_text()
    assert "could not be made" not in page + out + err
    assert page.count("<figure") == len(FIGURES[study])
    for name in FIGURES[study]:
        assert (tmp_path / "q" / "report" / f"{name}.png").stat().st_size > 1000
        assert (tmp_path / "q" / "report" / f"{name}.pdf").stat().st_size > 1000


@pytest.mark.parametrize("study", STUDIES)
def test_a_table_of_another_study_is_refused(study):
    rows = pd.DataFrame({"algorithm": ["oracle"] * 2, "step": 1, "status": "ok", "seed": [0, 1], "r": 2, "d": 4})
    with pytest.raises(ValueError, match=f"^{study} needs "):
        studies.of(study, frame(rows))


# Verdicts follow the data


def verdicts(study, rows):
    """The verdict of each statement, by its text."""
    return {said.text: said.supported for said in studies.of(study, frame(rows)).statements}


def of(found, *words):
    """The verdict of the one statement that has these words."""
    (verdict,) = [supported for text, supported in found.items() if all(word in text for word in words)]
    return verdict


def product(**axes):
    names, values = list(axes), [value if isinstance(value, list | range) else [value] for value in axes.values()]
    return pd.DataFrame(list(itertools.product(*values)), columns=names).assign(step=1, status="ok")


def noise(rows, scale=0.02):
    return 1 + scale * np.random.default_rng(0).standard_normal(len(rows))


def complexity_rows(learned, random):
    """Errors that fall through 10% at n* (and m*): learned and random are functions of d and r."""
    sizes = [2**k for k in range(1, 15)]
    out = []
    for algorithm, star in (("one_step", learned), ("random_features", random)):
        for r, d in itertools.product((2, 3), (8, 12, 16, 24, 32)):
            for axis, other in (("n_down", {"width": 1024}), ("width", {"n_down": 4096})):
                rows = product(algorithm=algorithm, r=r, d=d, seed=range(6), **{axis: sizes}, **other)
                spread = 1 + 0.05 * np.random.default_rng(d).standard_normal(6)[rows["seed"]]
                rows["downstream_error"] = 0.5 / (1 + 4 * rows[axis] / (star(d, r) * spread))
                out.append(rows)
    for r in (1, 4, 5, 6):
        rows = product(algorithm="random_features", r=r, d=2 * r, seed=range(6), n_down=sizes, width=1024)
        rows["downstream_error"] = 0.5 / (1 + 4 * rows["n_down"] / (random(2 * r, r) * noise(rows)))
        out.append(rows)
    rows = pd.concat(out).drop_duplicates(["algorithm", "r", "d", "seed", "n_down", "width"], ignore_index=True)
    return rows.assign(subspace_distance=0.1, num_tasks=64, n1=64, n2=64)


def test_complexity_verdicts():
    found = verdicts(
        "complexity", complexity_rows(lambda d, r: 20, lambda d, r: 2 * np.exp(0.5 * d) if d == 2 * r else d**r / 4)
    )
    for r, what in itertools.product((2, 3), ("samples", "neurons")):
        assert of(found, "Learned", f"r = {r}", what) is True
        assert of(found, "Random features, ", f"r = {r}", what) is True
    assert of(found, "Along d = 2r") is True
    found = verdicts("complexity", complexity_rows(lambda d, r: 2 * d, lambda d, r: d**1.0))
    for r in (2, 3):
        assert of(found, "Learned", f"r = {r}", "samples") is False
        assert of(found, "Random features, ", f"r = {r}", "samples") is False
    assert of(found, "Along d = 2r") is False
    never = complexity_rows(lambda d, r: 20, lambda d, r: 1e9)
    found = verdicts("complexity", never)
    assert of(found, "Random features, ", "r = 2", "samples") is None
    assert any("never reach 10%" in text for text in found)


def stopped(rows, at, most):
    """Rows of trainings that stop after so many steps, if within the most: their first and their last."""
    to = np.minimum(np.maximum(np.round(at), 1), most).astype(int)
    rows = rows.assign(steps_to=to, steps_to_censored=at > most)
    return pd.concat([rows.assign(step=1), rows.assign(step=most)])


def sparse_parity_rows(epochs, steps):
    """Trainings that stop at epochs[width, n2] epochs of a set, and at steps(d, k) steps on new samples."""
    out = []
    for (width, n), at in epochs.items():
        rows = product(width=width, n2=n, seed=range(6)).assign(samples="batches", d=20, r=3, batch=32)
        out.append(stopped(rows, (at + rows["seed"] % 3 - 1) * -(-n // 32), 40 * -(-n // 32)))
    for k in (2, 3, 4):
        rows = product(d=[10, 15, 20, 25, 30], seed=range(6)).assign(r=k, width=100, n2=32, samples="fresh")
        at = steps(rows["d"], k) * (1 + 0.05 * np.random.default_rng(k).standard_normal(6)[rows["seed"]])
        out.append(stopped(rows, at, 500_000))
    table = pd.concat(out, ignore_index=True)
    error = np.where(table["steps_to_censored"], 0.4, 0.0)
    return table.assign(algorithm="joint", tasks="parity", lr=0.1, stop_at=0.01, task_error=error)


def test_sparse_parity_verdicts():
    theirs = {(200, 1000): 7, (100, 500): 18, (64, 500): 21, (64, 200): 99}
    found = verdicts("sparse_parity", sparse_parity_rows(theirs, lambda d, k: 5.0 * d ** (0.4 * k)))
    assert len(found) == 4 + 3 + 1
    assert all(found.values())
    assert of(found, "n^(αk)", "at k = 4") is True
    others = {(200, 1000): 14, (100, 500): 9, (64, 500): 21, (64, 200): 30}
    found = verdicts("sparse_parity", sparse_parity_rows(others, lambda d, k: 5.0 * d ** (1.2 / k)))
    assert of(found, "width 200") is False
    assert of(found, "width 100") is False
    assert of(found, "width 64, 500") is True
    assert of(found, "width 64, 200") is False
    assert of(found, "n^(αk)") is False
    never = sparse_parity_rows({}, lambda d, k: 1e9 + 0 * d)
    found = verdicts("sparse_parity", never)
    assert set(found.values()) == {None}


def staircase_rows(staircase, monomial):
    """Trainings that stop after 100 · d^exponent steps."""
    rows = product(tasks=["staircase", "monomial"], d=[10, 14, 20, 28, 40], seed=range(6))
    exponent = np.where(rows["tasks"] == "staircase", staircase, monomial)
    noise = 1 + 0.05 * np.random.default_rng(0).standard_normal(len(rows))
    table = stopped(rows, 100 * rows["d"].astype(float) ** exponent * noise, 500_000)
    return table.assign(algorithm="joint", r=3, degree="3", width=100, n2=32, lr=0.05, stop_at=0.9, r2=0.9)


def test_staircase_verdicts():
    found = verdicts("staircase", staircase_rows(0.7, 1.3))
    assert list(found.values()) == [True] * 4
    assert of(found, "staircase's steps") is True
    found = verdicts("staircase", staircase_rows(1.5, 1.2))
    assert of(found, "exponent of d") is False
    assert of(found, "grow faster") is False
    assert of(verdicts("staircase", staircase_rows(0.9, 0.9)), "grow faster") is None
    assert set(verdicts("staircase", staircase_rows(4, 4)).values()) == {None}


def feature_spike_rows(outlier, overlap):
    """Rows as theory has them at so many times the rate, of the outlier and of the overlap."""
    rows = product(n2=[512, 2048], lr_n_power=np.linspace(-0.2, 0.5, 15).tolist(), seed=range(4))
    rows = rows.assign(d=64, width=128, r=1, head_scale=1.0, hermite_1=1.0, hermite_2=1.0, hermite_3=0.0, hermite_4=0.0)
    out = []
    for n, own in rows.groupby("n2"):
        near = 1 + 0.01 * np.random.default_rng(n).standard_normal(4)[own["seed"]]
        rate = n ** own["lr_n_power"] * near
        largest, _ = feature_spike.spiked(outlier * rate, own)
        _, seen = feature_spike.spiked(overlap * rate, own)
        out.append(own.assign(singular_values=[[s, 1.0] for s in largest], subspace_distance=np.sqrt(1 - seen)))
    named = {"algorithm": "one_step", "head_init": "random", "lr_w": 1.0, "loss": "linear", "tasks": "single_index"}
    return pd.concat(out).assign(**named)


def test_feature_spike_verdicts():
    found = verdicts("feature_spike", feature_spike_rows(1, 1))
    assert list(found.values()) == [True] * 6
    found = verdicts("feature_spike", feature_spike_rows(1.3, 4))
    assert list(found.values()) == [False] * 6


def transfer_rows(factor):
    """Rows with the source's errors, those with all features shared so many times as large."""
    rows = product(
        probe=list(transfer.WAYS), probe_teacher_shared=[0, 3, 6], n_down=list(transfer.SAMPLES), seed=range(6)
    )
    rows = rows.assign(algorithm=np.where(rows["probe"] == "ridge", "random_features", "joint"))
    rows = rows.assign(d=15, width=1000, n2=1024, data="sphere", target_scale=1.0, probe_teacher_units=6)
    rows = rows.assign(probe_teacher_features="orthonormal")
    noise = 1 + 0.1 * np.random.default_rng(0).standard_normal(len(rows))
    errors = [
        float(transfer.ERRORS[way, shared].split()[transfer.SAMPLES.index(n)]) * (factor if shared == 6 else 1)
        for way, shared, n in rows[["probe", "probe_teacher_shared", "n_down"]].itertuples(index=False)
    ]
    return rows.assign(downstream_r2=1 - noise * errors / transfer.variance(15))


def test_transfer_verdicts():
    found = verdicts("transfer", transfer_rows(1))
    assert sum(text.startswith("MSE") for text in found) == 72
    assert all(supported for text, supported in found.items() if text.startswith("MSE"))
    assert of(found, "128 samples", "less than a tenth") is True
    assert of(found, "16 samples", "less than a tenth") is False
    assert of(found, "64 samples", "with the other task", "fine-tuned.") is True
    assert of(found, "64 samples, 0 of 6", "fine-tuned", "no less than") is True
    assert of(found, "64 samples, 0 of 6", "with the other task", "no less than") is True
    one = transfer_rows(1)
    assert set(verdicts("transfer", one[one["seed"] == 0]).values()) == {None}
    found = verdicts("transfer", transfer_rows(3))
    assert of(found, "MSE alone, 64 samples, 6 of 6") is False
    rows = transfer_rows(1)
    helped = (rows["probe"] == "finetune") & (rows["probe_teacher_shared"] == 0)
    found = verdicts("transfer", rows.assign(downstream_r2=rows["downstream_r2"].where(~helped, 0.95)))
    assert of(found, "64 samples, 0 of 6", "fine-tuned", "no less than") is False


def test_the_variance_of_a_teacher():
    """Of labels on the sphere, over output signs too."""
    rng, d = np.random.default_rng(0), 15
    x = rng.standard_normal((20_000, d))
    u = x[:, :6] * np.sqrt(d) / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.maximum(u, 0) @ rng.choice([-1, 1], (6, 4000)) / np.sqrt(6)
    assert y.var(axis=0).mean() == pytest.approx(transfer.variance(d), rel=0.01)


def test_feature_spike_of_a_matrix():
    """Theory against the singular vectors of matrices that are made as it has them."""
    rng, d, width, n = np.random.default_rng(0), 400, 800, 1600
    rows = feature_spike_rows(1, 1).head(1).assign(d=d, width=width, n2=n)
    W = rng.standard_normal((width, d)) / np.sqrt(d)
    target = np.eye(d)[0] * np.sqrt(0.5) + rng.standard_normal(d) / np.sqrt(n)
    heads = rng.standard_normal(width) / np.sqrt(width)
    for rate in (0.5, 6.0, 20.0):
        _, sigma, right = np.linalg.svd(W + rate / 2 * np.outer(heads, target))
        largest, overlap = feature_spike.spiked(np.array([rate]), rows)
        # Edges fluctuate like d^(−2/3), overlaps like d^(−1/2), and heads and target have such norms of their own.
        assert sigma[0] == pytest.approx(largest[0], rel=0.06)
        assert right[0, 0] ** 2 == pytest.approx(overlap[0], abs=0.1)


def giant_step_rows(**errors):
    """Rows of heads, after one step and on initial features, at the source's errors by n times so much."""
    rows = product(algorithm=["one_step", "random_features"], n_down=[3326, 29532], seed=range(8))
    theirs = rows["n_down"].map({n: value for n, (value, _) in giant_step.ERRORS.items()})
    mse = theirs * rows["algorithm"].map(errors) * noise(rows)
    scale = 0.88
    return rows.assign(
        **giant_step.SETTING,
        n2=rows["n_down"],
        probe="head",
        target_scale=scale,
        subspace_distance=0.5,
        downstream_r2=1 - mse / scale**2,
    )


def test_giant_step_verdicts():
    found = verdicts("giant_step", giant_step_rows(one_step=1.0, random_features=1.3))
    assert list(found.values()) == [True] * 3
    found = verdicts("giant_step", giant_step_rows(one_step=1.2, random_features=1.1))
    assert list(found.values()) == [False] * 3
    alone = giant_step_rows(one_step=1.0, random_features=1.3)
    found = verdicts("giant_step", alone[alone["algorithm"] == "one_step"].assign(d=256))
    assert list(found.values()) == [None]


def single_index_rows(step, kernel):
    """Curves of what is left that fall through a quarter at 2 · d^exponent, after one step and by a kernel."""
    out = []
    for algorithm, exponent in (("one_step", step), ("random_features", kernel)):
        rows = product(d=[4, 6, 8, 12, 16], hermite_4=[0.0, 1.0], n_down=[2**k for k in range(2, 16)], seed=range(6))
        spread = 1 + 0.05 * np.random.default_rng(0).standard_normal(6)[rows["seed"]]
        left = 1 / (1 + 3 * rows["n_down"] / (2 * rows["d"].astype(float) ** exponent * spread))
        out.append(rows.assign(algorithm=algorithm, downstream_r2=1 - left))
    return pd.concat(out, ignore_index=True).assign(tasks="single_index", width=256)


def test_single_index_verdicts():
    found = verdicts("single_index", single_index_rows(1.8, 3.0))
    assert list(found.values()) == [True] * 8
    found = verdicts("single_index", single_index_rows(2.5, 2.0))
    assert of(found, "exponent of d in n*, He₂,") is False
    assert of(found, "kernel's samples of He₂ grow faster") is False


def downstream_rows(**errors):
    """Errors of features against samples: error = max(0.5 − share · log2(n) / 10, 0)."""
    sizes = [2**k for k in range(4, 11)]
    out = []
    for name, fall in errors.items():
        algorithm, tasks = ("one_step", 1) if name == "single" else (name, 128 if name == "one_step" else 64)
        for axis, other in (("n_down", {"width": 512}), ("width", {"n_down": 256})):
            rows = product(
                algorithm=algorithm, num_tasks=tasks, probe_tasks="parity", seed=range(4), **{axis: sizes}, **other
            )
            rows["downstream_error"] = np.maximum(0.5 - fall * (np.log2(rows[axis]) - 4), 0)
            out.append(rows)
    rows = pd.concat(out).drop_duplicates(["algorithm", "num_tasks", "seed", "n_down", "width"], ignore_index=True)
    return rows.assign(r=4, d=64)


def test_downstream_verdicts():
    found = verdicts("downstream", downstream_rows(one_step=0.2, oracle=0.25, random_features=0.01, single=0.05))
    assert list(found.values()) == [True] * 4
    found = verdicts("downstream", downstream_rows(one_step=0.1, oracle=0.4, random_features=0.1, single=0.2))
    assert list(found.values()) == [False] * 4
    found = verdicts("downstream", downstream_rows(random_features=0.1))
    assert list(found.values()) == [None] * 2


def recovery_rows(many, single, uniform):
    sizes = {1: single, 16: many, 256: many}
    rows = product(
        algorithm="one_step", tasks="balanced", d=[32, 64], num_tasks=list(sizes), seed=range(8), bias="zero"
    )
    rows["subspace_distance"] = rows["num_tasks"].map(sizes)
    more = product(algorithm="one_step", tasks="uniform", d=64, num_tasks=256, seed=range(8), bias="zero")
    rows = pd.concat([rows, more.assign(subspace_distance=uniform)], ignore_index=True)
    found = np.where(rows["subspace_distance"] < 0.5, 4, 2)
    return rows.assign(r=4, n1=64, n2=64, width=64, directions_recovered=found, feature_energy=0.5, spectral_ratio=1.0)


def test_recovery_verdicts():
    assert list(verdicts("recovery", recovery_rows(0.1, 0.9, 0.7)).values()) == [True, True, True]
    assert list(verdicts("recovery", recovery_rows(0.8, 0.1, 0.2)).values()) == [False, False, False]
    alone = recovery_rows(0.1, 0.9, 0.7)
    assert list(verdicts("recovery", alone[alone["tasks"] == "uniform"]).values()) == [None, None, True]


def contrastive_rows(shift, after, slope=0.0):
    """Kernels of T balanced truth tables, plus a shift; similarity 1 within an orthant, `1 − after` at distance 1 and
    falling by `slope` to distance 3.
    """
    rng, rows = np.random.default_rng(0), []
    for algorithm, T, seed in itertools.product(("one_step", "random_features"), (1, 4, 16, 64, 256), range(6)):
        tables = np.where(rng.random((T, 8)).argsort(axis=1).argsort(axis=1) < 4, 1, -1)
        kernel = (tables.T @ tables / T + shift).ravel().tolist()
        gap = after if algorithm == "one_step" else 0.05
        similar = [1.0, 1 - gap, 1 - gap - slope / 2, 1 - gap - slope + 0.001 * rng.standard_normal()]
        rows.append([algorithm, "balanced", T, seed, kernel, similar])
    columns = ["algorithm", "tasks", "num_tasks", "seed", "contrastive_kernel", "feature_similarity"]
    return pd.DataFrame(rows, columns=columns).assign(r=3, step=1, status="ok")


def test_contrastive_verdicts():
    found = verdicts("contrastive", contrastive_rows(0, 0.8))
    assert of(found, "Distance of K") is True
    assert of(found, "cosine of two samples") is True
    found = verdicts("contrastive", contrastive_rows(0.5, 0.04))
    assert of(found, "Distance of K") is not True
    assert of(found, "cosine of two samples") is False


def test_contrastive_compares_orthants_with_the_kernel():
    """The limit of balanced tasks is the same between any two orthants, halfspaces' falls with their distance."""
    assert of(verdicts("contrastive", contrastive_rows(0, 0.8)), "opposite orthants") is True
    assert of(verdicts("contrastive", contrastive_rows(0, 0.4, 0.5)), "opposite orthants") is False
    assert of(verdicts("contrastive", contrastive_rows(0, 0.4, 0.1)), "opposite orthants") is None
    for slope, verdict in ((0.5, True), (0.0, False), (-0.5, False)):
        rows = contrastive_rows(0, 0.4, slope).assign(tasks="halfspace")
        kernel = contrastive.LIMITS["halfspace"](3).ravel().tolist()
        rows["contrastive_kernel"] = [[value * (1 + 0.01 / T) for value in kernel] for T in rows["num_tasks"]]
        assert of(verdicts("contrastive", rows), "opposite orthants") is verdict


@pytest.mark.parametrize("family", [*contrastive.LIMITS, "parity"])
def test_limits_are_those_of_the_families(family):
    for size in (0, 1, 2) if family == "parity" else (0,):
        limit = kernel_limits.parity(size) if family == "parity" else contrastive.LIMITS[family]
        for r in (2, 3, 4):
            settings = {"parity_size": size} if family == "parity" else {}
            np.testing.assert_allclose(limit(r), tasks.FAMILIES[family].limit(r, **settings), atol=1e-12)


def test_limits_of_the_kernel():
    """Every row of the balanced limit sums to 0, as each task's table does; halves agree on half of all halfspaces."""
    np.testing.assert_allclose(contrastive.LIMITS["balanced"](3).sum(axis=0), 0, atol=1e-12)
    for family in contrastive.LIMITS:
        np.testing.assert_allclose(np.diag(contrastive.LIMITS[family](3)), 1)
    v, z = np.random.default_rng(0).standard_normal((100_000, 2)), 2 * ((np.arange(4)[:, None] >> np.arange(2)) & 1) - 1
    tables = np.sign(v @ z.T)
    # Means of 10^5 signs: 5 standard errors.
    np.testing.assert_allclose(contrastive.LIMITS["halfspace"](2), tables.T @ tables / len(v), atol=5 / np.sqrt(len(v)))


def training_rows(fresh, fixed, mixture):
    """The last distances of alternating: fresh and fixed samples under logistic, fresh ones under the mixture."""
    out = []
    for loss, samples, last in (
        ("logistic", "fresh", fresh),
        ("logistic", "fixed", fixed),
        ("mixture", "fresh", mixture),
    ):
        for rate, step in itertools.product((1.0, 10.0) if loss == "logistic" else (10.0,), (1, 64)):
            rows = product(algorithm="alternating", loss=loss, samples=samples, lr_w=rate, seed=range(6)).assign(
                step=step
            )
            end = last if rate == 10 and step == 64 else 0.9
            out.append(rows.assign(subspace_distance=end * noise(rows, 0.001)))
    rows = pd.concat(out, ignore_index=True).assign(train_samples=1000)
    one = product(algorithm="one_step", seed=range(6)).assign(subspace_distance=0.3, train_samples=1000)
    one = one.assign(n1=500, n2=500)
    rows = pd.concat([rows, one], ignore_index=True)
    return rows.assign(
        r=4, directions_recovered=np.where(rows["subspace_distance"] < 0.5, 4, 1), test_loss=0.5, task_error=0.1
    )


def test_training_verdicts():
    assert list(verdicts("training", training_rows(0.1, 0.2, 0.1)).values()) == [True, False, True, True]
    assert list(verdicts("training", training_rows(0.6, 0.2, 0.6)).values()) == [False, False, False, False]
    wide = training_rows(0.1, 0.2, 0.1)
    wide.loc[(wide["loss"] == "logistic") & (wide["step"] == 64), ["directions_recovered", "subspace_distance"]] = (
        4,
        0.1,
    )
    assert of(verdicts("training", wide), "all directions are found", "rates") is True
    wide.loc[(wide["lr_w"] == 1) & (wide["seed"] == 0) & (wide["step"] == 64), "status"] = "diverged"
    assert of(verdicts("training", wide), "all directions are found", "rates") is False
    alone = training_rows(0.1, 0.2, 0.1)
    alone = alone[(alone["samples"] == "fresh") & (alone["loss"] == "logistic") & (alone["lr_w"] == 1)]
    assert list(verdicts("training", alone).values()) == [None, None, None, None]


def scaling_rows(exponent):
    rows = product(algorithm="one_step", n2=[64, 128, 256, 512, 1024], seed=range(8))
    values = 0.5 * (rows["n2"] / 64) ** exponent * noise(rows)
    return rows.assign(subspace_distance=values, d=64, n1=64, width=64, num_tasks=64)


def test_the_exponents_table_says_what_the_statements_say():
    cut = scaling_rows(-0.5)
    cut.loc[cut["n2"] == 1024, "subspace_distance"] /= 1000
    for rows in (scaling_rows(-0.5), cut):
        found = studies.of("scaling", frame(rows))
        in_table = [cell == "yes" for cell in found.listings[0].table["supported"]]
        assert in_table == [said.supported is True for said in found.statements]


def test_scaling_verdicts():
    assert list(verdicts("scaling", scaling_rows(-0.5)).values()) == [True]
    assert list(verdicts("scaling", scaling_rows(0.2)).values()) == [False]
    rows = scaling_rows(0.0)
    rows["subspace_distance"] *= noise(rows, 0.3)
    assert list(verdicts("scaling", rows).values()) == [None]
    cut = scaling_rows(-0.5)
    cut.loc[cut["n2"] == 1024, "subspace_distance"] /= 1000
    assert list(verdicts("scaling", cut).values()) == [None]
    with pytest.raises(ValueError, match="scaling needs 4 values"):
        verdicts("scaling", rows[rows["n2"] < 512])


# A diverged row bears no measurement into any finding


def finite(rows):
    """The rows with nothing measured where they diverged, and with finite numbers there, as old folders may have."""
    bad = rows["status"] == "diverged"
    left = {"directions_recovered": 3, "feature_similarity": [0.5] * 4, "contrastive_kernel": [0.1] * 64}
    names = set(rows) & {*left, "subspace_distance", "task_error", "test_loss", "downstream_error", "feature_energy",
                         "spectral_ratio", "downstream_r2"}  # fmt: skip
    empty, full = rows.astype(dict.fromkeys(names, object)), rows.astype(dict.fromkeys(names, object))
    for name in names:
        for place in np.flatnonzero(bad):
            empty.at[place, name], full.at[place, name] = None, left.get(name, 0.77)
    return empty, full


def lose(rows, share=0.15):
    """Some of the rows marked as diverged."""
    return rows.assign(status=np.where(np.random.default_rng(5).random(len(rows)) < share, "diverged", "ok"))


MADE = {
    "recovery": lambda: recovery_rows(0.1, 0.9, 0.7),
    "downstream": lambda: downstream_rows(one_step=0.2, oracle=0.25, random_features=0.01, single=0.05),
    "complexity": lambda: complexity_rows(lambda d, r: 20, lambda d, r: d**r / 4),
    "contrastive": lambda: contrastive_rows(0, 0.8),
    "training": lambda: training_rows(0.1, 0.2, 0.1),
    "scaling": lambda: scaling_rows(-0.5),
    "staircase": lambda: staircase_rows(0.7, 1.2),
    "feature_spike": lambda: feature_spike_rows(1, 1),
    "transfer": lambda: transfer_rows(1),
    "giant_step": lambda: giant_step_rows(one_step=1.0, random_features=1.3),
    "single_index": lambda: single_index_rows(1.8, 3.0),
    "sparse_parity": lambda: sparse_parity_rows({(200, 1000): 7, (64, 200): 99}, lambda d, k: 5.0 * d ** (0.4 * k)),
}


def everything(study, rows):
    """All that a study says, its lines too."""
    found = studies.of(study, frame(rows))
    axes = [ax for drawing in found.drawings for ax in drawing.figure.axes]
    lines = [np.asarray(line.get_ydata(), float).tolist() for ax in axes for line in ax.lines]
    statements = [(own.supported, own.text) for own in found.statements]
    tables = [own.table.to_numpy().tolist() for own in found.listings]
    return [own.caption for own in found.drawings], repr((statements, tables, lines))


@pytest.mark.parametrize("study", STUDIES)
def test_numbers_left_in_diverged_rows_change_nothing(study):
    empty, full = finite(lose(MADE[study]()))
    captions, said = everything(study, empty)
    assert (captions, said) == everything(study, full)
    assert any(re.search(r"\d+ (to \d+ )?of \d+ seeds", caption) for caption in captions)
    assert said != everything(study, MADE[study]())[1]


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_of_rows_that_all_diverged_says_so_or_nothing(study):
    rows = finite(MADE[study]().assign(status="diverged"))[1]
    if study == "training":  # There a diverged training is one that found nothing.
        assert not any(verdicts(study, rows).values())
        return
    try:
        found = verdicts(study, rows)
    except ValueError as error:
        assert str(error).startswith(f"{study} needs ")  # noqa: PT017
    else:
        assert set(found.values()) <= {None}


def test_training_counts_a_diverged_run_as_one_that_found_nothing():
    rows = training_rows(0.1, 0.2, 0.1)
    bad = (rows["algorithm"] == "alternating") & (rows["lr_w"] == 10) & (rows["seed"] < 3) & (rows["step"] == 64)
    found = verdicts("training", rows.assign(status=np.where(bad, "diverged", "ok")))
    assert of(found, "subspace distance 0.55", "after 64 steps", "50% of runs") is False


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_refuses_to_pool_settings(study):
    """A setting swept beside the study's own is no seed."""
    rows = MADE[study]()
    rows = pd.concat([rows.assign(weight_decay=0.5), rows.assign(weight_decay=None)], ignore_index=True)
    with pytest.raises(ValueError, match=r"differ in weight_decay|rows repeat another's"):
        studies.of(study, frame(rows))
