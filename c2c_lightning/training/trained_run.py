"""One of the runs that a trainer trains: as a rule the only one, or one of a group that share their prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.loggers import Logger
from torch import Tensor

from c2c_lightning.tracking import MLflowTracker, find_tracker
from c2c_lightning.training.checkpoints import run_folder

if TYPE_CHECKING:
    from c2c_lightning.training.module import C2CModule


@dataclass
class SharedRun:
    """One of the runs that train together.

    Attributes:
        label: stands in the names of all that is its own.
        module: what is trained.
        folder: of its run.
        loggers: of its run.
        ended: whether it was stopped before the others.
    """

    label: str
    module: C2CModule
    folder: Path
    loggers: list[Logger]
    ended: bool = False


@dataclass
class TrainedRun:
    """What callbacks need to know of a run.

    Attributes:
        trainer: that trains it.
        module: what it trains.
        folder: of the run.
        loggers: of this run alone.
        label: stands in the names of all that is this run's own where a trainer trains several; otherwise empty.
    """

    trainer: L.Trainer
    module: C2CModule
    folder: Path
    loggers: Sequence[Logger]
    label: str = ""

    @property
    def tracker(self) -> MLflowTracker | None:
        """Of its MLflow run; None if it has none."""
        return find_tracker(self)

    @property
    def metrics(self) -> dict[str, Tensor]:
        """The newest metrics, by name."""
        metrics = self.trainer.callback_metrics
        return {name.replace(self.label, "", 1): value for name, value in metrics.items() if self.label in name}

    @property
    def resumed(self) -> bool:
        """Whether it goes on in its own folder."""
        path = self.trainer.ckpt_path
        begun = run_folder(Path(path)) if path else None
        return begun is not None and begun.resolve() == Path(self.trainer.default_root_dir).resolve()
