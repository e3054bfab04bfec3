"""Axes that are intervals: where their points are, what they depend on, and what is refused."""

import random

import differential
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mtfl_jax
from mtfl_jax import compose
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError
from mtfl_jax.sweeps import engine
from mtfl_jax.sweeps.grammar import axis_values
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.sampling import SAMPLERS, Sampling, sampled

SMALL = {"d": 8, "r": 2, "width": 4, "num_tasks": 2, "n1": 16, "n2": 16, "n_test": 8, "n_down": 4}


def allows(name, *values):
    """Whether a field takes all of these."""
    try:
        return bool([FIELDS[name].type.parse(name, value) for value in values])
    except ConfigError:
        return False


NUMBERS = [
    name
    for name, field in FIELDS.items()
    if name != "seed"
    if (field.type.column is int and allows(name, 1, 950)) or (field.type.column is float and allows(name, 1e-6, 0.5))
]

PINNED = {
    "sobol": {"lr_a": [0.0281155, 0.88909, 0.158105], "lr_w": [0.129785, 1.12979, 0.629785], "n1": [8, 4, 6]},
    "random": {"lr_a": [0.870403, 0.00617334, 0.0375005], "lr_w": [1.74294, 0.501931, 0.173726], "n1": [4, 8, 7]},
}


@pytest.fixture
def quick(monkeypatch):
    """Sweeps whose programs are a stand-in: here only which cells run matters."""
    monkeypatch.setattr(engine, "fitting", differential.StandIn(differential.Truth()).fitting)


def points(axes, size, sampler="sobol", seed=0):
    return sampled({key: axis_values(key, text) for key, text in axes.items()}, Sampling.of(size, sampler, seed))


def grid(sampling=None, grids=(), zipped=(), **axes):
    own = Sampling.of(*sampling) if sampling else Sampling()
    return Grid({**SMALL, **axes}, compose.composed, grids=grids, zipped=zipped, sampling=own)


@st.composite
def axes(draw):
    """Some intervals of numbers that every such field allows, as they are written."""
    found = {}
    for name in draw(st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=5, unique=True)):
        whole, most = FIELDS[name].type.column is int, 1.0 if allows(name, 1.0) else 0.5
        low = draw(st.integers(1, 50)) if whole else draw(st.floats(1e-6, most / 2))
        high = low + draw(st.integers(1, 900)) if whole else draw(st.floats(1.5 * low, most))
        text = f"interval({low!r},{high!r})"
        found[name] = f"tag(log,{text})" if draw(st.booleans()) else text
    return found


