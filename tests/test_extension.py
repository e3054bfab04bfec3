"""The change test: a record of every kind comes in from outside the package, and no file of the package knows of it.

The records are those of `extension_example/`, an installable package, and of single files that tests write.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mtfl_jax
from mtfl_jax import compose, extend
from mtfl_jax.analysis import models  # noqa: F401 - registers what there is before an extension comes
from mtfl_jax.analysis.studies import STUDIES
from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning.activations import ACTIVATIONS, Activation
from mtfl_jax.learning.data import LAWS
from mtfl_jax.names import BOOKKEEPING, OTHER_KEYS
from mtfl_jax.records import REGISTRIES
from mtfl_jax.sweeps.grid import Grid

EXAMPLE = Path(__file__).parent / "extension_example"
NAME = "mtfl_extension_example"
SIZES = {"d": 8, "r": 2, "width": 8, "n1": 32, "n2": 32, "n_down": 8, "n_test": 32, "steps": 2, "measure_at": "last"}
QUICK = {**SIZES, "num_tasks": 2, "probe": "none", "measure": "recovery"}
OURS = {
    "algorithm": "alternating_normalised",
    "data": "laplace",
    "tasks": "random_quadratic",
    "loss": "smoothed_hinge",
    "network": "two_layer_arctan",
    "probe": "nearest_centroid",
    "probe_tasks": "random_quadratic",
}

FILE = """
import jax.numpy as jnp
from mtfl_jax.learning.activations import ACTIVATIONS, Activation

ACTIVATIONS.register(Activation("mine", "tanh(2 t)", lambda t: jnp.tanh(2 * t), lambda t: 2 - 2 * jnp.tanh(2 * t) ** 2))
"""


def words(values, **more):
    """Settings as a command line has them."""
    return [f"{key}={value}" for key, value in {**values, **more}.items()]


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """An empty folder to work in where the example can be imported, and no extension afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLE)])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    known = dict(STUDIES)
    yield
    for name in STUDIES.keys() - known.keys():
        del STUDIES[name]
    extend.unload()


@pytest.fixture
def mine(tmp_path):
    """A single file that registers an activation."""
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def snapshot():
    return {registry.kind: list(registry) for registry in REGISTRIES}, list(FIELDS)


# What comes in


def test_every_file_of_the_example_registers_one_record_and_unloading_takes_all_out():
    before = snapshot()
    (source,) = extend.load(NAME)
    ours = [name for registry in REGISTRIES for name in registry if registry.source(name) == source]
    modules = [name for name in sys.modules if name.startswith(f"{NAME}.")]
    assert len(modules) >= 8
    assert len(ours) == len(modules)
    assert {"norm_power", "smoothing"} <= set(FIELDS)
    extend.unload()
    assert snapshot() == before
    assert not [name for name in sys.modules if name.startswith(NAME)]
    with pytest.raises(ConfigError, match="data=laplace"):
        compose.from_keywords(data="laplace")


def test_every_kind_of_record_is_in_the_example():
    """A new kind of record gets an example; optimisers and schedules are optax's own, a study is beside its YAML."""
    (source,) = extend.load(NAME)
    kinds = {registry.kind for registry in REGISTRIES if any(registry.source(name) == source for name in registry)}
    assert {registry.kind for registry in REGISTRIES} - kinds <= {"optimizer", "schedule", "study"}


def test_defaults_are_those_of_the_records_and_of_the_algorithm_it_starts_from():
    extend.load(NAME)
    ours, base = (compose.from_keywords(algorithm=name) for name in (OURS["algorithm"], "alternating"))
    assert ours.norm_power == 1.0
    assert ours.smoothing == 0.5
    assert ours.values == {**base.values, "algorithm": OURS["algorithm"]}
    assert "norm_power" in ours.used
    assert "norm_power" not in base.used


def test_settings_of_extensions_are_checked_like_built_in_ones():
    extend.load(NAME)
    for values, said in (
        ({"norm_power": 2}, "norm_power=2: allowed: a finite number from 0 to 1"),
        ({"norm_powr": 1}, "norm_powr=1: unknown key (did you mean norm_power?)"),
        ({"data": "laplase"}, f"data=laplase: allowed: {', '.join(LAWS)} (did you mean laplace?)"),
        ({"algorithm": OURS["algorithm"], "loss": "linear"}, "loss=linear: the linear loss is unbounded"),
    ):
        with pytest.raises(ConfigError) as refused:
            compose.from_keywords(**values)
        assert str(refused.value).startswith(said)


