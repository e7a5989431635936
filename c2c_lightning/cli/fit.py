"""`fit`, `validate` and `fit-shared`, which trains in one process what several `fit` would: LightningCLI wiring."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from jsonargparse.util import import_object
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from c2c_lightning.cli import lightning_parser
from c2c_lightning.cli.lightning_parser import CheckedCLI
from c2c_lightning.data import InstructionData
from c2c_lightning.errors import UserError
from c2c_lightning.models import ChatConfig, check_models
from c2c_lightning.runs import (
    CHECKPOINTS,
    CONFIG_FILE,
    LAST,
    RUNS,
    TRIAL_FILE,
    cut_off_early,
    give_back,
    held,
    make_folder,
    new_folder,
)
from c2c_lightning.sweep.configuration import differing_keys
from c2c_lightning.tracking import MLflowTracker, noted_tracking
from c2c_lightning.training.acceleration import keep_freed_memory
from c2c_lightning.training.checkpoints import CheckpointWriter, find_checkpoint, run_folder, run_to_resume
from c2c_lightning.training.interruption import Interruption
from c2c_lightning.training.module import C2CModule
from c2c_lightning.training.run_record import GateMap, RunRecord
from c2c_lightning.training.shared import SharedCheckpointIO, SharedLogger, StopFiles, join

VALIDATE_EVERY = 100
TRAINER_DEFAULTS = {
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 5,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": None,
    "val_check_interval": VALIDATE_EVERY,
    "enable_model_summary": False,  # the module says what is trained and what is frozen
}


class C2CCLI(CheckedCLI):
    """`fit` and `validate` with a `C2CModule` on an `InstructionData`."""

    def __init__(self, *args: Any, **kwargs: Any):
        with ExitStack() as self.at_end:
            super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        known = LightningCLI.subcommands()
        return {name: known[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Tokenizers and alignment are the model's; data that read prompts otherwise would be wrong.
        parser.link_arguments("model.aligner", "data.init_args.aligner", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Resolves and checks `--ckpt_path` before anything is built.

        The base class takes hyper-parameters out of the checkpoint here, over what the user typed.
        """
        config = self.config.get(self.config.get("subcommand") or "", {})
        if config.get("ckpt_path") is None:
            return
        trainer = config.trainer
        folder = trainer.default_root_dir
        run = run_to_resume(config.ckpt_path, [Path(folder)] if folder else sorted(RUNS.glob("*")))
        found = find_checkpoint(run, reads_shards(trainer.strategy))
        config.ckpt_path = found and str(found)
        if found is None:
            early = f"{run} was cut off before its first checkpoint"
            if self.config["subcommand"] != "fit":
                raise UserError(f"--ckpt_path {run}: {early}, so there is nothing to validate.")
            rank_zero_info(f"{early}: it begins again.")
            trainer.default_root_dir = folder or str(run)

    def before_instantiate_classes(self) -> None:
        if self.subcommand == "validate" and self.config.validate.ckpt_path is None:
            raise UserError("validate needs --ckpt_path: without a checkpoint there is only an untrained fuser.")
        if self.subcommand != "fit":
            return
        # A gate that is all but closed hands back gradients too small for a normal float, with which a CPU is
        # slow: they took half of the backward pass. Now, as threads take the setting over when they begin.
        torch.set_flush_denormal(True)
        keep_freed_memory()
        config = self.config[self.subcommand]
        trainer = config.trainer
        resumed = run_folder(Path(config.ckpt_path)) if config.ckpt_path else None
        folder = Path(trainer.default_root_dir) if trainer.default_root_dir else resumed or self.new_folder()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"trainer.default_root_dir {folder} is a file: name a folder.")
        if rank_zero_only.rank == 0 and not trainer.fast_dev_run:
            self.hold(folder)
        resumes = resumed is not None and folder.resolve() == resumed.resolve()
        if (folder / CONFIG_FILE).exists() and not resumes and not cut_off_early(folder):
            raise UserError(
                f"trainer.default_root_dir {folder} already holds a run: go on with it by --ckpt_path last, "
                "or name another folder."
            )
        trainer.default_root_dir = str(folder)
        if trainer.max_steps == -1 and trainer.max_epochs is None:
            trainer.max_epochs = 1
        model = config.model
        chat = ChatConfig(**vars(model.chat))
        check_models(model.receiver, model.sharers, model.alignment, model.template_kwargs, chat, model.dtype)

    def new_folder(self) -> Path:
        """A folder of the run's own, which the first rank makes; the others learn of it when they have met."""
        if rank_zero_only.rank != 0:
            return RUNS / "made-by-the-first-rank"
        folder = new_folder()
        self.at_end.callback(give_back, folder)  # if the run was refused before anything was in it
        return folder

    def hold(self, folder: Path) -> None:
        """Keeps other runs from the folder until this one has ended."""
        if not folder.exists():
            make_folder(folder, "trainer.default_root_dir")
            self.at_end.callback(give_back, folder)
        self.at_end.enter_context(held(folder, "run"))

    def loggers(self) -> list[Logger]:
        """Those that are configured, or else MLflow's."""
        config = self.config_init[self.subcommand].trainer
        if config.logger is None or config.logger is True:
            folder = Path(config.default_root_dir)
            # What made the run beforehand, such as a sweep, has left word of it.
            return [MLflowTracker(run_name=folder.name, **noted_tracking(folder))]
        return config.logger if isinstance(config.logger, list) else [config.logger] if config.logger else []

    def instantiate_trainer(
        self, callbacks: Sequence[L.Callback] = (), checkpoints: CheckpointIO | None = None, **kwargs: Any
    ) -> L.Trainer:
        if self.subcommand is None:
            return super().instantiate_trainer(**kwargs)
        config = self.config_init[self.subcommand].trainer
        if self.subcommand != "fit":
            return super().instantiate_trainer(logger=config.logger or False, **kwargs)
        folder = Path(config.default_root_dir)
        if "logger" not in kwargs:
            kwargs["logger"] = self.loggers() or False
        callbacks = [*(config.callbacks or []), GateMap(), Interruption(), *callbacks]
        # Rich's bar would count to epoch -2 when only max_steps is set.
        if config.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(TQDMProgressBar())
        if config.logger is not False:
            callbacks.append(LearningRateMonitor("step"))
        if config.fast_dev_run:
            kwargs["enable_checkpointing"] = False  # such a run leaves nothing
        elif config.enable_checkpointing is not False:
            interval = config.val_check_interval if isinstance(config.val_check_interval, int) else VALIDATE_EVERY
            callbacks.append(
                ModelCheckpoint(
                    folder / CHECKPOINTS,
                    filename="step={step}",
                    auto_insert_metric_name=False,
                    monitor="step",
                    mode="max",
                    save_top_k=3,
                    save_last=True,
                    every_n_train_steps=max(1, interval // config.accumulate_grad_batches),
                    enable_version_counter=False,
                )
            )
        plugins = config.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if checkpoints is not None or not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, checkpoints or CheckpointWriter()]
        return super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs)


