"""The configs of the shares of a sweep, which differ in `sweep.part` alone, are composed once.

Hydra takes a tenth of a second and more for each, the sweeper and a launcher both ask for all of them, and Ray's and
the basic one do so one after the other in one process.
"""

import pickle
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf, read_write

PART = "++sweep.part="
"""How the last override of a share begins."""


class Composed:
    """A loader of Hydra's that remembers what it composes for the jobs of a sweep. Elsewhere it is Hydra's own."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._known: dict[tuple[bool, tuple[str, ...]], tuple[bytes, str]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process, which may be on another host, composes by itself.
        return _itself, (self._loader,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """The config of one job, as Hydra has it, and its own to change."""
        last = sweep_overrides[-1] if sweep_overrides else ""
        is_share = last.startswith(PART)
        shared = is_share, tuple(sweep_overrides[:-1] if is_share else sweep_overrides)
        if shared not in self._known:
            made = self._loader.load_sweep_config(master_config, list(sweep_overrides))
            self._known[shared] = pickle.dumps(made), last
        text, first = self._known[shared]
        found: DictConfig = pickle.loads(text)
        if last != first:
            _become(found, first, last)
        OmegaConf.copy_cache(from_config=master_config, to_config=found)
        return found


def _itself(loader: ConfigLoader) -> ConfigLoader:
    return loader


def _become(config: DictConfig, first: str, last: str) -> None:
    """Make the config of one share that of another, by the overrides that say which."""
    job, tasks = config.hydra.job, config.hydra.overrides.task
    separator = job.config.override_dirname.kv_sep
    with read_write(config):
        config.sweep.part = last.removeprefix(PART)
        tasks[list(tasks).index(first)] = last
        named = (text.replace("=", separator) for text in (first, last))
        job.override_dirname = job.override_dirname.replace(*named)