def test_python_sweeps_what_is_in_an_extension_and_a_knob_of_its_own_compiles_nothing(monkeypatch):
    from mtfl_jax.sweeps import compiling

    axes = {**QUICK, "algorithm": OURS["algorithm"], "data": ["laplace", "gaussian"], "measure": "rank"}
    first = mtfl_jax.sweep(extensions=[NAME], **axes, norm_power=[0, 1])
    assert list(zip(first["data"], first["norm_power"], strict=True)) == [
        (data, power) for data in ("laplace", "gaussian") for power in (0, 1)
    ]
    assert first["effective_rank"].between(1, 8).all()
    assert first["effective_rank"].nunique() == 4
    monkeypatch.setattr(compiling.jax, "jit", lambda *_: pytest.fail("compiled"))
    again = mtfl_jax.sweep(extensions=NAME, **axes, norm_power=[0.5, 0])
    assert again["effective_rank"].tolist()[1::2] == first["effective_rank"].tolist()[::2]


def test_the_whole_normalisation_is_none_at_power_zero():
    axes = {**QUICK, "algorithm": [OURS["algorithm"], "alternating"], "lr_w": 1.0}
    table = mtfl_jax.sweep(extensions=NAME, **axes, norm_power=0)
    ours, theirs = table["feature_energy"]
    assert ours == pytest.approx(theirs, rel=1e-5)


# Identities


def identities(**axes):
    return Grid({**QUICK, **axes}, compose.composed).ids.tolist()


def test_a_cell_that_uses_nothing_of_an_extension_stays_what_it_was():
    """But where one of its measurements is in the cell's set: its row then has a column that others of it lack."""
    kept = {"algorithm": ["one_step", "alternating", "joint"], "loss": "hinge"}
    plain, whole = identities(**kept), identities(**kept, measure="all")
    extend.load(NAME)
    assert identities(**kept) == plain
    assert not set(identities(**kept, measure="all")) & set(whole)
    assert identities(**kept, norm_power=[0, 1]) == plain[:3]
    for key, name in OURS.items():
        if not key.startswith("probe"):
            assert not set(identities(**{**kept, key: name})) & set(plain), key


def test_an_edit_makes_other_rows_and_keeps_the_old_ones(mine):
    """Also where neither the file's length nor its time changes, and in a process that has compiled the old code."""
    cell = {**QUICK, "network": "two_layer_mine", "folder": "out", "extensions": str(mine)}
    (old,) = mtfl_jax.sweep(**cell)["feature_energy"]
    stat = mine.stat()
    mine.write_text(FILE.replace("2", "3"))
    os.utime(mine, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert mine.stat().st_size == stat.st_size
    (new,) = mtfl_jax.sweep(**cell)["feature_energy"]
    other = mine.with_name("other.py")
    other.write_text(FILE.replace("2", "3").replace("mine", "other"))
    (expected,) = mtfl_jax.run(**QUICK, network="two_layer_other", extensions=str(other))["feature_energy"]
    assert new == expected
    assert new != old

    table = mtfl_jax.load("out")
    assert len(table) == 2
    assert table["id"].is_unique
    assert set(table["feature_energy"]) == {old, new}
    assert table["extensions"].nunique() == 2
    assert all(value.startswith("mine:") for value in table["extensions"])

    mine.write_text(FILE)
    (found,) = mtfl_jax.sweep(**cell)["feature_energy"]
    assert found == old
    assert len(mtfl_jax.load("out")) == 2


@pytest.mark.parametrize("given", ["near", "near.py", "sub/near.py"])
def test_files_that_an_extension_imports_from_beside_it_count(tmp_path, given):
    """A module, a package's module, and what these import; installed packages do not."""
    folder = (tmp_path / given).parent
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "inner" / "scale.py").write_text("import numpy, jax.numpy\nSCALE = 2\n")
    (folder / "beside.py").write_text("from inner import scale\nFACTOR = scale.SCALE\n")
    (folder / "near.py").write_text(
        "from beside import FACTOR\n" + FILE.replace("2 *", "FACTOR *").replace("mine", "near")
    )
    cell = {**QUICK, "network": "two_layer_near", "folder": "out", "extensions": given}
    (old,) = mtfl_jax.sweep(**cell)["feature_energy"]
    assert set(extend._near["near"]) == {"beside", "inner.__init__", "inner.scale"}
    (folder / "inner" / "scale.py").write_text("SCALE = 3\n")
    (new,) = mtfl_jax.sweep(**cell)["feature_energy"]
    assert new != old
    assert len(mtfl_jax.load("out")) == 2
    assert len(mtfl_jax.sweep(**{**cell, "extensions": Path(given)} if given.endswith(".py") else cell)) == 1
    assert len(mtfl_jax.load("out")) == 2


