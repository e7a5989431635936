"""`test`: LightningCLI wiring of an evaluation and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningCLI

from c2c_lightning.communication.fuser_folder import fingerprint
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation import analyses, benchmarks, controls, methods
from c2c_lightning.evaluation.datamodule import BenchmarkData
from c2c_lightning.evaluation.module import Evaluation
from c2c_lightning.evaluation.progress import EvaluationProgress
from c2c_lightning.evaluation.record import EvaluationRecord
from c2c_lightning.messages import Parser
from c2c_lightning.tracking import MLflowTracker, noted_tracking
from c2c_lightning.training import CONFIG_FILE, FOLDER

RUNS = Path("runs")
TRAINER_DEFAULTS = {
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # every question goes to one rank, and none twice
    "inference_mode": False,  # the transformation oracle is trained in the end
}


class EvaluationParser(Parser):
    """Knows the classes that an evaluation is made of."""

    classes = tuple(getattr(part, name) for part in (benchmarks, methods, controls, analyses) for name in part.__all__)


class EvaluationCLI(LightningCLI):
    """`test` with an `Evaluation` on `BenchmarkData`."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"test": LightningCLI.subcommands()["test"]}

    def before_instantiate_classes(self) -> None:
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        config.verbose = False  # Lightning's own table of results has neither intervals nor controls
        if config.ckpt_path is not None:
            raise UserError(f"--ckpt_path {config.ckpt_path}: name the checkpoint to test as --model.fuser.")
        if config.trainer.limit_test_batches not in (None, 1.0):
            raise UserError(
                f"trainer.limit_test_batches is {config.trainer.limit_test_batches}: a report on part of the batches "
                "would mislead. Give the benchmark a limit instead."
            )
        if config.model.fuser == "last":
            config.model.fuser = str(newest_run())
        if config.trainer.default_root_dir is None:
            parser = self._subcommand_parsers[self.subcommand]
            settings = yaml.safe_load(parser.dump(config, skip_none=False))
            config.trainer.default_root_dir = str(folder_of(config.model.fuser, settings))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.subcommand is None:
            return super().instantiate_trainer(**kwargs)
        config = self.config_init[self.subcommand]
        trainer, folder = config.trainer, Path(config.trainer.default_root_dir)
        if trainer.logger is None or trainer.logger is True:
            known = noted_tracking(folder)
            trained = noted_tracking(run_of(config.model.fuser) or folder)
            kwargs["logger"] = MLflowTracker(run_name=folder.name, **known)
            if trained.get("tracking_uri") == kwargs["logger"].tracking_uri and trained != known:
                # In MLflow's UI the evaluation stands under the run that trained the fuser.
                kwargs["logger"].tags = {"mlflow.parentRunId": trained["run_id"]}
        callbacks = list(trainer.callbacks or [])
        if trainer.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(EvaluationProgress())
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)


WIRING: dict[str, Any] = {
    "model_class": Evaluation,
    "datamodule_class": BenchmarkData,
    "save_config_callback": EvaluationRecord,
    "trainer_defaults": TRAINER_DEFAULTS,
    "seed_everything_default": 42,
    "parser_class": EvaluationParser,
    "parser_kwargs": {"parser_mode": "omegaconf+"},
    "auto_configure_optimizers": False,
    "load_from_checkpoint_support": False,
}


def run(args: Sequence[str] | None) -> None:
    EvaluationCLI(**WIRING, args=args)


def newest_run() -> Path:
    """The run that was begun last and has a fuser or a checkpoint."""
    begun = [r for r in RUNS.glob("*") if (r / "fuser").is_dir() or any((r / FOLDER).glob("*.ckpt"))]
    if not begun:
        raise UserError("model.fuser is last, but runs/ has no run with a fuser: train one, or name a fuser's folder.")
    newest = max(begun, key=lambda run: (run / CONFIG_FILE).stat().st_mtime)
    return newest / "fuser" if (newest / "fuser").is_dir() else newest / FOLDER / "last.ckpt"


def run_of(fuser: str) -> Path | None:
    """The folder of the run that a fuser came from, if it lies where runs put theirs."""
    path = Path(fuser)
    return next((folder for folder in (path, *path.parents[:2]) if (folder / CONFIG_FILE).exists()), None)


def folder_of(fuser: str, settings: dict[str, Any]) -> Path:
    """A folder that is the same for the same fuser and settings, so that a rerun goes on where it was.

    What cannot change an answer does not count: how many questions are read together, on which devices,
    and what is drawn in the end.
    """
    model = {key: value for key, value in settings["model"].items() if key != "fuser"}
    data = {key: value for key, value in settings["data"].items() if key != "batch_size"}
    text = json.dumps([fingerprint(fuser), model, data], sort_keys=True)
    name = f"evaluation-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return (run_of(fuser) or RUNS) / name
