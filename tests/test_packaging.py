"""What the package says of itself."""

import importlib.resources
import tomllib

import pytest
import yaml

import mtfl_jax


@pytest.fixture
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def test_the_version_is_said_once(project, repository):
    assert mtfl_jax.__version__ == project["version"]
    assert yaml.safe_load((repository / "CITATION.cff").read_text())["version"] == project["version"]


def test_the_licence_is_the_citations(project, repository):
    assert yaml.safe_load((repository / "CITATION.cff").read_text())["license"] == project["license"]
    assert "Apache License" in (repository / "LICENSE").read_text()


def test_it_is_typed():
    assert importlib.resources.files("mtfl_jax").joinpath("py.typed").is_file()


def test_the_public_names_are_there():
    assert all(getattr(mtfl_jax, name) for name in mtfl_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mtfl_jax.nothing