def test_every_file_of_a_package_counts(tmp_path):
    package = tmp_path / "several"
    package.mkdir()
    (package / "__init__.py").write_text("from several import inner\n")
    (package / "inner.py").write_text(FILE)
    (first,) = extend.load("several")
    assert extend.load("several") == (first,)
    assert "mine" in ACTIVATIONS
    (package / "inner.py").write_text(FILE.replace('"mine"', '"yours"'))
    (second,) = extend.load("several")
    assert second != first
    assert "yours" in ACTIVATIONS
    assert "mine" not in ACTIVATIONS


# What is refused


def test_a_record_registered_outside_extensions_raises():
    with pytest.raises(RuntimeError, match=r"activation mine: records of your own come in by extensions=\[MODULE\]"):
        ACTIVATIONS.register(Activation("mine", "1", lambda t: t, lambda t: t))
    assert "mine" not in ACTIVATIONS
    with pytest.raises(RuntimeError, match="come in by extensions"):
        importlib.import_module(NAME)


def field(name):
    text = """
from mtfl_jax.fields import Field, number
from mtfl_jax.learning.losses import LOSSES, Loss
LOSSES.register(Loss("mine", "−m", lambda m, {0}: -m, settings=(Field("{0}", "knob", number(0), "x", default=1.0),)))
"""
    return text.format(name)


def loss(given):
    """A file that registers a loss of these arguments."""
    return f"""
from mtfl_jax.fields import Field, number, one_of
from mtfl_jax.learning.losses import LOSSES, Loss
LOSSES.register(Loss({given}))
"""


def setting(text):
    return loss(f'"mine", "−m", lambda m, q: -m, settings=(Field({text}),)')


TAKEN = "is the name of a key or a column already; allowed: another name"
REFUSED = [
    ("missing", None, "there is no such module; allowed: a module, or a path to a .py file"),
    ("missing.py", None, "there is no such file; allowed: a module, or a path to a .py file"),
    ("bad.py", "1 / 0", "it cannot be imported (ZeroDivisionError: division by zero)"),
    ("bad", "1 / 0", "it cannot be imported (ZeroDivisionError: division by zero)"),
    ("bad.py", "import missing", "it cannot be imported (ModuleNotFoundError: No module named 'missing')"),
    ("bad.py", "def f(:", "it cannot be imported (SyntaxError: "),
    ("bad.py", "raise SystemExit(3)", "it cannot be imported (SystemExit: 3)"),
    ("bad.py", 'raise ValueError("two\\nlines")', "it cannot be imported (ValueError: two lines)"),
    ("bad.py", FILE.replace("mine", "relu"), "(ValueError: activation relu: there is one already; allowed: another"),
    ("bad.py", FILE + FILE, "(ValueError: activation mine: there is one already; allowed: another name)"),
    ("bad.py", field("momentum"), "(ValueError: loss mine: there is a setting momentum already)"),
    *(("bad.py", field(name), f"{name} {TAKEN}") for name in ("id", "task_error", *BOOKKEEPING, *OTHER_KEYS)),
    ("bad.py", loss('"mixture", "−m", lambda m: -m'), "loss mixture: the word means something else; allowed: another"),
    ("bad.py", loss('"my loss", "−m", lambda m: -m'), "a loss called 'my loss'; allowed: letters, digits and"),
    ("bad.py", loss('"größe", "−m", lambda m: -m'), "a loss called 'größe'; allowed: letters, digits and"),
    ("bad.py", loss('"mine", " ", lambda m: -m'), "loss mine: it says nothing of itself; allowed: a doc"),
    (
        "bad.py",
        "from mtfl_jax.analysis.studies import *\nSTUDIES.register(Study('mine', 'x', 3))",
        "study mine: findings=3; allowed: a function",
    ),
    *(
        (
            "bad.py",
            f"from mtfl_jax.learning.measures import *\nMEASURES.register(Measure('mine', 'x', {given}))",
            f"measurement mine: of={of!r}; allowed: 'network', with a compute",
        )
        for given, of in (("of='probe'", "probe"), ("lambda seen: 1.0, of='cost'", "cost"), ("None", "network"))
    ),
    ("bad.py", setting('"q q", "knob", number(0), "q", default=1.0'), "a setting called 'q q'; allowed: letters"),
    ("bad.py", setting('"q", "knob", number(0), "", default=1.0'), "setting q: it says nothing of itself"),
    ("bad.py", setting('"q", "nob", number(0), "q", default=1.0'), "setting q: kind=nob; allowed: shape, knob, choice"),
    ("bad.py", setting('"q", "knob", one_of("a"), "q", default="a"'), "setting q: 'a' is no number; allowed: numbers"),
    ("bad.py", setting('"q", "knob", number(3, 1), "q", default=1.0'), "number(3, 1): there is none"),
    (
        "bad.py",
        setting('"q", "knob", number(0), "q"'),
        "loss mine: the default q=None: allowed: a finite",
    ),
    ("bad.py", setting('"q", "knob", number(2), "q", default=1.0'), "loss mine: the default q=1.0: allowed: a finite"),
    ("numpy", None, "a module of this name is there already; allowed: another name"),
    ("json.py", FILE, "a module of this name is there already; allowed: another name"),
]


