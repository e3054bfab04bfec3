"""The benchmarks' bookkeeping: what counts as slower, and the tables of both READMEs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def measured(rate, wall, ratio):
    own = {"rate": rate, "wall_seconds": wall, "compile_seconds": 1.0, "sgemm_peak": 3e11}
    return {"alternating": {"gaussian": own, "ratio_to_best_torch": {"gaussian": ratio}}}


# A rate and a ratio may fall by a sixth, a time may grow by a fifth: a factor of 1.2.
@pytest.mark.parametrize(
    ("now", "said"),
    [
        ((8.4, 11.9, 1.68), []),
        ((8.3, 10, 2), ["alternating.gaussian.rate: 10 before, 8.3 now"]),
        ((10, 12.1, 2), ["alternating.gaussian.wall_seconds: 10 before, 12.1 now"]),
        ((10, 10, 1.6), ["alternating.ratio_to_best_torch.gaussian: 2 before, 1.6 now"]),
        ((30, 1, 9), []),
    ],
)
def test_slower_by_more_than_the_threshold(now, said):
    run = module(ROOT / "benchmarks" / "run.py")
    assert run.slower(measured(10, 10, 2), measured(*now)) == said
    assert run.slower({}, measured(*now)) == []


def test_the_readmes_show_what_was_measured():
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_table.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
