"""What is measured of chunks, kept, and taken by later sweeps."""

import json
from types import SimpleNamespace

import pytest

from mtfl_jax import compose
from mtfl_jax.sweeps import calibration, compiling, engine, machine, store
from mtfl_jax.sweeps.compiling import Chunk
from mtfl_jax.sweeps.grid import Grid
from mtfl_jax.sweeps.plan import plan

SMALL = {"d": 8, "r": 2, "width": 8, "num_tasks": 2, "n1": 16, "n2": 16, "measure": "recovery", "probe": "none"}


def grid_of(**axes):
    return Grid({**SMALL, "seed": "range(0,40)", **axes}, compose.composed)


@pytest.fixture
def an_accelerator(monkeypatch, tmp_path):
    """One CPU device as an accelerator, and an empty cache."""
    devices = (machine.devices()[0],)
    monkeypatch.setattr(compiling, "devices", lambda: devices)
    monkeypatch.setattr(compiling, "accelerator", lambda: True)
    monkeypatch.setattr(calibration, "cache_home", lambda: tmp_path)


def rates(monkeypatch, of):
    """Measure chunks by a table, and compile nothing."""
    monkeypatch.setattr(compiling, "fitting", lambda job, chunk, share: (None, chunk, 0.0, 0.0))
    monkeypatch.setattr(calibration, "_rate", lambda grid, bucket, executable, chunk: of(chunk))


def test_what_is_fastest_is_kept_and_taken(an_accelerator, monkeypatch):
    grid = grid_of(algorithm="oracle", kernel="auto")
    (bucket,) = plan(grid)
    rates(monkeypatch, lambda chunk: 100 * (chunk.kernel == "pallas") - chunk.batch)
    assert calibration.chunk_of(bucket) == compiling.modelled(bucket) == Chunk(40, 40)
    found = calibration.calibrate(grid, bucket, 0.8)
    assert [one.chunk for one in found][:2] == [Chunk(40, 10, "pallas"), Chunk(40, 40, "pallas")]
    assert {one.chunk.kernel for one in found} == {"plain", "pallas"}
    assert calibration.chunk_of(bucket) == Chunk(40, 10, "pallas")
    # A larger grid of the same program, in chunks of its own size; another program keeps the model's.
    (more,) = plan(grid_of(algorithm="oracle", kernel="auto", seed="range(0,1000)"))
    assert calibration.chunk_of(more) == Chunk(1030, 10, "pallas")
    (other,) = plan(grid_of(algorithm="oracle"))
    assert calibration.chunk_of(other) == Chunk(40, 40)
    rates(monkeypatch, lambda chunk: chunk.batch)
    calibration.calibrate(grid, bucket, 0.8)
    assert calibration.chunk_of(bucket) == Chunk(40, 40)


def test_a_kernel_is_tried_only_where_it_is_left_open(an_accelerator):
    (bucket,) = plan(grid_of(algorithm="oracle", kernel="pallas"))
    assert {chunk.kernel for chunk in calibration.candidates(bucket)} == {"plain"}  # which the program does not ask


def test_on_a_core_there_is_nothing_to_choose(monkeypatch, tmp_path):
    monkeypatch.setattr(calibration, "cache_home", lambda: tmp_path)
    (bucket,) = plan(grid_of(algorithm="oracle", kernel="auto"))
    assert calibration.candidates(bucket) == [compiling.modelled(bucket)]
    assert calibration.chunk_of(bucket).batch == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"KEY": 3}', '{"KEY": {"batch": "4", "kernel": "plain"}}', '{"KEY": {"batch": 4, "kernel": "x"}}'],
)
def test_a_file_that_says_something_else_is_passed_over(an_accelerator, text):
    (bucket,) = plan(grid_of(algorithm="oracle"))
    path = calibration.file()
    path.parent.mkdir()
    path.write_text(text.replace("KEY", calibration._key(compiling.job_of(bucket))))
    assert calibration.chunk_of(bucket) == compiling.modelled(bucket)


def test_files_are_of_a_kind_of_device(an_accelerator, monkeypatch):
    names = set()
    for kind in ("NVIDIA H100 80GB HBM3", "TPU v5 lite"):
        monkeypatch.setattr(compiling, "devices", lambda kind=kind: (SimpleNamespace(device_kind=kind),))
        names.add(calibration.file().name)
    assert names == {"nvidia-h100-80gb-hbm3.json", "tpu-v5-lite.json"}


@pytest.mark.slow
def test_a_plan_that_calibrates_says_what_it_measured(here, an_accelerator, tmp_path, monkeypatch):
    """And a sweep takes it."""
    cells = ["-m", *(f"{key}={value}" for key, value in SMALL.items()), "algorithm=oracle", "kernel=auto"]
    cells += ["seed=range(0,40)"]
    status, out, err = here(*cells, "plan=calibrate")
    assert (status, err) == (0, "")
    (line,) = [line for line in out.replace("\n", " ").split("program 1, ") if "trainings a second" in line]
    assert line.startswith("trainings a second and device: ")
    (kept,) = json.loads(calibration.file().read_text()).values()
    assert kept["trainings_a_second"] > 0
    assert line.count("at once") == 4
    took = []
    real = engine.fitting
    monkeypatch.setattr(engine, "fitting", lambda job, chunk, share: took.append(chunk) or real(job, chunk, share))
    grid = grid_of(algorithm="oracle", kernel="auto")
    assert engine.execute(grid, store.Memory()).done == 40
    assert [(chunk.batch, chunk.kernel) for chunk in took] == [(kept["batch"], kept["kernel"])]