@pytest.mark.parametrize(("given", "text", "said"), REFUSED)
def test_what_cannot_come_in_is_one_line_and_leaves_nothing(here, tmp_path, given, text, said):
    before, modules = snapshot(), dict(sys.modules)
    if text is not None:
        (tmp_path / f"{given.removesuffix('.py')}.py").write_text(text)
    left = sorted(tmp_path.iterdir())
    status, out, err = here(f"extensions=[{given}]", *words(QUICK))
    assert status == 2
    assert out == ""
    assert err.startswith(f"mtfl: extensions={given}: ")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == left
    assert snapshot() == before
    assert sys.modules["json"] is modules["json"]
    assert sys.modules["numpy"] is np
    with pytest.raises(ConfigError) as refused:
        mtfl_jax.run(extensions=given, **QUICK)
    assert refused.value.key == "extensions"
    identities()


def test_a_failed_import_of_what_was_there_leaves_the_rest_intact(mine):
    extend.load([str(mine), NAME])
    mine.write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        extend.load(str(mine))
    assert "mine" not in ACTIVATIONS
    assert "arctan" in ACTIVATIONS
    assert "norm_power" in FIELDS


def test_two_extensions_of_one_name_are_refused(mine, tmp_path):
    other = tmp_path / "folder" / "mine.py"
    other.parent.mkdir()
    other.write_text(FILE)
    with pytest.raises(ConfigError, match="one of those that are called mine"):
        extend.load([str(mine), str(other)])
    assert extend.load([str(mine), "mine.py"]) == extend.loaded()


def test_extensions_are_one_list(here, mine):
    status, _, err = here("-m", "extensions=[mine.py],[other.py]", *words(QUICK))
    assert status == 2
    assert err == "mtfl: extensions=[mine.py],[other.py]: allowed: one list, not a sweep\n"


# From the command line


def test_help_shows_the_settings_of_extensions(here):
    status, plain, err = here("--help")
    assert (status, err) == (0, "")
    assert "norm_power" not in plain
    status, shown, err = here(f"extensions=[{NAME}]", "--help")
    assert (status, err) == (0, "")
    before, after = (
        {line.split()[0]: line.split()[1] for line in text.split("\nKeys ")[1].splitlines()[1:] if line[2:3].strip()}
        for text in (plain, shown)
    )
    assert (after["norm_power"], after["smoothing"]) == ("1.0", "0.5")
    assert before.items() - {("extensions", "[]")} <= after.items()


def test_the_keys_of_an_extension_are_unknown_without_it(here):
    status, _, err = here("norm_power=1")
    assert status == 2
    assert err.startswith("mtfl: norm_power=1: unknown key")


def test_one_cell_of_a_single_file(here, mine):
    status, _, err = here("extensions=[mine.py]", *words(QUICK, network="two_layer_mine"), "hydra.run.dir=out")
    assert status == 0, err
    table = mtfl_jax.load("out")
    (source,) = extend.loaded()
    assert source.startswith("mine:")
    assert table["extensions"].tolist() == [source]
    assert table["network"].tolist() == ["two_layer_mine"]
    (run,) = Path("out/runs").iterdir()
    assert json.loads(run.read_text())["extensions"] == [source]
    assert source in Path("out/report/index.html").read_text()


AXES = ["tasks=random_quadratic,balanced", "data=laplace,gaussian", "norm_power=0,1"]