WIRING: dict[str, Any] = {
    **lightning_parser.WIRING,
    "model_class": C2CModule,
    "datamodule_class": InstructionData,
    "subclass_mode_data": True,
    "save_config_callback": RunRecord,
    "trainer_defaults": TRAINER_DEFAULTS,
}


def run(args: Sequence[str] | None) -> None:
    C2CCLI(**WIRING, args=args)


def reads_shards(strategy: Any) -> bool:
    """Whether a strategy, as it stands in a configuration, resumes sharded checkpoints."""
    path = getattr(strategy, "class_path", None)
    return path is not None and issubclass(import_object(path), ModelParallelStrategy)


class TrialCLI(C2CCLI):
    """`fit` as far as it goes without a trainer: configuration, model, data and loggers of one trial."""

    def hold(self, folder: Path) -> None:
        """Held by `fit_shared`."""

    def instantiate_trainer(self, **kwargs: Any) -> None:
        return None

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def fit_shared(runs: list[str] | str, progress_bar: bool = True) -> None:
    """Trains fusers that differ in nothing but the fuser and its gating, from the same prefill.

    What each run leaves is what `fit` with its configuration leaves, and can be resumed by `fit`. Runs
    that have a checkpoint are resumed. A file `stop` in a run's folder ends that run at its next validation.

    Args:
        runs: folders of the runs, with commas between them, or a list if one has a comma in its name. In each lies
            trial.yaml, a configuration of `fit`.
        progress_bar: show how far they are.

    Raises:
        UserError: a configuration that is missing, or with which nothing can be shared.
    """
    names = [name for name in runs.split(",") if name] if isinstance(runs, str) else runs
    folders = [Path(name) for name in names]
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"runs is {runs!r}: name the folder of every run once.")
    missing = [str(folder / TRIAL_FILE) for folder in folders if not (folder / TRIAL_FILE).is_file()]
    if missing:
        message = f"runs: there is no {', '.join(missing)}, a configuration as `fit --config` takes it."
        cut = [name for name in map(",".join, pairwise(names)) if Path(name).is_dir()]
        if cut:
            message += f" The folder {cut[0]} has a comma in its name: give a list, --runs '{json.dumps(cut[:1])}'."
        raise UserError(message)
    with ExitStack() as at_end:
        for folder in folders:
            at_end.enter_context(held(folder, "run"))
        _fit_together(folders, progress_bar)


