"""Trackers against the real libraries, offline: what their own readers give back is what the table says."""

import json
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time

import documented
import pytest

import mtfl_jax
from mtfl_jax.analysis import trackers
from mtfl_jax.sweeps import tables

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
if os.environ.get("MTFL_REQUIRE_TRACKERS") != "1":
    pytest.skip("run where MTFL_REQUIRE_TRACKERS=1 asks for it", allow_module_level=True)
SMALL = {"d": 8, "r": 2, "width": 4, "num_tasks": 2, "n1": 16, "n2": 16, "n_test": 8}
AXES = {"algorithm": "alternating", "steps": 3, "n_down": [4, 8], "lr_w": [0.1, 1e30]}
COMMAND = [f"{key}={value}" for key, value in SMALL.items()]
COMMAND += ["algorithm=alternating", "steps=3", "n_down=4,8", "lr_w=0.1,1e30"]


@pytest.fixture(params=trackers.TRACKERS)
def to(request, tmp_path, monkeypatch):
    """A tracker's name, where its library is, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    uses(monkeypatch, tmp_path)
    return request.param


def uses(monkeypatch, folder):
    """Let the libraries keep all in a folder."""
    for name, value in {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/own.db"}.items():
        monkeypatch.setenv(name, value)


def read(to, home):
    """What a library's own reader finds: by training's key its name, parameters, status, whether it ended well, and
    (metric, step, value) in order.
    """
    return {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}[to](home)


def read_tensorboard(home):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    found = {}
    for folder in home.iterdir():
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
        parameters = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
        status = parameters.pop("status")
        metrics = [(tag, e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
        name, _, key = folder.name.rpartition(" ")
        found[key] = (name, parameters, status, None, metrics)
    return found


def read_mlflow(home):
    from mlflow import MlflowClient

    client, found = MlflowClient(), {}
    (experiment,) = client.search_experiments(filter_string=f"name = '{home}'")
    for run in client.search_runs([experiment.experiment_id]):
        history = [one for name in run.data.metrics for one in client.get_metric_history(run.info.run_id, name)]
        metrics = [(one.key, one.step, one.value) for one in history]
        tags, ended = run.data.tags, run.info.status == "FINISHED"
        assert run.info.status in ("FINISHED", "FAILED")
        found[tags[trackers.TAG]] = (tags["mlflow.runName"], run.data.params, tags["status"], ended, metrics)
    return found


def records(file):
    """The records of a .wandb file, which is a log of LevelDB's form behind a header of 7 bytes: wandb's Python has no
    reader of it. A record is one or several chunks, none over the end of a block: checksum, length, type, bytes.
    """
    data, at, whole = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # Whole, or the last chunk.
            yield whole
            whole = b""


def read_wandb(home):
    from wandb.proto import wandb_internal_pb2

    found = {}
    for file in sorted(home.glob("offline-run-*/*.wandb")):
        name, parameters, status, ended, metrics = "", {}, "", None, []
        key = file.stem.removeprefix("run-")
        for record in map(wandb_internal_pb2.Record.FromString, records(file)):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name or name
                parameters |= {one.key: json.loads(one.value_json) for one in record.run.config.update}
            elif kind == "history":
                row = {one.key or one.nested_key[0]: json.loads(one.value_json) for one in record.history.item}
                metrics += [(tag, row["step"], value) for tag, value in row.items() if tag != "step" and tag[0] != "_"]
            elif kind == "summary":
                update = {one.key or one.nested_key[0]: json.loads(one.value_json) for one in record.summary.update}
                status = update.get("status", status)
            elif kind == "exit":
                ended = record.exit.exit_code == 0
        before = found.get(key, ("", {}, "", None, []))
        parameters = {tag: value for tag, value in parameters.items() if tag != "_wandb"}
        found[key] = (name, parameters, status, ended, before[4] + metrics)
    return found


def check(to, home, table, axes=None, again=False):
    """Everything that is there is what a table's trainings say, and the other way round; each once, unless a later
    sweep has sent it `again`, with the rows of another n_down.
    """
    table.attrs["axes"] = axes or []
    found, expected = read(to, home), {one.key: one for one in trackers.trainings(table)}
    assert found.keys() == expected.keys()
    for key, one in expected.items():
        name, parameters, status, ended, metrics = found[key]
        assert status == one.status
        assert ended in (None, one.status == "ok")
        assert axes is None or name == one.name
        if to == "mlflow":  # Which keeps them as text.
            assert parameters == {tag: str(value) for tag, value in one.settings.items()}
        else:
            assert parameters == one.settings
        wanted = {(tag, step): value for step, own in one.measured.items() for tag, value in own.items()}
        have = {(tag, step): value for tag, step, value in metrics}
        assert have.keys() == wanted.keys()
        assert again or len(metrics) == len(wanted)
        for place, value in wanted.items():
            # TensorBoard's scalars are single; other programs round differently.
            tolerance = 1e-4 if again else 2**-23 if to == "tensorboard" else 0
            assert math.isclose(have[place], value, rel_tol=tolerance)


def home_of(to, folder):
    """Where `mtfl-track` puts what it sends, by default."""
    return {"tensorboard": folder / "tensorboard", "mlflow": folder.name, "wandb": folder.parent / "wandb"}[to]


def track(*arguments, cwd, **more):
    code = "from mtfl_jax.__main__ import track; track()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a sweep of one seed, and that folder after one of two."""
    folder = tmp_path_factory.mktemp("made")
    for name, seeds in (("few", "0"), ("more", "0,1")):
        command = [sys.executable, "-m", "mtfl_jax", "-m", *COMMAND, f"seed={seeds}", "hydra.sweep.dir=sweep"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        shutil.copytree(folder / "sweep", folder / name)
    return folder


def test_a_sweep_with_trackers_and_more_of_it_later(tmp_path, monkeypatch):
    """All at once, as programs take their time to compile."""
    monkeypatch.chdir(tmp_path)
    uses(monkeypatch, tmp_path)
    there = trackers.TRACKERS
    home = {"tensorboard": tmp_path / "tensorboard", "mlflow": "sweep", "wandb": tmp_path / "wandb"}

    def swept(**axes):
        given = [getattr(trackers, name)(tmp_path / name if name == "tensorboard" else "sweep") for name in there]
        return mtfl_jax.sweep(**{**SMALL, **AXES, **axes}, on_rows=given, folder=tmp_path / "rows")

    swept(seed=0)
    table = swept(seed=[0, 1])
    assert set(table["status"]) == {"ok", "diverged"}
    for name in there:
        check(name, home[name], table)
    # A training's further rows go to its run.
    table = swept(seed=[0, 1], n_down=[4, 8, 12])
    for name in there:
        check(name, home[name], table, again=True)


def test_a_folder_is_sent_once_and_what_is_new_later(made, to, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(made / "few", folder)
    first = track("sweep", "--to", to, cwd=tmp_path)
    assert (first.returncode, first.stdout.partition(" to ")[0]) == (0, "12 rows sent"), first.stderr
    check(to, home_of(to, folder), mtfl_jax.load(folder), ["n_down", "lr_w"])
    shutil.copytree(made / "more", folder, dirs_exist_ok=True)
    later = track("sweep", "--to", to, cwd=tmp_path)
    assert later.stdout.partition(" to ")[0] == "12 rows sent", later.stderr
    check(to, home_of(to, folder), mtfl_jax.load(folder))
    none = track("sweep", "--to", to, cwd=tmp_path)
    assert none.stdout.startswith("0 rows sent to ")
    assert none.stdout.endswith(" (--again sends those that were before)\n")
    check(to, home_of(to, folder), mtfl_jax.load(folder))


def test_more_trainings_than_asked_for_are_sent_by_the_next_call(made, to, tmp_path):
    folder = shutil.copytree(made / "more", tmp_path / "sweep")
    for said in ("the first 3 trainings are there", ""):
        done = track("sweep", "--to", to, "--most", "3", cwd=tmp_path)
        assert done.returncode == 0
        assert said in done.stderr
    check(to, home_of(to, folder), mtfl_jax.load(folder))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["tensorboard"], indirect=True)
def test_a_sweep_is_followed_to_its_end(to, tmp_path):
    """Two processes write there, one of which is killed and run again."""
    folder = tmp_path / "sweep"
    sweep = [sys.executable, "-m", "mtfl_jax", "-m", *documented.LONG, f"hydra.sweep.dir={folder}", "seed=range(0,100)"]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(sweep, **quiet)
    while len(tables.files_of(folder)) < 2:
        assert first.poll() is None
        time.sleep(0.1)
    code = "from mtfl_jax.__main__ import track; track()"
    following = subprocess.Popen(
        [sys.executable, "-c", code, "sweep", "--to", to, "--follow"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    time.sleep(1)
    second = subprocess.Popen(sweep, **quiet)
    while len(list((folder / "runs").iterdir())) < 2:
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(240) == 0
    said, _ = following.communicate(timeout=120)
    table = mtfl_jax.load(folder)
    assert len(table) == 100
    assert said.startswith("100 rows sent to ")
    check(to, home_of(to, folder), table, ["seed"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none", "--to", "tensorboard"], "none: no runs there; allowed: the folder of a sweep"),
        (["sweep", "--to", "neptune"], "--to=neptune: allowed: tensorboard, mlflow, wandb"),
        (["sweep", "--to", "wandb", "--most", "0"], "--most=0: allowed: an integer from 1"),
        (["sweep"], "the following arguments are required: --to"),
    ],
)
def test_what_cannot_be_is_a_line(made, arguments, said):
    done = track(*arguments, cwd=made)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"mtfl-track: {said}\n")


def test_a_server_that_is_not_there_is_a_line(made):
    environment = {**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = track("sweep", "--to", "mlflow", "--out", "http://127.0.0.1:9", cwd=made, env=environment)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("mtfl-track: --to=mlflow: MlflowException: ")