@given(axes(), st.integers(1, 70), st.integers(1, 70), st.sampled_from(SAMPLERS), st.integers(0, 5), st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_first_of_more_points_are_those_of_fewer_in_any_order_of_axes(of, few, more, sampler, seed, order):
    found = points(of, max(few, more), sampler, seed)
    names = list(of)
    order.shuffle(names)
    first = points({name: of[name] for name in names}, min(few, more), sampler, seed)
    for name, values in first.items():
        assert values == found[name][: min(few, more)]
        interval = axis_values(name, of[name])
        for value in found[name]:
            assert interval.low <= value <= interval.high
            assert type(value) is FIELDS[name].type.column
            assert value in (float(f"{value:.6g}"), interval.low, interval.high)


def test_points_stay_as_they_are():
    """Pinned: other points would make a sweep that goes on run again. SciPy's version does not matter."""
    of = {"lr_a": "tag(log,interval(1e-3,1))", "lr_w": "interval(0,2)", "n1": "interval(1,9)"}
    assert points(of, 3) == PINNED["sobol"]
    assert points(of, 3, "random", 7) == PINNED["random"]


def test_random_points_of_an_axis_do_not_depend_on_the_others():
    both = points({"lr_a": "interval(0,1)", "bias_scale": "interval(0,1)"}, 50, "random")
    assert both["lr_a"] == points({"lr_a": "interval(0,1)"}, 50, "random")["lr_a"]
    assert abs(np.corrcoef(both["lr_a"], both["bias_scale"])[0, 1]) < 4 / np.sqrt(50)


@pytest.mark.parametrize("seed", range(4))
def test_sobol_points_are_spread_evenly(seed):
    """Of 2^m points each of 2^m equal parts of an axis has one, and of two axes each of 4 × 4 fields of 16 points."""
    found = points({"lr_a": "interval(0,1)", "lr_w": "tag(log,interval(1,16))"}, 16, seed=seed)
    one, two = np.asarray(found["lr_a"]), np.log2(found["lr_w"]) / 4
    for share in (one, two):
        assert sorted((share * 16).astype(int)) == list(range(16))
    assert len(set(zip((one * 4).astype(int), (two * 4).astype(int), strict=True))) == 16
    assert found != points({"lr_a": "interval(0,1)", "lr_w": "tag(log,interval(1,16))"}, 16, seed=seed + 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_integers_have_equal_shares_of_an_interval_or_of_its_logarithm(sampler):
    size = 4096
    even = np.asarray(points({"n1": "interval(3,10)"}, size, sampler)["n1"])
    counts = np.bincount(even, minlength=11)[3:]
    assert counts.sum() == size
    assert np.abs(counts - size / 8).max() < 4 * np.sqrt(size / 8)
    logs = np.asarray(points({"n1": "tag(log,interval(1,64))"}, size, sampler)["n1"])
    shares = np.log((np.arange(1, 65) + 0.5) / (np.arange(1, 65) - 0.5)) / np.log(64.5 / 0.5)
    assert np.abs(np.bincount(logs, minlength=65)[1:] - size * shares).max() < 4 * np.sqrt(size * shares.max())


def test_intervals_advance_together_and_other_axes_multiply():
    of = grid((5, "sobol", 0), lr_a="interval(0,1)", seed=range(3), lr_w="interval(1,2)")
    assert len(of) == 15
    pairs = list(zip(of.column("lr_a").tolist(), of.column("lr_w").tolist(), strict=True))
    found = points({"lr_a": "interval(0,1)", "lr_w": "interval(1,2)"}, 5)
    assert pairs == [pair for pair in zip(found["lr_a"], found["lr_w"], strict=True) for _ in range(3)]
    assert of.column("seed").tolist() == [0, 1, 2] * 5


def test_each_of_several_grids_has_its_own_intervals_and_zips_stay():
    of = grid(
        (4, "random", 1),
        grids=[{"lr_a": "interval(0,1)", "label_noise": [0.1, 0.2], "nuisance_scale": [1, 2]}, {"lr_w": [1.0, 2.0]}],
        zipped=[["label_noise", "nuisance_scale"]],
    )
    assert len(of) == 4 * 2 + 2
    assert len(grid((4, "sobol", 0), n_down="interval(1,400)")) == 4


def test_a_folder_goes_on_with_more_points(quick, tmp_path):
    def swept(size):
        return mtfl_jax.sweep(**SMALL, lr_a="tag(log,interval(1e-3,1))", probe="none", sample=size, folder=tmp_path)

    few = swept(3)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    more = swept(8)
    assert more["lr_a"].tolist()[:3] == few["lr_a"].tolist()
    assert len(more) == 8
    new = [path for path in (tmp_path / "parts").iterdir() if path not in parts]
    assert sum(len(mtfl_jax.load(path)) for path in new) == 5


def test_the_command_line_and_python_have_the_same_points(quick, here, tmp_path):
    small = [f"{key}={value}" for key, value in SMALL.items()]
    axes = ["lr_a=tag(log,interval(1e-3,1))", "bias=random", "bias_scale=interval(0,1)"]
    given = ["sweep.sample=6", "sweep.sampler=random", "sweep.sample_seed=3", "seed=0,1"]
    status, _, err = here("-m", *small, *axes, *given, "probe=none", f"hydra.sweep.dir={tmp_path / 'a'}")
    assert (status, err) == (0, "")
    table = mtfl_jax.load(tmp_path / "a")
    expected = points({"lr_a": axes[0].partition("=")[2], "bias_scale": "interval(0,1)"}, 6, "random", 3)
    found = set(zip(table["lr_a"], table["bias_scale"], table["seed"], strict=True))
    assert found == {(*pair, seed) for pair in zip(*expected.values(), strict=True) for seed in (0, 1)}
    assert "sample 6 (random, seed 3)" in (tmp_path / "a" / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("axes", "sampling", "zipped", "said"),
    [
        ({"lr_a": "interval(0,1)"}, None, [], "lr_a=interval(0,1): allowed with sweep.sample=N"),
        ({"lr_a": [0.1, 0.2]}, (4, "sobol", 0), [], "sweep.sample=4: allowed where an axis is an interval"),
        ({"lr_a": "interval(0,1)"}, (0, "sobol", 0), [], "sweep.sample=0: allowed: an integer from 1"),
        ({"lr_a": "interval(0,1)"}, (2.5, "sobol", 0), [], "sweep.sample=2.5: allowed: an integer from 1"),
        ({"lr_a": "interval(0,1)"}, (4, "halton", 0), [], "sweep.sampler=halton: allowed: sobol, random"),
        ({"lr_a": "interval(0,1)"}, (4, "sobol", -1), [], "sweep.sample_seed=-1: allowed: an integer from 0"),
        ({"lr_a": "interval(1,1)"}, (4, "sobol", 0), [], "lr_a=interval(1,1): allowed: interval(LOW,HIGH) with LOW <"),
        ({"lr_a": "tag(log,interval(0,1))"}, (4, "sobol", 0), [], "with 0 < LOW < HIGH"),
        ({"lr_a": "interval(-1,1)"}, (4, "sobol", 0), [], "lr_a=interval(-1,1): allowed: a finite number from 0, at"),
        ({"lr_a": "interval(0,inf)"}, (4, "sobol", 0), [], "allowed: a finite number from 0, at both ends"),
        ({"n1": "interval(1.5,8)"}, (4, "sobol", 0), [], "n1=interval(1.5,8): allowed: an integer from 1, at both"),
        ({"tasks": "interval(0,1)"}, (4, "sobol", 0), [], "tasks=interval(0,1): an interval is of numbers; allowed: b"),
        ({"shared_inputs": "interval(0,1)"}, (4, "sobol", 0), [], "an interval is of numbers; allowed: true, false"),
        ({"measure_at": "interval(1,9)"}, (4, "sobol", 0), [], "an interval is of numbers; allowed: log, last"),
        (
            {"lr_a": "interval(0,1)", "lr_w": [1, 2, 3, 4]},
            (4, "sobol", 0),
            [["lr_a", "lr_w"]],
            "sweep.zip=[lr_a,lr_w]: allowed: axes of values; lr_a is an interval",
        ),
    ],
)
def test_what_cannot_be_is_a_line(axes, sampling, zipped, said):
    with pytest.raises(ConfigError) as raised:
        grid(sampling, zipped=zipped, **axes)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("given", [["hydra.sweeper.split=[lr_a]"], ["memory_fraction=interval(0,1)"]])
def test_an_interval_is_no_list_of_jobs(here, given):
    status, _, err = here("-m", "lr_a=interval(0,1)", "sweep.sample=4", *given)
    assert status == 2
    assert "one job a value needs values" in err
    assert len(err.splitlines()) == 1


def test_shares_have_the_same_points(quick, here, tmp_path):
    small = [f"{key}={value}" for key, value in SMALL.items()]
    size = random.Random(0).randrange(5, 12)
    status, _, err = here(
        *("-m", *small, "lr_a=interval(0,1)", "probe=none", f"sweep.sample={size}"),
        *("hydra.sweeper.jobs=2", f"hydra.sweep.dir={tmp_path}"),
    )
    assert (status, err) == (0, "")
    assert sorted(mtfl_jax.load(tmp_path)["lr_a"]) == sorted(points({"lr_a": "interval(0,1)"}, size)["lr_a"])
