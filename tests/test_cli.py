"""The `mtfl` command as a user meets it."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

import mtfl_jax
from mtfl_jax.analysis import page
from mtfl_jax.learning.measures import MEASURES

SMALL = ["d=16", "r=2", "width=16", "num_tasks=4", "n1=256", "n2=256", "n_down=32", "n_test=128"]


BAD = [
    (["r=65"], "r=65", "d=64"),
    (["d=0"], "d=0", "integer from 1"),
    (["width=0"], "width=0", "integer from 1"),
    (["d=abc"], "d=abc", "integer"),
    (["d=1,2"], "d=1,2", "mtfl -m 'd=1,2'"),
    (["d=8", "seed=range(0,8)"], "seed=range(0,8)", "mtfl -m 'seed=range(0,8)'"),
    (["losses=hinge,squared"], "losses=hinge,squared", "a list is 'losses=[hinge,squared]'"),
    (["d=[8,16]"], "d=[8, 16]", "mtfl_jax.sweep(d=[8,16])"),
    (["-m", "seed=0..9"], "seed=0..9", "range(0,10)"),
    (["algorithm=one_stepp"], "algorithm=one_stepp", "did you mean one_step?"),
    (["studdy=quickstart"], "studdy=quickstart", "did you mean study?"),
    (["sweep.zipp=[d]"], "sweep.zipp=[d]", "did you mean sweep.zip?"),
    (["+sweep.zipp=[d]"], "sweep.zipp=['d']", "did you mean zip?"),
    (["r=40"], "r=40", "r <= 16"),
    (["dd=3"], "dd=3", "allowed"),
    (["+dd=3"], "dd=3", "allowed"),
    (["~d"], "d=(missing)", "required"),
    (["data=cauchy"], "data=cauchy", "allowed: "),
    (["study=all"], "study=all", "quickstart"),
    (["size=huge"], "size=huge", "default, large"),
    (["study=quickstart", "size=large"], "size=large", "allowed with study=quickstart: default"),
    (["loss=l1"], "loss=l1", "hinge"),
    (["lr_w=nan"], "lr_w=nan", "finite"),
    (["lr_a=-1"], "lr_a=-1", "from 0"),
    (["n_down=0"], "n_down=0", "integer from 1"),
    (["algorithm=alternating", "loss=linear"], "loss=linear", "weight_decay"),
    (["hydra.sweep.dir=x"], "hydra.sweep.dir=x", "hydra.run.dir"),
    (["study=quickstart", "sweep.axes.seed=range(0,2)"], "seed=range(0,2)", "mtfl -m 'seed=range(0,2)'"),
    (["hydra.run.dir=/dev/null/x"], "/dev/null/x", "written"),
    (["hydra.run.dir=/proc/x"], "/proc/x", "written"),
    (["d=3", "--config-dir", "/nowhere", "r=2"], "/nowhere", ""),
    (["-m", "d=8,16", "--cfg", "job"], "--multirun", "Only one of"),
    (["hydra.run.dirr=x"], "hydra.run.dirr=x", "--hydra-help"),
    (["study=quickstart", "sweep.axes.dd=[1,2]"], "dd", "allowed"),
    (["study=quickstart", "width=0"], "width=0", "integer from 1"),
    (["-m", "d=8,16", "r=4,9"], "r=9", "sweep.where"),
    (["-m", "d=8,x"], "d=x", "integer from 1"),
    (["-m", "data=gaussian,cauchy"], "data=cauchy", "rademacher"),
    (["-m", "seed=interval(0,1)"], "seed=interval(0,1)", "sweep.sample=N"),
    (["-m", "d=8,16", "sweep.zip=[[d,n1]]"], "sweep.zip=[d,n1]", "equal length"),
    (["-m", "d=8,16", "sweep.where=['d < 4']"], "sweep.where", "leaves no cell"),
    (["sweep.where=['__import__(1)']"], "sweep.where=__import__(1)", "allowed"),
    (["-m", "d=8,16", "hydra.sweeper.split=[r]"], "hydra.sweeper.split", "swept"),
    (["-m", "d=8,16", "hydra.sweeper.jobs=0"], "hydra.sweeper.jobs=0", "from 1"),
    (["sweep.part=3/2"], "sweep.part=3/2", "k/K"),
    (["memory_fraction=0"], "memory_fraction=0", "above 0"),
    (["plan=some"], "plan=some", "run, only"),
    (["sweep.axis={}"], "sweep.axis", "allowed"),
]


PACKAGE = "# @package _global_\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "its YAML must begin with the line '# @package _global_'"),
        (PACKAGE, "its YAML does not say so; allowed: a line study: own"),
        (f"{PACKAGE}study: quickstart\n", "its YAML says study: quickstart; allowed: study: own"),
    ],
)
def test_a_study_that_is_not_called_what_it_is_is_refused(here, tmp_path, text, line):
    (tmp_path / "mine" / "study").mkdir(parents=True)
    (tmp_path / "mine" / "study" / "own.yaml").write_text(f"{text}sweep:\n  axes:\n    seed: [0, 1]\n")
    status, out, err = here("--config-dir", "mine", "study=own", *SMALL)
    assert (status, out, err) == (2, "", f"mtfl: study=own: {line}\n")


def test_a_study_of_a_yaml_alone_is_a_grid(here, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine" / "study").mkdir(parents=True)
    text = f"{PACKAGE}study: own\nsweep:\n  axes:\n    seed: [0, 1]\n"
    (tmp_path / "mine" / "study" / "own.yaml").write_text(text)
    status, out, err = here("--config-dir", "mine", "study=own", *SMALL, "hydra.run.dir=a")
    assert (status, err) == (0, "")
    assert "findings" not in out
    monkeypatch.setattr(sys, "argv", ["mtfl-report", "a"])
    page.main()
    assert capsys.readouterr() == ("wrote a/report/index.html\n", "")


@pytest.mark.parametrize(("args", "named", "allowed"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(here, tmp_path, args, named, allowed):
    status, out, err = here(*args)
    assert status not in (0, None)
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert named in err
    assert allowed in err
    assert list(tmp_path.iterdir()) == []


def test_bad_input_from_the_shell(mtfl, tmp_path):
    done = mtfl("r=65")
    assert done.returncode == 2
    assert done.stderr == "mtfl: r=65: allowed: at most d=64\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_full_error_shows_where_it_rose(mtfl):
    assert "Traceback" in mtfl("r=65", HYDRA_FULL_ERROR="1").stderr


def test_one_cell_writes_its_row_and_what_it_ran_on(here, tmp_path):
    status, out, _ = here(*SMALL, "hydra.run.dir=a")
    assert status == 0
    table = mtfl_jax.load("a")
    assert "subspace_distance" in out
    assert "wrote a/results.parquet" in out.replace(f"{tmp_path}/", "")
    assert len(table) == 1
    assert list(table.columns[-len(MEASURES) - 1 : -1]) == list(MEASURES)
    row = table.iloc[0]
    assert (row["d"], row["data"], row["tasks"], row["algorithm"], row["step"]) == (
        16,
        "rademacher",
        "balanced",
        "one_step",
        1,
    )
    (run,) = (tmp_path / "a" / "runs").iterdir()
    facts = json.loads(run.read_text())
    assert facts["versions"]["jax"]
    assert facts["matmul_precision"] == "highest"
    assert facts["devices"]
    assert facts["config"]["width"] == 16
    assert facts["state"] == "finished"
    again = mtfl_jax.run(d=16, r=2, width=16, num_tasks=4, n1=256, n2=256, n_down=32, n_test=128)
    pd.testing.assert_frame_equal(table, again)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "a" / "results.parquet"), pd.read_parquet(*(tmp_path / "a" / "parts").iterdir())
    )


def test_a_folder_grows_and_loses_nothing(here, tmp_path):
    assert here(*SMALL, "hydra.run.dir=a")[0] == 0
    assert here(*SMALL, "seed=1", "hydra.run.dir=a")[0] == 0
    _, out, _ = here(*SMALL, "seed=1", "hydra.run.dir=a")
    assert "1 there before" in out
    assert sorted(mtfl_jax.load("a")["seed"]) == [0, 1]


@pytest.mark.slow
def test_quickstart_tiny(here, tmp_path):
    sizes = [text for text in SMALL if not text.startswith("num_tasks")]
    status, out, _ = here("study=quickstart", *sizes, "num_tasks=8", "hydra.run.dir=q")
    assert status == 0
    assert "directions" in out
    assert "supported: " in out
    for name in ("results.parquet", "report/index.html", "report/quickstart.png", "report/quickstart.pdf"):
        assert (tmp_path / "q" / name).stat().st_size > 1000
        assert name in out
    made = {path: path.read_bytes() for path in (tmp_path / "q" / "report").iterdir()}
    assert {path: path.read_bytes() for path in page.write(tmp_path / "q").files} == made
    table = mtfl_jax.load("q")
    # A key given on the command line replaces the study's axis.
    assert len(table) == 3 * 8
    assert set(table["num_tasks"]) == {8}
    assert set(table["data"]) == {"rademacher"}


def test_a_report_that_fails_loses_nothing(here, monkeypatch):
    def broken(folder):
        raise KeyError("no\nink")

    monkeypatch.setattr(page, "write", broken)
    status, out, _ = here(*SMALL, "hydra.run.dir=a")
    assert status == 0
    assert "no report: KeyError" in out
    assert "mtfl-report" in out
    assert "subspace_distance" in out
    assert "results.parquet" in out
    assert len(mtfl_jax.load("a")) == 1


@pytest.mark.slow
def test_several_steps_and_samples_give_several_rows(here):
    status, _, _ = here(*SMALL[:-2], "n_down=[8,16]", "n_test=64", "algorithm=joint", "steps=5", "hydra.run.dir=a")
    assert status == 0
    table = mtfl_jax.load("a")
    assert list(zip(table["step"], table["n_down"], strict=True)) == [(s, n) for n in (8, 16) for s in (1, 2, 4, 5)]
    one = mtfl_jax.run(d=16, r=2, width=16, num_tasks=4, n2=256, n_down=8, n_test=64, algorithm="joint", steps=5)
    pd.testing.assert_frame_equal(table[table["n_down"] == 8].reset_index(drop=True), one)


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the folder"):
        mtfl_jax.load(tmp_path)


def test_engine_uses_one_device_a_core(tmp_path):
    code = "from mtfl_jax.sweeps import host, machine; assert len(machine.devices()) == host.cores()"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
