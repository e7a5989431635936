"""A progress bar that says what is being done."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from c2c_lightning.evaluation.datamodule import is_measured


class EvaluationProgress(TQDMProgressBar):
    """Lightning's bar, with the benchmark's name and pass in place of a DataLoader's number."""

    def on_test_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_test_batch_start(trainer, module, batch, batch_idx, dataloader_idx)
        doing = "reading caches" if is_measured(dataloader_idx) else "answering"
        self.test_progress_bar.set_description(f"{batch.benchmark.name}: {doing}")
