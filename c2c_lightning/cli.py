"""The command line: LightningCLI wiring and nothing else."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import re
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from c2c_lightning.data import InstructionData, NanoData
from c2c_lightning.fuser import C2CFuser
from c2c_lightning.training import (
    MLFLOW_FILE,
    C2CModule,
    GateMap,
    Interruption,
    MLflowTracker,
    RunRecord,
    summarize,
)

PACKAGE = Path(__file__).parent
RUNS = Path("runs")
TRAINER_DEFAULTS = {
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 5,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": None,
    "val_check_interval": 100,
    "enable_model_summary": False,  # the module says what is trained and what is frozen
}


UNKNOWN_NAME = re.compile(
    r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'|import path string: (\w+)"
    r"|invalid choice: '(\w+)'|[Oo]ption '(\w+)' is not accepted"
)


class Parser(LightningArgumentParser):
    """Says what is wrong in one message, with the name that was probably meant."""

    def __init__(self, *args: Any, **kwargs: Any):
        # An abbreviation that fits today is another key's tomorrow.
        super().__init__(*args, **kwargs, allow_abbrev=False)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = our_message(ex) or str(ex or message)
        no_class = re.search(r"Expected a dot import path string: \S+", text)
        text = no_class.group() if no_class else text
        for groups in UNKNOWN_NAME.findall(text):
            near = difflib.get_close_matches(next(filter(None, groups)), self._names(), n=1)
            if near:
                text += f"\nDid you mean {near[0]}?"
        sys.exit(f"error: {text}")

    def _names(self) -> list[str]:
        classes = [C2CFuser, InstructionData, NanoData]
        names = [name for c in classes for name in (c.__name__, *inspect.signature(c).parameters)]
        for action in self._actions:
            names += [action.dest, *(action.choices or [])]
            if isinstance(action.choices, dict):
                names += [name for parser in action.choices.values() for name in parser._names()]
        return names


class C2CCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` on a `C2CModule` and an `InstructionData`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Tokenizers and alignment are the model's; data that read prompts otherwise would be wrong.
        parser.link_arguments("model.aligner", "data.init_args.aligner", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Resolves and checks `--ckpt_path` before anything is built.

        The base class takes hyper-parameters out of the checkpoint here, over what the user typed.
        """
        config = self.config.get(self.config.get("subcommand") or "", {})
        name = config.get("ckpt_path")
        if name is None:
            return
        path = newest_checkpoint(config.trainer.default_root_dir) if name == "last" else Path(name)
        check_checkpoint(path)
        config.ckpt_path = str(path)

    def before_instantiate_classes(self) -> None:
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        trainer, path = config.trainer, config.get("ckpt_path")
        if trainer.default_root_dir is None:
            resumed = Path(path).parent.parent if path and Path(path).parent.name == "checkpoints" else None
            trainer.default_root_dir = str(resumed or RUNS / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
        if trainer.max_steps == -1 and trainer.max_epochs is None and trainer.max_time is None:
            trainer.max_epochs = 1

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.subcommand is None:
            return super().instantiate_trainer(**kwargs)
        config = self.config_init[self.subcommand].trainer
        folder = Path(config.default_root_dir)
        if config.logger is None or config.logger is True:
            resumed = folder / MLFLOW_FILE
            known = json.loads(resumed.read_text(encoding="utf-8")) if resumed.exists() else {}
            kwargs["logger"] = MLflowTracker(run_name=folder.name, **known) if self.subcommand == "fit" else False
        callbacks = [*(config.callbacks or [])]
        if self.subcommand == "fit":
            callbacks += [GateMap(), Interruption()]
            # Rich's bar would count to epoch -2 when only max_steps is set.
            wanted = config.enable_progress_bar is not False
            if wanted and not any(isinstance(callback, ProgressBar) for callback in callbacks):
                callbacks.append(TQDMProgressBar())
            if config.logger is not False:
                callbacks.append(LearningRateMonitor("step"))
            if config.enable_checkpointing is not False and not any(isinstance(c, ModelCheckpoint) for c in callbacks):
                callbacks.append(
                    ModelCheckpoint(
                        folder / "checkpoints",
                        filename="step={step}",
                        auto_insert_metric_name=False,
                        monitor="step",
                        mode="max",
                        save_last=True,
                        every_n_train_steps=config.val_check_interval
                        if isinstance(config.val_check_interval, int)
                        else 100,
                        enable_version_counter=False,
                    )
                )
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def before_fit(self) -> None:
        self._started = time.perf_counter()

    def after_fit(self) -> None:
        summarize(self.trainer, self.model, time.perf_counter() - self._started)


WIRING: dict[str, Any] = {
    "model_class": C2CModule,
    "datamodule_class": InstructionData,
    "subclass_mode_data": True,
    "save_config_callback": RunRecord,
    "save_config_kwargs": {"save_to_log_dir": False},
    "trainer_defaults": TRAINER_DEFAULTS,
    "seed_everything_default": 42,
    "parser_class": Parser,
    "parser_kwargs": {"parser_mode": "omegaconf+"},
    "auto_configure_optimizers": False,
    "load_from_checkpoint_support": False,
}


def newest_checkpoint(folder: str | None) -> Path:
    """The `last.ckpt` of the newest run, or of the run in `folder`."""
    found = [Path(folder)] if folder else list(RUNS.glob("*"))
    paths = [path for run in found if (path := run / "checkpoints" / "last.ckpt").exists()]
    if not paths:
        raise ValueError(f"--ckpt_path last: no run in {folder or RUNS.resolve()} has left a checkpoint.")
    return max(paths, key=lambda path: path.stat().st_mtime)


def check_checkpoint(path: Path) -> None:
    """Raises ValueError if there is no checkpoint of ours at `path`, or a damaged one."""
    if not path.exists():
        raise ValueError(f"--ckpt_path {path}: no such file.")
    if path.is_dir():
        return  # a sharded checkpoint, which its strategy reads
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # zipfile, pickle and torch each have their own
        raise ValueError(
            f"--ckpt_path {path}: the file is damaged or no checkpoint ({type(error).__name__})."
        ) from error
    if not isinstance(checkpoint, dict) or "c2c" not in checkpoint:
        raise ValueError(f"--ckpt_path {path}: it was not written by c2c_lightning.")


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; what the user can get wrong ends in one message and exit code 1."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    try:
        C2CCLI(**WIRING, args=args)
    except ValueError as error:
        message = our_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def our_message(error: BaseException | None) -> str | None:
    """What our own code said when it refused something, however often it was wrapped since.

    Any other exception is a bug, and its traceback should be seen.
    """
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, ValueError) and frames and Path(frames[-1].filename).is_relative_to(PACKAGE):
            return str(error)
        error = error.__cause__ or error.__context__
    return None
