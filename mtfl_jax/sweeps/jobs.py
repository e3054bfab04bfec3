"""What the fused sweeper does with a command line: one job whose axes are the sweeps, or several shares of it."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus

from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError


class JobsFailedError(Exception):
    """Failures of several jobs, one a line."""


def overrides_of_jobs(
    arguments: Sequence[str], params: Mapping[str, Any], split: Sequence[str], jobs: int, loader: ConfigLoader
) -> list[list[str]]:
    """The overrides of every job.

    Sweeps over a cell's fields become `sweep.axes` of each job, in their own text, so that a range stays a range;
    those named in `split`, and sweeps over anything else, become separate jobs, each of them in `jobs` shares.
    Raises ConfigError.
    """
    if jobs < 1:
        raise ConfigError("hydra.sweeper.jobs", jobs, "allowed: an integer from 1")
    parser = OverridesParser.create(config_loader=loader)
    texts = [f"{key}={value}" for key, value in params.items()]
    # What the command line says of a key replaces what params say.
    parsed = {override.key_or_group: override for override in parser.parse_overrides([*texts, *arguments])}
    fixed, alternatives = [], []
    for key in split:
        if key not in parsed or not parsed[key].is_sweep_override():
            raise ConfigError("hydra.sweeper.split", list(split), "allowed: keys that are swept")
    for key, override in parsed.items():
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif key in split or key not in FIELDS:
            alternatives.append([f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()])
        else:
            fixed.append(f"++sweep.axes.{key}={_quoted(_sweep_text(override))}")
    shares = [[f"++sweep.part={k}/{jobs}"] for k in range(1, jobs + 1)] if jobs > 1 else [[]]
    return [[*fixed, *choice, *share] for choice in itertools.product(*alternatives) for share in shares]


def _sweep_text(override: Override) -> str:
    """What a sweep is swept over, as the user wrote it; a glob of group names as the names."""
    if override.is_discrete_sweep() and "glob(" in str(override.input_line):
        return ",".join(override.sweep_string_iterator())
    return str(override.input_line).split("=", 1)[1]


def _quoted(text: str) -> str:
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def launch(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    split: Sequence[str],
    jobs: int,
    *,
    hydra_context: Any,
    task_function: Any,
    config: Any,
) -> list[Any]:
    """Run the jobs of a command line on the chosen launcher; their returns. Raises JobsFailedError that names every
    failed job.
    """
    loader = hydra_context.config_loader
    batch = overrides_of_jobs(arguments, params, split, jobs, loader)
    for overrides in batch:
        loader.load_sweep_config(config, overrides)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=hydra_context, task_function=task_function, config=config
    )
    returns = launcher.launch(batch, initial_job_idx=0)
    # Of a failed job JobReturn.return_value would print a line of its own before it raises.
    failures = [f"job {i}: {job._return_value}" for i, job in enumerate(returns) if job.status == JobStatus.FAILED]
    if failures:
        raise JobsFailedError("\n".join(failures))
    return list(returns)
