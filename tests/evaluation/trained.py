"""Fusers of the built-in pair, trained for a test, and evaluations of them by the command line."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from torch import Tensor

from c2c_lightning.cli.commands import main
from c2c_lightning.data import NanoData
from c2c_lightning.evaluation.asking.answers import Answer, AnswerFile
from c2c_lightning.files import PROJECT
from c2c_lightning.fuser import C2CFuser
from c2c_lightning.models import Batch
from c2c_lightning.training import C2CModule
from c2c_lightning.training.module import OptimizerConfig
from tests.models import tiny

CONFIG = str(PROJECT / "conf" / "eval" / "nano.yaml")
PAIR = {"receiver": "c2c_lightning/nano/receiver", "sharers": ["c2c_lightning/nano/sharer"]}
FEW = [
    "--model.methods=[{class_path: Receiver}, {class_path: Sharer}, {class_path: Routing}, {class_path: C2C}]",
    "--data.benchmarks=[{class_path: NanoWorld, init_args: {limit: 21}}]",
]


class Shuffled(C2CModule):
    """Learns from the cache of another question: whatever it gains, no cache has said."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return super().training_step(tiny.next_questions(batch), batch_idx)


def train(folder: Path, shuffled: bool, steps: int) -> Path:
    """The folder of a fuser trained as conf/base.yaml says, for fewer steps on smaller batches."""
    L.seed_everything(1, verbose=False)
    module = (Shuffled if shuffled else C2CModule)(
        **PAIR,
        fuser=partial(C2CFuser, hidden=128, dropout=0.0),
        optimizer=OptimizerConfig(lr=3e-3, gate_lr=0.1),
    )
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        default_root_dir=folder,
    )
    trainer.fit(module, NanoData(batch_size=32, aligner=module.aligner))
    module.communicator.save_pretrained(folder / "fuser")
    return folder / "fuser"


@dataclass
class Evaluated:
    """What an evaluation left behind."""

    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        return json.loads((self.folder / "results.json").read_text())

    def findings(self, benchmark: str = "nano") -> dict[str, Any]:
        return self.results["benchmarks"][benchmark]

    def answers(self, method: str, benchmark: str = "nano") -> dict[str, Answer]:
        return AnswerFile(self.folder, benchmark, method).read()

    def methods(self, benchmark: str = "nano") -> list[str]:
        return sorted(path.stem for path in (self.folder / "answers" / benchmark).glob("*.jsonl"))


def evaluate(fuser: Path, folder: Path, *args: str) -> Evaluated:
    """Runs `test` as conf/eval/nano.yaml says, without analyses unless `args` name some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["c2c_lightning"])
        main(arguments(fuser, folder, *args))
    return Evaluated(folder)


def arguments(fuser: Path, folder: Path, *args: str) -> list[str]:
    return [
        "test",
        f"--config={CONFIG}",
        f"--model.fuser={fuser}",
        f"--trainer.default_root_dir={folder}",
        "--trainer.callbacks=[]",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        *args,
    ]


def command(fuser: Path, folder: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "c2c_lightning", *arguments(fuser, folder, *args)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}


def same_findings(first: Evaluated, second: Evaluated) -> bool:
    """Whether two evaluations found the same, apart from how long it took."""

    def timeless(found: Evaluated) -> dict:
        findings = found.findings()
        for method in findings["methods"].values():
            del method["prefill_ms"], method["decode_ms"]
        return findings

    return timeless(first) == timeless(second)
