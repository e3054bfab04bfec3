"""README.md and the manual as a reader follows them: links, examples in order, and what they print."""

import ast
import os
import re
import shlex
import site
import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from mtfl_jax import extend
from mtfl_jax.analysis.studies import STUDIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r"…|\b[A-Z]{2,}\b")
"""What a reader is to put something else for."""
FIRST_SUCCESS = 40
"""Lines of a screen."""


class Step(NamedTuple):
    """Something that a reader does: `run` a command of words, `write` a file, or `python` code; with the comment."""

    kind: str
    words: tuple[str, ...]
    comment: str = ""


def commands(text):
    """The commands of a shell block, one after the other, with the comment behind them."""
    for line in text.replace("\\\n", " ").splitlines():
        comment = re.search(r"\s#\s.*$", line)
        for one in line[: comment.start() if comment else None].split("&&"):
            if words := shlex.split(one):
                yield Step("run", tuple(words), comment.group() if comment else "")


def steps(text):
    """What the fenced blocks say to do, in order. Code whose first lines name a file is that file."""
    for kind, block in FENCE.findall(text):
        named = re.match(r"(?:# @.*\n)?# (\S+\.(?:py|yaml))\b", block)
        if kind == "":
            yield from commands(block)
        elif named:
            yield Step("write", (named.group(1), block))
        elif kind == "python" and "s3://" not in block:  # tests/test_s3.py has a bucket.
            yield Step("python", (block,))


def spans():
    """The code within sentences and tables."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", README))


STEPS = list(steps(README))
MANUAL = {path.stem: list(steps(path.read_text(encoding="utf-8"))) for path in sorted((ROOT / "docs").rglob("*.md"))}
INLINE = [
    step for text in spans() if text.startswith("mtfl ") and not PLACEHOLDER.search(text) for step in commands(text)
]
EVERY = [*STEPS, *INLINE, *(step for page in MANUAL.values() for step in page)]
CELLS = [step.words[1:] for step in EVERY if step.kind == "run" and step.words[0] == "mtfl"]
CELLS = [arguments for arguments in dict.fromkeys(CELLS) if "--hydra-help" not in arguments]
"""The arguments of every `mtfl`, less Hydra's own help, which would turn on Hydra's log in this process."""


def write(folder, step):
    """The file of a step, in a folder."""
    path = folder / step.words[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(step.words[1])


def made_by(step):
    """The folders and files that a step makes."""
    if step.kind == "write":
        return {step.words[0]}
    text = " ".join(step.words)
    return set(re.findall(r"hydra\.(?:run|sweep)\.dir=(\S+)", text) + re.findall(r'folder="([^"]+)"', text))


def read_by(step):
    """The folders and files that a step reads."""
    if step.kind == "write":
        return set()
    if step.kind == "python":
        return set(re.findall(r'load\("([^"]+)"', step.words[0]))
    name, *arguments = step.words
    if name in ("mtfl-status", "mtfl-report"):
        return {word for word in arguments if not word.startswith("-")}
    if name in ("mtfl-fit", "mtfl-plot", "mtfl-clean"):
        return set(arguments[:1])
    if name == "python" and arguments[0] != "-c":
        return set(arguments[:1])
    return {file for word in arguments for file in re.findall(r"extensions=\[([^]]+)\]", word)}


def test_it_begins_with_the_two_commands():
    _, first = FENCE.findall(README)[0]
    run, check = (line.split("  ")[0] for line in first.splitlines())
    assert run == "pip install -e . && mtfl study=quickstart"
    assert check == "pip install -e '.[test]' && pytest"


def test_the_first_success_is_on_the_first_screen():
    assert "wrote …/report/index.html" in README.splitlines()[:FIRST_SUCCESS]


@pytest.fixture
def no_extension_afterwards():
    """Take out what an example registered."""
    known = dict(STUDIES)
    yield
    for name in STUDIES.keys() - known.keys():
        del STUDIES[name]
    extend.unload()


@pytest.mark.usefixtures("no_extension_afterwards")
@pytest.mark.parametrize("arguments", CELLS, ids=" ".join)
def test_every_mtfl_command_can_be_planned(here, tmp_path, arguments):
    """Here, and without running: launchers and what a shell puts in are left out."""
    page = next(page for page in (STEPS + INLINE, *MANUAL.values()) if ("mtfl", *arguments) in [s.words for s in page])
    for step in page:
        if step.kind == "write":
            write(tmp_path, step)
    kept = [word for word in arguments if not re.search(r"^plan=|^cluster=|\$|^hydra.launcher", word)]
    asked = () if any("help" in word for word in arguments) else ("plan=only",)
    status, out, err = here(*kept, *asked)
    assert (status, err) == (0, "")
    assert not asked or re.search(r"cells? to run", " ".join(out.split()))


@pytest.mark.parametrize("page", MANUAL)
def test_python_of_the_manual_parses(page):
    for step in MANUAL[page]:
        if step.kind == "python" or step.words[0].endswith(".py"):
            compile(step.words[-1], page, "exec")


def test_every_example_reads_what_one_above_it_made():
    made = set()
    for step in STEPS:
        made |= made_by(step) if step.kind == "python" else set()  # It makes, then reads.
        for name in read_by(step):
            assert name in made or str(Path(name).parent) in made or (ROOT / name).exists(), (name, step)
        made |= made_by(step)
    assert {"out/a", "my_science.py"} <= made  # The patterns find what is there.


def test_each_of_ten_things_takes_three_lines():
    """Commands, and statements other than imports."""
    text = (ROOT / "docs/how-to/ten.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(sections) == 10
    for section in sections:
        counts = []
        for kind, block in FENCE.findall(section):
            if kind == "python" and not block.startswith("# lab.py"):
                counts.append(sum(not isinstance(one, ast.Import) for one in ast.parse(block).body))
            elif kind != "python":
                counts.append(len(list(commands(block))))
        assert 1 <= sum(counts) <= 3, section
        assert re.search(r"\]\(\w+\.md", section), section


def test_every_extra_is_one():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for names in re.findall(r"'\.\[([\w,]+)\]'", README) for name in names.split(",")}
    assert {"test", "cuda13"} <= named <= set(extras)


def heading_anchor(heading):
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_link_leads_somewhere():
    anchors = {heading_anchor(line.lstrip("# ")) for line in FENCE.sub("", README).splitlines() if line.startswith("#")}
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        assert (ROOT / file).exists(), link
        assert file or anchor in anchors, link


def test_every_file_that_is_named_exists():
    """Of the code in sentences: whatever begins with a folder of the repository."""
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = re.findall(rf"(?:^|\s)((?:{folders}|\.ci)/[^\s`;]*)", "\n".join(spans()))
    assert len(named) > 5
    for name in named:
        if not PLACEHOLDER.search(name) and not name.startswith("build/"):
            assert (ROOT / name).exists(), name


LONG = {"cells": 1000, "seconds": 60}
"""A command of more than this, by its own plan, is run with its first two seeds; where that is too, it is planned."""


def is_long(plan):
    """Whether a plan says that its command takes long."""
    said = " ".join(plan.split())
    cells = int(re.search(r"([\d,]+) cells? to run", said).group(1).replace(",", ""))
    minutes, seconds = re.search(r"and (?:(\d+)m)?(\d+)s to run", said).groups()
    return cells > LONG["cells"] or 60 * int(minutes or 0) + int(seconds) > LONG["seconds"]


def shortened(words, planned):
    """A command of `mtfl` as the rule of LONG has it; planned(words): its plan."""
    if any(word.startswith("plan=") or "help" in word for word in words):
        return words
    fewer = tuple(re.sub(r"^seed=range\(0,\d+\)$", "seed=range(0,2)", word) for word in words)
    for tried in (words, fewer):
        if not is_long(planned(tried)):
            return tried
    return (*words, "plan=only")


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """Run a command in an empty folder, in an environment that has the package from its wheel and what it depends on
    from this one: the finished process.
    """
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder / "venv", with_pip=True)
    scripts = folder / "venv" / "bin"
    own = sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    (Path(own) / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    subprocess.run([scripts / "pip", "install", "-q", "--no-deps", ROOT], check=True)
    # As a user's shell has it: neither the tests' flags nor a path to the checkout.
    dropped = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "COLUMNS": "200",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    here = folder / "here"
    here.mkdir()

    def run(*words):
        return subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, timeout=900)

    run.here = here
    return run


@pytest.fixture
def planned(user, here, monkeypatch):
    """The plan of a command of `mtfl` in the user's folder, made in this process."""

    def plan(words):
        monkeypatch.chdir(user.here)
        status, out, err = here(*words[1:], "plan=only")
        assert (status, err) == (0, ""), words
        return out

    return plan


