"""Ctrl-C and SIGTERM end a run at the next optimizer step, with a checkpoint."""

from __future__ import annotations

import signal
from types import FrameType

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from c2c_lightning.models import Batch
from c2c_lightning.runs import Interrupted
from c2c_lightning.training.checkpoints import save_last
from c2c_lightning.training.module import C2CModule


class Interruption(L.Callback):
    """Stops between two optimizer steps, so that a resumed run goes on as if nothing had happened.

    A second signal stops at once and saves nothing more.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def on_train_start(self, trainer: L.Trainer, module: C2CModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: C2CModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        # Any rank's signal stops them all at the same step; on one device this costs nothing.
        received = self.received or 0
        if trainer.world_size > 1:
            received = int(trainer.strategy.reduce(torch.tensor(received, device=module.device), reduce_op="max"))
        if not received:
            return
        if not trainer.fast_dev_run:
            file = save_last(trainer)
            # Runs that train together are resumed by themselves.
            how = f" and --ckpt_path {file}" if not module.runs[0].label else ""
            rank_zero_info(f"\nStopped at step {trainer.global_step}. Go on with the same command{how}")
        for logger in trainer.loggers:
            logger.finalize("interrupted")
        raise Interrupted(128 + received)

    def teardown(self, trainer: L.Trainer, module: C2CModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise Interrupted(128 + number)
        self.received = number
