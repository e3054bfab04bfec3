"""Configuration: every YAML composes, every bad value is refused in one line, fields declare their kind."""

import re

import documented
import hydra
import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import mtfl_jax
from mtfl_jax import compose as composing
from mtfl_jax.compose import cell_values, conf_dir, from_keywords
from mtfl_jax.config import FIELDS, Config
from mtfl_jax.fields import ConfigError
from mtfl_jax.learning.measures import MEASURES
from mtfl_jax.learning.tasks import FAMILIES
from mtfl_jax.names import GROUPS, OTHER_KEYS, SWEEP_KEYS

CHOICES = sorted(
    (path.parent.name, path.stem) for path in conf_dir().glob("*/*.yaml") if path.parent.name in (*GROUPS, "study")
)


def composed(*overrides):
    with initialize_config_dir(str(conf_dir()), **composing.HYDRA_BASE):
        return compose("config", list(overrides))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_yaml_composes_to_a_valid_cell(group, choice):
    whole = composed(f"{group}={choice}")
    assert whole[group] == choice
    cell = Config.from_mapping(cell_values(whole))
    assert getattr(cell, group, choice) == choice
    cell.program()


def test_every_allowed_choice_has_a_yaml_and_no_other():
    for group in GROUPS:
        with pytest.raises(ConfigError) as refused:
            FIELDS[group].type.parse(group, "no such choice")
        names = str(refused.value).split("allowed: ")[1].split(", ")
        assert sorted(names) == [choice for of, choice in CHOICES if of == group]


def test_the_readme_names_every_choice_and_column(repository):
    text = (repository / "README.md").read_text()
    for group in GROUPS:
        (row,) = re.findall(rf"^\| `{group}` \| (.*) \|$", text, re.MULTILINE)
        assert sorted(re.findall(r"`(\w+)`", row)) == sorted(FIELDS[group].type.names())
    columns = text.split("| column | meaning |")[1].split("\n\n")[0]
    assert set(MEASURES) <= set(re.findall(r"`(\w+)`", columns))