def assert_whole(table):
    found = table.sort_values(["tasks", "data", "norm_power"])[["tasks", "data", "norm_power"]].to_numpy().tolist()
    tasks, data = ("balanced", "random_quadratic"), ("gaussian", "laplace")
    assert found == [[t, x, power] for t in tasks for x in data for power in (0, 1)]
    assert table["id"].is_unique
    assert (table["status"] == "ok").all()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_jobs_of_launchers_sweep_report_and_load(mtfl, launcher):
    """All kinds at once; without the probe where only the launcher differs."""
    fixed = {**OURS, **SIZES, "num_tasks": 2} | ({} if launcher == "basic" else {"probe": "none", "measure": "rank"})
    fixed = {key: value for key, value in fixed.items() if key not in ("tasks", "data")}
    jobs = ["hydra.sweeper.jobs=2", f"hydra/launcher={launcher}", "hydra.sweep.dir=out"]
    done = mtfl("-m", f"extensions=[{NAME}]", *words(fixed), *AXES, *jobs)
    assert done.returncode == 0, done.stderr
    table = mtfl_jax.load("out")
    assert_whole(table)
    assert table["effective_rank"].between(1, 8).all()
    (source,) = set(table["extensions"])
    assert source.startswith(f"{NAME}:")
    assert [json.loads(run.read_text())["extensions"] for run in Path("out/runs").iterdir()] == [[source]] * 2
    assert source in Path("out/report/index.html").read_text()
    if launcher == "basic":
        assert table["downstream_error"].notna().all()
        assert table["task_error"].notna().all()
        assert_of_the_api(table, {**fixed, "tasks": OURS["tasks"], "data": OURS["data"]})


def assert_of_the_api(table, cell):
    """The row of a cell is that of Python."""
    alone = mtfl_jax.run(extensions=NAME, **cell, norm_power=1)
    own = table[(table["tasks"] == cell["tasks"]) & (table["data"] == cell["data"]) & (table["norm_power"] == 1)]
    pd.testing.assert_frame_equal(own.reset_index(drop=True), alone, rtol=1e-4)


SLOWLY = """
import sys
from mtfl_jax.sweeps import compiling, engine, store
compiling.CHUNK_SECONDS = store.WRITE_SECONDS = 0.0  # a part a training: many moments at which to be killed
from mtfl_jax.app import main
main()
"""


@pytest.mark.slow
def test_killed_and_resumed(mtfl):
    command = [f"extensions=[{NAME}]", *words(QUICK, algorithm=OURS["algorithm"], data="laplace", measure="rank")]
    command = ["-m", *command, "norm_power=0,1", "seed=range(0,100)", "hydra.sweep.dir=out"]
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *command], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(Path("out").glob("parts/*.parquet"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = mtfl_jax.load("out")
    assert 0 < len(before) < 200
    done = mtfl(*command)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} there before" in done.stdout
    table = mtfl_jax.load("out")
    assert len(table) == 200
    assert table["id"].is_unique
    assert set(before["id"]) <= set(table["id"])
    assert not table.duplicated(["norm_power", "seed"]).any()


def test_a_study_may_name_its_extensions(here):
    """Its YAML chooses from them and sweeps over their settings, and a module beside it says what it finds."""
    quick = ["measure=rank", "num_tasks=1", *words({"d": 8, "width": 8, "n2": 32, "steps": 2})]
    status, out, err = here("--config-dir", str(EXAMPLE / "conf"), "study=example", *quick, "hydra.run.dir=out")
    assert status == 0, err
    table = mtfl_jax.load("out")
    assert table.groupby("norm_power")["seed"].agg(list).to_dict() == {0.0: [0, 1], 1.0: [0, 1]}
    assert set(table["data"]) == {"laplace"}
    assert table["extensions"].str.startswith(f"{NAME}:").all()
    page = Path("out/report/index.html").read_text()
    assert f"{NAME}:" in page
    assert "effective rank is lowest" in " ".join(out.split())
    assert "The rank of normalised steps" in page


def test_the_command_line_goes_before_the_extensions_of_a_study(here):
    args = ["--config-dir", str(EXAMPLE / "conf"), "study=example", "extensions=[missing]"]
    assert here(*args)[2].startswith("mtfl: extensions=missing: there is no such module")


def test_a_law_of_an_extension_is_fitted():
    from mtfl_jax.analysis import fits

    extend.load(NAME)
    x = np.asarray([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]]).T
    found = fits.fit(pd.DataFrame({"x": x[:, 0], "y": 2 + 0.5 * np.log(x[:, 0])}), "x", "y", "logarithmic")
    assert found.parameters["a"] == pytest.approx(2, rel=1e-3)
    assert found.parameters["b"] == pytest.approx(0.5, rel=1e-3)