def follow(steps, user, planned):
    """Do the steps in order. What installs or tests the checkout is not run: the tests are run by it. Nor is what a
    shell fills in, or a launcher needs a cluster for.
    """
    for step in steps:
        if step.kind == "write":
            write(user.here, step)
            continue
        words = ("python", "-c", *step.words) if step.kind == "python" else step.words
        if words[0] in ("pip", "pytest", "pre-commit") or any("$" in word for word in step.words):
            continue
        if words[0] == "mtfl":
            words = shortened(words, planned)
        done = user(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        wrote = [user.here / path for path in re.findall(r"^wrote (.+)$", done.stdout, re.MULTILINE)]
        assert all(path.exists() for path in wrote), (words, done.stdout)
        for path in re.findall(r"[\w-]+(?:/[\w.-]+)+/?", step.comment):
            assert (user.here / path).exists(), (words, path)
        if words[0] == "mtfl" and wrote and not {"-m", "--config-dir"} & {*words} and "study=quickstart" not in words:
            last = pd.read_parquet(next(path for path in wrote if path.name == "results.parquet")).iloc[-1]
            assert last["downstream_error"] < 0.3, words


@pytest.mark.slow
@pytest.mark.usefixtures("no_extension_afterwards")
def test_every_example_of_the_readme_does_what_is_said(user, planned):
    where = user("python", "-c", "import mtfl_jax; print(mtfl_jax.__file__)").stdout
    assert str(user.here.parent / "venv") in where
    follow(STEPS, user, planned)


OWN = [page for page, steps in MANUAL.items() if {step.words for step in steps} - {step.words for step in STEPS}]
"""Pages that do more than README.md."""


@pytest.mark.slow
@pytest.mark.usefixtures("no_extension_afterwards")
@pytest.mark.parametrize("page", OWN)
def test_every_example_of_the_manual_does_what_is_said(user, planned, page):
    for step in MANUAL[page]:
        for name in re.findall(r"^import (\w+)", step.words[-1], re.MULTILINE) if step.kind == "python" else ():
            pytest.importorskip(name)
    follow(MANUAL[page], user, planned)