def _fit_together(folders: list[Path], progress_bar: bool) -> None:
    begun = [(folder / CHECKPOINTS / LAST).exists() for folder in folders]
    if any(begun) and not all(begun):
        fresh = ", ".join(str(folder) for folder, has in zip(folders, begun) if not has)
        raise UserError(f"trials go on together only from the same step, and these have no checkpoint yet: {fresh}.")
    clis = [_parse(folder, progress_bar) for folder in folders]
    configs = [yaml.safe_load(cli._parser("fit").dump(cli.config["fit"], skip_none=False)) for cli in clis]
    different = differing_keys(configs)
    if different:
        raise UserError(
            f"these runs differ in {', '.join(different)}, and only fuser, gate, layers, layer_map, optimizer and "
            "prompt_store may differ where the prefill is shared: train them apart."
        )
    first = clis[0]
    module = join([cli.model for cli in clis], folders, [cli.loggers() for cli in clis])
    first.save_config_kwargs = {
        "configs": {run.label: cli.config["fit"] for run, cli in zip(module.runs, clis, strict=True)}
    }
    trainer = C2CCLI.instantiate_trainer(
        first, [StopFiles()], SharedCheckpointIO(module.runs), logger=SharedLogger(module.runs)
    )
    if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise UserError(
            f"trainer.devices is {trainer.num_devices} and trainer.strategy {type(trainer.strategy).__name__}: "
            "a shared prefill is for one device (trainer.devices 1); train apart on several."
        )
    if trainer.precision == "16-mixed":
        raise UserError(
            "trainer.precision 16-mixed scales the losses of all trials together, so that one trial's overflow would "
            "cost the others a step: give bf16-mixed, or train apart."
        )
    trainer.fit(module, datamodule=first.datamodule, ckpt_path=first.config["fit"].ckpt_path)
    if module.failed:
        raise UserError(" ".join(f"{folder}: {error}" for folder, error in module.failed.items()))


def _parse(folder: Path, progress_bar: bool) -> TrialCLI:
    """A trial's configuration, built as `fit` builds it in that folder."""
    args = ["fit", "--config", str(folder / TRIAL_FILE), "--trainer.default_root_dir", str(folder)]
    if (folder / CHECKPOINTS / LAST).exists():
        args += ["--ckpt_path", str(folder / CHECKPOINTS / LAST)]
    if not progress_bar:
        args += ["--trainer.enable_progress_bar", "false"]
    with warnings.catch_warnings():
        # That there is a command line too, of which these are not the arguments.
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
        return TrialCLI(**WIRING, args=args)
