"""Commands that README.md and docs/ show for other machines, made small enough for this one."""

import os
import shlex
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
COMMANDS = [name.removeprefix("mtfl-") for name in SCRIPTS if name != "mtfl"]
"""What stands after mtfl- in the commands beside `mtfl`; the functions of mtfl_jax.__main__ are called so."""
LESS = {"seed=range(0,64)": "seed=range(0,2)", "-n8": "-n2", "--gpus-per-task=1": ""}
NODE = ["width=16", "n1=64", "n2=64", "n_test=32", "n_down=16"]
TASKS = "num_tasks=1,16,256"
LONG = ["algorithm=alternating", "steps=50", "d=64", "width=256", "num_tasks=32", "n1=512", "n2=512"]
LONG += ["measure=recovery", "probe=none", "measure_at=last"]
"""Cells that take long enough for something to happen to a sweep of them."""


def command(file, word, home, **less):
    """The words of the only line of a file with `mtfl` and this word, its $HOME or /shared elsewhere, of few cells that
    are small: `less` says of the beginnings of words what they become.
    """
    text = (ROOT / file).read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if {"mtfl", word} <= set(line.split())]
    words = shlex.split(line.replace("$HOME", str(home)).replace("/shared", str(home)), comments=True)
    words = [LESS.get(each, each) for each in words if each != TASKS]
    words = [
        next((f"{key}={value}" for key, value in less.items() if each.startswith(f"{key}=")), each) for each in words
    ]
    return [*filter(None, words), *NODE]


def environment(**more):
    """The environment with this Python's commands first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}