def test_help_says_what_every_key_and_choice_is(here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    status, said, err = here("d=32", "--help")
    assert (status, err) == (0, "")
    for words in ("study=quickstart", "mtfl -m ", *(f"mtfl-{name} FOLDER" for name in documented.COMMANDS)):
        assert words in said
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    defaults = composed("d=32")
    for name, field in FIELDS.items():
        if name in GROUPS:
            assert f"  {name}: {field.doc}" in said
            assert all(f"  {choice} " in said for choice in field.type.names())
        else:
            _, value, doc = lines[name].split(maxsplit=2)
            assert doc == f"{field.doc} ({field.type.allowed()})"
            if OmegaConf.is_list(defaults[name]):
                assert f"[{','.join(defaults[name])}]".startswith(value.rstrip("…"))
            else:
                assert yaml.safe_load(value) == defaults[name], name
    for name, doc in {**OTHER_KEYS, **{f"sweep.{key}": doc for key, doc in SWEEP_KEYS.items()}}.items():
        assert name in ("study", "size", "sweep", "hydra") or lines[name].endswith(f"  {doc}")


def test_help_fits_the_terminal(here, monkeypatch):
    for width in (80, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        keys = here("--help")[1].split("\nKeys ")[1].split("\n\n")[0].splitlines()[1:]
        assert max(map(len, keys)) <= width
        assert len(keys) > len(FIELDS)


def test_config_yaml_holds_exactly_the_fields():
    assert sorted(cell_values(composed())) == sorted(FIELDS)


def test_keywords_compose_as_the_command_line_does():
    given = ["algorithm=alternating", "data=rademacher", "d=32", "lr_w=0.5", "n_down=[16,64]"]
    by_hand = Config.from_mapping(cell_values(composed(*given)))
    assert from_keywords(algorithm="alternating", data="rademacher", d=32, lr_w=0.5, n_down=[16, 64]) == by_hand
    assert by_hand.loss == "logistic"
    assert from_keywords(algorithm="alternating", loss="hinge").loss == "hinge"


def test_keywords_leave_the_callers_hydra_alone():
    with initialize_config_dir(str(conf_dir()), **composing.HYDRA_BASE):
        composing._whole.cache_clear()
        from_keywords(d=32)
        assert hydra.compose("config", ["d=16"]).d == 16


BAD = [
    ({"r": 65, "d": 64}, "r=65", "d=64"),
    *[({name: 0}, f"{name}=0", "integer from 1") for name, field in FIELDS.items() if field.kind == "shape"],
    ({"n_down": []}, "n_down=[]", "non-empty"),
    ({"n_down": [8, 8]}, "n_down=[8, 8]", "distinct"),
    ({"d": "abc"}, "d=abc", "integer"),
    ({"d": 64.5}, "d=64.5", "integer"),
    ({"d": True}, "d=True", "integer"),
    ({"seed": -1}, "seed=-1", "from 0 to 2147483647"),
    ({"seed": 2**31}, "seed=2147483648", "from 0 to 2147483647"),
    ({"r": 40, "tasks": "balanced"}, "r=40", "r <= 16"),
    ({"r": 40, "tasks": "uniform"}, "r=40", "halfspace, parity, majority"),
    ({"r": 40, "tasks": "parity", "probe_tasks": "balanced"}, "r=40", "probe_tasks=balanced"),
    ({"dimension": 3}, "dimension=3", "unknown key"),
    ({"numtasks": 3}, "numtasks=3", "did you mean num_tasks?"),
    ({"data": "cauchy"}, "data=cauchy", "gaussian, "),
    ({"loss": "l1"}, "loss=l1", "hinge"),
    ({"loss": "mixture", "losses": ["hinge", "l1"]}, "losses=l1", "hinge"),
    ({"optimizer": "adamm"}, "optimizer=adamm", "did you mean adam?"),
    *[
        ({name: bad}, f"{name}={bad}", "a finite number from 0")
        for name in ("lr_a", "lr_w", "lr", "weight_decay", "nuisance_scale")
        for bad in (-1.0, float("nan"), float("inf"), "fast")
    ],
    ({"label_noise": 0.6}, "label_noise=0.6", "to 0.5"),
    ({"momentum": 1.5}, "momentum=1.5", "to 1"),
    ({"shared_inputs": 1}, "shared_inputs=1", "true, false"),
    ({"algorithm": "alternating", "loss": "linear"}, "loss=linear", "weight_decay > 0"),
    ({"algorithm": "joint", "loss": "mixture", "losses": ["linear", "hinge"]}, "loss=mixture", "weight_decay > 0"),
    ({"algorithm": "alternating", "weight_decay": None}, "weight_decay=None", "alternating"),
    ({"algorithm": "joint", "steps": 10, "measure_at": [5, 11]}, "measure_at=[5, 11]", "steps=10"),
    ({"algorithm": "joint", "measure_at": "often"}, "measure_at=often", "log, last"),
    ({"algorithm": "population", "data": "rademacher"}, "data=rademacher", "gaussian"),
    ({"algorithm": "population", "loss": "hinge"}, "loss=hinge", "linear"),
    ({"algorithm": "population", "r": 11}, "r=11", "r <= 10"),
    ({"remove_degree": "linear", "loss": "hinge"}, "loss=hinge", "remove_degree=linear: linear, mse, huber, mae"),
    (
        {"algorithm": "joint", "remove_degree": "constant", "loss": "mse", "samples": "batches"},
        "samples=batches",
        "remove_degree=constant: fresh, fixed",
    ),
    ({"head_init": "pairs"}, "head_init=pairs", "zero, random, symmetric"),
    ({"clip": 0}, "clip=0", "null, or a finite number"),
    ({"parity_size": 5, "tasks": "parity"}, "parity_size=5", "r=4"),
    ({"parity_size": "some"}, "parity_size=some", "any, all"),
]


@pytest.mark.parametrize(("values", "named", "allowed"), BAD)
def test_bad_values_are_refused_in_one_line(values, named, allowed):
    with pytest.raises(ConfigError) as refused:
        mtfl_jax.run(**values)
    message = str(refused.value)
    assert message.startswith(f"{named}: ")
    assert allowed in message
    assert "\n" not in message


def test_knobs_leave_the_program_alone_and_shapes_change_it():
    """Of every field that bears on some cell: a base in which it does, found among a few."""
    bases = [
        from_keywords(algorithm="alternating", label_noise=0.1, bias="random", tasks="parity", split_batch=True),
        from_keywords(algorithm="joint", label_noise=0.1, bias="random", tasks="parity", optimizer="momentum"),
        from_keywords(algorithm="joint", samples="batches"),
        from_keywords(algorithm="joint", stop_when="train_loss", init_scale=2, head_init="random"),
        from_keywords(algorithm="joint", lr_d_power=0.5, lr_n_power=0.5, lr_width_power=0.5, clip=1),
        from_keywords(probe="finetune"),
        from_keywords(probe="head"),
        *(from_keywords(data=law, label_noise=0.1) for law in FIELDS["data"].type.names()),
    ]
    bases += [
        from_keywords(algorithm="joint", tasks=name, probe_tasks=name, loss="huber", target_noise=0.1)
        for name, family in FAMILIES.items()
        if family.real
    ]
    for name, field in FIELDS.items():
        own = [base for base in bases if name in base.used and (name != "label_noise" or base.label_noise)]
        if field.kind == "knob":
            assert own, name
            # 0 is another program for noise alone: labels without it draw none.
            values = [value for value in field.type.examples() if value or not name.endswith("_noise")]
            assert {base.replace(**{name: value}).program() for base in own for value in values} == {
                base.program() for base in own
            }
        elif field.kind == "shape":
            value = (8,) if name == "n_down" else 3
            assert all(base.replace(**{name: value}).program() != base.program() for base in own), name


def test_only_what_bears_on_a_row_is_used():
    used = from_keywords(algorithm="random_features").used
    assert {"lr_a", "n1"} <= used
    assert not {"lr_w", "n2", "steps", "momentum"} & used
    assert "basis" in from_keywords(algorithm="joint", optimizer="adam").used
    assert "basis" not in from_keywords(algorithm="joint", optimizer="sgd").used


def test_a_rule_that_reads_what_it_does_not_declare_is_refused():
    from mtfl_jax.fields import Rule, UndeclaredError

    values = from_keywords().values
    honest = Rule(frozenset({"d", "r"}), lambda c: c.d - c.r)
    assert honest(values) == 60
    with pytest.raises(UndeclaredError, match="reads r without declaring it"):
        Rule(frozenset({"d"}), lambda c: c.d - c.r)(values)
    with pytest.raises(UndeclaredError, match="reads r without declaring it"):
        Rule(frozenset({"d"}), honest.within)(values)


def test_recorded_steps():
    def record(**values):
        return from_keywords(algorithm="alternating", **values).record

    assert record(steps=20) == (1, 2, 4, 8, 16, 20)
    assert record(steps=16) == (1, 2, 4, 8, 16)
    assert record(steps=1) == (1,)
    assert record(steps=20, measure_at="last") == (20,)
    assert record(steps=20, measure_at=[10, 5]) == (5, 10)
    assert from_keywords(algorithm="one_step").record == (1,)
    assert from_keywords(algorithm="oracle").record == (0,)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_refused_value_says_what_was_meant(name):
    """Of every setting: a name misspelt, several values for one, a slice for a sweep."""
    parse, example = FIELDS[name].type.parse, next(iter(FIELDS[name].type.examples()))
    if FIELDS[name].type.names is not None:
        for choice in FIELDS[name].type.names():
            with pytest.raises(
                ConfigError, match=rf"^{name}={choice}x: allowed: .*{choice}.* \(did you mean {choice}\?\)$"
            ):
                parse(name, f"{choice}x")
    if FIELDS[name].type.column is int and not isinstance(example, tuple):
        for text, meant in {"0:8": "0,8", "0..9": "0,10", "2 - 4": "2,5", "0:8:2": "0,8,2"}.items():
            with pytest.raises(ConfigError, match=rf"is a sweep: mtfl -m '{name}=range\({meant}\)'$"):
                parse(name, text)
    with pytest.raises(ConfigError, match=f"^{name}="):
        parse(name, "0:8")
    if not isinstance(example, tuple) and name != "measure_at":
        with pytest.raises(ConfigError, match=rf"several are a sweep: mtfl -m {name}=.*mtfl_jax\.sweep\({name}=\["):
            parse(name, [example, example])


@pytest.mark.parametrize("name", sorted(name for name, field in FIELDS.items() if field.type.column is int))
def test_an_integer_may_be_written_as_a_float(name):
    try:
        whole, number = FIELDS[name].type.parse(name, 1000), 1000
    except ConfigError:
        whole, number = FIELDS[name].type.parse(name, 3), 3
    for value in (float(number), np.float32(number), np.int64(number)):
        found = FIELDS[name].type.parse(name, value)
        assert found == whole
        assert all(type(one) is int for one in (found if isinstance(found, tuple) else [found]))
        assert FIELDS[name].hashed(found) == FIELDS[name].hashed(whole)
    for value in (1000.5, float("inf"), float("nan"), True, "1000"):
        with pytest.raises(ConfigError):
            FIELDS[name].type.parse(name, value)
