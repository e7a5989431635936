"""`test`: LightningCLI wiring of an evaluation and nothing else."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import yaml
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningCLI

from c2c_lightning.cli import lightning_parser
from c2c_lightning.cli.lightning_parser import CheckedCLI, Parser
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation import analyses, benchmarks
from c2c_lightning.evaluation.analyses.base import Analysis
from c2c_lightning.evaluation.asking.answers import digest
from c2c_lightning.evaluation.asking.controls import CONTROLS
from c2c_lightning.evaluation.asking.module import METHODS, Evaluation, EvaluationProgress
from c2c_lightning.evaluation.asking.questions import BenchmarkData
from c2c_lightning.evaluation.report.record import EvaluationRecord
from c2c_lightning.formats.config import located
from c2c_lightning.formats.fuser_folder import named, read_fuser
from c2c_lightning.models import ChatConfig, check_models
from c2c_lightning.runs import RUNS, run_of
from c2c_lightning.tracking import MLflowTracker, noted_tracking

TRAINER_DEFAULTS = {
    "enable_model_summary": False,
    "use_distributed_sampler": False,  # every question goes to one rank, and none twice
    "inference_mode": False,  # the transformation oracle is trained in the end
}


# What older configurations name, and what to write instead.
GONE = {
    "LongBenchE": "LongBenchE is now tasks of lm-evaluation-harness: give class_path HarnessTask with init_args "
    "{task: longbench_e, metric: score}, as conf/eval/longbench.yaml does."
}
KINDS = (benchmarks.Benchmark, Analysis)


class EvaluationParser(Parser):
    """Knows the classes that an evaluation is made of, so that a configuration may name them."""

    classes = (
        *METHODS,
        *CONTROLS,
        *(
            known
            for part in (benchmarks, analyses)
            for known in vars(part).values()
            if isinstance(known, type) and issubclass(known, KINDS) and not inspect.isabstract(known)
        ),
    )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        for name, instead in GONE.items():
            if name in str(ex or message):
                sys.exit(f"error: {instead}")
        super().error(message, ex)


class EvaluationCLI(CheckedCLI):
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
        for key, whole in (("limit_test_batches", "1.0"), ("fast_dev_run", "False"), ("overfit_batches", "0.0")):
            value = config.trainer[key]
            if value is not None and str(value) != whole:
                raise UserError(
                    f"trainer.{key} is {value}: a report on part of the batches would mislead. Give the benchmark a "
                    "limit instead."
                )
        if config.model.methods == [] and not config.model.controls:
            raise UserError("model.methods and model.controls are empty, so nothing is asked: name a method.")
        model = config.model
        model.fuser = named(model.fuser)
        saved = located(read_fuser(model.fuser, model.receiver, model.sharers)[0], model.fuser)
        names = {key: saved[key] for key in ("receiver", "sharers", "alignment", "template_kwargs")}
        check_models(**names, chat=ChatConfig(**saved["chat"]), dtype=config.model.dtype)
        settings = yaml.safe_load(self._subcommand_parsers[self.subcommand].dump(config, skip_none=False))
        self.save_config_kwargs["settings"] = digest(settings)
        if config.trainer.default_root_dir is None:
            folder = run_of(config.model.fuser) or RUNS / "evaluations"
            config.trainer.default_root_dir = str(folder / f"evaluation-{self.save_config_kwargs['settings'][:8]}")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.subcommand is None:
            return super().instantiate_trainer(**kwargs)
        config = self.config_init[self.subcommand]
        trainer, folder = config.trainer, Path(config.trainer.default_root_dir)
        if trainer.logger is None or trainer.logger is True:
            tracker = MLflowTracker(run_name=folder.name, **noted_tracking(folder))
            run = run_of(config.model.fuser)
            trained = noted_tracking(run) if run else {}
            if trained.get("tracking_uri") == tracker.tracking_uri:
                # In MLflow's UI the evaluation stands under the run that trained the fuser.
                tracker.tags = {"mlflow.parentRunId": trained["run_id"]}
            kwargs["logger"] = tracker
        callbacks = list(trainer.callbacks or [])
        if trainer.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(EvaluationProgress())
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)


WIRING: dict[str, Any] = {
    **lightning_parser.WIRING,
    "model_class": Evaluation,
    "datamodule_class": BenchmarkData,
    "save_config_callback": EvaluationRecord,
    "trainer_defaults": TRAINER_DEFAULTS,
    "parser_class": EvaluationParser,
}


def run(args: Sequence[str] | None) -> None:
    EvaluationCLI(**WIRING, args=args)
