"""Trains the fusers of several trials at the price of one prefill.

Trials that differ only in the fuser and its gating read the same batches with the same frozen models. Here
the models read each batch once, and every trial's fuser learns from the same caches, as it would alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from c2c_lightning.fuser import fuse_all
from c2c_lightning.models import Batch, load_models
from c2c_lightning.runs import CHECKPOINTS, LAST, STOP_FILE
from c2c_lightning.training.held_out import STATE
from c2c_lightning.training.module import FUSERS, C2CModule, adamw
from c2c_lightning.training.shared_checkpoint import OF_THE_RUN, own
from c2c_lightning.training.trained_run import SharedRun, TrainedRun


class SharedModule(L.LightningModule):
    """The modules of several trials, whose receiver and sharers are the same objects.

    Args:
        trials: whose models, data and trainer are configured alike.
    """

    def __init__(self, trials: Sequence[SharedRun]):
        super().__init__()
        self.trials = trials
        self.strict_loading = False  # checkpoints hold the fusers only
        self.validated_at: int | None = None
        self._shown: dict[str, list[Tensor]] = {}
        for trial in trials:
            trial.module.label = trial.label
            # Lightning takes metrics from the module that it runs and no other.
            trial.module.log = partial(self._log, trial.label)
            self.add_module(trial.label.removesuffix("."), trial.module)

    def ongoing(self) -> list[C2CModule]:
        """The modules of the trials that have not ended."""
        return [trial.module for trial in self.trials if not trial.ended]

    def runs(self) -> list[TrainedRun]:
        return [
            TrainedRun(self.trainer, trial.module, trial.folder, trial.loggers, trial.label)
            for trial in self.trials
            if not trial.ended
        ]

    def configure_model(self) -> None:
        first = self.ongoing()[0]
        if first.communicator is None:
            models = load_models(first.receiver, first.sharers, first.dtype_name)
            for module in self.ongoing():
                with isolate_rng():  # every fuser begins as it would alone
                    module.make_communicator(*models)
                if module.closed_form:
                    module.closed_form.check(self.trainer)

    def configure_optimizers(self) -> dict[str, Any]:
        return adamw(self.ongoing(), self.trainer.precision)

    def on_fit_start(self) -> None:
        for module in self.ongoing():
            module.on_fit_start()

    def on_train_start(self) -> None:
        for module in self.ongoing():
            module.on_train_start()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        for module in self.ongoing():
            module.on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        modules = self.ongoing()
        communicators = [module.communicator for module in modules]
        caches = fuse_all([communicator.fusers for communicator in communicators], communicators[0].read(batch))
        # One response after the other: as one large batch they would be rounded otherwise than alone.
        losses = [
            module.account(batch, *module.communicator.response_loss(cache, batch))
            for module, cache in zip(modules, caches)
        ]
        return torch.stack(losses).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for module in self.ongoing():
            module.on_before_optimizer_step(optimizer)
        self._show()

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        for module in self.ongoing():
            module.configure_gradient_clipping(optimizer, *args, **kwargs)

    def on_validation_start(self) -> None:
        for module in self.ongoing():
            module.on_validation_start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        modules = self.ongoing()
        first = modules[0]
        reading, alone = first.communicator.read(batch), None
        if batch.references is not None and not first.exact_answers.frozen:
            alone = first.exact_answers.alone(first.communicator, reading)
        for module in modules:
            module.validate_on(reading, alone)

    def on_validation_epoch_end(self) -> None:
        for module in self.ongoing():
            module.on_validation_epoch_end()
        self._show()
        self.validated_at = self.global_step

    def on_validation_end(self) -> None:
        for module in self.ongoing():
            module.on_validation_end()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if FUSERS in name}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for module in self.ongoing():
            checkpoint[f"{module.label}{OF_THE_RUN}"] = module.settings()
            if module.closed_form:
                checkpoint[f"{module.label}{STATE}"] = module.closed_form.held_out.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for module in self.ongoing():
            of_the_run = (OF_THE_RUN, STATE)
            module.on_load_checkpoint(
                {key: checkpoint[f"{module.label}{key}"] for key in of_the_run if f"{module.label}{key}" in checkpoint}
            )

    def _log(self, label: str, name: str, value: Any, prog_bar: bool = False, **kwargs: Any) -> None:
        self.log(f"{label}{name}", value, **kwargs)
        if prog_bar:
            self._shown.setdefault(name, []).append(value)

    def _show(self) -> None:
        """Puts the means over the trials on the progress bar, which has no room for all of them."""
        for name, values in self._shown.items():
            self.log(name, torch.stack(values).mean(), prog_bar=True, logger=False)
        self._shown = {}


class SharedLogger(Logger):
    """Hands every trial's metrics to its own loggers, by its label.

    Args:
        trials: that train together.
    """

    def __init__(self, trials: Sequence[SharedRun]):
        super().__init__()
        self.trials = trials

    @property
    def name(self) -> str:
        return "shared"

    @property
    def version(self) -> None:
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for trial in self.trials:
            if not trial.ended:
                for logger in trial.loggers:
                    logger.log_metrics(own(metrics, trial.label), step)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Each trial's are in its record."""

    def finalize(self, status: str) -> None:
        for trial in self.trials:
            if not trial.ended:
                for logger in trial.loggers:
                    logger.finalize(status)


class StopFiles(L.Callback):
    """Ends a trial after a validation if a file `stop` lies in its folder, as if it had been interrupted.

    It has its checkpoint, and the other trials go on as they would without it.
    """

    def on_validation_end(self, trainer: L.Trainer, module: SharedModule) -> None:
        # What is at its last step anyway shall finish.
        if trainer.sanity_checking or trainer.global_step >= module.ongoing()[0].num_steps():
            return
        stopped = [run for run in module.runs() if (run.folder / STOP_FILE).exists()]
        if stopped and trainer.checkpoint_callback is not None:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / CHECKPOINTS / LAST, weights_only=False)
        for run in stopped:
            for logger in run.loggers:
                logger.finalize("interrupted")
            if run.tracker is not None:
                run.tracker.save_undelivered(run.folder)
        for trial in module.trials:
            trial.ended |= trial.label in {run.label for run in stopped}
        trainer.should_stop |= not module.runs()
