"""The records of laws: what each says of itself, and a law of a user's own."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
from test_fits import EXAMPLE, campaign

from mtfl_jax.analysis import fits, models
from mtfl_jax.analysis.models import MODELS, Model
from mtfl_jax.records import registering


@pytest.fixture
def _registry(monkeypatch):
    """The laws registered so far, put back afterwards; tests register as an extension does."""
    monkeypatch.setattr(models, "MODELS", copy.deepcopy(MODELS))
    monkeypatch.setattr(fits, "MODELS", models.MODELS)
    with registering("tests:0"):
        yield


def logarithmic():
    """y = a · (log x)^exponent, a law of a user's own."""

    def of_x(x):
        return np.stack([np.ones_like(x), np.log(np.log(x))], -1)

    return Model(
        name="logarithmic",
        doc="a power of log x",
        parameters=("a", "exponent"),
        positive=("a",),
        exponents=("exponent",),
        text="{y} = {a} · log({x})^{exponent}",
        curve=models.linear(of_x),
        starts=models.least_squares(of_x),
        bounds=models.unbounded(2),
    )


def logs():
    table, _ = campaign("power", 8, parameters={"a": 1.0, "exponent": 0.0})
    return table.assign(y=2 * np.log(table["d"]) ** 1.5 * table["y"])


@pytest.mark.usefixtures("_registry")
def test_a_registered_law_is_fitted_like_a_built_in_one():
    with pytest.raises(ValueError, match=r"^model=logarithmic: allowed: auto, power, "):
        fits.fit(logs(), "d", "y", "logarithmic")
    models.MODELS.register(logarithmic())
    fit = fits.fit(logs(), "d", "y", "logarithmic", bootstraps=50)
    assert fit.supported, fit.why
    assert fit.formula() == "y = 2 · log(d)^1.5"
    assert fit.value("exponent") == "1.5 (1.5 to 1.5)"
    np.testing.assert_allclose(fit.predict([np.e]), 2)
    assert fits.fit(logs(), "d", "y", "auto", bootstraps=20).model == "logarithmic"
    with pytest.raises(ValueError, match="not positive"):
        fits.fit(logs().assign(d=-1.0), "d", "y", "logarithmic")


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "power"}, "model power: there is one already; allowed: another name"),
        ({"name": "auto"}, "model auto: the word means something else; allowed: another name"),
        ({"name": "constant"}, "model constant: the word means something else; allowed: another name"),
        ({"exponents": ("slope",)}, "model=logarithmic: exponents=slope; allowed: a, exponent"),
        ({"floors": ("exponent",)}, "model=logarithmic: floors and places are positive; allowed: a"),
    ],
)
def test_a_record_that_cannot_be_is_refused(change, said):
    with pytest.raises(ValueError, match=r"^model[ =]") as caught:
        models.MODELS.register(dataclasses.replace(logarithmic(), **change))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert set(models.MODELS) == set(MODELS)


BROKEN = [models.broken(breaks, free) for breaks in (1, 2, 3) for free in ((), ("floor",), ("floor", "sharpness"))]
EVERY = [*MODELS.values(), models.CONSTANT, logarithmic(), *BROKEN[1:]]


def places(model):
    """θ of a law (p,) near its example, and x (variables, n)."""
    values = EXAMPLE.get(model.name, {"a": 2.0, "exponent": 1.5, "c": 0.3})
    if model in BROKEN[1:]:
        of_breaks = {"exponent": -0.3, "break": 20.0, "sharpness": 0.4}
        values |= {name: of_breaks[name.partition("_")[0]] for name in model.parameters if name not in ("c", "a")}
    theta = np.array([np.log(values[name]) if name in model.positive else values[name] for name in model.parameters])
    return theta, np.stack([np.array([8.0, 16, 32, 64, 128]), np.array([4.0, 64, 9, 25, 50])])[: model.variables]


@pytest.mark.parametrize("model", EVERY, ids=lambda model: model.name)
def test_derivatives_are_those_of_the_curve(model):
    theta, x = places(model)
    log_y, slopes = model.curve(theta[None], x)
    assert log_y.shape == (1, x.shape[1])
    assert slopes.shape == (1, x.shape[1], len(theta))
    step = 1e-6
    for at in range(len(theta)):
        ends = [model.curve((theta + sign * step * np.eye(len(theta))[at])[None], x)[0][0] for sign in (1, -1)]
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slopes[0, :, at], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("model", EVERY, ids=lambda model: model.name)
def test_starts_lie_within_bounds_and_many_at_once_are_each_alone(model):
    theta, x = places(model)
    log_y = model.curve(theta[None], x)[0][0]
    starts, bounds = model.starts(x, log_y), model.bounds(x, log_y)
    assert starts.shape == (len(starts), len(theta))
    assert bounds.shape == (2, len(theta))
    assert np.isfinite(starts).all()
    assert (bounds[0] < bounds[1]).all()
    together = model.curve(starts, x)[0]
    for own, row in zip(starts, together, strict=True):
        np.testing.assert_allclose(model.curve(own[None], x)[0][0], row, rtol=1e-12)


@pytest.mark.parametrize("model", EVERY, ids=lambda model: model.name)
def test_texts_name_every_parameter(model):
    values = {name: f"<{name}>" for name in model.parameters}
    numbers = dict.fromkeys(model.parameters, 2.0)
    text = model.text.format(y="why", x="ex", x2="other", **values, **model.words(numbers))
    assert text.startswith("why = ")
    shown = [name for name in model.parameters if f"<{name}>" in text]
    # What a law's own words say of a parameter need not be said again.
    assert set(model.parameters) - set(shown) <= set((*model.exponents, *model.places) if model.words(numbers) else ())
    assert model.doc


@pytest.mark.usefixtures("_registry")
def test_a_law_of_three_variables():
    def of_x(x):
        return np.stack([np.ones_like(x[0]), *np.log(x)], -1)

    def curve(theta, x):
        columns = of_x(x)
        return theta @ columns.T, np.broadcast_to(columns, (len(theta), *columns.shape))

    law = Model(
        name="product",
        doc="a product of powers",
        parameters=("a", "p", "q", "s"),
        positive=("a",),
        exponents=("p", "q", "s"),
        text="{y} = {a} · {x}^{p} · {x2}^{q} · {x3}^{s}",
        curve=curve,
        starts=lambda x, log_y: np.linalg.lstsq(of_x(x), log_y, rcond=None)[0][None],
        bounds=models.unbounded(4),
        variables=3,
    )
    models.MODELS.register(law)
    axes = {"u": [1.0, 4, 16], "v": [2.0, 8, 32], "w": [3.0, 9, 27], "seed": range(2)}
    index = pd.MultiIndex.from_product(axes.values(), names=axes)
    table = index.to_frame(index=False)
    table["y"] = 5 * table["u"] ** 0.5 / table["v"] * table["w"] ** 2
    fit = fits.fit(table, ("u", "v", "w"), "y", "product", bootstraps=20)
    assert fit.formula() == "y = 5 · u^0.5 · v^-1 · w^2"
    np.testing.assert_allclose(fit.predict(table[["u", "v", "w"]].to_numpy().T), table["y"], rtol=1e-6)
    twice = fits.fit(table.assign(w=table["u"] * 3), ("u", "v", "w"), "y", "product", bootstraps=20)
    assert "u and v and w go together" in twice.why
