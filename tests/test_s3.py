"""Sweeps into a bucket of an S3-compatible server on this machine (moto's), as from the command line."""

import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import documented
import pytest

import mtfl_jax
from mtfl_jax.sweeps import notes, places, tables

pytestmark = pytest.mark.slow
if os.environ.get("MTFL_REQUIRE_S3") != "1":
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")

SWEEP = documented.LONG
SETTINGS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def bucket():
    """A new bucket, and what reaches its server in the environment."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SETTINGS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    server.stop()


def mtfl(*arguments, cwd, **more):
    command = [sys.executable, "-m", "mtfl_jax", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300, **more)


def entry(name, *arguments):
    code = f"from mtfl_jax.__main__ import {name}; {name}()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_a_sweep_that_is_killed_while_it_writes_goes_on(bucket, tmp_path):
    """kill -9 at any moment: an object is there whole or not at all."""
    folder = f"{bucket}/killed"
    command = [sys.executable, "-c", KILLED, "-m", *SWEEP, "seed=range(0,300)", f"folder={folder}"]
    for seconds in (0.0, 0.15, 0.4, 0.7):
        sweep = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, end = len(tables.files_of(places.place(folder))), time.monotonic() + 120
        while len(tables.files_of(places.place(folder))) < before + 3:
            assert sweep.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(seconds)
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
        assert len(mtfl_jax.load(folder)) >= 3  # Every part that is there can be read: a warning is an error.
    done = mtfl("-m", *SWEEP, "seed=range(0,300)", f"folder={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = mtfl_jax.load(folder)
    assert sorted(table["seed"]) == list(range(300))
    assert len(mtfl_jax.load(f"{folder}/results.parquet")) == 300
    assert [note["state"] for note in notes.read(places.place(folder))].count("running") == 4
    assert list(tmp_path.iterdir()) == []  # Hydra's folder of it was empty.
    some = mtfl_jax.sweep(**dict(text.split("=") for text in SWEEP), seed=[0, 299])
    own = table[table["seed"].isin([0, 299])].sort_values("seed").reset_index(drop=True)
    assert own["subspace_distance"].tolist() == some["subspace_distance"].tolist()


KILLED = """
import sys
from mtfl_jax.sweeps import compiling, store
compiling.CHUNK_SECONDS = store.STORE_SECONDS = 0.0  # a part a chunk: many moments at which to be killed
from mtfl_jax.__main__ import main
sys.argv[0] = "mtfl"
main()
"""


def test_jobs_and_all_commands(bucket, tmp_path):
    folder = f"{bucket}/some where/jobs"
    axes = [*SWEEP, "d=16,32,64", "seed=range(0,20)"]
    done = mtfl("-m", *axes, f"folder='{folder}'", "cluster=joblib", "hydra.sweeper.jobs=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"2 jobs on joblib into {folder}" in done.stdout
    assert f"wrote {folder}/report/index.html" in done.stdout
    assert len(mtfl_jax.load(f"{folder}/results.parquet")) == 60
    assert entry("status", folder).stdout.startswith("60 rows, 60/60 cells, 2 processes")
    assert f"wrote {folder}/report/index.html" in entry("report", folder).stdout
    again = entry("report", folder, folder, "--out", str(tmp_path / "two"))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "two" / "index.html").exists()
    for table in (folder, f"{folder}/results.parquet"):
        fitted = entry("fit", table, "--x", "d", "--y", "subspace_distance")
        assert "exponent" in fitted.stdout, fitted.stderr
    planned = mtfl("-m", *axes[:-1], "seed=range(0,30)", f"folder='{folder}'", "plan=only", cwd=tmp_path)
    assert "60 of 90 cells there before" in planned.stdout


def test_the_lines_of_the_manual(bucket, tmp_path):
    """Of docs/how-to/bucket.md, with few and small cells."""
    text = (documented.ROOT / "docs" / "how-to" / "bucket.md").read_text().replace("s3://my-bucket", bucket)
    shell, python = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("bash", "python"))
    lines = [shlex.split(line, comments=True) for line in shell.splitlines() if line.startswith("mtfl")]
    assert [name for name, *_ in lines] == ["mtfl", "mtfl-status", "mtfl-report"]
    done = mtfl(*lines[0][1:], *SWEEP[1:2], "n1=64", "n2=64", "width=16", "seed=0", "probe=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "9 rows" in entry("status", *lines[1][1:]).stdout
    assert entry("report", *lines[2][1:-1], str(tmp_path / "a")).returncode == 0
    assert (tmp_path / "a" / "index.html").exists()
    found = {}
    exec(python, found)
    assert len(found["table"]) == 9


def test_shares_that_nobody_drives(bucket, tmp_path):
    """Two hosts of a pod that have no file system in common."""
    folder, shares = f"{bucket}/pod", []
    for k in ("0", "1"):
        environment = {**os.environ, "TPU_WORKER_ID": k, "TPU_WORKER_HOSTNAMES": "a,b"}
        command = [sys.executable, "-m", "mtfl_jax", "-m", *SWEEP, "seed=range(0,40)", "sweep.part=auto"]
        shares.append(
            subprocess.Popen([*command, f"folder={folder}"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        )
    assert [share.wait(240) for share in shares] == [0, 0]
    assert len(mtfl_jax.load(f"{folder}/results.parquet")) == 40
    assert places.there(places.place(f"{folder}/report/index.html"))


@pytest.mark.parametrize(
    ("url", "environment", "said"),
    [
        ("s3://no-such-bucket/a", {}, "there is no bucket no-such-bucket; allowed: a bucket that is there"),
        ("s3://bucket/a", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "EndpointConnectionError: Could not connect"),
        ("s3://bucket/[a]", {}, "allowed: a URL without * ? [ ]"),
        ("s3:///a", {}, "allowed: s3://BUCKET/…"),
    ],
)
def test_what_cannot_be_reached_is_a_line(bucket, tmp_path, url, environment, said):
    done = mtfl(*SWEEP, f"folder='{url}'", cwd=tmp_path, env={**os.environ, **environment})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mtfl: folder={url}: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []
