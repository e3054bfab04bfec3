"""Commands that README.md and docs/ show for other machines, made small enough for this one."""

import os
import re
import shlex
import subprocess
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


def script(file, word, home, more=(), **less):
    """For bash, the lines of the only block of a file that has a word, but for those that install: tests run in what is
    installed. Its $HOME or /shared is elsewhere, and `mtfl` has few cells that are small, and `more` words: `less` says
    of the beginnings of words what they become.
    """
    text = (ROOT / file).read_text().replace("\\\n", " ").replace("$HOME", str(home)).replace("/shared", str(home))
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if word in block.split()]
    lines = [line for line in block.splitlines() if not line.startswith("pip install ")]
    return "\n".join(["set -e", *(_small(line, more, less) for line in lines)])


def _small(line, more, less):
    words = shlex.split(line, comments=True)
    if "mtfl" not in words:
        return line
    words = [LESS.get(each, each) for each in words if each != TASKS]
    words = [
        next((f"{key}={value}" for key, value in less.items() if each.startswith(f"{key}=")), each) for each in words
    ]
    return shlex.join([*filter(None, words), *NODE, *more])


def environment(**more):
    """The environment with this Python's commands first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}


def run(script, home, **more):
    """What a script has printed that ended well, in an environment with more variables."""
    given = {"cwd": home, "env": environment(**more), "capture_output": True, "text": True}
    done = subprocess.run(["bash", "-c", script], check=False, **given)
    assert done.returncode == 0, done.stderr
    return done.stdout
