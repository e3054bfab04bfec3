"""Hydra's hook for `hydra/sweeper: fused`. Hydra imports this in every Hydra app of the environment, so it holds no
logic and imports nothing heavy: the work is in mtfl_jax.sweeps.jobs.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper


@dataclass
class FusedSweeperConf:
    """`split`: axes that make separate jobs; `jobs`: equal shares of the grid, a job each; `detach`: whether jobs in a
    queue are not awaited; `params`: axes.
    """

    _target_: str = "hydra_plugins.mtfl_jax_sweeper.FusedSweeper"
    split: list[str] = field(default_factory=list)
    jobs: int = 1
    detach: bool = False
    params: dict[str, Any] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="fused", node=FusedSweeperConf, provider="mtfl_jax")


class FusedSweeper(Sweeper):
    """Keeps value sweeps as the axes of one job."""

    def __init__(self, split: list[str], jobs: int, params: dict[str, Any] | None, detach: bool = False) -> None:
        self.split, self.jobs, self.detach, self.params = split, jobs, detach, params or {}

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep what `sweep` needs; Hydra calls it first."""
        self.context = {"hydra_context": hydra_context, "task_function": task_function, "config": config}

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs of the command line."""
        from mtfl_jax.sweeps import jobs

        return jobs.launch(arguments, self.params, self.split, self.jobs, detach=self.detach, **self.context)
